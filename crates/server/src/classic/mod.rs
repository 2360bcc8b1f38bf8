//! Classic connections and the origin bridge (section 11): separate listeners, off by default, for
//! devices and scripts in any language. All that either can do is append to the one conversation of
//! a key.
//!
//! [`lines`] implements JWE lines, [`origin`] the format of the Python design; [`wire`] is the
//! stream that both use. A connection is one task. The peer learns of no error.

mod lines;
mod origin;
mod requests;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use twinlock_core::chain::Kind;
use twinlock_core::classic::Closed;
use twinlock_core::id::{MessageId, Name, Sender};
use twinlock_core::keys;
use twinlock_core::opaque::ServerSetup;
use twinlock_store::{ClassicKey, NewEntry, StoreError};
use twinlock_transport::OsEntropy;
use twinlock_transport::tls::{ServerTls, TlsFault};

use crate::append_log::{AppendLog, Who, write_text};
use crate::config::Classic;
use crate::limits::slots::{Eviction, Permit, Slots};
use crate::server::Shared;
use crate::session;
use crate::session::refusal::Unrecorded;
use wire::{Lost, Wire};

/// The salt of keys that do not exist. It is never drawn for a key.
const NOBODYS: [u8; 32] = [0; 32];

/// State shared by all classic connections.
pub(crate) struct ClassicShared {
    pub(crate) lines: Port,
    pub(crate) origin: Port,
    tls: ServerTls,
    root: keys::ClassicRoot,
    /// Counts revocations; each connection then checks whether its key still exists.
    revocations: watch::Sender<u64>,
    /// Permits of the tarpit, for failed connections of the bridge.
    holds: Semaphore,
    here: AtomicUsize,
}

/// One of the two listeners.
pub(crate) struct Port {
    pub(crate) address: Option<SocketAddr>,
    slots: Slots,
}

impl ClassicShared {
    pub(crate) fn new(
        config: &Classic,
        [lines, origin]: [Option<SocketAddr>; 2],
        tls: &ServerTls,
        setup: &ServerSetup,
    ) -> Result<Self, TlsFault> {
        let port = |address| Port {
            address,
            slots: Slots::new(
                config.connections,
                config.connections_per_address,
                ["classic-connections", "classic-connections-per-address"],
                Duration::ZERO,
            ),
        };
        Ok(Self {
            lines: port(lines),
            origin: port(origin),
            tls: tls.without_alpn()?,
            root: setup.classic_root(),
            revocations: watch::Sender::new(0),
            holds: Semaphore::new(config.holds.max(1)),
            here: AtomicUsize::new(0),
        })
    }

    /// The key of a row or, with the same work, one that does not exist.
    fn key(&self, name: &Name, row: Option<&ClassicKey>) -> keys::ClassicKey {
        match row {
            Some(ClassicKey { salt, sealed: Some(sealed), .. }) => {
                self.root.open_imported(name, salt, sealed)
            }
            row => self.root.key(name, row.map_or(&NOBODYS, |row| &row.salt)),
        }
    }

    /// Number of connections that have completed TLS.
    pub(crate) fn connections(&self) -> usize {
        self.here.load(Ordering::Relaxed)
    }
}

/// Counts a connection until it is dropped.
struct Here<'s>(&'s AtomicUsize);

