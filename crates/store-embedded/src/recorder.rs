//! The recorder: the thread that owns the log and `people.db`, and commits in groups.
//!
//! It takes the queued commands up to a limit, builds one batch of the log from them, writes and
//! syncs it, and commits the changes of `people.db`, which need no sync of their own. It then
//! publishes the entries to the watchers and answers each caller (section 7: an ack only after
//! fsync). So the batch grows with the load and with the cost of a sync, and no timer delays it.
//!
//! Writes other than appends are jobs in a transaction of `people.db`. Each has a savepoint, so that
//! a failed job undoes only its own changes. If the batch fails, every caller in it gets the error,
//! and the recorder drops its cache.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, broadcast, oneshot};
use twinlock_core::id::{ConversationId, Link, Name, ServerKey};
use twinlock_store::sequencer::{PreparedEntry, Salts, system_entry};
use twinlock_store::{AppendReply, Appended, Clock, Erased, Published, StoreError};

use crate::entry_batch::{AddError, EntryBatch, RecordView};
use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::head_cache::HeadCache;
use crate::log::{AppendedBatch, BatchBuilder, Erasure, Segments};
use crate::people::writer::{JobOutcome, LoggedBatch, PeopleWriter};
use crate::people::{Heads, WriteTransaction, files};
use crate::sync_thread::{SharedLog, SyncThread, SyncedBatch};
use crate::tail::{CommittedBatch, Tail};
use crate::words::{ErasedEntry, WordsHandle};

/// Lower and upper bound of the number of entries at which a batch takes no more commands.
///
/// Between them, the recorder takes as many entries as it can prepare in the time of one sync. In a
/// larger batch the first entries wait longer, and all callers are idle until the same sync. A
/// smaller one does not justify its sync.
const BATCH_MIN: usize = 256;
const BATCH_MAX: usize = 4096;
/// Size of the bodies at which a batch takes no more commands, bytes. A larger batch of long texts
/// delays other users' appends, and a published batch stays in memory until the slowest watcher has
/// read it.
const BATCH_BYTES: usize = 1024 * 1024;
/// Time without commands after which the log states that its newest batch is durable.
const IDLE: Duration = Duration::from_secs(1);

/// A command to the recorder.
pub(crate) enum RecorderCommand {
    /// Records entries.
    Append(AppendCommand),
    /// Runs any other write.
    Job(WriteJob),
    /// Erases an entry.
    Erase(EraseCommand),
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

/// Answers a job's caller. The argument is the error of the batch, if it failed.
type JobAnswer = Box<dyn FnOnce(Option<&StoreError>) + Send>;

/// Whether to keep a job's changes, and how to answer its caller after the commit.
pub(crate) struct RecordedJob {
    pub(crate) keep: bool,
    pub(crate) answer: JobAnswer,
}

pub(crate) type EraseReply = oneshot::Sender<Result<Option<Erased>, StoreError>>;

/// The erasure of an entry.
pub(crate) struct EraseCommand {
    pub(crate) conversation: ConversationId,
    pub(crate) n: u64,
    pub(crate) reply: EraseReply,
}

enum PendingAnswer {
    Append {
        appended: Result<Vec<Appended>, StoreError>,
        reply: AppendReply,
        room: OwnedSemaphorePermit,
    },
    Job(RecordedJob),
    Erase {
        erased: Result<Option<ErasedEntry>, StoreError>,
        command: EraseCommand,
    },
    None,
}

/// What the recorder works with.
pub(crate) struct Recorder {
    pub(crate) people: PeopleWriter,
    /// A connection that reads the index.
    pub(crate) index: Connection,
    pub(crate) log: SharedLog,
    pub(crate) sync: SyncThread,
    pub(crate) segments: Arc<Segments>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) words: WordsHandle,
    pub(crate) salts: Arc<Salts>,
    pub(crate) clock: Clock,
    pub(crate) commits: broadcast::Sender<Arc<[Published]>>,
    pub(crate) state: RecorderState,
}

