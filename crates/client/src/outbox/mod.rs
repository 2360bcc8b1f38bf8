//! Outgoing messages, kept on disk until the server has acknowledged them.
//!
//! [`Outbox::enqueue`] returns when the message survives a kill. From then on the client retries
//! with the same id until an ack or a refusal arrives. The server records an id once, so sending
//! twice is harmless, and claims need not be exact.
//!
//! Several processes may send from one outbox. [`Outbox::claim`] gives each message to one of them.
//! While a process holds messages for a target, the others get none for it, so that each target
//! keeps the order of enqueueing. A claim ends with its process or with [`Outbox::release`]; other
//! processes may watch [`Outbox::outcome`].
//!
//! Each transaction costs one disk sync. A process with a session claims messages in the
//! transaction that enqueues them, and [`Outbox::settle`] writes all results in one.

mod model;
mod rows;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::{Row, Transaction, params};
use twinlock_core::Entropy;
use twinlock_core::id::MessageId;
use twinlock_core::proto::RefusalReason;

use crate::receipts::{self, Known};
use crate::state::{State, StateError, int, uint};
pub use model::{Ack, Claim, MessageOutcome, Pending, RefusedMessage, Settle};
use rows::{
    PENDING, RECORDED, REFUSED, check, free_claims_of_the_dead, outcome, pending, record,
    release_all, row_limit, why,
};

/// A new message id.
pub fn message_id(now_ms: u64, entropy: &mut (impl Entropy + ?Sized)) -> MessageId {
    MessageId::fresh(now_ms, entropy)
}

/// The outbox of one account.
#[derive(Debug, Clone)]
pub struct Outbox {
    state: State,
}

impl State {
    /// The outgoing messages.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        Outbox { state: self.clone() }
    }
}

impl Outbox {
    /// Stores a message for `target`, a room's name or `@` and a user name. It is on disk when this
    /// returns.
    ///
    /// # Errors
    /// [`StateError`]; nothing is stored then.
    pub fn enqueue(
        &self,
        target: &str,
        body: &[u8],
        now_ms: u64,
        entropy: &mut (impl Entropy + ?Sized),
    ) -> Result<MessageId, StateError> {
        let ids = self.enqueue_many([(target, body)], now_ms, entropy)?;
        ids.into_iter().next().ok_or_else(|| StateError::Database("nothing was kept".to_owned()))
    }

