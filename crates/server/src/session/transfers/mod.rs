//! File transfers of a session (section 10), in both directions.
//!
//! The session's task copies, seals and opens; reads, writes and hashes are jobs on threads that
//! may block on the disk. An upload has one write in progress and one buffer that fills at the same
//! time; while that contains [`MAX_UNWRITTEN`](upload::MAX_UNWRITTEN) bytes, the connection is not
//! read. A write starts when nothing more can be read, or with [`MIN_WRITE`](upload::MIN_WRITE)
//! bytes: waking a thread for each frame costs more than the frame.
//!
//! A download has one read in progress and one buffer that is sent, within its [flow
//! control](twinlock_transport::flow_control) and only while the backlog is below [`ROOM`]. A slow
//! disk or a slow peer therefore costs only these buffers; an idle transfer has none.
//!
//! [`ROOM`]: super::follow::ROOM

mod download;
mod failure;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use twinlock_core::id::{DeviceId, MessageId, Name, Sender};
use twinlock_core::proto::{
    self, Limit, RefusalReason, answer::Result as Answered, item::What, request::Op,
};
use twinlock_core::session::{SendError, Session};
use twinlock_transport::flow_control::ACK_EACH;

use super::frame_writer::FrameWriter;
use crate::convert::{self, copy};
use crate::files::{Blob, FilePolicy, FilesError, Hash, OpenUpload};
use crate::refusal::{RequestRefusal, refuse};

use download::{FoundFile, NextRead, OutgoingFile};
pub(crate) use failure::TransferViolation;
use failure::refusal_of;
use upload::{Accepted, IncomingFile, UploadStep};

/// Concurrent transfers of a session.
const MAX_TRANSFERS: usize = 8;
/// Aborted uploads whose last bytes are still being written, in addition to [`MAX_TRANSFERS`].
const LEAVING: usize = 8;

/// The transfers of one session.
pub(crate) struct SessionTransfers {
    files: Arc<FilePolicy>,
    /// Number of the next transfer. Uploads are odd and downloads even, so that past transfers are
    /// recognised without being remembered.
    next: u32,
    /// Offers and requests that are being looked up.
    asked: usize,
    uploads: BTreeMap<u32, IncomingFile>,
    downloads: BTreeMap<u32, OutgoingFile>,
    /// The download that was served last: they take turns.
    served: u32,
    jobs: FuturesUnordered<BoxFuture<'static, FinishedJob>>,
}

/// The output of a job.
pub(crate) enum FinishedJob {
    Accepted { id: u64, result: Result<Accepted, RequestRefusal> },
    Wrote { transfer: u32, upload: Box<dyn OpenUpload>, result: Result<Vec<u8>, FilesError> },
    Recorded { transfer: u32, id: u64, bytes: u64, result: Result<proto::Ack, RequestRefusal> },
    Found { id: u64, ack_each: u32, result: Result<FoundFile, RequestRefusal> },
    Read { transfer: u32, blob: Box<dyn Blob>, result: Result<Vec<u8>, FilesError> },
}

impl SessionTransfers {
    pub(crate) fn new(files: Arc<FilePolicy>) -> Self {
        Self {
            files,
            next: 2,
            asked: 0,
            uploads: BTreeMap::new(),
            downloads: BTreeMap::new(),
            served: 0,
            jobs: FuturesUnordered::new(),
        }
    }

    // ---- requests

    /// Starts a request. `Some` is its answer; otherwise a job answers.
    pub(crate) fn request(
        &mut self,
        user: &Name,
        device: &DeviceId,
        id: u64,
        op: Op,
    ) -> Option<Result<Answered, RequestRefusal>> {
        let begun = match op {
            Op::PutFile(want) => self.put(user, device, id, want),
            Op::EndFile(want) => self.end(id, &want),
            Op::GetFile(want) => self.get(user, id, &want),
            Op::AbortFile(want) => return Some(self.abort(want.transfer)),
            _ => refuse(RefusalReason::Unsupported),
        };
        begun.err().map(Err)
    }

