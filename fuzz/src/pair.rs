//! Two ends of a connection, a network between them that the input controls, and a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use twinlock_core::frame::{CloseCode, Due, FrameType, HEADER, Header};
use twinlock_core::handshake::Established;
use twinlock_core::limits::Timing;
use twinlock_core::session::{Session, SessionConfig, SessionEvent, SessionFault};
use twinlock_testing::Rng;

use crate::input::Input;
use crate::login::{config, established};

/// Steps of one input: enough for several rekeys, few enough for many inputs per second.
const STEPS: usize = 200;

/// A sent message, which must arrive unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    App(Vec<u8>),
    Bulk(u32, u64, Vec<u8>),
}

struct End {
    session: Session,
    input: Vec<u8>,
    sent: Vec<Message>,
    got: Vec<Message>,
    closed: Option<CloseCode>,
    fault: Option<SessionFault>,
    /// An invalid header: the reader closes the connection.
    cut: bool,
    epoch: u32,
}

impl End {
    fn new(established: Established, now: Instant) -> Self {
        let config = SessionConfig { timing: timing(), ..config() };
        Self {
            session: Session::new(established, config, now),
            input: Vec::new(),
            sent: Vec::new(),
            got: Vec::new(),
            closed: None,
            fault: None,
            cut: false,
            epoch: 0,
        }
    }

    fn is_alive(&self) -> bool {
        !self.cut && self.fault.is_none() && !self.session.is_closed()
    }

    fn read(&mut self, now: Instant, entropy: &mut Rng) {
        while self.is_alive() {
            let Some(&bytes) = self.input.first_chunk() else { return };
            let header = match Header::parse(bytes, self.session.due()) {
                Ok(header) if header.frame != FrameType::Error => header,
                _ => {
                    self.cut = true;
                    return;
                }
            };
            if self.input.len() < HEADER + header.len {
                return;
            }
            let rest = self.input.split_off(HEADER + header.len);
            let mut frame = std::mem::replace(&mut self.input, rest);
            let before = self.session.facts();
            match self.session.handle_frame(header, &mut frame[HEADER..], now, entropy) {
                Ok(SessionEvent::App(body)) => self.got.push(Message::App(body.to_vec())),
                Ok(SessionEvent::Bulk { transfer, offset, data }) => {
                    self.got.push(Message::Bulk(transfer, offset, data.to_vec()));
                }
                Ok(SessionEvent::Rekeyed(epoch)) => {
                    assert_eq!(epoch, self.epoch + 1);
                    self.epoch = epoch;
                }
                Ok(SessionEvent::Closed(code)) => self.closed = Some(code),
                Ok(SessionEvent::Ready { info, .. }) => assert_eq!(info, b"info"),
                Ok(SessionEvent::Nothing) => {}
                Err(fault) => {
                    if fault == SessionFault::Tampered {
                        // A failed open changes nothing and sends nothing.
                        assert_eq!(self.session.facts(), before);
                        assert!(self.session.outgoing().is_empty());
                    }
                    self.fault = Some(fault);
                }
            }
        }
    }
}

