//! The full-text index, which follows behind the record.
//!
//! Recording does not wait for the index: it is fed in small steps when the recorder has nothing
//! to do. How far it has come is in the record, in the same transaction as its words; a search
//! asks it for everything up to there and reads the rest.

use std::time::Instant;

use rusqlite::{Connection, params};
use twinlock_core::chain::Kind;
use twinlock_core::id::ConversationId;

use super::files;
use super::recorder::run_sql;
use super::row::limit;
use super::words;
use crate::StoreError;

/// Entries and bytes of a step: about a millisecond, which a message that comes meanwhile waits.
const STEP_ENTRIES: usize = 64;
const STEP_BYTES: usize = 32 * 1024;
/// Entries behind at which the index takes its steps although messages keep coming: a search
/// then reads for some tenths of a second.
const FAR: u64 = 128 * 1024;
/// The share of its time that the recorder then gives: one part in so many.
const SHARE: u32 = 50;

/// How far the index is.
pub(super) struct Index {
    /// `seq` of the last entry in it.
    done: i64,
    /// Entries after that one.
    behind: u64,
    /// When the next step may be taken although messages keep coming.
    next: Instant,
}

impl Index {
    pub(super) fn load(conn: &Connection) -> Result<Self, StoreError> {
        let done = done(conn)?;
        let newest: i64 =
            conn.query_row("SELECT coalesce(max(seq), 0) FROM entries", [], |row| row.get(0))?;
        Ok(Self { done, behind: newest.saturating_sub(done).unsigned_abs(), next: Instant::now() })
    }

    pub(super) fn appended(&mut self, entries: usize) {
        self.behind += entries as u64;
    }

    pub(super) fn is_behind(&self) -> bool {
        self.behind > 0
    }

    /// It cannot wait until there is nothing else to do.
    pub(super) fn is_due(&self) -> bool {
        self.behind > FAR && Instant::now() >= self.next
    }

    /// Takes some entries in, in a transaction of its own. After an error it counts itself up to
    /// date, and begins again with the next entry.
    pub(super) fn step(&mut self, conn: &Connection) -> Result<(), StoreError> {
        if self.behind == 0 {
            return Ok(());
        }
        let behind = std::mem::take(&mut self.behind);
        let began = Instant::now();
        run_sql(conn, "BEGIN IMMEDIATE")?;
        match take_in(conn, self.done).and_then(|taken| {
            run_sql(conn, "COMMIT")?;
            Ok(taken)
        }) {
            Ok(Some((done, taken))) => {
                self.done = done;
                self.behind = behind.saturating_sub(taken);
                self.next = Instant::now() + began.elapsed() * SHARE;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                if !conn.is_autocommit() {
                    run_sql(conn, "ROLLBACK")?;
                }
                Err(error)
            }
        }
    }
}

fn take_in(conn: &Connection, done: i64) -> Result<Option<(i64, u64)>, StoreError> {
    let mut next = conn.prepare_cached(
        "SELECT seq, conversation, body, kind FROM entries WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut insert =
        conn.prepare_cached("INSERT INTO words (rowid, place, body) VALUES (?1, ?2, ?3)")?;
    let mut rows = next.query(params![done, limit(STEP_ENTRIES)])?;
    let (mut last, mut taken, mut bytes) = (done, 0, 0);
    while bytes < STEP_BYTES
        && let Some(row) = rows.next()?
    {
        last = row.get(0)?;
        taken += 1;
        if let Some(body) = row.get_ref(2)?.as_blob_or_null()? {
            bytes += body.len();
            let place: i64 = row.get(1)?;
            let text = files::text(Kind(row.get(3)?), body);
            insert.execute(params![last, place.to_string(), words::of_text(&text)])?;
        }
    }
    if taken == 0 {
        return Ok(None);
    }
    conn.prepare_cached("UPDATE indexed SET seq = ?1")?.execute([last])?;
    Ok(Some((last, taken)))
}

/// `seq` of the last entry in it.
pub(super) fn done(conn: &Connection) -> Result<i64, StoreError> {
    Ok(conn.prepare_cached("SELECT seq FROM indexed")?.query_row([], |row| row.get(0))?)
}

/// Takes the words of an entry out again, for good.
pub(super) fn forget(
    conn: &Connection,
    seq: i64,
    conversation: ConversationId,
    kind: Kind,
    body: &[u8],
) -> Result<(), StoreError> {
    if seq <= done(conn)? {
        let text = files::text(kind, body);
        conn.prepare_cached(
            "INSERT INTO words (words, rowid, place, body) VALUES ('delete', ?1, ?2, ?3)",
        )?
        .execute(params![seq, conversation.to_string(), words::of_text(&text)])?;
    }
    Ok(())
}