/// What the recorder keeps between batches.
pub(crate) struct RecorderState {
    cache: HeadCache,
    /// Number of the next batch.
    number: u64,
    /// The batch that is being written and synced.
    in_flight: Option<PreparedBatch>,
    /// Memory of completed batches, for the next ones.
    idle: Vec<PreparedBatch>,
    /// Number of entries at which the next batch takes no more commands.
    batch_target: usize,
    durable_is_stated: bool,
    /// When the newest batch was appended, or stating it durable was tried.
    appended: Instant,
}

impl Default for RecorderState {
    fn default() -> Self {
        Self {
            cache: HeadCache::default(),
            number: 1,
            in_flight: None,
            idle: Vec::new(),
            batch_target: BATCH_MIN,
            durable_is_stated: false,
            appended: Instant::now(),
        }
    }
}

/// A batch with numbers and links, and who waits for it.
#[derive(Default)]
struct PreparedBatch {
    entries: EntryBatch,
    other: LoggedBatch,
    builder: BatchBuilder,
    answers: Vec<PendingAnswer>,
    /// Why the whole batch is lost.
    failed: Option<StoreError>,
    preparing: Duration,
    syncing: Duration,
}

impl PreparedBatch {
    /// Puts the records into the builder.
    fn encode(&mut self) {
        let Self { entries, other, builder, .. } = self;
        builder.clear();
        entries.encode(builder);
        other.erasures.iter().for_each(|erasure| builder.erasure(erasure));
        other.changes.iter().for_each(|change| builder.change(change));
    }
}

/// The heads as a job of the current batch sees them.
struct BatchHeads<'a> {
    cache: &'a HeadCache,
    entries: EntryReader<'a>,
}

impl Heads for BatchHeads<'_> {
    fn head(
        &self,
        conversation: ConversationId,
        server_key: &ServerKey,
    ) -> Result<(u64, Link), DbError> {
        match self.cache.head(conversation) {
            Some(head) => Ok((head.n, head.link)),
            None => self.entries.head_or_start(conversation, server_key),
        }
    }

    fn own_after(
        &self,
        conversation: ConversationId,
        user: &Name,
        after: u64,
        last: u64,
    ) -> Result<u64, DbError> {
        self.entries.own_after(conversation, user, after, last)
    }
}

impl Recorder {
    /// Records until the store closes. Returns what could not be written at the end, and the
    /// connection that closes last.
    pub(crate) fn run(
        mut self,
        commands: &Receiver<RecorderCommand>,
    ) -> (Result<(), StoreError>, PeopleWriter) {
        let (mut batch, mut running) = (Vec::new(), true);
        while running {
            running = self.collect(commands, &mut batch);
            if batch.is_empty() {
                continue;
            }
            let mut prepared = self.prepare_batch(&mut batch);
            self.finish_before(&mut prepared);
            // With more commands in the queue, the next batch is prepared while this one syncs.
            // Otherwise the hand-over between two threads would only cost time.
            match commands.try_recv() {
                Ok(next) => {
                    self.begin(prepared);
                    batch.push(next);
                }
                Err(_) => self.record(prepared),
            }
        }
        // The callers have the error, if it fails.
        self.finish_in_flight().ok();
        let Self { mut people, log, sync, tail, words, .. } = self;
        words.close();
        tail.close();
        sync.end();
        let (next_seq, end) = {
            let log = log.lock();
            (log.next_seq(), log.end())
        };
        let closed = log.close();
        // The next start reads nothing again.
        let settled = people.settle(next_seq, end);
        (closed.and(settled), people)
    }

