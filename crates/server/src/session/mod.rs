//! Sessions: one connection from accept to end. One task owns all of it.

mod follow;
mod frame_writer;
mod register;
mod request_queue;
mod requests;
mod serve_loop;
mod step_up;
mod transfers;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use prost::Message as _;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::CredentialId;
use twinlock_core::limits::{MAX_TEXT, VERSION};
use twinlock_core::proto;
use twinlock_core::session::{BindingPolicy, SessionConfig};
use twinlock_store::{Holder, LoginMethod, LookedUp};
use twinlock_transport::login::{Acceptor, LoginError};

use crate::admission::login::{CheckedLogin, LoginRefusal, log_in, note_source};
use crate::admission::transport::{LOGIN_DEADLINE, OpenedConnection, SessionIo};

use crate::admission::{Admission, ListenerKind};
use crate::bus::Owner;
use crate::convert::{self, copy};
use crate::env::Env;
use crate::limits::SourcePrefix;
use crate::limits::connection_limiter::{Eviction, Permit};
use crate::limits::throttle::log_fault;
use crate::services::Services;

use serve_loop::SessionLoop;

/// Timeout for a peer that answers nothing, not even TCP keep-alive probes.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves one connection to its end.
pub(crate) fn serve(
    services: Services,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    serve_on(ListenerKind::Sessions, services, socket, peer)
}

/// Serves one connection of the plain port to its end.
pub(crate) fn serve_plain(
    services: Services,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    serve_on(ListenerKind::Plain, services, socket, peer)
}

fn serve_on(
    kind: ListenerKind,
    services: Services,
    socket: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    let slot = services.admission.take_slot(kind, peer);
    async move {
        let Some(slot) = slot else { return };
        // Boxed, so that an established session keeps no memory for its login.
        let session = tokio::select! {
            session = Box::pin(admit(kind, &services, socket, peer, slot)) => session,
            () = services.env.stopping() => None,
        };
        drop(services);
        if let Some(session) = session {
            session.run().await;
        }
    }
}

/// Does everything up to the session. `None`: refused; the client was answered and the log written.
async fn admit(
    kind: ListenerKind,
    services: &Services,
    socket: TcpStream,
    peer: SocketAddr,
    // Held until the login is complete.
    (permit, mut eviction): (Permit, Eviction),
) -> Option<Box<SessionLoop<SessionIo>>> {
    let runtime = &services.admission.handshake_runtime;
    let arrived = tokio::select! {
        arrived = runtime.run(arrive(kind, services.clone(), socket, peer, permit)) => arrived??,
        limit = eviction.wait() => {
            services.env.throttle.closed_by(limit, peer);
            return None;
        }
    };
    enter(services, arrived).await
}

/// A completed login, with its slot still held.
struct Arrived {
    acceptor: Acceptor<SessionIo>,
    login: CheckedLogin,
    exporter: Option<[u8; 32]>,
    transport: proto::Transport,
    peer: SocketAddr,
    source: Option<SourcePrefix>,
    _permit: Permit,
}

/// The transport and the handshake. Runs on the handshake runtime.
async fn arrive(
    kind: ListenerKind,
    services: Services,
    socket: TcpStream,
    peer: SocketAddr,
    permit: Permit,
) -> Option<Arrived> {
    let Services { env, admission, record, .. } = services;
    if let Err(error) = keep_alive(&socket) {
        tracing::debug!(%peer, %error, "no TCP keep-alive");
    }
    let opened = admission.open(kind, socket, peer, permit).await?;
    let OpenedConnection { stream, exporter, transport, hello_by, peer, source, permit } = opened;
    let mut acceptor = Acceptor::with_deadline(stream, hello_by);
    match log_in(&admission, &record, &mut acceptor, source, &permit).await {
        Ok(login) => {
            Some(Arrived { acceptor, login, exporter, transport, peer, source, _permit: permit })
        }
        Err(LoginRefusal::Limit(limit, code)) => {
            env.throttle.closed_by(limit, peer);
            acceptor.refuse(code).await;
            None
        }
        Err(LoginRefusal::Drop(LoginError::Timeout)) => {
            env.throttle.closed_by(LOGIN_DEADLINE, peer);
            None
        }
        Err(LoginRefusal::Answer(code)) => {
            tracing::info!(%peer, %code, "login refused");
            acceptor.refuse(code).await;
            None
        }
        Err(LoginRefusal::Drop(error)) => {
            tracing::debug!(%peer, %error, "no login");
            None
        }
    }
}