impl<'s> Here<'s> {
    fn new(count: &'s AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one classic connection to its end.
pub(crate) fn serve_lines(
    shared: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    let slot = session::take_slot(&shared, &shared.classic.lines.slots, peer);
    async move {
        let Some(slot) = slot else { return };
        let Some(Admitted { wire, peer, permit, mut eviction }) =
            admit(&shared, socket, peer, slot).await
        else {
            return;
        };
        let _here = Here::new(&shared.classic.here);
        let ended = tokio::select! {
            ended = lines::serve(&shared, wire, &permit) => ended,
            limit = eviction.wait() => {
                shared.throttle.closed_by(limit, peer);
                return;
            }
        };
        log_end(&shared, peer, &ended);
        tracing::info!(%peer, %ended, "classic connection ended");
    }
}

/// Derives the line keys as [`lines`] does, for tests that measure the time.
#[cfg(feature = "test-util")]
pub(crate) async fn hear(
    shared: &Shared,
    heard: twinlock_core::classic::Heard,
) -> Option<twinlock_core::classic::ClassicChannel> {
    lines::key_and_lines(shared, heard).await.ok().map(|(_key, lines)| lines)
}

/// Serves one connection of the origin bridge to its end.
pub(crate) fn serve_origin(
    shared: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    let slot = session::take_slot(&shared, &shared.classic.origin.slots, peer);
    async move {
        let Some(slot) = slot else { return };
        let Some(Admitted { wire, peer, permit, mut eviction }) =
            admit(&shared, socket, peer, slot).await
        else {
            return;
        };
        let _here = Here::new(&shared.classic.here);
        let ended = tokio::select! {
            ended = origin::serve(&shared, wire, &permit) => ended,
            limit = eviction.wait() => {
                shared.throttle.closed_by(limit, peer);
                return;
            }
        };
        log_end(&shared, peer, &ended);
        tracing::info!(%peer, %ended, "origin connection ended");
    }
}

/// A connection that has completed TLS.
struct Admitted {
    wire: Wire<TlsStream<TcpStream>>,
    /// The client's address, from a PROXY header if there is one.
    peer: SocketAddr,
    permit: Permit,
    eviction: Eviction,
}

/// Performs TLS on the handshake runtime, unless the connection is evicted first.
async fn admit(
    shared: &Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    (permit, mut eviction): (Permit, Eviction),
) -> Option<Admitted> {
    let (wire, peer, permit) = tokio::select! {
        secured = shared.door.run(secure(shared.clone(), socket, peer, permit)) => secured??,
        limit = eviction.wait() => {
            shared.throttle.closed_by(limit, peer);
            return None;
        }
        () = shared.stopping() => return None,
    };
    Some(Admitted { wire, peer, permit, eviction })
}

/// Determines the origin and performs TLS. Runs on the handshake runtime.
async fn secure(
    shared: Arc<Shared>,
    mut socket: TcpStream,
    peer: SocketAddr,
    permit: Permit,
) -> Option<(Wire<TlsStream<TcpStream>>, SocketAddr, Permit)> {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    let (origin, peer) = match session::origin(&shared, &mut socket, peer).await {
        Ok(origin) => origin,
        Err(error) => {
            session::no_origin(&shared, peer, &error);
            return None;
        }
    };
    if let Some(origin) = origin
        && let Err(limit) = permit.comes_from(origin)
    {
        shared.throttle.closed_by(limit, peer);
        return None;
    }
    match timeout(shared.config.limits.tls_deadline, shared.classic.tls.accept(socket)).await {
        Ok(Ok(stream)) => Some((Wire::new(stream, peer), peer, permit)),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no TLS");
            None
        }
        Err(_) => {
            shared.throttle.closed_by(session::TLS_DEADLINE, peer);
            None
        }
    }
}

/// Why a classic connection ended, for the log.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the peer")]
    Bye,
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("no message in time")]
    Late,
    #[error("silence")]
    Silence,
    #[error(transparent)]
    Closed(#[from] Closed),
    #[error("a message could not be decrypted")]
    NotOpened,
    #[error("its key was revoked")]
    Revoked,
    #[error("its user has left the conversation, or the key was revoked")]
    NotAMember,
    #[error("evicted before it authenticated: its connection slot was needed")]
    Wanted,
    #[error("{0}")]
    Record(#[from] StoreError),
    #[error("{0}")]
    NotRecorded(#[from] Unrecorded),
    #[error("the server is shutting down")]
    Shutdown,
}

impl Ended {
    /// The limit that closed the connection, by its setting or by what it bounds.
    fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Late => Some("time to the first message"),
            Self::Silence => Some("time between messages"),
            Self::NotRecorded(unrecorded) => unrecorded.limit(),
            _ => None,
        }
    }
}

/// The entry of a text that arrived under a key.
fn entry(shared: &Arc<Shared>, key: &ClassicKey, kind: Kind, text: String) -> NewEntry {
    let entry = NewEntry {
        conversation: key.conversation,
        sender: Sender::Classic(key.user.clone(), key.name.clone()),
        message_id: MessageId::fresh(shared.now_ms(), &mut OsEntropy),
        kind,
        body: Bytes::from(text),
    };
    if shared.config.log_messages {
        write_text(shared, &key.user, &entry);
    }
    entry
}

/// The log of appends under a key.
fn append_log(key: &ClassicKey, kind: Kind) -> AppendLog {
    AppendLog::new(Some(Who {
        user: key.user.clone(),
        sender: Sender::Classic(key.user.clone(), key.name.clone()).to_string().into(),
        kind,
        sid: None,
    }))
}

/// Logs a limit by its name, and a message that did not open as an error: a wrong key, or a change
/// in transit. Any peer can cause both at will, so these lines are throttled.
fn log_end(shared: &Shared, peer: SocketAddr, ended: &Ended) {
    if let Some(limit) = ended.limit() {
        shared.throttle.closed_by(limit, peer);
    }
    if matches!(ended, Ended::Closed(_) | Ended::NotOpened)
        && let Some(left_out) = shared.throttle.pass("classic line not opened", Instant::now())
    {
        tracing::error!(%peer, %ended, left_out, "a message could not be decrypted");
    }
}
