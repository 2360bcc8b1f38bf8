//! Admission of connections and logins: connection slots, TLS, the handshake and its limits.
//!
//! This module has everything that happens to a connection before it is authenticated (sections 4
//! and 9): [`arrival`] takes its slot and performs TLS, [`transport`] finds out whether WebSocket
//! follows, [`login`] runs the handshake. What follows
//! belongs to `session` and `classic`; the counters are in [`crate::limits`].
//!
//! Classic keys (section 11) are derived here too: their root comes from the server's setup.

pub(crate) mod arrival;
pub(crate) mod login;
pub(crate) mod transport;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use twinlock_core::id::Name;
use twinlock_core::keys;
use twinlock_core::opaque::ServerSetup;
use twinlock_core::proto;
use twinlock_core::session::BindingPolicy;
use twinlock_store::StoredClassicKey;
use twinlock_transport::tls::{ServerTls, TlsFault};
use twinlock_transport::websocket::serve::Site;

use crate::convert::copy;
use crate::env::Env;
use crate::handshake_runtime::HandshakeHandle;
use crate::limits::census::Census;
use crate::limits::connection_limiter::ConnectionLimiter;
use crate::limits::devices::DeviceLogins;
use crate::limits::guess::Guesses;
use transport::is_plain;

/// Age from which on an unauthenticated connection can be evicted when all slots of the sessions'
/// listener are taken (section 9). Longer than a login takes on a server that is not flooded.
const GRACE: Duration = Duration::from_secs(1);
/// Salt of the key that is derived for an unknown name, so that the answer takes as long as for a
/// known one. No real key has it.
const NO_KEY_SALT: [u8; 32] = [0; 32];

/// A listener, named after the connections that it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerKind {
    /// Connections with a session.
    Sessions,
    /// Classic connections.
    Classic,
    /// Connections of the origin bridge.
    Origin,
    /// Connections with a session, without TLS.
    Plain,
}

/// One listener: its address, connection slots and TLS configuration.
pub(crate) struct ListenerPort {
    /// The listening address, if the listener is enabled.
    pub(crate) address: Option<SocketAddr>,
    limiter: ConnectionLimiter,
    /// `None` if TLS ends in front of it.
    tls: Option<ServerTls>,
}

/// State of the admission, shared by all listeners.
pub(crate) struct Admission {
    env: Arc<Env>,
    pub(crate) setup: ServerSetup,
    classic_root: keys::ClassicRoot,
    /// The runtime of TLS and logins.
    pub(crate) handshake_runtime: HandshakeHandle,
    ports: [ListenerPort; 4],
    /// The TLS of the sessions' listener. All listeners share its certificate.
    tls: ServerTls,
    /// What the listeners of sessions show over HTTP.
    site: Arc<Site>,
    pub(crate) guesses: Guesses,
    devices: DeviceLogins,
    census: Census,
    /// Limits the login computations that run at once.
    handshakes: Semaphore,
    /// Limits the failed bridge connections that are delayed at once.
    tarpit: Semaphore,
    classic_connections: AtomicUsize,
}

impl Admission {
    /// Creates the admission. `addresses` are those of the listeners, in the order of
    /// [`ListenerKind`]; `None` for a disabled one.
    ///
    /// # Errors
    /// [`TlsFault`] if TLS without ALPN, for classic connections, cannot be configured.
    pub(crate) fn new(
        env: Arc<Env>,
        setup: ServerSetup,
        tls: ServerTls,
        handshake_runtime: HandshakeHandle,
        addresses: [Option<SocketAddr>; 4],
    ) -> Result<Self, TlsFault> {
        let limits = &env.config.limits;
        let classic = &env.config.classic;
        let session_limiter = ConnectionLimiter::new(
            limits.unauthenticated,
            limits.unauthenticated_per_address,
            ["unauthenticated", "unauthenticated-per-address"],
            GRACE,
        );
        let classic_limiter = || {
            ConnectionLimiter::new(
                classic.connections,
                classic.connections_per_address,
                ["classic-connections", "classic-connections-per-address"],
                Duration::ZERO,
            )
        };
        let classic_tls = tls.without_alpn()?;
        let [sessions, lines, origin, plain] = addresses;
        let port = |address, limiter, tls| ListenerPort { address, limiter, tls };
        let ports = [
            port(sessions, session_limiter.clone(), Some(tls.clone())),
            port(lines, classic_limiter(), Some(classic_tls.clone())),
            port(origin, classic_limiter(), Some(classic_tls)),
            // Both listeners of sessions have the same slots.
            port(plain, session_limiter, None),
        ];
        Ok(Self {
            classic_root: setup.classic_root(),
            setup,
            handshake_runtime,
            ports,
            guesses: Guesses::new(limits.logins_per_minute),
            devices: DeviceLogins::new(),
            census: Census::default(),
            handshakes: Semaphore::new(limits.handshakes.clamp(1, Semaphore::MAX_PERMITS)),
            tarpit: Semaphore::new(classic.tarpit_slots.max(1)),
            classic_connections: AtomicUsize::new(0),
            site: Arc::new(env.config.site()),
            tls,
            env,
        })
    }

