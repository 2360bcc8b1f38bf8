//! Classic connections and the origin bridge (section 11): separate listeners, off by default, for
//! devices and scripts in any language. All that either can do is append to the one conversation of
//! a key.
//!
//! [`jwe`] implements JWE lines, [`origin`] the format of the Python design; [`line_stream`] is the
//! stream that both use. A connection is one task. The peer learns of no error.

mod end;
mod entry;
mod jwe;
mod line_stream;
mod origin;

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::admission::ListenerKind;
use crate::admission::arrival::SecuredConnection;
use crate::limits::connection_limiter::{Eviction, Permit};
use crate::services::Services;
use end::log_end;
use line_stream::LineStream;

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
pub(crate) async fn read_hello(
    admission: &crate::admission::Admission,
    record: &crate::record::Record,
    hello: twinlock_core::classic::ClassicHello,
) -> Option<twinlock_core::classic::ClassicChannel> {
    jwe::key_and_lines(admission, record, hello).await.ok().map(|(_key, lines)| lines)
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
