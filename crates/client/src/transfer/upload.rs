//! The upload of one file, over as many connections as it takes.

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use twinlock_core::id::{ConversationId, MessageId};
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_transport::OsEntropy;
use twinlock_transport::flow_control::{FRAME, FlowControl};

use super::context::JobContext;
use super::error::TransferError;
use super::limit::RateLimit;
use super::source::{self, LocalFile, Marks, SourceRead};
use super::transfer_connection::{TransferConnection, TransferItem};
use crate::blocking::blocking;
use crate::clock::now_ms;
use crate::error::ClientError;
use crate::outbox::Ack;
use crate::uploads::UploadOffer;

/// Bytes sealed and not yet written above which no more frames are sealed. With one more frame the
/// connection still reads ([`twinlock_transport::connection::HIGH_WATER`]). So it receives acks, and notices
/// a half-closed connection, while it cannot write.
const BACKLOG: usize = 96 * 1024;

/// A file to send.
pub(super) struct FileUpload {
    pub(super) target: String,
    pub(super) file: LocalFile,
    pub(super) message_id: MessageId,
    marks: Marks,
    /// Bytes that the server had at its last report.
    there: u64,
}

/// A file that is on the server's disk.
pub(super) struct SentFile {
    pub(super) ack: Ack,
    pub(super) size: u64,
    pub(super) hash: [u8; 32],
}

/// Bytes read from the file, sent frame by frame.
struct Chunk {
    data: Vec<u8>,
    sent: usize,
    /// Maximum size of a frame in bytes.
    frame: usize,
    after: Box<blake3::Hasher>,
    /// When the next frame may be sent; `None`: now.
    at: Option<Instant>,
}

impl Chunk {
    fn new(data: Vec<u8>, frame: usize, after: Box<blake3::Hasher>, limit: &RateLimit) -> Self {
        let mut part = Self { data, sent: 0, frame, after, at: None };
        part.at = limit.grant(part.next().len());
        part
    }

    fn next(&self) -> &[u8] {
        let rest = self.data.get(self.sent..).unwrap_or_default();
        rest.get(..self.frame).unwrap_or(rest)
    }
}

/// State of the upload on one connection.
struct UploadStream {
    transfer: u32,
    pace: FlowControl,
    /// Maximum size of a frame in bytes.
    frame: usize,
    /// Set when all bytes are sent: the request whose answer is the ack, and BLAKE3 of the file.
    ended: Option<(u64, [u8; 32])>,
}

impl UploadStream {
    /// Handles a received item; returns the ack of the file when it arrives.
    fn take(
        &mut self,
        incoming: TransferItem,
        connection: &mut TransferConnection,
    ) -> Result<Option<(proto::Ack, [u8; 32])>, TransferError> {
        match incoming {
            TransferItem::Acked { transfer, offset } if transfer == self.transfer => {
                if !self.pace.acknowledge(offset, Instant::now().into_std()) {
                    return Err(TransferError::Astray("it has more than was sent"));
                }
                connection.moved = true;
            }
            TransferItem::Aborted { transfer, why } if transfer == self.transfer => {
                return Err(ClientError::Refused(why.into()).into());
            }
            TransferItem::Answer { id, result } => match (result, self.ended) {
                (Ok(Answered::Ack(ack)), Some((asked, hash))) if id == asked => {
                    connection.moved = true;
                    return Ok(Some((ack, hash)));
                }
                (Err(no), Some((asked, _))) if id == asked => {
                    return Err(ClientError::Refused(no).into());
                }
                _ => {}
            },
            _ => {}
        }
        Ok(None)
    }
}

impl FileUpload {
    pub(super) fn new(target: String, file: LocalFile, message_id: MessageId) -> Self {
        Self { target, file, message_id, marks: Marks::default(), there: 0 }
    }