    /// Stores messages in this order, all or none, with one disk sync.
    ///
    /// # Errors
    /// [`StateError`]; nothing is stored then.
    pub fn enqueue_many<'a>(
        &self,
        messages: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        now_ms: u64,
        entropy: &mut (impl Entropy + ?Sized),
    ) -> Result<Vec<MessageId>, StateError> {
        self.state.wants_disk()?;
        let time = int(now_ms)?;
        let insert_all = |tx: &Transaction<'_>, me: Option<&str>| {
            let mut blocked = tx.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM outbox WHERE account = ?1 AND state = 0
                     AND target = ?2 AND claimed_by IS NOT ?3)",
            )?;
            let mut insert = tx.prepare_cached(
                "INSERT INTO outbox (account, message_id, target, body, enqueued_ms, claimed_by)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            let account = self.state.account();
            // Not ahead of messages that another process has claimed or that are unclaimed.
            let mut claimers = HashMap::new();
            let mut ids = Vec::new();
            for (target, body) in messages {
                check(target, body)?;
                let claimer = match claimers.entry(target) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        let at = params![account, target, me];
                        let blocked: bool = blocked.query_row(at, |row| row.get(0))?;
                        *new.insert(me.filter(|_| !blocked))
                    }
                };
                let id = message_id(now_ms, entropy);
                insert.execute(params![account, id.0, target, body, time, claimer])?;
                ids.push(id);
            }
            Ok(ids)
        };
        if self.state.sends_now() {
            self.state.write_claims(|tx, me, _| insert_all(tx, Some(me)))
        } else {
            self.state.write(|tx| insert_all(tx, None))
        }
    }

    /// The oldest pending messages, claimed or not, in the order of enqueueing; at most `limit`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn pending(&self, limit: usize) -> Result<Vec<Pending>, StateError> {
        self.state.read(|tx| {
            let mut select = tx.prepare_cached(
                "SELECT message_id, target, body, enqueued_ms FROM outbox
                 WHERE account = ?1 AND state = 0 ORDER BY seq LIMIT ?2",
            )?;
            let rows =
                select.query_map(params![self.state.account(), row_limit(limit)], pending)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Claims the oldest unclaimed messages, at most `limit`, in the order of enqueueing.
    ///
    /// Skips targets for which another living process holds messages. Claimed messages stay
    /// pending, and belong to this process until they are marked or released.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn claim(&self, limit: usize) -> Result<Vec<Pending>, StateError> {
        self.state.write_claims(|tx, me, is_alive| {
            free_claims_of_the_dead(tx, me, is_alive)?;
            self.note_claims(tx, me, limit, |_| false)
        })
    }

    /// Writes acks and refusals, releases claims, and claims messages, in this order.
    ///
    /// All or nothing, with one disk sync, or none if nothing changes. Returns the claimed
    /// messages.
    ///
    /// # Errors
    /// [`StateError`]; its `Conflict` and `AckChanged` are tamper evidence.
    pub fn settle(&self, settle: &Settle<'_>) -> Result<Vec<Pending>, StateError> {
        let Settle { recorded, refused, release, claim } = settle;
        self.state.write_claims(|tx, me, is_alive| {
            self.note_recorded(tx, recorded)?;
            self.note_refused(tx, refused)?;
            if *release {
                release_all(tx, me)?;
            }
            match claim {
                Some(claim) => {
                    free_claims_of_the_dead(tx, me, is_alive)?;
                    self.note_claims(tx, me, claim.limit, |id| !claim.held.contains(id))
                }
                None => Ok(Vec::new()),
            }
        })
    }

    /// Claims free messages; returns them and those of this process's claims that `takes` selects.
    fn note_claims(
        &self,
        tx: &Transaction<'_>,
        me: &str,
        limit: usize,
        takes: impl Fn(&MessageId) -> bool,
    ) -> Result<Vec<Pending>, StateError> {
        let mut select = tx.prepare_cached(
            "SELECT message_id, target, body, enqueued_ms, claimed_by IS NULL AS free FROM outbox
             WHERE account = ?1 AND state = 0 AND (claimed_by = ?2 OR claimed_by IS NULL
                 AND target NOT IN (
                     SELECT target FROM outbox
                     WHERE claimed_by IS NOT NULL AND claimed_by != ?2 AND account = ?1))
             ORDER BY seq",
        )?;
        let row = |row: &Row<'_>| Ok((row.get("free")?, pending(row)?));
        let rows = select.query_map(params![self.state.account(), me], row)?;
        let is_wanted = |found: &rusqlite::Result<(bool, Pending)>| match found {
            Ok((is_free, message)) => *is_free || takes(&message.message_id),
            Err(_) => true,
        };
        let found = rows.filter(is_wanted).take(limit).collect::<Result<Vec<_>, _>>()?;
        let mut update =
            tx.prepare_cached("UPDATE outbox SET claimed_by = ?2 WHERE message_id = ?1")?;
        for (_, message) in found.iter().filter(|(is_free, _)| *is_free) {
            update.execute(params![message.message_id.0, me])?;
        }
        Ok(found.into_iter().map(|(_, message)| message).collect())
    }

    /// Releases the claims of this process that have no outcome: after a lost connection, to
    /// restart with the oldest message, or to let another process send.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn release(&self) -> Result<(), StateError> {
        self.state.write_claims(|tx, me, _| release_all(tx, me))
    }

    /// Marks a message as recorded; see [`Self::mark_recorded_many`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn mark_recorded(&self, message_id: &MessageId, ack: &Ack) -> Result<(), StateError> {
        self.mark_recorded_many(&[(*message_id, *ack)])
    }

    /// Marks messages as recorded, all or none, with one disk sync.
    ///
    /// The messages are no longer pending, their texts are removed, and their links are kept as
    /// receipts. A repeated ack changes nothing; an ack for an unknown message only leaves its
    /// receipt. An ack overrides a refusal.
    ///
    /// # Errors
    /// [`StateError::Conflict`] and [`StateError::AckChanged`] are tamper evidence. After any error
    /// nothing is written.
    pub fn mark_recorded_many(&self, acks: &[(MessageId, Ack)]) -> Result<(), StateError> {
        self.state.write(|tx| self.note_recorded(tx, acks))
    }

    fn note_recorded(
        &self,
        tx: &Transaction<'_>,
        acks: &[(MessageId, Ack)],
    ) -> Result<(), StateError> {
        for (message_id, ack) in acks {
            let known = Known {
                conversation: ack.conversation,
                n: ack.n,
                link: ack.link,
                time_ms: ack.time_ms,
            };
            receipts::keep_own(tx, self.state.server(), &known)?;
            record(tx, self.state.account(), message_id, ack)?;
        }
        Ok(())
    }

    /// Marks a message as refused by the server. It is kept, to be shown and
    /// [discarded](Self::discard). A recorded message stays recorded.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn mark_refused(
        &self,
        message_id: &MessageId,
        why: RefusalReason,
    ) -> Result<(), StateError> {
        self.state.write(|tx| self.note_refused(tx, &[(*message_id, why)]))
    }

    fn note_refused(
        &self,
        tx: &Transaction<'_>,
        refused: &[(MessageId, RefusalReason)],
    ) -> Result<(), StateError> {
        let mut update = tx.prepare_cached(
            "UPDATE outbox SET state = ?3, why = ?4, claimed_by = NULL
             WHERE account = ?1 AND message_id = ?2 AND state = 0",
        )?;
        for (message_id, why) in refused {
            update.execute(params![self.state.account(), message_id.0, REFUSED, *why as i32])?;
        }
        Ok(())
    }

    /// The outcome of a message; `None` if it is unknown, or was recorded and forgotten.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn outcome(&self, message_id: &MessageId) -> Result<Option<MessageOutcome>, StateError> {
        self.state.read(|tx| outcome(tx, self.state.account(), message_id))
    }

    /// [`Self::outcome`] of several messages, in their order, from one snapshot.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn outcomes(&self, ids: &[MessageId]) -> Result<Vec<Option<MessageOutcome>>, StateError> {
        let account = self.state.account();
        self.state.read(|tx| ids.iter().map(|id| outcome(tx, account, id)).collect())
    }

    /// The refused messages that were not discarded, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn refused(&self, limit: usize) -> Result<Vec<RefusedMessage>, StateError> {
        self.state.read(|tx| {
            let mut select = tx.prepare_cached(
                "SELECT message_id, target, body, enqueued_ms, why FROM outbox
                 WHERE account = ?1 AND state = ?2 ORDER BY seq LIMIT ?3",
            )?;
            let refused = |row: &Row<'_>| {
                Ok(RefusedMessage { message: pending(row)?, why: why(row.get("why")?) })
            };
            let rows = select
                .query_map(params![self.state.account(), REFUSED, row_limit(limit)], refused)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The number of pending messages.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn pending_count(&self) -> Result<u64, StateError> {
        let count = "SELECT COUNT(*) FROM outbox WHERE account = ?1 AND state = 0";
        self.state
            .read(|tx| Ok(uint(tx.query_row(count, [self.state.account()], |row| row.get(0))?)))
    }

    /// The number of messages that are pending for other accounts that this profile had before it
    /// was replaced. They are not sent unless the profile has that account again.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn stranded_count(&self) -> Result<u64, StateError> {
        let count = "SELECT COUNT(*) FROM outbox WHERE account != ?1 AND state = 0";
        self.state
            .read(|tx| Ok(uint(tx.query_row(count, [self.state.account()], |row| row.get(0))?)))
    }

    /// Makes the refused messages pending again, in their old order, because the server may accept
    /// them now. Returns their ids.
    ///
    /// # Errors
    /// [`StateError`]; nothing changes then.
    pub fn retry_refused(&self) -> Result<Vec<MessageId>, StateError> {
        self.state.wants_disk()?;
        self.state.write(|tx| {
            let mut update = tx.prepare_cached(
                "UPDATE outbox SET state = ?2, why = NULL WHERE account = ?1 AND state = ?3
                 RETURNING message_id",
            )?;
            let id = |row: &Row<'_>| Ok(MessageId(row.get(0)?));
            let rows = update.query_map(params![self.state.account(), PENDING, REFUSED], id)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Removes a pending or refused message; `false` if there is none. The server may already have
    /// received a pending one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn discard(&self, message_id: &MessageId) -> Result<bool, StateError> {
        self.state.wants_disk()?;
        self.state.write(|tx| {
            let removed = tx.execute(
                "DELETE FROM outbox WHERE account = ?1 AND message_id = ?2 AND state != ?3",
                params![self.state.account(), message_id.0, RECORDED],
            )?;
            Ok(removed > 0)
        })
    }

    /// Removes messages that were recorded before `before_ms`, by the server's clock; returns their
    /// number. Their receipts stay.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget(&self, before_ms: u64) -> Result<u64, StateError> {
        let before = i64::try_from(before_ms).unwrap_or(i64::MAX);
        self.state.write(|tx| {
            let forgotten = tx.execute(
                "DELETE FROM outbox WHERE state = 1 AND time_ms < ?2 AND account = ?1",
                params![self.state.account(), before],
            )?;
            Ok(forgotten as u64)
        })
    }
}
