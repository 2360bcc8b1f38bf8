//! Rooms, direct conversations, who is in them and how far they have read.

use rusqlite::{Connection, OptionalExtension, Row, params};
use twinlock_core::id::{ConversationId, Name, ServerKey};

use super::entries;
use super::recorder::Desk;
use super::row::{get_name, get_optional_name, get_uint, int, limit};
use crate::{Conversation, Form, LOBBY, StoreError};

/// What [`get`] reads; `m` is the asker's row of `members`, or nothing.
const COLUMNS: &str =
    "c.id, c.name, c.low, c.high, c.topic, c.server_key, c.members, c.created_ms, m.read
     FROM conversations c LEFT JOIN members m ON m.conversation = c.id AND m.user = ?1";

fn get(conn: &Connection, row: &Row<'_>, user: &Name) -> Result<Conversation, StoreError> {
    let id = get_uint(row, 0)?;
    let form = match (get_optional_name(row, 1)?, row.get_ref(2)?) {
        (Some(room), _) => Form::Room(room),
        (None, _) => {
            let (low, high) = (get_name(row, 2)?, get_name(row, 3)?);
            Form::Direct(if low == *user { high } else { low })
        }
    };
    let server_key = ServerKey(row.get(5)?);
    let (head, head_link) = entries::head(conn, id, &server_key)?;
    let read: Option<i64> = row.get(8)?;
    Ok(Conversation {
        id,
        form,
        topic: row.get(4)?,
        server_key,
        head,
        head_link,
        read: read.map(super::row::uint).unwrap_or_default(),
        members: row.get(6)?,
        created_ms: get_uint(row, 7)?,
        joined: read.is_some(),
    })
}

/// Those a user is in, or the rooms it is not in.
pub(super) fn list(
    conn: &Connection,
    user: &Name,
    joinable: bool,
    after: ConversationId,
    most: usize,
) -> Result<Vec<Conversation>, StoreError> {
    let which =
        if joinable { "c.name IS NOT NULL AND m.read IS NULL" } else { "m.read IS NOT NULL" };
    let sql = format!("SELECT {COLUMNS} WHERE {which} AND c.id > ?2 ORDER BY c.id LIMIT ?3");
    let mut select = conn.prepare_cached(&sql)?;
    let mut rows = select.query(params![user.as_str(), int(after), limit(most)])?;
    let mut list = Vec::new();
    while let Some(row) = rows.next()? {
        list.push(get(conn, row, user)?);
    }
    Ok(list)
}

/// One that a user is in.
pub(super) fn one(
    conn: &Connection,
    user: &Name,
    id: ConversationId,
) -> Result<Option<Conversation>, StoreError> {
    let sql = format!("SELECT {COLUMNS} WHERE m.read IS NOT NULL AND c.id = ?2");
    let mut select = conn.prepare_cached(&sql)?;
    let mut rows = select.query(params![user.as_str(), int(id)])?;
    rows.next()?.map(|row| get(conn, row, user)).transpose()
}

