//! A connection after login: a [`Session`] over a stream, driven by one task.
//!
//! [`Connection::wait`] writes outgoing bytes, reads incoming bytes and runs the timers (section
//! 9). It is cancel-safe, so a task can use it in a `select!` together with other futures. Sealing
//! and opening are synchronous: a frame is complete in the buffer before the task can be cancelled.
//! Login, limits and the content of frames belong to the callers.
//!
//! One task owns both directions, because they share the rekey and most wake-ups concern both. An
//! idle connection then costs one task (design 002).
//!
//! While more than [`HIGH_WATER`] bytes are outgoing, the connection reads nothing. A peer that
//! does not read its answers cannot make this end buffer them.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Sleep, sleep_until, timeout};
use twinlock_core::frame::{BadHeader, CloseCode, ErrorCode, FrameType, HEADER, Header};
use twinlock_core::session::{SendError, Session, SessionEvent, SessionFault};

use crate::{Hex, OsEntropy};

/// Time in which a peer must complete a frame after its first byte, and in which it must accept at
/// least one outgoing byte (section 9).
pub const FRAME_DEADLINE: Duration = Duration::from_secs(30);
/// Outgoing bytes above which a connection reads nothing. Raising it costs as much memory for each
/// slow peer.
pub const HIGH_WATER: usize = 256 * 1024;
/// Space reserved for one read, bytes: a TLS record.
const READ_CHUNK: usize = 16 * 1024;
/// Bytes after which reading pauses and frames are handled, so that one busy connection does not
/// starve the others.
const READ_BATCH: usize = 128 * 1024;
/// How long the sender of an ERROR or CLOSE reads and discards (section 3).
const LINGER: Duration = Duration::from_secs(1);
/// Timeout for sending the last bytes of a connection.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The stream failed or ended without CLOSE: a lost connection, not an orderly close.
    #[error("the connection was lost{}", .0.as_ref().map(|e| format!(": {}", crate::io_words(e))).unwrap_or_default())]
    Cut(Option<io::Error>),
    /// A frame has a type that is not due, or an invalid length.
    #[error(transparent)]
    Header(#[from] BadHeader),
    /// The session ended with a fault.
    #[error(transparent)]
    Fault(#[from] SessionFault),
    /// The server answered the login with an ERROR.
    #[error(transparent)]
    Refused(ErrorCode),
    /// The peer did not complete a frame within 30 s.
    #[error("the peer did not complete a frame in time")]
    HalfFrame,
    /// The peer has accepted no byte for 30 s.
    #[error("the peer accepts no data")]
    Stalled,
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Cut(Some(error))
    }
}

/// The result of [`Connection::wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// A frame can be opened.
    Frame,
    /// At most the requested number of bytes is outgoing, so more can be sent.
    Room,
}

/// A session over a stream.
pub struct Connection<S> {
    io: S,
    session: Session,
    input: ReadBuffer,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
    /// When the deadline of the incomplete frame in `input` began.
    frame_began: Option<Instant>,
    /// Since when the stream has accepted no outgoing byte.
    write_stuck: Option<Instant>,
    unflushed: bool,
    /// The first error of the stream, and until when received bytes are still handled.
    broken: Option<(io::Error, Instant)>,
}

