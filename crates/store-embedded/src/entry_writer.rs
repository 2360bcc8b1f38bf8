//! Writes entries and their positions. The hot path.
//!
//! Duplicates are detected by the unique index on the message id, and only a conflict requires a
//! look-up.

use rusqlite::{Connection, Statement, params};
use twinlock_core::id::Sender;
use twinlock_store::sequencer::{PreparedEntry, next_head, not_recorded};
use twinlock_store::{Appended, Published, StoreError};

use crate::error::DbError;
use crate::head_cache::HeadCache;
use crate::row::int;
use crate::{classic, entries, files};

/// The prepared statements, and the entries of the current transaction.
pub(crate) struct EntryWriter<'c> {
    conn: &'c Connection,
    begin: Statement<'c>,
    commit: Statement<'c>,
    insert: Statement<'c>,
    transaction: u64,
    written: usize,
    written_bytes: usize,
    publishing: bool,
    published: Vec<Published>,
}

impl<'c> EntryWriter<'c> {
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
            written: 0,
            written_bytes: 0,
            publishing: false,
            published: Vec::new(),
        })
    }

    /// Resets the counts; `publishing`: keep the entries for the watchers.
    pub(crate) fn begin(&mut self, publishing: bool) {
        self.transaction += 1;
        (self.written, self.written_bytes) = (0, 0);
        self.publishing = publishing;
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
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    /// Size of their bodies, bytes.
    pub(crate) fn written_bytes(&self) -> usize {
        self.written_bytes
    }

    pub(crate) fn take_published(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.published)
    }

    /// Records entries in order.
    ///
    /// # Errors
    /// The whole transaction is lost.
    pub(crate) fn write(
        &mut self,
        cache: &mut HeadCache,
        entries: Vec<PreparedEntry>,
        now_ms: u64,
    ) -> Result<Vec<Appended>, StoreError> {
        let written = entries.into_iter().map(|entry| self.write_one(cache, entry, now_ms));
        Ok(written.collect::<Result<_, DbError>>()?)
    }

    fn write_one(
        &mut self,
        cache: &mut HeadCache,
        entry: PreparedEntry,
        now_ms: u64,
    ) -> Result<Appended, DbError> {
        let (conversation, sender) = (entry.new.conversation, &entry.new.sender);
        let Some((cached, user)) = cache.member(self.conn, conversation, sender.user())? else {
            return self.refused(&entry);
        };
        // A revocation applies from its commit on, also to entries that were in the queue.
        if let Sender::Classic(name, key) = sender
            && !classic::may_append(self.conn, key, name, conversation)?
        {
            return self.refused(&entry);
        }
        let head = next_head(&cached.head, &entry, now_ms)?;
        let inserted = self.insert.execute(params![
            int(conversation),
            int(head.n),
            int(head.time_ms),
            user,
            entry.new.message_id.0.as_slice(),
            entry.new.kind.0,
            entry.sender.as_ref(),
            head.link.0.as_slice(),
            entry.salt.0.as_slice(),
            entry.new.body.as_ref(),
        ])?;
        if inserted == 0 {
            let first = entries::first_receipt(self.conn, &entry.new.message_id, user)?;
            let first = first.ok_or_else(|| {
                StoreError::Damaged(
                    "the index of message ids names an entry that is not there".into(),
                )
            })?;
            return Ok(not_recorded(Some(first)));
        }
        if let Some(file) = &entry.file {
            files::insert(self.conn, conversation, head.n, user, file)?;
        }
        cached.head = head;
        self.written += 1;
        self.written_bytes += entry.new.body.len();
        let receipt = entry.receipt(&head);
        if self.publishing {
            if cached.slot.0 != self.transaction {
                cached.slot = (self.transaction, self.published.len());
                let entries = Vec::new();
                self.published.push(Published { conversation, head: head.n, entries });
            }
            if let Some(published) = self.published.get_mut(cached.slot.1) {
                published.head = head.n;
                published.entries.push(entry.into_entry(&head));
            }
        }
        Ok(Appended::Recorded(receipt))
    }

    /// The answer to an entry whose sender may not append: the receipt, if it was recorded before.
    fn refused(&self, entry: &PreparedEntry) -> Result<Appended, DbError> {
        let message_id = &entry.new.message_id;
        let first = match entry.new.sender.user() {
            None => entries::first_receipt(self.conn, message_id, 0)?,
            Some(user) => entries::receipt(self.conn, user, message_id)?,
        };
        Ok(not_recorded(first))
    }
}
