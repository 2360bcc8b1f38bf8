//! The rows of the outbox: checks, claims, outcomes and how they are stored.

use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use twinlock_core::id::{Link, MessageId, Name, Salt};
use twinlock_core::limits::MAX_TEXT;
use twinlock_core::proto::RefusalReason;

use super::model::{Ack, MessageOutcome, Pending};
use crate::state::{StateError, int, uint};

pub(super) const PENDING: i64 = 0;
pub(super) const RECORDED: i64 = 1;
pub(super) const REFUSED: i64 = 2;

pub(super) fn check(target: &str, body: &[u8]) -> Result<(), StateError> {
    // Each target has one spelling; otherwise its messages could be reordered.
    if Name::new(target.strip_prefix('@').unwrap_or(target)).is_err() {
        return Err(StateError::BadTarget { got: target.to_owned() });
    }
    if body.len() > MAX_TEXT {
        return Err(StateError::TooLarge { got: body.len(), max: MAX_TEXT });
    }
    Ok(())
}

pub(super) fn release_all(tx: &Transaction<'_>, me: &str) -> Result<(), StateError> {
    tx.execute("UPDATE outbox SET claimed_by = NULL WHERE claimed_by = ?1", [me])?;
    Ok(())
}

pub(super) fn free_claims_of_the_dead(
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

pub(super) fn record(
    tx: &Transaction<'_>,
    account: i64,
    message_id: &MessageId,
    ack: &Ack,
) -> Result<(), StateError> {
    match outcome(tx, account, message_id)? {
        None => Ok(()),
        // The salt is not compared: it disappears when the entry is erased.
        Some(MessageOutcome::Recorded(known)) if (Ack { salt: ack.salt, ..known }) == *ack => {
            Ok(())
        }
        Some(MessageOutcome::Recorded(_)) => {
            Err(StateError::AckChanged { message_id: *message_id })
        }
        Some(MessageOutcome::Pending | MessageOutcome::Refused(_)) => {
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

pub(super) fn outcome(
    tx: &Transaction<'_>,
    account: i64,
    message_id: &MessageId,
) -> Result<Option<MessageOutcome>, StateError> {
    let mut select = tx.prepare_cached(
        "SELECT state, why, conversation, n, time_ms, salt, link FROM outbox
         WHERE account = ?1 AND message_id = ?2",
    )?;
    let read = |row: &Row<'_>| {
        Ok(match row.get("state")? {
            PENDING => MessageOutcome::Pending,
            RECORDED => MessageOutcome::Recorded(Ack {
                conversation: uint(row.get("conversation")?),
                n: uint(row.get("n")?),
                time_ms: uint(row.get("time_ms")?),
                salt: row.get::<_, Option<_>>("salt")?.map(Salt),
                link: Link(row.get("link")?),
            }),
            _ => MessageOutcome::Refused(why(row.get("why")?)),
        })
    };
    Ok(select.query_row(params![account, message_id.0], read).optional()?)
}

pub(super) fn pending(row: &Row<'_>) -> rusqlite::Result<Pending> {
    Ok(Pending {
        message_id: MessageId(row.get("message_id")?),
        target: row.get("target")?,
        body: row.get::<_, Vec<u8>>("body")?.into(),
        enqueued_ms: uint(row.get("enqueued_ms")?),
    })
}

/// A reason of a later version reads as [`RefusalReason::None`].
pub(super) fn why(stored: Option<i32>) -> RefusalReason {
    stored.and_then(|why| RefusalReason::try_from(why).ok()).unwrap_or(RefusalReason::None)
}

pub(super) fn row_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
