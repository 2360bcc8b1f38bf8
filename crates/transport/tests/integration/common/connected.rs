//! Two ends of a login, and the connections after it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use twinlock_core::credential::Credential;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::handshake::self_register;
use twinlock_core::id::{DeviceId, ServerKey};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::opaque::{RECORD, ServerSetup};
use twinlock_core::session::{Binding, BindingPolicy, SessionConfig, SessionEvent};
use twinlock_transport::OsEntropy;
use twinlock_transport::connection::{Connection, ConnectionError};
use twinlock_transport::login::{Acceptor, LoginError, login, parse_hello};

pub fn device(secret: u8) -> Credential {
    Credential::Device(DeviceId([1; 16]), DeviceSecret::new(&[secret; 32]))
}

/// A server that knows the device with secret 2.
pub struct HandshakeServer {
    pub setup: ServerSetup,
    pub record: [u8; RECORD],
}

impl HandshakeServer {
    pub fn new() -> Self {
        let setup = ServerSetup::generate(&mut OsEntropy);
        let record = self_register(&setup, &device(2), &mut OsEntropy).unwrap();
        Self { setup, record }
    }

    pub fn key(&self) -> ServerKey {
        self.setup.server_key()
    }

    /// The server's side of a login, as the server performs it, without its limits.
    pub async fn accept_login<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: S,
        config: SessionConfig,
    ) -> Result<Connection<S>, LoginError> {
        let mut acceptor = Acceptor::new(io);
        let hello = match acceptor.read_hello().await.and_then(|hello| parse_hello(&hello)) {
            Ok(hello) => hello,
            Err(error) => {
                if let LoginError::Hello(twinlock_core::handshake::HelloFault::Answer(code)) = error
                {
                    acceptor.refuse(code).await;
                }
                return Err(error);
            }
        };
        let (state, challenge) =
            hello.challenge(&self.setup, Some(&self.record), &mut OsEntropy).unwrap();
        let proof = acceptor.exchange(&challenge).await?;
        match state.handle_proof(&proof) {
            Ok(established) => Ok(acceptor.into_connection(established, config)),
            Err(refused) => {
                acceptor.refuse(ErrorCode::Refused).await;
                Err(refused.into())
            }
        }
    }
}

pub fn config() -> SessionConfig {
    SessionConfig {
        binding: BindingPolicy::Off,
        exporter: None,
        info: b"info".to_vec(),
        max_version: VERSION,
        timing: Timing::default(),
    }
}

/// Client and server over any two ends, after both READY frames.
pub async fn connected_over<C, S>(client: C, server: S) -> (Connection<C>, Connection<S>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let host = HandshakeServer::new();
    let (server, client) = tokio::join!(
        host.accept_login(server, config()),
        login(client, device(2), Some(host.key()), config())
    );
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    // Client first: its READY needs no room in the other direction.
    let (a, b) = tokio::join!(next(&mut client), next(&mut server));
    assert_eq!(
        (a.unwrap(), b.unwrap()),
        (OwnedEvent::Ready(Binding::Off), OwnedEvent::Ready(Binding::Off))
    );
    (client, server)
}

/// Client and server over a pipe that holds `room` bytes each way.
pub async fn connected(room: usize) -> (Connection<DuplexStream>, Connection<DuplexStream>) {
    let (client, server) = duplex(room);
    connected_over(client, server).await
}

/// An event that owns its content.
#[derive(Debug, PartialEq, Eq)]
pub enum OwnedEvent {
    Nothing,
    Ready(Binding),
    App(Vec<u8>),
    Bulk(Vec<u8>),
    Rekeyed(u32),
    Closed(CloseCode),
}

pub fn open<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
) -> Result<OwnedEvent, ConnectionError> {
    Ok(match connection.open_frame()? {
        SessionEvent::Nothing => OwnedEvent::Nothing,
        SessionEvent::Ready { binding, .. } => OwnedEvent::Ready(binding),
        SessionEvent::App(body) => OwnedEvent::App(body.to_vec()),
        SessionEvent::Bulk { data, .. } => OwnedEvent::Bulk(data.to_vec()),
        SessionEvent::Rekeyed(epoch) => OwnedEvent::Rekeyed(epoch),
        SessionEvent::Closed(code) => OwnedEvent::Closed(code),
    })
}

/// Waits for the next frame and opens it.
pub async fn next<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
) -> Result<OwnedEvent, ConnectionError> {
    connection.wait(None).await?;
    open(connection)
}

/// Writes all outgoing bytes.
pub async fn flush<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S>) {
    connection.wait(Some(0)).await.unwrap();
}

/// Polls a future once.
pub async fn look<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Counts the writes that reach the underlying stream, and their bytes.
pub struct CountingStream<S> {
    pub inner: S,
    pub writes: Arc<AtomicUsize>,
    pub bytes: Arc<AtomicUsize>,
}

impl<S> CountingStream<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, writes: Arc::default(), bytes: Arc::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountingStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountingStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = polled {
            self.writes.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(n, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
