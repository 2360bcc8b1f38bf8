//! The settings of `serve`, each declared once: as an option for clap, as a key of the file for
//! serde. An option without a key is marked `serde(skip)`, a table of the file `arg(skip)`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use twinlock_core::session::BindingPolicy;
use twinlock_server::identity::KeyType;

use super::numbers::{LimitsFile, TimingFile};
use super::ranged::{not_empty, port};

/// The default of `--host`: this machine only.
pub(super) const DEFAULT_HOST: &str = "127.0.0.1";
/// The default of `--port`, and the port of an address without one.
pub(crate) const DEFAULT_PORT: u16 = 8443;

/// The options of `serve`, and the keys of its file. Unknown keys are errors.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ServeArgs {
    /// Directory of identity and record [default: $XDG_DATA_HOME/twinlock-server]
    #[arg(long, value_name = "DIR", env = "TWINLOCK_DATA", hide_env_values = true)]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) data: Option<PathBuf>,
    /// Address to listen on, or a name that resolves to one; 0.0.0.0 for all
    /// [default: 127.0.0.1]
    #[arg(long, env = "TWINLOCK_HOST", hide_env_values = true)]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) host: Option<String>,
    /// Port to listen on; 0 for a free one [default: 8443]
    #[arg(long, env = "TWINLOCK_PORT", hide_env_values = true)]
    #[serde(default, deserialize_with = "port")]
    pub(super) port: Option<u16>,
    /// Read settings from this TOML file; flags and environment take precedence
    #[arg(long, value_name = "FILE", env = "TWINLOCK_CONFIG", hide_env_values = true)]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,
    /// Address in invite links, under which others reach this server
    #[arg(
        long,
        value_name = "NAME[:PORT][/PATH]",
        env = "TWINLOCK_PUBLIC_HOST",
        hide_env_values = true
    )]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) public_host: Option<String>,
    /// Show the owner's invite link as a QR code too; it is taller than 24 lines
    #[arg(long)]
    #[serde(skip)]
    pub(crate) qr: bool,
    /// Certificate chain, PEM
    #[arg(long, value_name = "FILE", env = "TWINLOCK_TLS_CERT", hide_env_values = true)]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", env = "TWINLOCK_TLS_KEY", hide_env_values = true)]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) tls_key: Option<PathBuf>,
    /// Key type of the self-signed certificate [default: ecdsa]
    #[arg(long, value_name = "TYPE", env = "TWINLOCK_TLS_KEY_TYPE", hide_env_values = true)]
    pub(super) tls_key_type: Option<TlsKeyType>,
    /// Policy for intercepted TLS [default: warn]
    #[arg(long, value_name = "POLICY", env = "TWINLOCK_BINDING", hide_env_values = true)]
    pub(super) binding: Option<TlsInterceptionPolicy>,
    /// A proxy terminates TLS in front of this listener
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_BEHIND_PROXY", hide_env_values = true)]
    pub(super) behind_proxy: Option<bool>,
    /// Require a PROXY protocol header (version 1 or 2) from this address
    #[arg(
        long = "proxy",
        value_name = "ADDRESS",
        env = "TWINLOCK_PROXY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    #[serde(default)]
    pub(super) proxies: Vec<IpAddr>,
    /// Take the client's address from the X-Forwarded-For or Forwarded field of this HTTP proxy
    #[arg(
        long = "forwarded-from",
        value_name = "ADDRESS",
        env = "TWINLOCK_FORWARDED_FROM",
        hide_env_values = true,
        value_delimiter = ','
    )]
    #[serde(default)]
    pub(super) forwarded_from: Vec<IpAddr>,
    /// Port for sessions without TLS, for a proxy on this machine that terminates it
    /// [default: off]
    #[arg(long, value_name = "PORT", env = "TWINLOCK_PLAIN_PORT", hide_env_values = true)]
    #[serde(default, deserialize_with = "port")]
    pub(super) plain_port: Option<u16>,
    /// Address of the plain port; another than loopback accepts only peers named with --proxy or
    /// --forwarded-from [default: 127.0.0.1]
    #[arg(long, value_name = "HOST", env = "TWINLOCK_PLAIN_HOST", hide_env_values = true)]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) plain_host: Option<String>,
    /// Path of the WebSocket on both ports of sessions [default: /twinlock]
    #[arg(long, value_name = "PATH", env = "TWINLOCK_WEBSOCKET_PATH", hide_env_values = true)]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) websocket_path: Option<String>,
    /// Page to show to browsers at /, text or HTML [default: a line of text]
    #[arg(long, value_name = "FILE", env = "TWINLOCK_INDEX", hide_env_values = true)]
    #[serde(default, deserialize_with = "not_empty")]
    pub(super) index: Option<PathBuf>,
    /// Port for classic connections: devices and scripts in any language [default: off]
    #[arg(long, value_name = "PORT", env = "TWINLOCK_CLASSIC_PORT", hide_env_values = true)]
    #[serde(default, deserialize_with = "port")]
    pub(super) classic_port: Option<u16>,
    /// Port for unchanged clients of the origin, without integrity [default: off]
    #[arg(long, value_name = "PORT", env = "TWINLOCK_ORIGIN_PORT", hide_env_values = true)]
    #[serde(default, deserialize_with = "port")]
    pub(super) origin_port: Option<u16>,
    /// Log the text of each message
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_LOG_MESSAGES", hide_env_values = true)]
    pub(super) log_messages: Option<bool>,
    /// Log level: error, warn, info, debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "TWINLOCK_LOG_LEVEL", hide_env_values = true)]
    pub(super) log_level: Option<LogLevel>,
    /// Log lines as JSON
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_LOG_JSON", hide_env_values = true)]
    pub(super) log_json: Option<bool>,
    #[arg(skip)]
    #[serde(default)]
    pub(super) limits: LimitsFile,
    #[arg(skip)]
    #[serde(default)]
    pub(super) timing: TimingFile,
}

/// The key of a self-made certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TlsKeyType {
    Ecdsa,
    Rsa2048,
}

impl From<TlsKeyType> for KeyType {
    fn from(key_type: TlsKeyType) -> Self {
        match key_type {
            TlsKeyType::Ecdsa => Self::Ecdsa,
            TlsKeyType::Rsa2048 => Self::Rsa2048,
        }
    }
}

/// What the server does about TLS that is terminated in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TlsInterceptionPolicy {
    Require,
    Warn,
    Off,
}

impl From<TlsInterceptionPolicy> for BindingPolicy {
    fn from(policy: TlsInterceptionPolicy) -> Self {
        match policy {
            TlsInterceptionPolicy::Require => Self::Require,
            TlsInterceptionPolicy::Warn => Self::Warn,
            TlsInterceptionPolicy::Off => Self::Off,
        }
    }
}

/// The least severe events that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}
