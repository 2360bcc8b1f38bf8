//! One connection from accept to end: TLS, limits, the handshake, then the session. One task owns
//! all of it.

pub(crate) mod appends;
mod follow;
mod intake;
mod line;
mod out;
pub(crate) mod refusal;
mod register;
pub(crate) mod requests;
mod step_up;
mod transfers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::handshake::{AwaitProof, Established, HelloFault};
use twinlock_core::id::{CredentialId, DeviceId, Name};
use twinlock_core::limits::{MAX_TEXT, VERSION};
use twinlock_core::opaque::RECORD;
use twinlock_core::proto;
use twinlock_core::session::{BindingPolicy, SessionConfig};
use twinlock_store::{Credential, Holder, LoginMethod, LookedUp, StoreError};
use twinlock_transport::login::{Acceptor, LoginError, parse_hello};
use twinlock_transport::{OsEntropy, proxy, tls};

use crate::convert::{self, copy};
use crate::hub::Owner;
use crate::limits::Origin;
use crate::limits::census::Majority;
use crate::limits::guess::{Guess, Taken, Wait};
use crate::limits::slots::{Eviction, Limit, Permit, Rank, Slots};
use crate::limits::throttle::log_fault;
use crate::server::Shared;

use line::Serving;
pub(crate) use requests::make_invite;

/// Seconds after which a client retries when no handshake permit is free.
const BUSY_SECONDS: u16 = 2;
/// How long a login waits for a permit before it is refused.
const QUEUE: Duration = Duration::from_secs(2);
/// Timeout for a peer that answers nothing, not even TCP keep-alive probes.
const UNANSWERED: Duration = Duration::from_secs(60);
/// Minimum interval between warnings that most connections come from one address.
const MAJORITY: Duration = Duration::from_secs(60 * 60);
/// Names of limits that have no setting, for the log.
pub(crate) const TLS_DEADLINE: Limit = "time for TLS";
const PROXY_DEADLINE: Limit = "time for a PROXY header";
const LOGIN_DEADLINE: Limit = "time for HELLO or PROOF";

type Stream = TlsStream<TcpStream>;

/// Serves one connection to its end.
pub(crate) fn serve(
    shared: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    let slot = take_slot(&shared, &shared.slots, peer);
    async move {
        let Some(slot) = slot else { return };
        // Boxed, so that an established session keeps no memory for its login.
        let serving = tokio::select! {
            serving = Box::pin(admit(&shared, socket, peer, slot)) => serving,
            () = shared.stopping() => None,
        };
        drop(shared);
        if let Some(serving) = serving {
            serving.run().await;
        }
    }
}

/// Takes a slot for a connection, and counts it for its address unless a PROXY header follows.
///
/// Runs at accept, not in the connection's task: tasks start in any order, and the oldest
/// connection must be the one that is evicted.
pub(crate) fn take_slot(
    shared: &Shared,
    slots: &Slots,
    peer: SocketAddr,
) -> Option<(Permit, Eviction)> {
    let origin = direct_origin(shared, peer);
    if let Some(origin) = origin.filter(|_| shared.config.proxies.is_empty()) {
        warn_of_a_majority(shared, origin);
    }
    let entered = slots.enter(Instant::now()).and_then(|(permit, eviction)| {
        if let Some(origin) = origin {
            permit.comes_from(origin)?;
        }
        Ok((permit, eviction))
    });
    match entered {
        Ok(slot) => Some(slot),
        Err(limit) => {
            shared.throttle.closed_by(limit, peer);
            None
        }
    }
}

/// Does everything up to the session. `None`: refused; the client was answered and the log written.
async fn admit(
    shared: &Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    // Held until the login is complete.
    (permit, mut eviction): (Permit, Eviction),
) -> Option<Box<Serving<Stream>>> {
    let arrived = tokio::select! {
        arrived = shared.door.run(arrive(shared.clone(), socket, peer, permit)) => arrived??,
        limit = eviction.wait() => {
            shared.throttle.closed_by(limit, peer);
            return None;
        }
    };
    enter(shared, arrived).await
}

