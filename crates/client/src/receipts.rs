//! What this client knows of the record, to detect changes.
//!
//! For each conversation of a server this keeps the newest link of each run of verified entries,
//! and the receipts of this profile's own messages. Receipts are permanent, about 60 bytes each.
//!
//! After a gap the first link is unverified, because the server supplied it. So a run after a gap
//! replaces no links from before the gap. Reading across the gap, or an audit, joins the runs. Any
//! later link for a known entry must be the same; a different one is [`StateError::Conflict`].
//! `audit verify` reads the record again and compares it with [`Receipts::all_for`].
//!
//! This also keeps positions: up to which entry a purpose (such as `listen`) has processed a
//! conversation. They move on request, not by reading. The server keeps read markers and unread
//! counts.

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

/// The end of a run of entries, each verified against the link before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The run's last entry.
    pub last: Known,
    /// Number of the entry before the run; 0 for the beginning of the conversation.
    pub after: u64,
}

/// A purpose has processed all entries of a conversation up to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled<'a> {
    /// The conversation.
    pub conversation: ConversationId,
    /// The purpose; each has one position.
    pub purpose: &'a str,
    /// Number of the last processed entry; 0 for none.
    pub n: u64,
}

/// Links of one server and positions of one account.
#[derive(Debug, Clone)]
pub struct Receipts {
    state: State,
}

impl State {
    /// The known links.
    #[must_use]
    pub fn receipts(&self) -> Receipts {
        Receipts { state: self.clone() }
    }
}

impl Receipts {
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

    /// Stores a verified run; see [`Self::keep`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remember(&self, seen: &Seen) -> Result<(), StateError> {
        self.keep(std::slice::from_ref(seen), &[])
    }

    /// Advances a position; see [`Self::keep`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn advance(&self, handled: &Handled<'_>) -> Result<(), StateError> {
        self.keep(&[], std::slice::from_ref(handled))
    }

    /// Stores verified runs and advances positions, all or nothing, with one disk sync.
    ///
    /// Both only move forward. An older link is compared if its entry is known, and then dropped.
    ///
    /// # Errors
    /// [`StateError::Conflict`] is tamper evidence. After any error nothing is stored.
    pub fn keep(&self, seen: &[Seen], handled: &[Handled<'_>]) -> Result<(), StateError> {
        self.state.write(|tx| {
            // Compares all before the first one replaces a link that another is compared with.
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

    /// Up to which entry `purpose` has processed a conversation; `None` if it never has.
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

    /// The known links with numbers in `range`, ascending; entries just read must match them.
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

    /// The conversations with known links, ascending.
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

/// Stores the receipt of an own message.
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

/// Advances the newest verified link, and removes the links inside the run. Its end covers them,
/// because the reader has verified every link between.
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

/// Whether this link is known for the entry; an error if another one is.
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
