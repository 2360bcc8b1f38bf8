//! From an address to a connection on which both ends have sent READY.
//!
//! The steps, each a function: name and TCP, TLS, transport, login and READY.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::ServerKey;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::proto;
use twinlock_core::session::{Binding, BindingPolicy, SessionConfig, SessionEvent};
use twinlock_transport::connection::{Connection, ConnectionError};
use twinlock_transport::forward_proxy::{self, ProxyFault};
use twinlock_transport::login::{LoginError, login};
use twinlock_transport::stream::{Carrier, SessionStream};
use twinlock_transport::tls::{self, Alpn, ClientTls, ServerTrust, TlsFacts, TlsFault};
use twinlock_transport::websocket::connect::UpgradeFault;
use twinlock_transport::websocket::{self, WebSocket};

use crate::delays::Delays;
use crate::error::{ClientError, closed};
use crate::profile::{Profile, TlsTrust};
use crate::race::{interleaved, race};
use crate::route::{ClientTransport, Route, TransportChoice};
use crate::via::ForwardProxy;

/// Timeout for TCP, over all addresses of a name.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Timeout for the TLS handshake.
const TLS_DEADLINE: Duration = Duration::from_secs(10);
/// Timeout for the HTTP upgrade.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// What to do about a proxy that wants a user name and password.
const WANTS_LOGIN: &str = "; --via-auth-file FILE, or HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, has \
     them (NTLM and Negotiate do not work here)";
/// What to do about a proxy that refuses the server's port.
const REFUSES_PORT: &str =
    "; many proxies allow port 443 only, so the server needs to be reachable there";
/// The port that a Host field need not name.
const HTTPS: u16 = 443;
/// Timeout from PROOF to the server's READY.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// First and maximum delay between requests for a connection slot. A slot is occupied during a
/// login, some ms, or until the server's deadline of 5 s.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What bytes travel on before a session.
type ClientCarrier = Carrier<TlsStream<TcpStream>>;
/// The stream under a session.
pub type ClientStream = SessionStream<ClientCarrier>;

/// The parameters of connections to a server.
#[derive(Debug, Clone)]
pub struct Connector {
    address: Address,
    tls: ClientTls,
    pin: Option<ServerKey>,
    binding: BindingPolicy,
    timing: Timing,
    route: Route,
}

/// A ready session, and its properties.
pub struct ReadySession {
    /// The connection, on which both ends have sent READY.
    pub connection: Connection<ClientStream>,
    /// The server's READY.
    pub info: proto::ServerInfo,
    /// The result of the channel binding.
    pub binding: Binding,
    /// The parameters of TLS; without TLS, all unknown.
    pub tls: TlsFacts,
    /// The transport.
    pub transport: ClientTransport,
}

/// A connection up to the end of TLS.
struct CarriedStream {
    carrier: ClientCarrier,
    tls: TlsFacts,
    exporter: Option<[u8; 32]>,
    /// The session's bytes travel in a WebSocket.
    http: bool,
}

/// A connection on which HELLO is due.
struct OpenedStream {
    stream: ClientStream,
    tls: TlsFacts,
    /// The tls-exporter value; `None` without TLS.
    exporter: Option<[u8; 32]>,
}

impl Connector {
    /// Creates the parameters. With [`ServerTrust::Ca`] this reads the system's root certificates.
    pub(crate) fn new(
        address: Address,
        trust: ServerTrust,
        pin: Option<ServerKey>,
        binding: BindingPolicy,
        timing: Timing,
    ) -> Result<Self, ClientError> {
        let tls =
            ClientTls::new(trust, Alpn::Any).map_err(|e| ClientError::Authority(e.to_string()))?;
        Ok(Self { address, tls, pin, binding, timing, route: Route::default() })
    }

    /// The same with another reaction to TLS interception.
    #[must_use]
    pub(crate) fn requiring(self, binding: BindingPolicy) -> Self {
        Self { binding, ..self }
    }

