//! The files that are being sent and fetched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use twinlock_client::transfer::{JobId, TransferError, TransferEvent};
use twinlock_core::id::MessageId;

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferDirection {
    /// To the server.
    Sending,
    /// From the server.
    Fetching,
}

/// A running transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferView {
    /// The direction.
    pub direction: TransferDirection,
    /// The name of the file, without harmful characters.
    pub name: String,
    /// The conversation: a room's name, or `@` and a user name.
    pub target: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that are transferred.
    pub done: u64,
    /// The message of a file that is sent.
    pub message_id: Option<MessageId>,
}

/// A change of a transfer.
#[derive(Debug)]
pub enum TransferChange {
    /// It is queued or runs.
    Started(TransferView),
    /// Bytes were transferred.
    Progressed(JobId),
    /// The file changed while it was sent; it is sent again from the start.
    Restarted {
        /// The transfer before the change.
        transfer: TransferView,
        /// The message of the new attempt.
        message_id: MessageId,
    },
    /// The file is on the server's disk.
    Recorded {
        /// The transfer.
        transfer: TransferView,
        /// Its message.
        message_id: MessageId,
        /// The number of its entry.
        n: u64,
    },
    /// The file has arrived.
    Saved {
        /// The transfer.
        transfer: TransferView,
        /// The file's path; `None` if it went to a stream.
        path: Option<PathBuf>,
    },
    /// It failed.
    Failed {
        /// The transfer.
        transfer: TransferView,
        /// The cause.
        error: TransferError,
    },
}

/// The running transfers, and files that are examined before they are sent.
#[derive(Debug, Default)]
pub struct TransferList {
    running: BTreeMap<JobId, TransferView>,
    examined: usize,
}

impl TransferList {
    /// Notes that a file is being examined, which ends with [`Self::end_examination`].
    pub fn begin_examination(&mut self) {
        self.examined += 1;
    }

    /// Notes that an examination has ended.
    pub fn end_examination(&mut self) {
        self.examined = self.examined.saturating_sub(1);
    }

    /// Adds a transfer.
    pub fn start(&mut self, job: JobId, transfer: TransferView) -> TransferChange {
        self.running.insert(job, transfer.clone());
        TransferChange::Started(transfer)
    }

    /// Takes an event of the transfers. Returns the change of a running transfer, `None` for other
    /// events.
    pub fn take(&mut self, event: TransferEvent) -> Option<TransferChange> {
        match event {
            TransferEvent::Sent { job, message_id, ack, .. } => {
                let transfer = self.running.remove(&job)?;
                Some(TransferChange::Recorded { transfer, message_id, n: ack.n })
            }
            TransferEvent::Got { job, path } => {
                let transfer = self.running.remove(&job)?;
                Some(TransferChange::Saved { transfer, path })
            }
            TransferEvent::Failed { job, error } => {
                let transfer = self.running.remove(&job)?;
                Some(TransferChange::Failed { transfer, error })
            }
            TransferEvent::Changed { job, message_id, size } => {
                let running = self.running.get_mut(&job)?;
                let transfer = running.clone();
                (running.size, running.done) = (size, 0);
                running.message_id = Some(message_id);
                Some(TransferChange::Restarted { transfer, message_id })
            }
            TransferEvent::Began { job, from: done } | TransferEvent::Progress { job, done } => {
                let transfer = self.running.get_mut(&job)?;
                transfer.done = done.min(transfer.size);
                Some(TransferChange::Progressed(job))
            }
            _ => None,
        }
    }

    /// Number of files that are examined, sent or fetched.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.running.len() + self.examined
    }

    /// The running transfers, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (JobId, &TransferView)> {
        self.running.iter().map(|(job, transfer)| (*job, transfer))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use twinlock_client::ClientError;

    use super::*;
    use crate::fixtures::{ack, id};

    fn view(size: u64) -> TransferView {
        let direction = TransferDirection::Sending;
        let (name, target) = ("a".into(), "ops".into());
        TransferView { direction, name, target, size, done: 0, message_id: Some(id(1)) }
    }

    fn event(job: JobId, kind: u8, bytes: u64) -> TransferEvent {
        let message_id = id(7);
        match kind {
            0 => TransferEvent::Began { job, from: bytes },
            1 => TransferEvent::Progress { job, done: bytes },
            2 => TransferEvent::Changed { job, message_id, size: bytes },
            3 => {
                let ack = ack(bytes);
                TransferEvent::Sent { job, message_id, ack, size: bytes, hash: [0; 32] }
            }
            4 => TransferEvent::Got { job, path: None },
            _ => TransferEvent::Failed { job, error: ClientError::Closed.into() },
        }
    }

    proptest! {
        #[test]
        fn transfers__each_ends_once_and_stays_within_its_size(
            steps in prop::collection::vec((0..5_u64, 0..7_u8, 0..200_u64), 0..60)
        ) {
            let mut list = TransferList::default();
            let mut running = std::collections::BTreeSet::new();
            for (job, kind, bytes) in steps {
                if kind == 6 {
                    list.start(job, view(bytes));
                    running.insert(job);
                    continue;
                }
                let change = list.take(event(job, kind, bytes));
                let was_running = running.contains(&job);
                prop_assert_eq!(change.is_some(), was_running);
                if let Some(TransferChange::Restarted { transfer, message_id }) = change {
                    prop_assert!(transfer.message_id.is_some() && message_id == id(7));
                }
                if kind >= 3 {
                    running.remove(&job);
                }
                prop_assert_eq!(list.open_count(), running.len());
                prop_assert!(list.iter().all(|(_, transfer)| transfer.done <= transfer.size));
            }
        }
    }

    #[test]
    fn transfers__examined_files_are_open() {
        let mut list = TransferList::default();
        list.begin_examination();
        list.begin_examination();
        assert_eq!(list.open_count(), 2);
        list.end_examination();
        list.start(1, view(1));
        assert_eq!(list.open_count(), 2);
        list.end_examination();
        list.end_examination();
        assert_eq!(list.open_count(), 1);
    }
}
