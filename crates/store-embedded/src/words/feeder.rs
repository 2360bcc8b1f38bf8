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
/// Longest pause for that share: a step that waited for the disk would put the next one off for
/// minutes.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
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

/// The recorder's side of the thread, which ends without one.
#[derive(Clone)]
pub(crate) struct WordsHandle {
    commands: Sender<WordsCommand>,
    backlog: Arc<Backlog>,
}

/// What both sides know.
struct Backlog {
    bytes: AtomicU64,
    /// When the newest entry was recorded, ms since `began`.
    recorded: AtomicU64,
    began: Instant,
}

impl Backlog {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Time since the newest entry was recorded.
    fn quiet(&self) -> Duration {
        let recorded = Duration::from_millis(self.recorded.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(recorded)
    }
}

impl WordsHandle {
    /// Adds entries to the backlog.
    pub(crate) fn appended(&self, entries: usize, bytes: usize) {
        if entries == 0 {
            return;
        }
        let Backlog { bytes: behind, recorded, began } = &*self.backlog;
        let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        recorded.store(now, Ordering::Relaxed);
        // Only the first one finds the thread waiting.
        if behind.fetch_add((entries * ENTRY + bytes) as u64, Ordering::Relaxed) == 0 {
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
        self.backlog.bytes()
    }

    /// Ends the thread after the erasures in the queue.
    pub(crate) fn close(&self) {
        self.commands.send(WordsCommand::Close).ok();
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
        let (bytes, recorded) = (AtomicU64::new(behind), AtomicU64::default());
        let backlog = Arc::new(Backlog { bytes, recorded, began: Instant::now() });
        let feeder = Feeder { parts, backlog: backlog.clone() };
        let thread = thread::Builder::new().name("words".into());
        let thread = thread.spawn(move || feeder.run(&waiting))?;
        Ok((Self(thread), WordsHandle { commands, backlog }))
    }

    /// Waits for the thread, after [`WordsHandle::close`].
    pub(crate) fn join(self) -> Result<(), StoreError> {
        self.0.join().map_err(|_| StoreError::Database("the thread of words failed".into()))
    }
}

struct Feeder {
    parts: FeederParts,
    backlog: Arc<Backlog>,
}

impl Feeder {
    fn run(mut self, waiting: &Receiver<WordsCommand>) {
        let mut pause = Duration::ZERO;
        loop {
            let received = match self.backlog.bytes() {
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
        let busy = self.backlog.quiet() < IDLE;
        if busy && self.backlog.bytes() < BUSY_BACKLOG {
            return IDLE;
        }
        let began = Instant::now();
        let FeederParts { words, index, tail, segments, .. } = &mut self.parts;
        // Read before the step: an entry that is recorded during the step stays in the backlog.
        let before = self.backlog.bytes();
        match words.step(&EntryReader { index, tail, segments }) {
            Ok(step) => {
                let taken = if step.all { before } else { before.min(step.bytes as u64) };
                // At least 1 while entries remain, whatever the count says.
                let left = |behind: u64| Some((behind - taken).max(u64::from(!step.all)));
                let order = Ordering::Relaxed;
                self.backlog.bytes.fetch_update(order, order, left).ok();
                match busy {
                    true => (began.elapsed() * BUSY_SHARE).min(LONGEST_PAUSE),
                    false => Duration::ZERO,
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{INDEX, IndexWriter};
    use crate::log::{LogOptions, Resume, open};

    /// As when a later thread of an opening store cannot be started.
    #[test]
    fn feeder__ends_when_its_handle_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("record");
        crate::log::create_directory(&record, &LogOptions::default().faults).unwrap();
        let options = LogOptions { smallest: 4096, largest: 4096, ..LogOptions::default() };
        let ignore = &mut |_: crate::log::ReplayedBatch| Ok(());
        let log = open(&record, Resume::beginning(), &options, ignore).unwrap();
        drop(IndexWriter::open(&record, log.record_id).unwrap());
        let parts = FeederParts {
            words: WordsWriter::open(&record, log.record_id).unwrap(),
            index: crate::database::reader(&record.join(INDEX.file)).unwrap(),
            tail: Arc::default(),
            segments: log.writer.segments(),
            done: Box::new(|_| Ok(())),
        };
        let (feeder, handle) = WordsFeeder::start(parts, 0).unwrap();
        drop(handle);
        feeder.join().unwrap();
    }
}
