//! The heads and members of active conversations, in memory between transactions.
//!
//! This is possible because the recorder is the only writer. So an entry costs one INSERT.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};
use twinlock_core::id::{ConversationId, Link, Name, ServerKey};
use twinlock_store::sequencer::ConversationHead;

use crate::error::DbError;
use crate::row::{get_uint, int};

/// Approximate maximum of cached conversations and senders, some 100 bytes each. Beyond it the
/// cache is dropped.
const MAX_CACHED: usize = 65_536;

/// Cached state of active conversations, including the changes of the current transaction.
#[derive(Default)]
pub(crate) struct HeadCache {
    conversations: HashMap<ConversationId, CachedConversation>,
    senders: usize,
}

/// A conversation that has had entries since the record was opened.
pub(crate) struct CachedConversation {
    pub(crate) head: ConversationHead,
    /// Row ids of users who are known to be members.
    senders: HashMap<Name, i64>,
    /// The current list of published entries: number of its transaction, and index in `published`.
    pub(crate) slot: (u64, usize),
}

impl HeadCache {
    /// Removes a user who has left or may have left.
    pub(crate) fn forget_member(&mut self, conversation: ConversationId, user: &Name) {
        if let Some(cached) = self.conversations.get_mut(&conversation) {
            cached.senders.remove(user);
        }
    }

    pub(crate) fn forget_all(&mut self) {
        *self = Self::default();
    }

    /// Call this between transactions.
    pub(crate) fn stay_small(&mut self) {
        if self.conversations.len() + self.senders > MAX_CACHED {
            self.forget_all();
        }
    }

    /// The state of a conversation, and the row id of `user` (0: no user) if it is a member. Loads
    /// both if necessary. `None`: the conversation does not exist, or `user` is not a member.
    pub(crate) fn member(
        &mut self,
        conn: &Connection,
        conversation: ConversationId,
        user: Option<&Name>,
    ) -> Result<Option<(&mut CachedConversation, i64)>, DbError> {
        let Some(cached) = load(conn, &mut self.conversations, conversation)? else {
            return Ok(None);
        };
        let Some(name) = user else { return Ok(Some((cached, 0))) };
        if let Some(user) = cached.senders.get(name) {
            let user = *user;
            return Ok(Some((cached, user)));
        }
        let Some(user) = member(conn, conversation, name)? else { return Ok(None) };
        cached.senders.insert(name.clone(), user);
        self.senders += 1;
        Ok(Some((cached, user)))
    }
}

/// The cached state of a conversation, loaded if necessary.
fn load<'l>(
    conn: &Connection,
    conversations: &'l mut HashMap<ConversationId, CachedConversation>,
    conversation: ConversationId,
) -> Result<Option<&'l mut CachedConversation>, DbError> {
    use std::collections::hash_map::Entry;
    match conversations.entry(conversation) {
        Entry::Occupied(cached) => Ok(Some(cached.into_mut())),
        Entry::Vacant(slot) => {
            let Some(key) = server_key(conn, conversation)? else { return Ok(None) };
            let newest = conn
                .prepare_cached(
                    "SELECT n, time_ms, link FROM entries WHERE conversation = ?1
                     ORDER BY n DESC LIMIT 1",
                )?
                .query_row([int(conversation)], |row| {
                    let (n, time_ms) = (get_uint(row, 0)?, get_uint(row, 1)?);
                    Ok(ConversationHead { n, time_ms, link: Link(row.get(2)?) })
                })
                .optional()?;
            let head = newest.unwrap_or_else(|| ConversationHead::empty(&key, conversation));
            let senders = HashMap::new();
            Ok(Some(slot.insert(CachedConversation { head, senders, slot: (0, 0) })))
        }
    }
}

/// The row id of a member.
fn member(
    conn: &Connection,
    conversation: ConversationId,
    user: &Name,
) -> Result<Option<i64>, DbError> {
    let id = conn
        .prepare_cached(
            "SELECT users.id FROM members JOIN users ON users.name = members.user
             WHERE members.conversation = ?1 AND members.user = ?2",
        )?
        .query_row(params![int(conversation), user.as_str()], |row| row.get(0))
        .optional()?;
    Ok(id)
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
