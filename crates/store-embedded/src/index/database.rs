//! The database file, and its queries.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, params};
use rusqlite_migration::M;
use twinlock_core::id::{ConversationId, Link, MessageId};
use twinlock_store::sequencer::ConversationHead;

use crate::database::{self, DatabaseFile, DatabaseKind, RecordPosition};
use crate::error::DbError;
use crate::index::ids;
use crate::log::{LogPosition, RunPlace};
use crate::open_error::OpenError;
use crate::row::{get_uint, int, limit};
use crate::tail::{CommittedBatch, RecordedId};

/// The database of this module.
pub(crate) const INDEX: DatabaseKind = DatabaseKind {
    file: "index.db",
    schema: &[M::up(include_str!("../../migrations/index/0001_index.sql"))],
    tables: &["runs", "heads", "ids", "position"],
    // Holds the right edges of the B-trees.
    cache: 8 * 1024,
    is_checked: false,
    auto_checkpoint: 1000,
};

const RUN: &str = "seq, conversation, first, count, segment, offset, length";

/// The only connection that writes.
pub(crate) struct IndexWriter {
    conn: Connection,
    record: [u8; 16],
}

impl IndexWriter {
    /// Opens the index in `directory`, and creates it if it is missing.
    pub(crate) fn open(directory: &Path, record: [u8; 16]) -> Result<Self, OpenError> {
        let conn = DatabaseFile::new(&INDEX, directory)?.writer()?;
        Ok(Self { conn, record })
    }

    /// Sets the id of a record that was created now.
    pub(crate) fn set_record(&mut self, record: [u8; 16]) {
        self.record = record;
    }

    pub(crate) fn conn(&self) -> &Connection {
        &self.conn
    }

    pub(crate) fn position(&self) -> Result<Option<RecordPosition>, DbError> {
        database::position(&self.conn)
    }

    /// Adds batches that follow the index's position, in one transaction. Returns the greatest id of
    /// each of their users.
    pub(crate) fn add<'b>(
        &mut self,
        batches: impl IntoIterator<Item = &'b CommittedBatch>,
    ) -> Result<Vec<(u64, MessageId)>, DbError> {
        let transaction = self.conn.transaction()?;
        let mut recorded: Vec<RecordedId> = Vec::new();
        // The last batch of a conversation has its newest head.
        let mut heads: HashMap<ConversationId, ConversationHead> = HashMap::new();
        let mut end = None;
        {
            let mut run = transaction.prepare_cached(&format!(
                "INSERT INTO runs ({RUN}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
            ))?;
            let mut newest = transaction.prepare_cached(
                "INSERT OR REPLACE INTO heads (conversation, n, time_ms, link)
                 VALUES (?1, ?2, ?3, ?4)",
            )?;
            for batch in batches {
                for place in &batch.runs {
                    let LogPosition { segment, offset } = place.position;
                    run.execute(params![
                        int(place.seq),
                        int(place.conversation),
                        int(place.first),
                        place.count,
                        segment,
                        offset,
                        place.length
                    ])?;
                }
                heads.extend(batch.heads.iter().copied());
                recorded.extend(&batch.ids);
                end = Some((batch.next_seq, batch.end));
            }
            for (conversation, head) in heads {
                let ConversationHead { n, time_ms, link } = head;
                newest.execute(params![int(conversation), int(n), int(time_ms), link.0])?;
            }
        }
        let greatest = ids::add(&transaction, recorded)?;
        if let Some((next_seq, position)) = end {
            let reached = RecordPosition { record_id: self.record, next_seq, position };
            database::set_position(&transaction, &reached)?;
        }
        transaction.commit()?;
        Ok(greatest)
    }
}

/// Queries of the index. Each is one statement, so that it sees everything that was indexed before
/// it began.
#[derive(Clone, Copy)]
pub(crate) struct IndexReader<'c>(pub(crate) &'c Connection);

