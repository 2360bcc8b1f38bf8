//! References of file entries to content, and erasures that are not complete.
//!
//! They are in this database and not in the index of entries, because they are visible with their
//! entry, and the index lags behind.

use rusqlite::{Connection, OptionalExtension, params};
use twinlock_core::id::{ConversationId, Name};
use twinlock_store::{FileRef, FileUsage};

use crate::error::DbError;
use crate::row::{get_uint, int};

pub(crate) fn insert(
    conn: &Connection,
    conversation: ConversationId,
    n: u64,
    user: u64,
    file: &FileRef,
) -> Result<(), DbError> {
    conn.prepare_cached(
        "INSERT INTO files (conversation, n, user, hash, size) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO NOTHING",
    )?
    .execute(params![
        int(conversation),
        int(n),
        int(user),
        file.hash.as_slice(),
        int(file.size)
    ])?;
    Ok(())
}

/// Begins an erasure: removes the reference of the entry, and notes with it that the entry is to be
/// overwritten.
pub(crate) fn begin_erasure(
    conn: &Connection,
    conversation: ConversationId,
    n: u64,
) -> Result<(), DbError> {
    let entry = params![int(conversation), int(n)];
    conn.prepare_cached(
        "INSERT INTO erasing (conversation, n, hash, size)
         SELECT ?1, ?2, hash, size
         FROM (SELECT 1) LEFT JOIN files ON files.conversation = ?1 AND files.n = ?2
         WHERE true ON CONFLICT DO NOTHING",
    )?
    .execute(entry)?;
    conn.prepare_cached("DELETE FROM files WHERE conversation = ?1 AND n = ?2")?.execute(entry)?;
    Ok(())
}

/// Ends an erasure: the entry is overwritten.
pub(crate) fn end_erasure(
    conn: &Connection,
    conversation: ConversationId,
    n: u64,
) -> Result<(), DbError> {
    conn.prepare_cached("DELETE FROM erasing WHERE conversation = ?1 AND n = ?2")?
        .execute(params![int(conversation), int(n)])?;
    Ok(())
}

/// Whether an entry is to be overwritten.
pub(crate) fn is_erasing(
    conn: &Connection,
    conversation: ConversationId,
    n: u64,
) -> Result<bool, DbError> {
    let mut select =
        conn.prepare_cached("SELECT 1 FROM erasing WHERE conversation = ?1 AND n = ?2")?;
    Ok(select.exists(params![int(conversation), int(n)])?)
}

/// The entries that are to be overwritten.
pub(crate) fn erasing(conn: &Connection) -> Result<Vec<(ConversationId, u64)>, DbError> {
    let mut select = conn.prepare_cached("SELECT conversation, n FROM erasing")?;
    let rows = select.query_map([], |row| Ok((get_uint(row, 0)?, get_uint(row, 1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The reference of an entry.
pub(crate) fn of_entry(
    conn: &Connection,
    conversation: ConversationId,
    n: u64,
) -> Result<Option<FileRef>, DbError> {
    reference(
        conn,
        "SELECT hash, size FROM files WHERE conversation = ?1 AND n = ?2",
        conversation,
        n,
    )
}

/// The reference that an entry had before its erasure, which is not complete.
pub(crate) fn of_erasing(
    conn: &Connection,
    conversation: ConversationId,
    n: u64,
) -> Result<Option<FileRef>, DbError> {
    let sql = "SELECT hash, size FROM erasing
               WHERE conversation = ?1 AND n = ?2 AND hash IS NOT NULL";
    reference(conn, sql, conversation, n)
}

fn reference(
    conn: &Connection,
    sql: &str,
    conversation: ConversationId,
    n: u64,
) -> Result<Option<FileRef>, DbError> {
    let file = conn
        .prepare_cached(sql)?
        .query_row(params![int(conversation), int(n)], |row| {
            Ok(FileRef { hash: row.get(0)?, size: get_uint(row, 1)? })
        })
        .optional()?;
    Ok(file)
}

pub(crate) fn one(
    conn: &Connection,
    user: &Name,
    conversation: ConversationId,
    n: u64,
) -> Result<Option<FileRef>, DbError> {
    let file = conn
        .prepare_cached(
            "SELECT hash, size FROM files JOIN members USING (conversation)
             WHERE conversation = ?1 AND n = ?2 AND members.user = ?3",
        )?
        .query_row(params![int(conversation), int(n), user.as_str()], |row| {
            Ok(FileRef { hash: row.get(0)?, size: get_uint(row, 1)? })
        })
        .optional()?;
    Ok(file)
}

pub(crate) fn stored(conn: &Connection, user: &Name) -> Result<FileUsage, DbError> {
    let stored = conn
        .prepare_cached(
            "SELECT bytes, files FROM stored JOIN users ON users.id = stored.user
             WHERE users.name = ?1",
        )?
        .query_row([user.as_str()], |row| {
            Ok(FileUsage { bytes: get_uint(row, 0)?, files: get_uint(row, 1)? })
        })
        .optional()?;
    Ok(stored.unwrap_or_default())
}

pub(crate) fn hashes(
    conn: &Connection,
    after: Option<[u8; 32]>,
    limit: usize,
) -> Result<Vec<[u8; 32]>, DbError> {
    // Sorts before every hash.
    let after = after.as_ref().map_or(&[][..], |hash| hash.as_slice());
    let mut statement = conn
        .prepare_cached("SELECT DISTINCT hash FROM files WHERE hash > ?1 ORDER BY hash LIMIT ?2")?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let hashes = statement.query_map(params![after, limit], |row| row.get(0))?;
    Ok(hashes.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn is_referenced(conn: &Connection, hash: &[u8; 32]) -> Result<bool, DbError> {
    let found = conn
        .prepare_cached("SELECT 1 FROM files WHERE hash = ?1 LIMIT 1")?
        .query_row([hash.as_slice()], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}
