//! Connects to a server without the SDK.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};
use twinlock_core::credential::Credential;
use twinlock_core::id::{ServerKey, TlsPin};
use twinlock_core::session::SessionConfig;
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust, TlsFault};

use crate::raw_client::{NoConnection, RawClient};
pub use crate::stalled_socket::Io;
use crate::{StalledSocket, random, soon};

/// A server as its clients know it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// How its certificate is verified.
    pub tls: ClientTls,
    /// Its key, which the handshake verifies.
    pub key: ServerKey,
}

impl Endpoint {
    /// A server whose TLS key has to match one of the pins.
    ///
    /// # Panics
    /// If TLS cannot be configured.
    #[must_use]
    pub fn pinned(address: SocketAddr, pins: Vec<TlsPin>, key: ServerKey) -> Self {
        let tls = ClientTls::new(ServerTrust::Pins(pins), Alpn::Direct).unwrap();
        Self { address, tls, key }
    }

    /// Performs the TLS handshake on a TCP connection.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn tls_over(&self, tcp: TcpStream) -> Result<Io, TlsFault> {
        tcp.set_nodelay(true)?;
        self.tls.connect("localhost", StalledSocket::new(tcp)).await
    }

    /// Connects from a loopback address, up to the end of the TLS handshake.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn tls_from(&self, from: Ipv4Addr) -> Result<Io, TlsFault> {
        self.tls_over(tcp_from(from, self.address).await?).await
    }

    /// Connects, up to the end of the TLS handshake.
    ///
    /// # Panics
    /// If that fails or takes long.
    pub async fn tls(&self) -> Io {
        let tcp = soon("connect", TcpStream::connect(self.address)).await.unwrap();
        soon("TLS", self.tls_over(tcp)).await.unwrap()
    }

    /// Connects, logs in and waits for READY.
    ///
    /// # Errors
    /// If the login fails.
    ///
    /// # Panics
    /// If TLS fails, or if a step takes long.
    pub async fn connect(&self, credential: Credential) -> Result<RawClient, NoConnection> {
        self.connect_with(credential, &random::<16>(), |_| ()).await
    }

    /// The same for this instance of the client, with a change of the session's configuration.
    ///
    /// # Errors
    /// If the login fails.
    ///
    /// # Panics
    /// If TLS fails, or if a step takes long.
    pub async fn connect_with(
        &self,
        credential: Credential,
        instance: &[u8],
        change: impl FnOnce(&mut SessionConfig),
    ) -> Result<RawClient, NoConnection> {
        let io = self.tls().await;
        soon("login", RawClient::over(io, credential, self.key, instance, change)).await
    }
}

/// Opens a TCP connection from a loopback address.
///
/// # Errors
/// Why it failed.
pub async fn tcp_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let tcp = socket.connect(to).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// The `n`th of many loopback addresses, none of which is 127.0.0.1.
#[must_use]
pub fn neighbour(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f01_0000 + n % 0x00fe_0000)
}

/// A random loopback address to listen on. While the server is down, no connection of another test
/// takes its port.
#[must_use]
pub fn random_loopback() -> SocketAddr {
    let [a, b, c] = random();
    (Ipv4Addr::new(127, a, b, c.clamp(1, 254)), 0).into()
}

/// A header of the PROXY protocol, version 2, that reports this client, port 12345.
#[must_use]
pub fn proxy_header(client: [u8; 4]) -> Vec<u8> {
    // PROXY, TCP over IPv4, 12 bytes: the addresses of source and destination, then their ports.
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client);
    header.extend([127, 0, 0, 1, 0x30, 0x39, 0x20, 0xfb]);
    header
}
