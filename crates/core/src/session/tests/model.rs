//! Model test: two ends, an arbitrary network between them, and a clock.
//!
//! At any time, each end has read a prefix of what the other wrote, in order. Without interference,
//! everything arrives and every rekey completes.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A sent message, which must arrive unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ModelMessage {
    App(Vec<u8>),
    Bulk(u32, u64, Vec<u8>),
}

struct ModelEnd {
    session: Session,
    input: Vec<u8>,
    sent: Vec<ModelMessage>,
    got: Vec<ModelMessage>,
    closed: Option<CloseCode>,
    fault: Option<SessionFault>,
    /// An invalid header, or an ERROR: the reader closes the connection.
    cut: bool,
    epoch: u32,
}

impl ModelEnd {
    fn new(established: Established, timing: &Timing, now: Instant) -> Self {
        let config = SessionConfig { timing: timing.clone(), ..config() };
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

    /// Handles every whole frame of the input, as a reader does.
    fn read(&mut self, now: Instant, entropy: &mut Seeded) {
        while self.is_alive() {
            let Some(&bytes) = self.input.first_chunk() else { return };
            let Ok(header) = Header::parse(bytes, self.session.due()) else {
                self.cut = true;
                return;
            };
            if self.input.len() < HEADER + header.len {
                return;
            }
            let rest = self.input.split_off(HEADER + header.len);
            let mut frame = std::mem::replace(&mut self.input, rest);
            if header.frame == crate::frame::FrameType::Error {
                self.cut = true;
                return;
            }
            match self.session.handle_frame(header, &mut frame[HEADER..], now, entropy) {
                Ok(SessionEvent::App(body)) => self.got.push(ModelMessage::App(body.to_vec())),
                Ok(SessionEvent::Bulk { transfer, offset, data }) => {
                    self.got.push(ModelMessage::Bulk(transfer, offset, data.to_vec()));
                }
                Ok(SessionEvent::Rekeyed(epoch)) => {
                    assert_eq!(epoch, self.epoch + 1);
                    self.epoch = epoch;
                }
                Ok(SessionEvent::Closed(code)) => self.closed = Some(code),
                Ok(SessionEvent::Ready { .. } | SessionEvent::Nothing) => {}
                Err(fault) => self.fault = Some(fault),
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Meddling {
    Flip(usize, u8),
    Drop,
    Swap,
    Duplicate,
    Reflect,
    Truncate,
}

#[derive(Debug, Clone)]
enum ModelStep {
    App(usize, usize),
    Bulk(usize, usize),
    Rekey,
    Pass(u64),
    Deliver(usize, usize),
    Follow(usize, bool),
    Close(usize, u16),
    Meddle(usize, usize, Meddling),
    Cut,
}

struct ModelPair {
    ends: [ModelEnd; 2],
    /// Frames in transit to the end of the same index; the first may be partly delivered.
    wires: [VecDeque<Vec<u8>>; 2],
    now: Instant,
    entropy: Seeded,
    undelivered_since: Instant,
    /// The test has interfered with the frames.
    meddled: bool,
    is_cut: bool,
    counter: u64,
}

impl ModelPair {
    fn new(seed: u64, timing: &Timing) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            ends: established(seed).map(|end| ModelEnd::new(end, timing, now)),
            wires: [VecDeque::new(), VecDeque::new()],
            now,
            entropy: Seeded(seed),
            undelivered_since: now,
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

    fn body(&mut self, len: usize) -> Vec<u8> {
        self.counter += 1;
        let mut body = vec![0; len];
        Seeded(self.counter).fill(&mut body);
        body
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

    /// Delivers until nothing moves.
    ///
    /// Terminates because a message causes at most one answer, and an answer causes none.
    fn drain(&mut self) {
        let mut steps = 0;
        while self.deliver(0, usize::MAX) | self.deliver(1, usize::MAX) {
            steps += 1;
            assert!(steps < 100, "two ends that never stop answering each other");
        }
        self.undelivered_since = self.now;
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

    fn meddle(&mut self, to: usize, at: usize, how: &Meddling) {
        let len = self.wires[to].len();
        if len == 0 {
            return;
        }
        let at = at % len;
        let wire = &mut self.wires[to];
        match how {
            Meddling::Flip(byte, bit) => {
                let byte = byte % wire[at].len();
                wire[at][byte] ^= 1 << (bit % 8);
            }
            Meddling::Drop => drop(wire.remove(at)),
            Meddling::Swap if len > 1 => wire.swap(at, (at + 1) % len),
            Meddling::Swap => return,
            Meddling::Duplicate => {
                let copy = wire[at].clone();
                wire.insert(at, copy);
            }
            Meddling::Reflect => {
                let copy = wire[at].clone();
                self.wires[1 - to].push_back(copy);
            }
            Meddling::Truncate => {
                let half = wire[at].len() / 2;
                wire[at].truncate(half);
            }
        }
        self.meddled = true;
    }

    fn run(&mut self, op: &ModelStep) {
        match *op {
            ModelStep::App(from, len) => {
                let body = self.body(len);
                if self.ends[from].session.send_app(&body).is_ok() {
                    self.ends[from].sent.push(ModelMessage::App(body));
                }
            }
            ModelStep::Bulk(from, len) => {
                let data = self.body(len);
                let (transfer, offset) = (self.counter as u32, self.counter << 33);
                if self.ends[from].session.send_bulk(transfer, offset, &data).is_ok() {
                    self.ends[from].sent.push(ModelMessage::Bulk(transfer, offset, data));
                }
            }
            ModelStep::Rekey => {
                self.ends[0].session.start_rekey(self.now, &mut self.entropy);
            }
            ModelStep::Pass(millis) => self.pass(Duration::from_millis(millis)),
            ModelStep::Deliver(to, n) => drop(self.deliver(to, n)),
            ModelStep::Follow(end, following) => self.ends[end].session.set_following(following),
            ModelStep::Close(end, code) => {
                self.ends[end].session.close(CloseCode::from_number(code));
            }
            ModelStep::Meddle(to, at, ref how) => self.meddle(to, at, how),
            ModelStep::Cut => {
                self.is_cut = true;
                self.wires = [VecDeque::new(), VecDeque::new()];
            }
        }
        self.collect();
        self.assert_beginnings();
    }

    /// Asserts that each end has read a prefix of what the other wrote.
    fn assert_beginnings(&self) {
        for (to, from) in [(0, 1), (1, 0)] {
            let (got, sent) = (&self.ends[to].got, &self.ends[from].sent);
            assert!(sent.starts_with(got), "{} of {} messages", got.len(), sent.len());
        }
    }

    fn assert_at_rest(&self) {
        for (to, from) in [(0, 1), (1, 0)] {
            let (to, from) = (&self.ends[to], &self.ends[from]);
            assert!(to.is_alive(), "{:?} {:?} cut {}", to.fault, to.closed, to.cut);
            assert_eq!(to.got, from.sent);
            assert!(matches!(to.session.rekey, Rekey::Idle), "a rekey half done");
            assert_eq!(to.session.facts().epoch, (from.epoch, from.epoch));
            assert_eq!(to.session.facts().frames.1, from.session.facts().frames.0);
            assert_eq!(
                to.session.root_key().expose_secret(),
                from.session.root_key().expose_secret()
            );
        }
    }
}

/// Short times, so that a run of some minutes reaches all of them.
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

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..300usize, 1 => 0..5000usize, 1 => Just(65_531usize)]
}

fn honest() -> impl Strategy<Value = ModelStep> {
    prop_oneof![
        4 => (0..2usize, size()).prop_map(|(from, len)| ModelStep::App(from, len)),
        2 => (0..2usize, 1..3000usize).prop_map(|(from, len)| ModelStep::Bulk(from, len)),
        2 => Just(ModelStep::Rekey),
        2 => (0..4000u64).prop_map(ModelStep::Pass),
        5 => (0..2usize, 1..3000usize).prop_map(|(to, n)| ModelStep::Deliver(to, n)),
        2 => (0..2usize).prop_map(|to| ModelStep::Deliver(to, usize::MAX)),
        1 => (0..2usize, any::<bool>()).prop_map(|(end, f)| ModelStep::Follow(end, f)),
    ]
}

fn hostile() -> impl Strategy<Value = ModelStep> {
    let meddling = prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(byte, bit)| Meddling::Flip(byte, bit)),
        2 => (0..HEADER, any::<u8>()).prop_map(|(byte, bit)| Meddling::Flip(byte, bit)),
        1 => Just(Meddling::Drop),
        1 => Just(Meddling::Swap),
        1 => Just(Meddling::Duplicate),
        1 => Just(Meddling::Reflect),
        1 => Just(Meddling::Truncate),
    ];
    prop_oneof![
        30 => honest(),
        1 => (0..2usize, any::<usize>(), meddling).prop_map(|(to, at, how)| ModelStep::Meddle(to, at, how)),
        1 => (0..2usize, any::<u16>()).prop_map(|(end, code)| ModelStep::Close(end, code)),
        1 => (10_000..100_000u64).prop_map(ModelStep::Pass),
        1 => Just(ModelStep::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn session__reliable_network_delivers_in_order_without_stall(
        seed in any::<u64>(),
        ops in proptest::collection::vec(honest(), 1..150),
        close in proptest::option::of((0..2usize, any::<u16>())),
    ) {
        let mut pair = ModelPair::new(seed, &timing());
        for op in &ops {
            pair.run(op);
            // A working network delivers within seconds.
            if pair.now - pair.undelivered_since > Duration::from_secs(5) {
                pair.drain();
                pair.assert_at_rest();
            }
        }
        pair.drain();
        pair.assert_at_rest();
        // A rekey that is allowed starts and completes.
        let epoch = pair.ends[0].epoch;
        pair.pass(Duration::from_secs(16));
        pair.run(&ModelStep::Rekey);
        pair.run(&ModelStep::App(1, 5));
        pair.drain();
        pair.assert_at_rest();
        prop_assert_eq!(pair.ends[0].epoch, epoch + 1);
        if let Some((end, code)) = close {
            pair.run(&ModelStep::App(end, 10));
            pair.run(&ModelStep::Rekey);
            pair.run(&ModelStep::Close(end, code));
            pair.drain();
            prop_assert_eq!(&pair.ends[1 - end].got, &pair.ends[end].sent);
            prop_assert_eq!(pair.ends[1 - end].closed, Some(CloseCode::from_number(code)));
            prop_assert!(pair.ends.iter().all(|end| end.session.is_closed()));
        }
    }

    #[test]
    fn session__hostile_network_delivers_prefix_and_dead_one_closes(
        seed in any::<u64>(),
        ops in proptest::collection::vec(hostile(), 1..150),
    ) {
        let mut pair = ModelPair::new(seed, &timing());
        for op in &ops {
            pair.run(op);
        }
        pair.drain();
        pair.assert_beginnings();
        let all_alive = pair.ends.iter().all(ModelEnd::is_alive);
        if all_alive && !pair.meddled && !pair.is_cut {
            pair.assert_at_rest();
        }
        // Neither end waits forever: on a dead connection, both give up.
        pair.is_cut = true;
        for _ in 0..10 {
            pair.pass(Duration::from_secs(60));
        }
        prop_assert!(!pair.ends.iter().any(ModelEnd::is_alive));
    }

    #[test]
    fn session__modified_frame_is_not_delivered(
        seed in any::<u64>(),
        before in proptest::collection::vec((0..2usize, 0..600usize), 0..20),
        byte in any::<usize>(),
        bit in 0..8u8,
        bulk in any::<bool>(),
    ) {
        let mut pair = ModelPair::new(seed, &timing());
        pair.drain();
        for (from, len) in before {
            pair.run(&ModelStep::App(from, len));
            pair.drain();
        }
        let read = pair.ends[1].got.len();
        let (epoch, frames) = (pair.ends[1].session.recv.epoch(), pair.ends[1].session.recv.frames());
        let key = *pair.ends[1].session.recv.key().expose_secret();
        pair.run(&if bulk { ModelStep::Bulk(0, 700) } else { ModelStep::App(0, 700) });
        pair.run(&ModelStep::Meddle(1, 0, Meddling::Flip(byte, bit)));
        pair.drain();
        let end = &pair.ends[1];
        // After a flip that raised the length, the reader waits for bytes that never arrive.
        prop_assert!(!end.is_alive() || !end.input.is_empty());
        prop_assert!(matches!(end.fault, None | Some(SessionFault::Tampered)));
        prop_assert_eq!(end.got.len(), read);
        // A failed open has changed nothing.
        prop_assert_eq!((end.session.recv.epoch(), end.session.recv.frames()), (epoch, frames));
        prop_assert_eq!(end.session.recv.key().expose_secret(), &key);
        prop_assert!(end.session.outgoing().is_empty());
    }
}
