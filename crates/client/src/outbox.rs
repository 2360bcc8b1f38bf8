//! Messages on their way out: kept on disk until the server has them on its own.
//!
//! [`Outbox::enqueue`] returns when the message would survive a kill. From then on it is sent
//! again and again with the same id until an ack or a refusal comes; the server records an id
//! once, so sending twice is harmless, and nothing here has to be exactly right about who sends.
//!
//! Several processes may send from one outbox. [`Outbox::claim`] hands each message to one of
//! them, and while one holds messages for a target the others get none for it, so that the order
//! per target stays the order of enqueueing. A claim ends with its process or with
//! [`Outbox::release`]; until then others may watch [`Outbox::outcome`].
//!
//! Each transaction costs a sync of the disk. A process that has a session claims what it enqueues
//! in the same transaction, and [`Outbox::settle`] notes all that is known in one.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use twinlock_core::Entropy;
use twinlock_core::id::{ConversationId, Link, MessageId, Name, Salt};
use twinlock_core::limits::MAX_TEXT;
use twinlock_core::proto::{self, Why};

use crate::error::ClientError;
use crate::receipts::{self, Known};
use crate::state::{State, StateError, int, uint};

const PENDING: i64 = 0;
const RECORDED: i64 = 1;
const REFUSED: i64 = 2;

/// The server's word that a message is on its disk (PROTOCOL section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Where it is.
    pub conversation: ConversationId,
    /// Its number there, from 1.
    pub n: u64,
    /// When it was recorded, in ms since 1970 UTC, by the server's clock.
    pub time_ms: u64,
    /// `None` where the entry is erased already.
    pub salt: Option<Salt>,
    /// `link_n`.
    pub link: Link,
}

impl Ack {
    /// As the server sent it.
    pub(crate) fn read(ack: &proto::Ack) -> Result<Self, ClientError> {
        Ok(Self {
            conversation: ack.conversation,
            n: ack.n,
            time_ms: ack.time_ms,
            salt: Salt::from_slice(&ack.salt),
            link: Link::from_slice(&ack.link).ok_or(ClientError::Protocol("length of a link"))?,
        })
    }
}

/// A message that has neither ack nor refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its id, the same each time it is sent.
    pub message_id: MessageId,
    /// A room's name, or `@` and a user's.
    pub target: String,
    /// At most [`MAX_TEXT`] bytes.
    pub body: Bytes,
    /// When it was written, in ms since 1970 UTC, by this machine's clock.
    pub enqueued_ms: u64,
}

/// A message that the server will not record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The message.
    pub message: Pending,
    /// The server's reason.
    pub why: Why,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Pending,
    /// It is on the server's disk.
    Recorded(Ack),
    /// It will not be.
    Refused(Why),
}

/// The changes of one transaction; see [`Outbox::settle`].
#[derive(Debug, Default)]
pub struct Settle<'a> {
    /// Acks: see [`Outbox::mark_recorded_many`].
    pub recorded: &'a [(MessageId, Ack)],
    /// Refusals: see [`Outbox::mark_refused`].
    pub refused: &'a [(MessageId, Why)],
    /// Give back what this process has claimed and not marked.
    pub release: bool,
    /// Claim messages, see [`Outbox::claim`], and take those that were claimed when this process
    /// enqueued them.
    pub claim: Option<Claim>,
}

/// What a process claims.
#[derive(Debug, Default)]
pub struct Claim {
    /// Messages at most.
    pub limit: usize,
    /// What it has claimed and knows of already.
    pub held: HashSet<MessageId>,
}

/// A fresh message id.
pub fn message_id(now_ms: u64, entropy: &mut (impl Entropy + ?Sized)) -> MessageId {
    MessageId::fresh(now_ms, entropy)
}

/// The outbox of one account.
#[derive(Debug, Clone)]
pub struct Outbox {
    state: State,
}

impl Outbox {
    pub(crate) fn new(state: State) -> Self {
        Self { state }
    }

    /// Keeps a message for `target`, a room's name or `@` and a user's. When this returns, it is
    /// on disk.
    ///
    /// # Errors
    /// [`StateError`]; nothing is kept then.
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

    /// Keeps messages, all or none, in this order, with one sync of the disk.
    ///
    /// # Errors
    /// [`StateError`]; nothing is kept then.
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
            // Not ahead of messages that another process has claimed, or that are unclaimed.
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

