//! An upload: a file on its way from the client.

use std::sync::Arc;

use prost::Message as _;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{ConversationId, MessageId, Name, Sender};
use twinlock_core::proto::{self, RefusalReason};
use twinlock_store::{Appended, NewEntry, Receipt};
use twinlock_transport::flow_control::{ACK_EACH, WINDOW};

use super::failure::TransferViolation;
use crate::convert::{self, copy};
use crate::files::{
    CheckedOffer, ClaimedUpload, FilePolicy, Hash, OpenUpload, QuotaClaim, UploadId, is_possible,
};
use crate::refusal::{RequestRefusal, refuse};

/// Bytes of an upload waiting for the disk beyond which the connection is not read.
pub(super) const MAX_UNWRITTEN: usize = 1 << 20;
/// Bytes of an upload that are written even if more can be read.
pub(super) const MIN_WRITE: usize = MAX_UNWRITTEN / 2;
/// Maximum length of a media type, bytes.
const MIME: usize = 127;
/// Maximum length of a path of directories, bytes.
const PATH: usize = 1024;
/// Permission bits of a mode.
const MODE: u32 = 0o777;
/// Initial capacity of a buffer, bytes: about two reads of the connection.
const BUFFER: usize = 256 * 1024;

/// Checks the metadata of a file.
pub(super) fn check_meta(meta: Option<proto::FileMeta>) -> Result<proto::FileMeta, RequestRefusal> {
    let meta = meta.ok_or(RefusalReason::Malformed)?;
    if meta.mime.len() > MIME || meta.mode & !MODE != 0 {
        return refuse(RefusalReason::Malformed);
    }
    // Directories follow the rules for file names, so none leads upwards.
    let is_below = meta.path.len() <= PATH && meta.path.split('/').all(is_possible);
    if !is_possible(&meta.name) || !(meta.path.is_empty() || is_below) {
        return refuse(RefusalReason::NameBad);
    }
    Ok(meta)
}

/// An offered file.
pub(super) struct Offered {
    pub(super) user: Name,
    pub(super) sender: Sender,
    pub(super) conversation: ConversationId,
    pub(super) message_id: MessageId,
    pub(super) meta: proto::FileMeta,
}

/// An accepted offer.
pub(crate) enum Accepted {
    /// The file is already in the record.
    Recorded(Receipt),
    Open(Box<IncomingFile>),
}

impl Offered {
    pub(super) async fn accept(self, files: &Arc<FilePolicy>) -> Result<Accepted, RequestRefusal> {
        let (name, size) = (&self.meta.name, self.meta.size);
        let id = UploadId::new(&self.user, &self.message_id, self.conversation, name, size);
        let (offer, message_id, conversation) = (id.clone(), self.message_id, self.conversation);
        let check = |files: Arc<FilePolicy>| async move {
            files.check_offer(&offer, &message_id, conversation).await
        };
        let claim = match files.look_up(&self.user, check).await? {
            CheckedOffer::Recorded(receipt) => return Ok(Accepted::Recorded(receipt)),
            CheckedOffer::Fits(claim) => claim,
        };
        let ClaimedUpload { upload, claim } = files.begin(&id, claim).await?;
        let (have, prefix_hash) = upload.found();
        Ok(Accepted::Open(Box::new(IncomingFile {
            size,
            found: (have, prefix_hash),
            next: have,
            acked: have,
            written: have,
            begun: false,
            restart: false,
            buffer: Vec::new(),
            spare: Vec::new(),
            io: Some(upload),
            claim: Some(claim),
            offered: Some(self),
            phase: UploadPhase::Receiving,
        })))
    }
}

enum UploadPhase {
    Receiving,
    /// The client has sent all of it: the request to answer, and the hash that it names.
    Ending(u64, Hash),
    /// It is being recorded.
    Recording(u64),
    /// Received bytes are still being written; no more are taken.
    Leaving,
}

/// An upload of a session.
pub(crate) struct IncomingFile {
    size: u64,
    found: (u64, Hash),
    /// Offset of the next byte.
    next: u64,
    /// Offset that was last acknowledged to the client.
    acked: u64,
    /// Offset up to which the disk has the bytes.
    written: u64,
    begun: bool,
    /// The next write replaces the existing bytes.
    restart: bool,
    /// Received bytes that are not being written yet.
    buffer: Vec<u8>,
    spare: Vec<u8>,
    /// `None` while a job has it.
    io: Option<Box<dyn OpenUpload>>,
    claim: Option<QuotaClaim>,
    offered: Option<Offered>,
    phase: UploadPhase,
}

/// The next step of an upload.
pub(super) enum UploadStep {
    Wait,
    Write(Box<dyn OpenUpload>, bool, Vec<u8>),
    Record(u64, Box<Recording>),
    Removed,
}

impl IncomingFile {
    pub(super) fn found(&self) -> (u64, Hash) {
        self.found
    }

