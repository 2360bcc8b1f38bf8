//! Completes the new record from its log, as a start would, and compares it with the old one.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, Rows, params};
use twinlock_core::id::ConversationId;
use twinlock_store::FileRef;

use crate::database::DatabaseFile;
use crate::error::DbError;
use crate::index::{IndexReader, IndexWriter};
use crate::log::{self, LogOptions, OpenedLog, Replayed as _, ReplayedBatch, Resume};
use crate::open_error::OpenError;
use crate::options::Expected;
use crate::people::writer::PeopleWriter;
use crate::people::{PEOPLE, files};
use crate::replay::Replay;
use crate::row::get_uint;

use super::copy::Copied;
use super::old_record::{OldRecord, Queries};
use super::{Progress, Stage};

/// Reads the log into `people.db` and `index.db`, adds the unlogged columns of `people.db`, and compares.
pub(super) fn complete(
    old: &OldRecord,
    directory: &Path,
    copied: &Copied,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), OpenError> {
    let fault = |error: DbError| OpenError::Database {
        path: directory.to_path_buf(),
        problem: error.to_string(),
    };
    let people =
        PeopleWriter::new(DatabaseFile::new(&PEOPLE, directory)?.writer()?, copied.record_id);
    let index = IndexWriter::open(directory, copied.record_id)?;
    let expected = Expected::default();
    let mut replay = Replay::new(directory, &expected, people, 1, index, 1);
    let total = copied.entries;
    let mut done = 0;
    let opened = log::open(
        directory,
        Resume::beginning(),
        &LogOptions::default(),
        &mut |batch: ReplayedBatch| {
            let runs = batch.blocks.iter().filter_map(|block| match block {
                log::ReplayedBlock::Run(place, _) => Some(u64::from(place.count)),
                _ => None,
            });
            done += runs.sum::<u64>();
            progress(Progress { stage: Stage::Verify, done, total });
            replay.batch(batch)
        },
    )?;
    replay.flush().map_err(fault)?;
    let OpenedLog { writer, torn, damaged, unfinished_erasures, .. } = opened;
    let Replay { mut people, index, .. } = replay;
    let (next_seq, end) = (writer.next_seq(), writer.end());
    writer.close().map_err(|error| OpenError::File {
        path: directory.to_path_buf(),
        error: std::io::Error::other(error),
    })?;
    if torn.is_some() || !damaged.is_empty() || !unfinished_erasures.is_empty() || done != total {
        return Err(differs(directory, "the log lacks something that was written"));
    }
    people.settle(next_seq, end).map_err(|error| fault(error.into()))?;
    add_unlogged(old, people.conn()).map_err(fault)?;
    compare_rows(old, people.conn(), directory)?;
    compare_heads(old, index.conn(), copied, directory)
}

fn differs(directory: &Path, problem: impl Into<String>) -> OpenError {
    OpenError::Database { path: directory.to_path_buf(), problem: problem.into() }
}

/// Copies the unlogged data: read markers, times of device logins, and login sources.
fn add_unlogged(old: &OldRecord, new: &Connection) -> Result<(), DbError> {
    let transaction = new.unchecked_transaction()?;
    {
        let mut select = old.conn.prepare(&old.sql.members())?;
        let mut rows = select.query([])?;
        let mut update =
            new.prepare("UPDATE members SET read = ?3 WHERE conversation = ?1 AND user = ?2")?;
        while let Some(row) = rows.next()? {
            let (conversation, user): (i64, String) = (row.get(0)?, row.get(1)?);
            update.execute(params![conversation, user, row.get::<_, i64>(2)?])?;
        }
        let mut select = old.conn.prepare("SELECT cid, seen_ms FROM credentials")?;
        let mut rows = select.query([])?;
        let mut update = new.prepare("UPDATE credentials SET seen_ms = ?2 WHERE cid = ?1")?;
        while let Some(row) = rows.next()? {
            update.execute(params![row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?])?;
        }
        if let Some(sql) = old.sql.sources() {
            let mut select = old.conn.prepare(&sql)?;
            let mut rows = select.query([])?;
            let mut insert = new.prepare(
                "INSERT INTO sources (tag, user, seen_ms, by_device) VALUES (?1, ?2, ?3, ?4)",
            )?;
            while let Some(row) = rows.next()? {
                let (tag, user): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
                insert.execute(params![tag, user, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?])?;
            }
        }
        // The log has them with their bodies. One that is only in the old table keeps its content.
        if let Some(sql) = old.sql.files() {
            let mut select = old.conn.prepare(sql)?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (conversation, n, user) =
                    (get_uint(row, 0)?, get_uint(row, 1)?, get_uint(row, 2)?);
                let file = FileRef { hash: row.get(3)?, size: get_uint(row, 4)? };
                files::insert(new, conversation, n, user, &file)?;
            }
        }
        // They were written as zeros.
        new.execute("DELETE FROM erasing", [])?;
    }
    transaction.commit()?;
    Ok(())
}