    /// The oldest pending messages, whoever has claimed them, in the order of enqueueing; at
    /// most `limit`.
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

    /// Takes the oldest pending messages that nobody has claimed, of targets for which no other
    /// living process holds any; at most `limit`, in the order of enqueueing. They stay pending,
    /// and this process's, until they are marked or released.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn claim(&self, limit: usize) -> Result<Vec<Pending>, StateError> {
        self.state.write_claims(|tx, me, is_alive| {
            free_claims_of_the_dead(tx, me, is_alive)?;
            self.note_claims(tx, me, limit, |_| false)
        })
    }

    /// Notes acks and refusals, gives back claims, and claims, in this order: all or nothing,
    /// with one sync of the disk, or none where nothing changes. Returns the claimed messages.
    ///
    /// # Errors
    /// [`StateError`]; those of [`Self::mark_recorded_many`] are tamper evidence.
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

    /// Claims free messages, and returns those of this process's claims that `takes` selects.
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

    /// Gives back what this process has claimed and not marked: after a lost line, to begin
    /// again with the oldest, or to let another process send.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn release(&self) -> Result<(), StateError> {
        self.state.write_claims(|tx, me, _| release_all(tx, me))
    }

    /// Notes that a message is on the server's disk; see [`Self::mark_recorded_many`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn mark_recorded(&self, message_id: &MessageId, ack: &Ack) -> Result<(), StateError> {
        self.mark_recorded_many(&[(*message_id, *ack)])
    }

    /// Notes acks, all or none, with one sync of the disk: the messages are pending no more,
    /// their texts are removed here, and their links are kept as receipts. The same ack again
    /// changes nothing; one for an unknown message leaves its receipt only. An ack beats a
    /// refusal.
    ///
    /// # Errors
    /// [`StateError::Conflict`] and [`StateError::AckChanged`] are tamper evidence; nothing is
    /// noted then, nor at any other [`StateError`].
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

    /// Notes that the server will not record a message. It is kept, to be shown and
    /// [discarded](Self::discard). A message that was recorded stays recorded.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn mark_refused(&self, message_id: &MessageId, why: Why) -> Result<(), StateError> {
        self.state.write(|tx| self.note_refused(tx, &[(*message_id, why)]))
    }

    fn note_refused(
        &self,
        tx: &Transaction<'_>,
        refused: &[(MessageId, Why)],
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

    /// What became of a message; `None` where it is not known, or recorded and forgotten.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn outcome(&self, message_id: &MessageId) -> Result<Option<Outcome>, StateError> {
        self.state.read(|tx| outcome(tx, self.state.account(), message_id))
    }

    /// [`Self::outcome`] of several, in their order, at one moment.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn outcomes(&self, ids: &[MessageId]) -> Result<Vec<Option<Outcome>>, StateError> {
        let account = self.state.account();
        self.state.read(|tx| ids.iter().map(|id| outcome(tx, account, id)).collect())
    }

    /// The refused messages that were not discarded, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn refused(&self, limit: usize) -> Result<Vec<Refused>, StateError> {
        self.state.read(|tx| {
            let mut select = tx.prepare_cached(
                "SELECT message_id, target, body, enqueued_ms, why FROM outbox
                 WHERE account = ?1 AND state = ?2 ORDER BY seq LIMIT ?3",
            )?;
            let refused =
                |row: &Row<'_>| Ok(Refused { message: pending(row)?, why: why(row.get("why")?) });
            let rows = select
                .query_map(params![self.state.account(), REFUSED, row_limit(limit)], refused)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// How many messages are pending.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn pending_count(&self) -> Result<u64, StateError> {
        let count = "SELECT COUNT(*) FROM outbox WHERE account = ?1 AND state = 0";
        self.state
            .read(|tx| Ok(uint(tx.query_row(count, [self.state.account()], |row| row.get(0))?)))
    }

    /// How many messages are pending for other accounts that this profile was before it was
    /// replaced. They are not sent unless it becomes that account again.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn stranded_count(&self) -> Result<u64, StateError> {
        let count = "SELECT COUNT(*) FROM outbox WHERE account != ?1 AND state = 0";
        self.state
            .read(|tx| Ok(uint(tx.query_row(count, [self.state.account()], |row| row.get(0))?)))
    }

    /// Puts the refused messages back among the pending ones, in their old order: what the server
    /// would not record may be possible now. Returns their ids.
    ///
    /// # Errors
    /// [`StateError`]; nothing is put back then.
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

    /// Removes a message that is pending or refused. A pending one may have reached the server
    /// already. `false`: there is none such.
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

    /// Forgets messages that were recorded before `before_ms`, by the server's clock; how many.
    /// Their receipts stay.
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

