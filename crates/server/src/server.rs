//! The server: state shared by all connections, startup, listeners and shutdown.

mod clock;
mod heads;
mod owner;
mod parts;
#[cfg(feature = "test-util")]
mod test_util;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, Name, ServerKey, TlsPin};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::opaque::ServerSetup;
use twinlock_core::session::BindingPolicy;
use twinlock_store::{
    OpenError, Person, Published, RecordLock, Role, SqliteStore, Store, StoreError,
};
use twinlock_transport::OsEntropy;
use twinlock_transport::tls::{ServerTls, TlsFault};

use crate::append_log::Names;
use crate::barred::Barred;
use crate::classic::{self, ClassicShared};
use crate::config::Config;
use crate::convert::copy;
use crate::doors::{Door, Doors};
use crate::files::{Files, LocalDisk};
use crate::hub::Hub;
use crate::identity::{Identity, IdentityError, Options as IdentityOptions};
use crate::limits::accounts::{Accounts, Unindexed};
use crate::limits::census::Census;
use crate::limits::devices::Devices;
use crate::limits::fair::Fair;
use crate::limits::guess::Guesses;
use crate::limits::room::TextRoom;
use crate::limits::slots::Slots;
use crate::limits::throttle::Throttle;
use crate::private::{self, Failed};
use crate::session;

use heads::Heads;
use parts::Start;

/// Log target for events that only the log file has; the terminal shows them in other words.
pub const FILE_ONLY: &str = "twinlock::file";

/// Interval between checks of the certificate's expiry.
const RENEWAL: Duration = Duration::from_secs(12 * 60 * 60);
/// Concurrent reads of the record by sessions. The store has one more connection.
const READS: usize = 3;
/// Age at which an unauthenticated connection gives up its slot to a newer one from another
/// address. Longer than a login takes on a server that is not flooded.
const GRACE: Duration = Duration::from_secs(1);
/// Backlog of each listener: connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after a failed accept. The likely cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// State shared by all connections of a server.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) files: Arc<Files>,
    pub(crate) setup: ServerSetup,
    pub(crate) tls: ServerTls,
    pub(crate) hub: Arc<Hub>,
    /// The handshake runtime, where logins run.
    pub(crate) door: Door,
    /// The main runtime, where sockets and sessions are.
    pub(crate) main: Handle,
    /// Connection slots of unauthenticated connections.
    pub(crate) slots: Slots,
    pub(crate) guesses: Guesses,
    pub(crate) devices: Devices,
    pub(crate) census: Census,
    pub(crate) throttle: Throttle,
    pub(crate) names: Names,
    pub(crate) handshakes: Semaphore,
    /// Turns for reads of the record by sessions ([`Shared::read`]). Fewer than the store's
    /// connections, so that sessions leave one to logins.
    pub(crate) reads: Fair,
    /// Turns for searches.
    pub(crate) searches: Fair,
    /// Rates and quotas of users.
    pub(crate) accounts: Accounts,
    pub(crate) text_room: Arc<TextRoom>,
    pub(crate) barred: Arc<Barred>,
    pub(crate) classic: ClassicShared,
    stop: watch::Sender<bool>,
}

impl Shared {
    /// Milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Reads the record for a session when it is `user`'s turn.
    ///
    /// The turn lasts until the read has ended, even if this future is dropped: a running statement
    /// cannot be stopped, and it occupies one of the store's connections.
    pub(crate) async fn read<T, R>(
        &self,
        user: &Name,
        read: impl FnOnce(Arc<dyn Store>) -> R,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let read = read(self.store.clone());
        self.reads.run(&self.main, user, read).await.map_err(|_| StoreError::Closed)?
    }

    pub(crate) fn binding(&self) -> BindingPolicy {
        if self.config.behind_proxy { BindingPolicy::Off } else { self.config.binding }
    }

