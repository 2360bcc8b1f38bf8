//! A connection from accept to the end of its TLS handshake: its slot, its source, TLS.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use twinlock_transport::proxy;

use super::{Admission, ListenerKind};
use crate::limits::SourcePrefix;
use crate::limits::census::Majority;
use crate::limits::connection_limiter::{Eviction, LimitName, Permit};

/// Minimum interval between warnings that most connections come from one address.
const MAJORITY: Duration = Duration::from_secs(60 * 60);
/// Names of limits that have no setting, for the log.
const TLS_DEADLINE: LimitName = "time for TLS";
const PROXY_DEADLINE: LimitName = "time for a PROXY header";

/// A connection whose source is known, with its slot still held.
pub(super) struct LocatedConnection {
    pub(super) socket: TcpStream,
    /// The client's address, from a PROXY header if there is one.
    pub(super) peer: SocketAddr,
    /// The source whose limits apply; `None` if clients cannot be distinguished.
    pub(super) source: Option<SourcePrefix>,
    pub(super) permit: Permit,
}

/// A connection that has completed TLS, with its slot still held.
pub(crate) struct SecuredConnection {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The client's address, from a PROXY header if there is one.
    pub(crate) peer: SocketAddr,
    /// The source whose limits apply; `None` if clients cannot be distinguished.
    pub(crate) source: Option<SourcePrefix>,
    pub(crate) permit: Permit,
}

impl Admission {
    /// Takes a slot for a connection, and counts it for its address unless a PROXY header follows.
    ///
    /// Runs at accept, not in the connection's task: tasks start in any order, and the oldest
    /// connection must be the one that is evicted.
    pub(crate) fn take_slot(
        &self,
        kind: ListenerKind,
        peer: SocketAddr,
    ) -> Option<(Permit, Eviction)> {
        if kind == ListenerKind::Plain && !self.may_use_plain(peer) {
            if let Some(left_out) = self.env.throttle.pass("plain port", Instant::now()) {
                tracing::warn!(%peer, left_out, "a peer that is no listed proxy used the plain port");
            }
            return None;
        }
        let source = self.direct_source(kind, peer);
        if let Some(source) = source.filter(|_| !self.env.config.knows_clients()) {
            self.warn_of_a_majority(source);
        }
        let entered =
            self.port(kind).limiter.enter(Instant::now()).and_then(|(permit, eviction)| {
                if let Some(source) = source {
                    permit.comes_from(source)?;
                }
                Ok((permit, eviction))
            });
        match entered {
            Ok(slot) => Some(slot),
            Err(limit) => {
                self.env.throttle.closed_by(limit, peer);
                None
            }
        }
    }

    /// Determines the source of a connection, and performs TLS. Runs on the handshake runtime.
    pub(crate) async fn secure(
        &self,
        kind: ListenerKind,
        socket: TcpStream,
        peer: SocketAddr,
        permit: Permit,
    ) -> Option<SecuredConnection> {
        let located = self.locate(kind, socket, peer, permit).await?;
        let LocatedConnection { socket, peer, source, permit } = located;
        let accepted = self.port(kind).tls.as_ref()?.accept(socket);
        match timeout(self.env.config.limits.tls_deadline, accepted).await {
            Ok(Ok(stream)) => Some(SecuredConnection { stream, peer, source, permit }),
            Ok(Err(error)) => {
                if let Some(left_out) = self.env.throttle.pass("TLS", Instant::now()) {
                    tracing::info!(%peer, %error, left_out, "a connection ended before TLS");
                }
                None
            }
            Err(_) => {
                self.env.throttle.closed_by(TLS_DEADLINE, peer);
                None
            }
        }
    }