/// Bytes that were read and not handled yet. Keeps no allocation while empty.
#[derive(Default)]
struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl ReadBuffer {
    fn pending(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The next frame's header, if its four bytes have arrived.
    fn header(&self) -> Option<[u8; HEADER]> {
        self.pending().first_chunk().copied()
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.bytes.len());
    }

    /// Moves the remaining bytes to the front, or frees the memory if none remain.
    fn compact(&mut self) {
        if self.start == self.bytes.len() {
            self.bytes = Vec::new();
        } else if self.start > 0 {
            self.bytes.drain(..self.start);
        }
        self.start = 0;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Creates the connection of a session on the stream of its handshake.
    pub fn new(io: S, session: Session) -> Self {
        let now = now();
        Self {
            io,
            session,
            input: ReadBuffer::default(),
            timer: Box::pin(sleep_until(now.into())),
            timer_at: now,
            frame_began: None,
            write_stuck: None,
            unflushed: false,
            broken: None,
        }
    }

    /// The session, to read its state.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, to seal frames or change its settings.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Whether the stream can still be written. If not, received bytes can be read for up to 1 s.
    #[must_use]
    pub fn can_write(&self) -> bool {
        self.broken.is_none()
    }

    /// The underlying stream.
    pub fn stream(&self) -> &S {
        &self.io
    }

    /// Ends the connection without a CLOSE and returns the stream.
    #[cfg(feature = "test-util")]
    pub fn into_stream(self) -> S {
        self.io
    }

    /// Seals an APP frame. The next [`Connection::wait`] sends all sealed frames together.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_app(&mut self, body: &[u8]) -> Result<(), SendError> {
        self.session.send_app(body)
    }

    /// Bytes sealed and not yet accepted by the stream.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.session.outgoing().len()
    }

    /// Starts a rekey now if it is allowed (client), and returns whether it did.
    pub fn start_rekey(&mut self) -> bool {
        self.session.start_rekey(now(), &mut OsEntropy)
    }

    /// Waits until a whole frame can be opened with [`Connection::open_frame`].
    ///
    /// With `room`, also returns once at most that number of bytes is outgoing. Writes, reads and
    /// runs the timers while it waits. Cancel-safe.
    ///
    /// # Errors
    /// [`ConnectionError`]: call [`Connection::finish`], which sends the CLOSE if there is one.
    pub async fn wait(&mut self, room: Option<usize>) -> Result<Wake, ConnectionError> {
        poll_fn(|cx| self.poll_wake(cx, room)).await
    }

    /// Writes outgoing bytes and runs the timers, without reading, until the connection fails.
    ///
    /// For a caller that cannot accept more input now. Cancel-safe.
    pub async fn wait_without_reading(&mut self) -> ConnectionError {
        poll_fn(|cx| {
            self.poll_write_out(cx);
            self.restart_timers();
            match self.poll_timers(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(error),
                Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Restarts the timers for silence and for an incomplete frame. While this end does not read,
    /// neither counts against the peer (section 9).
    fn restart_timers(&mut self) {
        let now = now();
        self.session.handle_bytes(now);
        self.frame_began = self.frame_began.map(|_| now);
    }

    /// Whether a whole frame is ready to be opened.
    ///
    /// # Errors
    /// [`BadHeader`] if the next bytes are not a frame that is due.
    pub fn has_frame(&self) -> Result<bool, BadHeader> {
        Ok(match self.input.header() {
            Some(bytes) => {
                let header = Header::parse(bytes, self.session.due())?;
                self.input.pending().len() >= HEADER + header.len
            }
            None => false,
        })
    }

    /// Opens the next frame and handles it in the session. Returns [`SessionEvent::Nothing`] if no
    /// whole frame has arrived.
    ///
    /// # Errors
    /// [`ConnectionError`]: call [`Connection::finish`].
    pub fn open_frame(&mut self) -> Result<SessionEvent<'_>, ConnectionError> {
        if !self.check_header(Self::has_frame)? {
            return Ok(SessionEvent::Nothing);
        }
        let Some(bytes) = self.input.header() else { return Ok(SessionEvent::Nothing) };
        let header = Header::parse(bytes, self.session.due())?;
        let start = self.input.start + HEADER;
        self.input.consume(HEADER + header.len);
        self.frame_began = (!self.input.pending().is_empty()).then(now);
        let payload = self.input.bytes.get_mut(start..start + header.len).unwrap_or_default();
        if header.frame == FrameType::Error {
            let payload = <[u8; 3]>::try_from(&*payload).unwrap_or_default();
            self.session.abandon();
            return Err(ConnectionError::Refused(ErrorCode::parse(payload)));
        }
        // Logs the ciphertext before opening overwrites it in place.
        tracing::debug!(
            sid = %self.session.id(), frame = ?header.frame, n = header.len, bytes = ?Hex(payload),
            "received"
        );
        Ok(self.session.handle_frame(header, payload, now(), &mut OsEntropy)?)
    }

    fn poll_wake(
        &mut self,
        cx: &mut Context<'_>,
        room: Option<usize>,
    ) -> Poll<Result<Wake, ConnectionError>> {
        loop {
            self.poll_write_out(cx);
            if let Some(error) = self.take_broken() {
                return Poll::Ready(Err(error));
            }
            // A busy connection never reaches `poll_timers`, so the session's timers are checked
            // here too.
            let due = self.session.poll_timeout().is_some_and(|at| at <= now());
            if self.check_header(Self::has_frame)? {
                if due {
                    // The frame shows that the peer is alive, even if this end handles it late.
                    self.session.handle_bytes(now());
                    self.handle_timeout(cx)?;
                }
                return Poll::Ready(Ok(Wake::Frame));
            }
            let has_room = |this: &Self| {
                this.broken.is_none() && room.is_some_and(|room| this.backlog() <= room)
            };
            if has_room(self) && !due {
                return Poll::Ready(Ok(Wake::Room));
            }
            // Backpressure: a peer that does not accept its answers is not read. The deadline of
            // `write_stuck` covers a peer that never accepts any.
            if self.backlog() > HIGH_WATER && self.broken.is_none() {
                self.restart_timers();
                return self.poll_timers(cx);
            }
            match self.poll_read_in(cx)? {
                Poll::Ready(()) => {}
                Poll::Pending if has_room(self) => {
                    self.handle_timeout(cx)?;
                    return Poll::Ready(Ok(Wake::Room));
                }
                Poll::Pending => return self.poll_timers(cx),
            }
        }
    }

    /// Applies a check to the next header. An invalid header ends the session without a CLOSE.
    fn check_header<T>(
        &mut self,
        ask: impl FnOnce(&Self) -> Result<T, BadHeader>,
    ) -> Result<T, BadHeader> {
        ask(self).inspect_err(|_| self.session.abandon())
    }

    fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        self.session.handle_timeout(now(), &mut OsEntropy)?;
        self.poll_write_out(cx);
        Ok(())
    }

    /// Writes as much as the stream accepts.
    ///
    /// A write error does not end the connection at once. For up to 1 s, the caller can still read
    /// what the peer sent before, such as file bytes or the ack of a message.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) {
        if self.broken.is_none()
            && let Err(error) = self.try_write_out(cx)
        {
            self.write_stuck = None;
            self.broken = Some((error, now() + LINGER));
        }
    }

    /// The error of a failed stream, once the time for reading is over.
    fn take_broken(&mut self) -> Option<ConnectionError> {
        let late = self.broken.as_ref().is_some_and(|(_, until)| *until <= now());
        if late { self.broken.take().map(|(error, _)| error.into()) } else { None }
    }

    fn try_write_out(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.session.outgoing().is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, self.session.outgoing()) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => {
                    let bytes = self.session.outgoing().get(..n).unwrap_or_default();
                    tracing::debug!(sid = %self.session.id(), n, bytes = ?Hex(bytes), "sent");
                    self.session.sent(n);
                    // A full stream has room again only because the peer accepted bytes. So the
                    // peer is alive, even if its PONG waits behind all bytes in flight.
                    if self.write_stuck.take().is_some() {
                        self.session.handle_bytes(now());
                    }
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.write_stuck.get_or_insert_with(now);
                    return Ok(());
                }
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    self.write_stuck = None;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.write_stuck.get_or_insert_with(now);
                }
            }
        }
        Ok(())
    }

    /// Reads until the stream has no more bytes or a batch is full. `Ready` if any arrived.
    fn poll_read_in(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ConnectionError> {
        self.input.compact();
        let mut received = false;
        while self.input.bytes.len() < READ_BATCH || !received {
            // More may follow the first read, so reserve space for a whole batch.
            let batch =
                if received { READ_BATCH.saturating_sub(self.input.bytes.len()) } else { 0 };
            self.input.bytes.reserve_exact(batch + READ_CHUNK);
            match pin!(self.io.read_buf(&mut self.input.bytes)).poll(cx) {
                Poll::Ready(Ok(1..)) => received = true,
                Poll::Ready(Ok(0)) if received => break,
                // The bytes that arrived before the error are handled first.
                Poll::Ready(Err(error)) if received => {
                    self.broken.get_or_insert((error, now() + LINGER));
                    break;
                }
                Poll::Ready(Ok(0)) => {
                    return Err(ConnectionError::Cut(self.broken.take().map(|(error, _)| error)));
                }
                Poll::Ready(Err(error)) => {
                    return Err(ConnectionError::Cut(Some(
                        self.broken.take().map_or(error, |(first, _)| first),
                    )));
                }
                Poll::Pending if received => break,
                Poll::Pending => {
                    self.input.compact();
                    return Ok(Poll::Pending);
                }
            }
        }
        let now = now();
        self.session.handle_bytes(now);
        self.frame_began.get_or_insert(now);
        Ok(Poll::Ready(()))
    }

    /// Handles due timers and arms the next one. `Pending` unless the connection failed.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Wake, ConnectionError>> {
        loop {
            let now = now();
            let half = (!self.input.pending().is_empty())
                .then_some(self.frame_began)
                .flatten()
                .map(|began| began + FRAME_DEADLINE);
            let stuck = self.write_stuck.map(|since| since + FRAME_DEADLINE);
            if let Some(error) = self.take_broken() {
                return Poll::Ready(Err(error));
            }
            let broken = self.broken.as_ref().map(|(_, until)| *until);
            if half.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(ConnectionError::HalfFrame));
            }
            if stuck.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(ConnectionError::Stalled));
            }
            if self.session.poll_timeout().is_some_and(|at| at <= now) {
                self.handle_timeout(cx)?;
            }
            let Some(next) =
                [half, stuck, broken, self.session.poll_timeout()].into_iter().flatten().min()
            else {
                return Poll::Pending;
            };
            // A timer that fires too early costs one check. Resetting it at each read costs more.
            if next < self.timer_at || self.timer.is_elapsed() {
                self.timer.as_mut().reset(next.into());
                self.timer_at = next;
            }
            ready!(self.timer.as_mut().poll(cx));
        }
    }

    /// Ends the connection with this code.
    ///
    /// Sends CLOSE within 5 s, shuts down the sending direction, then reads and discards for up to
    /// 1 s, so that a reset does not destroy the last frame.
    ///
    /// With CLOSE 0 the peer ends its direction first, for which this waits up to 1 s: some proxies
    /// do not pass a half-closed connection, and would leave this end without the peer's end.
    pub async fn close(mut self, code: CloseCode) {
        self.session.close(code);
        if self.write_rest().await {
            if code == CloseCode::Bye {
                part(&mut self.io).await;
            } else {
                linger(&mut self.io).await;
            }
        }
    }

    /// Sends the outgoing bytes, then ends the connection as [`Connection::close`] does with any code
    /// but 0.
    ///
    /// Drops the connection at once if the stream has failed, or if no CLOSE is sealed and either
    /// nothing is left to send or the session was abandoned (an invalid header, a frame that is not
    /// authentic).
    pub async fn finish(mut self) {
        if self.write_rest().await {
            linger(&mut self.io).await;
        }
    }

    /// Writes the outgoing bytes within 5 s. `false` if the connection is to be dropped at once.
    async fn write_rest(&mut self) -> bool {
        let nothing_left = self.session.outgoing().is_empty() && !self.unflushed;
        let silent = !self.session.has_said_close() && (nothing_left || self.session.is_closed());
        if silent || self.broken.is_some() {
            return false;
        }
        let _late = timeout(FINAL_WRITE_TIMEOUT, async {
            while !self.session.outgoing().is_empty() {
                let n = self.io.write(self.session.outgoing()).await?;
                self.session.sent(n);
            }
            self.io.flush().await
        })
        .await;
        true
    }
}

/// The runtime's clock, which tests can control.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Shuts down the sending direction, then reads and discards for up to 1 s.
pub(crate) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S) {
    let dropped = pin!(async {
        io.shutdown().await?;
        discard(io).await
    });
    let _late = timeout(LINGER, dropped).await;
}

/// Reads and discards until the peer's direction ends, for up to 1 s, then shuts down the sending
/// direction.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S) {
    let _late = timeout(LINGER, discard(io)).await;
    // Without waiting: all was written and flushed before.
    let _late = timeout(Duration::ZERO, io.shutdown()).await;
}

/// Reads and discards until the stream ends.
async fn discard<S: AsyncRead + Unpin>(io: &mut S) -> io::Result<()> {
    let mut sink = [0; 1024];
    while io.read(&mut sink).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests;