    /// Pins that clients should accept from now on. Empty behind a proxy, which presents its own
    /// certificate, and for a certificate from a CA, whose successor may have another key.
    pub(crate) fn tls_pins(&self) -> Vec<Bytes> {
        let pinned = !self.config.behind_proxy && self.tls.is_self_issued();
        if pinned { vec![copy(&self.tls.spki_pin().0)] } else { Vec::new() }
    }

    /// Logs a registration, and removes the owner invite once the owner has registered.
    pub(crate) fn registered(&self, person: &Person) {
        tracing::info!(user = %person.user, "registered");
        if person.role == Role::Owner {
            owner::forget(&self.config.data);
        }
    }

    /// Waits until the server is shutting down. Cancel-safe.
    pub(crate) async fn stopping(&self) {
        // `self` holds the sender, so the channel cannot close first.
        let mut stop = self.stop.subscribe();
        let _stopping = stop.wait_for(|stop| *stop).await;
    }
}

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot {doing} {}: {error}; {}", path.display(), data_hint(error))]
    Data {
        /// Verb for the message: read, write, make.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The TLS key, the certificate or the setup is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The setup file does not contain an OPAQUE setup.
    #[error(
        "{} is not an OPAQUE setup; restore it from its backup (without it no credential of this record works)",
        .0.display()
    )]
    Setup(PathBuf),
    /// A record exists, but its setup is missing. A new setup would lock out every user.
    #[error(
        "{} is missing, but there is a record: restore it from its backup (without it no credential of this record works), or move the record away to start over",
        .0.display()
    )]
    SetupLost(PathBuf),
    /// A record existed before, and it is missing or empty.
    #[error(
        "{} is missing or empty, but {} shows that there was a record; nothing was changed. Restore the record from its backup. To create a new record under the same identity, move record.db*, files/, heads* and owner-invite out of {} and create an empty file `first-start` there; for a new server, name another directory with --data",
        missing.display(),
        trace.display(),
        missing.parent().unwrap_or(missing).display()
    )]
    RecordLost {
        /// The record's file.
        missing: PathBuf,
        /// The path that shows that there was a record.
        trace: PathBuf,
    },
    /// A record exists, but the generated TLS key that clients pin is missing.
    #[error(
        "{} is missing, and clients pin it; nothing was changed. Restore it from its backup. To start with a new key, which clients that pin the old one refuse, remove the line `tls-pin` from {}",
        key.display(),
        heads.display()
    )]
    TlsKeyLost {
        /// The key's file.
        key: PathBuf,
        /// The head file, which shows that there was such a key.
        heads: PathBuf,
    },
    /// Entries refer to files, but the directory of files is missing or empty.
    #[error(
        "{dir} is missing or empty, but the record has files; nothing was changed. Mount it or restore it from its backup. To start without the content of all files, create the directory {dir}/partial",
        dir = .0.display()
    )]
    FilesLost(PathBuf),
    /// The record cannot be opened.
    #[error(transparent)]
    Record(#[from] OpenError),
    /// An operation on the open record failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsFault),
    /// The server cannot listen on an address.
    #[error("cannot listen on {address}: {error}; {}", listen_hint(error, flag))]
    Listen {
        /// The setting that determines the port.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
    /// The owner invite could not be recorded.
    #[error("the owner's invite could not be recorded: is the disk full? The log has the reason")]
    OwnerInvite,
}

impl From<Failed> for StartError {
    fn from(Failed { doing, path, error }: Failed) -> Self {
        Self::Data { doing, path, error }
    }
}

fn data_hint(error: &io::Error) -> &'static str {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => "make room there, or name another directory with --data",
        _ => "name another directory with --data or mend its rights",
    }
}

fn listen_hint(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another program listens there ({flag} takes another port)")
        }
        io::ErrorKind::PermissionDenied => format!(
            "this user may not: ports below 1024 need CAP_NET_BIND_SERVICE ({flag} takes another port)"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address (--host takes another)".to_owned()
        }
        _ => format!("--host and {flag} take another address"),
    }
}

