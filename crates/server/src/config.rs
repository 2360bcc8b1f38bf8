//! Configuration of a server. The command line and the configuration file fill it in; the defaults
//! are those of `docs/protocol.md`, section 9.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use twinlock_core::invite::{Address, DEFAULT_PATH};
use twinlock_core::limits::Timing;
use twinlock_core::session::BindingPolicy;
use twinlock_store::Bounds;
use twinlock_transport::websocket::serve::Site;

use crate::identity::{KeyType, OwnFiles};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Declares a struct with the default of each field in one place, and in its documentation.
macro_rules! with_defaults {
    (
        $(#[$docs:meta])*
        pub struct $name:ident {
            $($(#[$field_docs:meta])* pub $field:ident: $type:ty = $default:expr,)*
        }
    ) => {
        $(#[$docs])*
        pub struct $name {
            $(
                $(#[$field_docs])*
                ///
                #[doc = concat!("Default: `", stringify!($default), "`.")]
                pub $field: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

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
    /// A proxy terminates TLS before this listener. Invite links say so and have no pin. Connections without a PROXY header have no known address, and no limit by address.
    pub behind_proxy: bool,
    /// Addresses of proxies that put a PROXY header (version 1 or 2) before every connection and are
    /// trusted, whether TLS ends at them or here. The server accepts none from other addresses.
    /// Default: none.
    pub proxies: Vec<IpAddr>,
    /// Addresses of HTTP proxies whose `X-Forwarded-For` or `Forwarded` field names the client of a
    /// WebSocket. Both fields are ignored from other addresses. An address in both lists is one of
    /// [`Config::proxies`]. Default: none.
    pub forwarded_from: Vec<IpAddr>,
    /// Listening address for sessions without TLS, behind a proxy that terminates it. On an address
    /// that is not loopback, only peers in the two lists are accepted. Default: none.
    pub plain: Option<SocketAddr>,
    /// The path of the WebSocket, which invite links name. Default: `/twinlock`.
    pub websocket_path: String,
    /// The page at `/`, HTML if it begins with `<`. Default: a line of text.
    pub index: Option<String>,
    /// Reaction to TLS interception.
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
    pub classic: ClassicConfig,
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
            forwarded_from: Vec::new(),
            plain: None,
            websocket_path: DEFAULT_PATH.to_owned(),
            index: None,
            binding: BindingPolicy::Warn,
            log_messages: false,
            limits: Limits::default(),
            timing: Timing::default(),
            drain: Duration::from_secs(10),
            come_back: Duration::from_secs(3),
            classic: ClassicConfig::default(),
        }
    }

    /// Whether a configured proxy names its clients, so that addresses are the clients' own.
    pub(crate) fn knows_clients(&self) -> bool {
        !(self.proxies.is_empty() && self.forwarded_from.is_empty())
    }

    /// What the server shows over HTTP.
    pub(crate) fn site(&self) -> Site {
        let site = Site::new(self.websocket_path.clone());
        match &self.index {
            Some(index) if index.trim_start().starts_with('<') => {
                Site { index: index.clone(), index_type: "text/html; charset=utf-8", ..site }
            }
            Some(index) => Site { index: index.clone(), ..site },
            None => site,
        }
    }
}

with_defaults! {
    /// The listeners of section 11: for devices and scripts in any language, and for unchanged
    /// clients of the Python design.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ClassicConfig {
        /// Listening address for classic connections.
        pub lines: Option<SocketAddr> = None,
        /// Listening address of the origin bridge.
        pub origin: Option<SocketAddr> = None,
        /// Connections of each of the two listeners; each costs about 30 KiB. When all are taken, a
        /// new connection evicts the oldest unauthenticated one.
        pub connections: usize = 512,
        /// The same for one IPv4 address or IPv6 /64; devices often share an address.
        pub connections_per_address: usize = 128,
        /// Timeout from the end of the TLS handshake to the line with the key's name.
        pub greeting: Duration = Duration::from_secs(10),
        /// Timeout from the first byte of a line to its last, and for the peer to take a byte. (A
        /// bridge message without a line end has [`ClassicConfig::pause`].)
        pub half_line: Duration = Duration::from_secs(30),
        /// Timeout without a line.
        pub silence: Duration = Duration::from_secs(30 * 60),
        /// Silence after which a bridge message that does not open counts as failed.
        pub pause: Duration = Duration::from_millis(200),
        /// Tarpit: delay before a failed connection of the bridge is closed.
        pub tarpit_delay: Duration = Duration::from_secs(1),
        /// Connections in the tarpit at once. With [`ClassicConfig::tarpit_delay`] this limits the
        /// guesses that the bridge accepts per second, from all clients together.
        pub tarpit_slots: usize = 4,
    }
}

with_defaults! {
    /// Limits on resources and times.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Limits {
        /// Unauthenticated connections in all; each costs about 40 KiB.
        pub unauthenticated: usize = 512,
        /// The same for one IPv4 address or IPv6 /64.
        pub unauthenticated_per_address: usize = 8,
        /// Timeout of the TLS handshake.
        pub tls_deadline: Duration = Duration::from_secs(10),
        /// Concurrent login computations.
        pub handshakes: usize = 2 * cores(),
        /// Failed or unfinished logins per minute of one address.
        pub logins_per_minute: u32 = 20,
        /// Sessions of one device, or of one invite; each costs about 12 KiB while idle.
        pub sessions_per_device: usize = 16,
        /// Password sessions of one user, apart from those of devices. One more replaces the
        /// oldest, so that a session that revokes a device is always admitted.
        pub password_sessions_per_user: usize = 4,
        /// Unacknowledged appends of a session; each can take 32 KiB.
        pub in_flight: usize = 1024,
        /// Bytes of their bodies, beyond which nothing more is read.
        pub in_flight_bytes: usize = 1024 * 1024,
        /// How long a password session may enrol devices and change the password.
        pub fresh_password: Duration = Duration::from_secs(5 * 60),
        /// Lifetime of an invite that does not specify one.
        pub invite: Duration = Duration::from_secs(48 * 60 * 60),
        /// Maximum lifetime of an invite.
        pub longest_invite: Duration = Duration::from_secs(30 * 24 * 60 * 60),
        /// Maximum size of a file, bytes. A larger value costs disk space, and time to resume a
        /// broken transfer after a restart: the existing bytes are hashed at about 2 GiB a second.
        pub file: u64 = 16 * GIB,
        /// Bytes of one user's files that are not erased, and of its uploads. Content that several
        /// entries share counts for each, and a small file as 4 KiB. Costs disk space.
        pub files_per_user: u64 = 64 * GIB,
        /// Reserve: bytes of the disk that files leave free, so that the record can still be
        /// written when they have filled the rest. `None`: 1 GiB or 5 % of the disk, whichever is
        /// less. Less than a few hundred MiB endangers messages; more only takes space from files.
        pub disk_reserve: Option<u64> = None,
        /// Rooms, memberships, invites, devices and classic keys of one user.
        pub bounds: Bounds = Bounds::default(),
        /// Conversations followed in one session; each costs about 200 bytes.
        pub follows_per_session: usize = 4096,
        /// Room changes by one user per minute: rooms created, joined or left, topics, direct
        /// conversations opened; as many in a burst. Each is announced to the whole room. 0:
        /// unlimited.
        pub changes_per_minute: u32 = 300,
        /// Maximum duration of a search, including its waits for others. A larger value makes other
        /// users' searches wait for their turns more often.
        pub search: Duration = Duration::from_secs(10),
        /// Bytes of text per second of one user, for all its sessions and classic keys together.
        /// Each entry counts as 256 bytes more. Beyond [`Limits::text_burst`] the user's
        /// connections are read more slowly. More lets one user take more of the disk's write rate.
        /// 0: unlimited, also while searches are slow.
        pub text_rate: u64 = 2 * MIB,
        /// The same while more than 1 MiB of the record is unindexed, which every search has to
        /// scan. The burst is four seconds of this rate. More lets one user slow down others'
        /// searches. 0: no separate rate.
        pub text_rate_unindexed: u64 = 256 * KIB,
        /// Burst of [`Limits::text_rate`], bytes.
        pub text_burst: u64 = 32 * MIB,
        /// Bytes of text of one user in 24 hours, counted by the hour, like [`Limits::text_rate`];
        /// text beyond it is refused. A restart forgets the count. Costs two to three times as much
        /// disk space. 0: unlimited.
        pub text_per_day: u64 = 4 * GIB,
        /// Reserve: bytes of the disk that text leaves free, so that revocations, passwords,
        /// invites and registrations can still be written. `None`: 256 MiB or 1.25 % of the disk,
        /// whichever is less. 0: none.
        pub text_reserve: Option<u64> = None,
        /// Number of one user's files that are not erased; each costs an inode and a block of the
        /// disk.
        pub files_number_per_user: u64 = 100_000,
        /// Partial uploads of one user; a new one replaces the oldest. Each costs an inode, and
        /// every offer lists them.
        pub partial_files_per_user: usize = 256,
        /// How long a broken upload can be resumed. A larger value costs disk space for abandoned
        /// uploads.
        pub partial_files: Duration = Duration::from_secs(24 * 60 * 60),
    }
}
