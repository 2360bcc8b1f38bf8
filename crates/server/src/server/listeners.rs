//! The listening sockets, and the loop that accepts their connections.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use twinlock_core::invite::Address;

use crate::config::Config;
use crate::error::StartError;
use crate::services::Services;

/// Backlog of each listener: connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after a failed accept. The likely cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that is bound and does not listen yet.
pub(super) struct BoundSocket {
    /// The setting that determines the port, for the error.
    flag: &'static str,
    socket: TcpSocket,
    address: SocketAddr,
}

impl BoundSocket {
    pub(super) fn bind(flag: &'static str, address: SocketAddr) -> Result<Self, StartError> {
        let bound = || {
            let socket =
                if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // A restart must not wait for connections of the previous process to time out.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let address = socket.local_addr()?;
            Ok(Self { flag, socket, address })
        };
        bound().map_err(|error| StartError::Listen { flag, address, error })
    }

    pub(super) fn bind_if(
        flag: &'static str,
        address: Option<SocketAddr>,
    ) -> Result<Option<Self>, StartError> {
        address.map(|address| Self::bind(flag, address)).transpose()
    }

    /// The address, with the actual port if port 0 was requested.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn listen(self) -> Result<TcpListener, StartError> {
        let Self { flag, socket, address } = self;
        socket.listen(BACKLOG).map_err(|error| StartError::Listen { flag, address, error })
    }
}

/// The address of a listener that may be disabled.
pub(super) fn address_of(socket: Option<&BoundSocket>) -> Option<SocketAddr> {
    socket.map(BoundSocket::address)
}

/// Accepts connections until shutdown, then waits for all of them to end. This loop runs on the
/// handshake runtime; sockets and their tasks belong to the main runtime.
pub(super) async fn accept<F: Future<Output = ()> + Send + 'static>(
    services: Services,
    listener: TcpListener,
    serve: fn(Services, TcpStream, SocketAddr) -> F,
) {
    let runtime = &services.env.runtime;
    let mut connections = JoinSet::new();
    let mut stopping = std::pin::pin!(services.env.stopping());
    loop {
        tokio::select! {
            accepted = poll_fn(|cx| {
                let _where_sockets_are_waited_for = runtime.enter();
                listener.poll_accept(cx)
            }) => match accepted {
                Ok((socket, peer)) => {
                    connections.spawn_on(serve(services.clone(), socket, peer), runtime);
                }
                Err(error) => {
                    if let Some(left_out) = services.env.throttle.pass("accept", Instant::now()) {
                        tracing::warn!(%error, left_out, "a connection could not be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task failed");
                }
            }
            () = &mut stopping => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// An address for clients on this machine, or on the network the server listens on.
pub(super) fn public_address(config: &Config, listening: SocketAddr) -> Address {
    if let Some(public) = &config.public {
        // A host that is valid in one address is valid with another port.
        let moved = public.moved(public.host(), listening.port());
        return moved.ok().filter(|_| config.public_port_follows).unwrap_or_else(|| public.clone());
    }
    let ip = listening.ip();
    let host = match listening {
        _ if ip.is_unspecified() => "localhost".to_owned(),
        // A link-local address is incomplete without its scope.
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{ip}%{}", v6.scope_id()),
        _ => ip.to_string(),
    };
    let address = Address::new(&host, listening.port());
    let address = address.and_then(|address| address.with_path(&config.websocket_path));
    address.unwrap_or_else(|_| unreachable_address())
}

/// Not reached: an IP address, the port of a bound socket and a checked path always form an address.
fn unreachable_address() -> Address {
    #[allow(clippy::expect_used)]
    Address::new("localhost", 8443).expect("a constant")
}