pub(super) fn members(
    conn: &Connection,
    id: ConversationId,
    after: Option<&Name>,
    most: usize,
) -> Result<Vec<Name>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT user FROM members WHERE conversation = ?1 AND user > ?2 ORDER BY user LIMIT ?3",
    )?;
    let after = after.map_or("", Name::as_str);
    let names = select.query_map(params![int(id), after, limit(most)], |row| get_name(row, 0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// Puts a user in. `false`: it is in it.
pub(super) fn enter(desk: &Desk<'_>, user: &Name, id: ConversationId) -> Result<bool, StoreError> {
    let entered = desk
        .conn
        .prepare_cached(
            "INSERT INTO members (conversation, user, read) VALUES (?1, ?2, 0)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![int(id), user.as_str()])?;
    if entered > 0 {
        recount(desk, id, 1)?;
    }
    Ok(entered > 0)
}

fn recount(desk: &Desk<'_>, id: ConversationId, by: i64) -> Result<(), StoreError> {
    desk.conn
        .prepare_cached("UPDATE conversations SET members = members + ?2 WHERE id = ?1")?
        .execute(params![int(id), by])?;
    Ok(())
}

/// A write inside the transaction has made it: it is there.
fn made(desk: &Desk<'_>, user: &Name, id: ConversationId) -> Result<Conversation, StoreError> {
    one(desk.conn, user, id)?
        .ok_or_else(|| StoreError::Database(format!("conversation {id} was not made")))
}

pub(super) fn create_room(
    desk: &mut Desk<'_>,
    user: &Name,
    name: &Name,
    topic: &str,
    key: &ServerKey,
) -> Result<Option<Conversation>, StoreError> {
    let id = desk
        .conn
        .prepare_cached(
            "INSERT INTO conversations (name, topic, server_key, members, created_ms)
             VALUES (?1, ?2, ?3, 0, ?4) ON CONFLICT DO NOTHING RETURNING id",
        )?
        .query_row(params![name.as_str(), topic, key.0, int(desk.now_ms)], |row| get_uint(row, 0))
        .optional()?;
    let Some(id) = id else { return Ok(None) };
    enter(desk, user, id)?;
    made(desk, user, id).map(Some)
}

pub(super) fn join_room(
    desk: &mut Desk<'_>,
    user: &Name,
    name: &Name,
) -> Result<Option<Conversation>, StoreError> {
    let id = desk
        .conn
        .prepare_cached("SELECT id FROM conversations WHERE name = ?1")?
        .query_row([name.as_str()], |row| get_uint(row, 0))
        .optional()?;
    let Some(id) = id else { return Ok(None) };
    enter(desk, user, id)?;
    made(desk, user, id).map(Some)
}

fn is_room(conn: &Connection, id: ConversationId) -> Result<bool, StoreError> {
    let room = conn
        .prepare_cached("SELECT name IS NOT NULL FROM conversations WHERE id = ?1")?
        .query_row([int(id)], |row| row.get(0))
        .optional()?;
    Ok(room.unwrap_or(false))
}

pub(super) fn leave_room(
    desk: &mut Desk<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<bool, StoreError> {
    if id == LOBBY || !is_room(desk.conn, id)? {
        return Ok(false);
    }
    let left = desk
        .conn
        .prepare_cached("DELETE FROM members WHERE conversation = ?1 AND user = ?2")?
        .execute(params![int(id), user.as_str()])?;
    desk.cache.forget_member(id, user);
    if left > 0 {
        recount(desk, id, -1)?;
    }
    Ok(left > 0)
}

pub(super) fn set_topic(
    desk: &mut Desk<'_>,
    user: &Name,
    id: ConversationId,
    topic: &str,
) -> Result<Option<Conversation>, StoreError> {
    if !is_room(desk.conn, id)? || one(desk.conn, user, id)?.is_none() {
        return Ok(None);
    }
    desk.conn
        .prepare_cached("UPDATE conversations SET topic = ?2 WHERE id = ?1")?
        .execute(params![int(id), topic])?;
    one(desk.conn, user, id)
}

pub(super) fn open_direct(
    desk: &mut Desk<'_>,
    user: &Name,
    other: &Name,
    key: &ServerKey,
) -> Result<Option<Conversation>, StoreError> {
    let exists = |name: &Name| {
        desk.conn
            .prepare_cached("SELECT 1 FROM users WHERE name = ?1")?
            .query_row([name.as_str()], |_| Ok(()))
            .optional()
    };
    if exists(user)?.is_none() || exists(other)?.is_none() {
        return Ok(None);
    }
    let (low, high) = if user <= other { (user, other) } else { (other, user) };
    let pair = params![low.as_str(), high.as_str()];
    let there = desk
        .conn
        .prepare_cached("SELECT id FROM conversations WHERE low = ?1 AND high = ?2")?
        .query_row(pair, |row| get_uint(row, 0))
        .optional()?;
    let id = match there {
        Some(id) => id,
        None => {
            desk.conn
                .prepare_cached(
                    "INSERT INTO conversations (low, high, topic, server_key, members, created_ms)
                     VALUES (?1, ?2, '', ?3, 0, ?4)",
                )?
                .execute(params![low.as_str(), high.as_str(), key.0, int(desk.now_ms)])?;
            let id = super::row::uint(desk.conn.last_insert_rowid());
            enter(desk, low, id)?;
            enter(desk, high, id)?;
            id
        }
    };
    made(desk, user, id).map(Some)
}

pub(super) fn mark_read(
    desk: &mut Desk<'_>,
    user: &Name,
    id: ConversationId,
    n: u64,
) -> Result<(), StoreError> {
    desk.conn
        .prepare_cached(
            "UPDATE members SET read = min(?3, head.n)
             FROM (SELECT coalesce(max(n), 0) AS n FROM entries WHERE conversation = ?1) AS head
             WHERE conversation = ?1 AND user = ?2 AND read < min(?3, head.n)",
        )?
        .execute(params![int(id), user.as_str(), int(n)])?;
    Ok(())
}
