//! An authenticated peer that sends what no session would.
//!
//! Every frame is authentic, and most are wrong. The session's reactions are compared with sections
//! 5 and 6.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use twinlock_core::frame::{CloseCode, Due, HEADER, Header};
use twinlock_core::handshake::Side;
use twinlock_core::seal::{Chain, MessageType, OpenedFrame};
use twinlock_core::session::{Binding, SendError, Session, SessionEvent, SessionFault};
use twinlock_testing::Rng;

use crate::input::Input;
use crate::login::{config, established};

const STEPS: usize = 60;

/// A session, and its peer as bare chains.
struct Peer {
    side: Side,
    session: Session,
    send: Chain,
    recv: Chain,
    now: Instant,
    entropy: Rng,
    /// Whether the peer can open what the session seals, which ends when the session's chain
    /// switches.
    hears: bool,
}

/// The expected result of a message.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    Event(PeerEvent),
    Violation,
    /// Changed keys, which may still be valid.
    Either(PeerEvent),
}

/// An [`SessionEvent`] that owns its content.
#[derive(Debug, PartialEq, Eq)]
enum PeerEvent {
    Nothing,
    Ready(Binding, Vec<u8>),
    App(Vec<u8>),
    Bulk(u32, u64, Vec<u8>),
    Rekeyed(u32),
    Closed(CloseCode),
}

impl Peer {
    fn new(side: Side, seed: u64) -> Self {
        let [client, server] = established(seed);
        let (mine, theirs) = match side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let [c2s, s2c] = theirs.into_chains();
        let (send, recv) = match side {
            Side::Client => (s2c, c2s),
            Side::Server => (c2s, s2c),
        };
        let now = Instant::now();
        let session = Session::new(mine, config(), now);
        Self { side, session, send, recv, now, entropy: Rng::from_seed(seed), hears: true }
    }

    fn say(&mut self, mtype: MessageType, body: &[u8]) -> Result<PeerEvent, SessionFault> {
        let mut frame = Vec::new();
        self.send.seal(mtype, body, &mut frame).unwrap();
        self.read(&mut frame)
    }

    fn read(&mut self, frame: &mut [u8]) -> Result<PeerEvent, SessionFault> {
        let (header, payload) = frame.split_first_chunk_mut::<HEADER>().unwrap();
        let header = Header::parse(*header, Due::Session).unwrap();
        self.session.handle_bytes(self.now);
        let event = self.session.handle_frame(header, payload, self.now, &mut self.entropy)?;
        Ok(match event {
            SessionEvent::Nothing => PeerEvent::Nothing,
            SessionEvent::Ready { binding, info } => PeerEvent::Ready(binding, info.to_vec()),
            SessionEvent::App(body) => PeerEvent::App(body.to_vec()),
            SessionEvent::Bulk { transfer, offset, data } => {
                PeerEvent::Bulk(transfer, offset, data.to_vec())
            }
            SessionEvent::Rekeyed(epoch) => PeerEvent::Rekeyed(epoch),
            SessionEvent::Closed(code) => PeerEvent::Closed(code),
        })
    }

    /// What the session has sealed since the last call, as far as the peer can open it.
    fn heard(&mut self) -> Vec<(MessageType, Vec<u8>)> {
        let mut out = self.session.outgoing().to_vec();
        self.session.sent(out.len());
        let mut heard = Vec::new();
        let mut rest = &mut out[..];
        while !rest.is_empty() {
            let header = Header::parse(*rest.first_chunk().unwrap(), Due::Session).unwrap();
            let (frame, after) = rest.split_at_mut(HEADER + header.len);
            if self.hears {
                match self.recv.open(header, &mut frame[HEADER..]).unwrap() {
                    OpenedFrame::Message(mtype, body) => {
                        self.hears = !matches!(mtype, MessageType::Rekey2 | MessageType::Rekey3);
                        heard.push((mtype, body.to_vec()));
                    }
                    OpenedFrame::Bulk { .. } => panic!("no BULK is sent here"),
                }
            }
            rest = after;
        }
        heard
    }