    /// Waits for a command if `batch` has none, and takes the queued ones up to the limits of a
    /// batch. Returns `false` if these commands are the last.
    fn collect(
        &mut self,
        commands: &Receiver<RecorderCommand>,
        batch: &mut Vec<RecorderCommand>,
    ) -> bool {
        let mut next = batch.pop();
        while next.is_none() {
            let received = match self.state.durable_is_stated {
                true => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                // Other commands than appends do not postpone it.
                false => commands.recv_timeout(IDLE.saturating_sub(self.state.appended.elapsed())),
            };
            match received {
                Ok(command) => next = Some(command),
                Err(RecvTimeoutError::Timeout) => self.state_durable(),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        let (mut entries, mut bytes) = (0, 0);
        while let Some(command) = next.take() {
            match &command {
                RecorderCommand::Append(append) => {
                    entries += append.entries.len();
                    bytes += append.entries.iter().map(|e| e.new.body.len()).sum::<usize>();
                }
                RecorderCommand::Job(_) | RecorderCommand::Erase(_) => entries += 1,
                RecorderCommand::Close => return false,
            }
            batch.push(command);
            if entries < self.state.batch_target && bytes < BATCH_BYTES {
                next = commands.try_recv().ok();
            }
        }
        true
    }

    /// Tried again each second after a failure, which also repairs the end of the log.
    fn state_durable(&mut self) {
        match self.log.lock().state_durable() {
            Ok(()) => self.state.durable_is_stated = true,
            Err(error) => {
                tracing::warn!(%error, "the log does not state that it is durable");
                self.state.appended = Instant::now();
            }
        }
    }

    /// Numbers and links the entries of a batch, and runs its other writes.
    fn prepare_batch(&mut self, batch: &mut Vec<RecorderCommand>) -> PreparedBatch {
        let now_ms = (self.clock)();
        let mut prepared = self.state.idle.pop().unwrap_or_default();
        prepared.entries.begin(self.state.number);
        self.state.number += 1;
        let is_large = self.state.cache.is_large();
        if is_large || self.tail.is_full() || self.people.is_behind() {
            prepared.failed = self.finish_in_flight().err();
        }
        if is_large {
            self.state.cache.forget_all();
        }
        let ready = self.tail.wait_for_room().and_then(|()| self.people.catch_up());
        prepared.failed = prepared.failed.or(ready.err());
        let began = Instant::now();
        for command in batch.drain(..) {
            let answer = self.prepare(command, now_ms, &mut prepared);
            prepared.answers.push(answer);
        }
        prepared.preparing = began.elapsed();
        prepared
    }

    /// Runs a command as a part of a batch, which may lose the batch.
    fn prepare(
        &mut self,
        command: RecorderCommand,
        now_ms: u64,
        prepared: &mut PreparedBatch,
    ) -> PendingAnswer {
        // A batch with other writes has the transaction of `people.db` for itself.
        if !matches!(command, RecorderCommand::Append(_)) {
            self.finish_before(prepared);
        }
        let Self { people, index, segments, tail, state, salts, .. } = self;
        let view = EntryReader { index, tail, segments };
        let PreparedBatch { entries, other, failed, .. } = prepared;
        match command {
            RecorderCommand::Append(AppendCommand { entries: new, reply, room }) => {
                let appended = match (&failed, reply.check_order()) {
                    (Some(error), _) => Err(error.clone()),
                    // Only this append fails; the batch continues.
                    (None, Err(error)) => Err(error),
                    (None, Ok(())) => {
                        let view = RecordView { people: people.conn(), entries: view };
                        let before = state.in_flight.as_ref().map(|batch| &batch.entries);
                        match entries.add(view, before, &mut state.cache, new, now_ms) {
                            Ok(appended) => Ok(appended),
                            Err(AddError::Append(error)) => Err(error),
                            Err(AddError::Batch(error)) => {
                                *failed = Some(error.clone());
                                Err(error)
                            }
                        }
                    }
                };
                PendingAnswer::Append { appended, reply, room }
            }
            RecorderCommand::Job(job) => {
                let heads = BatchHeads { cache: &state.cache, entries: view };
                let outcome = people.run(job, &heads, now_ms, &mut other.changes, failed);
                let JobOutcome { done, left, shut_out, notices } = outcome;
                for (conversation, user) in left {
                    state.cache.forget_member(conversation, &user);
                }
                shut_out.iter().for_each(|user| state.cache.forget_user(user));
                if !notices.is_empty() && failed.is_none() {
                    // The act and its notices are recorded together, or not at all.
                    let added = prepare_notices(notices, now_ms, salts).and_then(|notices| {
                        let view = RecordView { people: people.conn(), entries: view };
                        let added = entries.add(view, None, &mut state.cache, notices, now_ms);
                        added.map_err(AddError::into_cause)
                    });
                    *failed = added.err();
                }
                PendingAnswer::Job(done)
            }
            RecorderCommand::Erase(command) => {
                let erased = match failed {
                    Some(error) => Err(error.clone()),
                    None => erase(people.conn(), &view, &command, now_ms, other),
                };
                PendingAnswer::Erase { erased, command }
            }
            RecorderCommand::Close => PendingAnswer::None,
        }
    }

    /// Writes and syncs a batch on this thread.
    fn record(&mut self, mut prepared: PreparedBatch) {
        prepared.encode();
        let began = Instant::now();
        let appended = match prepared.failed.take() {
            Some(error) => Err(error),
            None if prepared.builder.is_empty() => Ok(None),
            None => {
                let appended = self.log.lock().append(&mut prepared.builder);
                appended.map(Some).map_err(StoreError::from)
            }
        };
        prepared.syncing = began.elapsed();
        // The callers have the error, if it fails.
        self.complete(prepared, appended).ok();
    }

    /// Begins to write and sync a batch on another thread.
    fn begin(&mut self, mut prepared: PreparedBatch) {
        prepared.encode();
        if prepared.failed.is_some() || prepared.builder.is_empty() {
            return self.record(prepared);
        }
        self.sync.begin(std::mem::take(&mut prepared.builder));
        self.state.in_flight = Some(prepared);
    }

    /// Completes the batch before this one. If that fails, this one is lost too: its numbers
    /// continue those of the other, and its other writes need the tables after it.
    fn finish_before(&mut self, prepared: &mut PreparedBatch) {
        if let Err(error) = self.finish_in_flight().and_then(|()| self.people.catch_up()) {
            prepared.failed.get_or_insert(error);
        }
    }

    /// Waits for the batch in flight, if there is one.
    fn finish_in_flight(&mut self) -> Result<(), StoreError> {
        let Some(mut prepared) = self.state.in_flight.take() else { return Ok(()) };
        let SyncedBatch { builder, appended, took } = self.sync.wait();
        (prepared.builder, prepared.syncing) = (builder, took);
        self.complete(prepared, appended.map(Some).map_err(StoreError::from))
    }

    /// Publishes a batch that is on disk, and answers its callers; or reports its failure to them.
    fn complete(
        &mut self,
        prepared: PreparedBatch,
        appended: Result<Option<AppendedBatch>, StoreError>,
    ) -> Result<(), StoreError> {
        let PreparedBatch { mut entries, mut other, builder, answers, .. } = prepared;
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                tracing::error!(%error, "a commit failed; nothing of it was acknowledged");
                self.people.roll_back();
                self.state.cache.forget_all();
                // The batch may still be in the file: `state_durable` overwrites it.
                (self.state.durable_is_stated, self.state.appended) = (false, Instant::now());
                self.answer(answers, Some(&error), Some(&error));
                return Err(error);
            }
        };
        let count = entries.len();
        self.state.batch_target = batch_target(count, prepared.preparing, prepared.syncing);
        other.entries = count;
        other.files = entries.files().to_vec();
        (other.next_seq, other.end) = {
            let log = self.log.lock();
            (log.next_seq(), log.end())
        };
        if let Some(AppendedBatch { next, end, runs, .. }) = appended {
            (self.state.durable_is_stated, self.state.appended) = (false, Instant::now());
            if count > 0 {
                let (ids, heads) = entries.take_index();
                self.tail.push(CommittedBatch { next_seq: next, end, runs, ids, heads });
            }
        }
        // The log has the changes: only their callers learn that they are not visible yet.
        let unapplied = match self.people.commit(other) {
            Ok(changed) => {
                if changed {
                    self.tail.people_changed();
                }
                None
            }
            Err(error) => Some(error),
        };
        self.words.appended(count, entries.bytes());
        let published = entries.take_published();
        if !published.is_empty() && self.commits.receiver_count() > 0 {
            // `send` fails only if there are no watchers.
            self.commits.send(published.into()).ok();
        }
        self.answer(answers, None, unapplied.as_ref());
        self.state.idle.push(PreparedBatch { entries, builder, ..PreparedBatch::default() });
        Ok(())
    }

