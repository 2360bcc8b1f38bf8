//! Searching, in slices.
//!
//! A search may have to look at much of the record, and members decide how much of it looks like
//! what is searched for. So each call works for a bounded time and says where to go on: between
//! two slices other people's reads and a checkpoint get their turn. Nothing in a slice is without
//! a bound of its own: bodies are read one by one, the index is asked for a window of entries at a
//! time, and no query merges the lists of more than [`WORDS`] words.

use std::time::Instant;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use twinlock_core::chain::Kind;
use twinlock_core::id::ConversationId;

use super::entries::{self, BODY, COLUMN_COUNT, COLUMNS, KIND};
use super::row::int;
use super::words::{Last, Query};
use super::{files, index};
use crate::{Content, Entry, Found, Limit, SearchFrom, StoreError};

/// Words that begin like the last word of a search and are looked up one by one. Of more, the
/// entries are read.
const WORDS: usize = 64;
/// Entries of the record in the first window that the index is asked for. Windows grow while they
/// take less than an eighth of the time, and shrink where they take more than a half.
const WINDOW: i64 = 4096;
/// The largest. The index looks through a window without a pause: some 50 ms at worst.
const LARGEST: i64 = 256 * 1024;

/// What is found, until there is enough of it or the time is over.
struct Search<'a> {
    conn: &'a Connection,
    conversation: ConversationId,
    query: Query,
    before: u64,
    limit: Limit,
    until: Instant,
    entries: Vec<Entry>,
    bytes: usize,
}

/// How a part of a search ended.
enum Ended {
    /// All of it was looked at.
    All,
    /// There is enough, or the time is over.
    At(SearchFrom),
}

/// See [`crate::Store::search_some`].
pub(super) fn some(
    conn: &Connection,
    conversation: ConversationId,
    text: &str,
    from: SearchFrom,
    limit: Limit,
    until: Instant,
) -> Result<Found, StoreError> {
    let Some(query) = Query::new(text) else {
        return Ok(Found { entries: Vec::new(), next: None });
    };
    let before = from.before;
    let (entries, bytes) = (Vec::new(), 0);
    let mut search = Search { conn, conversation, query, before, limit, until, entries, bytes };
    let done = index::done(conn)?;
    let ended = match from.place {
        Some(place) => search.indexed(place)?,
        None => match search.tail(done)? {
            Ended::All => {
                let below = search.place_of(before)?.unwrap_or(i64::MAX);
                search.indexed(below.min(done.saturating_add(1)))?
            }
            ended => ended,
        },
    };
    let next = match ended {
        Ended::All => None,
        Ended::At(next) => Some(next),
    };
    Ok(Found { entries: search.entries, next })
}

