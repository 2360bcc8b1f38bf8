//! Arguments of `serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Directory of identity and record [default: $XDG_DATA_HOME/twinlock-server]
    #[arg(long, value_name = "DIR", env = "TWINLOCK_DATA", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,
    /// Address to listen on, or a name that resolves to one; 0.0.0.0 for all
    /// [default: 127.0.0.1]
    #[arg(long, env = "TWINLOCK_HOST", hide_env_values = true)]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 for a free one [default: 8443]
    #[arg(long, env = "TWINLOCK_PORT", hide_env_values = true)]
    pub(crate) port: Option<u16>,
    /// Read settings from this TOML file; flags and environment take precedence
    #[arg(long, value_name = "FILE", env = "TWINLOCK_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// Address in invite links, under which others reach this server
    #[arg(long, value_name = "NAME[:PORT]", env = "TWINLOCK_PUBLIC_HOST", hide_env_values = true)]
    pub(crate) public_host: Option<String>,
    /// Show the owner's invite link as a QR code too; it is taller than 24 lines
    #[arg(long)]
    pub(crate) qr: bool,
    /// Certificate chain, PEM
    #[arg(long, value_name = "FILE", env = "TWINLOCK_TLS_CERT", hide_env_values = true)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", env = "TWINLOCK_TLS_KEY", hide_env_values = true)]
    pub(crate) tls_key: Option<PathBuf>,
    /// Key type of the self-signed certificate [default: ecdsa]
    #[arg(long, value_name = "TYPE", env = "TWINLOCK_TLS_KEY_TYPE", hide_env_values = true)]
    pub(crate) tls_key_type: Option<KeyType>,
    /// Policy for intercepted TLS [default: warn]
    #[arg(long, value_name = "POLICY", env = "TWINLOCK_BINDING", hide_env_values = true)]
    pub(crate) binding: Option<Binding>,
    /// A proxy terminates TLS in front of this listener
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_BEHIND_PROXY", hide_env_values = true)]
    pub(crate) behind_proxy: Option<bool>,
    /// Accept the PROXY protocol header (version 2) from this address
    #[arg(
        long = "proxy",
        value_name = "ADDRESS",
        env = "TWINLOCK_PROXY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) proxies: Vec<IpAddr>,
    /// Port for classic connections: devices and scripts in any language [default: off]
    #[arg(long, value_name = "PORT", env = "TWINLOCK_CLASSIC_PORT", hide_env_values = true)]
    pub(crate) classic_port: Option<u16>,
    /// Port for unchanged clients of the origin, without integrity [default: off]
    #[arg(long, value_name = "PORT", env = "TWINLOCK_ORIGIN_PORT", hide_env_values = true)]
    pub(crate) origin_port: Option<u16>,
    /// Log the text of each message
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_LOG_MESSAGES", hide_env_values = true)]
    pub(crate) log_messages: Option<bool>,
    /// Log level: error, warn, info, debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "TWINLOCK_LOG_LEVEL", hide_env_values = true)]
    pub(crate) log_level: Option<LogLevel>,
    /// Log lines as JSON
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_LOG_JSON", hide_env_values = true)]
    pub(crate) log_json: Option<bool>,
}

/// The key of a self-made certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyType {
    Ecdsa,
    Rsa2048,
}

/// What to do about TLS that ends in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Binding {
    Require,
    Warn,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}
