//! What this client knows of the record, so that a changed record is found out.
//!
//! For each conversation of a server: the newest link of each run of entries that was read and
//! checked, and the receipts of this profile's own messages, which are kept for good (about 60
//! bytes each). A run that begins past what is known hangs on a link that the server named, so it
//! replaces nothing that was known before it; reading on from there, or an audit, joins the runs. Whatever comes
//! later for the same entry must have the same link; another one is [`StateError::Conflict`].
//! `audit verify` reads the record again and compares it with [`Receipts::all_for`].
//!
//! Beside them the positions: how far a purpose (such as `listen`) has handled a conversation.
//! They move when they are told to, not by reading. Read markers and unread counts are the
//! server's.

use std::ops::RangeInclusive;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use twinlock_core::id::{ConversationId, Link, ServerKey};

use crate::state::{State, StateError, int, uint};

/// An entry whose link is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The conversation.
    pub conversation: ConversationId,
    /// The entry's number, from 1.
    pub n: u64,
    /// `link_n`.
    pub link: Link,
    /// The entry's time, in ms since 1970 UTC.
    pub time_ms: u64,
}

/// The end of a run of entries that was read, each checked against the link before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its last entry.
    pub last: Known,
    /// The entry before its first; 0 for the beginning of the conversation.
    pub after: u64,
}

/// All entries of a conversation up to one are done with, for a purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled<'a> {
    /// The conversation.
    pub conversation: ConversationId,
    /// What for; one position each.
    pub purpose: &'a str,
    /// The number of the last one done with; 0 for none.
    pub n: u64,
}

/// Links of one server and positions of one account.
#[derive(Debug, Clone)]
pub struct Receipts {
    state: State,
}

impl Receipts {
    pub(crate) fn new(state: State) -> Self {
        Self { state }
    }

    /// The server key in a conversation's `link_0`.
    pub(crate) fn origin(&self, conversation: ConversationId) -> ServerKey {
        self.state.origin(conversation)
    }

