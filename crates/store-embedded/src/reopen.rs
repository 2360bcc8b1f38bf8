//! Reopens the record after a failed sync ([`crate::checkpoint`] says why), until the store closes.

use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use rusqlite::Connection;
use twinlock_store::StoreError;

use crate::checkpoint::{Checkpointer, PriorCheckpoints};
use crate::open;
use crate::recorder::{self, RecorderCommand, RecorderContext, RecorderEnd};

/// Back-off before another attempt to reopen a record.
const RETRY_DELAY: Duration = Duration::from_secs(1);

impl RecorderContext {
    /// Records until the store closes. Reopens the record after each failed sync of a checkpoint.
    pub(crate) fn run_until_closed(
        &self,
        mut conn: Connection,
        mut before: PriorCheckpoints,
        waiting: &Receiver<RecorderCommand>,
        started: &SyncSender<()>,
    ) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        loop {
            match self.run_once(&conn, before, waiting, &mut batch, started) {
                Ok(RecorderEnd::Closed(ended)) => return ended,
                Ok(RecorderEnd::Failed(failed)) => before = failed,
                Err(error) if !before.failed => return Err(error),
                Err(error) => {
                    if let Err(error) = open::leave_files(&conn) {
                        tracing::error!(%error, "the WAL may be removed when the record is reopened");
                    }
                    if !refuse_until_retry(&error, waiting, &mut batch) {
                        return Ok(());
                    }
                }
            }
            // Close every connection, so that SQLite forgets which pages it has checkpointed. The
            // WAL stays: `in_place` knows this file, and a failed sync may have lost what it has.
            self.readers.without_any(|| drop(conn));
            conn = loop {
                // The store knows the WAL as the file that it opened first.
                let reopen =
                    || open::open_existing(&self.path, &self.server_key, (self.clock)(), true);
                let opened = self.in_place.check().and_then(|()| {
                    reopen().map_err(|error| StoreError::Database(error.to_string()))
                });
                match opened {
                    Ok(conn) => break conn,
                    Err(error) => {
                        if !refuse_until_retry(&error, waiting, &mut batch) {
                            return Ok(());
                        }
                    }
                }
            };
            tracing::warn!("the record was reopened");
        }
    }

    fn run_once(
        &self,
        conn: &Connection,
        before: PriorCheckpoints,
        waiting: &Receiver<RecorderCommand>,
        batch: &mut Vec<RecorderCommand>,
        started: &SyncSender<()>,
    ) -> Result<RecorderEnd, StoreError> {
        let commands = self.commands.clone();
        let wake = move || drop(commands.send(RecorderCommand::AttendCheckpoint));
        let checkpointer = Checkpointer::start(&self.path, conn, before, wake)?;
        recorder::run(self, conn, checkpointer, waiting, batch, started)
    }
}

/// Refuses commands until the next attempt to reopen the record. `false`: the store is closing.
fn refuse_until_retry(
    error: &StoreError,
    waiting: &Receiver<RecorderCommand>,
    batch: &mut Vec<RecorderCommand>,
) -> bool {
    tracing::error!(%error, "the record cannot be reopened yet");
    recorder::refuse(waiting, batch, error, RETRY_DELAY)
}
