//! Arguments of all or several commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use twinlock_client::via::{Via, parse_login};
use twinlock_client::{Route, TransportChoice};
use twinlock_core::invite::Address;

use super::values::{address, duration, via};
use crate::ask::secret_file;
use crate::exit::Failure;
use crate::output::Color;

/// Maximum length of a proxy's user name and password in bytes.
const MAX_LOGIN: u64 = 1024;

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Which profile to use [env: TWINLOCK_PROFILE] [default: default]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Everywhere")]
    pub(crate) profile: Option<String>,
    /// Connect to this address instead of the profile's; it must be the same server
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "TWINLOCK_ADDRESS",
        hide_env_values = true,
        value_parser = address,
        help_heading = "Everywhere"
    )]
    pub(crate) address: Option<Address>,
    /// Connect to this host, a name or an IP address; keep the port
    // `serve` defines `--host` and `--port` as its listening address.
    #[arg(long, global = true, value_name = "HOST", help_heading = "Everywhere")]
    pub(crate) host: Option<String>,
    /// Connect to this port; keep the host
    #[arg(long, global = true, value_name = "N", help_heading = "Everywhere")]
    pub(crate) port: Option<u16>,
    /// Transport: auto (TLS, or WebSocket in TLS where an HTTP proxy is), tls, websocket, or plain
    /// (this machine only)
    #[arg(
        long,
        global = true,
        value_name = "WAY",
        env = "TWINLOCK_TRANSPORT",
        hide_env_values = true,
        default_value = "auto",
        hide_default_value = true,
        help_heading = "Everywhere"
    )]
    pub(crate) transport: TransportChoice,
    /// Go through this proxy: http://HOST:PORT (CONNECT), socks5://HOST:PORT, or none
    /// [default: what HTTPS_PROXY, ALL_PROXY and NO_PROXY say, except to this machine]
    #[arg(long, global = true, value_name = "URL", help_heading = "Everywhere")]
    pub(crate) via: Option<String>,
    /// The proxies of `--via` and `--via-auth-file`.
    #[arg(skip)]
    pub(crate) proxies: Via,
    /// Read the proxy's USER:PASSWORD from this file
    #[arg(long, global = true, value_name = "FILE", requires = "via", help_heading = "Everywhere")]
    pub(crate) via_auth_file: Option<PathBuf>,
    /// Print only requested data and errors
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
    /// Log at DEBUG, including sealed frames
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) verbose: bool,
    /// Give up after this time, such as 10s or 2m
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, help_heading = "Everywhere")]
    pub(crate) timeout: Option<Duration>,
    /// Colours: auto (on a terminal, unless NO_COLOR is set or TERM is dumb), always or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) color: Color,
}

impl GlobalArgs {
    /// How connections reach the server.
    pub(crate) fn route(&self) -> Route {
        Route { transport: self.transport, via: self.proxies.clone() }
    }

    /// Reads `--via` and `--via-auth-file`.
    ///
    /// # Errors
    /// The URL is not one of a proxy, or the file cannot be used. The message does not repeat the
    /// URL, which may have a password.
    pub(crate) async fn find_proxies(&mut self) -> Result<(), Failure> {
        if let Some(url) = &self.via {
            self.proxies = via(url)
                .map_err(|error| Failure::usage(format!("--via cannot be used: {error}")))?;
        }
        let Some(file) = self.via_auth_file.clone() else { return Ok(()) };
        let fail = |problem: &dyn std::fmt::Display| {
            Failure::usage(format!("--via-auth-file {}: {problem}", file.display()))
        };
        let bytes = secret_file(&file, MAX_LOGIN + 1).await?.map_err(|error| fail(&error))?;
        if bytes.len() as u64 > MAX_LOGIN {
            return Err(fail(&format!("it has more than {MAX_LOGIN} bytes")));
        }
        let login = std::str::from_utf8(&bytes).ok().and_then(parse_login);
        let login = login.ok_or_else(|| fail(&"it has to be USER:PASSWORD on one line"))?;
        match &mut self.proxies {
            Via::Proxy(proxy) => proxy.login = Some(login),
            _ => return Err(Failure::usage("--via-auth-file goes with --via and a proxy's URL")),
        }
        Ok(())
    }

    /// The address to use instead of `known`: `--address`, with `--host` and `--port` replacing
    /// their part of it. `None` if none of the three is given.
    ///
    /// # Errors
    /// The parts do not form an address.
    pub(crate) fn reach(&self, known: &Address) -> Result<Option<Address>, Failure> {
        if self.host.is_none() && self.port.is_none() {
            return Ok(self.address.clone());
        }
        let base = self.address.as_ref().unwrap_or(known);
        let host = self.host.as_deref().unwrap_or(base.host());
        let port = self.port.unwrap_or(base.port());
        base.moved(host, port).map(Some).map_err(|_| {
            Failure::usage(format!(
                "--host '{}' --port {port} is not an address",
                host.escape_debug()
            ))
            .hint("--host takes a name or an IP address, --port takes 1 to 65535")
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct JsonArgs {
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PasswordArgs {
    /// Read the password from this file, or `-` for standard input; a final line end is removed
    /// [env: TWINLOCK_PASSWORD holds the password itself]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}
