//! The configuration of `serve`: flags before environment, file and defaults.

mod ranged;

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use twinlock_core::invite::Address;
use twinlock_core::session::BindingPolicy;
use twinlock_core::text::Untrusted;
use twinlock_server::identity::{KeyType as ServerKeyType, OwnFiles};
use twinlock_server::{Classic, Config, Limits};

use crate::args::{Binding, DEFAULT_PORT, KeyType, LogLevel, Serve};
use crate::exit::Failure;
use ranged::{Ranged, not_empty};

/// Longest configuration file that is read, bytes.
const LONGEST: u64 = 1 << 20;
/// An hour, in seconds.
const HOUR: u64 = 3600;
/// A year, in seconds.
const YEAR: u64 = 365 * 24 * HOUR;
/// Largest connection limit: more than the ports that one client address has.
const CONNECTIONS: u64 = 65_536;
/// Largest limit on a user's items of one kind.
const EACH: u64 = 1_000_000;
/// 16 TiB, in MiB: the largest file of common file systems.
const FILE_MIB: u64 = 1 << 24;
/// An exbibyte, in MiB.
const DISK_MIB: u64 = 1 << 40;
/// Longest validity of an invite, in hours.
const INVITE_HOURS: u64 = 30 * 24;

/// 0 selects any free port.
type Port = Ranged<0, 65_535>;

/// The configuration file. Unknown keys are errors that name file and line.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default, deserialize_with = "not_empty")]
    data: Option<PathBuf>,
    #[serde(default, deserialize_with = "not_empty")]
    host: Option<String>,
    port: Option<Port>,
    #[serde(default, deserialize_with = "not_empty")]
    public_host: Option<String>,
    #[serde(default, deserialize_with = "not_empty")]
    tls_cert: Option<PathBuf>,
    #[serde(default, deserialize_with = "not_empty")]
    tls_key: Option<PathBuf>,
    tls_key_type: Option<KeyType>,
    binding: Option<Binding>,
    behind_proxy: Option<bool>,
    #[serde(default)]
    proxies: Vec<IpAddr>,
    classic_port: Option<Port>,
    origin_port: Option<Port>,
    log_messages: Option<bool>,
    log_level: Option<LogLevel>,
    log_json: Option<bool>,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    timing: TimingFile,
}

/// `[limits]`: `twinlock_server::Limits` and `twinlock_server::Classic` document the cost of each.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LimitsFile {
    unauthenticated: Option<Ranged<1, CONNECTIONS>>,
    unauthenticated_per_address: Option<Ranged<1, CONNECTIONS>>,
    handshakes: Option<Ranged<1, 1024>>,
    logins_per_minute: Option<Ranged<1, 1_000_000>>,
    sessions_per_device: Option<Ranged<1, CONNECTIONS>>,
    password_sessions_per_user: Option<Ranged<1, CONNECTIONS>>,
    classic_connections: Option<Ranged<1, CONNECTIONS>>,
    classic_connections_per_address: Option<Ranged<1, CONNECTIONS>>,
    invite_hours: Option<Ranged<1, INVITE_HOURS>>,
    largest_file_mib: Option<Ranged<1, FILE_MIB>>,
    // 0 in either of these disables files.
    files_per_user_mib: Option<Ranged<0, DISK_MIB>>,
    files_number_per_user: Option<Ranged<0, 1_000_000_000>>,
    disk_reserve_mib: Option<Ranged<0, DISK_MIB>>,
    partial_files_per_user: Option<Ranged<1, EACH>>,
    partial_files_hours: Option<Ranged<1, { YEAR / HOUR }>>,
    rooms_per_user: Option<Ranged<0, EACH>>,
    // At least 1, because every user is in the lobby.
    memberships_per_user: Option<Ranged<1, EACH>>,
    follows_per_session: Option<Ranged<1, EACH>>,
    invites_per_user: Option<Ranged<1, EACH>>,
    devices_per_user: Option<Ranged<1, EACH>>,
    classic_keys_per_user: Option<Ranged<0, EACH>>,
    // 0 disables these limits.
    changes_per_minute: Option<Ranged<0, 1_000_000>>,
    text_rate_kib: Option<Ranged<0, DISK_MIB>>,
    text_rate_unindexed_kib: Option<Ranged<0, DISK_MIB>>,
    text_per_day_mib: Option<Ranged<0, DISK_MIB>>,
    text_burst_kib: Option<Ranged<64, DISK_MIB>>,
    text_reserve_mib: Option<Ranged<0, DISK_MIB>>,
    search_seconds: Option<Ranged<1, HOUR>>,
}