/// Makes the system end a connection whose peer answers nothing for [`TCP_USER_TIMEOUT`], even
/// while the server reads nothing from it and therefore sees no PONG.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    // Idle for half of the time, then three probes in the other half.
    let probes = TCP_USER_TIMEOUT / 6;
    sockopt::set_tcp_keepidle(socket, TCP_USER_TIMEOUT / 2)?;
    sockopt::set_tcp_keepintvl(socket, probes)?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_socket_keepalive(socket, true)?;
    // While bytes are unacknowledged the system sends no probes; this timeout applies instead.
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(
        socket,
        u32::try_from(TCP_USER_TIMEOUT.as_millis()).unwrap_or(0),
    )?;
    Ok(())
}

/// Registers the session of a completed login.
async fn enter(
    services: &Services,
    Arrived { acceptor, login, exporter, transport, peer, source, _permit }: Arrived,
) -> Option<Box<SessionLoop<SessionIo>>> {
    let Services { env, admission, record, bus } = services;
    let CheckedLogin { established, credential } = login;
    let sid = established.session_id();
    let id = established.credential().clone();
    let (owner, device) = match (&credential.holder, &id) {
        (Holder::User(person), _) => (Owner::User(person.user.clone()), None),
        (Holder::Device(person, device), _) => (Owner::User(person.user.clone()), Some(*device)),
        (Holder::Invite(_), CredentialId::Invite(id)) => (Owner::Invite(*id), None),
        (Holder::Invite(_), _) => return None,
    };
    let entered = bus.enter(owner, device, (&env.config.limits).into());
    // Only from here on does a revocation find this session, so earlier ones are checked now.
    let barred = device.is_some_and(|device| record.barred.has_device(&device))
        || match &credential.holder {
            Holder::User(person) | Holder::Device(person, _) => {
                record.barred.has_person(&person.user)
            }
            Holder::Invite(_) => false,
        };
    let now = record.look_up(&id, env.now_ms()).await.map(LookedUp::into_credential);
    let (holder, gone) = match now {
        Ok(Some(now)) if now.record == credential.record && !barred => (now.holder, None),
        Ok(_) => (credential.holder, Some(CloseCode::Revoked)),
        Err(error) => {
            log_fault("credentials cannot be read", error);
            (credential.holder, Some(CloseCode::Internal))
        }
    };
    let binding = admission.binding(transport);
    let config = SessionConfig {
        binding,
        exporter: exporter.filter(|_| binding != BindingPolicy::Off),
        info: server_info(env, admission, &holder, transport).encode_to_vec(),
        max_version: VERSION,
        timing: env.config.timing.clone(),
    };
    let connection = acceptor.into_connection(established, config);
    let handle = match (entered, gone) {
        (Ok(handle), None) => handle,
        (Err(code), _) | (_, Some(code)) => {
            if code == CloseCode::Quota {
                env.throttle.closed_by("sessions-per-device", peer);
            } else {
                tracing::info!(%sid, %peer, %code, "closed");
            }
            connection.close(code).await;
            return None;
        }
    };
    let user = match &holder {
        Holder::User(person) => Some((&person.user, LoginMethod::Password)),
        Holder::Device(person, _) => Some((&person.user, LoginMethod::Device)),
        Holder::Invite(_) => None,
    };
    if let Some((user, method)) = user {
        note_source(admission, record, user, source, method).await;
    }
    // The rest is logged once the client is ready.
    if let Holder::Device(_, device) = &holder
        && record.may_write().is_ok()
        && let Err(error) = record.store.touch_device(device, env.now_ms()).await
    {
        log_fault("last login not noted", error);
    }
    SessionLoop::new(services.clone(), handle, connection, holder, source, peer, transport)
}

fn server_info(
    env: &Env,
    admission: &Admission,
    holder: &Holder,
    transport: proto::Transport,
) -> proto::ServerInfo {
    let mut info = proto::ServerInfo {
        software: concat!("twinlock ", env!("CARGO_PKG_VERSION")).to_owned(),
        time_ms: env.now_ms(),
        tls_pins: admission.tls_pins(transport),
        transport: transport.into(),
        max_text: MAX_TEXT as u32,
        max_in_flight: u32::try_from(env.config.limits.in_flight).unwrap_or(u32::MAX),
        ..proto::ServerInfo::default()
    };
    match holder {
        Holder::User(person) | Holder::Device(person, _) => {
            info.user = person.user.to_string();
            info.role = convert::role(person.role).into();
            info.password = person.password;
            let public = env.config.public.as_ref();
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

    fn size<F: Future>(_: fn(Services, TcpStream, SocketAddr) -> F) -> usize {
        size_of::<F>()
    }

    /// There may be ten thousand sessions, and each should cost 18 KiB including TLS and socket.
    #[test]
    fn session__task_and_state_sizes_are_bounded() {
        let task = size(serve);
        let session = size_of::<SessionLoop<SessionIo>>();
        assert!(task <= 1024 && session <= 3072, "{task} and {session} bytes");
    }
}