/// Creates the data directory and its missing parents durably, and returns its canonical path.
///
/// Use the returned path from then on. [`Server::start`] does the same; call this first to write a
/// log there before the server starts.
///
/// # Errors
/// [`StartError::Data`], also for a directory that another user can write to or replace.
pub fn make_data_directory(path: &Path) -> Result<PathBuf, StartError> {
    Ok(private::data_directory(path)?)
}

/// A running server. Dropping it drops its connections; [`Server::shutdown`] closes them in order.
pub struct Server {
    pub(crate) shared: Arc<Shared>,
    identity: Arc<Mutex<Identity>>,
    address: SocketAddr,
    public: Address,
    owner_invite: Option<InviteLink>,
    heads: Arc<tokio::sync::Mutex<heads::Keeper>>,
    /// Accept loops; each ends once its connections have ended.
    accepting: JoinSet<()>,
    /// Background tasks that run as long as the server.
    upkeep: JoinSet<()>,
    _doors: Doors,
}

impl Server {
    /// Opens or creates identity and record, and listens. Requires a Tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(mut config: Config) -> Result<Self, StartError> {
        let data = private::data_directory(&config.data)?;
        config.data.clone_from(&data);
        // Taken before the directory is inspected: another process may be creating it.
        let lock = RecordLock::take(&record_path(&data))?;
        let known = Heads::read(&data, heads::FILE)?;
        let start = parts::look(&data, &config, &known)?;
        let (identity, setup) = open_identity(&config)?;
        let store = open_store(&config, &setup, lock, start, &known)?;
        let started = Self::start_on(config, identity, setup, store.clone(), &known, start).await;
        if started.is_err() && store.close().await.is_ok() {
            known.put_back(&data);
        }
        started
    }

    /// Starts the server on an open record.
    async fn start_on(
        config: Config,
        identity: Identity,
        setup: ServerSetup,
        store: Arc<dyn Store>,
        known: &Heads,
        start: Start,
    ) -> Result<Self, StartError> {
        let data = config.data.clone();
        // A self-signed certificate is trusted only by its pin.
        let self_made = identity.certificate().is_self_issued().then(|| identity.pin());
        warn_of_another_key(known.tls_pin, self_made);
        parts::check_files(&data, &*store).await?;
        let whole = heads::compare(&data, known, &*store).await?;
        clock::check(&*store).await?;
        // Binding determines the ports; connections are refused until the sockets listen.
        let (socket, address) = bind("--port", config.listen)?;
        let lines = bind_if("--classic-port", config.classic.lines)?;
        let origin = bind_if("--origin-port", config.classic.origin)?;
        let public = public_address(&config, address);
        let limits = &config.limits;
        let disk = LocalDisk::open(data.join("files"), limits.disk_reserve)?;
        let text_room = Arc::new(TextRoom::new(data.clone(), limits.text_reserve));
        let barred = Arc::new(Barred::default());
        let (disk, room) = (Box::new(disk), text_room.clone());
        let files = Files::new(disk, store.clone(), limits, room, barred.clone());
        let tls = ServerTls::new(identity.certificate())?;
        let (doors, door) = Doors::open().map_err(StartError::Threads)?;
        let record = store.clone();
        let unindexed = Unindexed(Arc::new(move || record.unindexed()));
        let ports = [&lines, &origin].map(|port| port.as_ref().map(|(_, address)| *address));
        let shared = Arc::new(Shared {
            files: Arc::new(files),
            classic: ClassicShared::new(&config.classic, ports, &tls, &setup)?,
            tls,
            door,
            main: Handle::current(),
            slots: Slots::new(
                limits.unauthenticated,
                limits.unauthenticated_per_address,
                ["unauthenticated", "unauthenticated-per-address"],
                GRACE,
            ),
            devices: Devices::new(),
            census: Census::default(),
            throttle: Throttle::default(),
            names: Names::new(),
            guesses: Guesses::new(limits.logins_per_minute),
            handshakes: Semaphore::new(limits.handshakes.clamp(1, Semaphore::MAX_PERMITS)),
            reads: Fair::new(READS),
            searches: Fair::new(1),
            accounts: Accounts::new(limits, unindexed),
            text_room,
            barred,
            hub: Arc::new(Hub::default()),
            stop: watch::Sender::new(false),
            config,
            store,
            setup,
        });
        let pin = self_made.filter(|_| !shared.config.behind_proxy);
        let owner_invite = owner::invite(&shared, &public, pin).await?;
        let mut heads = heads::Keeper::new(&data, shared.setup.server_key(), self_made);
        if start == Start::First {
            heads.write(&*shared.store).await?;
            parts::begun(&data)?;
        } else {
            heads.try_write(&*shared.store).await;
        }
        let heads = Arc::new(tokio::sync::Mutex::new(heads));
        let listener = listen("--port", socket, address)?;
        let lines = listen_if("--classic-port", lines)?;
        let origin = listen_if("--origin-port", origin)?;
        let identity = Arc::new(Mutex::new(identity));
        let mut upkeep = JoinSet::new();
        upkeep.spawn(publish(shared.clone(), shared.store.watch()));
        upkeep.spawn(renew(shared.clone(), identity.clone()));
        let files = shared.files.clone();
        let sweep = whole && start == Start::Later;
        upkeep.spawn(async move { files.upkeep(sweep).await });
        let (store, barred) = (shared.store.clone(), shared.barred.clone());
        upkeep.spawn(async move { barred.upkeep(&*store).await });
        let (store, keeper) = (shared.store.clone(), heads.clone());
        upkeep.spawn(async move { keep_heads(&*store, &keeper).await });
        let store = shared.store.clone();
        upkeep.spawn(async move { clock::watch(&*store).await });
        let mut accepting = JoinSet::new();
        shared.door.spawn(&mut accepting, accept(shared.clone(), listener, session::serve));
        if let Some((listener, address)) = lines {
            tracing::info!(target: FILE_ONLY, %address, "listening for classic connections");
            let lines = accept(shared.clone(), listener, classic::serve_lines);
            shared.door.spawn(&mut accepting, lines);
        }
        if let Some((listener, address)) = origin {
            tracing::warn!(%address, "listening for clients of the origin, without integrity");
            let origin = accept(shared.clone(), listener, classic::serve_origin);
            shared.door.spawn(&mut accepting, origin);
        }
        let key = shared.setup.server_key();
        tracing::info!(target: FILE_ONLY, %address, %key, "listening");
        Ok(Self {
            shared,
            identity,
            address,
            public,
            owner_invite,
            heads,
            accepting,
            upkeep,
            _doors: doors,
        })
    }

    /// The listening address, with the actual port if port 0 was requested.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The listening address for classic connections, if they are enabled.
    #[must_use]
    pub fn classic_addr(&self) -> Option<SocketAddr> {
        self.shared.classic.lines.address
    }

    /// The listening address of the origin bridge, if it is enabled.
    #[must_use]
    pub fn origin_addr(&self) -> Option<SocketAddr> {
        self.shared.classic.origin.address
    }

    /// Number of open classic connections, including those of the origin bridge.
    #[must_use]
    pub fn classic_connections(&self) -> usize {
        self.shared.classic.connections()
    }

    /// The address in invite links.
    #[must_use]
    pub fn public_address(&self) -> &Address {
        &self.public
    }

    /// The key that identifies the server.
    #[must_use]
    pub fn server_key(&self) -> ServerKey {
        self.shared.setup.server_key()
    }

    /// The pin of the current TLS key.
    #[must_use]
    pub fn tls_pin(&self) -> TlsPin {
        self.shared.tls.spki_pin()
    }

    /// The owner's invite link, if this start created it. It is shown only once.
    #[must_use]
    pub fn owner_invite(&self) -> Option<&InviteLink> {
        self.owner_invite.as_ref()
    }

    /// Drops the owner's invite link from memory after it was shown, because it contains a secret.
    pub fn forget_owner_invite(&mut self) {
        self.owner_invite = None;
    }

    /// Number of sessions.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.shared.hub.count()
    }

    /// Erases an entry: its salt and body, and a file's content unless another entry refers to it.
    ///
    /// Returns `false` if there is no such entry, or if it is erased already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn erase(&self, conversation: ConversationId, n: u64) -> Result<bool, StoreError> {
        self.shared.files.erase(conversation, n).await
    }

    /// Reloads the certificate (SIGHUP). Open connections stay. Blocks on two small files.
    ///
    /// # Errors
    /// [`IdentityError`]; the previous certificate stays in use.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate = identity.reload(SystemTime::now())?;
        self.shared.tls.reload(certificate);
        tracing::info!(pin = %self.shared.tls.spki_pin(), "certificate reloaded");
        Ok(())
    }

    /// Shuts the server down in order.
    ///
    /// It accepts no more connections, drops those that are not authenticated, and lets every
    /// received append be recorded and acknowledged. It sends each session CLOSE 8 with the time to
    /// reconnect, and closes the record.
    ///
    /// # Errors
    /// [`StoreError`] if the record cannot be closed cleanly. No acknowledged entry is lost in that
    /// case.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        tracing::info!(lines = self.shared.hub.count(), "shutting down");
        self.shared.stop.send_replace(true);
        self.shared.hub.close_all(CloseCode::Shutdown);
        let ended = async { while self.accepting.join_next().await.is_some() {} };
        if timeout(self.shared.config.drain, ended).await.is_err() {
            tracing::warn!(lines = self.shared.hub.count(), "connections were dropped");
        }
        self.accepting.shutdown().await;
        self.upkeep.shutdown().await;
        // A restart would admit what is barred. Retry: disk space may be available by now.
        self.shared.barred.write(&*self.shared.store).await;
        let mut heads = self.heads.lock().await;
        heads.try_write(&*self.shared.store).await;
        self.shared.store.close().await?;
        heads.write_closed();
        Ok(())
    }
}

