//! Reads and erases entries.

use std::collections::HashSet;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};
use twinlock_core::chain::{self, EntryKind};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Name, Salt, ServerKey};
use twinlock_store::{
    EntryPage, Erased, Newest, ReadLimit, Receipt, StoreError, StoredContent, StoredEntry,
};

use crate::error::DbError;
use crate::head_cache::server_key;
use crate::row::{get_uint, int, limit};
use crate::write_transaction::WriteTransaction;
use crate::{files, index};

/// Columns that [`get_entry`] reads, in order.
pub(crate) const COLUMNS: &str =
    "n, time_ms, message_id, kind, sender, entries.\"commit\", salt, entries.body, link";
/// Number of these columns, which is the index of the first column after them.
pub(crate) const COLUMN_COUNT: usize = 9;
/// Column index of the kind.
pub(crate) const KIND: usize = 3;
/// Column index of the body.
pub(crate) const BODY: usize = 7;

/// The entry's number in a row.
pub(crate) fn number(row: &Row<'_>) -> rusqlite::Result<u64> {
    get_uint(row, 0)
}

pub(crate) fn get_entry(row: &Row<'_>) -> rusqlite::Result<StoredEntry> {
    let content = match row.get_ref(BODY)?.as_blob_or_null()? {
        Some(body) => StoredContent::Body(Salt(row.get(6)?), Bytes::copy_from_slice(body)),
        None => StoredContent::Erased(Commit(row.get(5)?)),
    };
    Ok(StoredEntry {
        n: get_uint(row, 0)?,
        time_ms: get_uint(row, 1)?,
        message_id: MessageId(row.get(2)?),
        kind: EntryKind(row.get(3)?),
        sender: Bytes::copy_from_slice(row.get_ref(4)?.as_blob()?),
        content,
        link: Link(row.get(8)?),
    })
}

/// Number of entries after number `after` that this user sent.
pub(crate) fn by_user_after(
    conn: &Connection,
    conversation: ConversationId,
    user: &Name,
    after: u64,
) -> Result<u64, DbError> {
    let count = conn
        .prepare_cached(
            "SELECT count(*) FROM entries WHERE conversation = ?1 AND n > ?2
                 AND user = (SELECT id FROM users WHERE name = ?3)",
        )?
        .query_row(params![int(conversation), int(after), user.as_str()], |row| get_uint(row, 0))?;
    Ok(count)
}

/// The newest number of a conversation and its link; 0 and `link_0` while it is empty.
pub(crate) fn head(
    conn: &Connection,
    conversation: ConversationId,
    key: &ServerKey,
) -> Result<(u64, Link), DbError> {
    let newest = conn
        .prepare_cached(
            "SELECT n, link FROM entries WHERE conversation = ?1 ORDER BY n DESC LIMIT 1",
        )?
        .query_row([int(conversation)], |row| Ok((get_uint(row, 0)?, Link(row.get(1)?))))
        .optional()?;
    Ok(newest.unwrap_or_else(|| (0, chain::link_0(key, conversation))))
}

/// The newest entry of each conversation among the last `entries` of the record, newest first.
pub(crate) fn newest(conn: &Connection, entries: usize) -> Result<Vec<Newest>, DbError> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, conversation, n, time_ms, link FROM entries ORDER BY seq DESC LIMIT ?1",
    )?;
    let rows = statement.query_map([i64::try_from(entries).unwrap_or(i64::MAX)], |row| {
        Ok(Newest {
            seq: get_uint(row, 0)?,
            conversation: get_uint(row, 1)?,
            n: get_uint(row, 2)?,
            time_ms: get_uint(row, 3)?,
            link: Link(row.get(4)?),
        })
    })?;
    let (mut seen, mut newest) = (HashSet::new(), Vec::new());
    for row in rows {
        let row = row?;
        if seen.insert(row.conversation) {
            newest.push(row);
        }
    }
    Ok(newest)
}