struct Pair {
    ends: [End; 2],
    /// Frames in transit to the end of the same index; the first may be partly delivered.
    wires: [VecDeque<Vec<u8>>; 2],
    now: Instant,
    entropy: Rng,
    /// The input has interfered with the frames.
    meddled: bool,
    is_cut: bool,
    counter: u64,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            ends: established(seed).map(|end| End::new(end, now)),
            wires: [VecDeque::new(), VecDeque::new()],
            now,
            entropy: Rng::from_seed(seed),
            meddled: false,
            is_cut: false,
            counter: 0,
        };
        pair.collect();
        pair
    }

    /// Moves the frames that both ends have sealed into the network.
    fn collect(&mut self) {
        for from in 0..2 {
            let mut out = self.ends[from].session.outgoing().to_vec();
            self.ends[from].session.sent(out.len());
            while let Some(&bytes) = out.first_chunk() {
                let header = Header::parse(bytes, Due::Session).unwrap();
                let rest = out.split_off(HEADER + header.len);
                let frame = std::mem::replace(&mut out, rest);
                if !self.is_cut {
                    self.wires[1 - from].push_back(frame);
                }
            }
        }
    }

    fn deliver(&mut self, to: usize, mut n: usize) -> bool {
        let mut moved = false;
        while n > 0 {
            let Some(frame) = self.wires[to].front_mut() else { break };
            let now = n.min(frame.len());
            let rest = frame.split_off(now);
            let part = std::mem::replace(frame, rest);
            if frame.is_empty() {
                self.wires[to].pop_front();
            }
            n -= now;
            moved = true;
            let end = &mut self.ends[to];
            if end.is_alive() {
                end.input.extend_from_slice(&part);
                end.session.handle_bytes(self.now);
                end.read(self.now, &mut self.entropy);
            }
        }
        self.collect();
        moved
    }

    /// Delivers until nothing moves, which terminates because no answer causes another.
    fn drain(&mut self) {
        let mut steps = 0;
        while self.deliver(0, usize::MAX) | self.deliver(1, usize::MAX) {
            steps += 1;
            assert!(steps < 100, "two ends that never stop answering each other");
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            for _ in 0..10 {
                let due = end.session.poll_timeout().is_some_and(|at| at <= self.now);
                if !due || !end.is_alive() {
                    break;
                }
                if let Err(fault) = end.session.handle_timeout(self.now, &mut self.entropy) {
                    end.fault = Some(fault);
                }
            }
            let due = end.session.poll_timeout().is_some_and(|at| at <= self.now);
            assert!(!due || !end.is_alive(), "a timer that stays due: a task that never sleeps");
        }
        self.collect();
    }

    fn meddle(&mut self, input: &mut Input<'_>) {
        let (to, at, how) = (usize::from(input.below(2)), input.byte(), input.below(7));
        let len = self.wires[to].len();
        if len == 0 {
            return;
        }
        let at = usize::from(at) % len;
        match how {
            0 | 1 => {
                // A byte anywhere, or one of the header.
                let frame = &mut self.wires[to][at];
                let span = if how == 0 { frame.len() } else { HEADER.min(frame.len()) };
                let byte = usize::from(input.u16()) % span;
                frame[byte] ^= 1 << input.below(8);
            }
            2 => drop(self.wires[to].remove(at)),
            3 => self.wires[to].swap(at, (at + 1) % len),
            4 => {
                let copy = self.wires[to][at].clone();
                self.wires[to].insert(at, copy);
            }
            5 => {
                let copy = self.wires[to][at].clone();
                self.wires[1 - to].push_back(copy);
            }
            _ => {
                let half = self.wires[to][at].len() / 2;
                self.wires[to][at].truncate(half);
            }
        }
        self.wires[to].retain(|frame| !frame.is_empty());
        self.meddled = true;
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            kind @ (0..=2 | 12) => {
                let from = usize::from(input.below(2));
                let len = match input.byte() {
                    255 => 65_531,
                    254 => 9000,
                    len => usize::from(len) * 2,
                };
                let mut body = vec![0; len];
                self.counter += 1;
                twinlock_core::Entropy::fill(&mut Rng::from_seed(self.counter), &mut body);
                let end = &mut self.ends[from];
                if kind < 2 {
                    if end.session.send_app(&body).is_ok() {
                        end.sent.push(Message::App(body));
                    }
                } else {
                    let (transfer, offset) = (self.counter as u32, self.counter << 33);
                    if end.session.send_bulk(transfer, offset, &body).is_ok() {
                        end.sent.push(Message::Bulk(transfer, offset, body));
                    }
                }
            }
            3 => drop(self.ends[0].session.start_rekey(self.now, &mut self.entropy)),
            4 => self.pass(Duration::from_millis(u64::from(input.u16()) / 4)),
            5 => self.pass(Duration::from_secs(u64::from(input.byte()))),
            6 | 7 => drop(self.deliver(usize::from(input.below(2)), usize::from(input.u16()))),
            8 | 9 => drop(self.deliver(usize::from(input.below(2)), usize::MAX)),
            10 => {
                let following = input.flag();
                self.ends[usize::from(input.below(2))].session.set_following(following);
            }
            11 => self.drain(),
            13 => {
                let code = CloseCode::from_number(input.u16());
                self.ends[usize::from(input.below(2))].session.close(code);
            }
            14 => self.meddle(input),
            _ => {
                self.is_cut = true;
                self.wires = [VecDeque::new(), VecDeque::new()];
            }
        }
        self.collect();
        self.assert_beginnings();
    }

    /// Asserts that each end has read a prefix of what the other wrote. Without interference,
    /// neither end reports tampering or a violation.
    fn assert_beginnings(&self) {
        for (to, from) in [(0, 1), (1, 0)] {
            let (got, sent) = (&self.ends[to].got, &self.ends[from].sent);
            assert!(sent.starts_with(got), "{} of {} messages", got.len(), sent.len());
        }
        for end in &self.ends {
            let accused = end.cut
                || matches!(end.fault, Some(SessionFault::Tampered | SessionFault::Violation(_)));
            assert!(self.meddled || !accused, "{:?}", end.fault);
        }
    }

    fn assert_at_rest(&self) {
        for (to, from) in [(0, 1), (1, 0)] {
            let (to, from) = (&self.ends[to], &self.ends[from]);
            assert!(to.is_alive(), "{:?} {:?} cut {}", to.fault, to.closed, to.cut);
            assert!(to.got == from.sent);
            assert_eq!(to.session.facts().epoch, (from.epoch, from.epoch));
            assert_eq!(to.session.facts().frames.1, from.session.facts().frames.0);
        }
    }
}

