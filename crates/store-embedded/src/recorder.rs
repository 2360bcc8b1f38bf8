//! The recorder: the thread that owns the write connection and commits in groups.
//!
//! It takes the queued commands up to a limit, runs them in one transaction and syncs once, at the
//! commit. It then publishes the entries to the watchers and answers each caller (section 7: an ack
//! only after fsync). So the batch grows with the load and with the cost of a commit, and no timer
//! delays it.
//!
//! Writes other than appends are jobs in the same transactions. Each job has a savepoint, so that a
//! failed job undoes only its own changes. If the commit fails, every caller in the transaction
//! gets the error, and the recorder drops its cache.
//!
//! Checkpoints run on a separate thread ([`crate::checkpoint`]). When the recorder is idle, it
//! indexes entries for the search ([`crate::index`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use twinlock_core::id::ServerKey;
use twinlock_store::sequencer::PreparedEntry;
use twinlock_store::{AppendReply, Appended, Clock, Published, StoreError};

use crate::checkpoint::{Checkpointer, PriorCheckpoints};
use crate::entry_writer::EntryWriter;
use crate::error::DbError;
use crate::head_cache::HeadCache;
use crate::index::Index;
use crate::open;
use crate::readers::Readers;
use crate::record_files::{self, InPlace};
use crate::row::run_sql;
use crate::write_transaction::WriteTransaction;

/// Lower and upper bound of the number of entries at which a transaction takes no more commands.
///
/// Between them, the recorder takes as many entries as it can insert in the time of one commit. In
/// a larger transaction the first entries wait longer, and all callers are idle until the same
/// commit. A smaller one does not justify its fsync.
const BATCH_MIN: usize = 256;
const BATCH_MAX: usize = 4096;
/// Size of the bodies at which a transaction takes no more commands, bytes. A larger batch of long
/// texts delays other users' appends, and a published batch stays in memory until the slowest
/// watcher has read it.
const BATCH_BYTES: usize = 1024 * 1024;
/// Time without commands after which the recorder starts to index. A client that sends its next
/// message after each ack pauses for less, so its append does not wait for an index step.
const IDLE: Duration = Duration::from_millis(10);

/// A command to the recorder.
pub(crate) enum RecorderCommand {
    /// Records entries.
    Append(AppendCommand),
    /// Runs any other write.
    Job(WriteJob),
    /// Wakes the recorder to do its part of a checkpoint ([`Checkpointer::attend`]).
    AttendCheckpoint,
    /// Ends the recorder after the commands that precede this one.
    Close,
}

/// The entries of one append, which are recorded as a whole or not at all.
pub(crate) struct AppendCommand {
    pub(crate) entries: Vec<PreparedEntry>,
    pub(crate) reply: AppendReply,
    /// The entries' share of the queue's capacity, released just before the answer.
    pub(crate) room: OwnedSemaphorePermit,
}

/// A write other than an append.
///
/// The recorder runs it inside a savepoint, or passes it the error that prevents this. The caller
/// gets the answer after the commit.
pub(crate) type WriteJob =
    Box<dyn FnOnce(Result<&mut WriteTransaction<'_>, &StoreError>) -> RecordedJob + Send>;

/// Answers a job's caller. The argument is the error of the transaction, if it failed.
type JobAnswer = Box<dyn FnOnce(Option<&StoreError>) + Send>;

/// Whether to keep a job's changes, and how to answer its caller after the commit.
pub(crate) struct RecordedJob {
    pub(crate) keep: bool,
    pub(crate) answer: JobAnswer,
}

enum PendingAnswer {
    Append {
        appended: Result<Vec<Appended>, StoreError>,
        reply: AppendReply,
        room: OwnedSemaphorePermit,
    },
    Job(RecordedJob),
}

/// The recorder's state between transactions.
struct Recorder<'c> {
    path: &'c Path,
    in_place: &'c InPlace,
    conn: &'c Connection,
    writer: EntryWriter<'c>,
    cache: HeadCache,
    index: Index,
    clock: Clock,
    commits: broadcast::Sender<Arc<[Published]>>,
    checkpointer: Checkpointer,
    /// Number of entries at which the next transaction takes no more commands.
    batch_target: usize,
}

/// The part of the recorder's state that outlives a reopening of the record.
pub(crate) struct RecorderContext {
    pub(crate) path: PathBuf,
    pub(crate) in_place: Arc<record_files::InPlace>,
    pub(crate) server_key: ServerKey,
    pub(crate) clock: Clock,
    pub(crate) readers: Arc<Readers>,
    pub(crate) commands: Sender<RecorderCommand>,
    pub(crate) commits: broadcast::Sender<Arc<[Published]>>,
    pub(crate) unindexed: Arc<AtomicU64>,
}

/// Why the recorder ended.
pub(crate) enum RecorderEnd {
    /// The store was closed or dropped. Contains the error of closing, if it failed.
    Closed(Result<(), StoreError>),
    /// A sync of a checkpoint failed, and the record must be reopened.
    Failed(PriorCheckpoints),
}

