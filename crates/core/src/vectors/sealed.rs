//! `sealed.json` and `bulk.json`: frames of both kinds, byte for byte, and how a receiver handles
//! bad ones.

use serde_json::Value;

use super::{Case, Counts, Tally};
use crate::frame::{Due, HEADER, Header};
use crate::keys::ChainKey;
use crate::schedule;
use crate::seal::{Chain, MessageType, OpenFrameError, OpenedFrame, TooLarge};

pub(super) fn run_sealed(file: &Value) -> Counts {
    let mut tally =
        Tally::expect(&["frames of runs", "edges", "opens", "drop", "close", "CLOSE 1"]);
    for run in file.list("runs") {
        let n = run.list("frames")[0].num("n");
        let ck = run.bytes("ck");
        tally.add_many("frames of runs", chain_run(run, &ck, n));
    }
    for case in file.list("edges") {
        edge(case);
        tally.add("edges");
    }
    for case in file.list("single") {
        tally.add(single(case));
    }
    tally.done()
}

pub(super) fn run_bulk(file: &Value) -> Counts {
    let mut tally = Tally::expect(&["frames of the run", "opens", "drop", "close"]);
    let run = &file["run"];
    tally.add_many("frames of the run", chain_run(run, &run.bytes("ck"), 0));
    for case in file.list("single") {
        tally.add(single(case));
    }
    tally.done()
}

/// Seals and opens the frames of one chain in order, and compares every intermediate key.
fn chain_run(run: &Value, ck: &[u8; 32], n: u64) -> usize {
    let epoch = u32::try_from(run.num("epoch")).unwrap();
    let mut sender = Chain::at(ChainKey::new(ck), epoch, n);
    let mut receiver = Chain::at(ChainKey::new(ck), epoch, n);
    for case in run.list("frames") {
        assert_eq!(case.text("expected"), "opens");
        assert_eq!(sender.frames(), case.num("n"));
        let (mk, _) = sender.key().peek();
        assert_eq!(*mk, case.bytes("mk"));
        let mut frame = Vec::new();
        if case.has("mtype") {
            let keys = schedule::expand::<80>(&mk, &[b"tl1 msg"]);
            assert_eq!(keys[..], [case.hex("ek"), case.hex("ak"), case.hex("iv")].concat());
            sender.seal(mtype(case), &case.hex("body"), &mut frame).unwrap();
            assert!(case.hex("ad").starts_with(&frame[..HEADER]));
        } else {
            let keys = schedule::expand::<44>(&mk, &[b"tl1 bulk"]);
            assert_eq!(keys[..], [case.hex("ek"), case.hex("nonce")].concat());
            let transfer = u32::try_from(case.num("transfer")).unwrap();
            sender.seal_bulk(transfer, case.num("offset"), &data(case), &mut frame).unwrap();
            assert!(case.hex("aad").starts_with(&frame[..HEADER]));
        }
        same_frame(case, &frame);
        assert_eq!(sender.key().expose_secret(), &case.bytes("ck_next"));

        match open(&mut receiver, &mut frame).unwrap().unwrap() {
            OpenedFrame::Message(m, body) => {
                assert_eq!((m, body), (mtype(case), &case.hex("body")[..]));
            }
            OpenedFrame::Bulk { transfer, offset, data: got } => {
                let place = (u64::from(transfer), offset);
                assert_eq!(place, (case.num("transfer"), case.num("offset")));
                assert_eq!(got, data(case));
            }
        }
        assert_eq!(receiver.key().expose_secret(), &case.bytes("ck_next"));
        assert_eq!(receiver.frames(), sender.frames());
    }
    run.list("frames").len()
}

/// The largest body that fits each bucket, and one byte more.
fn edge(case: &Value) {
    let len = usize::try_from(case.num("body_len")).unwrap();
    let body = pattern(len);
    let mut chain = Chain::new(ChainKey::new(&case.bytes("ck")), 0);
    let mut frame = Vec::new();
    let sealed = chain.seal(mtype(case), &body, &mut frame);
    if case.text("expected") == "cannot be sealed" {
        assert_eq!(sealed, Err(TooLarge { got: len, max: 65531 }));
        assert_eq!(chain.key().expose_secret(), &case.bytes("ck"));
        assert_eq!((chain.frames(), frame.len()), (0, 0));
        return;
    }
    assert_eq!(case.text("expected"), "opens");
    assert_eq!(frame.len() as u64, HEADER as u64 + case.num("payload_len"));
    assert_eq!(case.num("bucket") + 32, case.num("payload_len"));
    same_frame(case, &frame);
    let mut receiver = Chain::new(ChainKey::new(&case.bytes("ck")), 0);
    let opened = open(&mut receiver, &mut frame).unwrap();
    assert_eq!(opened, Ok(OpenedFrame::Message(mtype(case), &body)));
}

/// One frame, read by a receiver at epoch 0 and n 0.
fn single(case: &Value) -> &'static str {
    let name = case.text("name");
    let before: [u8; 32] = case.bytes("ck");
    let mut chain = Chain::new(ChainKey::new(&before), 0);
    let key = if case.has("frame") { "frame" } else { "frame_first_64" };
    let mut frame = case.hex(key);
    if case.has("plain") {
        let mut sender = Chain::new(ChainKey::new(&before), 0);
        assert_eq!(sender.seal_raw(&case.hex("plain")), frame, "{name}");
    }
    let outcome = match open(&mut chain, &mut frame) {
        None => "close",
        Some(Ok(_)) => "opens",
        Some(Err(OpenFrameError::Drop)) => "drop",
        Some(Err(OpenFrameError::Violation(_))) => "CLOSE 1",
    };
    assert_eq!(outcome, case.text("expected"), "{name}");
    if outcome == "close" || outcome == "drop" {
        assert_eq!(case.text("state_after"), "unchanged");
        assert_eq!(chain.key().expose_secret(), &before, "{name}");
        assert_eq!((chain.epoch(), chain.frames()), (0, 0), "{name}");
    }
    outcome
}

/// `None` if the header alone closes the connection.
fn open<'a>(
    chain: &mut Chain,
    frame: &'a mut [u8],
) -> Option<Result<OpenedFrame<'a>, OpenFrameError>> {
    let (header, payload) = frame.split_first_chunk_mut::<HEADER>().unwrap();
    let header = Header::parse(*header, Due::Session).ok()?;
    Some(chain.open(header, payload))
}

fn mtype(case: &Value) -> MessageType {
    match case.num("mtype") {
        1 => MessageType::Ready,
        2 => MessageType::App,
        7 => MessageType::Ping,
        8 => MessageType::Pong,
        15 => MessageType::Close,
        other => panic!("mtype {other}"),
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=255).cycle().take(len).collect()
}

fn data(case: &Value) -> Vec<u8> {
    if case.text("data").starts_with("the bytes 00 01") {
        pattern(usize::try_from(case.num("data_len")).unwrap())
    } else {
        case.hex("data")
    }
}

/// The file gives a long frame by its length, its hash, and its first and last 64 bytes.
fn same_frame(case: &Value, frame: &[u8]) {
    if case.has("frame") {
        assert_eq!(frame, case.hex("frame"));
    } else {
        assert_eq!(frame.len() as u64, case.num("frame_len"));
        assert_eq!(schedule::hash(&[frame]), case.bytes("frame_sha256"));
        assert!(frame.starts_with(&case.hex("frame_first_64")));
        assert!(frame.ends_with(&case.hex("frame_last_64")));
    }
}
