//! The server: what all lines share, the listener, and the ways it ends.

mod owner;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_core::classic::{Heard, Lines};
use twinlock_core::frame::CloseCode;
use twinlock_core::handshake::AwaitProof;
use twinlock_core::id::{ConversationId, ServerKey, TlsPin};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::opaque::ServerSetup;
use twinlock_core::session::BindingPolicy;
use twinlock_link::OsEntropy;
use twinlock_link::tls::{ServerTls, TlsFault};
use twinlock_store::{OpenError, Person, Published, Role, SqliteStore, Store, StoreError};

use crate::append_log::Names;
use crate::barred::Barred;
use crate::classic::{self, ClassicShared};
use crate::config::Config;
use crate::convert::copy;
use crate::doors::{Door, Doors};
use crate::files::{Files, LocalDisk};
use crate::hub::Hub;
use crate::identity::{Identity, IdentityError, Options as IdentityOptions};
use crate::limits::Origin;
use crate::limits::accounts::Accounts;
use crate::limits::census::Census;
use crate::limits::devices::Devices;
use crate::limits::fair::Fair;
use crate::limits::guess::Guesses;
use crate::limits::room::TextRoom;
use crate::limits::slots::Slots;
use crate::limits::throttle::Throttle;
use crate::private::{self, Failed};
use crate::session;

/// How often the certificate's end is looked at.
const RENEWAL: Duration = Duration::from_secs(12 * 60 * 60);
/// Reads of the record at once by sessions; the store has one connection more.
const READS: usize = 3;
/// From this age on a connection that is not logged in gives up its slot for a newer one of another
/// address. Longer than a login takes on a server that is not flooded.
const GRACE: Duration = Duration::from_secs(1);
/// Pause after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all lines of a server share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) files: Arc<Files>,
    pub(crate) setup: ServerSetup,
    pub(crate) tls: ServerTls,
    pub(crate) hub: Arc<Hub>,
    /// Where logins are worked on.
    pub(crate) door: Door,
    /// Where lines are.
    pub(crate) main: Handle,
    /// Of connections that are not logged in.
    pub(crate) slots: Slots,
    pub(crate) guesses: Guesses,
    pub(crate) devices: Devices,
    pub(crate) census: Census,
    pub(crate) throttle: Throttle,
    pub(crate) names: Names,
    pub(crate) handshakes: Semaphore,
    /// Turns at reading the record for sessions. Fewer than the store has connections, so that a
    /// login always finds one.
    pub(crate) reads: Fair,
    /// Turns at searching.
    pub(crate) searches: Fair,
    /// What users have written lately.
    pub(crate) accounts: Accounts,
    pub(crate) text_room: TextRoom,
    pub(crate) barred: Barred,
    pub(crate) classic: ClassicShared,
    stop: watch::Sender<bool>,
}

impl Shared {
    /// Milliseconds since 1970 UTC.
    pub(crate) fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn binding(&self) -> BindingPolicy {
        if self.config.behind_proxy { BindingPolicy::Off } else { self.config.binding }
    }

    /// What pinning clients should accept from now on. Nothing where a proxy shows its own
    /// certificate, or an authority vouches for ours and its next one may have another key.
    pub(crate) fn tls_pins(&self) -> Vec<Bytes> {
        let pinned = !self.config.behind_proxy && self.tls.is_self_issued();
        if pinned { vec![copy(&self.tls.spki_pin().0)] } else { Vec::new() }
    }

    /// Somebody has used an invite.
    pub(crate) fn registered(&self, person: &Person) {
        tracing::info!(user = %person.user, "registered");
        if person.role == Role::Owner {
            owner::forget(&self.config.data);
        }
    }

    /// Waits until the server shuts down. Cancel-safe.
    pub(crate) async fn stopping(&self) {
        // The sender is here, so it does not go away first.
        let mut stop = self.stop.subscribe();
        let _stopping = stop.wait_for(|stop| *stop).await;
    }
}

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot {doing} {}: {error}; name another directory with --data or mend its rights", path.display())]
    Data {
        /// A verb: read, write, make.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// TLS key, certificate or setup.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The setup file holds something else.
    #[error(
        "{} is not an OPAQUE setup; restore it from its backup (without it no credential of this record works)",
        .0.display()
    )]
    Setup(PathBuf),
    /// There is a record but no setup. Making a new one would lock everybody out.
    #[error(
        "{} is missing, but there is a record: restore it from its backup (without it no credential of this record works), or move the record away to begin anew",
        .0.display()
    )]
    SetupLost(PathBuf),
    /// The record.
    #[error(transparent)]
    Record(#[from] OpenError),
    /// The record, once open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsFault),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {error}; is another server running there? ({flag} takes another)"
    )]
    Listen {
        /// Which setting names its port.
        flag: &'static str,
        /// Which.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
    /// No invite for the owner could be made.
    #[error("the owner's invite could not be made")]
    OwnerInvite,
}

impl From<Failed> for StartError {
    fn from(Failed { doing, path, error }: Failed) -> Self {
        Self::Data { doing, path, error }
    }
}

