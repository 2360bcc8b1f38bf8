//! Rooms, direct conversations, their members and read markers.

use rusqlite::{Connection, OptionalExtension, Params, Row, params};
use twinlock_core::id::{ConversationId, Name, ServerKey};
use twinlock_store::{
    Bound, Bounds, ConversationForm, Joined, LOBBY, OWN_COUNTED, StoreError, StoredConversation,
};

use crate::entries;
use crate::error::DbError;
use crate::row::{get_name, get_optional_name, get_uint, int, limit};
use crate::write_transaction::WriteTransaction;

/// Columns that [`get`] reads, followed by the user's read marker; NULL: not a member.
const COLUMNS: &str = "c.id, c.name, c.low, c.high, c.topic, c.server_key, c.members, c.created_ms";
/// A user's conversations, by ascending id.
const OWN: &str = "FROM members m CROSS JOIN conversations c ON c.id = m.conversation
     WHERE m.user = ?1 AND m.conversation > ?2 ORDER BY m.conversation LIMIT ?3";
/// Rooms that a user is not a member of. Skips at most as many rows as the user has memberships.
const JOINABLE: &str = "FROM conversations c INDEXED BY rooms
     WHERE c.name IS NOT NULL AND c.id > ?2 AND NOT EXISTS
         (SELECT 1 FROM members m WHERE m.conversation = c.id AND m.user = ?1)
     ORDER BY c.id LIMIT ?3";
/// One of a user's conversations.
const ONE: &str = "FROM conversations c JOIN members m ON m.conversation = c.id AND m.user = ?1";

fn get(conn: &Connection, row: &Row<'_>, user: &Name) -> Result<StoredConversation, DbError> {
    let id = get_uint(row, 0)?;
    let form = match (get_optional_name(row, 1)?, row.get_ref(2)?) {
        (Some(room), _) => ConversationForm::Room(room),
        (None, _) => {
            let (low, high) = (get_name(row, 2)?, get_name(row, 3)?);
            ConversationForm::Direct(if low == *user { high } else { low })
        }
    };
    let server_key = ServerKey(row.get(5)?);
    let (head, head_link) = entries::head(conn, id, &server_key)?;
    let marker: Option<i64> = row.get(8)?;
    let read = marker.map(crate::row::uint).unwrap_or_default();
    Ok(StoredConversation {
        id,
        form,
        topic: row.get(4)?,
        server_key,
        head,
        head_link,
        read,
        own: 0,
        members: row.get(6)?,
        created_ms: get_uint(row, 7)?,
        joined: marker.is_some(),
    })
}

fn list_sql(joinable: bool) -> String {
    let (read, from) = if joinable { ("NULL", JOINABLE) } else { ("m.read", OWN) };
    format!("SELECT {COLUMNS}, {read} {from}")
}

/// The conversations of a user, or the rooms that the user is not a member of.
pub(crate) fn list(
    conn: &Connection,
    user: &Name,
    joinable: bool,
    after: ConversationId,
    max: usize,
) -> Result<Vec<StoredConversation>, DbError> {
    let mut select = conn.prepare_cached(&list_sql(joinable))?;
    let mut rows = select.query(params![user.as_str(), int(after), limit(max)])?;
    let mut list = Vec::new();
    while let Some(row) = rows.next()? {
        let mut one = get(conn, row, user)?;
        if one.joined {
            let after = one.read.max(one.head.saturating_sub(OWN_COUNTED));
            one.own = entries::by_user_after(conn, one.id, user, after)?;
        }
        list.push(one);
    }
    Ok(list)
}

/// A conversation, if the user is a member.
pub(crate) fn one(
    conn: &Connection,
    user: &Name,
    id: ConversationId,
) -> Result<Option<StoredConversation>, DbError> {
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS}, m.read {ONE} WHERE c.id = ?2"))?;
    let mut rows = select.query(params![user.as_str(), int(id)])?;
    rows.next()?.map(|row| get(conn, row, user)).transpose()
}

fn named_sql() -> String {
    format!("SELECT {COLUMNS}, m.read {ONE} WHERE c.name = ?2")
}

/// The room of this name, if the user is a member.
pub(crate) fn named(
    conn: &Connection,
    user: &Name,
    room: &Name,
) -> Result<Option<StoredConversation>, DbError> {
    let mut select = conn.prepare_cached(&named_sql())?;
    let mut rows = select.query(params![user.as_str(), room.as_str()])?;
    rows.next()?.map(|row| get(conn, row, user)).transpose()
}

