//! What `serve` is told: flags over environment over file over defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use twinlock_core::invite::Address;
use twinlock_core::session::BindingPolicy;
use twinlock_core::text::Untrusted;
use twinlock_server::identity::{KeyType as ServerKeyType, OwnFiles};
use twinlock_server::{Classic, Config, Limits};

use crate::args::{Binding, KeyType, LONGEST, LogLevel, PORT, Serve};
use crate::exit::Failure;

/// The configuration file. Unknown keys are errors that name file and line.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    data: Option<PathBuf>,
    host: Option<IpAddr>,
    port: Option<u16>,
    public_host: Option<String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_key_type: Option<KeyType>,
    binding: Option<Binding>,
    behind_proxy: Option<bool>,
    #[serde(default)]
    proxies: Vec<IpAddr>,
    classic_port: Option<u16>,
    origin_port: Option<u16>,
    log_messages: Option<bool>,
    log_level: Option<LogLevel>,
    log_json: Option<bool>,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    timing: TimingFile,
}

/// `[limits]`: see `twinlock_server::Limits` and `twinlock_server::Classic` for what each costs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LimitsFile {
    unauthenticated: Option<usize>,
    unauthenticated_per_address: Option<usize>,
    handshakes: Option<usize>,
    logins_per_minute: Option<u32>,
    sessions_per_device: Option<usize>,
    password_sessions_per_user: Option<usize>,
    classic_connections: Option<usize>,
    classic_connections_per_address: Option<usize>,
    invite_hours: Option<u64>,
    largest_file_mib: Option<u64>,
    files_per_user_mib: Option<u64>,
    disk_reserve_mib: Option<u64>,
    partial_files_hours: Option<u64>,
    rooms_per_user: Option<usize>,
    memberships_per_user: Option<usize>,
    follows_per_session: Option<usize>,
    invites_per_user: Option<usize>,
    devices_per_user: Option<usize>,
    classic_keys_per_user: Option<usize>,
    changes_per_minute: Option<u32>,
    search_seconds: Option<u64>,
    text_rate_kib: Option<u64>,
    text_burst_kib: Option<u64>,
    text_per_day_mib: Option<u64>,
    text_reserve_mib: Option<u64>,
}

/// `[timing]`, all in seconds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TimingFile {
    ping_following: Option<u64>,
    ping_idle: Option<u64>,
    ping_answer: Option<u64>,
    rekey_overdue: Option<u64>,
    max_age: Option<u64>,
    drain: Option<u64>,
    come_back: Option<u64>,
}

/// All that `serve` needs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) server: Config,
    pub(crate) log_level: LogLevel,
    pub(crate) log_json: bool,
}

