//! The session state machine (sections 5, 6 and 9): one end of an authenticated connection.
//!
//! It does no I/O and reads no clock: the caller passes bytes, time and randomness. A session owns
//! both chains and the outgoing bytes, so sealing and enqueueing are one atomic step. The calling
//! order:
//!
//! - [`Session::handle_bytes`] when any bytes arrive, [`Session::handle_frame`] for each whole
//!   frame; its [`SessionEvent`] borrows from the payload, which was opened in place;
//! - [`Session::handle_timeout`] at [`Session::poll_timeout`];
//! - after any call: send the bytes of [`Session::outgoing`] and pass the number of bytes sent to
//!   [`Session::sent`];
//! - once [`Session::is_closed`]: flush, shut down the sending direction, read and discard for up
//!   to 1 s.
//!
//! A [`SessionFault`] ends the session. Its CLOSE, if it has one, is then in the outgoing bytes.

mod rekeying;
#[cfg(test)]
mod tests;
mod time;
mod types;

use std::time::Instant;

use crate::Entropy;
use crate::frame::{CloseCode, Due, Header};
use crate::handshake::{Established, Side};
use crate::id::{CredentialId, ServerKey, SessionId};
use crate::keys::{ChainKey, RootKey};
use crate::limits::VERSION;
use crate::rekey::AwaitRekey2;
use crate::seal::{Chain, MessageType, OpenFrameError, OpenedFrame, TooLarge};

pub use types::{
    Binding, BindingPolicy, SendError, SessionConfig, SessionEvent, SessionFacts, SessionFault,
};

/// Bytes of READY before its protobuf: binding flag, binding value, highest version.
const READY_PREFIX: usize = 34;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    AwaitReady,
    Open,
    Ended,
}

enum Rekey {
    /// No rekey is in progress.
    Idle,
    /// Client: REKEY1 is sealed, REKEY2 has not arrived.
    AwaitRekey2(Box<AwaitRekey2>),
    /// Server: REKEY2 is sealed. Contains the key of the client's next chain, used from REKEY3 on.
    AwaitRekey3(ChainKey),
}

/// One end of an authenticated connection.
pub struct Session {
    side: Side,
    config: SessionConfig,
    phase: Phase,
    send: Chain,
    recv: Chain,
    rk: RootKey,
    rekey: Rekey,
    out: Outgoing,
    sid: SessionId,
    server_key: ServerKey,
    credential: CredentialId,
    binding: Option<Binding>,
    rekeys: u32,
    following: bool,
    close_sent: bool,
    began: Instant,
    epoch_began: Instant,
    epoch_traffic: bool,
    /// When [`Session::handle_timeout`] first found traffic in this epoch.
    traffic_since: Option<Instant>,
    /// When REKEY2 of the last rekey was processed (client) or sealed (server).
    last_rekey: Option<Instant>,
    /// Client: start a rekey as soon as it is allowed.
    rekey_wanted: bool,
    last_byte: Instant,
    ping_sent: Option<Instant>,
    ping: u64,
}

/// The outgoing bytes. Removing bytes from the front does not move the rest each time.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn pending(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    fn consume(&mut self, n: usize) {
        self.sent = self.sent.saturating_add(n);
        if self.sent < self.bytes.len() {
            // A buffer that is never empty must not grow with all bytes ever sent. Compacting it
            // only when more than half is sent moves each byte at most once on average.
            if self.sent > 65_536 && self.sent > self.bytes.len() / 2 {
                self.bytes.drain(..self.sent);
                self.sent = 0;
            }
        } else {
            // An idle session keeps at most 4 KiB.
            if self.bytes.capacity() > 4096 {
                self.bytes = Vec::new();
            }
            self.bytes.clear();
            self.sent = 0;
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}, {:?}, {:?})", self.sid, self.side, self.phase)
    }
}

impl Session {
    /// Starts a session and seals its READY, which is in the outgoing bytes.
    #[must_use]
    pub fn new(established: Established, config: SessionConfig, now: Instant) -> Self {
        let Established { side, ck_c2s, ck_s2c, rk, sid, server_key, credential } = established;
        let (send, recv) = match side {
            Side::Client => (ck_c2s, ck_s2c),
            Side::Server => (ck_s2c, ck_c2s),
        };
        let mut session = Self {
            side,
            phase: Phase::AwaitReady,
            send: Chain::new(send, 0),
            recv: Chain::new(recv, 0),
            rk,
            rekey: Rekey::Idle,
            out: Outgoing::default(),
            sid,
            server_key,
            credential,
            binding: None,
            rekeys: 0,
            following: false,
            close_sent: false,
            began: now,
            epoch_began: now,
            epoch_traffic: true,
            traffic_since: Some(now),
            last_rekey: None,
            rekey_wanted: false,
            last_byte: now,
            ping_sent: None,
            ping: 0,
            config,
        };
        session.queue_ready();
        session
    }

