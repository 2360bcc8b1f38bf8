//! Rooms and direct conversations.
//!
//! Heads are not in this database. A function that needs both reads this database first: a read
//! marker never exceeds a head that was read later.

use rusqlite::{Connection, OptionalExtension, Row, params};
use twinlock_core::id::{ConversationId, Name, ServerKey};
use twinlock_store::{
    AUDIT, Bound, Bounds, ConversationForm, Joined, LOBBY, OWN_COUNTED, RoomKind, StoreError,
    StoredConversation,
};

use crate::error::DbError;
use crate::people::bounded::bounded;
use crate::people::changes::{Change, ConversationImage};
use crate::people::credentials::is_active;
use crate::people::members::{enter, is_member, leave, may_enter};
use crate::people::{Heads, WriteTransaction, credentials};
use crate::row::{get_name, get_optional_name, get_uint, int, limit};

/// Columns that [`get`] reads, followed by the user's read marker; NULL: not a member.
const COLUMNS: &str =
    "c.id, c.name, c.low, c.high, c.topic, c.server_key, c.members, c.created_ms, c.kind";
/// A user's conversations, by ascending id.
const OWN: &str = "FROM members m CROSS JOIN conversations c ON c.id = m.conversation
     WHERE m.user = ?1 AND m.conversation > ?2 ORDER BY m.conversation LIMIT ?3";
/// Public rooms that a user is not a member of. Skips at most as many rows as the user has
/// memberships, and the audit.
const JOINABLE: &str = "FROM conversations c INDEXED BY rooms
     WHERE c.name IS NOT NULL AND c.kind = 0 AND c.id > ?2 AND NOT EXISTS
         (SELECT 1 FROM members m WHERE m.conversation = c.id AND m.user = ?1)
     ORDER BY c.id LIMIT ?3";
/// One of a user's conversations.
const ONE: &str = "FROM conversations c JOIN members m ON m.conversation = c.id AND m.user = ?1";

