//! The sequencer: assigns number, time and link to entries and inserts them. The hot path.
//!
//! The cache holds what each row needs: a conversation's newest number, time and link, and its
//! senders. So an entry costs one INSERT. Duplicates are detected by the unique index on the
//! message id, and only a conflict requires a look-up.

use std::collections::HashMap;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Statement, params};
use twinlock_core::chain::{self, Linked};
use twinlock_core::id::{Commit, ConversationId, Link, Name, Salt, Sender, ServerKey};

use crate::error::DbError;
use crate::row::{get_uint, int};
use crate::{classic, files};
use twinlock_store::{Appended, Content, Entry, FileRef, NewEntry, Published, Receipt, StoreError};

/// Approximate maximum of cached conversations and senders, some 100 bytes each. Beyond it the
/// cache is dropped.
const REMEMBERED: usize = 65_536;

/// An entry with everything that does not depend on its position. The caller prepares it, so that
/// the recorder does not hash bodies.
pub(crate) struct Ready {
    pub(crate) new: NewEntry,
    /// The sender in the encoding of protocol section 7.
    pub(crate) sender: Bytes,
    pub(crate) salt: Salt,
    pub(crate) commit: Commit,
    /// The content that a file entry refers to.
    pub(crate) file: Option<FileRef>,
}

/// Cached state of active conversations, including the changes of the current transaction.
#[derive(Default)]
pub(crate) struct Cache {
    conversations: HashMap<ConversationId, Line>,
    senders: usize,
}

struct Line {
    head: u64,
    time_ms: u64,
    link: Link,
    /// Row ids of users who are known to be members.
    senders: HashMap<Name, i64>,
    /// The current list of published entries: number of its transaction, and index in `published`.
    slot: (u64, usize),
}

impl Cache {
    /// Removes a user who has left or may have left.
    pub(crate) fn forget_member(&mut self, conversation: ConversationId, user: &Name) {
        if let Some(line) = self.conversations.get_mut(&conversation) {
            line.senders.remove(user);
        }
    }

    pub(crate) fn forget_all(&mut self) {
        *self = Self::default();
    }

    /// Call this between transactions.
    pub(crate) fn stay_small(&mut self) {
        if self.conversations.len() + self.senders > REMEMBERED {
            self.forget_all();
        }
    }
}

/// The prepared statements, and the entries of the current transaction.
pub(crate) struct Placer<'c> {
    conn: &'c Connection,
    begin: Statement<'c>,
    commit: Statement<'c>,
    insert: Statement<'c>,
    transaction: u64,
    placed: usize,
    placed_bytes: usize,
    telling: bool,
    published: Vec<Published>,
}

impl<'c> Placer<'c> {
    pub(crate) fn new(conn: &'c Connection) -> rusqlite::Result<Self> {
        let insert = conn.prepare(
            "INSERT INTO entries
                (conversation, n, time_ms, user, message_id, kind, sender, link, salt, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (message_id, user) DO NOTHING",
        )?;
        Ok(Self {
            conn,
            begin: conn.prepare("BEGIN IMMEDIATE")?,
            commit: conn.prepare("COMMIT")?,
            insert,
            transaction: 0,
            placed: 0,
            placed_bytes: 0,
            telling: false,
            published: Vec::new(),
        })
    }

    /// Resets the counts; `telling`: keep the entries for the watchers.
    pub(crate) fn begin(&mut self, telling: bool) {
        self.transaction += 1;
        (self.placed, self.placed_bytes) = (0, 0);
        self.telling = telling;
        self.published.clear();
    }

    pub(crate) fn begin_transaction(&mut self) -> Result<(), StoreError> {
        self.begin.execute([]).map_err(DbError::from)?;
        Ok(())
    }

    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        self.commit.execute([]).map_err(DbError::from)?;
        Ok(())
    }

