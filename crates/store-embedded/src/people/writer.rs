//! The connection that writes `people.db`, in step with the log.

use rusqlite::Connection;
use twinlock_core::id::{ConversationId, Name};
use twinlock_store::StoreError;

use crate::database::{self, RecordPosition, set_position};
use crate::entry_batch::NewFile;
use crate::error::DbError;
use crate::log::{Erasure, LogPosition};
use crate::people::{Heads, WriteTransaction, apply, changes, files};
use crate::recorder::{RecordedJob, WriteJob};
use crate::row::run_sql;

/// Number of entries after which the position moves although nothing changed. A start reads the log
/// from there.
const POSITION_LAG: usize = 64 * 1024;

/// What a batch of the log means for `people.db`.
#[derive(Debug, Default)]
pub(crate) struct LoggedBatch {
    /// Encoded sets of changes.
    pub(crate) changes: Vec<Vec<u8>>,
    pub(crate) erasures: Vec<Erasure>,
    pub(crate) files: Vec<NewFile>,
    /// Number of entries.
    pub(crate) entries: usize,
    /// The position in the log after the batch.
    pub(crate) next_seq: u64,
    pub(crate) end: LogPosition,
}

/// What a job leaves to the recorder.
pub(crate) struct JobOutcome {
    pub(crate) done: RecordedJob,
    /// [`WriteTransaction::left`].
    pub(crate) left: Vec<(ConversationId, Name)>,
    /// [`WriteTransaction::shut_out`].
    pub(crate) shut_out: Vec<Name>,
    /// [`WriteTransaction::notices`] of a job that is kept.
    pub(crate) notices: Vec<(ConversationId, String)>,
}

/// The connection, and what it has not applied.
pub(crate) struct PeopleWriter {
    conn: Connection,
    record: [u8; 16],
    in_transaction: bool,
    /// Entries since the position was written.
    since_position: usize,
    /// Batches that are in the log, but that could not be committed here.
    unapplied: Vec<LoggedBatch>,
}

impl PeopleWriter {
    pub(crate) fn new(conn: Connection, record: [u8; 16]) -> Self {
        let unapplied = Vec::new();
        Self { conn, record, in_transaction: false, since_position: 0, unapplied }
    }

    pub(crate) fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Sets the id of a record that was created now.
    pub(crate) fn set_record(&mut self, record: [u8; 16]) {
        self.record = record;
    }