/// Makes the directory of a server that is to be, and those above it, so that they survive a power
/// cut; for whoever wants to write a log there before [`Server::start`].
///
/// # Errors
/// [`StartError::Data`].
pub fn make_data_directory(path: &Path) -> Result<(), StartError> {
    Ok(private::make_directory(path)?)
}

/// A running server. Dropping it drops its lines; [`Server::shutdown`] ends them in order.
pub struct Server {
    shared: Arc<Shared>,
    identity: Arc<Mutex<Identity>>,
    address: SocketAddr,
    public: Address,
    owner_invite: Option<InviteLink>,
    /// Accepts, and waits for every line to end.
    accepting: JoinSet<()>,
    /// What goes on for as long as the server does.
    upkeep: JoinSet<()>,
    _doors: Doors,
}

impl Server {
    /// Opens or makes identity and record, and listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let data = config.data.clone();
        private::make_directory(&data)?;
        let (identity, setup) = open_identity(&config)?;
        let store = open_store(&config, &setup)?;
        let (listener, address) = listen("--port", config.listen).await?;
        let lines = listen_if("--classic-port", config.classic.lines).await?;
        let origin = listen_if("--origin-port", config.classic.origin).await?;
        let public = match &config.public {
            Some(public) => public.clone(),
            None => public_address(address),
        };
        let limits = &config.limits;
        let disk = LocalDisk::open(data.join("files"), limits.disk_reserve)?;
        let files = Files::new(Box::new(disk), store.clone(), limits);
        let tls = ServerTls::new(identity.certificate())?;
        let (doors, door) = Doors::open().map_err(StartError::Threads)?;
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
            accounts: Accounts::new(limits),
            text_room: TextRoom::new(data, limits.text_reserve),
            barred: Barred::default(),
            hub: Arc::new(Hub::default()),
            stop: watch::Sender::new(false),
            config,
            store,
            setup,
        });
        // Nobody but the key's owner vouches for a certificate that names itself as its issuer.
        let pin = identity.certificate().is_self_issued() && !shared.config.behind_proxy;
        let pin = pin.then(|| identity.pin());
        let owner_invite = owner::invite(&shared, &public, pin).await?;
        let identity = Arc::new(Mutex::new(identity));
        let mut upkeep = JoinSet::new();
        upkeep.spawn(publish(shared.clone(), shared.store.watch()));
        upkeep.spawn(renew(shared.clone(), identity.clone()));
        let files = shared.files.clone();
        upkeep.spawn(async move { files.upkeep().await });
        let barred = shared.clone();
        upkeep.spawn(async move { barred.barred.upkeep(&*barred.store).await });
        let mut accepting = JoinSet::new();
        shared.door.spawn(&mut accepting, accept(shared.clone(), listener, session::serve));
        if let Some((listener, address)) = lines {
            tracing::info!(%address, "listening for classic lines");
            let lines = accept(shared.clone(), listener, classic::serve_lines);
            shared.door.spawn(&mut accepting, lines);
        }
        if let Some((listener, address)) = origin {
            tracing::warn!(%address, "listening for the origin's clients, without integrity");
            let origin = accept(shared.clone(), listener, classic::serve_origin);
            shared.door.spawn(&mut accepting, origin);
        }
        tracing::info!(%address, key = %shared.setup.server_key(), "listening");
        Ok(Self {
            shared,
            identity,
            address,
            public,
            owner_invite,
            accepting,
            upkeep,
            _doors: doors,
        })
    }

    /// Where it listens; the real port where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for classic lines, if it does.
    #[must_use]
    pub fn classic_addr(&self) -> Option<SocketAddr> {
        self.shared.classic.lines.address
    }

    /// Where it listens for the origin's clients, if it does.
    #[must_use]
    pub fn origin_addr(&self) -> Option<SocketAddr> {
        self.shared.classic.origin.address
    }

    /// How many classic lines and connections of the origin's clients there are.
    #[must_use]
    pub fn classic_connections(&self) -> usize {
        self.shared.classic.connections()
    }

    /// What invite links name.
    #[must_use]
    pub fn public_address(&self) -> &Address {
        &self.public
    }

    /// Who the server is.
    #[must_use]
    pub fn server_key(&self) -> ServerKey {
        self.shared.setup.server_key()
    }

    /// What pinning clients know TLS by now.
    #[must_use]
    pub fn tls_pin(&self) -> TlsPin {
        self.shared.tls.spki_pin()
    }

    /// The owner's invite, if this start made it: it is told once.
    #[must_use]
    pub fn owner_invite(&self) -> Option<&InviteLink> {
        self.owner_invite.as_ref()
    }

    /// Forgets it, once it has been shown: it is a secret.
    pub fn forget_owner_invite(&mut self) {
        self.owner_invite = None;
    }

    /// How many lines are logged in.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.shared.hub.count()
    }

    /// Erases an entry: its salt and body, and of a file the content, unless another entry refers
    /// to it. `false`: there is no such entry, or it is erased already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn erase(&self, conversation: ConversationId, n: u64) -> Result<bool, StoreError> {
        self.shared.files.erase(conversation, n).await
    }

    /// All that a server does from HELLO to CHALLENGE, of a client at 127.0.0.1; `None`:
    /// it answers with an ERROR, or not at all. For tests that measure whether it takes as long for
    /// everybody.
    #[doc(hidden)]
    pub async fn answer_hello(&self, hello: &[u8]) -> Option<(AwaitProof, Vec<u8>)> {
        let origin = Origin::of(std::net::Ipv4Addr::LOCALHOST.into());
        let asked = session::ask(&self.shared, hello, Some(origin)).await.ok()?;
        // Such a test asks for the same names over and over.
        self.shared.guesses.give_back(asked.taken);
        if let Some(device) = asked.device {
            self.shared.devices.give_back(&device);
        }
        Some((asked.state, asked.challenge))
    }

    /// All that a server does from the first line of a classic client on to the keys of its lines.
    /// As [`Server::answer_hello`].
    #[doc(hidden)]
    pub async fn hear_classic(&self, heard: Heard) -> Option<Lines> {
        classic::hear(&self.shared, heard).await
    }

    /// Reads the certificate anew (SIGHUP). Live lines stay. Blocks on two small files.
    ///
    /// # Errors
    /// [`IdentityError`]: the old one goes on.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate = identity.reload(SystemTime::now())?;
        self.shared.tls.reload(certificate);
        tracing::info!(pin = %self.shared.tls.spki_pin(), "certificate reloaded");
        Ok(())
    }

    /// Ends in order: takes no more connections, drops those that are not logged in, lets every
    /// append that was taken be recorded and acknowledged, tells every line when to come back
    /// (CLOSE 8), and closes the record.
    ///
    /// # Errors
    /// [`StoreError`] if the record cannot be closed cleanly; nothing acknowledged is lost then
    /// either.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        tracing::info!(lines = self.shared.hub.count(), "shutting down");
        self.shared.stop.send_replace(true);
        self.shared.hub.close_all(CloseCode::Shutdown);
        let ended = async { while self.accepting.join_next().await.is_some() {} };
        if timeout(self.shared.config.drain, ended).await.is_err() {
            tracing::warn!(lines = self.shared.hub.count(), "lines were dropped");
        }
        self.accepting.shutdown().await;
        self.upkeep.shutdown().await;
        self.shared.store.close().await
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
        names: config.public.iter().map(|a| a.bare_host().to_owned()).collect(),
        own: config.own_files.clone(),
    };
    let new_setup = || ServerSetup::generate(&mut OsEntropy).to_bytes();
    let dir = identity_dir(&config.data);
    // The setup is made before the record, so no crash leaves a record alone.
    if exists(&record_path(&config.data))? && !exists(&setup_path(&config.data))? {
        return Err(StartError::SetupLost(setup_path(&config.data)));
    }
    let identity = Identity::open_or_create(&dir, options, SystemTime::now(), new_setup)?;
    let setup = ServerSetup::from_bytes(identity.setup_bytes())
        .map_err(|_| StartError::Setup(setup_path(&config.data)))?;
    Ok((identity, setup))
}

