//! Members of conversations and their read markers.

use rusqlite::{Connection, OptionalExtension, params};
use twinlock_core::id::{ConversationId, Name};
use twinlock_store::{Appended, Bound, Bounds, RoomKind};

use crate::error::DbError;
use crate::people::bounded::bounded;
use crate::people::changes::{Change, MemberJoined, MemberLeft};
use crate::people::conversations::server_key;
use crate::people::{Heads, WriteTransaction};
use crate::row::{get_name, get_uint, int, limit};

/// Members with names greater than `after`, in ascending order.
pub(crate) fn list(
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

pub(crate) fn is_member(
    conn: &Connection,
    conversation: ConversationId,
    user: &Name,
) -> Result<bool, DbError> {
    let mut select =
        conn.prepare_cached("SELECT 1 FROM members WHERE conversation = ?1 AND user = ?2")?;
    Ok(select.exists(params![int(conversation), user.as_str()])?)
}

/// The number of a user who may append to a conversation; otherwise the answer to the append.
pub(crate) fn writer(
    conn: &Connection,
    conversation: ConversationId,
    user: &Name,
) -> Result<Result<u64, Appended>, DbError> {
    let found = conn
        .prepare_cached(
            "SELECT users.id, conversations.kind
             FROM members JOIN users ON users.name = members.user
                 JOIN conversations ON conversations.id = members.conversation
             WHERE members.conversation = ?1 AND members.user = ?2 AND users.state = 0",
        )?
        .query_row(params![int(conversation), user.as_str()], |row| {
            Ok((get_uint(row, 0)?, row.get(1)?))
        })
        .optional()?;
    let Some((number, kind)) = found else { return Ok(Err(Appended::NotAMember)) };
    Ok(match RoomKind::from_number(kind)? {
        RoomKind::Public => Ok(number),
        RoomKind::Audit => Err(Appended::ReadOnly),
    })
}

/// Fails if the user may join no more conversations.
pub(crate) fn may_enter(conn: &Connection, user: &Name, bounds: &Bounds) -> Result<(), DbError> {
    let sql = "SELECT 1 FROM members WHERE user = ?1";
    bounded(conn, sql, [user.as_str()], Bound::Memberships, bounds.memberships)
}

/// Removes a member. The recorder accepts no more entries of it.
pub(crate) fn leave(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<(), DbError> {
    transaction.left.push((id, user.clone()));
    transaction.apply(Change::Left(MemberLeft { conversation: id, user: user.to_string() }))
}

/// Adds a member, with everything up to the head marked as read. No effect on one that is there.
pub(crate) fn enter(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
    id: ConversationId,
) -> Result<(), DbError> {
    if is_member(transaction.conn, id, user)? {
        return Ok(());
    }
    let read = head_number(transaction.conn, transaction.heads, id)?.unwrap_or_default();
    let user = user.to_string();
    transaction.apply(Change::Joined(MemberJoined { conversation: id, user, read }))
}

/// Moves a read marker forward. Not in the log: it would keep all of them.
///
/// A marker that exceeds the head after a power cut would hide the next entries. `heads` may count
/// entries of the current batch: this database is committed after they are on disk.
pub(crate) fn mark_read(
    conn: &Connection,
    heads: &dyn Heads,
    user: &Name,
    id: ConversationId,
    n: u64,
) -> Result<(), DbError> {
    let n = n.min(head_number(conn, heads, id)?.unwrap_or_default());
    conn.prepare_cached(
        "UPDATE members SET read = ?3 WHERE conversation = ?1 AND user = ?2 AND read < ?3",
    )?
    .execute(params![int(id), user.as_str(), int(n)])?;
    Ok(())
}

/// The newest number of a conversation, if the conversation exists.
fn head_number(
    conn: &Connection,
    heads: &dyn Heads,
    id: ConversationId,
) -> Result<Option<u64>, DbError> {
    let Some(key) = server_key(conn, id)? else { return Ok(None) };
    Ok(Some(heads.head(id, &key)?.0))
}