    /// Creates an open session in epoch 0 after `sent` and `received` frames, for the test vectors.
    #[cfg(test)]
    pub(crate) fn resumed(
        established: Established,
        config: SessionConfig,
        now: Instant,
        sent: u64,
        received: u64,
    ) -> Self {
        let key = |key: &ChainKey| ChainKey::new(key.expose_secret());
        let (ck_c2s, ck_s2c) = (key(&established.ck_c2s), key(&established.ck_s2c));
        let (send, recv) = match established.side {
            Side::Client => (ck_c2s, ck_s2c),
            Side::Server => (ck_s2c, ck_c2s),
        };
        let mut session = Self::new(established, config, now);
        session.send = Chain::at(send, 0, sent);
        session.recv = Chain::at(recv, 0, received);
        session.out = Outgoing::default();
        session.phase = Phase::Open;
        session
    }

    #[cfg(test)]
    pub(crate) fn root_key(&self) -> &RootKey {
        &self.rk
    }

    fn queue_ready(&mut self) {
        let value = match self.config.binding {
            BindingPolicy::Off => None,
            BindingPolicy::Require | BindingPolicy::Warn => self.config.exporter,
        };
        let mut body = Vec::with_capacity(READY_PREFIX + self.config.info.len());
        body.push(u8::from(value.is_some()));
        body.extend_from_slice(&value.unwrap_or_default());
        body.push(self.config.max_version);
        body.append(&mut self.config.info);
        // READY omits an Info that is too long for a frame; every field of Info is optional.
        if self.queue(MessageType::Ready, &body).is_err() {
            body.truncate(READY_PREFIX);
            let _fits = self.queue(MessageType::Ready, &body);
        }
    }

    fn queue(&mut self, mtype: MessageType, body: &[u8]) -> Result<(), TooLarge> {
        self.send.seal(mtype, body, &mut self.out.bytes)
    }

    // ---- facts