fn setup_path(data: &Path) -> PathBuf {
    identity_dir(data).join("opaque-setup")
}

fn record_path(data: &Path) -> PathBuf {
    data.join("record.db")
}

fn identity_dir(data: &Path) -> PathBuf {
    data.join("identity")
}

fn open_identity(config: &Config) -> Result<(Identity, ServerSetup), StartError> {
    let options = IdentityOptions {
        key_type: config.key_type,
        names: config.public.iter().filter_map(certificate_name).collect(),
        own: config.own_files.clone(),
    };
    let new_setup = || ServerSetup::generate(&mut OsEntropy).to_bytes();
    let dir = identity_dir(&config.data);
    let identity = Identity::open_or_create(&dir, options, SystemTime::now(), new_setup)?;
    let setup = ServerSetup::from_bytes(identity.setup_bytes())
        .map_err(|_| StartError::Setup(setup_path(&config.data)))?;
    Ok((identity, setup))
}

fn open_store(
    config: &Config,
    setup: &ServerSetup,
    lock: RecordLock,
    start: Start,
    known: &Heads,
) -> Result<Arc<dyn Store>, StartError> {
    let options = twinlock_store::Options::new(setup.server_key(), setup.row_key());
    let options = options.bounds(config.limits.bounds);
    if start == Start::Later {
        lock.check(&known.expected())?;
        known.note_opening(&config.data)?;
    }
    SqliteStore::open_locked(lock, options).map(|store| -> Arc<dyn Store> { store }).map_err(
        |error| {
            known.put_back(&config.data);
            error.into()
        },
    )
}