    /// The same by this route.
    #[must_use]
    pub fn over(self, route: Route) -> Self {
        let offer = match route.transport {
            TransportChoice::Tls => Alpn::Direct,
            TransportChoice::WebSocket => Alpn::Http,
            TransportChoice::Auto | TransportChoice::Plain => Alpn::Any,
        };
        Self { tls: self.tls.offering(offer), route, ..self }
    }

    /// Takes the parameters of a profile, or of the same server at another address. The profile's
    /// `rekey-after` overrides that of `timing`.
    ///
    /// # Errors
    /// [`ClientError`] if the profile cannot be used.
    pub fn of(
        profile: &Profile,
        address: Option<Address>,
        timing: Timing,
    ) -> Result<Self, ClientError> {
        if profile.min_version() > VERSION {
            return Err(ClientError::Outdated(profile.min_version()));
        }
        let trust = trust_of_profile(profile)?;
        let key = Some(*profile.server_key());
        let address = address.map_or_else(|| profile_address(profile), Ok)?;
        let rekey_after = profile.rekey_after().unwrap_or(timing.rekey_after);
        Self::new(address, trust, key, profile.binding(), Timing { rekey_after, ..timing })
    }

    /// The server's address.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Connects, logs in, and waits for the server's READY.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn open(
        &self,
        credential: impl Into<Arc<Credential>>,
        info: &proto::ClientInfo,
    ) -> Result<ReadySession, ClientError> {
        self.attempt(credential, info).await.map_err(|fault| self.error_of(fault))
    }

    /// [`Self::open`] with the step that failed.
    pub(crate) async fn attempt(
        &self,
        credential: impl Into<Arc<Credential>>,
        info: &proto::ClientInfo,
    ) -> Result<ReadySession, OpenFault> {
        let OpenedStream { stream, tls, exporter } =
            self.connect().await.map_err(OpenFault::Connect)?;
        let transport = ClientTransport::of(&stream);
        let config = SessionConfig {
            binding: self.binding,
            exporter: exporter.filter(|_| self.binding != BindingPolicy::Off),
            info: info.encode_to_vec(),
            max_version: VERSION,
            timing: self.timing.clone(),
        };
        let mut connection =
            login(stream, credential, self.pin, config).await.map_err(OpenFault::Login)?;
        let ready = timeout(READY_DEADLINE, ready(&mut connection)).await;
        match ready.unwrap_or(Err(NotReady::Late)) {
            Ok((info, binding)) => {
                let binding =
                    judge(binding, transport, info.transport(), self.tls.is_pinned(tls.peer_pin));
                Ok(ReadySession { connection, info, binding, tls, transport })
            }
            Err(error) => {
                if !error.is_closed() {
                    connection.finish().await;
                }
                Err(OpenFault::Ready(error))
            }
        }
    }

    /// The error to report.
    pub(crate) fn error_of(&self, fault: OpenFault) -> ClientError {
        match fault {
            OpenFault::Connect(error) => error,
            OpenFault::Login(LoginError::Io(error)) if is_closed(&error) => self.not_admitted(),
            OpenFault::Login(error) => error.into(),
            OpenFault::Ready(error) if error.is_closed() => self.not_admitted(),
            OpenFault::Ready(error) => error.into(),
        }
    }

    /// [`Self::open`] with retries while the server has no free slot, for at most `patience`.
    pub(crate) async fn open_when_free(
        &self,
        credential: Credential,
        info: &proto::ClientInfo,
        patience: Duration,
    ) -> Result<ReadySession, ClientError> {
        let credential = Arc::new(credential);
        let until = Instant::now() + patience;
        let mut delays = Delays::between(AGAIN.0, AGAIN.1);
        loop {
            match self.open(credential.clone(), info).await {
                Err(error) if error.wants_a_slot() => {
                    let delay = delays.after(false, &error, None);
                    if Instant::now() + delay >= until {
                        return Err(error);
                    }
                    tracing::info!(%error, "trying again");
                    sleep(delay).await;
                }
                opened => return opened,
            }
        }
    }

    fn not_admitted(&self) -> ClientError {
        ClientError::NotAdmitted { address: self.address.clone() }
    }

    /// Whether TLS accepts the server at this address.
    pub(crate) async fn is_trusted(&self) -> bool {
        self.connect().await.is_ok()
    }

    fn unreachable(&self, problem: impl Into<String>) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), problem: problem.into() }
    }

    /// A stream on which HELLO is due. The addresses of the server's name, or of the proxy's, race to
    /// the end of TLS; HELLO costs the server more and is sent once.
    async fn connect(&self) -> Result<OpenedStream, ClientError> {
        let proxy = self.route.via.proxy_for(&self.address)?;
        let is_plain = self.route.transport == TransportChoice::Plain;
        if is_plain && self.binding == BindingPolicy::Require {
            return Err(ClientError::TlsCut);
        }
        if proxy.is_some() && is_plain {
            return Err(ClientError::PlainBeyondMachine(self.address.clone()));
        }
        let addresses = self.resolve(proxy.as_ref()).await?;
        let attempt = |to| self.carrier(to, proxy.as_ref());
        let carried = race(addresses, attempt).await.map_err(|errors| self.main_error(errors))?;
        let CarriedStream { carrier, tls, exporter, http } = carried;
        let stream = if http {
            SessionStream::WebSocket(Box::new(self.web_socket(carrier).await?))
        } else {
            SessionStream::Direct(carrier)
        };
        Ok(OpenedStream { stream, tls, exporter })
    }

    /// The addresses of the proxy or the server. If the transport is plain, they are this machine's.
    async fn resolve(&self, proxy: Option<&ForwardProxy>) -> Result<Vec<SocketAddr>, ClientError> {
        let of = proxy.map_or(&self.address, |proxy| &proxy.address);
        let looking = timeout(CONNECT_DEADLINE, lookup_host((of.bare_host(), of.port())));
        let found = match looking.await {
            Ok(Ok(found)) => interleaved(found),
            Ok(Err(error)) => {
                let problem = format!("its name cannot be resolved: {error}");
                return Err(self.no_way_to(proxy, problem));
            }
            Err(_) => {
                return Err(self.no_way_to(proxy, "its name is not resolved in time".to_owned()));
            }
        };
        let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        if self.route.transport == TransportChoice::Plain && !found.iter().all(is_local) {
            return Err(ClientError::PlainBeyondMachine(self.address.clone()));
        }
        Ok(found)
    }

    /// The error for an end of TCP that cannot be reached: the server or a proxy.
    fn no_way_to(&self, proxy: Option<&ForwardProxy>, problem: String) -> ClientError {
        match proxy {
            None => self.unreachable(problem),
            Some(proxy) => ClientError::Proxy {
                proxy: proxy.to_string(),
                address: self.address.clone(),
                problem: format!("it cannot be reached: {problem}"),
                hint: "",
            },
        }
    }

    /// The error to report for several attempts: one about the server's identity before one about
    /// reaching it.
    fn main_error(&self, errors: Vec<ClientError>) -> ClientError {
        let rank = |error: &ClientError| match error {
            ClientError::Distrusted(_) | ClientError::TlsCut => 0,
            ClientError::NotAdmitted { .. } => 1,
            _ => 2,
        };
        let main = errors.into_iter().min_by_key(rank);
        main.unwrap_or_else(|| self.unreachable("its name has no address"))
    }

    /// Connects to an address, and through the proxy there, up to the end of TLS.
    async fn carrier(
        &self,
        to: SocketAddr,
        proxy: Option<&ForwardProxy>,
    ) -> Result<CarriedStream, ClientError> {
        let tcp = self.tcp(to, proxy).await?;
        let tcp = match proxy {
            Some(proxy) => self.tunnel(tcp, proxy).await?,
            None => tcp,
        };
        let (carrier, facts, exporter, http) = match self.route.transport {
            TransportChoice::Plain => (Carrier::Plain(tcp), TlsFacts::default(), None, false),
            choice => {
                let tls = self.tls(tcp).await?;
                let connection = tls.get_ref().1;
                let selected = tls::selected_http(connection) == Some(true);
                let http = selected || choice == TransportChoice::WebSocket;
                let exporter = tls::channel_binding(connection).ok();
                let facts = TlsFacts::of(connection);
                (Carrier::Tls(tls), facts, exporter, http)
            }
        };
        Ok(CarriedStream { carrier, tls: facts, exporter, http })
    }

    async fn tcp(
        &self,
        to: SocketAddr,
        proxy: Option<&ForwardProxy>,
    ) -> Result<TcpStream, ClientError> {
        let tcp = match timeout(CONNECT_DEADLINE, TcpStream::connect(to)).await {
            Ok(Err(error)) if is_closed(&error) && proxy.is_none() => {
                return Err(self.not_admitted());
            }
            Ok(tcp) => tcp.map_err(|error| self.no_way_to(proxy, error.to_string()))?,
            Err(_) => return Err(self.no_way_to(proxy, "no answer".to_owned())),
        };
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        Ok(tcp)
    }

    /// Asks a proxy for a connection to the server.
    async fn tunnel(&self, tcp: TcpStream, proxy: &ForwardProxy) -> Result<TcpStream, ClientError> {
        let ForwardProxy { protocol, login, .. } = proxy;
        let failed = |problem: String, hint| ClientError::Proxy {
            proxy: proxy.to_string(),
            address: self.address.clone(),
            problem,
            hint,
        };
        let server = (self.address.host(), self.address.port());
        let tunnel = forward_proxy::tunnel(tcp, *protocol, login.as_ref(), server);
        match timeout(CONNECT_DEADLINE, tunnel).await {
            Ok(tunnel) => tunnel.map_err(|fault| {
                let hint = match &fault {
                    ProxyFault::WantsLogin { .. } | ProxyFault::LoginRefused => WANTS_LOGIN,
                    ProxyFault::Status(403 | 405) => REFUSES_PORT,
                    _ => "",
                };
                failed(fault.to_string(), hint)
            }),
            Err(_) => Err(failed("it does not answer".to_owned(), "")),
        }
    }

    async fn tls(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, ClientError> {
        let connecting = self.tls.connect(self.address.bare_host(), tcp);
        let stream = match timeout(TLS_DEADLINE, connecting).await {
            Ok(stream) => stream.map_err(|fault| match fault {
                TlsFault::Io(error) if is_closed(&error) => self.not_admitted(),
                fault => ClientError::tls(&fault, &self.address),
            })?,
            Err(_) => return Err(self.unreachable("the TLS handshake took too long")),
        };
        let shown = TlsFacts::of(stream.get_ref().1).peer_pin;
        // The profile accepts no end of TLS but the server's.
        if self.tls.is_pinned(shown) == Some(false) && self.binding == BindingPolicy::Require {
            return Err(ClientError::TlsCut);
        }
        Ok(stream)
    }

    /// Upgrades to WebSocket.
    async fn web_socket(
        &self,
        carrier: ClientCarrier,
    ) -> Result<WebSocket<ClientCarrier>, ClientError> {
        let authority = authority(&self.address);
        let upgrading = websocket::connect::connect(carrier, &authority, self.address.path());
        match timeout(UPGRADE_DEADLINE, upgrading).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(UpgradeFault::Io(error))) if is_closed(&error) => Err(self.not_admitted()),
            Ok(Err(fault)) => Err(self.unreachable(format!(
                "TLS works, but the other end does not open a WebSocket at {}: {fault}",
                self.address.path()
            ))),
            Err(_) => Err(self.unreachable("the WebSocket upgrade took too long")),
        }
    }
}