/// Reads a range of a conversation. `key` is the server key for one that does not exist.
pub(crate) fn read(
    conn: &Connection,
    conversation: ConversationId,
    after: u64,
    max: ReadLimit,
    key: &ServerKey,
) -> Result<EntryPage, DbError> {
    let key = server_key(conn, conversation)?.unwrap_or(*key);
    let (head, head_link) = head(conn, conversation, &key)?;
    if after >= head {
        return Ok(EntryPage { link_after: head_link, head, entries: Vec::new() });
    }
    let link_after = match after {
        0 => chain::link_0(&key, conversation),
        after => conn
            .prepare_cached("SELECT link FROM entries WHERE conversation = ?1 AND n = ?2")?
            .query_row([int(conversation), int(after)], |row| row.get(0).map(Link))
            .optional()?
            .ok_or_else(|| gap(conversation, after))?,
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM entries WHERE conversation = ?1 AND n > ?2 ORDER BY n LIMIT ?3"
    ))?;
    let mut rows = select.query(params![int(conversation), int(after), limit(max.entries)])?;
    let mut entries = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let entry = get_entry(row)?;
        let due = after + 1 + entries.len() as u64;
        if entry.n != due && entries.is_empty() {
            return Err(gap(conversation, due));
        }
        // The page ends before a gap.
        if entry.n != due {
            break;
        }
        if let StoredContent::Body(_, body) = &entry.content {
            bytes += body.len();
        }
        if bytes > max.bytes && !entries.is_empty() {
            break;
        }
        entries.push(entry);
    }
    if entries.is_empty() {
        return Err(gap(conversation, after + 1));
    }
    Ok(EntryPage { link_after, head, entries })
}

fn gap(conversation: ConversationId, n: u64) -> DbError {
    StoreError::Damaged(format!("entry {n} of conversation {conversation} is missing")).into()
}

/// The receipt of the first entry of a user with this message id.
pub(crate) fn first_receipt(
    conn: &Connection,
    message_id: &MessageId,
    user: i64,
) -> Result<Option<Receipt>, DbError> {
    let receipt = conn
        .prepare_cached(
            "SELECT conversation, n, time_ms, salt, link FROM entries
             WHERE message_id = ?1 AND user = ?2",
        )?
        .query_row(params![message_id.0.as_slice(), user], |row| {
            Ok(Receipt {
                conversation: get_uint(row, 0)?,
                n: get_uint(row, 1)?,
                time_ms: get_uint(row, 2)?,
                salt: row.get::<_, Option<[u8; 16]>>(3)?.map(Salt),
                link: Link(row.get(4)?),
            })
        })
        .optional()?;
    Ok(receipt)
}

/// The receipt of this user's message, if it was recorded.
pub(crate) fn receipt(
    conn: &Connection,
    user: &Name,
    message_id: &MessageId,
) -> Result<Option<Receipt>, DbError> {
    let id = conn
        .prepare_cached("SELECT id FROM users WHERE name = ?1")?
        .query_row([user.as_str()], |row| row.get(0))
        .optional()?;
    match id {
        Some(id) => first_receipt(conn, message_id, id),
        None => Ok(None),
    }
}

/// Erases salt and body of an entry, and keeps its commitment.
pub(crate) fn erase(
    transaction: &mut WriteTransaction<'_>,
    conversation: ConversationId,
    n: u64,
) -> Result<Option<Erased>, DbError> {
    let found = transaction
        .conn
        .prepare_cached(
            "SELECT seq, salt, body, kind FROM entries WHERE conversation = ?1 AND n = ?2",
        )?
        .query_row([int(conversation), int(n)], |row| {
            let salt: Option<[u8; 16]> = row.get(1)?;
            let body: Option<Vec<u8>> = row.get(2)?;
            Ok((row.get::<_, i64>(0)?, salt.zip(body), EntryKind(row.get(3)?)))
        })
        .optional()?;
    let Some((seq, Some((salt, body)), kind)) = found else { return Ok(None) };
    index::forget(transaction.conn, seq, conversation, kind, &body)?;
    let file = files::forget(transaction.conn, conversation, n)?;
    let commit = chain::commit(&Salt(salt), &body);
    transaction
        .conn
        .prepare_cached(
            "UPDATE entries SET \"commit\" = ?2, salt = NULL, body = NULL WHERE seq = ?1",
        )?
        .execute(params![seq, commit.0])?;
    transaction.erased = true;
    Ok(Some(Erased { file }))
}
