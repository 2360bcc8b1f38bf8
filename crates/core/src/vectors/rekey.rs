//! `rekey.json`: two rekeys with data in flight, frame by frame, and what the server refuses.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Case, Counts, Script, Tally};
use crate::Entropy;
use crate::frame::{CloseCode, Due, HEADER, Header};
use crate::handshake::{Established, Side};
use crate::id::{CredentialId, DeviceId, ServerKey, SessionId};
use crate::keys::{ChainKey, RootKey};
use crate::limits::{Timing, VERSION};
use crate::seal::{Chain, MessageType, OpenedFrame};
use crate::session::{BindingPolicy, Session, SessionConfig, SessionEvent, SessionFault};
use crate::test_entropy::Zeros;

pub(super) fn run(file: &Value) -> Counts {
    let mut tally = Tally::default();
    replay(file, &mut tally);
    for case in file.list("refused") {
        refused(&file["start"], case);
        tally.add("refused");
    }
    tally.done()
}

/// One end, with the frames that it has sealed and not delivered, and those that it has yet to
/// read.
struct RekeyEnd {
    session: Session,
    sealed: VecDeque<Vec<u8>>,
    unread: VecDeque<Vec<u8>>,
    events: Vec<Value>,
}

impl RekeyEnd {
    fn new(side: Side, start: &Value, now: Instant) -> Self {
        let session = session(side, start, now);
        Self { session, sealed: VecDeque::new(), unread: VecDeque::new(), events: Vec::new() }
    }

    /// Collects what the session has sealed, frame by frame.
    fn collect(&mut self) {
        let mut out = self.session.outgoing().to_vec();
        self.session.sent(out.len());
        while let Some(header) = out.first_chunk() {
            let header = Header::parse(*header, Due::Session).unwrap();
            let rest = out.split_off(HEADER + header.len);
            self.sealed.push_back(std::mem::replace(&mut out, rest));
        }
    }

    fn read_one(&mut self, now: Instant, entropy: &mut dyn Entropy) -> bool {
        let Some(mut frame) = self.unread.pop_front() else { return false };
        match handle(&mut self.session, &mut frame, now, entropy).unwrap() {
            SessionEvent::Nothing => {}
            event => self.events.push(described(&event)),
        }
        self.collect();
        true
    }
}

fn replay(file: &Value, tally: &mut Tally) {
    let mut now = Instant::now();
    let mut script = Script::of(&file["draws"]);
    let mut ends =
        [Side::Client, Side::Server].map(|side| RekeyEnd::new(side, &file["start"], now));
    for step in file.list("log") {
        let this = usize::from(step.text("who") == "server");
        let [client, server] = &mut ends;
        let (end, other) = if this == 0 { (client, server) } else { (server, client) };
        match step.text("does") {
            "reads" => {
                while end.read_one(now, &mut script) {}
                let events = std::mem::take(&mut end.events);
                assert_eq!(&events, step.list("events"));
                tally.add_many("events", events.len());
            }
            "seals" => {
                match step["mtype"].as_u64() {
                    Some(2) => end.session.send_app(&step.hex("body")).unwrap(),
                    Some(4) => {
                        // The second rekey starts as soon as a client may.
                        now += Timing::default().rekey_pause;
                        assert!(end.session.start_rekey(now, &mut script));
                    }
                    // The session answers a rekey message automatically once it has read it.
                    Some(5 | 6) => while end.sealed.is_empty() && end.read_one(now, &mut script) {},
                    Some(other) => panic!("mtype {other}"),
                    None => {
                        let transfer = u32::try_from(step.num("transfer")).unwrap();
                        let (offset, data) = (step.num("offset"), step.hex("data"));
                        end.session.send_bulk(transfer, offset, &data).unwrap();
                    }
                }
                end.collect();
                let frame = end.sealed.pop_front().unwrap();
                assert_eq!(frame, step.hex("frame"), "{step}");
                other.unread.push_back(frame);
                tally.add("sealed");
            }
            other => panic!("{other}"),
        }
    }
    script.done();
    let last = file.list("rounds").last().unwrap();
    for end in &ends {
        assert!(end.sealed.is_empty() && end.unread.is_empty());
        assert_eq!(end.session.root_key().expose_secret(), &last.bytes("rk"));
        let facts = end.session.facts();
        assert_eq!((facts.epoch, facts.rekeys), ((2, 2), 2));
    }
}