/// A completed login, with its slot still held.
struct Arrived {
    greeter: Acceptor<Stream>,
    login: Login,
    exporter: Option<[u8; 32]>,
    peer: SocketAddr,
    origin: Option<Origin>,
    _permit: Permit,
}

/// TLS and the handshake.
async fn arrive(
    shared: Arc<Shared>,
    mut socket: TcpStream,
    peer: SocketAddr,
    permit: Permit,
) -> Option<Arrived> {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    if let Err(error) = keep_alive(&socket) {
        tracing::debug!(%peer, %error, "no TCP keep-alive");
    }
    let (origin, peer) = match origin(&shared, &mut socket, peer).await {
        Ok(origin) => origin,
        Err(error) => {
            no_origin(&shared, peer, &error);
            return None;
        }
    };
    // Without an origin (behind a proxy that names none) only the total limit applies.
    if let Some(origin) = origin
        && let Err(limit) = permit.comes_from(origin)
    {
        shared.throttle.closed_by(limit, peer);
        return None;
    }
    let accepted = timeout(shared.config.limits.tls_deadline, shared.tls.accept(socket)).await;
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no TLS");
            return None;
        }
        Err(_) => {
            shared.throttle.closed_by(TLS_DEADLINE, peer);
            return None;
        }
    };
    let exporter = tls::channel_binding(stream.get_ref().1).ok();
    let mut greeter = Acceptor::new(stream);
    match log_in(&shared, &mut greeter, origin, &permit).await {
        Ok(login) => Some(Arrived { greeter, login, exporter, peer, origin, _permit: permit }),
        Err(Refusal::Limit(limit, code)) => {
            shared.throttle.closed_by(limit, peer);
            greeter.refuse(code).await;
            None
        }
        Err(Refusal::Drop(LoginError::Timeout)) => {
            shared.throttle.closed_by(LOGIN_DEADLINE, peer);
            None
        }
        Err(Refusal::Answer(code)) => {
            tracing::info!(%peer, %code, "login refused");
            greeter.refuse(code).await;
            None
        }
        Err(Refusal::Drop(error)) => {
            tracing::debug!(%peer, %error, "no login");
            None
        }
    }
}

/// Makes the system end a connection whose peer answers nothing for [`UNANSWERED`], even while the
/// server reads nothing from it and therefore sees no PONG.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    // Idle for half of the time, then three probes in the other half.
    let probes = UNANSWERED / 6;
    sockopt::set_tcp_keepidle(socket, UNANSWERED / 2)?;
    sockopt::set_tcp_keepintvl(socket, probes)?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_socket_keepalive(socket, true)?;
    // While bytes are unacknowledged the system sends no probes; this timeout applies instead.
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(socket, u32::try_from(UNANSWERED.as_millis()).unwrap_or(0))?;
    Ok(())
}

/// The origin whose limits apply, `None` if clients cannot be distinguished; and the client's
/// address for the log.
pub(crate) async fn origin(
    shared: &Shared,
    socket: &mut TcpStream,
    peer: SocketAddr,
) -> Result<(Option<Origin>, SocketAddr), proxy::ProxyError> {
    if sends_proxy_header(shared, peer) {
        let deadline = tokio::time::Instant::now() + shared.config.limits.tls_deadline;
        let client = proxy::read_header(socket, deadline).await?;
        return Ok((client.map(|client| Origin::of(client.ip())), client.unwrap_or(peer)));
    }
    Ok((direct_origin(shared, peer), peer))
}

/// Logs why the origin is unknown.
pub(crate) fn no_origin(shared: &Shared, peer: SocketAddr, error: &proxy::ProxyError) {
    match error {
        proxy::ProxyError::Timeout => shared.throttle.closed_by(PROXY_DEADLINE, peer),
        // A proxy may probe whether the port is open.
        proxy::ProxyError::Io(error) => tracing::debug!(%peer, %error, "no PROXY header"),
        error => {
            if let Some(left_out) = shared.throttle.pass("PROXY header", Instant::now()) {
                tracing::warn!(%peer, %error, left_out, "a proxy sent no PROXY header");
            }
        }
    }
}