/// `[timing]`, in seconds. The minimums keep a session from doing nothing but rekeying or ending.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TimingFile {
    ping_following: Option<Ranged<1, HOUR>>,
    ping_idle: Option<Ranged<1, { 24 * HOUR }>>,
    ping_answer: Option<Ranged<1, HOUR>>,
    rekey_overdue: Option<Ranged<30, YEAR>>,
    max_age: Option<Ranged<60, YEAR>>,
    drain: Option<Ranged<0, HOUR>>,
    come_back: Option<Ranged<0, HOUR>>,
}

/// All settings of `serve`.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) server: Config,
    pub(crate) log_level: LogLevel,
    pub(crate) log_json: bool,
}

impl Settings {
    /// Merges flags, environment, file and defaults.
    pub(crate) fn new(serve: Serve) -> Result<Self, Failure> {
        let file = match &serve.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let host = serve.host.or(file.host).unwrap_or_else(|| "127.0.0.1".to_owned());
        let port = serve.port.or(file.port.map(Port::port)).unwrap_or(DEFAULT_PORT);
        let data = match serve.data.or(file.data) {
            Some(data) => data,
            None => default_data()?,
        };
        let listen = resolve(&host, port)?;
        let mut config = Config::new(data, listen);
        if let Some(public) = serve.public_host.or(file.public_host) {
            config.public = Some(Address::parse(&public, Some(DEFAULT_PORT)).map_err(|_| {
                Failure::usage(format!("--public-host {public:?} is neither NAME nor NAME:PORT"))
            })?);
            config.public_port_follows = Address::parse(&public, None).is_err();
        }
        config.own_files = match (serve.tls_cert.or(file.tls_cert), serve.tls_key.or(file.tls_key))
        {
            (Some(cert), Some(key)) => Some(OwnFiles { cert, key }),
            (None, None) => None,
            _ => return Err(Failure::usage("--tls-cert and --tls-key go together")),
        };
        config.key_type = match serve.tls_key_type.or(file.tls_key_type) {
            None | Some(KeyType::Ecdsa) => ServerKeyType::default(),
            Some(KeyType::Rsa2048) => ServerKeyType::Rsa2048,
        };
        config.binding = match serve.binding.or(file.binding) {
            None | Some(Binding::Warn) => BindingPolicy::Warn,
            Some(Binding::Require) => BindingPolicy::Require,
            Some(Binding::Off) => BindingPolicy::Off,
        };
        config.behind_proxy = serve.behind_proxy.or(file.behind_proxy).unwrap_or(false);
        config.proxies = if serve.proxies.is_empty() { file.proxies } else { serve.proxies };
        let beside = |port: u16| {
            let mut beside = listen;
            beside.set_port(port);
            beside
        };
        config.classic.lines = serve.classic_port.or(file.classic_port.map(Port::port)).map(beside);
        config.classic.origin = serve.origin_port.or(file.origin_port.map(Port::port)).map(beside);
        config.log_messages = serve.log_messages.or(file.log_messages).unwrap_or(false);
        file.limits.put_into(&mut config.limits, &mut config.classic);
        file.timing.put_into(&mut config);
        Ok(Self {
            server: config,
            log_level: serve.log_level.or(file.log_level).unwrap_or(LogLevel::Info),
            log_json: serve.log_json.or(file.log_json).unwrap_or(false),
        })
    }
}