    /// Answers the callers of a batch, or reports why it failed. `unapplied`: why `people.db`
    /// does not have its changes.
    fn answer(
        &self,
        answers: Vec<PendingAnswer>,
        failed: Option<&StoreError>,
        unapplied: Option<&StoreError>,
    ) {
        for answer in answers {
            match answer {
                PendingAnswer::Append { appended, reply, room } => {
                    drop(room);
                    reply.send(failed.map_or(appended, |error| Err(error.clone())));
                }
                PendingAnswer::Job(done) => (done.answer)(unapplied),
                PendingAnswer::Erase { erased, command } => {
                    let erased = unapplied.map_or(erased, |error| Err(error.clone()));
                    match erased {
                        Ok(Some(entry)) => self.words.erase(entry, command.reply),
                        Ok(None) => drop(command.reply.send(Ok(None))),
                        Err(error) => drop(command.reply.send(Err(error))),
                    }
                }
                PendingAnswer::None => {}
            }
        }
    }
}

/// The entries for notices of the server.
fn prepare_notices(
    notices: Vec<(ConversationId, String)>,
    now_ms: u64,
    salts: &Salts,
) -> Result<Vec<PreparedEntry>, StoreError> {
    let entry = |(conversation, text)| system_entry(conversation, text, now_ms, salts);
    let entries = notices.into_iter().map(entry).collect::<Result<_, _>>()?;
    PreparedEntry::batch(entries, salts)
}