/// What is known about TLS, with what both ends know of the transport. Without TLS at one end, and at
/// an end of TLS that does not have the pinned key, it is known to be cut.
fn judge(
    binding: Binding,
    here: ClientTransport,
    there: proto::Transport,
    is_pinned: Option<bool>,
) -> Binding {
    let plain_there = matches!(there, proto::Transport::Plain | proto::Transport::PlainWebsocket);
    match binding {
        Binding::Unknown
            if plain_there || here == ClientTransport::Plain || is_pinned == Some(false) =>
        {
            Binding::Cut
        }
        binding => binding,
    }
}

/// The Host field for a server.
pub(crate) fn authority(address: &Address) -> String {
    // RFC 9110: the default port of https is left out, and a scope is valid on this machine only.
    let (host, port) = (address.host(), address.port());
    let host = match host.split_once('%') {
        Some((host, _)) => format!("{host}]"),
        None => host.to_owned(),
    };
    if port == HTTPS { host } else { format!("{host}:{port}") }
}

/// Whether the peer has closed the connection.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe
    )
}

/// Why there is no session, by the step that failed.
pub(crate) enum OpenFault {
    /// Before HELLO.
    Connect(ClientError),
    /// HELLO to PROOF.
    Login(LoginError),
    /// After PROOF.
    Ready(NotReady),
}

