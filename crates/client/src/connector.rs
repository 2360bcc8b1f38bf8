//! From an address to a connection on which both ends have sent READY.
//!
//! The steps, each a function: name and TCP, TLS, transport, login and READY.

mod fault;
mod trust;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;
use twinlock_core::credential::Credential;
use twinlock_core::id::ServerKey;
use twinlock_core::invite::Address;
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::proto;
use twinlock_core::session::{Binding, BindingPolicy, SessionConfig, SessionEvent};
use twinlock_transport::connection::Connection;
use twinlock_transport::forward_proxy;
use twinlock_transport::login::{LoginError, login};
use twinlock_transport::stream::{Carrier, SessionStream};
use twinlock_transport::tls::{self, Alpn, ClientTls, ServerTrust, TlsFacts};
use twinlock_transport::websocket::connect::UpgradeFault;
use twinlock_transport::websocket::{self, WebSocket};

use crate::delays::Delays;
use crate::error::ClientError;
use crate::profile::Profile;
use crate::race::{interleaved, race};
use crate::route::{ClientTransport, Route, TransportChoice};
use crate::via::ForwardProxy;
use fault::is_closed;
pub(crate) use fault::{CarrierFault, NotReady, OpenFault};
pub use trust::profile_address;
pub(crate) use trust::{roots, trust_of_link, trust_of_profile};

/// Timeout for TCP, over all addresses of a name.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Timeout for the TLS handshake.
const TLS_DEADLINE: Duration = Duration::from_secs(10);
/// Timeout for the HTTP upgrade.
pub(crate) const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
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
    /// Replaces what the system's resolver says.
    #[cfg(test)]
    addresses: Option<Vec<SocketAddr>>,
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
pub(crate) struct CarriedStream {
    pub(crate) carrier: ClientCarrier,
    pub(crate) tls: TlsFacts,
    exporter: Option<[u8; 32]>,
    /// What the other end selected: HTTP or not; `None`: nothing.
    pub(crate) selected_http: Option<bool>,
}

