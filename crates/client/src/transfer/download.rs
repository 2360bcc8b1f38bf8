//! The download of one file, over as many connections as it takes.

use std::io::Write;
use std::path::PathBuf;

use blake3::Hasher;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use twinlock_core::id::ConversationId;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_transport::flow_control::{ACK_EACH, WINDOW};

use super::context::JobContext;
use super::destination::Destination;
use super::error::TransferError;
use super::part_file::{FinalAttributes, PartFile};
use super::transfer_connection::{TransferConnection, TransferItem};
use crate::error::ClientError;
use crate::model::FileEntry;

/// A file to fetch.
pub struct DownloadRequest {
    /// The conversation of its entry.
    pub conversation: ConversationId,
    /// The entry's number.
    pub n: u64,
    /// The content of the entry, whose link was verified.
    pub file: FileEntry,
    /// Whether this user sent it.
    pub own: bool,
    /// The destination.
    pub into: DownloadTarget,
}

/// The destination of a file.
pub enum DownloadTarget {
    /// A file on disk.
    File(Destination),
    /// A stream, written as bytes arrive; its reader must not trust them before the end.
    Stream(Box<dyn Write + Send>),
}

pub(super) struct FileDownload {
    pub(super) get: RequestedFile,
    place: Option<Destination>,
    sink: Option<Sink>,
}

/// [`DownloadRequest`] without the destination.
pub(super) struct RequestedFile {
    conversation: ConversationId,
    n: u64,
    file: FileEntry,
    own: bool,
}

enum Sink {
    Part(PartFile),
    Stream { out: Box<dyn Write + Send>, written: u64, hasher: Hasher },
}

impl Sink {
    fn written(&self) -> u64 {
        match self {
            Self::Part(part) => part.written(),
            Self::Stream { written, .. } => *written,
        }
    }

    fn hash(&self) -> [u8; 32] {
        match self {
            Self::Part(part) => part.hash(),
            Self::Stream { hasher, .. } => *hasher.finalize().as_bytes(),
        }
    }

    /// Discards the received bytes, which are not the beginning of the file.
    fn rewind(&mut self) -> Result<(), TransferError> {
        match self {
            Self::Part(part) => part.rewind(),
            // The bytes are written already.
            Self::Stream { .. } => Err(TransferError::Hash),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        match self {
            Self::Part(part) => part.write(bytes),
            Self::Stream { out, written, hasher } => {
                out.write_all(bytes).map_err(output)?;
                hasher.update(bytes);
                *written += bytes.len() as u64;
                Ok(())
            }
        }
    }

    fn finish(self, finish: FinalAttributes) -> Result<Option<PathBuf>, TransferError> {
        match self {
            Self::Part(part) => part.finish(finish).map(Some),
            Self::Stream { mut out, .. } => out.flush().map_err(output).map(|()| None),
        }
    }
}

fn output(error: std::io::Error) -> TransferError {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => TransferError::Gone,
        _ => TransferError::Output(error.to_string()),
    }
}

/// A thread that writes received bytes.
struct Writing {
    parts: mpsc::UnboundedSender<Vec<u8>>,
    written: watch::Receiver<u64>,
    ended: tokio::task::JoinHandle<(Sink, Result<(), TransferError>)>,
}

impl Writing {
    /// The queue needs no bound: the server is never more than the window ahead.
    fn start(mut sink: Sink) -> Self {
        let (parts, mut taken) = mpsc::unbounded_channel::<Vec<u8>>();
        let (told, written) = watch::channel(sink.written());
        let ended = tokio::task::spawn_blocking(move || {
            let mut last = sink.written();
            while let Some(part) = taken.blocking_recv() {
                if let Err(error) = sink.write(&part) {
                    return (sink, Err(error));
                }
                // Each update wakes the task, so there is one per acknowledged amount.
                if sink.written() - last >= u64::from(ACK_EACH) || taken.is_empty() {
                    last = sink.written();
                    told.send_replace(last);
                }
            }
            (sink, Ok(()))
        });
        Self { parts, written, ended }
    }
}

impl FileDownload {
    pub(super) fn new(get: DownloadRequest) -> Self {
        let DownloadRequest { conversation, n, file, own, into } = get;
        let (place, sink) = match into {
            DownloadTarget::File(place) => (Some(place), None),
            DownloadTarget::Stream(out) => {
                (None, Some(Sink::Stream { out, written: 0, hasher: Hasher::new() }))
            }
        };
        Self { get: RequestedFile { conversation, n, file, own }, place, sink }
    }