    /// Asserts that the session ended with this CLOSE as its last frame, and stays closed.
    fn assert_ended(&mut self, code: Option<CloseCode>) {
        assert!(self.session.is_closed() && self.session.poll_timeout().is_none());
        let could_hear = self.hears;
        let heard = self.heard();
        if let (true, Some(code)) = (could_hear && self.hears, code) {
            let close = (MessageType::Close, code.number().to_be_bytes().to_vec());
            assert_eq!(heard.last(), Some(&close));
        }
        assert_eq!(self.session.send_app(b"more"), Err(SendError::NotOpen));
        assert_eq!(self.say(MessageType::App, b"more"), Err(SessionFault::Ended));
        assert!(self.session.outgoing().is_empty());
    }
}

/// Bodies of REKEY1 and REKEY2 of another connection.
///
/// Nothing ties them to that connection. They are valid here, but the resulting keys match no peer.
fn rekey_bodies() -> &'static [Vec<u8>; 2] {
    static BODIES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    BODIES.get_or_init(|| {
        let mut client = Peer::new(Side::Client, 1);
        client.say(MessageType::Ready, &ready([5; 32])).unwrap();
        assert!(client.session.start_rekey(client.now, &mut client.entropy));
        let rekey1 = client.heard().pop().unwrap().1;
        let mut server = Peer::new(Side::Server, 1);
        server.say(MessageType::Ready, &ready([5; 32])).unwrap();
        server.say(MessageType::Rekey1, &rekey1).unwrap();
        [rekey1, server.heard().pop().unwrap().1]
    })
}

fn ready(value: [u8; 32]) -> Vec<u8> {
    [&[1][..], &value, &[1], b"info"].concat()
}

/// What the session has seen, as far as it affects the next result.
#[derive(Default)]
struct Model {
    open: bool,
    /// Client: REKEY1 is sent. Server: REKEY2 is sent.
    rekeying: bool,
}

impl Model {
    fn then(&self, side: Side, mtype: MessageType, body: &[u8], changed: bool) -> Then {
        use MessageType as M;
        let when =
            |right: bool, said: PeerEvent| if right { Then::Event(said) } else { Then::Violation };
        match mtype {
            M::Close => match body.try_into() {
                Ok(code) => {
                    Then::Event(PeerEvent::Closed(CloseCode::from_number(u16::from_be_bytes(code))))
                }
                Err(_) => Then::Violation,
            },
            M::Ready if !self.open => {
                let Some((&[bound, value @ .., version], info)) = body.split_first_chunk::<34>()
                else {
                    return Then::Violation;
                };
                let binding = match (bound, value == [5; 32]) {
                    (1, true) => Binding::Bound,
                    (1, false) => Binding::Cut,
                    _ => Binding::Unknown,
                };
                let right = (bound == 1 || bound == 0 && value == [0; 32]) && version > 0;
                when(right, PeerEvent::Ready(binding, info.to_vec()))
            }
            M::Ready => Then::Violation,
            _ if !self.open => Then::Violation,
            M::App => Then::Event(PeerEvent::App(body.to_vec())),
            M::Ping | M::Pong => when(body.len() == 8, PeerEvent::Nothing),
            M::Rekey1 => match side == Side::Server && !self.rekeying && body.len() == 1216 {
                true if changed => Then::Either(PeerEvent::Nothing),
                right => when(right, PeerEvent::Nothing),
            },
            M::Rekey2 => match side == Side::Client && self.rekeying && body.len() == 1120 {
                true if changed => Then::Either(PeerEvent::Rekeyed(1)),
                right => when(right, PeerEvent::Rekeyed(1)),
            },
            M::Rekey3 => {
                let right = side == Side::Server && self.rekeying && body.is_empty();
                when(right, PeerEvent::Rekeyed(1))
            }
        }
    }
}

