//! A file that goes out.

use twinlock_core::id::Name;
use twinlock_core::session::{SendError, Session};
use twinlock_store::FileRef;

use super::{Refused, Violation, WINDOW};
use crate::files::{Blob, Denied, Files, Hash};

/// Read at a time, bytes. Two of these are the most that a download has in memory.
const PIECE: usize = 512 * 1024;
/// Data of one frame, bytes. Larger ones spare some keys, and make a message that comes meanwhile
/// wait longer.
const FRAME: usize = 64 * 1024;

/// A file that was asked for.
pub(crate) struct Found {
    pub(super) file: FileRef,
    pub(super) blob: Box<dyn Blob>,
    /// Where it goes on: what the client has up to there is the same.
    pub(super) offset: u64,
}

pub(super) async fn find(
    files: &Files,
    user: &Name,
    conversation: u64,
    n: u64,
    prefix: Option<(u64, Hash)>,
) -> Result<Found, Refused> {
    let (file, blob) = files.open(user, conversation, n).await?;
    let offset = match prefix {
        Some((length, hash)) if length <= file.size => {
            let ours = blob.prefix_hash(length).await.map_err(Denied::from)?;
            if ours == hash { length } else { 0 }
        }
        _ => 0,
    };
    Ok(Found { file, blob, offset })
}

/// What is to be read next, and into what.
pub(super) struct Read {
    pub(super) blob: Box<dyn Blob>,
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) buffer: Vec<u8>,
}

/// A download of a line.
pub(super) struct Download {
    size: u64,
    /// The next byte to seal.
    sent: u64,
    acked: u64,
    /// The next byte to read.
    read: u64,
    /// `None` while a job has it.
    blob: Option<Box<dyn Blob>>,
    /// What is being sent, from `at` on.
    buffer: Vec<u8>,
    at: usize,
    /// What was read behind it.
    ready: Vec<u8>,
    spare: Vec<u8>,
}

impl Download {
    pub(super) fn new(blob: Box<dyn Blob>, offset: u64, size: u64) -> Self {
        Self {
            size,
            sent: offset,
            acked: offset,
            read: offset,
            blob: Some(blob),
            buffer: Vec::new(),
            at: 0,
            ready: Vec::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.sent == self.size
    }

    /// Nobody has taken what was not sent; an older word changes nothing.
    pub(super) fn acknowledge(&mut self, offset: u64) -> Result<(), Violation> {
        if offset > self.sent {
            return Err(Violation);
        }
        self.acked = self.acked.max(offset);
        Ok(())
    }

    /// What to read now: only what the client's window takes, and one piece ahead.
    pub(super) fn next_read(&mut self) -> Option<Read> {
        let end = self.acked.saturating_add(WINDOW).min(self.size);
        if !self.ready.is_empty() || self.read >= end {
            return None;
        }
        let length = usize::try_from(end - self.read).unwrap_or(PIECE).min(PIECE);
        let blob = self.blob.take()?;
        let offset = self.read;
        self.read += length as u64;
        Some(Read { blob, offset, length, buffer: std::mem::take(&mut self.spare) })
    }

    pub(super) fn have_read(&mut self, blob: Box<dyn Blob>, data: Vec<u8>) {
        self.blob = Some(blob);
        self.ready = data;
        self.turn_over();
    }

    /// Goes on to what was read behind, once all before it is sent.
    fn turn_over(&mut self) {
        if self.at < self.buffer.len() {
            return;
        }
        let empty = std::mem::replace(&mut self.buffer, std::mem::take(&mut self.ready));
        self.at = 0;
        // Kept only while there is something to send.
        self.spare = if self.buffer.is_empty() { Vec::new() } else { empty };
    }

    /// There is data, which is within the client's window.
    pub(super) fn can_send(&self) -> bool {
        self.at < self.buffer.len()
    }

    pub(super) fn send(&mut self, transfer: u32, session: &mut Session) -> Result<(), SendError> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let data = rest.get(..FRAME).unwrap_or(rest);
        session.send_bulk(transfer, self.sent, data)?;
        self.sent += data.len() as u64;
        self.at += data.len();
        self.turn_over();
        Ok(())
    }
}
