//! Configuration of a server. The command line and the configuration file fill it in; the defaults
//! are those of `docs/protocol.md`, section 9.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use twinlock_core::invite::Address;
use twinlock_core::limits::Timing;
use twinlock_core::session::BindingPolicy;
use twinlock_store::Bounds;

use crate::identity::{KeyType, OwnFiles};

/// Everything that a server needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of identity and record. Created with mode 0700 if it is missing.
    pub data: PathBuf,
    /// Listening address; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Address in invite links. Default: the listening address, or `localhost` if that is
    /// unspecified.
    pub public: Option<Address>,
    /// Whether the actual listening port replaces the port of [`Config::public`]. Default: no.
    pub public_port_follows: bool,
    /// Type of the generated TLS key.
    pub key_type: KeyType,
    /// The operator's own certificate and key, instead of generated ones.
    pub own_files: Option<OwnFiles>,
    /// A proxy terminates TLS before this listener. Channel binding is then `off`, and invite links
    /// say so. Connections without a PROXY header have no known address, and no limit by address.
    pub behind_proxy: bool,
    /// Addresses of proxies that put a PROXY header (version 2) before every connection and are
    /// trusted, whether TLS ends at them or here. The server accepts none from other addresses.
    /// Default: none.
    pub proxies: Vec<IpAddr>,
    /// Reaction to TLS interception. Behind a proxy it is always `Off`.
    pub binding: BindingPolicy,
    /// Log the text of each message, escaped.
    pub log_messages: bool,
    /// Limits of section 9.
    pub limits: Limits,
    /// Timers of sessions.
    pub timing: Timing,
    /// Time allowed for the drain at shutdown before connections are dropped. Default 10 s.
    pub drain: Duration,
    /// Time after which clients should reconnect after a shutdown. Default 3 s.
    pub come_back: Duration,
    /// Classic connections and the origin bridge. Default: both off.
    pub classic: Classic,
}

impl Config {
    /// The defaults, with the record in `data`.
    #[must_use]
    pub fn new(data: PathBuf, listen: SocketAddr) -> Self {
        Self {
            data,
            listen,
            public: None,
            public_port_follows: false,
            key_type: KeyType::default(),
            own_files: None,
            behind_proxy: false,
            proxies: Vec::new(),
            binding: BindingPolicy::Warn,
            log_messages: false,
            limits: Limits::default(),
            timing: Timing::default(),
            drain: Duration::from_secs(10),
            come_back: Duration::from_secs(3),
            classic: Classic::default(),
        }
    }
}

/// The listeners of section 11: for devices and scripts in any language, and for unchanged clients
/// of the Python design.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classic {
    /// Listening address for classic connections. Default: none.
    pub lines: Option<SocketAddr>,
    /// Listening address of the origin bridge. Default: none.
    pub origin: Option<SocketAddr>,
    /// Connections of each of the two listeners. Default 512; each costs about 30 KiB. When all are
    /// taken, a new connection evicts the oldest unauthenticated one.
    pub connections: usize,
    /// The same for one IPv4 address or IPv6 /64. Default 128: devices often share an address.
    pub connections_per_address: usize,
    /// Timeout from the end of the TLS handshake to the line with the key's name. Default 10 s.
    pub greeting: Duration,
    /// Timeout from the first byte of a line to its last, and for the peer to take a byte. Default
    /// 30 s. (A bridge message without a line end has [`Classic::pause`].)
    pub half_line: Duration,
    /// Timeout without a line. Default 30 min.
    pub silence: Duration,
    /// Silence after which a bridge message that does not open counts as failed. Default 200 ms.
    pub pause: Duration,
    /// Tarpit: delay before a failed connection of the bridge is closed. Default 1 s.
    pub tarpit_delay: Duration,
    /// Connections in the tarpit at once. With [`Classic::tarpit_delay`] this limits the guesses that the
    /// bridge accepts per second, from all clients together. Default 4.
    pub tarpit_slots: usize,
}

impl Default for Classic {
    fn default() -> Self {
        Self {
            lines: None,
            origin: None,
            connections: 512,
            connections_per_address: 128,
            greeting: Duration::from_secs(10),
            half_line: Duration::from_secs(30),
            silence: Duration::from_secs(30 * 60),
            pause: Duration::from_millis(200),
            tarpit_delay: Duration::from_secs(1),
            tarpit_slots: 4,
        }
    }
}