    /// The session's public identifier, for logs and status.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.sid
    }

    /// The server's key, as the handshake authenticated it.
    #[must_use]
    pub fn server_key(&self) -> ServerKey {
        self.server_key
    }

    /// The credential of the login.
    #[must_use]
    pub fn credential(&self) -> &CredentialId {
        &self.credential
    }

    /// When the session started.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Counters and states for `status`.
    #[must_use]
    pub fn facts(&self) -> SessionFacts {
        SessionFacts {
            epoch: (self.send.epoch(), self.recv.epoch()),
            frames: (self.send.frames(), self.recv.frames()),
            rekeys: self.rekeys,
            last_rekey: self.last_rekey,
            binding: self.binding,
        }
    }

    /// Whether APP and BULK frames may be sent: the peer's READY has arrived, and the session has
    /// not ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the session has ended. The caller sends the outgoing bytes and handles no more
    /// frames.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// The frame headers that the reader may accept now.
    #[must_use]
    pub fn due(&self) -> Due {
        match (self.phase, self.side) {
            (Phase::AwaitReady, Side::Client) => Due::FirstSealed,
            _ => Due::Session,
        }
    }

    /// The current keys of the sending and the receiving chain, and the root key.
    ///
    /// For tests that search memory for used keys.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn expose_keys(&self) -> [zeroize::Zeroizing<[u8; 32]>; 3] {
        let (send, recv) = (self.send.key(), self.recv.key());
        [send.expose_secret(), recv.expose_secret(), self.rk.expose_secret()]
            .map(|key| zeroize::Zeroizing::new(*key))
    }

    // ---- out

    /// Bytes to send now.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        self.out.pending()
    }

    /// Removes the first `n` outgoing bytes, because the transport has accepted them.
    pub fn sent(&mut self, n: usize) {
        self.out.consume(n);
    }

    /// Seals an APP frame.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_app(&mut self, body: &[u8]) -> Result<(), SendError> {
        if self.phase != Phase::Open {
            return Err(SendError::NotOpen);
        }
        self.queue(MessageType::App, body)?;
        self.epoch_traffic = true;
        Ok(())
    }

    /// Seals a BULK frame of 1..=262144 bytes.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_bulk(&mut self, transfer: u32, offset: u64, data: &[u8]) -> Result<(), SendError> {
        if self.phase != Phase::Open {
            return Err(SendError::NotOpen);
        }
        self.send.seal_bulk(transfer, offset, data, &mut self.out.bytes)?;
        self.epoch_traffic = true;
        Ok(())
    }

    /// Seals a CLOSE with this code and ends the session. A repeated call has no effect.
    pub fn close(&mut self, code: CloseCode) {
        if !self.close_sent && self.phase != Phase::Ended {
            self.close_sent = true;
            let _fits = self.queue(MessageType::Close, &code.number().to_be_bytes());
        }
        self.phase = Phase::Ended;
        self.rekey = Rekey::Idle;
    }

    /// Ends the session without a CLOSE and discards the outgoing bytes.
    ///
    /// For what must not be answered: an invalid frame header or an ERROR, which the reader
    /// detects, and a frame that is not authentic.
    pub fn abandon(&mut self) {
        self.out = Outgoing::default();
        self.phase = Phase::Ended;
        self.rekey = Rekey::Idle;
    }

    /// Whether this end has sealed its CLOSE, the last frame of its direction.
    #[must_use]
    pub fn has_said_close(&self) -> bool {
        self.close_sent
    }

    /// Sets whether the session follows a conversation or waits for an ack. If so, it sends PING
    /// after [`Timing::ping_following`] instead of [`Timing::ping_idle`].
    ///
    /// [`Timing::ping_following`]: crate::limits::Timing::ping_following
    /// [`Timing::ping_idle`]: crate::limits::Timing::ping_idle
    pub fn set_following(&mut self, following: bool) {
        self.following = following;
    }

    // ---- in

    /// Restarts the keep-alive timer, because bytes from the peer show that it is alive.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.last_byte = now;
        self.ping_sent = None;
    }

    /// Opens one whole frame in place and handles it.
    ///
    /// [`Header::parse`] must have accepted its header under [`Session::due`].
    ///
    /// # Errors
    /// [`SessionFault`]: the session has ended. Its CLOSE, if it has one, is in the outgoing bytes.
    pub fn handle_frame<'a>(
        &mut self,
        header: Header,
        payload: &'a mut [u8],
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<SessionEvent<'a>, SessionFault> {
        if self.phase == Phase::Ended {
            return Err(SessionFault::Ended);
        }
        let result = match self.recv.open(header, payload) {
            Ok(opened) => self.handle_opened(opened, now, entropy),
            Err(OpenFrameError::Violation(what)) => Err(SessionFault::Violation(what)),
            Err(OpenFrameError::Drop) => Err(SessionFault::Tampered),
        };
        result.inspect_err(|fault| self.fail(fault))
    }

    fn fail(&mut self, fault: &SessionFault) {
        match fault.close_code() {
            Some(code) => self.close(code),
            None => self.abandon(),
        }
    }

    fn handle_opened<'a>(
        &mut self,
        opened: OpenedFrame<'a>,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<SessionEvent<'a>, SessionFault> {
        use MessageType as M;
        match (opened, self.phase) {
            (OpenedFrame::Message(M::Close, body), _) => {
                let code =
                    body.try_into().map_err(|_| SessionFault::Violation("length of CLOSE"))?;
                self.close(CloseCode::Bye);
                Ok(SessionEvent::Closed(CloseCode::from_number(u16::from_be_bytes(code))))
            }
            (OpenedFrame::Message(M::Ready, body), Phase::AwaitReady) => self.handle_ready(body),
            (OpenedFrame::Message(M::Ready, _), _) => {
                Err(SessionFault::Violation("a second READY"))
            }
            (_, Phase::AwaitReady) => {
                Err(SessionFault::Violation("a first frame other than READY"))
            }
            (OpenedFrame::Message(M::App, body), _) => {
                self.epoch_traffic = true;
                Ok(SessionEvent::App(body))
            }
            (OpenedFrame::Bulk { transfer, offset, data }, _) => {
                self.epoch_traffic = true;
                Ok(SessionEvent::Bulk { transfer, offset, data })
            }
            (OpenedFrame::Message(M::Ping, body), _) => {
                let echo: [u8; 8] =
                    body.try_into().map_err(|_| SessionFault::Violation("length of PING"))?;
                let _fits = self.queue(M::Pong, &echo);
                Ok(SessionEvent::Nothing)
            }
            (OpenedFrame::Message(M::Pong, body), _) if body.len() == 8 => {
                Ok(SessionEvent::Nothing)
            }
            (OpenedFrame::Message(M::Pong, _), _) => Err(SessionFault::Violation("length of PONG")),
            (OpenedFrame::Message(M::Rekey1, body), _) => self.handle_rekey1(body, now, entropy),
            (OpenedFrame::Message(M::Rekey2, body), _) => self.handle_rekey2(body, now),
            (OpenedFrame::Message(M::Rekey3, body), _) => self.handle_rekey3(body, now),
        }
    }

    fn handle_ready<'a>(&mut self, body: &'a [u8]) -> Result<SessionEvent<'a>, SessionFault> {
        let short = SessionFault::Violation("length of READY");
        let (&[binding, value @ .., max_version], info) =
            body.split_first_chunk::<READY_PREFIX>().ok_or(short)?;
        if binding > 1 || (binding == 0 && value != [0; 32]) || max_version == 0 {
            return Err(SessionFault::Violation("form of READY"));
        }
        let possible = max_version.min(self.config.max_version);
        if possible > VERSION {
            return Err(SessionFault::Downgrade(possible));
        }
        let binding = self.check_binding((binding == 1).then_some(value))?;
        self.binding = Some(binding);
        self.phase = Phase::Open;
        Ok(SessionEvent::Ready { info, binding })
    }

    fn check_binding(&self, peer: Option<[u8; 32]>) -> Result<Binding, SessionFault> {
        let seen = match (self.config.exporter, peer) {
            (Some(own), Some(peer)) if own == peer => Binding::Bound,
            (Some(_), Some(_)) => Binding::Cut,
            _ => Binding::Unknown,
        };
        match (self.config.binding, seen) {
            (BindingPolicy::Off, _) => Ok(Binding::Off),
            (BindingPolicy::Require, Binding::Bound) | (BindingPolicy::Warn, _) => Ok(seen),
            (BindingPolicy::Require, _) => Err(SessionFault::Binding),
        }
    }
}
