//! Searching, in slices.
//!
//! A search may have to look at much of the record, and members decide how much of it looks like
//! what is searched for. So each call works for a bounded time and says where to go on: between
//! two slices other people's reads and a checkpoint get their turn. Nothing in a slice is without
//! a bound of its own: bodies are read one by one, the index is asked for a window of entries at a
//! time, and no query merges the lists of more than [`WORDS`] words. The words that begin like the
//! last one are listed once for a search, one seek after the other.

use std::time::Instant;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use twinlock_core::chain::Kind;
use twinlock_core::id::ConversationId;

use super::entries::{self, BODY, COLUMN_COUNT, COLUMNS, KIND};
use super::row::int;
use super::words::{Last, Query};
use super::{files, index};
use crate::{Content, Entry, Found, IndexPosition, Limit, PrefixWords, SearchFrom, StoreError};

/// Words that begin like the last word of a search and are looked up one by one. Of more, the
/// entries are read.
const WORDS: usize = 64;
/// The first word from ?1 on. Seeks in the list of words: `>` would start at its operand like `>=`, and
/// step through each entry that has this word.
const SEEK: &str = "SELECT term FROM terms WHERE term >= ?1 LIMIT 1";
/// After a word it sorts behind that word and before all others, which continue with a letter, digit or
/// mark.
const BEHIND: char = '\u{1}';
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
    let ended = match from.position {
        Some(position) => search.indexed(position)?,
        None => match search.tail(done)? {
            Ended::All => {
                let below = search.place_of(before)?.unwrap_or(i64::MAX);
                let below = below.min(done.saturating_add(1));
                search.indexed(IndexPosition { below, words: PrefixWords::Partial(Vec::new()) })?
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

    /// What the index knows, from `position` on.
    fn indexed(&mut self, mut position: IndexPosition) -> Result<Ended, StoreError> {
        let Some(first) = self.place_of(0)? else { return Ok(Ended::All) };
        let last = match self.query.long_prefix() {
            None => Last::AsItIs,
            Some(prefix) => {
                if let PrefixWords::Partial(words) = position.words {
                    position.words = self.prefix_words(prefix, words)?;
                    if self.is_over() {
                        return Ok(self.at(position));
                    }
                }
                match &position.words {
                    PrefixWords::All(words) if words.is_empty() => return Ok(Ended::All),
                    PrefixWords::All(words) => Last::Words(words),
                    PrefixWords::TooMany | PrefixWords::Partial(_) => Last::Shortened,
                }
            }
        };
        let read = matches!(last, Last::Shortened);
        let fts = self.query.to_fts(self.conversation, &last);
        let mut select = self.conn.prepare_cached(&format!(
            "SELECT {COLUMNS}, words.rowid FROM words CROSS JOIN entries ON entries.seq = words.rowid
             WHERE words MATCH ?1 AND words.rowid < ?2 AND words.rowid >= ?3 AND conversation = ?4
             ORDER BY words.rowid DESC"
        ))?;
        let mut window = WINDOW;
        while position.below > first {
            let from = position.below.saturating_sub(window).max(first);
            let began = Instant::now();
            let stopped = self.window(&mut select, &fts, position.below, from, read)?;
            position.below = stopped.unwrap_or(from);
            if stopped.is_some() || self.is_over() {
                return Ok(self.at(position));
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

    fn at(&self, position: IndexPosition) -> Ended {
        Ended::At(SearchFrom { before: self.before, position: Some(position) })
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

    /// Adds to `words` the words of the index that begin with `prefix`: at least one, if there is one
    /// more, and all before the time is over. One seek for a word, which reads the pages of that word's
    /// list (0.8 ms in a million entries) and none of its entries.
    fn prefix_words(
        &self,
        prefix: &str,
        mut words: Vec<String>,
    ) -> Result<PrefixWords, StoreError> {
        let mut seek = self.conn.prepare_cached(SEEK)?;
        loop {
            let from = match words.last() {
                Some(word) => format!("{word}{BEHIND}"),
                None => prefix.to_owned(),
            };
            let word = seek
                .query_row([from], |row| Ok(row.get_ref(0)?.as_bytes()?.to_vec()))
                .optional()?
                .filter(|word| word.starts_with(prefix.as_bytes()));
            let Some(word) = word else { return Ok(PrefixWords::All(words)) };
            // FTS5 cuts words after 32 KiB, inside a character too. Such a word cannot be named.
            let Ok(word) = String::from_utf8(word) else { return Ok(PrefixWords::TooMany) };
            if words.len() >= WORDS {
                return Ok(PrefixWords::TooMany);
            }
            words.push(word);
            if self.is_over() {
                return Ok(PrefixWords::Partial(words));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use rusqlite::StatementStatus;

    use super::*;
    use crate::sqlite::words;

    /// The lobby with `entries` erased entries. The index still has `text` of each.
    fn record(entries: i64, text: &str) -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        for migration in [
            include_str!("../../migrations/0001_record.sql"),
            include_str!("../../migrations/0003_classic.sql"),
            include_str!("../../migrations/0004_bounds.sql"),
        ] {
            conn.execute_batch(migration).unwrap();
        }
        let numbers = "WITH RECURSIVE number (n) AS
            (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?1)";
        let insert = "INSERT INTO entries
            (seq, conversation, n, time_ms, user, message_id, kind, sender, link)
            SELECT n, 1, n, 1, 1, CAST(n AS BLOB), 1, x'', x'' FROM number";
        conn.execute(&format!("{numbers} {insert}"), [entries]).unwrap();
        let insert = "INSERT INTO words (rowid, place, body) SELECT n, '1', ?2 FROM number";
        let text = words::of_text(text.as_bytes());
        conn.execute(&format!("{numbers} {insert}"), params![entries, text]).unwrap();
        conn.execute("UPDATE indexed SET seq = ?1", [entries]).unwrap();
        conn
    }

    /// One slice after another, each with this much time. How many.
    fn slices(conn: &Connection, text: &str, time: Duration) -> usize {
        let limit = Limit { entries: 100, bytes: usize::MAX };
        let (mut count, mut from) = (0, Some(SearchFrom::below(u64::MAX)));
        while let Some(at) = from
            && count < 1000
        {
            let until = Instant::now() + time;
            from = some(conn, 1, text, at, limit, until).unwrap().next;
            count += 1;
        }
        count
    }

    fn seeks(conn: &Connection, what: StatementStatus) -> i32 {
        conn.prepare_cached(SEEK).unwrap().reset_status(what)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn search_lists_a_frequent_word_at_the_cost_of_a_rare_one() {
        let [rare, frequent] = [10, 20_000].map(|entries| {
            let conn = record(entries, "common commonly commons");
            assert_eq!(slices(&conn, "comm", LONG), 1);
            seeks(&conn, StatementStatus::VmStep)
        });
        assert!(rare > 0);
        assert_eq!(frequent, rare);
    }

    #[test]
    fn search_lists_words_once_for_all_slices() {
        let conn = record(100, "common commonly commons");
        assert_eq!(slices(&conn, "comm", LONG), 1);
        // Each of the words, and the end of the list.
        assert_eq!(seeks(&conn, StatementStatus::Run), 4);
        let count = slices(&conn, "comm", Duration::ZERO);
        assert_eq!(seeks(&conn, StatementStatus::Run), 4);
        // Without time a slice reads one word or one entry.
        assert!((104..1000).contains(&count), "{count}");
    }

    #[test]
    fn search_passes_over_a_word_that_the_index_cut() {
        // 32 KiB and more after decomposition, with a cut inside a character of two bytes.
        let text = format!("commo{}", "\u{fb2c}".repeat(6000));
        let conn = record(1, &text);
        assert_eq!(slices(&conn, "comm", LONG), 1);
        assert_eq!(seeks(&conn, StatementStatus::Run), 1);
    }
}