impl LimitsFile {
    fn put_into(self, limits: &mut Limits, classic: &mut Classic) {
        let set = |to: &mut usize, from: Option<usize>| *to = from.unwrap_or(*to);
        set(&mut limits.unauthenticated, self.unauthenticated.map(Ranged::size));
        let per_address = self.unauthenticated_per_address.map(Ranged::size);
        set(&mut limits.unauthenticated_per_address, per_address);
        set(&mut limits.handshakes, self.handshakes.map(Ranged::size));
        set(&mut limits.sessions_per_device, self.sessions_per_device.map(Ranged::size));
        let by_password = self.password_sessions_per_user.map(Ranged::size);
        set(&mut limits.password_sessions_per_user, by_password);
        set(&mut classic.connections, self.classic_connections.map(Ranged::size));
        let per_address = self.classic_connections_per_address.map(Ranged::size);
        set(&mut classic.connections_per_address, per_address);
        let bounds = &mut limits.bounds;
        set(&mut bounds.rooms, self.rooms_per_user.map(Ranged::size));
        set(&mut bounds.memberships, self.memberships_per_user.map(Ranged::size));
        set(&mut bounds.invites, self.invites_per_user.map(Ranged::size));
        set(&mut bounds.devices, self.devices_per_user.map(Ranged::size));
        set(&mut bounds.classic_keys, self.classic_keys_per_user.map(Ranged::size));
        set(&mut limits.partial_files_per_user, self.partial_files_per_user.map(Ranged::size));
        set(&mut limits.follows_per_session, self.follows_per_session.map(Ranged::size));
        let per_minute = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        if let Some(logins) = self.logins_per_minute {
            limits.logins_per_minute = per_minute(logins.get());
        }
        if let Some(changes) = self.changes_per_minute {
            limits.changes_per_minute = per_minute(changes.get());
        }
        let set = |to: &mut u64, from: Option<u64>| *to = from.unwrap_or(*to);
        let bytes = |mib: u64| mib.saturating_mul(1024 * 1024);
        let kib = |kib: u64| kib.saturating_mul(1024);
        set(&mut limits.file, self.largest_file_mib.map(|mib| bytes(mib.get())));
        set(&mut limits.files_per_user, self.files_per_user_mib.map(|mib| bytes(mib.get())));
        set(&mut limits.files_number_per_user, self.files_number_per_user.map(Ranged::get));
        set(&mut limits.text_rate, self.text_rate_kib.map(|rate| kib(rate.get())));
        let unindexed = self.text_rate_unindexed_kib.map(|rate| kib(rate.get()));
        set(&mut limits.text_rate_unindexed, unindexed);
        set(&mut limits.text_burst, self.text_burst_kib.map(|burst| kib(burst.get())));
        set(&mut limits.text_per_day, self.text_per_day_mib.map(|mib| bytes(mib.get())));
        if let Some(mib) = self.disk_reserve_mib {
            limits.disk_reserve = Some(bytes(mib.get()));
        }
        if let Some(mib) = self.text_reserve_mib {
            limits.text_reserve = Some(bytes(mib.get()));
        }
        if let Some(seconds) = self.search_seconds {
            limits.search = Duration::from_secs(seconds.get());
        }
        let set = |to: &mut Duration, hours: Option<u64>| {
            *to = hours.map_or(*to, |hours| Duration::from_secs(hours.saturating_mul(HOUR)));
        };
        set(&mut limits.invite, self.invite_hours.map(Ranged::get));
        set(&mut limits.partial_files, self.partial_files_hours.map(Ranged::get));
    }
}

impl TimingFile {
    fn put_into(self, config: &mut Config) {
        let set = |to: &mut Duration, from: Option<u64>| {
            *to = from.map_or(*to, Duration::from_secs);
        };
        set(&mut config.timing.ping_following, self.ping_following.map(Ranged::get));
        set(&mut config.timing.ping_idle, self.ping_idle.map(Ranged::get));
        set(&mut config.timing.ping_answer, self.ping_answer.map(Ranged::get));
        set(&mut config.timing.rekey_overdue, self.rekey_overdue.map(Ranged::get));
        set(&mut config.timing.max_age, self.max_age.map(Ranged::get));
        set(&mut config.drain, self.drain.map(Ranged::get));
        set(&mut config.come_back, self.come_back.map(Ranged::get));
    }
}