    fn put(
        &mut self,
        user: &Name,
        device: &DeviceId,
        id: u64,
        want: proto::PutFile,
    ) -> Result<(), RequestRefusal> {
        let message_id = MessageId::from_slice(&want.message_id).ok_or(RefusalReason::Malformed)?;
        let meta = upload::check_meta(want.file)?;
        self.have_room()?;
        self.asked += 1;
        let offered = upload::Offered {
            user: user.clone(),
            sender: Sender::new(user, Some(device)),
            conversation: want.conversation,
            message_id,
            meta,
        };
        let files = self.files.clone();
        self.jobs.push(Box::pin(async move {
            FinishedJob::Accepted { id, result: offered.accept(&files).await }
        }));
        Ok(())
    }

    fn end(&mut self, id: u64, want: &proto::EndFile) -> Result<(), RequestRefusal> {
        let hash = Hash::try_from(want.hash.as_ref()).map_err(|_| RefusalReason::Malformed)?;
        let upload = self.uploads.get_mut(&want.transfer).ok_or(RefusalReason::NotFound)?;
        if !upload.end(id, hash) {
            return refuse(RefusalReason::NotFound);
        }
        self.advance(want.transfer);
        Ok(())
    }

    fn get(&mut self, user: &Name, id: u64, want: &proto::GetFile) -> Result<(), RequestRefusal> {
        let prefix = match want.offset {
            0 => None,
            offset => {
                let hash = Hash::try_from(want.prefix_hash.as_ref())
                    .map_err(|_| RefusalReason::Malformed)?;
                Some((offset, hash))
            }
        };
        self.have_room()?;
        self.asked += 1;
        let (files, user) = (self.files.clone(), user.clone());
        let (conversation, n, ack_each) = (want.conversation, want.n, want.ack_each);
        self.jobs.push(Box::pin(async move {
            let result = download::find(&files, &user, conversation, n, prefix).await;
            FinishedJob::Found { id, ack_each, result }
        }));
        Ok(())
    }

    fn abort(&mut self, transfer: u32) -> Result<Answered, RequestRefusal> {
        if transfer == 0 || transfer >= self.next {
            return refuse(RefusalReason::NotFound);
        }
        self.downloads.remove(&transfer);
        if let Some(upload) = self.uploads.get_mut(&transfer) {
            upload.leave();
            self.advance(transfer);
        }
        super::requests::done()
    }

    fn have_room(&self) -> Result<(), RequestRefusal> {
        let uploads = self.uploads.values().filter(|upload| !upload.is_leaving()).count();
        let open = self.asked + uploads + self.downloads.len();
        // A transfer takes two numbers, and no number is reused.
        if open >= MAX_TRANSFERS
            || self.uploads.len() >= MAX_TRANSFERS + LEAVING
            || self.next > u32::MAX - 4
        {
            return Err(
                RequestRefusal::for_now(RefusalReason::Busy, 1).at(Limit::Transfers, MAX_TRANSFERS)
            );
        }
        Ok(())
    }

    fn number(&mut self, odd: bool) -> u32 {
        let number = self.next | u32::from(odd);
        self.next += 2;
        number
    }

    // ---- bytes

    /// Takes the bytes of a BULK frame.
    pub(crate) fn take(
        &mut self,
        transfer: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), TransferViolation> {
        if transfer.is_multiple_of(2) || transfer >= self.next {
            return Err(TransferViolation);
        }
        if let Some(upload) = self.uploads.get_mut(&transfer) {
            upload.take(offset, data)?;
            if upload.should_write() {
                self.advance(transfer);
            }
        }
        Ok(())
    }

    /// Whether received bytes can be written now.
    pub(crate) fn can_write(&self) -> bool {
        self.uploads.values().any(IncomingFile::can_write)
    }

    /// Writes the received bytes, however few.
    pub(crate) fn write(&mut self) {
        let can =
            |(transfer, upload): (&u32, &IncomingFile)| upload.can_write().then_some(*transfer);
        let some: Vec<u32> = self.uploads.iter().filter_map(can).collect();
        for transfer in some {
            self.advance(transfer);
        }
    }

