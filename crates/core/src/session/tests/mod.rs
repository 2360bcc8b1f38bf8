//! Sessions of a real handshake, with a clock that the tests control and without sockets.

mod laws;
mod model;
mod timing;

use std::time::{Duration, Instant};

use super::*;
use crate::credential::Credential;
use crate::frame::HEADER;
use crate::handshake::{AwaitChallenge, Hello, self_register};
use crate::id::DeviceId;
use crate::keys::DeviceSecret;
use crate::legacy_crypto::opaque::ServerSetup;
use crate::limits::Timing;
use crate::test_entropy::Seeded;

/// Both ends of a device's login, client first.
pub(super) fn established(seed: u64) -> [Established; 2] {
    let entropy = &mut Seeded(seed);
    let device = || Credential::Device(DeviceId([7; 16]), DeviceSecret::new(&[9; 32]));
    let setup = ServerSetup::generate(entropy);
    let record = self_register(&setup, &device(), entropy).unwrap();
    let (client, hello) =
        AwaitChallenge::start(device(), Some(setup.server_key()), entropy).unwrap();
    let hello = Hello::parse(&hello[HEADER..]).unwrap();
    let (server, challenge) = hello.challenge(&setup, Some(&record), entropy).unwrap();
    let challenge = challenge[HEADER..].try_into().unwrap();
    let (client, proof) = client.handle_challenge(&challenge, entropy).unwrap();
    let server = server.handle_proof(&proof[HEADER..].try_into().unwrap()).unwrap();
    [client, server]
}

pub(super) fn config() -> SessionConfig {
    SessionConfig {
        binding: BindingPolicy::Warn,
        exporter: Some([5; 32]),
        info: b"info".to_vec(),
        max_version: VERSION,
        timing: Timing::default(),
    }
}

/// A session, and its peer as bare chains that can send what no session would.
pub(super) struct Bare {
    pub(super) session: Session,
    pub(super) send: Chain,
    pub(super) recv: Chain,
    pub(super) now: Instant,
}

impl Bare {
    pub(super) fn new(side: Side, config: SessionConfig) -> Self {
        let [client, server] = established(1);
        let (mine, theirs) = match side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let (send, recv) = match side {
            Side::Client => (theirs.ck_s2c, theirs.ck_c2s),
            Side::Server => (theirs.ck_c2s, theirs.ck_s2c),
        };
        let now = Instant::now();
        let session = Session::new(mine, config, now);
        Self { session, send: Chain::new(send, 0), recv: Chain::new(recv, 0), now }
    }

    /// Creates a session after both READY frames.
    pub(super) fn open(side: Side) -> Self {
        let mut bare = Self::new(side, config());
        assert!(matches!(bare.say(MessageType::Ready, &ready(None, VERSION)), Ok(Said::Ready(_))));
        assert_eq!(bare.heard(), [(MessageType::Ready, ready(Some([5; 32]), VERSION))]);
        bare
    }

    /// The peer seals this message and the session reads it.
    pub(super) fn say(&mut self, mtype: MessageType, body: &[u8]) -> Result<Said, SessionFault> {
        let mut frame = Vec::new();
        self.send.seal(mtype, body, &mut frame).unwrap();
        self.read(&mut frame)
    }

    pub(super) fn read(&mut self, frame: &mut [u8]) -> Result<Said, SessionFault> {
        let (header, payload) = frame.split_first_chunk_mut::<HEADER>().unwrap();
        let header = Header::parse(*header, self.session.due()).unwrap();
        self.session.handle_bytes(self.now);
        let event = self.session.handle_frame(header, payload, self.now, &mut Seeded(2))?;
        Ok(match event {
            SessionEvent::Nothing => Said::Nothing,
            SessionEvent::Ready { binding, .. } => Said::Ready(binding),
            SessionEvent::App(body) => Said::App(body.to_vec()),
            SessionEvent::Bulk { .. } => Said::Bulk,
            SessionEvent::Rekeyed(epoch) => Said::Rekeyed(epoch),
            SessionEvent::Closed(code) => Said::Closed(code),
        })
    }

    /// The messages that the session has sealed since the last call, opened by the peer.
    pub(super) fn heard(&mut self) -> Vec<(MessageType, Vec<u8>)> {
        let mut out = self.session.outgoing().to_vec();
        self.session.sent(out.len());
        let mut heard = Vec::new();
        let mut rest = &mut out[..];
        while !rest.is_empty() {
            let header = Header::parse(*rest.first_chunk().unwrap(), Due::Session).unwrap();
            let (frame, after) = rest.split_at_mut(HEADER + header.len);
            match self.recv.open(header, &mut frame[HEADER..]).unwrap() {
                OpenedFrame::Message(mtype, body) => heard.push((mtype, body.to_vec())),
                OpenedFrame::Bulk { .. } => panic!("no BULK is sent here"),
            }
            rest = after;
        }
        heard
    }

    /// Asserts that the session sent this CLOSE last and does nothing more.
    pub(super) fn assert_closed(&mut self, code: CloseCode) {
        assert!(self.session.is_closed());
        let close = (MessageType::Close, code.number().to_be_bytes().to_vec());
        assert_eq!(self.heard().last(), Some(&close));
        assert_eq!(self.session.poll_timeout(), None);
        assert_eq!(self.session.send_app(b"more"), Err(SendError::NotOpen));
        assert_eq!(self.say(MessageType::App, b"more"), Err(SessionFault::Ended));
        assert_eq!(self.session.outgoing(), b"");
    }

    pub(super) fn pass(&mut self, time: Duration) -> Result<(), SessionFault> {
        self.now += time;
        self.session.handle_timeout(self.now, &mut Seeded(3))
    }
}

/// An [`SessionEvent`] that owns its content.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Ready(Binding),
    App(Vec<u8>),
    Bulk,
    Rekeyed(u32),
    Closed(CloseCode),
}

pub(super) fn ready(value: Option<[u8; 32]>, max_version: u8) -> Vec<u8> {
    let head = [u8::from(value.is_some())];
    [&head[..], &value.unwrap_or_default(), &[max_version], b"info"].concat()
}
