//! What a server can be told. Command line and configuration file fill this in; the defaults are
//! the ones of `docs/protocol.md`, section 9.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use twinlock_core::invite::Address;
use twinlock_core::limits::Timing;
use twinlock_core::session::BindingPolicy;
use twinlock_store::Bounds;

use crate::identity::{KeyType, OwnFiles};

/// Everything a server needs to know to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where identity and record live. Made with mode 0700 if it is not there.
    pub data: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What invite links name. Default: the listening address, `localhost` where that is any.
    pub public: Option<Address>,
    /// The port of [`Config::public`] is the one that is listened on, whatever it says. Default: no.
    pub public_port_follows: bool,
    /// Of the self-made TLS key.
    pub key_type: KeyType,
    /// The operator's own certificate, instead of a self-made one.
    pub own_files: Option<OwnFiles>,
    /// A proxy ends TLS before this listener: binding `off`, and invite links say so. Connections
    /// without a PROXY header then have no address of their own, and no limit of one.
    pub behind_proxy: bool,
    /// Addresses that put a PROXY protocol header (version 2) before every connection and are
    /// believed, whether TLS ends at them or here. From others none is taken. Default: none.
    pub proxies: Vec<IpAddr>,
    /// What to do about TLS that ends in the middle. Behind a proxy it is always `Off`.
    pub binding: BindingPolicy,
    /// Put each message's text into the log, escaped.
    pub log_messages: bool,
    /// Limits of section 9.
    pub limits: Limits,
    /// Timing of sessions.
    pub timing: Timing,
    /// How long a drain may take at shutdown before lines are dropped. Default 10 s.
    pub drain: Duration,
    /// When clients are told to come back after a shutdown. Default 3 s.
    pub come_back: Duration,
    /// Classic lines and the origin bridge, both off.
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

/// The listeners of section 11: for devices and scripts in any language, and for the origin's own
/// programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classic {
    /// Where to listen for classic lines. Default: nowhere.
    pub lines: Option<SocketAddr>,
    /// Where to listen for the origin's clients. Default: nowhere.
    pub origin: Option<SocketAddr>,
    /// Connections of each of the two, in all. Default 512; each costs about 30 KiB. Of those that
    /// have shown no key, the oldest makes way for the newest.
    pub connections: usize,
    /// The same for one IPv4 address or IPv6 /64. Default 128: devices often share one.
    pub connections_per_address: usize,
    /// From TLS to the line with the key's name. Default 10 s.
    pub greeting: Duration,
    /// From the first byte of a line to its last, and for the other end to take a byte. Default
    /// 30 s. (A message of the bridge without a line end has [`Classic::pause`].)
    pub half_line: Duration,
    /// Without a line. Default 30 min.
    pub silence: Duration,
    /// After the last byte of a message of the bridge that does not open. Default 200 ms.
    pub pause: Duration,
    /// A connection of the bridge that failed is held this long before its close. Default 1 s.
    pub hold: Duration,
    /// And so many at once; with [`Classic::hold`] this is how many guesses a second the bridge
    /// takes, from everybody together. Default 4.
    pub holds: usize,
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
            hold: Duration::from_secs(1),
            holds: 4,
        }
    }
}

/// How much of everything, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections that are not logged in yet, in all. Each costs about 40 KiB. Default 512.
    pub unauthenticated: usize,
    /// The same for one IPv4 address or IPv6 /64. Default 8.
    pub unauthenticated_per_address: usize,
    /// For the TLS handshake. Default 10 s.
    pub tls_deadline: Duration,
    /// Logins computed at once. Default 2 x cores.
    pub handshakes: usize,
    /// Logins that fail or are not finished, for one address a minute. Default 20.
    pub logins_per_minute: u32,
    /// Sessions of one device, or of one invite. Default 16; each costs about 12 KiB while idle.
    pub sessions_per_device: usize,
    /// Sessions by one user's password, apart from those of devices. One more replaces the oldest, so
    /// that a session that revokes a device always gets in. Default 4.
    pub password_sessions_per_user: usize,
    /// Appends a line may have unacknowledged. Default 1024; each can hold 32 KiB.
    pub in_flight: usize,
    /// Bytes of bodies among them, beyond which nothing more is read. Default 1 MiB.
    pub in_flight_bytes: usize,
    /// How long a password session may enrol devices and change the password. Default 5 min.
    pub fresh_password: Duration,
    /// How long an invite is good if nobody says otherwise. Default 48 h.
    pub invite: Duration,
    /// The longest an invite may be good. Default 30 days.
    pub longest_invite: Duration,
    /// The largest file, bytes. Default 16 GiB. A larger one costs disk, and a longer look at what
    /// is there when a broken transfer of it goes on after a restart: a second for 2 GiB or so.
    pub file: u64,
    /// All files of one user that are not erased, and those it is uploading, bytes. Content that
    /// several entries share counts for each, and a small file for 4 KiB. Default 64 GiB; costs disk.
    pub files_per_user: u64,
    /// Bytes of the disk that files leave free, so that the record can still be written when they
    /// have filled the rest. Default (`None`): 1 GiB or 5 % of the disk, whichever is less. Less
    /// than some hundred MiB puts messages at risk, more only takes room from files.
    pub disk_reserve: Option<u64>,
    /// How many rooms, memberships, invites, devices and classic keys a user may have.
    pub bounds: Bounds,
    /// Conversations followed in one session. Default 4096; each costs about 200 bytes.
    pub follows_per_session: usize,
    /// Changes of rooms by one user: made, joined, left, topics, direct conversations opened.
    /// Default 300 a minute and as many at once; each is announced to the whole room. 0: any.
    pub changes_per_minute: u32,
    /// How long one search may take, with its waits for others. Default 10 s. Longer makes others'
    /// searches wait for their turns more often.
    pub search: Duration,
    /// Bytes of text that one user may send a second, all its sessions and classic keys together,
    /// each entry counting 256 more; beyond [`Limits::text_burst`] its lines are read more slowly.
    /// Default 2 MiB. More lets one user take more of what the disk can write. 0: any, also while
    /// searches are slow.
    pub text_rate: u64,
    /// The same while over 1 MiB of the record is not indexed yet, which every search has to read;
    /// beyond four seconds of it. Default 256 KiB. More lets one user slow down others' searches. 0:
    /// no other rate then.
    pub text_rate_unindexed: u64,
    /// What it may send at once, bytes. Default 32 MiB.
    pub text_burst: u64,
    /// Bytes of text of one user in 24 hours, counted like [`Limits::text_rate`] by the hour and
    /// forgotten at a restart; refused beyond it. Default 4 GiB; costs two to three times as much
    /// disk. 0: any.
    pub text_per_day: u64,
    /// Bytes of the disk that text leaves free, so that revocations, passwords, invites and
    /// registrations can still be written. Default (`None`): 256 MiB or 1.25 % of the disk, whichever
    /// is less. 0: none.
    pub text_reserve: Option<u64>,
    /// How many files of one user there may be that are not erased. Default 100,000; each costs an
    /// inode and a block of the disk.
    pub files_number_per_user: u64,
    /// Unfinished uploads of one user; the oldest is discarded for a new one. Default 256; each costs
    /// an inode, and every offer lists them.
    pub partial_files_per_user: usize,
    /// How long an upload that was broken off can be gone on with. Default 24 h. Longer costs the
    /// disk of what nobody comes back for.
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
