//! The table of message ids: blocks of ids in order, so that a row is written for many of them.

use rusqlite::{Connection, params};
use twinlock_core::id::{ConversationId, MessageId};
use twinlock_store::StoreError;

use crate::error::DbError;
use crate::row::{get_uint, int};
use crate::tail::RecordedId;

/// Maximum number of ids in a block. A larger row would not fit into a page of its B-tree four times.
const BLOCK: usize = 28;
/// Bytes of an id: the id, its conversation, its number.
const ID: usize = 16 + 8 + 8;

/// A message id and its entry.
type Id = (MessageId, (ConversationId, u64));

/// The block of a user that an id belongs to.
struct Block {
    user: u64,
    /// Its key in the table, unless it is new.
    key: Option<MessageId>,
    ids: Vec<Id>,
    /// The first id of the next block of this user.
    next: Option<MessageId>,
    changed: bool,
}

impl Block {
    /// Loads the block of an id; an empty one if the id is smaller than all of this user.
    fn load(conn: &Connection, user: u64, id: &MessageId) -> Result<Self, DbError> {
        let next = conn
            .prepare_cached("SELECT min(first) FROM ids WHERE user = ?1 AND first > ?2")?
            .query_row(params![int(user), id.0], |row| row.get::<_, Option<[u8; 16]>>(0))?;
        let (key, ids) = match find(conn, user, id)? {
            Some((key, ids)) => (Some(key), ids),
            None => (None, Vec::new()),
        };
        Ok(Self { user, key, ids, next: next.map(MessageId), changed: false })
    }

    /// Whether an id that follows the last one in the order of the table belongs here.
    fn covers(&self, user: u64, id: &MessageId) -> bool {
        self.user == user && self.next.is_none_or(|next| *id < next)
    }

    /// Adds an id. Returns `false` if it is there.
    fn add(&mut self, conn: &Connection, id: Id) -> Result<bool, DbError> {
        let Err(at) = self.ids.binary_search_by_key(&id.0, |known| known.0) else {
            return Ok(false);
        };
        self.ids.insert(at, id);
        self.changed = true;
        if self.ids.len() <= BLOCK {
            return Ok(true);
        }
        // Ids mostly ascend: then a block is full when the next one begins.
        let split = if at == BLOCK { BLOCK } else { BLOCK / 2 };
        let after = self.ids.split_off(split);
        // The next id follows this one, so the part with this one stays.
        if at < split {
            self.next = after.first().map(|id| id.0);
            Self { key: None, ids: after, next: None, ..*self }.write(conn)?;
        } else {
            let (key, before) = (self.key.take(), std::mem::replace(&mut self.ids, after));
            Self { key, ids: before, next: None, ..*self }.write(conn)?;
        }
        Ok(true)
    }

    fn write(&self, conn: &Connection) -> Result<(), DbError> {
        let Some((first, _)) = self.ids.first().filter(|_| self.changed) else { return Ok(()) };
        let mut bytes = Vec::with_capacity(self.ids.len() * ID);
        for (id, (conversation, n)) in &self.ids {
            bytes.extend(id.0);
            bytes.extend(conversation.to_be_bytes());
            bytes.extend(n.to_be_bytes());
        }
        match self.key {
            Some(key) => conn
                .prepare_cached("UPDATE ids SET ids = ?3 WHERE user = ?1 AND first = ?2")?
                .execute(params![int(self.user), key.0, bytes])?,
            None => conn
                .prepare_cached("INSERT INTO ids (user, first, ids) VALUES (?1, ?2, ?3)")?
                .execute(params![int(self.user), first.0, bytes])?,
        };
        Ok(())
    }
}

/// The block with the greatest first id that is not greater than `id`.
fn find(
    conn: &Connection,
    user: u64,
    id: &MessageId,
) -> Result<Option<(MessageId, Vec<Id>)>, DbError> {
    let mut select = conn.prepare_cached(
        "SELECT first, ids FROM ids WHERE user = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1",
    )?;
    let mut rows = select.query(params![int(user), id.0])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let first = MessageId(row.get(0)?);
    let bytes = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
    let (ids, rest) = bytes.as_chunks::<ID>();
    let ids: Vec<Id> = ids.iter().map(decode).collect();
    if rest.is_empty() && ids.first().is_some_and(|id| id.0 == first) {
        return Ok(Some((first, ids)));
    }
    Err(StoreError::Damaged(format!("ids: a block of user {user} has not the ids of its key"))
        .into())
}

fn decode(bytes: &[u8; ID]) -> Id {
    let (id, place) = bytes.split_at(16);
    let (conversation, n) = place.split_at(8);
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap_or_default());
    (MessageId(id.try_into().unwrap_or_default()), (number(conversation), number(n)))
}