fn sends_proxy_header(shared: &Shared, peer: SocketAddr) -> bool {
    shared.config.proxies.contains(&peer.ip().to_canonical())
}

/// The origin of a connection, if its peer's address is the client's.
fn direct_origin(shared: &Shared, peer: SocketAddr) -> Option<Origin> {
    let hidden = shared.config.behind_proxy || sends_proxy_header(shared, peer);
    (!hidden).then(|| Origin::of(peer.ip()))
}

/// Warns if most connections come from one address: behind a proxy without a PROXY header all
/// clients share one address's limits.
fn warn_of_a_majority(shared: &Shared, origin: Origin) {
    if let Some(Majority { origin, count, of }) = shared.census.note(origin)
        && shared.throttle.pass_each("majority", MAJORITY, Instant::now()).is_some()
    {
        tracing::warn!(
            address = %origin,
            "{count} of the last {of} connections came from one address, whose limits they share; \
             if a proxy is there, have it send a PROXY header (version 2) and name it with --proxy"
        );
    }
}

/// A successful login, with the credential that it was checked against.
struct Login {
    established: Established,
    credential: Credential,
}

pub(crate) enum Refusal {
    Answer(ErrorCode),
    /// The same, because of a limit.
    Limit(Limit, ErrorCode),
    Drop(LoginError),
}

impl From<LoginError> for Refusal {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Hello(HelloFault::Answer(code)) => Self::Answer(code),
            error => Self::Drop(error),
        }
    }
}

impl Refusal {
    fn wait(limit: Limit, Wait(seconds): Wait) -> Self {
        Self::Limit(limit, ErrorCode::Busy(seconds))
    }
}

/// The record cannot be read; the answer is the same for every credential.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        log_fault("credentials cannot be read", error);
        Self::Answer(ErrorCode::Busy(BUSY_SECONDS))
    }
}

/// The handshake of section 4, with the limits of section 9 between its steps. Each step is the
/// same whether the credential exists or not.
async fn log_in(
    shared: &Shared,
    greeter: &mut Acceptor<Stream>,
    origin: Option<Origin>,
    permit: &Permit,
) -> Result<Login, Refusal> {
    let payload = greeter.read_hello().await?;
    permit.rise(Rank::Login);
    let Asked { state, challenge, looked_up, taken, device } =
        ask(shared, &payload, origin).await?;
    if device.is_some() {
        permit.rise(Rank::Device);
    }
    let proof = greeter.exchange(&challenge).await?;
    let refused = Refusal::Answer(ErrorCode::Refused);
    let Ok(established) = state.handle_proof(&proof) else { return Err(refused) };
    // No proof succeeds against the fake record.
    let Some(credential) = looked_up.into_credential() else { return Err(refused) };
    shared.guesses.give_back(taken);
    if let Some(device) = device {
        shared.devices.give_back(&device);
    }
    Ok(Login { established, credential })
}

/// A HELLO that the server answers with a CHALLENGE.
pub(crate) struct Asked {
    pub(crate) state: AwaitProof,
    pub(crate) challenge: Vec<u8>,
    looked_up: LookedUp,
    pub(crate) taken: Taken,
    /// The login counts for this existing device and not for its address.
    pub(crate) device: Option<DeviceId>,
}