/// Limits on resources and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Unauthenticated connections in all. Default 512; each costs about 40 KiB.
    pub unauthenticated: usize,
    /// The same for one IPv4 address or IPv6 /64. Default 8.
    pub unauthenticated_per_address: usize,
    /// Timeout of the TLS handshake. Default 10 s.
    pub tls_deadline: Duration,
    /// Concurrent login computations. Default 2 x cores.
    pub handshakes: usize,
    /// Failed or unfinished logins per minute of one address. Default 20.
    pub logins_per_minute: u32,
    /// Sessions of one device, or of one invite. Default 16; each costs about 12 KiB while idle.
    pub sessions_per_device: usize,
    /// Password sessions of one user, apart from those of devices. Default 4. One more replaces the
    /// oldest, so that a session that revokes a device is always admitted.
    pub password_sessions_per_user: usize,
    /// Unacknowledged appends of a session. Default 1024; each can take 32 KiB.
    pub in_flight: usize,
    /// Bytes of their bodies, beyond which nothing more is read. Default 1 MiB.
    pub in_flight_bytes: usize,
    /// How long a password session may enrol devices and change the password. Default 5 min.
    pub fresh_password: Duration,
    /// Lifetime of an invite that does not specify one. Default 48 h.
    pub invite: Duration,
    /// Maximum lifetime of an invite. Default 30 days.
    pub longest_invite: Duration,
    /// Maximum size of a file, bytes. Default 16 GiB. A larger value costs disk space, and time to
    /// resume a broken transfer after a restart: the existing bytes are hashed at about 2 GiB a
    /// second.
    pub file: u64,
    /// Bytes of one user's files that are not erased, and of its uploads. Content that several
    /// entries share counts for each, and a small file as 4 KiB. Default 64 GiB; costs disk space.
    pub files_per_user: u64,
    /// Reserve: bytes of the disk that files leave free, so that the record can still be written
    /// when they have filled the rest. Default (`None`): 1 GiB or 5 % of the disk, whichever is
    /// less. Less than a few hundred MiB endangers messages; more only takes space from files.
    pub disk_reserve: Option<u64>,
    /// Rooms, memberships, invites, devices and classic keys of one user.
    pub bounds: Bounds,
    /// Conversations followed in one session. Default 4096; each costs about 200 bytes.
    pub follows_per_session: usize,
    /// Room changes by one user per minute: rooms created, joined or left, topics, direct
    /// conversations opened. Default 300, and as many in a burst; each is announced to the whole
    /// room. 0: unlimited.
    pub changes_per_minute: u32,
    /// Maximum duration of a search, including its waits for others. Default 10 s. A larger value
    /// makes other users' searches wait for their turns more often.
    pub search: Duration,
    /// Bytes of text per second of one user, for all its sessions and classic keys together. Each
    /// entry counts as 256 bytes more. Beyond [`Limits::text_burst`] the user's connections are
    /// read more slowly. Default 2 MiB. More lets one user take more of the disk's write rate. 0:
    /// unlimited, also while searches are slow.
    pub text_rate: u64,
    /// The same while more than 1 MiB of the record is unindexed, which every search has to scan.
    /// The burst is four seconds of this rate. Default 256 KiB. More lets one user slow down
    /// others' searches. 0: no separate rate.
    pub text_rate_unindexed: u64,
    /// Burst of [`Limits::text_rate`], bytes. Default 32 MiB.
    pub text_burst: u64,
    /// Bytes of text of one user in 24 hours, counted by the hour, like [`Limits::text_rate`]; text
    /// beyond it is refused. A restart forgets the count. Default 4 GiB; costs two to three times
    /// as much disk space. 0: unlimited.
    pub text_per_day: u64,
    /// Reserve: bytes of the disk that text leaves free, so that revocations, passwords, invites
    /// and registrations can still be written. Default (`None`): 256 MiB or 1.25 % of the disk,
    /// whichever is less. 0: none.
    pub text_reserve: Option<u64>,
    /// Number of one user's files that are not erased. Default 100,000; each costs an inode and a
    /// block of the disk.
    pub files_number_per_user: u64,
    /// Partial uploads of one user; a new one replaces the oldest. Default 256; each costs an
    /// inode, and every offer lists them.
    pub partial_files_per_user: usize,
    /// How long a broken upload can be resumed. Default 24 h. A larger value costs disk space for
    /// abandoned uploads.
    pub partial_files: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            unauthenticated: 512,
            unauthenticated_per_address: 8,
            tls_deadline: Duration::from_secs(10),
            handshakes: 2 * cores,
            logins_per_minute: 20,
            sessions_per_device: 16,
            password_sessions_per_user: 4,
            in_flight: 1024,
            in_flight_bytes: 1024 * 1024,
            fresh_password: Duration::from_secs(5 * 60),
            invite: Duration::from_secs(48 * 60 * 60),
            longest_invite: Duration::from_secs(30 * 24 * 60 * 60),
            file: 16 << 30,
            files_per_user: 64 << 30,
            files_number_per_user: 100_000,
            disk_reserve: None,
            bounds: Bounds::default(),
            follows_per_session: 4096,
            changes_per_minute: 300,
            search: Duration::from_secs(10),
            text_rate: 2 << 20,
            text_rate_unindexed: 256 << 10,
            text_burst: 32 << 20,
            text_per_day: 4 << 30,
            text_reserve: None,
            partial_files_per_user: 256,
            partial_files: Duration::from_secs(24 * 60 * 60),
        }
    }
}
