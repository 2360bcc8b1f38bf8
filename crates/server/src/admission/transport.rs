//! From a socket to the stream of a session: TLS or plain, directly or over WebSocket.
//!
//! ALPN decides whether HTTP follows; without ALPN, and on the plain port, the first byte does. The
//! time to HELLO includes the HTTP request, and the connection keeps its slot through all of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant as StdInstant;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;
use twinlock_core::proto::Transport;
use twinlock_transport::login::HELLO_DEADLINE;
use twinlock_transport::stream::{Carrier, SessionStream};
use twinlock_transport::tls;
use twinlock_transport::websocket::serve::{self, HttpFault, Upgraded};

use super::arrival::{LocatedConnection, SecuredConnection};
use super::{Admission, ListenerKind};
use crate::limits::SourcePrefix;
use crate::limits::connection_limiter::{LimitName, Permit};

/// Name of a limit that has no setting, for the log.
pub(crate) const LOGIN_DEADLINE: LimitName = "time for HELLO or PROOF";
/// First byte of HELLO: the type of the frame (section 3).
const HELLO: u8 = 0x01;

/// What bytes travel on before a session.
type ServerCarrier = Carrier<TlsStream<TcpStream>>;
/// The stream of a session.
pub(crate) type SessionIo = SessionStream<ServerCarrier>;

/// A connection on which HELLO is due, with its slot still held.
pub(crate) struct OpenedConnection {
    pub(crate) stream: SessionIo,
    /// The tls-exporter value; `None` where TLS ends in front of the server.
    pub(crate) exporter: Option<[u8; 32]>,
    pub(crate) transport: Transport,
    /// When HELLO must be complete.
    pub(crate) hello_by: Instant,
    /// The client's address, as far as a trusted proxy named it.
    pub(crate) peer: SocketAddr,
    /// The source whose limits apply; `None` if clients cannot be distinguished.
    pub(crate) source: Option<SourcePrefix>,
    pub(crate) permit: Permit,
}

/// Why a connection has no session's stream.
#[derive(Debug, Error)]
enum NoStream {
    #[error(transparent)]
    Http(#[from] HttpFault),
    #[error("its first byte is that of neither HELLO nor HTTP")]
    FirstByte,
    #[error("it ended before HELLO")]
    Ended,
}

impl Admission {
    /// Determines the source of a connection, performs TLS, and answers HTTP if it follows. Runs on
    /// the handshake runtime.
    pub(crate) async fn open(
        &self,
        kind: ListenerKind,
        socket: TcpStream,
        peer: SocketAddr,
        permit: Permit,
    ) -> Option<OpenedConnection> {
        let proxies = self.is_http_proxy(peer).then(|| self.env.config.forwarded_from.clone());
        let (carrier, http, exporter, peer, source, permit) = if kind == ListenerKind::Plain {
            let located = self.locate(kind, socket, peer, permit).await?;
            let LocatedConnection { socket, peer, source, permit } = located;
            (Carrier::Plain(socket), None, None, peer, source, permit)
        } else {
            let secured = self.secure(kind, socket, peer, permit).await?;
            let SecuredConnection { stream, peer, source, permit } = secured;
            let connection = stream.get_ref().1;
            let http = tls::selected_http(connection);
            let exporter = tls::channel_binding(connection).ok();
            (Carrier::Tls(stream), http, exporter, peer, source, permit)
        };
        let hello_by = Instant::now() + HELLO_DEADLINE;
        let (stream, client) = match timeout_at(hello_by, self.start(carrier, http, proxies)).await
        {
            Ok(Ok(started)) => started,
            Ok(Err(why)) => {
                self.log_no_stream(peer, &why);
                return None;
            }
            Err(_) => {
                self.env.throttle.closed_by(LOGIN_DEADLINE, peer);
                return None;
            }
        };
        let (peer, source) = match client {
            Some(client) => (SocketAddr::new(client, 0), Some(SourcePrefix::of(client))),
            None => (peer, source),
        };
        self.count_for(&permit, source, peer)?;
        let transport = match (kind, &stream) {
            (ListenerKind::Plain, SessionStream::Direct(_)) => Transport::Plain,
            (ListenerKind::Plain, SessionStream::WebSocket(_)) => Transport::PlainWebsocket,
            (_, SessionStream::Direct(_)) => Transport::Tls,
            (_, SessionStream::WebSocket(_)) => Transport::Websocket,
        };
        Some(OpenedConnection { stream, exporter, transport, hello_by, peer, source, permit })
    }

    /// The stream of a session, and the client that a trusted proxy named.
    async fn start(
        &self,
        mut carrier: ServerCarrier,
        http: Option<bool>,
        proxies: Option<Vec<IpAddr>>,
    ) -> Result<(SessionIo, Option<IpAddr>), NoStream> {
        let http = match http {
            Some(http) => http,
            None => match carrier.first_byte().await {
                Ok(Some(HELLO)) => false,
                Ok(Some(byte)) if serve::is_http(byte) => true,
                Ok(Some(_)) => return Err(NoStream::FirstByte),
                Ok(None) | Err(_) => return Err(NoStream::Ended),
            },
        };
        if !http {
            return Ok((SessionStream::Direct(carrier), None));
        }
        let Upgraded { stream, client } = serve::serve(carrier, self.site.clone(), proxies).await?;
        Ok((SessionStream::WebSocket(Box::new(stream)), client))
    }

    /// Logs why a connection has no session, at a bounded rate. Health checks connect, or ask for
    /// the page, and are not worth a line.
    fn log_no_stream(&self, peer: SocketAddr, why: &NoStream) {
        let expected = match why {
            NoStream::Ended | NoStream::Http(HttpFault::Ended) => true,
            NoStream::Http(HttpFault::Answered(status, _)) => {
                status.is_success() || status.as_u16() == 404
            }
            _ => false,
        };
        if expected {
            tracing::debug!(%peer, %why, "no session");
        } else if let Some(left_out) = self.env.throttle.pass("no session", StdInstant::now()) {
            tracing::info!(%peer, %why, left_out, "connection closed before HELLO");
        }
    }
}

/// Whether TLS ends in front of the server.
pub(crate) fn is_plain(transport: Transport) -> bool {
    matches!(transport, Transport::Plain | Transport::PlainWebsocket)
}