/// The part of an address that a certificate can contain: a scope is valid on this machine only.
fn certificate_name(public: &Address) -> Option<String> {
    public.bare_host().split('%').next().map(str::to_owned)
}

/// Warns that the TLS key has changed: clients that pin the previous key refuse the server.
fn warn_of_another_key(known: Option<TlsPin>, current: Option<TlsPin>) {
    if let Some((before, now)) = known.zip(current)
        && before != now
    {
        tracing::warn!(%before, %now, "the TLS key has changed since the last start: clients that pin the old key refuse this server");
    }
}

/// An address for clients on this machine, or on the network the server listens on.
fn public_address(config: &Config, listening: SocketAddr) -> Address {
    if let Some(public) = &config.public {
        // A host that is valid in one address is valid with another port.
        let moved = Address::new(public.host(), listening.port());
        return moved.ok().filter(|_| config.public_port_follows).unwrap_or_else(|| public.clone());
    }
    let ip = listening.ip();
    let host = match listening {
        _ if ip.is_unspecified() => "localhost".to_owned(),
        // A link-local address is incomplete without its scope.
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{ip}%{}", v6.scope_id()),
        _ => ip.to_string(),
    };
    Address::new(&host, listening.port()).unwrap_or_else(|_| unreachable_address())
}

/// Not reached: an IP address and the port of a bound socket always form an address.
fn unreachable_address() -> Address {
    #[allow(clippy::expect_used)]
    Address::new("localhost", 8443).expect("a constant")
}