    /// Requests the missing part, and moves the complete file to its destination.
    pub(super) async fn run(
        &mut self,
        connection: &mut TransferConnection,
        context: &JobContext,
    ) -> Result<Option<PathBuf>, TransferError> {
        let Some(mut sink) = self.sink.take() else { return Err(ClientError::Closed.into()) };
        let (offset, size) = (sink.written(), self.get.file.size);
        let prefix_hash =
            if offset == 0 { Bytes::new() } else { Bytes::copy_from_slice(&sink.hash()) };
        let RequestedFile { conversation, n, .. } = self.get;
        let ask = proto::GetFile { conversation, n, offset, prefix_hash, ack_each: ACK_EACH };
        let answer = match connection.answer(Op::GetFile(ask)).await {
            Ok(answer) => answer,
            Err(error) => {
                self.sink = Some(sink);
                return Err(error.into());
            }
        };
        let coming = match answer {
            Ok(Answered::FileComing(coming)) => coming,
            other => {
                self.sink = Some(sink);
                return Err(match other {
                    Err(no) => ClientError::Refused(no),
                    Ok(_) => ClientError::Protocol("an answer to another question"),
                }
                .into());
            }
        };
        let transfer = coming.transfer;
        let begun = judge(&coming, &self.get.file, offset)
            .and_then(|()| if coming.offset == 0 && offset > 0 { sink.rewind() } else { Ok(()) });
        if let Err(error) = begun {
            self.sink = Some(sink);
            connection.ask(Op::AbortFile(proto::AbortFile { transfer }))?;
            return Err(error);
        }
        context.began(coming.offset).await;
        let mut writing = Writing::start(sink);
        let received = receive(connection, &coming, &mut writing, size, context).await;
        drop(writing.parts);
        let (sink, wrote) =
            writing.ended.await.map_err(|_| TransferError::from(ClientError::Closed))?;
        self.sink = Some(sink);
        let whole = wrote.and(received);
        if whole.is_err() && !connection.is_dead() {
            connection.ask(Op::AbortFile(proto::AbortFile { transfer }))?;
        }
        whole?;
        connection.moved = true;
        self.finish().await
    }

    /// Opens the destination and hashes the existing part; does nothing the second time.
    pub(super) async fn open(&mut self) -> Result<(), TransferError> {
        if self.sink.is_none()
            && let Some(place) = self.place.clone()
        {
            let size = self.get.file.size;
            let open =
                tokio::task::spawn_blocking(move || PartFile::open(place, size).map(Sink::Part));
            self.sink = Some(open.await.unwrap_or(Err(ClientError::Closed.into()))?);
        }
        Ok(())
    }

    /// Verifies the hash of the complete file and gives the file its name.
    async fn finish(&mut self) -> Result<Option<PathBuf>, TransferError> {
        let Some(sink) = self.sink.take() else { return Err(ClientError::Closed.into()) };
        let FileEntry { mode, modified_ms, hash, .. } = self.get.file;
        let finish = FinalAttributes { mode, modified_ms, own: self.get.own };
        let done = tokio::task::spawn_blocking(move || {
            if sink.hash() == hash {
                return sink.finish(finish);
            }
            if let Sink::Part(part) = sink {
                part.discard();
            }
            Err(TransferError::Hash)
        });
        done.await.unwrap_or(Err(ClientError::Closed.into()))
    }

    /// Gives up the download; the received part stays for another attempt.
    pub(super) fn leave(&mut self) {
        if let Some(Sink::Part(part)) = self.sink.take() {
            part.leave();
        }
    }
}

/// Checks that the server's offer matches the entry and the request.
fn judge(coming: &proto::FileComing, entry: &FileEntry, asked: u64) -> Result<(), TransferError> {
    if coming.size != entry.size || *coming.hash != entry.hash {
        return Err(TransferError::OtherFile);
    }
    if coming.offset != asked && coming.offset != 0 {
        return Err(TransferError::Astray("it starts at an offset that was not requested"));
    }
    Ok(())
}

async fn receive(
    connection: &mut TransferConnection,
    coming: &proto::FileComing,
    writing: &mut Writing,
    size: u64,
    context: &JobContext,
) -> Result<(), TransferError> {
    let transfer = coming.transfer;
    let (mut got, mut acked) = (coming.offset, coming.offset);
    // No ack before this time. The server sends no faster than acks arrive.
    let mut due = None;
    while got < size {
        tokio::select! {
            incoming = connection.next(None) => match incoming? {
                TransferItem::Bulk { transfer: of, offset, data } if of == transfer => {
                    let end = offset.saturating_add(data.len() as u64);
                    if offset != got || end > size || end > acked + WINDOW {
                        return Err(TransferError::Astray("its bytes are out of order"));
                    }
                    got = end;
                    connection.moved = true;
                    // If the thread has ended, it returns the error.
                    due = context.limit.grant(data.len()).or(due);
                    if writing.parts.send(data).is_err() {
                        return Ok(());
                    }
                    context.progress(got);
                }
                TransferItem::Aborted { transfer: of, why } if of == transfer => {
                    return Err(ClientError::Refused(why.into()).into());
                }
                _ => {}
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => due = None,
            changed = writing.written.changed(), if due.is_none() => {
                if changed.is_err() {
                    return Ok(());
                }
                let written = *writing.written.borrow_and_update();
                if written >= acked + u64::from(ACK_EACH) {
                    acked = written;
                    connection.ack(transfer, acked)?;
                }
            }
        }
    }
    Ok(())
}