fn open_store(config: &Config, setup: &ServerSetup) -> Result<Arc<dyn Store>, StartError> {
    let options = twinlock_store::Options::new(setup.server_key(), setup.row_key());
    let options = options.bounds(config.limits.bounds);
    Ok(SqliteStore::open(&record_path(&config.data), options)?)
}

fn exists(path: &Path) -> Result<bool, StartError> {
    Ok(path.try_exists().map_err(private::failed("read", path))?)
}

/// What a client on this machine, or on the network the server listens on, can use.
fn public_address(listening: SocketAddr) -> Address {
    let ip = listening.ip();
    let host = if ip.is_unspecified() { "localhost".to_owned() } else { ip.to_string() };
    Address::new(&host, listening.port()).unwrap_or_else(|_| unreachable_address())
}

/// An IP address and the port of a bound socket always make an address.
fn unreachable_address() -> Address {
    #[allow(clippy::expect_used)]
    Address::new("localhost", 8443).expect("a constant")
}

async fn listen(
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen { flag, address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

async fn listen_if(
    flag: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    match address {
        Some(address) => listen(flag, address).await.map(Some),
        None => Ok(None),
    }
}

/// Accepts until told to stop, then waits for every line to end. The sockets are the lines', this
/// itself is not.
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
                    tracing::error!(%error, "a line's task failed");
                }
            }
            () = &mut stopping => break,
        }
    }
    drop(listener);
    while lines.join_next().await.is_some() {}
}

/// Carries commits from the store to the followers.
async fn publish(shared: Arc<Shared>, mut commits: broadcast::Receiver<Arc<[Published]>>) {
    loop {
        match commits.recv().await {
            Ok(published) => shared.hub.topics.publish(&published),
            Err(broadcast::error::RecvError::Lagged(_)) => shared.hub.topics.missed(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Renews a self-made certificate in time, and warns of the end of another.
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
