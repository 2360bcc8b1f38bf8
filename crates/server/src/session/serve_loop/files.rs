//! File transfers in the session's loop: they come after everything else.

use twinlock_transport::transport::Transport;

use super::super::follow::ROOM;
use super::super::transfers::{FinishedJob, SessionTransfers, TransferViolation};
use super::end::SessionEnd;
use super::{Rights, SessionLoop};
use crate::append_log::with_name;
use crate::record::Record;

impl<S: Transport> SessionLoop<S> {
    /// Whether an upload waits for the disk, so that nothing more is read.
    pub(super) fn is_blocked_by_disk(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.is_upload_full())
    }

    /// Whether a download has bytes to send and waits for room.
    pub(super) fn has_bytes(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.want_room())
    }

    /// Handles file acknowledgements, and sends file bytes after everything else.
    pub(super) fn send_files(&mut self, busy: bool) -> Result<(), SessionEnd> {
        let acks = self.queue.take_acks();
        match &mut self.files {
            None if acks.is_empty() => {}
            None => return Err(TransferViolation.into()),
            Some(files) => {
                for ack in &acks {
                    files.acknowledge(ack)?;
                }
                if !busy && !self.has_updates() {
                    self.send_bytes()?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn send_bytes(&mut self) -> Result<(), SessionEnd> {
        self.writer.flush(self.connection.session_mut())?;
        match &mut self.files {
            Some(files) => Ok(files.send(self.connection.session_mut(), ROOM)?),
            None => Ok(()),
        }
    }

    pub(super) fn complete_job(&mut self, done: FinishedJob) -> Result<(), SessionEnd> {
        if let (FinishedJob::Recorded { bytes, result: Ok(ack), .. }, Rights::Device(person, _)) =
            (&done, &self.rights)
        {
            let (sid, bytes) = (self.connection.session().id(), *bytes);
            let (conversation, n) = (ack.conversation, ack.n);
            with_name(&self.services.record, &person.user, conversation, move |room| {
                tracing::info!(%sid, room, conversation, n, bytes, "file recorded");
            });
        }
        match &mut self.files {
            Some(files) => {
                Ok(files.complete_job(done, self.connection.session_mut(), &mut self.writer)?)
            }
            None => Ok(()),
        }
    }
}

/// The transfers of the session, created with its first file.
pub(super) fn files<'f>(
    files: &'f mut Option<Box<SessionTransfers>>,
    record: &Record,
) -> &'f mut SessionTransfers {
    files.get_or_insert_with(|| Box::new(SessionTransfers::new(record.files.clone())))
}

/// The output of the session's next file job. Cancel-safe.
pub(super) async fn next_done(files: &mut Option<Box<SessionTransfers>>) -> Option<FinishedJob> {
    match files {
        Some(files) => files.next().await,
        None => None,
    }
}
