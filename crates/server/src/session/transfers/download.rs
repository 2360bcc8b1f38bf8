//! A download: a file on its way to the client.

use std::sync::Arc;
use std::time::Instant;

use twinlock_core::id::Name;
use twinlock_core::session::{SendError, Session};
use twinlock_store::FileRef;
use twinlock_transport::flow_control::{FRAME, FlowControl};

use super::failure::TransferViolation;
use crate::files::{Blob, Denied, FilePolicy, Hash};
use crate::refusal::RequestRefusal;

/// Bytes read at a time: whole frames, about half a MiB. A download has at most two of these in
/// memory.
const PIECE: usize = 8 * FRAME;

/// A requested file.
pub(crate) struct FoundFile {
    pub(super) file: FileRef,
    pub(super) blob: Box<dyn Blob>,
    /// Where the download begins: the client has the same bytes up to here.
    pub(super) offset: u64,
}

pub(super) async fn find(
    files: &Arc<FilePolicy>,
    user: &Name,
    conversation: u64,
    n: u64,
    prefix: Option<(u64, Hash)>,
) -> Result<FoundFile, RequestRefusal> {
    let of = user.clone();
    let open = |files: Arc<FilePolicy>| async move { files.open(&of, conversation, n).await };
    let (file, blob) = files.look_up(user, open).await?;
    let offset = match prefix {
        Some((length, hash)) if length <= file.size => {
            let turn = files.hashing(user).await;
            let ours = blob.prefix_hash(length, turn).await.map_err(Denied::from)?;
            if ours == hash { length } else { 0 }
        }
        _ => 0,
    };
    Ok(FoundFile { file, blob, offset })
}

/// The next read, and its buffer.
pub(super) struct NextRead {
    pub(super) blob: Box<dyn Blob>,
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) buffer: Vec<u8>,
}

/// A download of a session.
pub(super) struct OutgoingFile {
    size: u64,
    pace: FlowControl,
    /// Offset of the next read.
    read: u64,
    /// `None` while a job has it.
    blob: Option<Box<dyn Blob>>,
    /// Bytes that are being sent, from `at` on.
    buffer: Vec<u8>,
    at: usize,
    /// Bytes that were read after them.
    ready: Vec<u8>,
    spare: Vec<u8>,
}

impl OutgoingFile {
    /// Starts a download to a client that acknowledges each `ack_each` bytes.
    pub(super) fn new(found: FoundFile, ack_each: u32) -> Self {
        let FoundFile { file, blob, offset } = found;
        Self {
            size: file.size,
            pace: FlowControl::new(offset, ack_each, now()),
            read: offset,
            blob: Some(blob),
            buffer: Vec::new(),
            at: 0,
            ready: Vec::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.pace.sent() == self.size
    }

    /// Handles an acknowledgement. One of unsent bytes is a violation; an older one changes
    /// nothing.
    pub(super) fn acknowledge(&mut self, offset: u64) -> Result<(), TransferViolation> {
        if self.pace.acknowledge(offset, now()) { Ok(()) } else { Err(TransferViolation) }
    }

    /// The next read: one piece ahead of the bytes being sent.
    pub(super) fn next_read(&mut self) -> Option<NextRead> {
        if !self.ready.is_empty() || self.read >= self.size {
            return None;
        }
        let length = usize::try_from(self.size - self.read).unwrap_or(PIECE).min(PIECE);
        let blob = self.blob.take()?;
        let offset = self.read;
        self.read += length as u64;
        Some(NextRead { blob, offset, length, buffer: std::mem::take(&mut self.spare) })
    }

    pub(super) fn have_read(&mut self, blob: Box<dyn Blob>, data: Vec<u8>) {
        self.blob = Some(blob);
        self.ready = data;
        self.swap_buffers();
    }

    /// Switches to the next piece once the current one is sent.
    fn swap_buffers(&mut self) {
        if self.at < self.buffer.len() {
            return;
        }
        let empty = std::mem::replace(&mut self.buffer, std::mem::take(&mut self.ready));
        self.at = 0;
        // Kept only while there are bytes to send.
        self.spare = if self.buffer.is_empty() { Vec::new() } else { empty };
    }

    /// Whether there are bytes, and flow control allows them.
    pub(super) fn can_send(&self) -> bool {
        let next = self.next_frame().len();
        next > 0 && self.pace.may(next)
    }

    fn next_frame(&self) -> &[u8] {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        rest.get(..FRAME).unwrap_or(rest)
    }

    pub(super) fn send(&mut self, transfer: u32, session: &mut Session) -> Result<(), SendError> {
        let data = self.next_frame();
        let bytes = data.len();
        session.send_bulk(transfer, self.pace.sent(), data)?;
        self.pace.send(bytes, now());
        self.at += bytes;
        self.swap_buffers();
        Ok(())
    }
}

/// The runtime's clock, which tests can move.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