    /// Handles an acknowledgement from the client.
    pub(crate) fn acknowledge(&mut self, ack: &proto::FileAck) -> Result<(), TransferViolation> {
        if ack.transfer == 0 || ack.transfer % 2 == 1 || ack.transfer >= self.next {
            return Err(TransferViolation);
        }
        if let Some(download) = self.downloads.get_mut(&ack.transfer) {
            download.acknowledge(ack.offset)?;
        }
        Ok(())
    }

    /// Whether an upload has as many bytes waiting for the disk as allowed.
    pub(crate) fn is_upload_full(&self) -> bool {
        self.uploads.values().any(IncomingFile::is_full)
    }

    /// Whether a download has bytes to send and waits for room.
    pub(crate) fn want_room(&self) -> bool {
        self.downloads.values().any(OutgoingFile::can_send)
    }

    /// Seals bytes of the downloads in turn, until the backlog is `max` bytes.
    pub(crate) fn send(&mut self, session: &mut Session, max: usize) -> Result<(), SendError> {
        while session.outgoing().len() < max && session.is_open() {
            let can = |(_, download): &(&u32, &mut OutgoingFile)| download.can_send();
            let after = self.downloads.range_mut(self.served.saturating_add(1)..).find(can);
            let next = match after {
                Some(next) => Some(next),
                None => self.downloads.iter_mut().find(can),
            };
            let Some((&transfer, download)) = next else { break };
            self.served = transfer;
            download.send(transfer, session)?;
            if download.is_done() {
                self.downloads.remove(&transfer);
            } else {
                self.read_on(transfer);
            }
        }
        Ok(())
    }

    // ---- jobs