pub(crate) fn members(
    conn: &Connection,
    id: ConversationId,
    after: Option<&Name>,
    max: usize,
) -> Result<Vec<Name>, DbError> {
    let mut select = conn.prepare_cached(
        "SELECT user FROM members WHERE conversation = ?1 AND user > ?2 ORDER BY user LIMIT ?3",
    )?;
    let after = after.map_or("", Name::as_str);
    let names = select.query_map(params![int(id), after, limit(max)], |row| get_name(row, 0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// Adds a member, with everything up to the head marked as read. `false`: the user is a member
/// already.
pub(crate) fn enter(
    transaction: &WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<bool, DbError> {
    let entered = transaction
        .conn
        .prepare_cached(
            "INSERT INTO members (conversation, user, read)
             VALUES (?1, ?2, (SELECT coalesce(max(n), 0) FROM entries WHERE conversation = ?1))
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![int(id), user.as_str()])?;
    if entered > 0 {
        recount(transaction, id, 1)?;
    }
    Ok(entered > 0)
}

fn recount(transaction: &WriteTransaction<'_>, id: ConversationId, by: i64) -> Result<(), DbError> {
    transaction
        .conn
        .prepare_cached("UPDATE conversations SET members = members + ?2 WHERE id = ?1")?
        .execute(params![int(id), by])?;
    Ok(())
}

/// Reads a conversation that must exist after a write of this transaction.
fn made(
    transaction: &WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<StoredConversation, DbError> {
    one(transaction.conn, user, id)?
        .ok_or_else(|| StoreError::Database(format!("conversation {id} was not made")).into())
}

/// Fails if `sql` selects at least `max` rows; counts no further.
pub(crate) fn bounded(
    conn: &Connection,
    sql: &str,
    of: impl Params,
    bound: Bound,
    max: usize,
) -> Result<(), DbError> {
    let max_rows = limit(max);
    let count = format!("SELECT count(*) FROM ({sql} LIMIT {max_rows})");
    let exists: i64 = conn.prepare_cached(&count)?.query_row(of, |row| row.get(0))?;
    if exists >= max_rows { Err(StoreError::TooMany(bound, max).into()) } else { Ok(()) }
}

fn may_enter(conn: &Connection, user: &Name, bounds: &Bounds) -> Result<(), DbError> {
    let sql = "SELECT 1 FROM members WHERE user = ?1";
    bounded(conn, sql, [user.as_str()], Bound::Memberships, bounds.memberships)
}

pub(crate) fn create_room(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    name: &Name,
    topic: &str,
    key: &ServerKey,
    bounds: &Bounds,
) -> Result<Option<StoredConversation>, DbError> {
    let taken = transaction
        .conn
        .prepare_cached("SELECT 1 FROM conversations WHERE name = ?1")?
        .exists([name.as_str()])?;
    if taken {
        return Ok(None);
    }
    let sql = "SELECT 1 FROM conversations WHERE made_by = ?1";
    bounded(transaction.conn, sql, [user.as_str()], Bound::Rooms, bounds.rooms)?;
    may_enter(transaction.conn, user, bounds)?;
    let id = transaction
        .conn
        .prepare_cached(
            "INSERT INTO conversations (name, topic, server_key, members, created_ms, made_by)
             VALUES (?1, ?2, ?3, 0, ?4, ?5) RETURNING id",
        )?
        .query_row(
            params![name.as_str(), topic, key.0, int(transaction.now_ms), user.as_str()],
            |row| get_uint(row, 0),
        )?;
    enter(transaction, user, id)?;
    made(transaction, user, id).map(Some)
}

pub(crate) fn join_room(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    name: &Name,
    bounds: &Bounds,
) -> Result<Option<Joined>, DbError> {
    let id = transaction
        .conn
        .prepare_cached("SELECT id FROM conversations WHERE name = ?1")?
        .query_row([name.as_str()], |row| get_uint(row, 0))
        .optional()?;
    let Some(id) = id else { return Ok(None) };
    if let Some(conversation) = one(transaction.conn, user, id)? {
        return Ok(Some(Joined { conversation, new: false }));
    }
    may_enter(transaction.conn, user, bounds)?;
    enter(transaction, user, id)?;
    Ok(Some(Joined { conversation: made(transaction, user, id)?, new: true }))
}

fn is_room(conn: &Connection, id: ConversationId) -> Result<bool, DbError> {
    let room = conn
        .prepare_cached("SELECT name IS NOT NULL FROM conversations WHERE id = ?1")?
        .query_row([int(id)], |row| row.get(0))
        .optional()?;
    Ok(room.unwrap_or(false))
}

pub(crate) fn leave_room(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<bool, DbError> {
    if id == LOBBY || !is_room(transaction.conn, id)? {
        return Ok(false);
    }
    let left = transaction
        .conn
        .prepare_cached("DELETE FROM members WHERE conversation = ?1 AND user = ?2")?
        .execute(params![int(id), user.as_str()])?;
    transaction.cache.forget_member(id, user);
    if left > 0 {
        recount(transaction, id, -1)?;
    }
    Ok(left > 0)
}

pub(crate) fn set_topic(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
    topic: &str,
) -> Result<Option<StoredConversation>, DbError> {
    if !is_room(transaction.conn, id)? || one(transaction.conn, user, id)?.is_none() {
        return Ok(None);
    }
    transaction
        .conn
        .prepare_cached("UPDATE conversations SET topic = ?2 WHERE id = ?1")?
        .execute(params![int(id), topic])?;
    one(transaction.conn, user, id)
}

pub(crate) fn open_direct(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    other: &Name,
    key: &ServerKey,
    bounds: &Bounds,
) -> Result<Option<StoredConversation>, DbError> {
    let exists = |name: &Name| {
        transaction
            .conn
            .prepare_cached("SELECT 1 FROM users WHERE name = ?1")?
            .query_row([name.as_str()], |_| Ok(()))
            .optional()
    };
    if exists(user)?.is_none() || exists(other)?.is_none() {
        return Ok(None);
    }
    let (low, high) = if user <= other { (user, other) } else { (other, user) };
    let pair = params![low.as_str(), high.as_str()];
    let exists = transaction
        .conn
        .prepare_cached("SELECT id FROM conversations WHERE low = ?1 AND high = ?2")?
        .query_row(pair, |row| get_uint(row, 0))
        .optional()?;
    let id = match exists {
        Some(id) => id,
        None => {
            may_enter(transaction.conn, user, bounds)?;
            transaction
                .conn
                .prepare_cached(
                    "INSERT INTO conversations (low, high, topic, server_key, members, created_ms)
                     VALUES (?1, ?2, '', ?3, 0, ?4)",
                )?
                .execute(params![low.as_str(), high.as_str(), key.0, int(transaction.now_ms)])?;
            let id = crate::row::uint(transaction.conn.last_insert_rowid());
            enter(transaction, low, id)?;
            enter(transaction, high, id)?;
            id
        }
    };
    made(transaction, user, id).map(Some)
}

pub(crate) fn mark_read(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
    n: u64,
) -> Result<(), DbError> {
    transaction
        .conn
        .prepare_cached(
            "UPDATE members SET read = min(?3, head.n)
             FROM (SELECT coalesce(max(n), 0) AS n FROM entries WHERE conversation = ?1) AS head
             WHERE conversation = ?1 AND user = ?2 AND read < min(?3, head.n)",
        )?
        .execute(params![int(id), user.as_str(), int(n)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open;

    /// SQLite's query plan.
    fn plan(conn: &Connection, sql: &str) -> String {
        let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = explain.raw_query().mapped(|row| row.get::<_, String>(3));
        steps.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
    }

    #[test]
    fn conversation__lists_and_names_use_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let conn = open::recorder(&dir.path().join("record.db"), &ServerKey([1; 32]), 1).unwrap();
        for sql in [list_sql(false), list_sql(true), named_sql()] {
            let plan = plan(&conn, &sql);
            assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
            assert!(!plan.contains("SCAN"), "{sql}: {plan}");
        }
        let counts = ["conversations WHERE made_by = ?1", "members WHERE user = ?1"];
        for sql in counts.map(|of| format!("SELECT 1 FROM {of} LIMIT ?2")) {
            let plan = plan(&conn, &sql);
            assert!(plan.contains("SEARCH") && plan.contains("INDEX"), "{sql}: {plan}");
        }
    }
}