/// Runs the recorder until the store closes or a checkpoint's sync fails.
///
/// On entry and on return, `batch` contains the commands that were received but not processed.
/// `started` is notified when the recorder is ready to record.
pub(crate) fn run(
    RecorderContext { path, in_place, clock, commits, unindexed, .. }: &RecorderContext,
    conn: &Connection,
    checkpointer: Checkpointer,
    commands: &Receiver<RecorderCommand>,
    batch: &mut Vec<RecorderCommand>,
    started: &SyncSender<()>,
) -> Result<RecorderEnd, StoreError> {
    let writer = EntryWriter::new(conn).map_err(DbError::from)?;
    let index = Index::load(conn, unindexed.clone())?;
    started.try_send(()).ok();
    let (cache, batch_target) = (HeadCache::default(), BATCH_MIN);
    let (clock, commits) = (clock.clone(), commits.clone());
    let mut recorder = Recorder {
        path,
        in_place,
        conn,
        writer,
        cache,
        index,
        clock,
        commits,
        checkpointer,
        batch_target,
    };
    let (mut idle, mut running) = (false, true);
    while running {
        if batch.is_empty() {
            running = recorder.collect(commands, batch, &mut idle);
        }
        // After a failed sync, this connection can read old pages, so it records nothing more.
        if recorder.checkpointer.has_failed() {
            break;
        }
        if !batch.is_empty() {
            recorder.record(batch);
        }
        if running {
            recorder.checkpointer.attend(conn);
        }
    }
    let failed = recorder.checkpointer.end(conn);
    let in_place = recorder.in_place.check();
    if in_place.is_err() {
        open::leave_files(conn).map_err(DbError::from)?;
    }
    match failed {
        Ok(Some(failed)) if running => Ok(RecorderEnd::Failed(failed)),
        failed => Ok(RecorderEnd::Closed(
            in_place.and(failed.map(drop).map_err(|error| DbError::from(error).0)),
        )),
    }
}