/// Short times, so that an input of some steps reaches all of them.
fn timing() -> Timing {
    Timing {
        rekey_after: Duration::from_secs(30),
        rekey_after_frames: 40,
        rekey_overdue: Duration::from_secs(120),
        rekey_overdue_frames: 4000,
        max_age: Duration::from_secs(3600),
        ..Timing::default()
    }
}

/// At any time, each end has read a prefix of what the other wrote, in order. Without interference,
/// everything arrives and an allowed rekey completes. No end waits forever.
pub(crate) fn session(data: &[u8]) {
    let mut input = Input(data);
    let mut pair = Pair::new(u64::from(input.byte()));
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        pair.step(&mut input);
    }
    pair.drain();
    pair.assert_beginnings();
    if pair.ends.iter().all(End::is_alive) && !pair.meddled && !pair.is_cut {
        pair.assert_at_rest();
        let epoch = pair.ends[0].epoch;
        // 16 s, so that neither end's rekey pause (15 s and 10 s) is in the way. Drained at each
        // step, because an unanswered PING ends the connection.
        for _ in 0..4 {
            pair.pass(Duration::from_secs(4));
            pair.drain();
        }
        pair.ends[0].session.start_rekey(pair.now, &mut pair.entropy);
        pair.collect();
        pair.drain();
        if pair.ends.iter().all(End::is_alive) {
            pair.assert_at_rest();
            assert!(pair.ends[0].epoch > epoch, "a rekey that may start does not");
        } else {
            // Time alone ends a connection only by its maximum age.
            let old = |end: &End| end.fault.is_none() || end.fault == Some(SessionFault::TooOld);
            let faults = [0, 1].map(|i| pair.ends[i].fault);
            assert!(pair.ends.iter().all(old), "{faults:?}");
        }
    }
    pair.is_cut = true;
    for _ in 0..10 {
        pair.pass(Duration::from_secs(60));
    }
    assert!(!pair.ends.iter().any(End::is_alive), "an end that waits for ever");
}
