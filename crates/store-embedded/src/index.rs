//! The full-text index, which lags behind the record.
//!
//! Recording does not wait for the index. The recorder indexes in small steps when it is idle, and
//! between transactions when the backlog is large. The index's position is in the record, and each
//! step updates it together with the words. A search uses the index up to that position and reads
//! the rest, so that its cost grows with the backlog ([`twinlock_store::EntrySearch::unindexed`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use twinlock_core::chain::EntryKind;
use twinlock_core::id::ConversationId;
use twinlock_store::file_body;
use twinlock_store::tokenizer;

use crate::error::DbError;
use crate::row::{limit, run_sql};

/// Size of an entry in a queue or backlog apart from its body, bytes.
pub(crate) const ENTRY: usize = 256;
/// Limits of one step, entries and bytes. A step takes 1 to 6 ms and delays the next append by that
/// time.
const STEP_ENTRIES: usize = 64;
const STEP_BYTES: usize = 32 * 1024;
/// Backlog in bytes above which the index takes a step whenever the command queue is empty, then
/// pauses for as long as the step took. Searching this amount of text takes some milliseconds.
const STEP_BACKLOG: u64 = 512 * 1024;
/// Backlog in bytes above which the index takes steps even if the command queue is never empty.
/// Searching this amount of text takes some tenths of a second.
const URGENT_BACKLOG: u64 = 32 * 1024 * 1024;
/// Above [`URGENT_BACKLOG`], the recorder spends about one part in [`URGENT_SHARE`] of its time on
/// steps.
const URGENT_SHARE: u32 = 50;

/// The position and the backlog of the index.
pub(crate) struct Index {
    /// `seq` of the last indexed entry.
    done: i64,
    /// Backlog, bytes: bodies of later entries, plus [`ENTRY`] for each. Shared with
    /// [`twinlock_store::EntrySearch::unindexed`].
    behind: Arc<AtomicU64>,
    /// When the last step ended, and how long it took.
    last: (Instant, Duration),
}

impl Index {
    pub(crate) fn load(conn: &Connection, behind: Arc<AtomicU64>) -> Result<Self, DbError> {
        let done = done(conn)?;
        let missing: i64 = conn.query_row(
            "SELECT coalesce(sum(coalesce(length(body), 0) + ?2), 0) FROM entries WHERE seq > ?1",
            params![done, limit(ENTRY)],
            |row| row.get(0),
        )?;
        behind.store(missing.unsigned_abs(), Ordering::Relaxed);
        Ok(Self { done, behind, last: (Instant::now(), Duration::ZERO) })
    }

    /// Adds `entries` new entries, with `bytes` of bodies in total, to the backlog.
    pub(crate) fn appended(&self, entries: usize, bytes: usize) {
        self.behind.fetch_add((entries * ENTRY + bytes) as u64, Ordering::Relaxed);
    }

    fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed)
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.behind() > 0
    }

    /// Pause before the next step; `None`: the index waits until the recorder is idle.
    pub(crate) fn pause_before_step(&self) -> Option<Duration> {
        let (ended, took) = self.last;
        (self.behind() > STEP_BACKLOG).then(|| took.saturating_sub(ended.elapsed()))
    }

    /// Whether a step must not wait for an empty command queue.
    pub(crate) fn is_due(&self) -> bool {
        let (ended, took) = self.last;
        self.behind() > URGENT_BACKLOG && ended.elapsed() >= took * URGENT_SHARE
    }

    /// Indexes some entries in a separate transaction. After an error it assumes that there is no
    /// backlog, and resumes after the next append.
    pub(crate) fn step(&mut self, conn: &Connection) -> Result<(), DbError> {
        if !self.is_behind() {
            return Ok(());
        }
        let began = Instant::now();
        let taken = index_some(conn, self.done);
        self.last = (Instant::now(), began.elapsed());
        let mut behind = 0;
        if let Ok(taken) = &taken {
            self.done = taken.last;
            if !taken.all {
                // The count is too low after an error.
                behind = self.behind().saturating_sub(taken.bytes as u64).max(1);
            }
        }
        self.behind.store(behind, Ordering::Relaxed);
        taken.map(drop)
    }
}

/// The result of a step.
struct IndexStep {
    /// `seq` of the last entry of the step.
    last: i64,
    /// Bytes, counted as in [`Index::behind`].
    bytes: usize,
    /// No entry remains.
    all: bool,
}

fn index_some(conn: &Connection, done: i64) -> Result<IndexStep, DbError> {
    run_sql(conn, "BEGIN IMMEDIATE")?;
    let taken = index_batch(conn, done).and_then(|taken| {
        run_sql(conn, "COMMIT")?;
        Ok(taken)
    });
    if taken.is_err() && !conn.is_autocommit() {
        run_sql(conn, "ROLLBACK")?;
    }
    taken
}

fn index_batch(conn: &Connection, done: i64) -> Result<IndexStep, DbError> {
    let mut next = conn.prepare_cached(
        "SELECT seq, conversation, body, kind FROM entries WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut insert =
        conn.prepare_cached("INSERT INTO words (rowid, place, body) VALUES (?1, ?2, ?3)")?;
    let mut rows = next.query(params![done, limit(STEP_ENTRIES)])?;
    let (mut last, mut entries, mut bytes) = (done, 0, 0);
    while bytes < STEP_BYTES
        && let Some(row) = rows.next()?
    {
        last = row.get(0)?;
        entries += 1;
        if let Some(body) = row.get_ref(2)?.as_blob_or_null()? {
            bytes += body.len();
            let place: i64 = row.get(1)?;
            let text = file_body::text(EntryKind(row.get(3)?), body);
            insert.execute(params![last, place.to_string(), tokenizer::of_text(&text)])?;
        }
    }
    if entries > 0 {
        conn.prepare_cached("UPDATE indexed SET seq = ?1")?.execute([last])?;
    }
    let all = entries < STEP_ENTRIES && bytes < STEP_BYTES;
    Ok(IndexStep { last, bytes: bytes + entries * ENTRY, all })
}

/// `seq` of the last indexed entry.
pub(crate) fn done(conn: &Connection) -> Result<i64, DbError> {
    Ok(conn.prepare_cached("SELECT seq FROM indexed")?.query_row([], |row| row.get(0))?)
}

/// Removes the words of an erased entry from the index.
pub(crate) fn forget(
    conn: &Connection,
    seq: i64,
    conversation: ConversationId,
    kind: EntryKind,
    body: &[u8],
) -> Result<(), DbError> {
    if seq <= done(conn)? {
        let text = file_body::text(kind, body);
        conn.prepare_cached(
            "INSERT INTO words (words, rowid, place, body) VALUES ('delete', ?1, ?2, ?3)",
        )?
        .execute(params![seq, conversation.to_string(), tokenizer::of_text(&text)])?;
    }
    Ok(())
}
