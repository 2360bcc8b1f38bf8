//! A stream of lines: buffers input until a line is complete, and output until it is sent.
//!
//! Only [`LineStream::wait`] waits before the final [`LineStream::finish`]. It is cancel-safe.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, timeout};
use twinlock_transport::Hex;

/// Size of a read. A bridge message and most lines fit.
const READ_CHUNK: usize = 8 * 1024;
/// Bytes read before they are processed.
const READ_BATCH: usize = 64 * 1024;
/// Bytes of unsent answers beyond which nothing is read, so that a peer that takes none of them
/// cannot make the server buffer more.
const MAX_OUT: usize = 32 * 1024;
/// Timeout for the last bytes.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream can no longer be used.
#[derive(Debug, Error)]
pub(super) enum StreamLost {
    #[error("cut: {}", twinlock_transport::io_words(.0))]
    Cut(#[from] io::Error),
    #[error("a line is too long")]
    TooLong,
    #[error("the peer accepts no data")]
    Stalled,
}

/// Why [`LineStream::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamWake {
    /// More bytes arrived, and no more are readable for now.
    Data,
    /// The peer sends no more.
    End,
    /// There is room for answers again.
    Room,
}

pub(super) struct LineStream<S> {
    stream: S,
    /// The peer's address, for the log.
    peer: SocketAddr,
    inbox: Vec<u8>,
    /// Length of the inbox that is known to have no line end.
    searched: usize,
    out: Vec<u8>,
    unflushed: bool,
    /// The peer sends no more.
    ended: bool,
    /// Since when the peer has taken none of the pending bytes.
    stuck: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> LineStream<S> {
    pub(super) fn new(stream: S, peer: SocketAddr) -> Self {
        Self {
            stream,
            peer,
            inbox: Vec::new(),
            searched: 0,
            out: Vec::new(),
            unflushed: false,
            ended: false,
            stuck: None,
        }
    }

    /// The next line without its LF, of at most `max` bytes.
    pub(super) fn take_line(&mut self, max: usize) -> Result<Option<Vec<u8>>, StreamLost> {
        let unsearched = self.inbox.get(self.searched..).unwrap_or_default();
        match unsearched.iter().position(|b| *b == b'\n').map(|at| at + self.searched) {
            Some(at) if at <= max => {
                let rest = self.inbox.split_off(at + 1);
                let mut line = std::mem::replace(&mut self.inbox, rest);
                line.pop();
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.inbox.len() <= max => {
                self.searched = self.inbox.len();
                Ok(None)
            }
            _ => Err(StreamLost::TooLong),
        }
    }

    /// The bytes of an incomplete line.
    pub(super) fn pending(&self) -> &[u8] {
        &self.inbox
    }

    /// Drops the bytes of an incomplete line.
    pub(super) fn clear(&mut self) {
        self.inbox = Vec::new();
        self.searched = 0;
    }

    /// Whether there is room for more answers.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() < MAX_OUT
    }

    /// The bytes to send.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// When to check whether the peer still takes bytes, with `limit` as its longest pause; `None`
    /// while nothing is being sent.
    pub(super) fn check_at(&self, limit: Duration) -> Option<Instant> {
        let waits = !self.out.is_empty() || self.unflushed;
        waits.then(|| self.stuck.unwrap_or_else(Instant::now) + limit)
    }

    /// Checks that the peer takes bytes.
    ///
    /// # Errors
    /// [`StreamLost::Stalled`] if it has taken none for `limit`.
    pub(super) fn check(&self, limit: Duration) -> Result<(), StreamLost> {
        match self.stuck {
            Some(since) if since.elapsed() >= limit => Err(StreamLost::Stalled),
            _ => Ok(()),
        }
    }

    /// Sends pending bytes and, with `listen`, receives, until there is something to process.
    /// Cancel-safe.
    pub(super) async fn wait(&mut self, listen: bool) -> Result<StreamWake, StreamLost> {
        poll_fn(|cx| self.poll_wait(cx, listen)).await
    }

    fn poll_wait(
        &mut self,
        cx: &mut Context<'_>,
        listen: bool,
    ) -> Poll<Result<StreamWake, StreamLost>> {
        let had_room = self.has_room();
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error.into()));
        }
        if self.has_room() && !had_room {
            return Poll::Ready(Ok(StreamWake::Room));
        }
        if listen { self.poll_receive(cx) } else { Poll::Pending }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    let bytes = self.out.get(..n).unwrap_or(&self.out);
                    tracing::debug!(peer = %self.peer, n, bytes = ?Hex(bytes), "sent");
                    self.out.drain(..n);
                    self.unflushed = true;
                    self.stuck = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.stuck.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        if self.unflushed {
            // Bytes in the TLS buffer count as not taken.
            self.stuck.get_or_insert_with(Instant::now);
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
            self.out = Vec::new();
        }
        self.stuck = None;
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<StreamWake, StreamLost>> {
        let before = self.inbox.len();
        while !self.ended {
            let mut space = [0; READ_CHUNK];
            let mut space = ReadBuf::new(&mut space);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut space);
            match read {
                Poll::Ready(Ok(())) if !space.filled().is_empty() => {
                    let bytes = space.filled();
                    let n = bytes.len();
                    tracing::debug!(peer = %self.peer, n, bytes = ?Hex(bytes), "received");
                    self.inbox.extend_from_slice(bytes);
                    if self.inbox.len() - before >= READ_BATCH {
                        break;
                    }
                }
                // The origin's clients disconnect without notice, so an error is an ordinary end.
                Poll::Ready(_) => {
                    self.ended = true;
                    break;
                }
                Poll::Pending if self.inbox.len() > before => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        // Bytes that arrived before the end are processed first.
        let data = self.inbox.len() > before;
        Poll::Ready(Ok(if data { StreamWake::Data } else { StreamWake::End }))
    }

    /// Sends the pending bytes, and closes the stream.
    pub(super) async fn finish(mut self) {
        let leave = async {
            let sent = poll_fn(|cx| self.poll_send(cx)).await;
            if sent.is_ok() {
                // The peer may have disconnected already.
                let _gone = self.stream.shutdown().await;
            }
        };
        let _late = timeout(FINAL_WRITE_TIMEOUT, leave).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    const PEER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[tokio::test]
    async fn classic_transport__fragmented_lines_are_reassembled() {
        let (here, mut there) = duplex(64 * 1024);
        let mut stream = LineStream::new(here, PEER);
        let mut seen = Vec::new();
        for piece in [&b"a"[..], b"bc\nd\n\ne", b"f", b"\n"] {
            there.write_all(piece).await.unwrap();
            assert_eq!(stream.wait(true).await.unwrap(), StreamWake::Data);
            while let Some(line) = stream.take_line(3).unwrap() {
                seen.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!(seen, ["abc", "d", "", "ef"]);
        // Bytes that arrive together with the end come before it.
        there.write_all(b"g").await.unwrap();
        drop(there);
        assert_eq!(stream.wait(true).await.unwrap(), StreamWake::Data);
        assert_eq!(stream.pending(), b"g");
        for _ in 0..2 {
            assert_eq!(stream.wait(true).await.unwrap(), StreamWake::End);
        }
    }

    #[tokio::test]
    async fn classic_transport__oversized_line_is_rejected() {
        for text in ["abcd", "abcd\n"] {
            let (here, mut there) = duplex(64);
            let mut stream = LineStream::new(here, PEER);
            there.write_all(text.as_bytes()).await.unwrap();
            stream.wait(true).await.unwrap();
            assert!(matches!(stream.take_line(3), Err(StreamLost::TooLong)));
        }
    }

    #[tokio::test]
    async fn classic_transport__stalled_peer_is_detected() {
        let (here, mut there) = duplex(16);
        let mut stream = LineStream::new(here, PEER);
        stream.out().extend_from_slice(&[7; 100]);
        let waited = timeout(Duration::from_millis(1), stream.wait(true)).await;
        assert!(waited.is_err() && stream.check_at(Duration::ZERO).is_some());
        assert!(matches!(stream.check(Duration::ZERO), Err(StreamLost::Stalled)));
        assert!(stream.check(Duration::from_secs(60)).is_ok());
        let read = async {
            let mut all = Vec::new();
            there.read_to_end(&mut all).await.unwrap();
            all
        };
        assert_eq!(tokio::join!(stream.finish(), read).1, [7; 100]);
    }

    #[tokio::test]
    async fn classic_transport__unread_answers_cause_backpressure() {
        let (here, mut there) = duplex(16);
        let mut stream = LineStream::new(here, PEER);
        stream.out().extend_from_slice(&[7; MAX_OUT + 50]);
        assert!(!stream.has_room());
        let waited = timeout(Duration::from_millis(1), stream.wait(false)).await;
        assert!(waited.is_err() && !stream.has_room());
        let read = async {
            let mut some = [0; 60];
            there.read_exact(&mut some).await.unwrap();
        };
        let (woken, ()) = tokio::join!(stream.wait(false), read);
        assert_eq!(woken.unwrap(), StreamWake::Room);
        assert!(stream.has_room());
    }
}
