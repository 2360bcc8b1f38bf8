//! The stream under a session: reads, writes, and reports that the peer has closed.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A stream that reports that its peer has closed, even before all bytes are read.
///
/// A reader that applies backpressure needs this: it reads nothing, so it would not notice the end.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Whether the peer has closed its sending direction or the connection broke.
    ///
    /// As far as the system knows without a read; `false` does not prove that the peer is alive.
    fn has_peer_closed(&self) -> bool;
}

impl Transport for TcpStream {
    fn has_peer_closed(&self) -> bool {
        // Polled once, for what the reactor has seen so far.
        let ready = pin!(self.ready(Interest::READABLE));
        let ready = ready.poll(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }
}

impl<T: Transport> Transport for TlsStream<T> {
    fn has_peer_closed(&self) -> bool {
        self.get_ref().0.has_peer_closed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn transport__peer_close_is_detected_before_unread_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        peer.write_all(b"unread").await.unwrap();
        server.readable().await.unwrap();
        assert!(!server.has_peer_closed());
        drop(peer);
        while !server.has_peer_closed() {
            tokio::task::yield_now().await;
        }
        let mut unread = [0; 16];
        assert_eq!(server.try_read(&mut unread).unwrap(), 6);
    }
}