/// A session reacts to any authentic frame as sections 5 and 6 require: with the event, or with
/// CLOSE 1 and its end.
pub(crate) fn peer(data: &[u8]) {
    let mut input = Input(data);
    let side = if input.flag() { Side::Server } else { Side::Client };
    let mut peer = Peer::new(side, u64::from(input.byte()));
    let mut model = Model::default();
    let sent = peer.heard();
    assert!(matches!(&sent[..], [(MessageType::Ready, _)]));
    for _ in 0..STEPS {
        if input.is_empty() {
            return;
        }
        match input.below(16) {
            kind @ 0..=10 => {
                if !say(&mut peer, &mut model, kind, &mut input) {
                    return;
                }
            }
            11 => {
                let data = [&[1], input.part()].concat();
                let mut frame = Vec::new();
                peer.send.seal_bulk(3, u64::MAX, &data, &mut frame).unwrap();
                let said = peer.read(&mut frame);
                if !model.open {
                    assert!(matches!(said, Err(SessionFault::Violation(_))));
                    return peer.assert_ended(Some(CloseCode::Protocol));
                }
                assert_eq!(said, Ok(PeerEvent::Bulk(3, u64::MAX, data)));
            }
            12 => {
                let body = input.part();
                assert_eq!(peer.session.send_app(body).is_ok(), model.open);
                let hears = peer.hears;
                let heard = peer.heard();
                let app = (MessageType::App, body.to_vec());
                assert!(!hears || !model.open || heard == [app]);
            }
            13 | 14 => {
                let started = peer.session.start_rekey(peer.now, &mut peer.entropy);
                assert_eq!(started, side == Side::Client && model.open && !model.rekeying);
                model.rekeying |= started;
                assert!(
                    !started
                        || matches!(&peer.heard()[..], [(MessageType::Rekey1, body)] if body.len() == 1216)
                );
            }
            _ => {
                peer.now += Duration::from_secs(u64::from(input.byte()));
                if peer.session.handle_timeout(peer.now, &mut peer.entropy).is_err() {
                    return peer.assert_ended(None);
                }
                // The session may have started a rekey on its own.
                model.rekeying |= peer.heard().iter().any(|heard| heard.0 == MessageType::Rekey1);
            }
        }
    }
}

/// Sends one message and checks the result. Returns `false` if the session has ended.
fn say(peer: &mut Peer, model: &mut Model, kind: u8, input: &mut Input<'_>) -> bool {
    use MessageType as M;
    let [rekey1, rekey2] = rekey_bodies();
    let (mtype, mut body) = match kind {
        0 | 1 => (M::Ready, ready([input.byte(); 32])),
        2 => (M::Ready, ready([5; 32])),
        3 => (M::App, input.part().to_vec()),
        4 => (M::Rekey1, rekey1.clone()),
        5 => (M::Rekey2, rekey2.clone()),
        6 => (M::Rekey3, Vec::new()),
        7 => (M::Ping, input.array::<8>().to_vec()),
        8 => (M::Pong, input.array::<8>().to_vec()),
        9 => (M::Close, input.array::<2>().to_vec()),
        _ => (M::Ready, vec![0; 33]),
    };
    let changed = input.change(&mut body);
    let was_hearing = peer.hears;
    let said = peer.say(mtype, &body);
    let expected = match (model.then(peer.side, mtype, &body, changed), &said) {
        (Then::Either(said), Ok(_)) => Then::Event(said),
        (Then::Either(_), Err(_)) => Then::Violation,
        (then, _) => then,
    };
    match (expected, said) {
        (Then::Event(expected), Ok(said)) => assert_eq!(said, expected),
        (Then::Violation, Err(SessionFault::Violation(_))) => {
            peer.assert_ended(Some(CloseCode::Protocol));
            return false;
        }
        (expected, said) => panic!("{said:?} of {mtype:?} where {expected:?} was to come"),
    }
    match mtype {
        M::Close => {
            peer.assert_ended(Some(CloseCode::Bye));
            return false;
        }
        M::Ready => model.open = true,
        M::Ping if was_hearing => assert_eq!(peer.heard(), [(M::Pong, body)]),
        M::Rekey1 => {
            model.rekeying = true;
            let heard = peer.heard();
            assert!(matches!(&heard[..], [(M::Rekey2, body)] if body.len() == 1120));
        }
        // From here on, the keys are those of the other connection, which the peer does not have.
        M::Rekey2 | M::Rekey3 => {
            assert_eq!(peer.say(M::App, b"of the old epoch"), Err(SessionFault::Tampered));
            assert!(peer.session.is_closed() && peer.session.outgoing().is_empty());
            return false;
        }
        _ => {}
    }
    true
}
