//! Applies changes to `people.db`: the only code that writes the tables that the log covers.
//!
//! A write applies its changes before they are in the log, a start replays them from it, and both
//! must give the same tables. So this reads nothing but the change and the tables, and a change that
//! is applied again has no effect.

use rusqlite::{Connection, ErrorCode, params};
use twinlock_store::StoreError;

use crate::error::DbError;
use crate::people::changes::{
    Change, ClassicKeyImage, ConversationImage, CredentialImage, MemberJoined, MemberLeft,
    PersonImage,
};
use crate::row::int;

/// First byte of a device's `cid`.
const DEVICE: u8 = 2;

/// Applies one change. The caller has an open transaction, and rolls it back after an error.
///
/// # Errors
/// [`StoreError::Damaged`] if the change contradicts the tables, which are then of another log.
pub(crate) fn apply(conn: &Connection, change: &Change) -> Result<(), DbError> {
    let applied = match change {
        Change::Person(image) => person(conn, image),
        Change::Credential(image) => credential(conn, image),
        Change::Conversation(image) => conversation(conn, image),
        Change::Joined(image) => joined(conn, image),
        Change::Left(image) => left(conn, image),
        Change::ClassicKey(image) => classic_key(conn, image),
    };
    match applied {
        Ok(true) => Ok(()),
        Ok(false) => Err(contradiction("a user's number has another name")),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Err(contradiction(&error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn contradiction(problem: &str) -> DbError {
    StoreError::Damaged(format!("a change in the log does not fit people.db: {problem}")).into()
}

/// `false`: the number is that of another user.
///
/// The name is not among the updated columns: SQLite would look for rows that refer to it.
fn person(conn: &Connection, image: &PersonImage) -> rusqlite::Result<bool> {
    let PersonImage { id, name, role, password, created_ms, mac, state } = image;
    let written = conn
        .prepare_cached(
            "INSERT INTO users (id, name, role, password, created_ms, mac, state)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET role = ?3, password = ?4, created_ms = ?5, mac = ?6,
                 state = ?7
             WHERE name = ?2",
        )?
        .execute(params![int(*id), name, role, password, int(*created_ms), mac, state])?;
    Ok(written > 0)
}

/// Keeps the time of a device's last login, which is not in the log. It begins with the enrolment.
fn credential(conn: &Connection, image: &CredentialImage) -> rusqlite::Result<bool> {
    let CredentialImage {
        cid,
        user,
        record,
        label,
        created_ms,
        role,
        expires_ms,
        made_by,
        state,
        used_by,
        mac,
    } = image;
    let seen_ms = if cid.first() == Some(&DEVICE) { *created_ms } else { 0 };
    conn.prepare_cached(
        "INSERT INTO credentials (cid, user, record, label, created_ms, role, expires_ms,
             made_by, state, used_by, mac, seen_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT (cid) DO UPDATE SET user = ?2, record = ?3, label = ?4, created_ms = ?5,
             role = ?6, expires_ms = ?7, made_by = ?8, state = ?9, used_by = ?10, mac = ?11",
    )?
    .execute(params![
        cid,
        user,
        record,
        label,
        int(*created_ms),
        role,
        int(*expires_ms),
        made_by,
        state,
        used_by,
        mac,
        int(seen_ms),
    ])?;
    Ok(true)
}

/// Keeps the number of members.
fn conversation(conn: &Connection, image: &ConversationImage) -> rusqlite::Result<bool> {
    let ConversationImage { id, name, low, high, topic, server_key, created_ms, made_by, kind } =
        image;
    conn.prepare_cached(
        "INSERT INTO conversations (id, name, low, high, topic, server_key, created_ms, made_by,
             kind, members)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0)
         ON CONFLICT (id) DO UPDATE SET name = ?2, low = ?3, high = ?4, topic = ?5,
             server_key = ?6, created_ms = ?7, made_by = ?8, kind = ?9",
    )?
    .execute(params![
        int(*id),
        name,
        low,
        high,
        topic,
        server_key,
        int(*created_ms),
        made_by,
        kind
    ])?;
    Ok(true)
}

/// Keeps the read marker of an existing member.
fn joined(conn: &Connection, image: &MemberJoined) -> rusqlite::Result<bool> {
    let MemberJoined { conversation, user, read } = image;
    let joined = conn
        .prepare_cached(
            "INSERT INTO members (conversation, user, read) VALUES (?1, ?2, ?3)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![int(*conversation), user, int(*read)])?;
    if joined > 0 { recount(conn, *conversation, 1) } else { Ok(true) }
}

fn left(conn: &Connection, image: &MemberLeft) -> rusqlite::Result<bool> {
    let MemberLeft { conversation, user } = image;
    let left = conn
        .prepare_cached("DELETE FROM members WHERE conversation = ?1 AND user = ?2")?
        .execute(params![int(*conversation), user])?;
    if left > 0 { recount(conn, *conversation, -1) } else { Ok(true) }
}

fn recount(conn: &Connection, conversation: u64, by: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached("UPDATE conversations SET members = members + ?2 WHERE id = ?1")?
        .execute(params![int(conversation), by])?;
    Ok(true)
}

fn classic_key(conn: &Connection, image: &ClassicKeyImage) -> rusqlite::Result<bool> {
    let ClassicKeyImage { name, user, conversation, form, salt, sealed, created_ms, state, mac } =
        image;
    conn.prepare_cached(
        "INSERT OR REPLACE INTO classic_keys
             (name, user, conversation, form, salt, sealed, created_ms, state, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        name,
        user,
        int(*conversation),
        form,
        salt,
        sealed,
        int(*created_ms),
        state,
        mac
    ])?;
    Ok(true)
}