/// Adds ids, and returns the greatest one of each user. One that is there keeps its entry.
pub(super) fn add(
    conn: &Connection,
    mut ids: Vec<RecordedId>,
) -> Result<Vec<(u64, MessageId)>, DbError> {
    // In the order of the B-tree, so that a block is changed once. The first of equal ones stays.
    ids.sort_by_key(|id| (id.user, id.message_id));
    let users = ids.chunk_by(|a, b| a.user == b.user);
    let greatest = users.filter_map(|ids| ids.last().map(|id| (id.user, id.message_id))).collect();
    let mut block: Option<Block> = None;
    for RecordedId { user, message_id, conversation, n } in ids {
        let at = match block.take() {
            Some(at) if at.covers(user, &message_id) => at,
            at => {
                at.map_or(Ok(()), |at| at.write(conn))?;
                Block::load(conn, user, &message_id)?
            }
        };
        let at = block.insert(at);
        if !at.add(conn, (message_id, (conversation, n)))? {
            // The log is the truth, so the index has to take it.
            tracing::error!(conversation, n, "the record has this message twice");
        }
    }
    block.map_or(Ok(()), |at| at.write(conn))?;
    Ok(greatest)
}

/// The entry with this id of this user.
pub(super) fn get(
    conn: &Connection,
    user: u64,
    id: &MessageId,
) -> Result<Option<(ConversationId, u64)>, DbError> {
    let Some((_, ids)) = find(conn, user, id)? else { return Ok(None) };
    let at = ids.binary_search_by_key(id, |known| known.0).ok();
    Ok(at.and_then(|at| ids.get(at)).map(|id| id.1))
}

/// The greatest id of this user.
pub(super) fn greatest(conn: &Connection, user: u64) -> Result<Option<MessageId>, DbError> {
    let last = find(conn, user, &MessageId([0xFF; 16]))?;
    Ok(last.and_then(|(_, ids)| ids.last().map(|id| id.0)))
}

/// The number of ids of all users.
pub(super) fn count(conn: &Connection) -> Result<u64, DbError> {
    let sql = "SELECT coalesce(sum(length(ids)), 0) FROM ids";
    Ok(conn.query_row(sql, [], |row| get_uint(row, 0))? / ID as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::index::IndexWriter;

    fn id(n: u64) -> MessageId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        MessageId(id)
    }

    /// Ids as several connections of a user make them, random ones, descending ones, repeated ones.
    #[test]
    fn ids__blocks_answer_as_a_map_of_all_ids() {
        let dir = tempfile::tempdir().unwrap();
        let index = IndexWriter::open(dir.path(), [1; 16]).unwrap();
        let conn = index.conn();
        let mut random = twinlock_testing::Rng::from_env();
        let mut below = |end| random.within(0, end);
        let mut known = BTreeMap::new();
        for step in 0..200 {
            let mut ids = Vec::new();
            for n in 0..1 + below(90) {
                let number = match step % 4 {
                    0 => 1_000_000 + step * 100 + below(150),
                    1 => below(2_000_000),
                    2 => 900_000 - step * 100 - n,
                    _ => 3_000_000 + step * 100 + n,
                };
                let (user, n) = (below(3), step * 1000 + n);
                ids.push(RecordedId { user, message_id: id(number), conversation: step, n });
                known.entry((user, number)).or_insert((step, n));
            }
            add(conn, ids).unwrap();
            for _ in 0..50 {
                let (user, number) = (below(3), below(3_100_000));
                let expected = known.get(&(user, number)).copied();
                assert_eq!(get(conn, user, &id(number)).unwrap(), expected);
            }
        }
        assert_eq!(count(conn).unwrap(), known.len() as u64);
        for ((user, number), place) in &known {
            assert_eq!(get(conn, *user, &id(*number)).unwrap(), Some(*place), "{user} {number}");
        }
        for user in 0..4 {
            let greatest = known.range((user, 0)..(user + 1, 0)).next_back();
            let greatest = greatest.map(|((_, number), _)| id(*number));
            assert_eq!(super::greatest(conn, user).unwrap(), greatest);
        }
    }

    #[test]
    fn ids__ascending_ones_fill_their_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let index = IndexWriter::open(dir.path(), [1; 16]).unwrap();
        for step in 0..100 {
            let at = |n| RecordedId { user: 7, message_id: id(n), conversation: 1, n };
            add(index.conn(), (0..10).map(|n| at(step * 10 + n)).collect()).unwrap();
        }
        let rows = |sql| index.conn().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(rows("SELECT count(*) FROM ids"), 1000_u64.div_ceil(BLOCK as u64) as i64);
        assert_eq!(rows("SELECT max(length(ids)) FROM ids"), (BLOCK * ID) as i64);
    }

    #[test]
    fn ids__damaged_block_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let index = IndexWriter::open(dir.path(), [1; 16]).unwrap();
        let one = RecordedId { user: 7, message_id: id(5), conversation: 1, n: 1 };
        for change in ["substr(ids, 2)", "x''", "CAST(ids || x'00' AS BLOB)", "zeroblob(32)"] {
            add(index.conn(), vec![one]).unwrap();
            index.conn().execute(&format!("UPDATE ids SET ids = {change}"), []).unwrap();
            let damaged = get(index.conn(), 7, &id(9)).unwrap_err();
            assert!(matches!(damaged.0, StoreError::Damaged(_)), "{damaged}");
            assert!(add(index.conn(), vec![one]).is_err());
            index.conn().execute("DELETE FROM ids", []).unwrap();
        }
    }
}