fn check(target: &str, body: &[u8]) -> Result<(), StateError> {
    // One spelling a target, or its order would fall apart.
    if Name::new(target.strip_prefix('@').unwrap_or(target)).is_err() {
        return Err(StateError::BadTarget { got: target.to_owned() });
    }
    if body.len() > MAX_TEXT {
        return Err(StateError::TooLarge { got: body.len(), max: MAX_TEXT });
    }
    Ok(())
}

fn release_all(tx: &Transaction<'_>, me: &str) -> Result<(), StateError> {
    tx.execute("UPDATE outbox SET claimed_by = NULL WHERE claimed_by = ?1", [me])?;
    Ok(())
}

fn free_claims_of_the_dead(
    tx: &Transaction<'_>,
    me: &str,
    is_alive: &dyn Fn(&str) -> bool,
) -> Result<(), StateError> {
    let mut select = tx.prepare_cached(
        "SELECT DISTINCT claimed_by FROM outbox WHERE claimed_by IS NOT NULL AND claimed_by != ?1",
    )?;
    let others = select.query_map([me], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    for other in others.iter().filter(|other| !is_alive(other)) {
        tx.execute("UPDATE outbox SET claimed_by = NULL WHERE claimed_by = ?1", [other])?;
    }
    Ok(())
}

fn record(
    tx: &Transaction<'_>,
    account: i64,
    message_id: &MessageId,
    ack: &Ack,
) -> Result<(), StateError> {
    match outcome(tx, account, message_id)? {
        None => Ok(()),
        // The salt is not compared: it goes when the entry is erased.
        Some(Outcome::Recorded(known)) if (Ack { salt: ack.salt, ..known }) == *ack => Ok(()),
        Some(Outcome::Recorded(_)) => Err(StateError::AckChanged { message_id: *message_id }),
        Some(Outcome::Pending | Outcome::Refused(_)) => {
            let mut update = tx.prepare_cached(
                "UPDATE outbox SET state = ?3, conversation = ?4, n = ?5, time_ms = ?6, salt = ?7,
                     link = ?8, body = x'', claimed_by = NULL, why = NULL
                 WHERE account = ?1 AND message_id = ?2",
            )?;
            update.execute(params![
                account,
                message_id.0,
                RECORDED,
                int(ack.conversation)?,
                int(ack.n)?,
                int(ack.time_ms)?,
                ack.salt.map(|salt| salt.0),
                ack.link.0,
            ])?;
            Ok(())
        }
    }
}

fn outcome(
    tx: &Transaction<'_>,
    account: i64,
    message_id: &MessageId,
) -> Result<Option<Outcome>, StateError> {
    let mut select = tx.prepare_cached(
        "SELECT state, why, conversation, n, time_ms, salt, link FROM outbox
         WHERE account = ?1 AND message_id = ?2",
    )?;
    let read = |row: &Row<'_>| {
        Ok(match row.get("state")? {
            PENDING => Outcome::Pending,
            RECORDED => Outcome::Recorded(Ack {
                conversation: uint(row.get("conversation")?),
                n: uint(row.get("n")?),
                time_ms: uint(row.get("time_ms")?),
                salt: row.get::<_, Option<_>>("salt")?.map(Salt),
                link: Link(row.get("link")?),
            }),
            _ => Outcome::Refused(why(row.get("why")?)),
        })
    };
    Ok(select.query_row(params![account, message_id.0], read).optional()?)
}

fn pending(row: &Row<'_>) -> rusqlite::Result<Pending> {
    Ok(Pending {
        message_id: MessageId(row.get("message_id")?),
        target: row.get("target")?,
        body: row.get::<_, Vec<u8>>("body")?.into(),
        enqueued_ms: uint(row.get("enqueued_ms")?),
    })
}

/// A reason of a later version is some reason.
fn why(stored: Option<i32>) -> Why {
    stored.and_then(|why| Why::try_from(why).ok()).unwrap_or(Why::None)
}

fn row_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