fn described(event: &SessionEvent<'_>) -> Value {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    match event {
        SessionEvent::App(body) => serde_json::json!({"event": "app", "body": hex(body)}),
        SessionEvent::Bulk { transfer, offset, data } => serde_json::json!({
            "event": "bulk", "transfer": transfer, "offset": offset, "data": hex(data)
        }),
        SessionEvent::Rekeyed(epoch) => serde_json::json!({"event": "rekeyed", "epoch": epoch}),
        other => panic!("{other:?}"),
    }
}

/// Frames from the client that lead to CLOSE 1.
fn refused(start: &Value, case: &Value) {
    let now = Instant::now();
    let mut server = session(Side::Server, start, now);
    let frames = case.list("c2s_frames");
    assert_eq!(case.text("expected"), "CLOSE 1");
    for (i, frame) in frames.iter().enumerate() {
        let mut frame = data_encoding::HEXLOWER.decode(frame.as_str().unwrap().as_bytes()).unwrap();
        let event = handle(&mut server, &mut frame, now, &mut Zeros);
        if i + 1 < frames.len() {
            assert_eq!(event, Ok(SessionEvent::Nothing));
        } else {
            assert!(
                matches!(event, Err(SessionFault::Violation(_))),
                "{}: {event:?}",
                case.text("name")
            );
        }
    }
    assert!(server.is_closed());
    if frames.len() == 1 {
        let mut answer = server.outgoing().to_vec();
        let header = Header::parse(*answer.first_chunk().unwrap(), Due::Session).unwrap();
        let mut chain = Chain::at(ChainKey::new(&start.bytes("ck_s2c")), 0, start.num("n_s2c"));
        let code = CloseCode::Protocol.number().to_be_bytes();
        let opened = chain.open(header, &mut answer[HEADER..]);
        assert_eq!(opened, Ok(OpenedFrame::Message(MessageType::Close, &code)));
    }
}

fn handle<'a>(
    session: &mut Session,
    frame: &'a mut [u8],
    now: Instant,
    entropy: &mut dyn Entropy,
) -> Result<SessionEvent<'a>, SessionFault> {
    let (header, payload) = frame.split_first_chunk_mut::<HEADER>().unwrap();
    let header = Header::parse(*header, session.due()).unwrap();
    session.handle_frame(header, payload, now, entropy)
}

/// A session after both READY frames, as `start` describes it.
fn session(side: Side, start: &Value, now: Instant) -> Session {
    assert_eq!(start.num("epoch"), 0);
    let established = Established {
        side,
        ck_c2s: ChainKey::new(&start.bytes("ck_c2s")),
        ck_s2c: ChainKey::new(&start.bytes("ck_s2c")),
        rk: RootKey::new(&start.bytes("rk")),
        sid: SessionId([0; 16]),
        server_key: ServerKey([0; 32]),
        credential: CredentialId::Device(DeviceId([0; 16])),
    };
    let config = SessionConfig {
        binding: BindingPolicy::Off,
        exporter: None,
        info: Vec::new(),
        max_version: VERSION,
        timing: Timing { max_age: Duration::from_secs(86400), ..Timing::default() },
    };
    let (send, recv) = match side {
        Side::Client => (start.num("n_c2s"), start.num("n_s2c")),
        Side::Server => (start.num("n_s2c"), start.num("n_c2s")),
    };
    Session::resumed(established, config, now, send, recv)
}