    /// The entry with the highest number whose link is known.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn known(&self, conversation: ConversationId) -> Result<Option<Known>, StateError> {
        let at = params![self.state.server(), int(conversation)?];
        self.state.read(|tx| {
            let mut select = tx.prepare_cached(
                "SELECT conversation, n, link, time_ms FROM receipt
                 WHERE server = ?1 AND conversation = ?2 ORDER BY n DESC LIMIT 1",
            )?;
            Ok(select.query_row(at, known).optional()?)
        })
    }

    /// Remembers a run that was read and checked; see [`Self::keep`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remember(&self, seen: &Seen) -> Result<(), StateError> {
        self.keep(std::slice::from_ref(seen), &[])
    }

    /// Moves a position; see [`Self::keep`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn advance(&self, handled: &Handled<'_>) -> Result<(), StateError> {
        self.keep(&[], std::slice::from_ref(handled))
    }

    /// Remembers runs that were read and checked, and moves positions: all or nothing, with one
    /// sync of the disk. Both only move forward; an older link is compared where its entry is
    /// known, and dropped.
    ///
    /// # Errors
    /// [`StateError::Conflict`] is tamper evidence; nothing is kept then, nor at any other
    /// [`StateError`].
    pub fn keep(&self, seen: &[Seen], handled: &[Handled<'_>]) -> Result<(), StateError> {
        self.state.write(|tx| {
            // All are compared before one replaces what another is compared with.
            for seen in seen {
                agree(tx, self.state.server(), &seen.last)?;
            }
            for seen in seen {
                keep_read(tx, self.state.server(), seen)?;
            }
            let mut advance = tx.prepare_cached(
                "INSERT INTO position (account, conversation, purpose, n) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET n = excluded.n WHERE excluded.n > n",
            )?;
            for Handled { conversation, purpose, n } in handled {
                advance.execute(params![
                    self.state.account(),
                    int(*conversation)?,
                    purpose,
                    int(*n)?
                ])?;
            }
            Ok(())
        })
    }

    /// How far `purpose` has handled a conversation; `None` if it never has.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn position(
        &self,
        conversation: ConversationId,
        purpose: &str,
    ) -> Result<Option<u64>, StateError> {
        let at = params![self.state.account(), int(conversation)?, purpose];
        self.state.read(|tx| {
            let mut select = tx.prepare_cached(
                "SELECT n FROM position WHERE account = ?1 AND conversation = ?2 AND purpose = ?3",
            )?;
            Ok(select.query_row(at, |row| row.get(0)).optional()?.map(uint))
        })
    }

    /// The known links with numbers in `range`, ascending: what the entries just read must match.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn within(
        &self,
        conversation: ConversationId,
        range: RangeInclusive<u64>,
    ) -> Result<Vec<Known>, StateError> {
        let clamp = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (first, last) = (clamp(*range.start()), clamp(*range.end()));
        let at = params![self.state.server(), int(conversation)?, first, last];
        self.state.read(|tx| {
            let mut select = tx.prepare_cached(
                "SELECT conversation, n, link, time_ms FROM receipt
                 WHERE server = ?1 AND conversation = ?2 AND n BETWEEN ?3 AND ?4 ORDER BY n",
            )?;
            let rows = select.query_map(at, known)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// All known links of a conversation, ascending.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn all_for(&self, conversation: ConversationId) -> Result<Vec<Known>, StateError> {
        self.within(conversation, 1..=u64::MAX)
    }

    /// The conversations of which something is known, ascending.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn conversations(&self) -> Result<Vec<ConversationId>, StateError> {
        self.state.read(|tx| {
            let mut select = tx.prepare_cached(
                "SELECT DISTINCT conversation FROM receipt WHERE server = ?1 ORDER BY conversation",
            )?;
            let rows = select.query_map([self.state.server()], |row| row.get(0).map(uint))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// Keeps the receipt of an own message.
pub(crate) fn keep_own(
    tx: &Transaction<'_>,
    server: i64,
    receipt: &Known,
) -> Result<(), StateError> {
    agree(tx, server, receipt)?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO receipt (server, conversation, n, link, time_ms, own)
         VALUES (?1, ?2, ?3, ?4, ?5, 1) ON CONFLICT DO UPDATE SET own = 1",
    )?;
    insert.execute(values(server, receipt)?)?;
    Ok(())
}

/// Moves the newest link that was read forward. Those inside the run go: its end covers them,
/// since the reader has checked every link between.
fn keep_read(tx: &Transaction<'_>, server: i64, seen: &Seen) -> Result<(), StateError> {
    if agree(tx, server, &seen.last)? {
        return drop_inside(tx, server, seen);
    }
    let mut newest = tx.prepare_cached(
        "SELECT MAX(n) FROM receipt WHERE server = ?1 AND conversation = ?2 AND own = 0",
    )?;
    let read: Option<i64> =
        newest.query_row(params![server, int(seen.last.conversation)?], |row| row.get(0))?;
    if read.is_some_and(|read| read > int(seen.last.n).unwrap_or(i64::MAX)) {
        return Ok(());
    }
    let mut insert = tx.prepare_cached(
        "INSERT INTO receipt (server, conversation, n, link, time_ms, own)
         VALUES (?1, ?2, ?3, ?4, ?5, 0)",
    )?;
    insert.execute(values(server, &seen.last)?)?;
    drop_inside(tx, server, seen)
}

fn drop_inside(tx: &Transaction<'_>, server: i64, seen: &Seen) -> Result<(), StateError> {
    let mut delete = tx.prepare_cached(
        "DELETE FROM receipt
         WHERE server = ?1 AND conversation = ?2 AND n >= ?3 AND n < ?4 AND own = 0",
    )?;
    let Seen { last, after } = seen;
    delete.execute(params![server, int(last.conversation)?, int(*after)?, int(last.n)?])?;
    Ok(())
}

/// Whether the entry is known with this link; a conflict if with another.
fn agree(tx: &Transaction<'_>, server: i64, got: &Known) -> Result<bool, StateError> {
    let (conversation, n) = (int(got.conversation)?, int(got.n)?);
    if n == 0 {
        return Err(StateError::OutOfRange { got: 0 });
    }
    let mut select = tx.prepare_cached(
        "SELECT link FROM receipt WHERE server = ?1 AND conversation = ?2 AND n = ?3",
    )?;
    let known = select.query_row(params![server, conversation, n], |row| row.get(0).map(Link));
    match known.optional()? {
        None => Ok(false),
        Some(known) if known == got.link => Ok(true),
        Some(known) => Err(StateError::Conflict {
            conversation: got.conversation,
            n: got.n,
            known,
            got: got.link,
        }),
    }
}

type Values = (i64, i64, i64, [u8; 32], i64);

fn values(server: i64, known: &Known) -> Result<Values, StateError> {
    Ok((server, int(known.conversation)?, int(known.n)?, known.link.0, int(known.time_ms)?))
}

fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    Ok(Known {
        conversation: uint(row.get("conversation")?),
        n: uint(row.get("n")?),
        link: Link(row.get("link")?),
        time_ms: uint(row.get("time_ms")?),
    })
}