    /// Determines the source of a connection, and counts the slot for it.
    pub(super) async fn locate(
        &self,
        kind: ListenerKind,
        mut socket: TcpStream,
        peer: SocketAddr,
        permit: Permit,
    ) -> Option<LocatedConnection> {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY");
        }
        let (source, peer) = match self.source(kind, &mut socket, peer).await {
            Ok(source) => source,
            Err(error) => {
                self.log_no_source(peer, &error);
                return None;
            }
        };
        self.count_for(&permit, source, peer)?;
        Some(LocatedConnection { socket, peer, source, permit })
    }

    /// Counts a slot for a source. Without one (behind a proxy that names none) only the total
    /// limit applies.
    pub(super) fn count_for(
        &self,
        permit: &Permit,
        source: Option<SourcePrefix>,
        peer: SocketAddr,
    ) -> Option<()> {
        if let Some(source) = source
            && let Err(limit) = permit.comes_from(source)
        {
            self.env.throttle.closed_by(limit, peer);
            return None;
        }
        Some(())
    }

    /// The source whose limits apply, `None` if clients cannot be distinguished; and the client's
    /// address for the log.
    async fn source(
        &self,
        kind: ListenerKind,
        socket: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<(Option<SourcePrefix>, SocketAddr), proxy::ProxyError> {
        if self.sends_proxy_header(peer) {
            let deadline = tokio::time::Instant::now() + self.env.config.limits.tls_deadline;
            let client = proxy::read_header(socket, deadline).await?;
            return Ok((
                client.map(|client| SourcePrefix::of(client.ip())),
                client.unwrap_or(peer),
            ));
        }
        Ok((self.direct_source(kind, peer), peer))
    }

    /// Logs why the source is unknown.
    fn log_no_source(&self, peer: SocketAddr, error: &proxy::ProxyError) {
        match error {
            proxy::ProxyError::Timeout => self.env.throttle.closed_by(PROXY_DEADLINE, peer),
            // A proxy may probe whether the port is open.
            proxy::ProxyError::Io(error) => tracing::debug!(%peer, %error, "no PROXY header"),
            error => {
                if let Some(left_out) = self.env.throttle.pass("PROXY header", Instant::now()) {
                    tracing::warn!(%peer, %error, left_out, "a proxy sent no PROXY header");
                }
            }
        }
    }

    fn sends_proxy_header(&self, peer: SocketAddr) -> bool {
        self.env.config.proxies.contains(&peer.ip().to_canonical())
    }

    /// Whether the peer is an HTTP proxy that names its clients.
    pub(super) fn is_http_proxy(&self, peer: SocketAddr) -> bool {
        let forwards = self.env.config.forwarded_from.contains(&peer.ip().to_canonical());
        forwards && !self.sends_proxy_header(peer)
    }

    /// Whether a peer may use the plain port: TLS must end on this machine or at a listed proxy.
    fn may_use_plain(&self, peer: SocketAddr) -> bool {
        let local = self.port(ListenerKind::Plain).address.is_some_and(|a| a.ip().is_loopback());
        local || self.sends_proxy_header(peer) || self.is_http_proxy(peer)
    }

    /// The source of a connection, if its peer's address is the client's.
    fn direct_source(&self, kind: ListenerKind, peer: SocketAddr) -> Option<SourcePrefix> {
        let hidden = self.env.config.behind_proxy
            || kind == ListenerKind::Plain
            || self.sends_proxy_header(peer)
            || (kind == ListenerKind::Sessions && self.is_http_proxy(peer));
        (!hidden).then(|| SourcePrefix::of(peer.ip()))
    }

    /// Warns if most connections come from one address: behind a proxy without a PROXY header all
    /// clients share one address's limits.
    fn warn_of_a_majority(&self, source: SourcePrefix) {
        if let Some(Majority { source, count, of }) = self.census.note(source)
            && self.env.throttle.pass_each("majority", MAJORITY, Instant::now()).is_some()
        {
            tracing::warn!(
                address = %source,
                "{count} of the last {of} connections came from one address, whose limits they share; \
                 if a proxy is there, name it with --proxy and have it send a PROXY header, or with --forwarded-from"
            );
        }
    }
}