impl Settings {
    /// Puts flags, environment, file and defaults together.
    pub(crate) fn new(serve: Serve) -> Result<Self, Failure> {
        let file = match &serve.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let host = serve.host.or(file.host).unwrap_or(Ipv4Addr::LOCALHOST.into());
        let port = serve.port.or(file.port).unwrap_or(PORT);
        let data = match serve.data.or(file.data) {
            Some(data) => data,
            None => default_data()?,
        };
        let mut config = Config::new(data, SocketAddr::new(host, port));
        if let Some(public) = serve.public_host.or(file.public_host) {
            let fallback = if port == 0 { PORT } else { port };
            config.public = Some(Address::parse(&public, Some(fallback)).map_err(|_| {
                Failure::usage(format!("--public-host {public:?} is neither NAME nor NAME:PORT"))
            })?);
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
        let beside = |port: u16| SocketAddr::new(host, port);
        config.classic.lines = serve.classic_port.or(file.classic_port).map(beside);
        config.classic.origin = serve.origin_port.or(file.origin_port).map(beside);
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
        set(&mut limits.unauthenticated, self.unauthenticated);
        set(&mut limits.unauthenticated_per_address, self.unauthenticated_per_address);
        set(&mut limits.handshakes, self.handshakes);
        set(&mut limits.sessions_per_device, self.sessions_per_device);
        set(&mut limits.password_sessions_per_user, self.password_sessions_per_user);
        set(&mut classic.connections, self.classic_connections);
        set(&mut classic.connections_per_address, self.classic_connections_per_address);
        limits.logins_per_minute = self.logins_per_minute.unwrap_or(limits.logins_per_minute);
        let bytes = |mib: u64| mib.saturating_mul(1024 * 1024);
        let hours = |hours: u64| seconds(hours.saturating_mul(3600));
        limits.invite = self.invite_hours.map_or(limits.invite, hours);
        limits.file = self.largest_file_mib.map_or(limits.file, bytes);
        limits.files_per_user = self.files_per_user_mib.map_or(limits.files_per_user, bytes);
        limits.disk_reserve = self.disk_reserve_mib.map(bytes).or(limits.disk_reserve);
        limits.partial_files = self.partial_files_hours.map_or(limits.partial_files, hours);
        let bounds = &mut limits.bounds;
        set(&mut bounds.rooms, self.rooms_per_user);
        set(&mut bounds.memberships, self.memberships_per_user);
        set(&mut bounds.invites, self.invites_per_user);
        set(&mut bounds.devices, self.devices_per_user);
        set(&mut bounds.classic_keys, self.classic_keys_per_user);
        set(&mut limits.follows_per_session, self.follows_per_session);
        limits.changes_per_minute = self.changes_per_minute.unwrap_or(limits.changes_per_minute);
        limits.search = self.search_seconds.map_or(limits.search, seconds);
        let kib = |kib: u64| kib.saturating_mul(1024);
        limits.text_rate = self.text_rate_kib.map_or(limits.text_rate, kib);
        limits.text_burst = self.text_burst_kib.map_or(limits.text_burst, kib);
        limits.text_per_day = self.text_per_day_mib.map_or(limits.text_per_day, bytes);
        limits.text_reserve = self.text_reserve_mib.map(bytes).or(limits.text_reserve);
    }
}

impl TimingFile {
    fn put_into(self, config: &mut Config) {
        let set = |to: &mut Duration, from: Option<u64>| {
            *to = from.map_or(*to, seconds);
        };
        set(&mut config.timing.ping_following, self.ping_following);
        set(&mut config.timing.ping_idle, self.ping_idle);
        set(&mut config.timing.ping_answer, self.ping_answer);
        set(&mut config.timing.rekey_overdue, self.rekey_overdue);
        set(&mut config.timing.max_age, self.max_age);
        set(&mut config.drain, self.drain);
        set(&mut config.come_back, self.come_back);
    }
}

/// So many seconds, or as many as there can be.
fn seconds(n: u64) -> Duration {
    Duration::from_secs(n.min(LONGEST))
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.bytes().take(start).filter(|b| *b == b'\n').count();
        let line = Untrusted::new(text.lines().nth(before).unwrap_or_default()).render_line();
        Failure::usage(format!("{}:{}: {}", path.display(), before + 1, error.message()))
            .hint(line.trim())
    })
}

/// `$XDG_DATA_HOME/twinlock-server`, which is below `~/.local/share` where unset.
fn default_data() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    set("XDG_DATA_HOME")
        .or_else(|| Some(set("HOME")?.join(".local/share")))
        .map(|dir| dir.join("twinlock-server"))
        .ok_or_else(|| Failure::usage("no place for the record: say --data DIR"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Instant, SystemTime};

    use super::*;

    #[test]
    fn no_number_of_a_file_is_more_than_a_clock_can_count() {
        let most = i64::MAX;
        let file: File = toml::from_str(&format!(
            "[limits]\ninvite-hours = {most}\npartial-files-hours = {most}\n\
             [timing]\nping-following = {most}\nping-idle = {most}\nping-answer = {most}\n\
             rekey-overdue = {most}\nmax-age = {most}\ndrain = {most}\ncome-back = {most}\n"
        ))
        .unwrap();
        let mut config = Config::new(PathBuf::new(), SocketAddr::from(([127, 0, 0, 1], 0)));
        file.limits.put_into(&mut config.limits, &mut config.classic);
        file.timing.put_into(&mut config);
        let timing = &config.timing;
        let times = [timing.ping_following, timing.ping_idle, timing.ping_answer];
        let times = times.into_iter().chain([timing.rekey_overdue, timing.max_age]);
        for time in times.chain([config.drain, config.come_back]) {
            assert!(Instant::now().checked_add(time).is_some(), "{time:?}");
        }
        for time in [config.limits.invite, config.limits.partial_files] {
            assert!(SystemTime::now().checked_add(time).is_some(), "{time:?}");
        }
    }
}
