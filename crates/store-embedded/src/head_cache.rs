//! The heads and members of active conversations, in the recorder's memory between batches.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::Connection;
use twinlock_core::id::{ConversationId, Name};
use twinlock_store::Appended;
use twinlock_store::sequencer::ConversationHead;

use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::people::{conversations, members};

/// Approximate maximum of cached conversations and senders, some 100 bytes each. Beyond it the
/// cache is dropped. Few in unit tests, so that they drop it often.
const MAX_CACHED: usize = if cfg!(test) { 8 } else { 65_536 };

/// Cached state of active conversations, including the changes of the current batch.
#[derive(Default)]
pub(crate) struct HeadCache {
    conversations: HashMap<ConversationId, CachedConversation>,
    senders: usize,
}

/// A conversation that has had entries since the record was opened.
pub(crate) struct CachedConversation {
    pub(crate) head: ConversationHead,
    /// Numbers of users who are known to be allowed to append.
    senders: HashMap<Name, u64>,
    /// The conversation's part of a batch: the batch's number, and the part's index.
    pub(crate) part: (u64, usize),
}

impl HeadCache {
    /// Removes a user after a leaving that may have succeeded.
    pub(crate) fn forget_member(&mut self, conversation: ConversationId, user: &Name) {
        if let Some(cached) = self.conversations.get_mut(&conversation) {
            cached.senders.remove(user);
        }
    }

    /// Removes a user from all conversations, after a change that may have succeeded.
    pub(crate) fn forget_user(&mut self, user: &Name) {
        for cached in self.conversations.values_mut() {
            cached.senders.remove(user);
        }
    }

    pub(crate) fn forget_all(&mut self) {
        *self = Self::default();
    }

    /// Whether the cache should be dropped. That is possible only while no batch is prepared or in
    /// flight, because their heads are nowhere else.
    pub(crate) fn is_large(&self) -> bool {
        self.conversations.len() + self.senders > MAX_CACHED
    }

    /// The head of a conversation, with the changes of the current batch.
    pub(crate) fn head(&self, conversation: ConversationId) -> Option<ConversationHead> {
        self.conversations.get(&conversation).map(|cached| cached.head)
    }

    /// The state of a conversation, and the number of `user` (0: the server) if it may append. Loads
    /// both if necessary. Otherwise the answer to the append.
    pub(crate) fn writer(
        &mut self,
        people: &Connection,
        entries: &EntryReader<'_>,
        conversation: ConversationId,
        user: Option<&Name>,
    ) -> Result<Result<(&mut CachedConversation, u64), Appended>, DbError> {
        let cached = match self.conversations.entry(conversation) {
            Entry::Occupied(cached) => cached.into_mut(),
            Entry::Vacant(slot) => {
                let Some(key) = conversations::server_key(people, conversation)? else {
                    return Ok(Err(Appended::NotAMember));
                };
                let head = entries.verified_head(conversation)?;
                let head = head.unwrap_or_else(|| ConversationHead::empty(&key, conversation));
                let senders = HashMap::new();
                slot.insert(CachedConversation { head, senders, part: (0, 0) })
            }
        };
        let Some(name) = user else { return Ok(Ok((cached, 0))) };
        if let Some(user) = cached.senders.get(name) {
            let user = *user;
            return Ok(Ok((cached, user)));
        }
        let user = match members::writer(people, conversation, name)? {
            Ok(user) => user,
            Err(refused) => return Ok(Err(refused)),
        };
        cached.senders.insert(name.clone(), user);
        self.senders += 1;
        Ok(Ok((cached, user)))
    }
}