/// Does the work from HELLO to CHALLENGE.
pub(crate) async fn ask(
    shared: &Shared,
    payload: &[u8],
    origin: Option<Origin>,
) -> Result<Asked, Refusal> {
    let permit = timeout(QUEUE, shared.handshakes.acquire()).await;
    let Ok(Ok(_permit)) = permit else {
        return Err(Refusal::wait("handshakes", Wait(BUSY_SECONDS)));
    };
    let hello = parse_hello(payload)?;
    let id = hello.credential().clone();
    let now = Instant::now();
    let (looked_up, taken, device) = match &id {
        // Looked up first: the login of an existing device does not count for its address.
        CredentialId::Device(device) => {
            let looked_up = look_up(shared, &id).await?;
            let exists = looked_up.record::<RECORD>().is_some();
            let free = shared.devices.take(device, exists, now);
            let taken = shared.guesses.take(None, origin.filter(|_| !free), now);
            let taken = taken.map_err(|wait| Refusal::wait("logins-per-minute", wait))?;
            (looked_up, taken, free.then_some(*device))
        }
        CredentialId::User(user) => {
            let known = is_known(shared, user, origin).await?;
            let guess = Guess { user, source: origin, known };
            let taken = shared.guesses.take(Some(guess), origin, now);
            let taken = taken.map_err(|wait| Refusal::wait("guesses", wait))?;
            (look_up(shared, &id).await?, taken, None)
        }
        CredentialId::Invite(_) => {
            let taken = shared.guesses.take(None, origin, now);
            let taken = taken.map_err(|wait| Refusal::wait("logins-per-minute", wait))?;
            (look_up(shared, &id).await?, taken, None)
        }
    };
    let record = looked_up.record::<RECORD>();
    let challenge = hello.challenge(&shared.setup, record.as_ref(), &mut OsEntropy);
    let (state, challenge) = challenge.map_err(LoginError::Hello)?;
    Ok(Asked { state, challenge, looked_up, taken, device })
}

/// Looks up a credential on the main runtime. A read occupies a connection of the store, so it must
/// not run at the low priority of the handshake runtime.
async fn look_up(shared: &Shared, id: &CredentialId) -> Result<LookedUp, StoreError> {
    let (store, id, now_ms) = (shared.store.clone(), id.clone(), shared.now_ms());
    let read = shared.main.spawn(async move { store.look_up(&id, now_ms).await });
    read.await.map_err(|_| StoreError::Closed)?
}

/// Whether the user has logged in from this address recently. A shared address is never known,
/// because attackers may share it too.
///
/// The cost is the same for every name. Reads on the main runtime, like [`look_up`].
async fn is_known(
    shared: &Shared,
    user: &Name,
    origin: Option<Origin>,
) -> Result<bool, StoreError> {
    let Some(origin) = origin else { return Ok(false) };
    let (store, user, now_ms) = (shared.store.clone(), user.clone(), shared.now_ms());
    let source = origin.bytes();
    let read =
        shared.main.spawn(async move { store.is_known_source(&user, &source, now_ms).await });
    let known = read.await.map_err(|_| StoreError::Closed)??;
    Ok(!hides_many(shared, origin) & known)
}

/// Whether many users share this address. With PROXY headers configured, addresses are the clients'
/// own.
fn hides_many(shared: &Shared, origin: Origin) -> bool {
    shared.config.proxies.is_empty() && shared.guesses.crowd.hides_many(origin)
}

/// Records the source of a successful login.
async fn note_source(shared: &Shared, user: &Name, origin: Option<Origin>, method: LoginMethod) {
    let Some(origin) = origin else { return };
    shared.guesses.crowd.note(origin, user);
    if hides_many(shared, origin) || shared.may_write().is_err() {
        return;
    }
    let noted = shared.store.note_source(user, &origin.bytes(), method, shared.now_ms()).await;
    if let Err(error) = noted {
        log_fault("the source of a login was not noted", error);
    }
}