    /// Offers the file and sends the part that the server does not have.
    pub(super) async fn run(
        &mut self,
        connection: &mut TransferConnection,
        conversation: ConversationId,
        context: &JobContext,
    ) -> Result<SentFile, TransferError> {
        let LocalFile { name, path, source, mode, modified_ms, .. } = &self.file;
        let size = source.size;
        let file = proto::FileMeta {
            name: name.clone(),
            size,
            mime: String::new(),
            mode: *mode,
            modified_ms: *modified_ms,
            path: path.clone(),
        };
        let message_id = Bytes::copy_from_slice(&self.message_id.0);
        let put = proto::PutFile { conversation, message_id, file: Some(file) };
        let accepted = match connection.answer(Op::PutFile(put)).await? {
            Ok(Answered::FileAccepted(accepted)) => accepted,
            // The file was recorded before, and the ack was lost.
            Ok(Answered::Ack(ack)) => {
                let hash = *self.prefix(connection, size).await?.finalize().as_bytes();
                context.began(size).await;
                let recorded = recorded_as(connection, &ack).await?;
                if recorded.is_some_and(|there| there != (size, hash)) {
                    // The file has changed since, without a trace in its size and time.
                    return Err(TransferError::Changed(self.file.source.path.clone()));
                }
                return self.recorded(context, &ack, hash).await;
            }
            Ok(_) => return Err(ClientError::Protocol("an answer to another question").into()),
            Err(no) => return Err(ClientError::Refused(no).into()),
        };
        if accepted.offset > size {
            return Err(TransferError::Astray("it has more than there is"));
        }
        // The previous connection made progress, although it was lost before an ack.
        connection.moved |= accepted.offset > std::mem::replace(&mut self.there, accepted.offset);
        let hasher = self.prefix(connection, accepted.offset).await?;
        let same = accepted.offset == 0 || *hasher.finalize().as_bytes() == *accepted.prefix_hash;
        let (from, hasher) =
            if same { (accepted.offset, hasher) } else { (0, blake3::Hasher::new()) };
        context.began(from).await;
        let frame = context.limit.frame(FRAME);
        let at_once = frame * source::FRAMES;
        let reads = source::read(self.file.source.clone(), from, hasher, at_once);
        let pace = FlowControl::new(from, accepted.ack_each, Instant::now().into_std());
        let sending = UploadStream { transfer: accepted.transfer, pace, frame, ended: None };
        match self.send(connection, sending, reads, context).await {
            Ok((ack, hash)) => self.recorded(context, &ack, hash).await,
            Err(error) => {
                if !connection.is_dead() {
                    // The server keeps the received part for the next offer.
                    let abort = proto::AbortFile { transfer: accepted.transfer };
                    connection.ask(Op::AbortFile(abort))?;
                }
                Err(error)
            }
        }
    }

    async fn prefix(
        &self,
        connection: &mut TransferConnection,
        upto: u64,
    ) -> Result<blake3::Hasher, TransferError> {
        let (source, marks) = (self.file.source.clone(), self.marks.clone());
        let hash = tokio::task::spawn_blocking(move || source::prefix(&source, &marks, upto));
        connection.during(hash).await?.unwrap_or(Err(ClientError::Closed.into()))
    }