impl Search<'_> {
    /// What is not in the index yet: the end of the conversation.
    fn tail(&mut self, done: i64) -> Result<Ended, StoreError> {
        let mut tail = self.conn.prepare_cached(&format!(
            "SELECT {COLUMNS}, seq FROM entries WHERE conversation = ?1 AND n < ?2 ORDER BY n DESC"
        ))?;
        let mut rows = tail.query(params![int(self.conversation), int(self.before)])?;
        while let Some(row) = rows.next()?
            && row.get::<_, i64>(COLUMN_COUNT)? > done
        {
            let kind = Kind(row.get(KIND)?);
            let body = row.get_ref(BODY)?.as_blob_or_null()?;
            let n = entries::number(row)?;
            if body.is_some_and(|body| self.query.matches(&files::text(kind, body))) {
                self.take(entries::get_entry(row)?);
            }
            if self.is_over() {
                return Ok(Ended::At(SearchFrom::below(n)));
            }
        }
        Ok(Ended::All)
    }

    /// What the index knows, of entries of the record below `below`.
    fn indexed(&mut self, mut below: i64) -> Result<Ended, StoreError> {
        let Some(first) = self.place_of(0)? else { return Ok(Ended::All) };
        let words = self.words()?;
        let last = match &words {
            None => Last::AsItIs,
            Some(words) if words.len() > WORDS => Last::Shortened,
            // No word begins like it.
            Some(words) if words.is_empty() => return Ok(Ended::All),
            Some(words) => Last::Words(words),
        };
        let read = matches!(last, Last::Shortened);
        let fts = self.query.to_fts(self.conversation, &last);
        let mut select = self.conn.prepare_cached(&format!(
            "SELECT {COLUMNS}, words.rowid FROM words CROSS JOIN entries ON entries.seq = words.rowid
             WHERE words MATCH ?1 AND words.rowid < ?2 AND words.rowid >= ?3 AND conversation = ?4
             ORDER BY words.rowid DESC"
        ))?;
        let mut window = WINDOW;
        while below > first {
            let from = below.saturating_sub(window).max(first);
            let began = Instant::now();
            if let Some(place) = self.window(&mut select, &fts, below, from, read)? {
                return Ok(self.at(place));
            }
            below = from;
            if self.is_over() {
                return Ok(self.at(below));
            }
            let left = self.until.saturating_duration_since(began);
            if began.elapsed() < left / 8 {
                window = window.saturating_mul(4).min(LARGEST);
            } else if began.elapsed() > left / 2 {
                window = (window / 4).max(WINDOW / 4);
            }
        }
        Ok(Ended::All)
    }

    fn at(&self, place: i64) -> Ended {
        Ended::At(SearchFrom { before: self.before, place: Some(place) })
    }

    /// Hits from `from` to below `below`. Where it stopped, if it did.
    fn window(
        &mut self,
        select: &mut CachedStatement<'_>,
        fts: &str,
        below: i64,
        from: i64,
        read: bool,
    ) -> Result<Option<i64>, StoreError> {
        let mut rows = select.query(params![fts, below, from, int(self.conversation)])?;
        while let Some(row) = rows.next()? {
            let body = row.get_ref(BODY)?.as_blob_or_null()?;
            let kind = Kind(row.get(KIND)?);
            let hit =
                !read || body.is_some_and(|body| self.query.matches(&files::text(kind, body)));
            // Erased in the moment between: its words are gone as well, but doubt costs nothing.
            if hit && body.is_some() {
                self.take(entries::get_entry(row)?);
            }
            if self.is_over() {
                return Ok(Some(row.get(COLUMN_COUNT)?));
            }
        }
        Ok(None)
    }

    fn take(&mut self, entry: Entry) {
        if let Content::Body(_, body) = &entry.content {
            self.bytes = self.bytes.saturating_add(body.len());
        }
        self.entries.push(entry);
    }

    fn is_over(&self) -> bool {
        self.entries.len() >= self.limit.entries
            || (self.bytes > self.limit.bytes && !self.entries.is_empty())
            || Instant::now() >= self.until
    }

    /// Where the conversation's first entry with a number of at least `n` is in the record.
    fn place_of(&self, n: u64) -> Result<Option<i64>, StoreError> {
        let place = self
            .conn
            .prepare_cached(
                "SELECT seq FROM entries WHERE conversation = ?1 AND n >= ?2 ORDER BY n LIMIT 1",
            )?
            .query_row(params![int(self.conversation), int(n)], |row| row.get(0))
            .optional()?;
        Ok(place)
    }

    /// The words that begin like the last one, if those have no list of their own; up to one more
    /// than are looked up.
    fn words(&self) -> Result<Option<Vec<String>>, StoreError> {
        let Some(prefix) = self.query.long_prefix() else { return Ok(None) };
        // A step for each word, however often it is in the record.
        let mut first =
            self.conn.prepare_cached("SELECT term FROM terms WHERE term >= ?1 LIMIT 1")?;
        let mut next =
            self.conn.prepare_cached("SELECT term FROM terms WHERE term > ?1 LIMIT 1")?;
        let term = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let mut word = first.query_row([prefix], term).optional()?;
        let mut words = Vec::new();
        while let Some(one) = word.filter(|word| word.starts_with(prefix))
            && words.len() <= WORDS
        {
            word = next.query_row([&one], term).optional()?;
            words.push(one);
        }
        Ok(Some(words))
    }
}
