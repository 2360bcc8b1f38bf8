//! The thread that feeds the index of words, and erases.
//!
//! It takes steps while nothing is recorded, and few of them under load. A search uses the index up
//! to its position and reads the rest, so that its cost grows with the backlog
//! ([`twinlock_store::EntrySearch::unindexed`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use twinlock_store::{Erased, StoreError};

use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::log::{RunPlace, Segments};
use crate::recorder::EraseReply;
use crate::tail::Tail;
use crate::words::database::{ENTRY, WordsWriter};

/// Time without a commit after which the thread takes step after step. A client that sends its next
/// message after each ack pauses for less.
const IDLE: Duration = Duration::from_millis(10);
/// Backlog in bytes above which steps are taken while the record is busy. Searching this amount of
/// text takes some milliseconds.
const BUSY_BACKLOG: u64 = 512 * 1024;
/// While the record is busy, steps take one part in this of the time.
const BUSY_SHARE: u32 = 20;
/// Pause after a failed step.
const RETRY: Duration = Duration::from_secs(1);

/// An entry to erase. The log has the erasure already.
#[derive(Debug)]
pub(crate) struct ErasedEntry {
    pub(crate) run: RunPlace,
    pub(crate) n: u64,
    pub(crate) erased: Erased,
}

/// Reports a complete erasure to the recorder.
pub(crate) type ErasureDone = Box<dyn Fn(&ErasedEntry) -> Result<(), StoreError> + Send>;

enum WordsCommand {
    /// Entries were recorded.
    Appended,
    Erase(ErasedEntry, EraseReply),
    Close,
}

/// The recorder's side of the thread.
#[derive(Clone)]
pub(crate) struct WordsHandle {
    commands: Sender<WordsCommand>,
    backlog: Arc<AtomicU64>,
    /// When the newest entry was recorded, ms since `began`.
    recorded: Arc<AtomicU64>,
    began: Instant,
}

impl WordsHandle {
    /// Adds entries to the backlog.
    pub(crate) fn appended(&self, entries: usize, bytes: usize) {
        if entries == 0 {
            return;
        }
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.recorded.store(now, Ordering::Relaxed);
        // Only the first one finds the thread waiting.
        if self.backlog.fetch_add((entries * ENTRY + bytes) as u64, Ordering::Relaxed) == 0 {
            self.commands.send(WordsCommand::Appended).ok();
        }
    }

    /// Removes an entry's words, overwrites the entry in the log, and answers the caller.
    pub(crate) fn erase(&self, entry: ErasedEntry, reply: EraseReply) {
        if let Err(mpsc::SendError(WordsCommand::Erase(_, reply))) =
            self.commands.send(WordsCommand::Erase(entry, reply))
        {
            reply.send(Err(StoreError::Closed)).ok();
        }
    }

    /// Bytes that are recorded but not indexed.
    pub(crate) fn backlog(&self) -> u64 {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Ends the thread after the erasures in the queue.
    pub(crate) fn close(&self) {
        self.commands.send(WordsCommand::Close).ok();
    }

    /// Time since the newest entry was recorded.
    fn quiet(&self) -> Duration {
        let recorded = Duration::from_millis(self.recorded.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(recorded)
    }
}

/// The running thread.
pub(crate) struct WordsFeeder(JoinHandle<()>);

/// What the thread works with.
pub(crate) struct FeederParts {
    pub(crate) words: WordsWriter,
    /// A connection that reads the index of entries.
    pub(crate) index: Connection,
    pub(crate) tail: Arc<Tail>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) done: ErasureDone,
}

impl WordsFeeder {
    pub(crate) fn start(parts: FeederParts, behind: u64) -> std::io::Result<(Self, WordsHandle)> {
        let (commands, waiting) = mpsc::channel();
        let (backlog, recorded) = (Arc::new(AtomicU64::new(behind)), Arc::default());
        let handle = WordsHandle { commands, backlog, recorded, began: Instant::now() };
        let feeder = Feeder { parts, handle: handle.clone() };
        let thread = thread::Builder::new().name("words".into());
        Ok((Self(thread.spawn(move || feeder.run(&waiting))?), handle))
    }

    /// Waits for the thread, after [`WordsHandle::close`].
    pub(crate) fn join(self) -> Result<(), StoreError> {
        self.0.join().map_err(|_| StoreError::Database("the thread of words failed".into()))
    }
}

struct Feeder {
    parts: FeederParts,
    handle: WordsHandle,
}

impl Feeder {
    fn run(mut self, waiting: &Receiver<WordsCommand>) {
        let mut pause = Duration::ZERO;
        loop {
            let received = match self.handle.backlog() {
                0 => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => waiting.recv_timeout(pause),
            };
            match received {
                Ok(WordsCommand::Appended) => pause = IDLE,
                Ok(WordsCommand::Erase(entry, reply)) => {
                    let erased = self.erase(&entry).map_err(StoreError::from);
                    let erased = erased.and_then(|()| (self.parts.done)(&entry));
                    reply.send(erased.map(|()| Some(entry.erased))).ok();
                }
                Ok(WordsCommand::Close) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => pause = self.step(),
            }
        }
    }

    /// Takes a step if it is due. Returns the time until the next one.
    fn step(&mut self) -> Duration {
        let busy = self.handle.quiet() < IDLE;
        if busy && self.handle.backlog() < BUSY_BACKLOG {
            return IDLE;
        }
        let began = Instant::now();
        let FeederParts { words, index, tail, segments, .. } = &mut self.parts;
        // Read before the step: an entry that is recorded during the step stays in the backlog.
        let before = self.handle.backlog.load(Ordering::Relaxed);
        match words.step(&EntryReader { index, tail, segments }) {
            Ok(step) => {
                let taken = if step.all { before } else { before.min(step.bytes as u64) };
                // At least 1 while entries remain, whatever the count says.
                let left = |behind: u64| Some((behind - taken).max(u64::from(!step.all)));
                let order = Ordering::Relaxed;
                self.handle.backlog.fetch_update(order, order, left).ok();
                if busy { began.elapsed() * BUSY_SHARE } else { Duration::ZERO }
            }
            Err(error) => {
                tracing::warn!(%error, "the index of words is not updated; searches read the record");
                RETRY
            }
        }
    }

    fn erase(&mut self, erased: &ErasedEntry) -> Result<(), DbError> {
        let FeederParts { words, index, tail, segments, .. } = &mut self.parts;
        let reader = EntryReader { index, tail, segments };
        erase(words, &reader, &erased.run, erased.n)
    }
}

/// Removes the words of an entry, then overwrites it in the log. Can be repeated.
pub(crate) fn erase(
    words: &mut WordsWriter,
    entries: &EntryReader<'_>,
    run: &RunPlace,
    n: u64,
) -> Result<(), DbError> {
    for entry in entries.run(run)?.entries() {
        let entry = entry.map_err(StoreError::from)?;
        if entry.n == n {
            words.remove(run.seq + (n - run.first), run.conversation, &entry)?;
            break;
        }
    }
    entries.segments.erase(run, n).map_err(StoreError::from)?;
    Ok(())
}
