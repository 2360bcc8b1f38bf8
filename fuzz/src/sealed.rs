//! Sealed frames in their chain, some of them changed in transit.

use twinlock_core::frame::{Due, HEADER, Header};
use twinlock_core::keys::ChainKey;
use twinlock_core::limits::{MAX_BODY, MAX_BULK};
use twinlock_core::seal::{Chain, MessageType, OpenFrameError, OpenedFrame};

use crate::input::Input;

const TYPES: [MessageType; 8] = [
    MessageType::Ready,
    MessageType::App,
    MessageType::Rekey1,
    MessageType::Rekey2,
    MessageType::Rekey3,
    MessageType::Ping,
    MessageType::Pong,
    MessageType::Close,
];

/// A frame opens to the sealed plaintext, and only in sequence. A changed frame does not open and
/// changes nothing, so that the original still opens.
pub(crate) fn sealed(data: &[u8]) {
    let mut input = Input(data);
    let (key, epoch) = (input.array(), u32::from_be_bytes(input.array()));
    let chain = || Chain::new(ChainKey::new(&key), epoch);
    let (mut send, mut recv) = (chain(), chain());
    let mut before: Option<Vec<u8>> = None;
    for _ in 0..32 {
        if input.is_empty() {
            return;
        }
        let what = input.byte();
        let (transfer, offset) = (u32::from(input.byte()), u64::from(input.u16()) << 40);
        let mut body = input.part().to_vec();
        if what & 0x80 != 0 {
            // At and around the limits and the sizes of buckets.
            let sizes = [251, 252, 507, 508, MAX_BODY, MAX_BODY + 1, MAX_BULK, MAX_BULK + 1];
            body.resize(sizes[usize::from(what & 7)], 0xc3);
        }
        let mtype = TYPES[usize::from(what >> 4 & 7)];
        let bulk = what & 8 != 0;
        let mut frame = Vec::new();
        let (frames, fits) = (
            send.frames(),
            match bulk {
                true => (1..=MAX_BULK).contains(&body.len()),
                false => body.len() <= MAX_BODY,
            },
        );
        let done = if bulk {
            send.seal_bulk(transfer, offset, &body, &mut frame)
        } else {
            send.seal(mtype, &body, &mut frame)
        };
        assert_eq!(done.is_ok(), fits);
        assert_eq!(send.frames(), frames + u64::from(fits));
        if !fits {
            assert!(frame.is_empty());
            continue;
        }
        let header = Header::parse(*frame.first_chunk().unwrap(), Due::Session).unwrap();
        assert_eq!(frame.len(), HEADER + header.len);
        assert!(bulk || header.len - 32 < 2 * (body.len() + 5) || header.len == 288);

        let mut changed = frame.clone();
        if input.change(&mut changed) {
            refused(&mut recv, changed);
        }
        if let Some(before) = before.replace(frame.clone()) {
            refused(&mut recv, before);
        }
        let opened = recv.open(header, &mut frame[HEADER..]);
        let expected = if bulk {
            OpenedFrame::Bulk { transfer, offset, data: &body }
        } else {
            OpenedFrame::Message(mtype, &body)
        };
        assert_eq!(opened, Ok(expected));
        assert_eq!((recv.epoch(), recv.frames()), (epoch, send.frames()));
    }
}

fn refused(recv: &mut Chain, mut frame: Vec<u8>) {
    let facts = (recv.epoch(), recv.frames());
    let Some((bytes, payload)) = frame.split_first_chunk_mut::<HEADER>() else { return };
    // The reader passes only whole frames, but `open` does not rely on it.
    let Ok(header) = Header::parse(*bytes, Due::Session) else { return };
    assert_eq!(recv.open(header, payload), Err(OpenFrameError::Drop));
    assert_eq!((recv.epoch(), recv.frames()), facts);
}
