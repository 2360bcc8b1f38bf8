//! The database file, and its queries.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, params};
use rusqlite_migration::M;
use twinlock_core::id::{ConversationId, Link, MessageId};
use twinlock_store::sequencer::ConversationHead;

use crate::database::{self, DatabaseFile, DatabaseKind, RecordPosition};
use crate::error::DbError;
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

    /// Adds batches that follow the index's position, in one transaction.
    pub(crate) fn add<'b>(
        &mut self,
        batches: impl IntoIterator<Item = &'b CommittedBatch>,
    ) -> Result<(), DbError> {
        let transaction = self.conn.transaction()?;
        let mut ids: Vec<&RecordedId> = Vec::new();
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
                for (conversation, head) in &batch.heads {
                    newest.execute(params![
                        int(*conversation),
                        int(head.n),
                        int(head.time_ms),
                        head.link.0
                    ])?;
                }
                ids.extend(&batch.ids);
                end = Some((batch.next_seq, batch.end));
            }
            // In the order of the B-tree, so that a page is changed once, and the first one first.
            ids.sort_by_key(|id| (id.user, id.message_id));
            let mut insert = transaction.prepare_cached(
                "INSERT INTO ids (user, message_id, conversation, n) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?;
            for id in ids {
                let RecordedId { user, message_id, conversation, n } = id;
                let row = params![int(*user), message_id.0.as_slice(), int(*conversation), int(*n)];
                if insert.execute(row)? == 0 {
                    // The log is the truth, so the index has to take it.
                    tracing::error!(conversation, n, "the record has this message twice");
                }
            }
        }
        if let Some((next_seq, position)) = end {
            let reached = RecordPosition { record_id: self.record, next_seq, position };
            database::set_position(&transaction, &reached)?;
        }
        transaction.commit()?;
        Ok(())
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
        let place = self
            .0
            .prepare_cached("SELECT conversation, n FROM ids WHERE user = ?1 AND message_id = ?2")?
            .query_row(params![int(user), message_id.0.as_slice()], |row| {
                Ok((get_uint(row, 0)?, get_uint(row, 1)?))
            })
            .optional()?;
        Ok(place)
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
        let greatest = self
            .0
            .prepare_cached("SELECT max(message_id) FROM ids WHERE user = ?1")?
            .query_row([int(user)], |row| row.get::<_, Option<[u8; 16]>>(0))?;
        Ok(greatest.map(MessageId))
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