    /// Sends as far ahead of the server's acks as flow control allows, and waits for the ack of the
    /// file.
    async fn send(
        &mut self,
        connection: &mut TransferConnection,
        mut sending: UploadStream,
        mut reads: mpsc::Receiver<SourceRead>,
        context: &JobContext,
    ) -> Result<(proto::Ack, [u8; 32]), TransferError> {
        let (transfer, from) = (sending.transfer, sending.pace.sent());
        let mut ready: Option<Chunk> = None;
        loop {
            let now = Instant::now();
            let part = ready.as_ref();
            let may = part.is_some_and(|part| sending.pace.may(part.next().len()));
            let due = part.and_then(|part| part.at).filter(|at| *at > now);
            let goes = may && due.is_none();
            if goes && connection.backlog() < BACKLOG {
                // Receives first: a connection with room to write never waits, so it would never
                // read.
                if let Some(incoming) = connection.next(None).now_or_never() {
                    if let Some(whole) = sending.take(incoming?, connection)? {
                        return Ok(whole);
                    }
                    continue;
                }
                let Some(part) = &mut ready else { continue };
                let data = part.next();
                let bytes = data.len();
                connection.send_bulk(transfer, sending.pace.sent(), data)?;
                sending.pace.send(bytes, now.into_std());
                part.sent += bytes;
                part.at = context.limit.grant(part.next().len());
                if let Some(sent) = ready.take_if(|part| part.next().is_empty()) {
                    self.marks.put(sending.pace.sent(), *sent.after);
                }
            }
            tokio::select! {
                biased;
                read = reads.recv(), if ready.is_none() && sending.ended.is_none() => match read {
                    Some(SourceRead::Some(data, after)) => {
                        ready = Some(Chunk::new(data, sending.frame, after, &context.limit));
                    }
                    Some(SourceRead::End(hash)) => {
                        let whole = Bytes::copy_from_slice(&hash);
                        let end = proto::EndFile { transfer, hash: whole };
                        sending.ended = Some((connection.ask(Op::EndFile(end))?, hash));
                    }
                    Some(SourceRead::Failed(error)) => return Err(error),
                    None => return Err(ClientError::Closed.into()),
                },
                incoming = connection.next(goes.then_some(BACKLOG - 1)) => {
                    if let Some(whole) = sending.take(incoming?, connection)? {
                        return Ok(whole);
                    }
                }
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
            // Counts sent bytes, not acknowledged ones, so that a slow connection shows progress,
            // too.
            context.progress(
                sending.pace.sent().saturating_sub(connection.backlog() as u64).max(from),
            );
        }
    }

    async fn recorded(
        &self,
        context: &JobContext,
        ack: &proto::Ack,
        hash: [u8; 32],
    ) -> Result<SentFile, TransferError> {
        let ack = Ack::read(ack)?;
        let (uploads, id) = (context.state.uploads(), self.message_id);
        blocking(move || Ok(uploads.finish(&id, &ack)?)).await?;
        if self.file.hash.is_some() {
            self.remove_spooled();
        }
        Ok(SentFile { ack, size: self.file.source.size, hash })
    }

    /// Restarts the upload of a changed file, as another message.
    pub(super) async fn renew(&mut self, context: &JobContext) -> Result<(), TransferError> {
        let path = self.file.source.path.clone();
        let found = tokio::task::spawn_blocking(move || source::look(&path)).await;
        let found = found.unwrap_or(Err(ClientError::Closed.into()))?;
        let (name, path) = (self.file.name.clone(), self.file.path.clone());
        self.file = LocalFile { name, path, ..found };
        let offer = self.file.offer(&self.target);
        let (uploads, old) = (context.state.uploads(), self.message_id);
        let renew = move || Ok(uploads.renew(&old, &offer, now_ms(), &mut OsEntropy)?);
        self.message_id = blocking(renew).await?;
        (self.marks, self.there) = (Marks::default(), 0);
        Ok(())
    }

    /// Drops an upload that the server refuses.
    pub(super) async fn forget(&self, context: &JobContext) -> Result<(), TransferError> {
        let (uploads, id) = (context.state.uploads(), self.message_id);
        blocking(move || Ok(uploads.forget(&id)?)).await?;
        if self.file.hash.is_some() {
            self.remove_spooled();
        }
        Ok(())
    }

    fn remove_spooled(&self) {
        // The sweep removes a copy that stays.
        let _left = std::fs::remove_file(&self.file.source.path);
    }
}

/// Size and hash of the file in a recorded entry; `None` if the entry was erased since.
async fn recorded_as(
    connection: &mut TransferConnection,
    ack: &proto::Ack,
) -> Result<Option<(u64, [u8; 32])>, TransferError> {
    let (conversation, n) = (ack.conversation, ack.n);
    let read = proto::Read { conversation, after: n.saturating_sub(1), limit: 1, links: false };
    let page = match connection.answer(Op::Read(read)).await? {
        Ok(Answered::Page(page)) => page,
        Ok(_) => return Err(ClientError::Protocol("an answer to another question").into()),
        Err(no) => return Err(ClientError::Refused(no).into()),
    };
    let Some(entry) = page.entries.into_iter().find(|entry| entry.n == n) else {
        return Err(ClientError::Missing { conversation, n }.into());
    };
    let file = crate::record::unchecked(conversation, &entry)?.file;
    Ok(file.map(|file| (file.size, file.hash)))
}

impl LocalFile {
    pub(super) fn offer(&self, target: &str) -> UploadOffer {
        UploadOffer {
            target: target.to_owned(),
            name: self.name.clone(),
            source: self.source.clone(),
            hash: self.hash,
        }
    }
}
