//! Log of sessions: a line at the beginning and one at the end.

use std::net::SocketAddr;

use tokio::time::Instant;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{CredentialId, Name};
use twinlock_core::proto;
use twinlock_core::session::{Binding, Session, SessionFault};
use twinlock_core::text::Untrusted;
use twinlock_transport::connection::{Connection, ConnectionError};
use twinlock_transport::transport::Transport;

use super::end::SessionEnd;
use crate::bus::SessionHandle;
use crate::env::Env;

/// Logs the beginning of a session, once its client is ready.
pub(super) fn log_begin(
    handle: &SessionHandle,
    session: &Session,
    peer: SocketAddr,
    transport: proto::Transport,
    software: &Untrusted,
    binding: Binding,
) {
    let transport = transport_word(transport);
    let sid = session.id();
    let user = handle.user().map(Name::as_str);
    match session.credential() {
        CredentialId::Device(device) => {
            tracing::info!(
                %sid, %peer, user, %device, %transport, ?software, ?binding,
                "logged in"
            );
        }
        CredentialId::User(_) => {
            tracing::info!(
                %sid, %peer, user, %transport, ?software, ?binding,
                "logged in by password"
            );
        }
        CredentialId::Invite(_) => {
            tracing::info!(%sid, %peer, %transport, ?software, ?binding, "logged in by invite");
        }
    }
}

/// The name of a transport, as the protocol's section 12 has it.
fn transport_word(transport: proto::Transport) -> &'static str {
    match transport {
        proto::Transport::Tls => "tls",
        proto::Transport::Websocket => "websocket",
        proto::Transport::Plain => "plain",
        proto::Transport::PlainWebsocket => "plain-websocket",
        proto::Transport::Unknown => "unknown",
    }
}

/// Logs the end of a session.
pub(super) fn log_end<S: Transport>(
    env: &Env,
    handle: &SessionHandle,
    connection: &Connection<S>,
    peer: SocketAddr,
    end: &SessionEnd,
    began: Instant,
) {
    let (sid, user) = (connection.session().id(), handle.user().map(Name::as_str));
    let seconds = began.elapsed().as_secs();
    if let SessionEnd::Close(CloseCode::Quota) = end {
        let limit = match connection.session().credential() {
            CredentialId::User(_) => "password-sessions-per-user",
            CredentialId::Device(_) | CredentialId::Invite(_) => "sessions-per-device",
        };
        env.throttle.closed_by(limit, peer);
    }
    if let SessionEnd::Connection(error @ ConnectionError::Fault(SessionFault::Tampered)) = end
        && let Some(left_out) = env.throttle.pass("frame not opened", std::time::Instant::now())
    {
        tracing::error!(%sid, user, %error, left_out, "a message could not be decrypted");
    }
    match end {
        SessionEnd::Close(code) => {
            tracing::info!(%sid, user, seconds, %code, by = "server", "session ended");
        }
        SessionEnd::Bye(code) => {
            tracing::info!(%sid, user, seconds, %code, by = "client", "session ended");
        }
        SessionEnd::Connection(error) => {
            tracing::info!(%sid, user, seconds, %error, "session ended")
        }
    }
}