    /// The server's environment: configuration, clock, shutdown signal.
    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    pub(crate) fn port(&self, kind: ListenerKind) -> &ListenerPort {
        let [sessions, classic, origin, plain] = &self.ports;
        match kind {
            ListenerKind::Sessions => sessions,
            ListenerKind::Classic => classic,
            ListenerKind::Origin => origin,
            ListenerKind::Plain => plain,
        }
    }

    /// The TLS configuration of the sessions' listener.
    pub(crate) fn tls(&self) -> &ServerTls {
        &self.tls
    }

    /// The policy for a session. Where TLS ends in front of the server, only `require` has an
    /// effect: it refuses the session.
    pub(crate) fn binding(&self, transport: proto::Transport) -> BindingPolicy {
        let config = &self.env.config;
        match config.binding {
            BindingPolicy::Warn if is_plain(transport) => BindingPolicy::Off,
            policy => policy,
        }
    }

    /// The TLS pins for READY, which clients accept from now on (section 1). Empty behind a proxy,
    /// which presents its own certificate, and for a certificate from a CA, whose successor may
    /// have another key.
    pub(crate) fn tls_pins(&self, transport: proto::Transport) -> Vec<Bytes> {
        let tls = self.tls();
        let proxied = self.env.config.behind_proxy || is_plain(transport);
        if !proxied && tls.is_self_issued() { vec![copy(&tls.spki_pin().0)] } else { Vec::new() }
    }

    /// Derives the classic key of a row. Without a row, derives an unused key with the same work.
    pub(crate) fn classic_key(
        &self,
        name: &Name,
        row: Option<&StoredClassicKey>,
    ) -> keys::ClassicSecret {
        match row {
            Some(StoredClassicKey { salt, sealed: Some(sealed), .. }) => {
                self.classic_root.open_imported(name, salt, sealed)
            }
            row => self.classic_root.key(name, row.map_or(&NO_KEY_SALT, |row| &row.salt)),
        }
    }

    /// Seals an imported classic key for the record.
    pub(crate) fn seal_imported(
        &self,
        name: &Name,
        salt: &[u8; 32],
        key: &keys::ClassicSecret,
    ) -> [u8; 32] {
        self.classic_root.seal_imported(name, salt, key)
    }

    /// Delays the close of a failed bridge connection by `tarpit_delay`. Only `tarpit_slots`
    /// connections are delayed at once and others wait, which limits the guesses of all clients
    /// together.
    pub(crate) async fn tarpit(&self) {
        // The semaphore is never closed.
        let _permit = self.tarpit.acquire().await;
        tokio::time::sleep(self.env.config.classic.tarpit_delay).await;
    }

    /// Counts a classic connection that has completed TLS until the returned guard is dropped.
    pub(crate) fn count_classic(&self) -> ClassicCount<'_> {
        self.classic_connections.fetch_add(1, Ordering::Relaxed);
        ClassicCount(&self.classic_connections)
    }

    /// Number of classic connections that have completed TLS.
    pub(crate) fn classic_connections(&self) -> usize {
        self.classic_connections.load(Ordering::Relaxed)
    }
}

/// Guard of a counted classic connection.
pub(crate) struct ClassicCount<'s>(&'s AtomicUsize);

impl Drop for ClassicCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
