//! The byte stream over the messages of a WebSocket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::transport::Transport;

/// Longest message that is accepted, payload bytes of all its fragments. Twice as much is buffered
/// at worst: the fragments so far, and one more. That is possible before the login, so it is not
/// more than twice what is sent.
pub const MAX_MESSAGE: usize = 32 * 1024;

/// Longest message that is sent, payload bytes: with its header of at most 14 bytes it fills one
/// TLS record.
const CHUNK: usize = 16 * 1024 - 14;

/// Outgoing bytes that may be buffered: a message that the stream did not accept whole, and pongs.
const MAX_OUTGOING: usize = 32 * 1024;

/// Bytes of one read. The buffer exists as long as the connection, so it is small; a larger one
/// saves calls on busy connections.
const READ_BUFFER: usize = 8 * 1024;

/// A byte stream over a WebSocket with binary messages.
///
/// An invalid frame, a text message and a limit that is exceeded are errors of the read. The end of
/// the WebSocket, with or without a close frame, is the end of the stream. Shutdown sends the close
/// frame and ends the sending direction of the stream below.
pub struct WebSocket<S> {
    frames: WebSocketStream<S>,
    /// The rest of the message that is being read.
    message: Bytes,
    /// The close frame was sent, so that only the shutdown of the stream below remains.
    closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Takes the stream of a client after its handshake, and what was read beyond that.
    pub(super) async fn client(io: S, read_ahead: Vec<u8>) -> Self {
        Self::new(io, read_ahead, Role::Client).await
    }

    /// Takes the stream of a server after its handshake, and what was read beyond that.
    pub(super) async fn server(io: S, read_ahead: Vec<u8>) -> Self {
        Self::new(io, read_ahead, Role::Server).await
    }

    async fn new(io: S, read_ahead: Vec<u8>, role: Role) -> Self {
        // Unmasked frames of clients are refused by default.
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_OUTGOING)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let frames = WebSocketStream::from_partially_read(io, read_ahead, role, Some(config)).await;
        Self { frames, message: Bytes::new(), closed: false }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        self.frames.get_ref()
    }

    fn frames(self: Pin<&mut Self>) -> Pin<&mut WebSocketStream<S>> {
        Pin::new(&mut self.get_mut().frames)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.message.is_empty() {
            // The socket below limits the work of one poll: messages that are in the buffer already
            // are few.
            match ready!(self.as_mut().frames().poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => self.message = message,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Poll::Ready(Err(invalid("a text message")));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(read_end(error)),
            }
        }
        let n = self.message.len().min(buf.remaining());
        buf.put_slice(&self.message.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let chunk = bytes.get(..CHUNK).unwrap_or(bytes);
        if chunk.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut message = Message::Binary(Bytes::copy_from_slice(chunk));
        loop {
            ready!(self.as_mut().frames().poll_ready(cx)).map_err(write_error)?;
            match self.as_mut().frames().start_send(message) {
                Ok(()) => return Poll::Ready(Ok(chunk.len())),
                // Pongs fill the buffer.
                Err(Error::WriteBufferFull(returned)) => message = *returned,
                Err(error) => return Poll::Ready(Err(write_error(error))),
            }
            ready!(self.as_mut().frames().poll_flush(cx)).map_err(write_error)?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.frames().poll_flush(cx).map_err(write_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            // A peer that has closed already needs no close frame.
            match ready!(self.as_mut().frames().poll_close(cx)) {
                Ok(()) | Err(Error::Protocol(_) | Error::AlreadyClosed) => self.closed = true,
                Err(error) => return Poll::Ready(Err(write_error(error))),
            }
        }
        Pin::new(self.get_mut().frames.get_mut()).poll_shutdown(cx)
    }
}

impl<S: Transport> Transport for WebSocket<S> {
    fn has_peer_closed(&self) -> bool {
        self.get_ref().has_peer_closed()
    }
}

/// The result of a read that ended with an error: a lost connection is an end without bytes.
fn read_end(error: Error) -> io::Result<()> {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => Ok(()),
        Error::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => Ok(()),
        Error::Io(error) => Err(error),
        error => Err(invalid(error)),
    }
}

fn write_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::BrokenPipe, error),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