fn get(heads: &dyn Heads, row: &Row<'_>, user: &Name) -> Result<StoredConversation, DbError> {
    let id = get_uint(row, 0)?;
    let form = match (get_optional_name(row, 1)?, row.get_ref(2)?) {
        (Some(room), _) => ConversationForm::Room(room),
        (None, _) => {
            let (low, high) = (get_name(row, 2)?, get_name(row, 3)?);
            ConversationForm::Direct(if low == *user { high } else { low })
        }
    };
    let server_key = ServerKey(row.get(5)?);
    let (head, head_link) = heads.head(id, &server_key)?;
    let marker: Option<i64> = row.get(9)?;
    let read = marker.map(crate::row::uint).unwrap_or_default();
    Ok(StoredConversation {
        id,
        form,
        kind: RoomKind::from_number(row.get(8)?)?,
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
    heads: &dyn Heads,
    user: &Name,
    joinable: bool,
    after: ConversationId,
    max: usize,
) -> Result<Vec<StoredConversation>, DbError> {
    let mut select = conn.prepare_cached(&list_sql(joinable))?;
    let mut rows = select.query(params![user.as_str(), int(after), limit(max)])?;
    let mut list = Vec::new();
    while let Some(row) = rows.next()? {
        let mut one = get(heads, row, user)?;
        if one.joined {
            let after = one.read.max(one.head.saturating_sub(OWN_COUNTED));
            one.own = heads.own_after(one.id, user, after, one.head)?;
        }
        list.push(one);
    }
    Ok(list)
}

/// A conversation, if the user is a member.
pub(crate) fn one(
    conn: &Connection,
    heads: &dyn Heads,
    user: &Name,
    id: ConversationId,
) -> Result<Option<StoredConversation>, DbError> {
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS}, m.read {ONE} WHERE c.id = ?2"))?;
    let mut rows = select.query(params![user.as_str(), int(id)])?;
    rows.next()?.map(|row| get(heads, row, user)).transpose()
}

fn named_sql() -> String {
    format!("SELECT {COLUMNS}, m.read {ONE} WHERE c.name = ?2")
}

/// The room of this name, if the user is a member.
pub(crate) fn named(
    conn: &Connection,
    heads: &dyn Heads,
    user: &Name,
    room: &Name,
) -> Result<Option<StoredConversation>, DbError> {
    let mut select = conn.prepare_cached(&named_sql())?;
    let mut rows = select.query(params![user.as_str(), room.as_str()])?;
    rows.next()?.map(|row| get(heads, row, user)).transpose()
}

/// The server key that a conversation's `link_0` covers, if the conversation exists.
pub(crate) fn server_key(
    conn: &Connection,
    conversation: ConversationId,
) -> Result<Option<ServerKey>, DbError> {
    let key = conn
        .prepare_cached("SELECT server_key FROM conversations WHERE id = ?1")?
        .query_row([int(conversation)], |row| row.get(0).map(ServerKey))
        .optional()?;
    Ok(key)
}

/// The lobby of a new record.
pub(crate) fn lobby_change(server_key: &ServerKey, now_ms: u64) -> Change {
    Change::Conversation(ConversationImage {
        id: LOBBY,
        name: Some("lobby".to_owned()),
        low: None,
        high: None,
        topic: String::new(),
        server_key: server_key.0.to_vec(),
        created_ms: now_ms,
        made_by: None,
        kind: RoomKind::Public.number().into(),
    })
}

/// The key of the server that created the lobby and so the record, if the lobby exists.
pub(crate) fn lobby_key(conn: &Connection) -> Result<Option<ServerKey>, DbError> {
    server_key(conn, LOBBY)
}

/// The id of the next conversation. None is ever deleted.
pub(crate) fn next_id(conn: &Connection) -> Result<ConversationId, DbError> {
    let mut select = conn.prepare_cached("SELECT coalesce(max(id), 0) + 1 FROM conversations")?;
    Ok(select.query_row([], |row| get_uint(row, 0))?)
}

/// The id of a room.
pub(crate) fn room_id(conn: &Connection, name: &Name) -> Result<Option<ConversationId>, DbError> {
    let id = conn
        .prepare_cached("SELECT id FROM conversations WHERE name = ?1")?
        .query_row([name.as_str()], |row| get_uint(row, 0))
        .optional()?;
    Ok(id)
}

/// The image of a room that its members change; `None`: no such conversation, or it is the audit or
/// direct.
fn room_image(conn: &Connection, id: ConversationId) -> Result<Option<ConversationImage>, DbError> {
    let image = conn
        .prepare_cached(
            "SELECT id, name, topic, server_key, created_ms, made_by, kind FROM conversations
             WHERE id = ?1 AND name IS NOT NULL AND kind <> 3",
        )?
        .query_row([int(id)], |row| {
            Ok(ConversationImage {
                id: get_uint(row, 0)?,
                name: row.get(1)?,
                low: None,
                high: None,
                topic: row.get(2)?,
                server_key: row.get(3)?,
                created_ms: get_uint(row, 4)?,
                made_by: row.get(5)?,
                kind: row.get(6)?,
            })
        })
        .optional()?;
    Ok(image)
}

/// Reads a conversation that must exist after a write of this transaction.
fn made(
    transaction: &WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<StoredConversation, DbError> {
    one(transaction.conn, transaction.heads, user, id)?
        .ok_or_else(|| StoreError::Database(format!("conversation {id} was not made")).into())
}

pub(crate) fn create_room(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    name: &Name,
    topic: &str,
    key: &ServerKey,
    bounds: &Bounds,
) -> Result<Option<StoredConversation>, DbError> {
    let conn = transaction.conn;
    if name.as_str() == AUDIT || room_id(conn, name)?.is_some() || !is_active(conn, user)? {
        return Ok(None);
    }
    let sql = "SELECT 1 FROM conversations WHERE made_by = ?1";
    bounded(transaction.conn, sql, [user.as_str()], Bound::Rooms, bounds.rooms)?;
    may_enter(transaction.conn, user, bounds)?;
    let id = next_id(transaction.conn)?;
    transaction.apply(Change::Conversation(ConversationImage {
        id,
        name: Some(name.to_string()),
        low: None,
        high: None,
        topic: topic.to_owned(),
        server_key: key.0.to_vec(),
        created_ms: transaction.now_ms,
        made_by: Some(user.to_string()),
        kind: RoomKind::Public.number().into(),
    }))?;
    enter(transaction, user, id)?;
    made(transaction, user, id).map(Some)
}

pub(crate) fn join_room(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    name: &Name,
    bounds: &Bounds,
) -> Result<Option<Joined>, DbError> {
    let Some(id) = room_id(transaction.conn, name)? else { return Ok(None) };
    if let Some(conversation) = one(transaction.conn, transaction.heads, user, id)? {
        return Ok(Some(Joined { conversation, new: false }));
    }
    if room_image(transaction.conn, id)?.is_none() || !is_active(transaction.conn, user)? {
        return Ok(None);
    }
    may_enter(transaction.conn, user, bounds)?;
    enter(transaction, user, id)?;
    Ok(Some(Joined { conversation: made(transaction, user, id)?, new: true }))
}

pub(crate) fn leave_room(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<bool, DbError> {
    let conn = transaction.conn;
    if id == LOBBY || room_image(conn, id)?.is_none() || !is_member(conn, id, user)? {
        return Ok(false);
    }
    leave(transaction, user, id)?;
    Ok(true)
}

pub(crate) fn set_topic(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
    topic: &str,
) -> Result<Option<StoredConversation>, DbError> {
    let Some(image) = room_image(transaction.conn, id)? else { return Ok(None) };
    if !is_member(transaction.conn, id, user)? || !is_active(transaction.conn, user)? {
        return Ok(None);
    }
    let topic = topic.to_owned();
    transaction.apply(Change::Conversation(ConversationImage { topic, ..image }))?;
    one(transaction.conn, transaction.heads, user, id)
}

pub(crate) fn open_direct(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    other: &Name,
    key: &ServerKey,
    bounds: &Bounds,
) -> Result<Option<StoredConversation>, DbError> {
    let conn = transaction.conn;
    if !is_active(conn, user)? {
        return Ok(None);
    }
    let (low, high) = if user <= other { (user, other) } else { (other, user) };
    let pair = params![low.as_str(), high.as_str()];
    let exists = conn
        .prepare_cached("SELECT id FROM conversations WHERE low = ?1 AND high = ?2")?
        .query_row(pair, |row| get_uint(row, 0))
        .optional()?;
    let id = match exists {
        Some(id) => id,
        None if !credentials::is_there(conn, other)? => return Ok(None),
        None => {
            may_enter(conn, user, bounds)?;
            let id = next_id(conn)?;
            transaction.apply(Change::Conversation(ConversationImage {
                id,
                name: None,
                low: Some(low.to_string()),
                high: Some(high.to_string()),
                topic: String::new(),
                server_key: key.0.to_vec(),
                created_ms: transaction.now_ms,
                made_by: None,
                kind: RoomKind::Public.number().into(),
            }))?;
            enter(transaction, low, id)?;
            enter(transaction, high, id)?;
            id
        }
    };
    made(transaction, user, id).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::people::test_database;

    /// SQLite's query plan.
    fn plan(conn: &Connection, sql: &str) -> String {
        let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = explain.raw_query().mapped(|row| row.get::<_, String>(3));
        steps.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
    }

    #[test]
    fn conversation__lists_and_names_use_an_index() {
        let conn = test_database::empty();
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
