//! The settings of `serve`: flags, else the environment, else the file, else the defaults.

mod numbers;
mod options;
mod ranged;
#[cfg(test)]
mod tests;

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use twinlock_core::invite::{Address, DEFAULT_PATH};
use twinlock_core::text::Untrusted;
use twinlock_server::Config;
use twinlock_server::identity::OwnFiles;

use crate::exit::Failure;
use options::DEFAULT_HOST;
pub(crate) use options::{DEFAULT_PORT, LogLevel, ServeArgs};

/// Longest configuration file that is read, bytes.
const LONGEST: u64 = 1 << 20;

/// Largest page of `--index`, bytes. It stays in memory.
const LONGEST_PAGE: u64 = 64 << 10;

/// All settings of `serve`.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) server: Config,
    pub(crate) log_level: LogLevel,
    pub(crate) log_json: bool,
}

impl Settings {
    /// Merges flags, environment, file and defaults.
    pub(crate) fn new(serve: ServeArgs) -> Result<Self, Failure> {
        let file = match &serve.config {
            Some(path) => read(path)?,
            None => ServeArgs::default(),
        };
        let host = serve.host.or(file.host).unwrap_or_else(|| DEFAULT_HOST.to_owned());
        let port = serve.port.or(file.port).unwrap_or(DEFAULT_PORT);
        let data = match serve.data.or(file.data) {
            Some(data) => data,
            None => default_data()?,
        };
        let listen = resolve("--host", &host, port)?;
        let mut config = Config::new(data, listen);
        if let Some(public) = serve.public_host.or(file.public_host) {
            let address = Address::parse(&public, Some(DEFAULT_PORT)).map_err(|_| {
                Failure::usage(format!("--public-host {public:?} is neither NAME nor NAME:PORT"))
            })?;
            // Without a port of its own it has whichever is the default.
            config.public_port_follows =
                Address::parse(&public, Some(1)).is_ok_and(|other| other.port() != address.port());
            config.public = Some(address);
        }
        if let Some(path) = serve.websocket_path.or(file.websocket_path) {
            set_path(&mut config, path)?;
        }
        if let Some(index) = serve.index.or(file.index) {
            let text = read_text(&index, LONGEST_PAGE);
            config.index = Some(text.map_err(|error| {
                Failure::usage(format!("--index {}: {error}", index.display()))
            })?);
        }
        config.own_files = match (serve.tls_cert.or(file.tls_cert), serve.tls_key.or(file.tls_key))
        {
            (Some(cert), Some(key)) => Some(OwnFiles { cert, key }),
            (None, None) => None,
            _ => return Err(Failure::usage("--tls-cert and --tls-key go together")),
        };
        if let Some(key_type) = serve.tls_key_type.or(file.tls_key_type) {
            config.key_type = key_type.into();
        }
        if let Some(policy) = serve.binding.or(file.binding) {
            config.binding = policy.into();
        }
        config.behind_proxy =
            serve.behind_proxy.or(file.behind_proxy).unwrap_or(config.behind_proxy);
        config.proxies = if serve.proxies.is_empty() { file.proxies } else { serve.proxies };
        config.forwarded_from = if serve.forwarded_from.is_empty() {
            file.forwarded_from
        } else {
            serve.forwarded_from
        };
        if let Some(both) = config.proxies.iter().find(|ip| config.forwarded_from.contains(ip)) {
            return Err(Failure::usage(format!(
                "{both} is given with --proxy and --forwarded-from"
            ))
            .hint("--proxy is for TCP balancers, --forwarded-from for HTTP proxies"));
        }
        if let Some(port) = serve.plain_port.or(file.plain_port) {
            let host = serve.plain_host.or(file.plain_host);
            config.plain = Some(plain(&config, host.as_deref().unwrap_or(DEFAULT_HOST), port)?);
        }
        let beside = |port: u16| {
            let mut beside = listen;
            beside.set_port(port);
            beside
        };
        config.classic.lines = serve.classic_port.or(file.classic_port).map(beside);
        config.classic.origin = serve.origin_port.or(file.origin_port).map(beside);
        config.log_messages =
            serve.log_messages.or(file.log_messages).unwrap_or(config.log_messages);
        file.limits.apply(&mut config);
        file.timing.apply(&mut config);
        Ok(Self {
            server: config,
            log_level: serve.log_level.or(file.log_level).unwrap_or(LogLevel::Info),
            log_json: serve.log_json.or(file.log_json).unwrap_or(false),
        })
    }
}

/// An address of this machine: an IP address, one with a scope (`fe80::1%eth0`), or a name. A name
/// resolves to its first IPv4 address if it has one.
fn resolve(flag: &str, host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let failed = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("{flag} {host:?} is neither an address nor a known name: {why}"))
            .hint("an IP address such as 127.0.0.1, 0.0.0.0 or ::, fe80::1%eth0, or a name")
    };
    let found = (bare, port).to_socket_addrs().map_err(|error| failed(&error))?;
    let found: Vec<_> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| failed(&"it has no address"))
}

/// The address of the plain port. Passwords are safe there, but names and sizes are not: only a
/// proxy that the operator has named may come over a network.
fn plain(config: &Config, host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let address = resolve("--plain-host", host, port)?;
    let named = !(config.proxies.is_empty() && config.forwarded_from.is_empty());
    if address.ip().is_loopback() || named {
        return Ok(address);
    }
    Err(Failure::usage(format!("--plain-host {host} is not this machine only"))
        .hint("name the proxies that may connect with --proxy or --forwarded-from"))
}

/// Sets the path, also that of the public address unless it has its own.
fn set_path(config: &mut Config, path: String) -> Result<(), Failure> {
    let with_path = |address: Address| {
        address.with_path(&path).map_err(|_| {
            Failure::usage(format!("--websocket-path {path:?} is not a path such as /twinlock"))
                .hint("letters, digits and -_.~ between slashes, at most 128 bytes")
        })
    };
    // Checks the path even if there is no public address.
    let local = Address::new("localhost", DEFAULT_PORT).map_err(|_| Failure::usage("localhost"))?;
    with_path(local)?;
    config.public = match config.public.take() {
        Some(public) if public.path() == DEFAULT_PATH => Some(with_path(public)?),
        public => public,
    };
    config.websocket_path = path;
    Ok(())
}

fn read(path: &Path) -> Result<ServeArgs, Failure> {
    let text = read_text(path, LONGEST)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.bytes().take(start).filter(|b| *b == b'\n').count();
        let line = Untrusted::new(text.lines().nth(before).unwrap_or_default()).render_line();
        Failure::usage(format!("{}:{}: {}", path.display(), before + 1, error.message()))
            .hint(line.trim())
    })
}

/// Reads a file, or a pipe such as a shell's `<(command)`, up to a limit: a device has no end.
fn read_text(path: &Path, longest: u64) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if file.take(longest + 1).read_to_string(&mut text)? as u64 > longest {
        return Err(io::Error::other(format!("it is longer than {longest} bytes")));
    }
    Ok(text)
}

/// `$XDG_DATA_HOME/twinlock-server`, below `~/.local/share` if the variable is unset.
fn default_data() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    set("XDG_DATA_HOME")
        .or_else(|| Some(set("HOME")?.join(".local/share")))
        .map(|dir| dir.join("twinlock-server"))
        .ok_or_else(|| Failure::usage("no directory for the record: use --data DIR"))
}
