//! `index.db` against the log.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use twinlock_core::id::{ConversationId, MessageId};
use twinlock_store::sequencer::ConversationHead;

use super::findings::{Finding, Findings};
use crate::error::DbError;
use crate::index::{INDEX, IndexReader};
use crate::log::RunPlace;
use crate::row::get_uint;

/// Rows that are read at a time.
const ROWS: usize = 1024;

/// The index, while the log is read.
pub(super) struct IndexCheck {
    path: PathBuf,
    conn: Connection,
    next_seq: u64,
    /// The next rows of `runs`.
    rows: VecDeque<RunPlace>,
    /// The sequence of the last row that was read.
    read: u64,
    runs: u64,
    ids: u64,
    done: bool,
}

impl IndexCheck {
    pub(super) fn new(path: &Path, conn: Connection, next_seq: u64) -> Self {
        let (path, rows) = (path.to_path_buf(), VecDeque::new());
        Self { path, conn, next_seq, rows, read: 0, runs: 0, ids: 0, done: false }
    }

    /// Whether the index should have the records of a batch with this first sequence.
    pub(super) fn has(&self, first: u64) -> bool {
        !self.done && first < self.next_seq
    }

    /// Compares the next run.
    pub(super) fn run(&mut self, place: &RunPlace, findings: &mut Findings) {
        let compared = self.try_run(place, findings);
        self.unless_read(compared, findings);
    }

    fn try_run(&mut self, place: &RunPlace, findings: &mut Findings) -> Result<(), DbError> {
        self.runs += 1;
        while let Some(row) = self.next_row()? {
            if row.seq > place.seq {
                break;
            }
            self.rows.pop_front();
            if row == *place {
                return Ok(());
            }
            if row.seq == place.seq {
                self.add(findings, format!("runs: the row {} is not as in the log", row.seq));
                return Ok(());
            }
            self.add(findings, format!("runs: the row {} is not in the log", row.seq));
        }
        self.add(findings, format!("runs: the row {} is missing: the log has it", place.seq));
        Ok(())
    }

    fn next_row(&mut self) -> Result<Option<RunPlace>, DbError> {
        if self.rows.is_empty() {
            self.rows = IndexReader(&self.conn).runs_after(self.read, ROWS)?.into();
            self.read = self.rows.back().map_or(self.read, |row| row.seq);
        }
        Ok(self.rows.front().copied())
    }

    /// Compares the id of an entry.
    pub(super) fn id(
        &mut self,
        user: u64,
        id: &MessageId,
        (conversation, n): (ConversationId, u64),
        findings: &mut Findings,
    ) {
        self.ids += 1;
        let problem = match IndexReader(&self.conn).id(user, id) {
            Ok(Some(place)) if place == (conversation, n) => return,
            Ok(Some((other, m))) => {
                format!("ids: the message id is that of entry {m} of conversation {other}")
            }
            Ok(None) => "ids: the message id is missing: a repeat would be recorded again".into(),
            Err(error) => return self.unless_read(Err(error), findings),
        };
        findings.add(Finding::new(&self.path, problem).entry(conversation, n));
    }

    /// Compares what remains, once the log is read up to the position: `next` is its next sequence.
    pub(super) fn reached(
        &mut self,
        next: u64,
        heads: &HashMap<ConversationId, ConversationHead>,
        findings: &mut Findings,
    ) {
        if self.done || next < self.next_seq {
            return;
        }
        let compared = self.finish(heads, findings);
        self.unless_read(compared, findings);
        self.done = true;
    }

    fn finish(
        &mut self,
        heads: &HashMap<ConversationId, ConversationHead>,
        findings: &mut Findings,
    ) -> Result<(), DbError> {
        while let Some(row) = self.next_row()? {
            self.rows.pop_front();
            self.add(findings, format!("runs: the row {} is not in the log", row.seq));
        }
        let runs = self.conn.query_row("SELECT count(*) FROM runs", [], |row| get_uint(row, 0))?;
        let ids = IndexReader(&self.conn).ids()?;
        for (table, found, expected) in [("runs", runs, self.runs), ("ids", ids, self.ids)] {
            if found > expected {
                let problem = format!("{table}: it has {found} of them, and the log {expected}");
                self.add(findings, problem);
            }
        }
        let mut found = 0;
        for (conversation, head) in heads.iter().filter(|(_, head)| head.n > 0) {
            let row = IndexReader(&self.conn).head(*conversation)?;
            found += u64::from(row.is_some());
            let same = row.is_some_and(|row| {
                (row.n, row.time_ms, row.link) == (head.n, head.time_ms, head.link)
            });
            if !same {
                self.add(findings, format!("heads: the row {conversation} is not as in the log"));
            }
        }
        let rows = self.conn.query_row("SELECT count(*) FROM heads", [], |row| get_uint(row, 0))?;
        if rows > found {
            self.add(findings, format!("heads: it has {rows} rows, and the log {found}"));
        }
        Ok(())
    }

    /// Notes an index that the log was not read far enough for.
    pub(super) fn end(&self, notes: &mut Vec<String>) {
        if !self.done {
            let name = INDEX.file;
            notes.push(format!("{name} was not compared: the log was not read up to its position"));
        }
    }

    fn add(&self, findings: &mut Findings, problem: String) {
        findings.add(Finding::new(&self.path, problem));
    }

    /// Ends the comparison with an index that cannot be read.
    fn unless_read(&mut self, compared: Result<(), DbError>, findings: &mut Findings) {
        if let Err(error) = compared {
            self.add(findings, format!("it cannot be read: {error}"));
            self.done = true;
        }
    }
}
