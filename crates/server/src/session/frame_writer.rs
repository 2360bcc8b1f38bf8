//! The frame writer: packs items into as few APP frames as possible.

use prost::Message as _;
use twinlock_core::limits::MAX_BODY;
use twinlock_core::pack::pack;
use twinlock_core::proto::{self, answer::Result as Answered, item::What};
use twinlock_core::session::{SendError, Session};
use zeroize::Zeroize as _;

/// Maximum overhead of a frame of entries, bytes.
pub(crate) const FRAME_HEAD: usize = 512;
/// Maximum tag and length before an encoded entry, bytes.
pub(crate) const ENTRY_HEAD: usize = 6;

/// Items collected for one frame.
#[derive(Default)]
pub(crate) struct FrameWriter {
    items: Vec<proto::Item>,
    bytes: usize,
    /// One of the items contains a secret.
    secret: bool,
}

impl FrameWriter {
    /// Adds an item; a frame that would overflow is sent first.
    pub(crate) fn push(&mut self, session: &mut Session, what: What) -> Result<(), SendError> {
        let item = proto::Item { what: Some(what) };
        let bytes = size(&item);
        if self.bytes + bytes > MAX_BODY {
            self.flush(session)?;
        }
        self.bytes += bytes;
        self.items.push(item);
        Ok(())
    }

    /// Adds an answer.
    pub(crate) fn answer(
        &mut self,
        session: &mut Session,
        id: u64,
        result: Answered,
    ) -> Result<(), SendError> {
        let secret = matches!(result, Answered::Invite(_) | Answered::NewClassicKey(_));
        self.push(session, What::Answer(proto::Answer { id, result: Some(result) }))?;
        // Set after the push: a full frame was sent without this item.
        self.secret |= secret;
        Ok(())
    }

    /// Bytes collected and not yet sealed.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Seals the collected items.
    pub(crate) fn flush(&mut self, session: &mut Session) -> Result<(), SendError> {
        self.bytes = 0;
        let secret = std::mem::take(&mut self.secret);
        for items in pack(std::mem::take(&mut self.items), 0, size) {
            let frame = proto::ToClient { items };
            let mut body = frame.encode_to_vec();
            let sent = session.send_app(&body);
            if secret {
                body.zeroize();
                frame.items.into_iter().for_each(wipe);
            }
            sent?;
        }
        Ok(())
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if self.secret {
            // The session ended before the secret was sent.
            std::mem::take(&mut self.items).into_iter().for_each(wipe);
        }
    }
}

/// Wipes the secret of an answer, which is sent once and not stored.
fn wipe(item: proto::Item) {
    let Some(What::Answer(proto::Answer { result: Some(result), .. })) = item.what else { return };
    let secret = match result {
        Answered::Invite(invite) => invite.secret,
        Answered::NewClassicKey(key) => key.key,
        _ => return,
    };
    if let Ok(mut secret) = secret.try_into_mut() {
        secret.zeroize();
    }
}

/// Maximum bytes of an item in a frame: tag, length and item.
fn size(item: &proto::Item) -> usize {
    item.encoded_len() + 1 + 5
}