    /// Takes the bytes of a frame. Bytes after the end of the upload was announced are dropped.
    pub(super) fn take(&mut self, offset: u64, data: &[u8]) -> Result<(), TransferViolation> {
        if !matches!(self.phase, UploadPhase::Receiving) {
            return Ok(());
        }
        if !self.begun && offset == 0 && self.next > 0 {
            (self.restart, self.next, self.acked, self.written) = (true, 0, 0, 0);
        }
        self.begun = true;
        let end = offset.checked_add(data.len() as u64).ok_or(TransferViolation)?;
        if offset != self.next || end > self.size || end - self.acked > WINDOW {
            return Err(TransferViolation);
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(BUFFER);
        }
        self.buffer.extend_from_slice(data);
        self.next = end;
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.io.is_none() && self.buffer.len() >= MAX_UNWRITTEN
    }

    /// Whether there are received bytes, and no write is in progress.
    pub(super) fn can_write(&self) -> bool {
        self.io.is_some() && !self.buffer.is_empty()
    }

    pub(super) fn should_write(&self) -> bool {
        self.can_write() && self.buffer.len() >= MIN_WRITE
    }

    /// Marks the upload as complete. `false`: it was marked before or aborted.
    pub(super) fn end(&mut self, id: u64, hash: Hash) -> bool {
        let receiving = matches!(self.phase, UploadPhase::Receiving);
        if receiving {
            self.phase = UploadPhase::Ending(id, hash);
        }
        receiving
    }

    /// Takes no more bytes. Received ones are written, for a later resume.
    pub(super) fn leave(&mut self) {
        if matches!(self.phase, UploadPhase::Receiving) {
            self.phase = UploadPhase::Leaving;
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, UploadPhase::Leaving)
    }

    /// The request that waits for the end.
    pub(super) fn ending(&self) -> Option<u64> {
        match self.phase {
            UploadPhase::Ending(id, _) | UploadPhase::Recording(id) => Some(id),
            UploadPhase::Receiving | UploadPhase::Leaving => None,
        }
    }

    pub(super) fn next_step(&mut self) -> UploadStep {
        let Some(io) = self.io.take() else { return UploadStep::Wait };
        if !self.buffer.is_empty() {
            let restart = std::mem::take(&mut self.restart);
            let next = std::mem::take(&mut self.spare);
            return UploadStep::Write(io, restart, std::mem::replace(&mut self.buffer, next));
        }
        match self.phase {
            UploadPhase::Receiving => {
                self.io = Some(io);
                UploadStep::Wait
            }
            UploadPhase::Leaving => UploadStep::Removed,
            UploadPhase::Ending(id, hash) => {
                let (Some(claim), Some(offered)) = (self.claim.take(), self.offered.take()) else {
                    return UploadStep::Removed;
                };
                self.phase = UploadPhase::Recording(id);
                let offer = ClaimedUpload { upload: io, claim };
                UploadStep::Record(id, Box::new(Recording { offer, hash, offered }))
            }
            UploadPhase::Recording(_) => UploadStep::Wait,
        }
    }

    /// Handles the end of a write. Returns the offset to acknowledge, if that is worth a frame.
    pub(super) fn wrote(&mut self, io: Box<dyn OpenUpload>, spare: Vec<u8>) -> Option<u64> {
        self.io = Some(io);
        self.written = self.next - self.buffer.len() as u64;
        if let Some(claim) = &self.claim {
            claim.set_written(self.written);
        }
        // Kept only while bytes arrive.
        self.spare = if self.buffer.is_empty() { Vec::new() } else { spare };
        let due = self.written - self.acked >= u64::from(ACK_EACH) || self.written == self.size;
        if due && matches!(self.phase, UploadPhase::Receiving) {
            self.acked = self.written;
            return Some(self.acked);
        }
        None
    }
}

/// Everything that is needed to record a file.
pub(super) struct Recording {
    offer: ClaimedUpload,
    hash: Hash,
    offered: Offered,
}

impl Recording {
    pub(super) fn bytes(&self) -> u64 {
        self.offered.meta.size
    }

    pub(super) async fn record(
        self: Box<Self>,
        files: Arc<FilePolicy>,
    ) -> Result<proto::Ack, RequestRefusal> {
        let Self { offer, hash, offered } = *self;
        let body = proto::FileBody { file: Some(offered.meta), hash: copy(&hash) };
        let entry = NewEntry {
            conversation: offered.conversation,
            sender: offered.sender,
            message_id: offered.message_id,
            kind: EntryKind::FILE,
            body: body.encode_to_vec().into(),
        };
        match files.finish(offer, hash, entry).await? {
            Appended::Recorded(receipt) => Ok(convert::ack(&receipt)),
            Appended::NotAMember => refuse(RefusalReason::NotFound),
            Appended::ReadOnly => refuse(RefusalReason::ReadOnly),
        }
    }
}