/// Registers the session of a completed login.
async fn enter(
    shared: &Arc<Shared>,
    Arrived { greeter, login, exporter, peer, origin, _permit }: Arrived,
) -> Option<Box<Serving<Stream>>> {
    let Login { established, credential } = login;
    let sid = established.session_id();
    let id = established.credential().clone();
    let (owner, device) = match (&credential.holder, &id) {
        (Holder::User(person), _) => (Owner::User(person.user.clone()), None),
        (Holder::Device(person, device), _) => (Owner::User(person.user.clone()), Some(*device)),
        (Holder::Invite(_), CredentialId::Invite(id)) => (Owner::Invite(*id), None),
        (Holder::Invite(_), _) => return None,
    };
    let entered = shared.hub.enter(owner, device, (&shared.config.limits).into());
    // Only from here on does a revocation find this session, so earlier ones are checked now.
    let barred = device.is_some_and(|device| shared.barred.has_device(&device));
    let now = look_up(shared, &id).await.map(LookedUp::into_credential);
    let (holder, gone) = match now {
        Ok(Some(now)) if now.record == credential.record && !barred => (now.holder, None),
        Ok(_) => (credential.holder, Some(CloseCode::Revoked)),
        Err(error) => {
            log_fault("credentials cannot be read", error);
            (credential.holder, Some(CloseCode::Internal))
        }
    };
    let config = SessionConfig {
        binding: shared.binding(),
        exporter: exporter.filter(|_| shared.binding() != BindingPolicy::Off),
        info: server_info(shared, &holder).encode_to_vec(),
        max_version: VERSION,
        timing: shared.config.timing.clone(),
    };
    let line = greeter.into_connection(established, config);
    let handle = match (entered, gone) {
        (Ok(handle), None) => handle,
        (Err(code), _) | (_, Some(code)) => {
            if code == CloseCode::Quota {
                shared.throttle.closed_by("sessions-per-device", peer);
            } else {
                tracing::info!(%sid, %peer, %code, "closed");
            }
            line.close(code).await;
            return None;
        }
    };
    let user = match &holder {
        Holder::User(person) => Some((&person.user, LoginMethod::Password)),
        Holder::Device(person, _) => Some((&person.user, LoginMethod::Device)),
        Holder::Invite(_) => None,
    };
    if let Some((user, method)) = user {
        note_source(shared, user, origin, method).await;
    }
    // The rest is logged once the client is ready.
    if let Holder::Device(_, device) = &holder
        && shared.may_write().is_ok()
        && let Err(error) = shared.store.touch_device(device, shared.now_ms()).await
    {
        log_fault("last login not noted", error);
    }
    Serving::new(shared.clone(), handle, line, holder, origin, peer)
}

fn server_info(shared: &Shared, holder: &Holder) -> proto::ServerInfo {
    let mut info = proto::ServerInfo {
        software: concat!("twinlock ", env!("CARGO_PKG_VERSION")).to_owned(),
        time_ms: shared.now_ms(),
        tls_pins: shared.tls_pins(),
        max_text: MAX_TEXT as u32,
        max_in_flight: u32::try_from(shared.config.limits.in_flight).unwrap_or(u32::MAX),
        ..proto::ServerInfo::default()
    };
    match holder {
        Holder::User(person) | Holder::Device(person, _) => {
            info.user = person.user.to_string();
            info.role = convert::role(person.role).into();
            info.password = person.password;
            let public = shared.config.public.as_ref();
            info.public_address = public.map(ToString::to_string).unwrap_or_default();
            if let Holder::Device(_, device) = holder {
                info.device = copy(&device.0);
            }
        }
        Holder::Invite(terms) => {
            info.invite = Some(proto::InviteInfo {
                user: terms.user.as_ref().map(ToString::to_string).unwrap_or_default(),
                role: convert::role(terms.role).into(),
                expires_ms: terms.expires_ms,
            });
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F: Future>(_: fn(Arc<Shared>, TcpStream, SocketAddr) -> F) -> usize {
        size_of::<F>()
    }

    /// There may be ten thousand sessions, and each should cost 18 KiB including TLS and socket.
    #[test]
    fn session__task_and_state_sizes_are_bounded() {
        let task = size(serve);
        let line = size_of::<Serving<Stream>>();
        assert!(task <= 1024 && line <= 3072, "{task} and {line} bytes");
    }
}