/// Compares the tables that both forms have, row by row.
fn compare_rows(old: &OldRecord, new: &Connection, directory: &Path) -> Result<(), OpenError> {
    let newest = Queries::NEWEST;
    let tables = [
        ("users", Some(old.sql.users()), newest.users()),
        ("credentials", Some(old.sql.credentials()), newest.credentials()),
        ("conversations", Some(old.sql.conversations()), newest.conversations()),
        ("members", Some(old.sql.members()), newest.members()),
        ("classic keys", old.sql.classic_keys(), newest.classic_keys().unwrap_or_default()),
        ("sources", old.sql.sources(), newest.sources().unwrap_or_default()),
    ];
    for (table, of_old, of_new) in tables {
        let Some(of_old) = of_old else { continue };
        let different = different_row(&old.conn, &of_old, new, &of_new)
            .map_err(|error| differs(directory, error.to_string()))?;
        if let Some(row) = different {
            return Err(old.damaged(format!(
                "row {row} of its {table} contradicts the other rows, and cannot be converted"
            )));
        }
    }
    Ok(())
}

/// The number of the first row in which the answers differ.
fn different_row(
    old: &Connection,
    of_old: &str,
    new: &Connection,
    of_new: &str,
) -> Result<Option<u64>, DbError> {
    let (mut old, mut new) = (old.prepare(of_old)?, new.prepare(of_new)?);
    let columns = old.column_count();
    let (mut old, mut new) = (old.query([])?, new.query([])?);
    for number in 1.. {
        match (next(&mut old, columns)?, next(&mut new, columns)?) {
            (None, None) => break,
            (old, new) if old == new => {}
            _ => return Ok(Some(number)),
        }
    }
    Ok(None)
}

fn next(rows: &mut Rows<'_>, columns: usize) -> rusqlite::Result<Option<Vec<Value>>> {
    let Some(row) = rows.next()? else { return Ok(None) };
    (0..columns).map(|column| row.get(column)).collect::<Result<_, _>>().map(Some)
}

/// Compares heads and counts of every conversation: those of the old index, those that were copied,
/// and those of the new index.
fn compare_heads(
    old: &OldRecord,
    index: &Connection,
    copied: &Copied,
    directory: &Path,
) -> Result<(), OpenError> {
    let counts = |conn: &Connection, sql| -> Result<HashMap<ConversationId, (u64, u64)>, DbError> {
        let mut select = conn.prepare(sql)?;
        let rows = select
            .query_map([], |row| Ok((get_uint(row, 0)?, (get_uint(row, 1)?, get_uint(row, 2)?))))?;
        Ok(rows.collect::<Result<_, _>>()?)
    };
    let of_old = counts(
        &old.conn,
        "SELECT conversation, count(*), max(n) FROM entries INDEXED BY entries_place
         GROUP BY conversation",
    )
    .map_err(|error| old.fault(error))?;
    let fault = |error: DbError| differs(directory, error.to_string());
    let runs =
        "SELECT conversation, sum(count), max(first + count - 1) FROM runs GROUP BY conversation";
    let of_new = counts(index, runs).map_err(fault)?;
    for (id, (n, link)) in &copied.heads {
        let of_old = of_old.get(id).copied().unwrap_or_default();
        if of_old != (*n, *n) {
            let (count, newest) = of_old;
            return Err(old.damaged(format!(
                "conversation {id} has {n} entries, and its index has {count} up to entry {newest}"
            )));
        }
        let head = IndexReader(index).head(*id).map_err(fault)?;
        let same_head = match head {
            Some(head) => head.n == *n && head.link == *link,
            None => *n == 0,
        };
        if !same_head || of_new.get(id).copied().unwrap_or_default() != of_old {
            return Err(differs(
                directory,
                format!("conversation {id} is not the same in the log"),
            ));
        }
    }
    match of_old.keys().find(|id| !copied.heads.contains_key(id)) {
        Some(id) => Err(old.damaged(format!("conversation {id} is missing"))),
        None => Ok(()),
    }
}