/// Why a session did not get the server's READY.
pub(crate) enum NotReady {
    Connection(ConnectionError),
    Closed(CloseCode),
    Unreadable,
    Late,
}

impl NotReady {
    /// Whether the server has closed the connection without a word.
    fn is_closed(&self) -> bool {
        matches!(self, Self::Connection(ConnectionError::Cut(error))
            if error.as_ref().is_none_or(is_closed))
    }
}

impl From<ConnectionError> for NotReady {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<NotReady> for ClientError {
    fn from(error: NotReady) -> Self {
        match error {
            NotReady::Connection(error) => error.into(),
            NotReady::Closed(code) => closed(code),
            NotReady::Unreadable => Self::Protocol("its READY cannot be read"),
            NotReady::Late => Self::Lost("the server did not get ready in time".to_owned()),
        }
    }
}

async fn ready(
    connection: &mut Connection<ClientStream>,
) -> Result<(proto::ServerInfo, Binding), NotReady> {
    loop {
        connection.wait(None).await?;
        match connection.open_frame()? {
            SessionEvent::Ready { info, binding } => {
                let info = proto::ServerInfo::decode(info).map_err(|_| NotReady::Unreadable)?;
                return Ok((info, binding));
            }
            SessionEvent::Closed(code) => return Err(NotReady::Closed(code)),
            _ => {}
        }
    }
}

/// The address of a profile's server.
///
/// # Errors
/// [`ClientError::NoAddress`] if the profile's host is neither a name nor an address.
pub fn profile_address(profile: &Profile) -> Result<Address, ClientError> {
    Address::new(profile.host(), profile.port())
        .and_then(|address| address.with_path(profile.path()))
        .map_err(|_| ClientError::NoAddress(profile.host().to_owned()))
}

/// The trust in TLS that a profile states.
pub(crate) fn trust_of_profile(profile: &Profile) -> Result<ServerTrust, ClientError> {
    Ok(match profile.tls() {
        TlsTrust::Pins(pins) => ServerTrust::Pins(pins),
        TlsTrust::Ca { file } => ServerTrust::Ca { extra_roots: roots(file.as_deref())? },
    })
}

/// The trust in TLS that an invite link states.
pub(crate) fn trust_of_link(link: &InviteLink) -> ServerTrust {
    match link.tls_pin {
        Some(pin) => ServerTrust::Pins(vec![pin]),
        None => ServerTrust::Ca { extra_roots: Vec::new() },
    }
}

pub(crate) fn roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let cannot = |error: rustls::pki_types::pem::Error| {
        ClientError::Authority(format!("{}: {error}", file.display()))
    };
    let roots = CertificateDer::pem_file_iter(file).map_err(cannot)?;
    let roots: Vec<_> = roots.collect::<Result<_, _>>().map_err(cannot)?;
    if roots.is_empty() {
        let words = format!("{}: the file has no certificate in PEM form", file.display());
        return Err(ClientError::Authority(words));
    }
    Ok(roots)
}