/// An address of this machine: an IP address, one with a scope (`fe80::1%eth0`), or a name. A name
/// resolves to its first IPv4 address if it has one.
fn resolve(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let failed = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("--host {host:?} is neither an address nor a known name: {why}"))
            .hint("an IP address such as 127.0.0.1, 0.0.0.0 or ::, fe80::1%eth0, or a name")
    };
    let found = (bare, port).to_socket_addrs().map_err(|error| failed(&error))?;
    let found: Vec<_> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| failed(&"it has no address"))
}

fn read(path: &Path) -> Result<File, Failure> {
    let text =
        read_text(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.bytes().take(start).filter(|b| *b == b'\n').count();
        let line = Untrusted::new(text.lines().nth(before).unwrap_or_default()).render_line();
        Failure::usage(format!("{}:{}: {}", path.display(), before + 1, error.message()))
            .hint(line.trim())
    })
}

/// Reads a file, or a pipe such as a shell's `<(command)`, up to a limit: a device has no end.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if file.take(LONGEST + 1).read_to_string(&mut text)? as u64 > LONGEST {
        return Err(io::Error::other(format!("it is longer than {LONGEST} bytes")));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each number and its range, in the order of the file.
    const LIMITS: [(&str, u64, u64); 28] = [
        ("unauthenticated", 1, CONNECTIONS),
        ("unauthenticated-per-address", 1, CONNECTIONS),
        ("handshakes", 1, 1024),
        ("logins-per-minute", 1, 1_000_000),
        ("sessions-per-device", 1, CONNECTIONS),
        ("password-sessions-per-user", 1, CONNECTIONS),
        ("classic-connections", 1, CONNECTIONS),
        ("classic-connections-per-address", 1, CONNECTIONS),
        ("invite-hours", 1, INVITE_HOURS),
        ("largest-file-mib", 1, FILE_MIB),
        ("files-per-user-mib", 0, DISK_MIB),
        ("files-number-per-user", 0, 1_000_000_000),
        ("disk-reserve-mib", 0, DISK_MIB),
        ("partial-files-per-user", 1, EACH),
        ("partial-files-hours", 1, 8760),
        ("rooms-per-user", 0, EACH),
        ("memberships-per-user", 1, EACH),
        ("follows-per-session", 1, EACH),
        ("invites-per-user", 1, EACH),
        ("devices-per-user", 1, EACH),
        ("classic-keys-per-user", 0, EACH),
        ("changes-per-minute", 0, 1_000_000),
        ("text-rate-kib", 0, DISK_MIB),
        ("text-rate-unindexed-kib", 0, DISK_MIB),
        ("text-per-day-mib", 0, DISK_MIB),
        ("text-burst-kib", 64, DISK_MIB),
        ("text-reserve-mib", 0, DISK_MIB),
        ("search-seconds", 1, HOUR),
    ];
    const TIMING: [(&str, u64, u64); 7] = [
        ("ping-following", 1, HOUR),
        ("ping-idle", 1, 24 * HOUR),
        ("ping-answer", 1, HOUR),
        ("rekey-overdue", 30, YEAR),
        ("max-age", 60, YEAR),
        ("drain", 0, HOUR),
        ("come-back", 0, HOUR),
    ];

    #[test]
    fn config__number_out_of_range_reports_range_and_position() {
        // The names that the deserializer knows; the tables above must list all of them.
        for (table, names) in [("limits", &LIMITS[..]), ("timing", &TIMING[..])] {
            let unknown = toml::from_str::<File>(&format!("[{table}]\nno-such = 1\n")).unwrap_err();
            let known: Vec<_> = unknown.message().split('`').skip(3).step_by(2).collect();
            assert_eq!(known, names.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
            for (name, least, most) in names.iter().copied() {
                let read = |number: String| {
                    toml::from_str::<File>(&format!("\n[{table}]\n{name} = {number}\n"))
                };
                for good in [least, most] {
                    assert!(read(good.to_string()).is_ok(), "{name} = {good}");
                }
                let below = i128::from(least) - 1;
                let wrong = [below, i128::from(most) + 1, i128::from(i64::MAX), -7];
                for bad in wrong.map(|bad| bad.to_string()) {
                    let error = read(bad.clone()).unwrap_err();
                    let range = format!("{least} to {most}");
                    assert!(error.message().contains(&range), "{name} = {bad}: {error}");
                    assert!(error.span().is_some_and(|span| span.start > 8), "{name} = {bad}");
                }
                for bad in ["1.5", "true", "\"1\"", "9223372036854775808"] {
                    assert!(read(bad.to_owned()).is_err(), "{name} = {bad}");
                }
            }
        }
    }

    #[test]
    fn config__port_out_of_range_is_refused_with_range() {
        for name in ["port", "classic-port", "origin-port"] {
            for bad in ["70000", "-1"] {
                let error = toml::from_str::<File>(&format!("{name} = {bad}")).unwrap_err();
                assert!(error.message().contains("0 to 65535"), "{name} = {bad}: {error}");
            }
            assert!(toml::from_str::<File>(&format!("{name} = 65535")).is_ok(), "{name}");
        }
    }

    #[test]
    fn config__every_number_sets_its_named_setting() {
        // A different value for each, within its range.
        let table = |names: &[(&str, u64, u64)]| -> String {
            names.iter().zip(61..).map(|((name, ..), n)| format!("{name} = {n}\n")).collect()
        };
        let text = format!("[limits]\n{}[timing]\n{}", table(&LIMITS), table(&TIMING));
        let file: File = toml::from_str(&text).unwrap();
        let mut config = Config::new(PathBuf::new(), SocketAddr::from(([127, 0, 0, 1], 0)));
        file.limits.put_into(&mut config.limits, &mut config.classic);
        file.timing.put_into(&mut config);
        let (limits, classic, timing) = (&config.limits, &config.classic, &config.timing);
        let hours = |time: Duration| time.as_secs() / HOUR;
        let mib = |bytes: u64| bytes >> 20;
        let read = [
            limits.unauthenticated as u64,
            limits.unauthenticated_per_address as u64,
            limits.handshakes as u64,
            u64::from(limits.logins_per_minute),
            limits.sessions_per_device as u64,
            limits.password_sessions_per_user as u64,
            classic.connections as u64,
            classic.connections_per_address as u64,
            hours(limits.invite),
            mib(limits.file),
            mib(limits.files_per_user),
            limits.files_number_per_user,
            mib(limits.disk_reserve.unwrap()),
            limits.partial_files_per_user as u64,
            hours(limits.partial_files),
            limits.bounds.rooms as u64,
            limits.bounds.memberships as u64,
            limits.follows_per_session as u64,
            limits.bounds.invites as u64,
            limits.bounds.devices as u64,
            limits.bounds.classic_keys as u64,
            u64::from(limits.changes_per_minute),
            limits.text_rate >> 10,
            limits.text_rate_unindexed >> 10,
            mib(limits.text_per_day),
            limits.text_burst >> 10,
            mib(limits.text_reserve.unwrap()),
            limits.search.as_secs(),
        ];
        assert_eq!(read.to_vec(), (61..).take(LIMITS.len()).collect::<Vec<u64>>());
        let times = [timing.ping_following, timing.ping_idle, timing.ping_answer]
            .into_iter()
            .chain([timing.rekey_overdue, timing.max_age, config.drain, config.come_back]);
        let read: Vec<_> = times.map(|time| time.as_secs()).collect();
        assert_eq!(read, (61..68).collect::<Vec<u64>>());
    }

    #[test]
    fn config__host_resolves_address_scope_or_name() {
        for (host, is) in [
            ("127.0.0.1", "127.0.0.1:5"),
            ("::1", "[::1]:5"),
            ("[::1]", "[::1]:5"),
            ("fe80::1%1", "[fe80::1%1]:5"),
        ] {
            assert_eq!(resolve(host, 5).unwrap().to_string(), is);
        }
        assert!(resolve("localhost", 5).unwrap().ip().is_loopback());
        assert!(resolve("no such host", 5).unwrap_err().message.contains("--host"));
    }
}