fn bind(flag: &'static str, address: SocketAddr) -> Result<(TcpSocket, SocketAddr), StartError> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for connections of the previous process to time out.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    bound().map_err(|error| StartError::Listen { flag, address, error })
}

fn bind_if(
    flag: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<(TcpSocket, SocketAddr)>, StartError> {
    address.map(|address| bind(flag, address)).transpose()
}

fn listen(
    flag: &'static str,
    socket: TcpSocket,
    address: SocketAddr,
) -> Result<TcpListener, StartError> {
    socket.listen(BACKLOG).map_err(|error| StartError::Listen { flag, address, error })
}

fn listen_if(
    flag: &'static str,
    bound: Option<(TcpSocket, SocketAddr)>,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    bound.map(|(socket, address)| Ok((listen(flag, socket, address)?, address))).transpose()
}

/// Accepts connections until shutdown, then waits for all of them to end. This loop runs on the
/// handshake runtime; sockets and their tasks belong to the main runtime.
async fn accept<F: Future<Output = ()> + Send + 'static>(
    shared: Arc<Shared>,
    listener: TcpListener,
    serve: fn(Arc<Shared>, TcpStream, SocketAddr) -> F,
) {
    let mut lines = JoinSet::new();
    let mut stopping = std::pin::pin!(shared.stopping());
    loop {
        tokio::select! {
            accepted = poll_fn(|cx| {
                let _where_sockets_are_waited_for = shared.main.enter();
                listener.poll_accept(cx)
            }) => match accepted {
                Ok((socket, peer)) => {
                    lines.spawn_on(serve(shared.clone(), socket, peer), &shared.main);
                }
                Err(error) => {
                    if let Some(left_out) = shared.throttle.pass("accept", Instant::now()) {
                        tracing::warn!(%error, left_out, "a connection could not be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = lines.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task failed");
                }
            }
            () = &mut stopping => break,
        }
    }
    drop(listener);
    while lines.join_next().await.is_some() {}
}

async fn keep_heads(store: &dyn Store, heads: &tokio::sync::Mutex<heads::Keeper>) {
    loop {
        tokio::time::sleep(heads::INTERVAL).await;
        heads.lock().await.try_write(store).await;
    }
}

/// Publishes commits of the store to the followers.
async fn publish(shared: Arc<Shared>, mut commits: broadcast::Receiver<Arc<[Published]>>) {
    loop {
        match commits.recv().await {
            Ok(published) => shared.hub.topics.publish(&published),
            Err(broadcast::error::RecvError::Lagged(_)) => shared.hub.topics.missed(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Renews a self-signed certificate in time, and warns before any other expires.
async fn renew(shared: Arc<Shared>, identity: Arc<Mutex<Identity>>) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        let now = SystemTime::now();
        let mut identity = identity.lock().unwrap_or_else(PoisonError::into_inner);
        match identity.renew_if_due(now) {
            Ok(Some(certificate)) => {
                shared.tls.reload(certificate);
                tracing::info!("TLS certificate renewed, with the same key");
            }
            Ok(None) => identity.warn_if_ending(now),
            Err(error) => tracing::error!(%error, "the TLS certificate was not renewed"),
        }
    }
}