/// A connection on which HELLO is due.
struct OpenedStream {
    stream: ClientStream,
    tls: TlsFacts,
    /// The tls-exporter value; `None` without TLS.
    exporter: Option<[u8; 32]>,
    /// The other end of TLS selected no protocol, and no user the transport: HELLO finds out.
    is_guess: bool,
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
        Ok(Self {
            address,
            tls,
            pin,
            binding,
            timing,
            route: Route::default(),
            #[cfg(test)]
            addresses: None,
        })
    }

    /// The same with another reaction to TLS interception.
    #[must_use]
    pub(crate) fn requiring(self, binding: BindingPolicy) -> Self {
        Self { binding, ..self }
    }

    /// The same by this route.
    #[must_use]
    pub fn over(self, route: Route) -> Self {
        Self { tls: self.tls.offering(offer(route.transport)), route, ..self }
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

    /// The reaction to TLS interception.
    pub(crate) fn binding(&self) -> BindingPolicy {
        self.binding
    }

    /// The parameters of TLS.
    pub(crate) fn client_tls(&self) -> &ClientTls {
        &self.tls
    }

    /// The same with another offer of protocols in TLS.
    pub(crate) fn offering(&self, offer: Alpn) -> Self {
        Self { tls: self.tls.offering(offer), ..self.clone() }
    }

    /// The same that accepts any end of TLS, to describe one that is not trusted. Send nothing to it.
    pub(crate) fn trusting_any(&self) -> Option<Self> {
        let tls = ClientTls::new(ServerTrust::Learn, offer(self.route.transport)).ok()?;
        Some(Self { tls, binding: BindingPolicy::Warn, ..self.clone() })
    }

    /// The same with these addresses in place of those of its name.
    #[cfg(test)]
    pub(crate) fn at(self, addresses: Vec<SocketAddr>) -> Self {
        Self { addresses: Some(addresses), ..self }
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
    ///
    /// If the other end selects no protocol and answers HELLO with HTTP, it is an HTTP proxy, and no
    /// server has seen HELLO: a second connection goes on with WebSocket.
    pub(crate) async fn attempt(
        &self,
        credential: impl Into<Arc<Credential>>,
        info: &proto::ClientInfo,
    ) -> Result<ReadySession, OpenFault> {
        let credential = credential.into();
        let opened = self.connect(false).await.map_err(OpenFault::Connect)?;
        let is_guess = opened.is_guess;
        match self.log_in(opened, credential.clone(), info).await {
            Err(OpenFault::Login(LoginError::Header(bad))) if is_guess && bad.is_http() => {
                tracing::debug!("the other end of TLS answers HELLO with HTTP; trying WebSocket");
                let opened = self.connect(true).await.map_err(OpenFault::Connect)?;
                self.log_in(opened, credential, info).await
            }
            ended => ended,
        }
    }

    async fn log_in(
        &self,
        opened: OpenedStream,
        credential: Arc<Credential>,
        info: &proto::ClientInfo,
    ) -> Result<ReadySession, OpenFault> {
        let OpenedStream { stream, tls, exporter, .. } = opened;
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
                Err(OpenFault::Ready(error.with_issuer(tls.issuer)))
            }
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
        self.connect(false).await.is_ok()
    }

    fn unreachable(&self, problem: impl Into<String>) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), problem: problem.into() }
    }

    /// A stream on which HELLO is due. The addresses of the server's name, or of the proxy's, race to
    /// the end of TLS; HELLO costs the server more and is sent once. `is_http`: an end of TLS that
    /// selects no protocol speaks HTTP.
    async fn connect(&self, is_http: bool) -> Result<OpenedStream, ClientError> {
        let proxy = self.proxy().map_err(|fault| self.carrier_error(fault, None))?;
        let proxy = proxy.as_ref();
        let addresses = self.resolve(proxy).await;
        let addresses = addresses.map_err(|fault| self.carrier_error(fault, proxy))?;
        let carried = race(addresses, |to| self.carrier(to, proxy)).await.map_err(|faults| {
            self.main_error(faults.into_iter().map(|fault| self.carrier_error(fault, proxy)))
        })?;
        let CarriedStream { carrier, tls, exporter, selected_http } = carried;
        let is_open = self.route.transport == TransportChoice::Auto && selected_http.is_none();
        let http = match self.route.transport {
            TransportChoice::WebSocket => true,
            _ => selected_http == Some(true) || (is_open && is_http),
        };
        let stream = if http {
            SessionStream::WebSocket(Box::new(self.web_socket(carrier, is_open).await?))
        } else {
            SessionStream::Direct(carrier)
        };
        let is_guess = is_open && !http;
        Ok(OpenedStream { stream, tls, exporter, is_guess })
    }

    /// The proxy on the way to the server.
    pub(crate) fn proxy(&self) -> Result<Option<ForwardProxy>, CarrierFault> {
        let proxy = self.route.via.proxy_for(&self.address).map_err(CarrierFault::Via)?;
        match self.route.transport {
            TransportChoice::Plain if self.binding == BindingPolicy::Require => {
                Err(CarrierFault::Cut(None))
            }
            TransportChoice::Plain if proxy.is_some() => Err(CarrierFault::PlainBeyondMachine),
            _ => Ok(proxy),
        }
    }

    /// The addresses of the proxy or the server. If the transport is plain, they are this machine's.
    pub(crate) async fn resolve(
        &self,
        proxy: Option<&ForwardProxy>,
    ) -> Result<Vec<SocketAddr>, CarrierFault> {
        let of = proxy.map_or(&self.address, |proxy| &proxy.address);
        let looking = timeout(CONNECT_DEADLINE, self.look_up(of)).await;
        let found = looking.map_err(|_| CarrierFault::Name(None))?;
        let found = found.map_err(|error| CarrierFault::Name(Some(error)))?;
        let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        if self.route.transport == TransportChoice::Plain && !found.iter().all(is_local) {
            return Err(CarrierFault::PlainBeyondMachine);
        }
        Ok(found)
    }

    async fn look_up(&self, name: &Address) -> io::Result<Vec<SocketAddr>> {
        #[cfg(test)]
        if let Some(addresses) = &self.addresses {
            return Ok(addresses.clone());
        }
        Ok(interleaved(lookup_host((name.bare_host(), name.port())).await?))
    }

    /// Connects to an address, and through the proxy there, up to the end of TLS.
    pub(crate) async fn carrier(
        &self,
        to: SocketAddr,
        proxy: Option<&ForwardProxy>,
    ) -> Result<CarriedStream, CarrierFault> {
        let tcp = self.tcp(to, proxy).await?;
        if self.route.transport == TransportChoice::Plain {
            let (carrier, tls) = (Carrier::Plain(tcp), TlsFacts::default());
            return Ok(CarriedStream { carrier, tls, exporter: None, selected_http: None });
        }
        let stream = self.tls(tcp).await?;
        let connection = stream.get_ref().1;
        Ok(CarriedStream {
            tls: TlsFacts::of(connection),
            exporter: tls::channel_binding(connection).ok(),
            selected_http: tls::selected_http(connection),
            carrier: Carrier::Tls(stream),
        })
    }

    /// Connects to the server at an address, or through the proxy there.
    pub(crate) async fn tcp(
        &self,
        to: SocketAddr,
        proxy: Option<&ForwardProxy>,
    ) -> Result<TcpStream, CarrierFault> {
        let tcp = timeout(CONNECT_DEADLINE, TcpStream::connect(to)).await;
        let tcp = tcp.map_err(|_| CarrierFault::Tcp(None))?;
        let tcp = tcp.map_err(|error| CarrierFault::Tcp(Some(error)))?;
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let Some(ForwardProxy { protocol, login, .. }) = proxy else { return Ok(tcp) };
        let server = (self.address.host(), self.address.port());
        let tunnel = forward_proxy::tunnel(tcp, *protocol, login.as_ref(), server);
        let tunnel = timeout(CONNECT_DEADLINE, tunnel).await;
        let tunnel = tunnel.map_err(|_| CarrierFault::Proxy(None))?;
        tunnel.map_err(|fault| CarrierFault::Proxy(Some(fault)))
    }

    async fn tls(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, CarrierFault> {
        let connecting = self.tls.connect(self.address.bare_host(), tcp);
        let stream = timeout(TLS_DEADLINE, connecting).await;
        let stream = stream.map_err(|_| CarrierFault::Tls(None))?;
        let stream = stream.map_err(|fault| CarrierFault::Tls(Some(fault)))?;
        let TlsFacts { peer_pin, issuer, .. } = TlsFacts::of(stream.get_ref().1);
        // The profile accepts no end of TLS but the server's.
        if self.tls.is_pinned(peer_pin) == Some(false) && self.binding == BindingPolicy::Require {
            return Err(CarrierFault::Cut(issuer));
        }
        Ok(stream)
    }

    /// Upgrades to WebSocket. `after_hello`: the other end has answered HELLO with HTTP.
    async fn web_socket(
        &self,
        carrier: ClientCarrier,
        after_hello: bool,
    ) -> Result<WebSocket<ClientCarrier>, ClientError> {
        let authority = authority(&self.address);
        let upgrading = websocket::connect::connect(carrier, &authority, self.address.path());
        match timeout(UPGRADE_DEADLINE, upgrading).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(UpgradeFault::Io(error))) if is_closed(&error) => Err(self.not_admitted()),
            Ok(Err(fault)) => {
                let answers = match after_hello {
                    true => "selects no protocol (ALPN), answers HELLO with HTTP, and ",
                    false => "",
                };
                Err(self.unreachable(format!(
                    "TLS works, but the other end {answers}does not open a WebSocket at {}: {fault}",
                    self.address.path()
                )))
            }
            Err(_) => Err(self.unreachable("the WebSocket upgrade took too long")),
        }
    }
}

/// The protocols that the client offers under a user's choice.
fn offer(choice: TransportChoice) -> Alpn {
    match choice {
        TransportChoice::Tls => Alpn::Direct,
        TransportChoice::WebSocket => Alpn::Http,
        TransportChoice::Auto | TransportChoice::Plain => Alpn::Any,
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

/// Who issued the certificate at the end of TLS, as it says.
pub(crate) fn issuer(stream: &ClientStream) -> Option<String> {
    let carrier = match stream {
        SessionStream::Direct(carrier) => carrier,
        SessionStream::WebSocket(frames) => frames.get_ref(),
    };
    match carrier {
        Carrier::Tls(tls) => TlsFacts::of(tls.get_ref().1).issuer,
        Carrier::Plain(_) => None,
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
