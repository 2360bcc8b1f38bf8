//! The full-text index, and how entries get in and out.

use std::path::Path;

use rusqlite::{Connection, params};
use rusqlite_migration::M;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::ConversationId;
use twinlock_store::{StoreError, file_body, tokenizer};

use crate::database::{self, DatabaseFile, DatabaseKind, RecordPosition};
use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::log::{LogPosition, RunEntry};
use crate::open_error::OpenError;
use crate::row::int;

/// The database of this module.
pub(crate) const WORDS: DatabaseKind = DatabaseKind {
    file: "words.db",
    schema: &[M::up(include_str!("../../migrations/words/0001_words.sql"))],
    tables: &["words", "removed", "position"],
    cache: 4 * 1024,
    is_checked: false,
    auto_checkpoint: 1000,
};
/// Size of an entry in a queue or backlog apart from its body, bytes.
pub(crate) const ENTRY: usize = 256;
/// Limits of one step, entries and bytes.
const STEP_ENTRIES: usize = 256;
const STEP_BYTES: usize = 128 * 1024;

/// The only connection that writes.
pub(crate) struct WordsWriter {
    conn: Connection,
    record: [u8; 16],
    /// Sequence of the next record.
    next: u64,
}

/// The result of a step.
pub(crate) struct WordsStep {
    /// Bodies, plus [`ENTRY`] for each entry.
    pub(crate) bytes: usize,
    /// No entry remains.
    pub(crate) all: bool,
}

impl WordsWriter {
    /// Opens the index in `directory`, and creates it if it is missing.
    pub(crate) fn open(directory: &Path, record: [u8; 16]) -> Result<Self, OpenError> {
        let file = DatabaseFile::new(&WORDS, directory)?;
        let conn = file.writer()?;
        let position = database::position(&conn).map_err(|error| OpenError::Database {
            path: file.path().to_path_buf(),
            problem: error.to_string(),
        })?;
        Ok(Self { conn, record, next: position.map_or(1, |at| at.next_seq) })
    }

    /// Whether the words are of this record, whose next sequence is `next_seq`.
    pub(crate) fn is_of(&self, record: &[u8; 16], next_seq: u64) -> bool {
        let at = database::position(&self.conn);
        at.is_ok_and(|at| at.is_none_or(|at| at.record_id == *record && at.next_seq <= next_seq))
    }

    /// The sequence of the first entry that is not indexed.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next
    }

    /// Adds the words of some entries, in one transaction.
    pub(crate) fn step(&mut self, entries: &EntryReader<'_>) -> Result<WordsStep, DbError> {
        let (mut next, mut count, mut bytes) = (self.next, 0, 0);
        let runs = entries.runs_by_seq(next, STEP_ENTRIES)?;
        let mut all = runs.len() < STEP_ENTRIES;
        let transaction = self.conn.transaction()?;
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO words (rowid, place, body) VALUES (?1, ?2, ?3)")?;
            'runs: for place in runs {
                let run = entries.run(&place)?;
                for entry in run.entries() {
                    let entry = entry.map_err(StoreError::from)?;
                    let seq = place.seq + (entry.n - place.first);
                    if seq < next {
                        continue;
                    }
                    if count >= STEP_ENTRIES || bytes >= STEP_BYTES {
                        all = false;
                        break 'runs;
                    }
                    (next, count) = (seq + 1, count + 1);
                    if let Some((kind, body)) = content(&entry) {
                        bytes += body.len();
                        let text = tokenizer::of_text(&file_body::text(kind, body));
                        insert.execute(params![int(seq), place.conversation.to_string(), text])?;
                    }
                }
            }
        }
        if count == 0 {
            return Ok(WordsStep { bytes: 0, all: true });
        }
        let position = LogPosition::default();
        let reached = RecordPosition { record_id: self.record, next_seq: next, position };
        database::set_position(&transaction, &reached)?;
        transaction.commit()?;
        self.next = next;
        Ok(WordsStep { bytes: bytes + count * ENTRY, all })
    }

    /// Removes the words of an entry that is about to be erased, also from the free pages and the
    /// WAL.
    pub(crate) fn remove(
        &mut self,
        seq: u64,
        conversation: ConversationId,
        entry: &RunEntry,
    ) -> Result<(), DbError> {
        if seq >= self.next {
            return Ok(());
        }
        let transaction = self.conn.transaction()?;
        let first = transaction
            .prepare_cached("INSERT INTO removed (seq) VALUES (?1) ON CONFLICT DO NOTHING")?
            .execute([int(seq)])?
            > 0;
        if first && let Some((kind, body)) = content(entry) {
            let text = tokenizer::of_text(&file_body::text(kind, body));
            transaction
                .prepare_cached(
                    "INSERT INTO words (words, rowid, place, body) VALUES ('delete', ?1, ?2, ?3)",
                )?
                .execute(params![int(seq), conversation.to_string(), text])?;
        }
        transaction.commit()?;
        empty_wal(&self.conn)
    }
}

/// Kind and body of an entry that has one.
fn content(entry: &RunEntry) -> Option<(EntryKind, &[u8])> {
    (!entry.erased && entry.body_matches()).then_some((entry.kind, &entry.body))
}

/// Moves the WAL into the database and truncates it, both synced.
fn empty_wal(conn: &Connection) -> Result<(), DbError> {
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy == 0 {
        Ok(())
    } else {
        Err(StoreError::Database("a reader holds the WAL of words.db".into()).into())
    }
}

/// The sequence up to which entries are in the index; the next one is not.
pub(crate) fn next(conn: &Connection) -> Result<u64, DbError> {
    Ok(database::position(conn)?.map_or(1, |at| at.next_seq))
}