    /// Rolls back, unless SQLite has done so already.
    pub(crate) fn roll_back(&mut self) {
        self.published.clear();
        if !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a failed transaction could not be rolled back");
        }
    }

    /// Number of entries that the transaction has recorded.
    pub(crate) fn placed(&self) -> usize {
        self.placed
    }

    /// Size of their bodies, bytes.
    pub(crate) fn placed_bytes(&self) -> usize {
        self.placed_bytes
    }

    pub(crate) fn take_published(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.published)
    }

    /// Records entries in order.
    ///
    /// # Errors
    /// The whole transaction is lost.
    pub(crate) fn place(
        &mut self,
        cache: &mut Cache,
        entries: Vec<Ready>,
        now_ms: u64,
    ) -> Result<Vec<Appended>, StoreError> {
        let placed = entries.into_iter().map(|entry| self.place_one(cache, entry, now_ms));
        Ok(placed.collect::<Result<_, DbError>>()?)
    }

    fn place_one(
        &mut self,
        cache: &mut Cache,
        ready: Ready,
        now_ms: u64,
    ) -> Result<Appended, DbError> {
        let conversation = ready.new.conversation;
        let Some(line) = line(self.conn, &mut cache.conversations, conversation)? else {
            return self.recorded_elsewhere(&ready.new);
        };
        let user = match ready.new.sender.user() {
            None => 0,
            Some(name) => match line.senders.get(name) {
                Some(user) => *user,
                None => match member(self.conn, conversation, name)? {
                    None => return self.recorded_elsewhere(&ready.new),
                    Some(user) => {
                        line.senders.insert(name.clone(), user);
                        cache.senders += 1;
                        user
                    }
                },
            },
        };
        // A revocation applies from its commit on, also to entries that were in the queue.
        if let Sender::Classic(name, key) = &ready.new.sender
            && !classic::may_append(self.conn, key, name, conversation)?
        {
            return self.recorded_elsewhere(&ready.new);
        }
        let n = line.head + 1;
        let time_ms = now_ms.max(line.time_ms);
        let NewEntry { message_id, kind, body, .. } = ready.new;
        let linked = Linked {
            conversation,
            n,
            time_ms,
            message_id: &message_id,
            kind,
            sender: &ready.sender,
            commit: &ready.commit,
        };
        let link = linked.link(&line.link).ok_or_else(|| {
            // `Sender` has at most 65 bytes.
            DbError(StoreError::Database("a sender is too long".into()))
        })?;
        let inserted = self.insert.execute(params![
            int(conversation),
            int(n),
            int(time_ms),
            user,
            message_id.0.as_slice(),
            kind.0,
            ready.sender.as_ref(),
            link.0.as_slice(),
            ready.salt.0.as_slice(),
            body.as_ref(),
        ])?;
        if inserted == 0 {
            let first = first_place(self.conn, &message_id.0, user)?;
            let first = first.ok_or_else(|| {
                StoreError::Damaged(
                    "the index of message ids names an entry that is not there".into(),
                )
            })?;
            return Ok(Appended::Recorded(first));
        }
        if let Some(file) = &ready.file {
            files::insert(self.conn, conversation, n, user, file)?;
        }
        (line.head, line.time_ms, line.link) = (n, time_ms, link);
        self.placed += 1;
        self.placed_bytes += body.len();
        if self.telling {
            if line.slot.0 != self.transaction {
                line.slot = (self.transaction, self.published.len());
                self.published.push(Published { conversation, head: n, entries: Vec::new() });
            }
            if let Some(published) = self.published.get_mut(line.slot.1) {
                published.head = n;
                published.entries.push(Entry {
                    n,
                    time_ms,
                    message_id,
                    kind,
                    sender: ready.sender,
                    content: Content::Body(ready.salt, body),
                    link,
                });
            }
        }
        Ok(Appended::Recorded(Receipt { conversation, n, time_ms, salt: Some(ready.salt), link }))
    }

    /// Returns the receipt if the message was recorded before.
    ///
    /// A sender who is not a member, or no longer, still gets the receipt of such a message.
    fn recorded_elsewhere(&self, new: &NewEntry) -> Result<Appended, DbError> {
        let user = match new.sender.user() {
            None => Some(0),
            Some(name) => self
                .conn
                .prepare_cached("SELECT id FROM users WHERE name = ?1")?
                .query_row([name.as_str()], |row| row.get(0))
                .optional()?,
        };
        let first = match user {
            Some(user) => first_place(self.conn, &new.message_id.0, user)?,
            None => None,
        };
        Ok(first.map_or(Appended::NotAMember, Appended::Recorded))
    }
}

/// The cached state of a conversation, loaded if necessary.
fn line<'l>(
    conn: &Connection,
    conversations: &'l mut HashMap<ConversationId, Line>,
    conversation: ConversationId,
) -> Result<Option<&'l mut Line>, DbError> {
    use std::collections::hash_map::Entry as Slot;
    match conversations.entry(conversation) {
        Slot::Occupied(line) => Ok(Some(line.into_mut())),
        Slot::Vacant(slot) => {
            let Some(key) = server_key(conn, conversation)? else { return Ok(None) };
            let newest = conn
                .prepare_cached(
                    "SELECT n, time_ms, link FROM entries WHERE conversation = ?1
                     ORDER BY n DESC LIMIT 1",
                )?
                .query_row([int(conversation)], |row| {
                    Ok((get_uint(row, 0)?, get_uint(row, 1)?, Link(row.get(2)?)))
                })
                .optional()?;
            let (head, time_ms, link) =
                newest.unwrap_or_else(|| (0, 0, chain::link_0(&key, conversation)));
            let senders = HashMap::new();
            Ok(Some(slot.insert(Line { head, time_ms, link, senders, slot: (0, 0) })))
        }
    }
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

pub(crate) fn first_place(
    conn: &Connection,
    message_id: &[u8; 16],
    user: i64,
) -> Result<Option<Receipt>, DbError> {
    let receipt = conn
        .prepare_cached(
            "SELECT conversation, n, time_ms, salt, link FROM entries
             WHERE message_id = ?1 AND user = ?2",
        )?
        .query_row(params![message_id.as_slice(), user], |row| {
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