/// Answers all commands with `error` for `time`. Returns `false` if the store is closing.
pub(crate) fn refuse(
    commands: &Receiver<RecorderCommand>,
    batch: &mut Vec<RecorderCommand>,
    error: &StoreError,
    time: Duration,
) -> bool {
    let until = Instant::now() + time;
    loop {
        for command in batch.drain(..) {
            match command {
                RecorderCommand::Append(AppendCommand { reply, room, .. }) => {
                    drop(room);
                    reply.send(Err(error.clone()));
                }
                RecorderCommand::Job(job) => (job(Err(error)).answer)(Some(error)),
                RecorderCommand::AttendCheckpoint => {}
                RecorderCommand::Close => return false,
            }
        }
        match commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(command) => batch.push(command),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

impl Recorder<'_> {
    /// Waits for a command, and takes the queued ones up to the limits of a transaction. Indexes
    /// while none is queued. Returns `false` if these commands are the last.
    fn collect(
        &mut self,
        commands: &Receiver<RecorderCommand>,
        batch: &mut Vec<RecorderCommand>,
        idle: &mut bool,
    ) -> bool {
        let first = loop {
            if self.checkpointer.has_failed() {
                return true;
            }
            if *idle && !self.index.is_behind() {
                self.checkpointer.idle();
                match commands.recv() {
                    Ok(command) => break command,
                    Err(_) => return false,
                }
            }
            let pause = self.index.pause_before_step().filter(|pause| *pause < IDLE);
            let wait = if *idle { Duration::ZERO } else { pause.unwrap_or(IDLE) };
            match commands.recv_timeout(wait) {
                Ok(command) => break command,
                Err(RecvTimeoutError::Timeout) => {
                    *idle |= pause.is_none();
                    self.index_some();
                }
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        };
        *idle = false;
        let (mut entries, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match &command {
                RecorderCommand::Append(append) => {
                    entries += append.entries.len();
                    bytes += append.entries.iter().map(|e| e.new.body.len()).sum::<usize>();
                }
                RecorderCommand::Job(_) => entries += 1,
                RecorderCommand::AttendCheckpoint => return true,
                RecorderCommand::Close => return false,
            }
            batch.push(command);
            if entries < self.batch_target && bytes < BATCH_BYTES {
                next = commands.try_recv().ok();
            }
        }
        true
    }

    /// Records a batch in one transaction.
    fn record(&mut self, batch: &mut Vec<RecorderCommand>) {
        let now_ms = (self.clock)();
        self.writer.begin(self.commits.receiver_count() > 0);
        let mut erased = false;
        let mut answers = Vec::with_capacity(batch.len());
        let mut failed = self.writer.begin_transaction().err();
        let (begun, began) = (failed.is_none(), Instant::now());
        for command in batch.drain(..) {
            match command {
                RecorderCommand::Append(AppendCommand { entries, reply, room }) => {
                    let appended = match (&failed, reply.check_order()) {
                        (Some(error), _) => Err(error.clone()),
                        // Only this append fails; the transaction continues.
                        (None, Err(error)) => Err(error),
                        (None, Ok(())) => {
                            let written = self.writer.write(&mut self.cache, entries, now_ms);
                            written.inspect_err(|error| failed = Some(error.clone()))
                        }
                    };
                    answers.push(PendingAnswer::Append { appended, reply, room });
                }
                RecorderCommand::Job(job) => {
                    let (conn, cache) = (self.conn, &mut self.cache);
                    let mut transaction = WriteTransaction { conn, cache, now_ms, erased: false };
                    let done = run_job(&mut transaction, job, &mut failed);
                    erased |= transaction.erased;
                    answers.push(PendingAnswer::Job(done));
                }
                RecorderCommand::AttendCheckpoint | RecorderCommand::Close => {}
            }
        }
        let inserting = began.elapsed();
        let failed = failed.or_else(|| self.in_place.check().err());
        let failed = failed.or_else(|| self.writer.commit().err());
        match &failed {
            None => {
                let inserted = self.writer.written();
                self.batch_target =
                    batch_target(inserted, inserting, began.elapsed().saturating_sub(inserting));
                // Before the answers, because a caller may read the index backlog at once.
                self.index.appended(inserted, self.writer.written_bytes());
                self.publish();
                self.answer(answers, None);
                self.checkpointer.committed(erased);
                if self.index.is_due() {
                    self.index_some();
                }
            }
            Some(error) => {
                tracing::error!(%error, "a commit failed; nothing of it was recorded or acknowledged");
                self.writer.roll_back();
                // Truncates only under the write lock and in the file that was opened. Otherwise
                // the frames could be another process's.
                let ours = begun && self.in_place.check().is_ok();
                if ours
                    && let Err(error) = record_files::truncate_failed_commit(self.path, self.conn)
                {
                    tracing::error!(%error, "the failed commit was not truncated; the next commit overwrites it");
                }
                self.cache.forget_all();
                self.answer(answers, Some(error));
            }
        }
        self.cache.stay_small();
    }

    fn publish(&mut self) {
        let published = self.writer.take_published();
        if !published.is_empty() {
            // `send` fails only if there are no watchers.
            self.commits.send(published.into()).ok();
        }
    }

    fn answer(&self, answers: Vec<PendingAnswer>, failed: Option<&StoreError>) {
        for answer in answers {
            match answer {
                PendingAnswer::Append { appended, reply, room } => {
                    drop(room);
                    reply.send(failed.map_or(appended, |error| Err(error.clone())));
                }
                PendingAnswer::Job(done) => (done.answer)(failed),
            }
        }
    }

    fn index_some(&mut self) {
        if let Err(error) = self.index.step(self.conn) {
            tracing::warn!(%error, "the search index is not updated; searches scan the record");
        }
        self.checkpointer.committed(false);
        self.checkpointer.attend(self.conn);
    }
}

/// The number of entries that can be inserted in the time `commit`, if `inserted` entries took the
/// time `inserting`.
fn batch_target(inserted: usize, inserting: Duration, commit: Duration) -> usize {
    let inserted = u128::try_from(inserted).unwrap_or(u128::MAX);
    let batch_target = inserted.saturating_mul(commit.as_nanos()) / inserting.as_nanos().max(1);
    usize::try_from(batch_target).unwrap_or(usize::MAX).clamp(BATCH_MIN, BATCH_MAX)
}

/// Runs a job in its savepoint. Sets `failed` if the whole transaction must be rolled back.
fn run_job(
    transaction: &mut WriteTransaction<'_>,
    job: WriteJob,
    failed: &mut Option<StoreError>,
) -> RecordedJob {
    let conn = transaction.conn;
    let fail = |failed: &mut Option<StoreError>, error: rusqlite::Error| {
        failed.get_or_insert_with(|| DbError::from(error).0);
    };
    if failed.is_none()
        && let Err(error) = run_sql(conn, "SAVEPOINT job")
    {
        fail(failed, error);
    }
    if let Some(error) = failed {
        return job(Err(error));
    }
    let done = job(Ok(transaction));
    let undone = if done.keep { Ok(()) } else { run_sql(conn, "ROLLBACK TO job") };
    if let Err(error) = undone.and_then(|()| run_sql(conn, "RELEASE job")) {
        fail(failed, error);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorder__batch_size_balances_sequencing_and_commit() {
        let us = Duration::from_micros;
        assert_eq!(batch_target(1000, us(3000), us(1500)), 500);
        assert_eq!(batch_target(500, us(1500), us(3000)), 1000);
        assert_eq!(batch_target(1000, us(3000), us(30)), BATCH_MIN);
        assert_eq!(batch_target(1, us(5), us(1_000_000)), BATCH_MAX);
        // A clock with no progress, and a transaction without entries.
        assert_eq!(batch_target(usize::MAX, us(0), Duration::MAX), BATCH_MAX);
        assert_eq!(batch_target(0, us(0), us(0)), BATCH_MIN);
    }
}
