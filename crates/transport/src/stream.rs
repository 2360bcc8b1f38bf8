//! The streams that carry a session: TLS or plain TCP, with or without WebSocket.
//!
//! [`Carrier`] is what the bytes of the transport travel on, [`SessionStream`] what a session reads
//! and writes. Both ends use them, with their own type `T` of TLS stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::transport::Transport;
use crate::websocket::WebSocket;

/// A connection over TLS, or over plain TCP where TLS ends in front of the server.
#[allow(clippy::large_enum_variant, reason = "nearly all connections use TLS")]
#[derive(Debug)]
pub enum Carrier<T> {
    /// TLS reaches this end.
    Tls(T),
    /// It does not.
    Plain(TcpStream),
}

/// The stream of a session.
#[allow(clippy::large_enum_variant, reason = "most sessions run directly")]
pub enum SessionStream<C> {
    /// The session's frames follow each other.
    Direct(C),
    /// They are the content of binary messages.
    WebSocket(Box<WebSocket<C>>),
}

impl<T: AsyncBufRead + Unpin> Carrier<T> {
    /// Waits for the first byte and leaves it unread. `None` if the stream ends before.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn first_byte(&mut self) -> io::Result<Option<u8>> {
        match self {
            Self::Tls(tls) => Ok(tls.fill_buf().await?.first().copied()),
            Self::Plain(tcp) => {
                let mut byte = [0];
                let read = tcp.peek(&mut byte).await?;
                Ok((read > 0).then_some(byte[0]))
            }
        }
    }
}

/// Forwards reads and writes to the variants of an enum.
macro_rules! forward {
    ($type:ident<$parameter:ident>, $($variant:ident)|+, $bound:path) => {
        impl<$parameter: $bound + Unpin> AsyncRead for $type<$parameter> {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(io) => Pin::new(io).poll_read(cx, buf),)+
                }
            }
        }

        impl<$parameter: $bound + Unpin> AsyncWrite for $type<$parameter> {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(io) => Pin::new(io).poll_write(cx, bytes),)+
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(io) => Pin::new(io).poll_flush(cx),)+
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(io) => Pin::new(io).poll_shutdown(cx),)+
                }
            }
        }

        impl<$parameter: Transport> Transport for $type<$parameter> {
            fn has_peer_closed(&self) -> bool {
                match self {
                    $(Self::$variant(io) => io.has_peer_closed(),)+
                }
            }
        }
    };
}

/// Any stream in both directions.
trait Duplex: AsyncRead + AsyncWrite {}
impl<S: AsyncRead + AsyncWrite> Duplex for S {}

forward!(Carrier<T>, Tls | Plain, Duplex);
forward!(SessionStream<C>, Direct | WebSocket, Duplex);