impl IndexReader<'_> {
    /// Up to `max` runs of a conversation, from the one that contains entry `n` on.
    pub(crate) fn runs_from(
        self,
        conversation: ConversationId,
        n: u64,
        max: usize,
    ) -> Result<Vec<RunPlace>, DbError> {
        let mut select = self.0.prepare_cached(&format!(
            "SELECT {RUN} FROM runs WHERE conversation = ?1 AND first >= coalesce(
                 (SELECT max(first) FROM runs WHERE conversation = ?1 AND first <= ?2), 0)
             ORDER BY first LIMIT ?3"
        ))?;
        let runs = select.query_map(params![int(conversation), int(n), limit(max)], get_run)?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    /// Up to `max` runs of a conversation, from the one that contains entry `n` backwards.
    pub(crate) fn runs_back_from(
        self,
        conversation: ConversationId,
        n: u64,
        max: usize,
    ) -> Result<Vec<RunPlace>, DbError> {
        let mut select = self.0.prepare_cached(&format!(
            "SELECT {RUN} FROM runs WHERE conversation = ?1 AND first <= ?2
             ORDER BY first DESC LIMIT ?3"
        ))?;
        let runs = select.query_map(params![int(conversation), int(n), limit(max)], get_run)?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    /// The run that contains this sequence.
    pub(crate) fn run_of(self, seq: u64) -> Result<Option<RunPlace>, DbError> {
        let mut select = self.0.prepare_cached(&format!(
            "SELECT {RUN} FROM runs WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1"
        ))?;
        let run = select.query_row([int(seq)], get_run).optional()?;
        Ok(run.filter(|run| seq < run.seq + u64::from(run.count)))
    }

    /// Up to `max` runs of the whole record, from the one that contains or follows `seq` on.
    pub(crate) fn runs_by_seq(self, seq: u64, max: usize) -> Result<Vec<RunPlace>, DbError> {
        let mut select = self.0.prepare_cached(&format!(
            "SELECT {RUN} FROM runs WHERE seq >= coalesce(
                 (SELECT max(seq) FROM runs WHERE seq <= ?1), 0)
             ORDER BY seq LIMIT ?2"
        ))?;
        // The first one may end before `seq`, which is not an entry then.
        let runs = select.query_map(params![int(seq), limit(max.saturating_add(1))], get_run)?;
        let mut runs = runs.collect::<Result<Vec<_>, _>>()?;
        runs.retain(|run| run.seq + u64::from(run.count) > seq);
        runs.truncate(max);
        Ok(runs)
    }

    /// Up to `max` rows of the runs after this sequence.
    pub(crate) fn runs_after(self, seq: u64, max: usize) -> Result<Vec<RunPlace>, DbError> {
        let mut select = self.0.prepare_cached(&format!(
            "SELECT {RUN} FROM runs WHERE seq > ?1 ORDER BY seq LIMIT ?2"
        ))?;
        let runs = select.query_map(params![int(seq), limit(max)], get_run)?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    /// The newest runs, newest first, until they have `entries` entries.
    pub(crate) fn newest_runs(self, entries: usize) -> Result<Vec<RunPlace>, DbError> {
        let mut select =
            self.0.prepare_cached(&format!("SELECT {RUN} FROM runs ORDER BY seq DESC"))?;
        let mut rows = select.query([])?;
        let (mut runs, mut taken) = (Vec::new(), 0);
        while taken < entries
            && let Some(row) = rows.next()?
        {
            let run = get_run(row)?;
            taken += run.count as usize;
            runs.push(run);
        }
        Ok(runs)
    }

    /// The newest entry of a conversation.
    pub(crate) fn head(
        self,
        conversation: ConversationId,
    ) -> Result<Option<ConversationHead>, DbError> {
        let head = self
            .0
            .prepare_cached("SELECT n, time_ms, link FROM heads WHERE conversation = ?1")?
            .query_row([int(conversation)], |row| {
                let (n, time_ms) = (get_uint(row, 0)?, get_uint(row, 1)?);
                Ok(ConversationHead { n, time_ms, link: Link(row.get(2)?) })
            })
            .optional()?;
        Ok(head)
    }

    /// Where the message with this id of this user was recorded.
    pub(crate) fn id(
        self,
        user: u64,
        message_id: &MessageId,
    ) -> Result<Option<(ConversationId, u64)>, DbError> {
        ids::get(self.0, user, message_id)
    }

    /// Length of the runs from `seq` on, bytes.
    pub(crate) fn bytes_from(self, seq: u64) -> Result<u64, DbError> {
        let bytes = self
            .0
            .prepare_cached("SELECT coalesce(sum(length), 0) FROM runs WHERE seq >= ?1")?
            .query_row([int(seq)], |row| get_uint(row, 0))?;
        Ok(bytes)
    }

    /// The greatest message id of this user.
    pub(crate) fn greatest_id(self, user: u64) -> Result<Option<MessageId>, DbError> {
        ids::greatest(self.0, user)
    }

    /// The number of message ids.
    pub(crate) fn ids(self) -> Result<u64, DbError> {
        ids::count(self.0)
    }
}

fn get_run(row: &Row<'_>) -> rusqlite::Result<RunPlace> {
    Ok(RunPlace {
        seq: get_uint(row, 0)?,
        conversation: get_uint(row, 1)?,
        first: get_uint(row, 2)?,
        count: row.get(3)?,
        position: LogPosition { segment: row.get(4)?, offset: row.get(5)? },
        length: row.get(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index__runs_by_sequence_begin_after_other_records() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = IndexWriter::open(dir.path(), [1; 16]).unwrap();
        // Sequence 2 is another record than an entry.
        let run = |seq: u64, first| RunPlace {
            conversation: 1,
            first,
            count: 1,
            seq,
            position: LogPosition { segment: 1, offset: 64 },
            length: 1,
        };
        let runs = [1, 3, 4, 5, 6].into_iter().zip(1..).map(|(seq, first)| run(seq, first));
        let batch = CommittedBatch {
            next_seq: 7,
            end: LogPosition { segment: 1, offset: 99 },
            runs: runs.collect(),
            ids: Vec::new(),
            heads: Vec::new(),
        };
        index.add([&batch]).unwrap();
        let seqs = |from, max| -> Vec<_> {
            let runs = IndexReader(index.conn()).runs_by_seq(from, max).unwrap();
            runs.iter().map(|run| run.seq).collect()
        };
        assert_eq!(seqs(1, 3), [1, 3, 4]);
        // A full page, although the first row that was read ends before it.
        assert_eq!(seqs(2, 3), [3, 4, 5]);
        assert_eq!(seqs(2, 9), [3, 4, 5, 6]);
        assert_eq!(seqs(7, 9), [0_u64; 0]);
    }
}