/// Prepares the erasure of an entry; `None` if there is none, or it is erased.
fn erase(
    people: &Connection,
    entries: &EntryReader<'_>,
    command: &EraseCommand,
    now_ms: u64,
    other: &mut LoggedBatch,
) -> Result<Option<ErasedEntry>, StoreError> {
    let EraseCommand { conversation, n, .. } = *command;
    let Some((run, entry)) = entries.entry(conversation, n)? else { return Ok(None) };
    let begun = other.erasures.iter().any(|e| (e.conversation, e.n) == (conversation, n));
    // Its log record is there, and it is not complete: it waits for that, or tries it again.
    let again = files::is_erasing(people, conversation, n)?;
    if entry.erased && !begun && !again {
        return Ok(None);
    }
    let file = match again {
        true => files::of_erasing(people, conversation, n)?,
        false => files::of_entry(people, conversation, n)?,
    };
    if begun || again {
        return Ok(Some(ErasedEntry { run, n, erased: Erased { file } }));
    }
    other.erasures.push(Erasure { conversation, n, time_ms: now_ms, commit: entry.commit });
    Ok(Some(ErasedEntry { run, n, erased: Erased { file } }))
}

/// The number of entries that can be prepared in the time `sync`, if `prepared` entries took the
/// time `preparing`.
fn batch_target(prepared: usize, preparing: Duration, sync: Duration) -> usize {
    let prepared = u128::try_from(prepared).unwrap_or(u128::MAX);
    let batch_target = prepared.saturating_mul(sync.as_nanos()) / preparing.as_nanos().max(1);
    usize::try_from(batch_target).unwrap_or(usize::MAX).clamp(BATCH_MIN, BATCH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorder__batch_size_balances_preparation_and_sync() {
        let us = Duration::from_micros;
        assert_eq!(batch_target(1000, us(3000), us(1500)), 500);
        assert_eq!(batch_target(500, us(1500), us(3000)), 1000);
        assert_eq!(batch_target(1000, us(3000), us(30)), BATCH_MIN);
        assert_eq!(batch_target(1, us(5), us(1_000_000)), BATCH_MAX);
        // A clock with no progress, and a batch without entries.
        assert_eq!(batch_target(usize::MAX, us(0), Duration::MAX), BATCH_MAX);
        assert_eq!(batch_target(0, us(0), us(0)), BATCH_MIN);
    }
}
