//! Classic connections and the origin bridge (section 11): separate listeners, off by default, for
//! devices and scripts in any language. All that either can do is append to the one conversation of
//! a key.
//!
//! [`jwe`] implements JWE lines, [`origin`] the format of the Python design; [`line_stream`] is the
//! stream that both use. A connection is one task. The peer learns of no error.

mod jwe;
mod line_stream;
mod origin;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use twinlock_core::chain::Kind;
use twinlock_core::classic::Closed;
use twinlock_core::id::{MessageId, Sender};
use twinlock_store::{ClassicKey, NewEntry, StoreError};
use twinlock_transport::OsEntropy;

use crate::admission::arrival::SecuredConnection;
use crate::admission::{Admission, ListenerKind};
use crate::append_log::{AppendLog, AppendSender, write_text};
use crate::env::Env;
use crate::limits::connection_limiter::{Eviction, Permit};
use crate::record::Record;
use crate::refusal::Unrecorded;
use crate::services::Services;
use line_stream::{LineStream, StreamLost};

/// Serves one classic connection to its end.
pub(crate) fn serve_lines(
    services: Services,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    let slot = services.admission.take_slot(ListenerKind::Classic, peer);
    async move {
        let Some(slot) = slot else { return };
        let Some(admitted) = admit(&services, ListenerKind::Classic, socket, peer, slot).await
        else {
            return;
        };
        let Admitted { stream, peer, permit, mut eviction } = admitted;
        let _counted = services.admission.count_classic();
        let ended = tokio::select! {
            ended = jwe::serve(&services, stream, &permit) => ended,
            limit = eviction.wait() => {
                services.env.throttle.closed_by(limit, peer);
                return;
            }
        };
        log_end(&services.env, peer, &ended);
        tracing::info!(%peer, %ended, "classic connection ended");
    }
}

/// Derives the line keys as [`jwe`] does, for tests that measure the time.
#[cfg(feature = "test-util")]
pub(crate) async fn hear(
    admission: &Admission,
    record: &Record,
    heard: twinlock_core::classic::Heard,
) -> Option<twinlock_core::classic::ClassicChannel> {
    jwe::key_and_lines(admission, record, heard).await.ok().map(|(_key, lines)| lines)
}

/// Serves one connection of the origin bridge to its end.
pub(crate) fn serve_origin(
    services: Services,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    let slot = services.admission.take_slot(ListenerKind::Origin, peer);
    async move {
        let Some(slot) = slot else { return };
        let Some(admitted) = admit(&services, ListenerKind::Origin, socket, peer, slot).await
        else {
            return;
        };
        let Admitted { stream, peer, permit, mut eviction } = admitted;
        let _counted = services.admission.count_classic();
        let ended = tokio::select! {
            ended = origin::serve(&services, stream, &permit) => ended,
            limit = eviction.wait() => {
                services.env.throttle.closed_by(limit, peer);
                return;
            }
        };
        log_end(&services.env, peer, &ended);
        tracing::info!(%peer, %ended, "origin connection ended");
    }
}

/// A connection that has completed TLS.
struct Admitted {
    stream: LineStream<TlsStream<TcpStream>>,
    /// The client's address, from a PROXY header if there is one.
    peer: SocketAddr,
    permit: Permit,
    eviction: Eviction,
}

/// Performs TLS on the handshake runtime, unless the connection is evicted first.
async fn admit(
    services: &Services,
    kind: ListenerKind,
    socket: TcpStream,
    peer: SocketAddr,
    (permit, mut eviction): (Permit, Eviction),
) -> Option<Admitted> {
    let Services { env, admission, .. } = services;
    let work = admission.clone();
    let secure = async move { work.secure(kind, socket, peer, permit).await };
    let secured = tokio::select! {
        secured = admission.handshake_runtime.run(secure) => secured??,
        limit = eviction.wait() => {
            env.throttle.closed_by(limit, peer);
            return None;
        }
        () = env.stopping() => return None,
    };
    let SecuredConnection { stream, peer, permit, .. } = secured;
    Some(Admitted { stream: LineStream::new(stream, peer), peer, permit, eviction })
}

/// Why a classic connection ended, for the log.
#[derive(Debug, thiserror::Error)]
enum ClassicEnd {
    #[error("closed by the peer")]
    Bye,
    #[error(transparent)]
    Lost(#[from] StreamLost),
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

impl ClassicEnd {
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
fn entry(env: &Env, record: &Arc<Record>, key: &ClassicKey, kind: Kind, text: String) -> NewEntry {
    let entry = NewEntry {
        conversation: key.conversation,
        sender: Sender::Classic(key.user.clone(), key.name.clone()),
        message_id: MessageId::fresh(env.now_ms(), &mut OsEntropy),
        kind,
        body: Bytes::from(text),
    };
    if env.config.log_messages {
        write_text(record, &key.user, &entry);
    }
    entry
}

/// The log of appends under a key.
fn append_log(key: &ClassicKey, kind: Kind) -> AppendLog {
    AppendLog::new(Some(AppendSender {
        user: key.user.clone(),
        sender: Sender::Classic(key.user.clone(), key.name.clone()).to_string().into(),
        kind,
        sid: None,
    }))
}

/// Logs a limit by its name, and a message that did not open as an error: a wrong key, or a change
/// in transit. Any peer can cause both at will, so these lines are throttled.
fn log_end(env: &Env, peer: SocketAddr, ended: &ClassicEnd) {
    if let Some(limit) = ended.limit() {
        env.throttle.closed_by(limit, peer);
    }
    if matches!(ended, ClassicEnd::Closed(_) | ClassicEnd::NotOpened)
        && let Some(left_out) = env.throttle.pass("classic line not opened", Instant::now())
    {
        tracing::error!(%peer, %ended, left_out, "a message could not be decrypted");
    }
}