    fn begin(&mut self) -> Result<(), DbError> {
        if !self.in_transaction {
            run_sql(&self.conn, "BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Rolls back, unless SQLite has done so already.
    pub(crate) fn roll_back(&mut self) {
        if self.in_transaction
            && !self.conn.is_autocommit()
            && let Err(error) = run_sql(&self.conn, "ROLLBACK")
        {
            tracing::error!(%error, "a failed transaction could not be rolled back");
        }
        self.in_transaction = false;
    }

    /// Runs a job in a savepoint, and adds its encoded changes to `changes`. Sets `failed` if the
    /// whole batch must be rolled back.
    pub(crate) fn run(
        &mut self,
        job: WriteJob,
        heads: &dyn Heads,
        now_ms: u64,
        changes: &mut Vec<Vec<u8>>,
        failed: &mut Option<StoreError>,
    ) -> JobOutcome {
        if failed.is_none() {
            let begun = self.begin().and_then(|()| Ok(run_sql(&self.conn, "SAVEPOINT job")?));
            *failed = begun.err().map(StoreError::from);
        }
        if let Some(error) = failed {
            let (left, shut_out, notices) = Default::default();
            return JobOutcome { done: job(Err(error)), left, shut_out, notices };
        }
        let mut transaction = WriteTransaction::new(&self.conn, heads, now_ms);
        let done = job(Ok(&mut transaction));
        let WriteTransaction { changes: made, left, shut_out, mut notices, .. } = transaction;
        let undone = if done.keep { Ok(()) } else { run_sql(&self.conn, "ROLLBACK TO job") };
        if let Err(error) = undone.and_then(|()| run_sql(&self.conn, "RELEASE job")) {
            *failed = Some(DbError::from(error).0);
        }
        if !done.keep {
            notices.clear();
        } else if !made.is_empty() {
            changes.push(changes::encode(made));
        }
        JobOutcome { done, left, shut_out, notices }
    }

    /// Commits what a batch changed here, after the log is synced. Returns whether there was
    /// anything. On an error, the batch is applied again by [`Self::catch_up`].
    pub(crate) fn commit(&mut self, batch: LoggedBatch) -> Result<bool, StoreError> {
        self.since_position += batch.entries;
        let files = !batch.files.is_empty() || !batch.erasures.is_empty();
        if !files && !self.in_transaction && self.since_position < POSITION_LAG {
            return Ok(false);
        }
        if self.is_behind() {
            // The position must not pass a batch that is not applied.
            self.unapplied.push(batch);
            return Err(StoreError::Database("people.db lacks an earlier batch".into()));
        }
        let committed = self.try_commit(&batch).map(|()| true);
        committed.map_err(|error| {
            tracing::error!(%error, "people.db does not take what the log has; it is tried again");
            self.roll_back();
            self.unapplied.push(batch);
            error.into()
        })
    }

    fn try_commit(&mut self, batch: &LoggedBatch) -> Result<(), DbError> {
        self.begin()?;
        self.apply_files(batch)?;
        self.reach(batch)
    }

    fn apply_files(&self, batch: &LoggedBatch) -> Result<(), DbError> {
        for NewFile { conversation, n, user, file } in &batch.files {
            files::insert(&self.conn, *conversation, *n, *user, file)?;
        }
        for erasure in &batch.erasures {
            files::begin_erasure(&self.conn, erasure.conversation, erasure.n)?;
        }
        Ok(())
    }

    fn reach(&mut self, batch: &LoggedBatch) -> Result<(), DbError> {
        let (record_id, position) = (self.record, batch.end);
        set_position(
            &self.conn,
            &RecordPosition { record_id, next_seq: batch.next_seq, position },
        )?;
        run_sql(&self.conn, "COMMIT")?;
        (self.in_transaction, self.since_position) = (false, 0);
        Ok(())
    }

    /// Applies the changes of a batch that is in the log, before [`Self::commit`]. Applying them
    /// twice has no effect.
    pub(crate) fn apply_changes(&mut self, batch: &LoggedBatch) -> Result<(), DbError> {
        self.begin()?;
        for set in &batch.changes {
            for change in changes::decode(set).map_err(StoreError::from)? {
                apply::apply(&self.conn, &change)?;
            }
        }
        Ok(())
    }

    /// Applies a batch that is in the log, in a separate transaction.
    pub(crate) fn apply(&mut self, batch: &LoggedBatch) -> Result<(), DbError> {
        self.apply_changes(batch)?;
        self.apply_files(batch)?;
        self.reach(batch)
    }

    /// Whether batches could not be committed.
    pub(crate) fn is_behind(&self) -> bool {
        !self.unapplied.is_empty()
    }

    /// Applies the batches that could not be committed.
    ///
    /// # Errors
    /// Nothing more may be recorded before this succeeds.
    pub(crate) fn catch_up(&mut self) -> Result<(), StoreError> {
        let unapplied = std::mem::take(&mut self.unapplied);
        for (at, batch) in unapplied.iter().enumerate() {
            if let Err(error) = self.apply(batch) {
                self.roll_back();
                self.unapplied = unapplied.into_iter().skip(at).collect();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Writes the position at the end, if it is another one.
    pub(crate) fn settle(&mut self, next_seq: u64, end: LogPosition) -> Result<(), StoreError> {
        self.catch_up()?;
        let reached = database::position(&self.conn).map_err(StoreError::from)?;
        if reached.is_some_and(|at| (at.record_id, at.next_seq) == (self.record, next_seq)) {
            return Ok(());
        }
        let batch = LoggedBatch { next_seq, end, ..LoggedBatch::default() };
        Ok(self.apply(&batch)?)
    }
}

#[cfg(test)]
mod tests {
    use twinlock_store::FileRef;

    use super::*;
    use crate::database::{DatabaseFile, position};
    use crate::people::PEOPLE;

    fn batch(next_seq: u64, files: u64) -> LoggedBatch {
        let file = FileRef { hash: [7; 32], size: 1 };
        let new = |n| NewFile { conversation: 1, n: next_seq * 10_000 + n, user: 1, file };
        let end = LogPosition { segment: 1, offset: 64 };
        LoggedBatch {
            next_seq,
            end,
            files: (0..files).map(new).collect(),
            entries: usize::try_from(files).unwrap(),
            ..LoggedBatch::default()
        }
    }

    #[test]
    fn people_db__position_stays_before_a_batch_that_was_not_applied() {
        let dir = tempfile::tempdir().unwrap();
        let conn = DatabaseFile::new(&PEOPLE, dir.path()).unwrap().writer().unwrap();
        let limit = |people: &PeopleWriter, pages: u32| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            people.conn().query_row(&sql, [], |_| Ok(())).unwrap();
        };
        let mut people = PeopleWriter::new(conn, [3; 16]);
        people.commit(batch(2, 1)).unwrap();
        limit(&people, 1);
        assert_eq!(people.commit(batch(3, 2000)), Err(StoreError::Full));
        assert!(people.is_behind());
        // A later one would fit, and must wait.
        assert!(people.commit(batch(4, 1)).is_err());
        assert_eq!(position(people.conn()).unwrap().unwrap().next_seq, 2);
        assert_eq!(people.catch_up(), Err(StoreError::Full));
        limit(&people, u32::MAX - 1);
        people.catch_up().unwrap();
        assert!(!people.is_behind());
        assert_eq!(position(people.conn()).unwrap().unwrap().next_seq, 4);
        let files = "SELECT count(*) FROM files";
        let files: i64 = people.conn().query_row(files, [], |row| row.get(0)).unwrap();
        assert_eq!(files, 2002);
    }
}