    /// The output of the next job; `None` while there is none. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<FinishedJob> {
        let done = self.jobs.next().await?;
        if self.jobs.is_empty() {
            // An idle session keeps no buffer.
            self.jobs = FuturesUnordered::new();
        }
        Some(done)
    }

    /// Continues after a job, and sends its results.
    pub(crate) fn complete_job(
        &mut self,
        done: FinishedJob,
        session: &mut Session,
        writer: &mut FrameWriter,
    ) -> Result<(), SendError> {
        match done {
            FinishedJob::Accepted { id, result } => {
                self.asked -= 1;
                let answer = result.map(|accepted| self.accept(accepted));
                writer.answer(session, id, answer.unwrap_or_else(refusal))
            }
            FinishedJob::Found { id, ack_each, result } => {
                self.asked -= 1;
                let answer = result.map(|found| self.deliver(found, ack_each));
                writer.answer(session, id, answer.unwrap_or_else(refusal))
            }
            FinishedJob::Wrote { transfer, upload, result } => {
                let handled = self.wrote(transfer, upload, result);
                // The connection may always have more to read, so other uploads are written here.
                self.write();
                handled.map_or(Ok(()), |what| writer.push(session, what))
            }
            FinishedJob::Read { transfer, blob, result } => {
                let handled = self.have_read(transfer, blob, result);
                handled.map_or(Ok(()), |what| writer.push(session, what))
            }
            FinishedJob::Recorded { transfer, id, result, .. } => {
                self.uploads.remove(&transfer);
                writer.answer(session, id, result.map_or_else(refusal, Answered::Ack))
            }
        }
    }

    fn accept(&mut self, accepted: Accepted) -> Answered {
        let upload = match accepted {
            Accepted::Recorded(receipt) => return Answered::Ack(convert::ack(&receipt)),
            Accepted::Open(upload) => *upload,
        };
        let (offset, prefix_hash) = upload.found();
        let transfer = self.number(true);
        self.uploads.insert(transfer, upload);
        let prefix_hash = if offset == 0 { Default::default() } else { copy(&prefix_hash) };
        Answered::FileAccepted(proto::FileAccepted {
            transfer,
            offset,
            prefix_hash,
            ack_each: ACK_EACH,
        })
    }

    fn deliver(&mut self, found: FoundFile, ack_each: u32) -> Answered {
        let transfer = self.number(false);
        let (offset, size, hash) = (found.offset, found.file.size, copy(&found.file.hash));
        if offset < size {
            self.downloads.insert(transfer, OutgoingFile::new(found, ack_each));
            self.read_on(transfer);
        }
        Answered::FileComing(proto::FileComing { transfer, offset, size, hash })
    }

    /// Takes the next step of an upload, if none is in progress.
    fn advance(&mut self, transfer: u32) {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        match upload.next_step() {
            UploadStep::Wait => {}
            UploadStep::Removed => {
                self.uploads.remove(&transfer);
            }
            UploadStep::Write(mut upload, anew, data) => self.jobs.push(Box::pin(async move {
                let result = upload.write(anew, data).await;
                FinishedJob::Wrote { transfer, upload, result }
            })),
            UploadStep::Record(id, record) => {
                let bytes = record.bytes();
                // Runs to its end even if the session ends.
                let recording = tokio::spawn(record.record(self.files.clone()));
                self.jobs.push(Box::pin(async move {
                    let failed = |_| Err(RequestRefusal::for_now(RefusalReason::Storage, 5));
                    let result = recording.await.unwrap_or_else(failed);
                    FinishedJob::Recorded { transfer, id, bytes, result }
                }));
            }
        }
    }

    fn wrote(
        &mut self,
        transfer: u32,
        io: Box<dyn OpenUpload>,
        result: Result<Vec<u8>, FilesError>,
    ) -> Option<What> {
        let upload = self.uploads.get_mut(&transfer)?;
        match result {
            Ok(buffer) => {
                let offset = upload.wrote(io, buffer);
                self.advance(transfer);
                offset.map(|offset| What::FileAck(proto::FileAck { transfer, offset }))
            }
            Err(error) => {
                let why = refusal_of(error).why;
                let waiting = upload.ending();
                self.uploads.remove(&transfer);
                Some(match waiting {
                    // The pending request for the end gets the refusal.
                    Some(id) => {
                        let refusal = Answered::Refusal(RequestRefusal::from(why).into());
                        What::Answer(proto::Answer { id, result: Some(refusal) })
                    }
                    None => What::FileAborted(proto::FileAborted { transfer, why: why.into() }),
                })
            }
        }
    }

    /// Reads the next piece, if it is needed and no read is in progress.
    fn read_on(&mut self, transfer: u32) {
        let Some(download) = self.downloads.get_mut(&transfer) else { return };
        let Some(NextRead { blob, offset, length, buffer }) = download.next_read() else { return };
        self.jobs.push(Box::pin(async move {
            let result = blob.read(offset, length, buffer).await;
            FinishedJob::Read { transfer, blob, result }
        }));
    }

    fn have_read(
        &mut self,
        transfer: u32,
        blob: Box<dyn Blob>,
        result: Result<Vec<u8>, FilesError>,
    ) -> Option<What> {
        let download = self.downloads.get_mut(&transfer)?;
        match result {
            Ok(buffer) => {
                download.have_read(blob, buffer);
                self.read_on(transfer);
                None
            }
            Err(error) => {
                self.downloads.remove(&transfer);
                let why = refusal_of(error).why.into();
                Some(What::FileAborted(proto::FileAborted { transfer, why }))
            }
        }
    }

    // ---- the end

    /// Whether the Ack of a file that is being recorded is still owed.
    pub(crate) fn are_ending(&self) -> bool {
        self.uploads.values().any(|upload| upload.ending().is_some())
    }

    /// After the session: writes the received bytes to disk, so that the client need not send them
    /// again.
    pub(crate) async fn conclude(mut self) {
        self.downloads.clear();
        let open: Vec<u32> = self.uploads.keys().copied().collect();
        for transfer in open {
            if let Some(upload) = self.uploads.get_mut(&transfer) {
                upload.leave();
            }
            self.advance(transfer);
        }
        while !self.uploads.is_empty()
            && let Some(done) = self.jobs.next().await
        {
            match done {
                FinishedJob::Wrote { transfer, upload, result } => {
                    _ = self.wrote(transfer, upload, result);
                }
                FinishedJob::Recorded { transfer, .. } => _ = self.uploads.remove(&transfer),
                FinishedJob::Accepted { .. }
                | FinishedJob::Found { .. }
                | FinishedJob::Read { .. } => {}
            }
        }
    }
}

fn refusal(refused: RequestRefusal) -> Answered {
    Answered::Refusal(refused.into())
}
