//! Searches in slices of bounded time.
//!
//! A search may have to read much of the record, and members control how much of it resembles the
//! query. So each call works for a bounded time and returns where the search resumes. Between two
//! slices, other reads and checkpoints run.
//!
//! Every part of a slice is bounded too: bodies are read one by one, the index is queried for one
//! window of entries at a time, and no query merges the lists of more than [`WORDS`] words. The
//! words that match the last word as a prefix are listed once for a search, with one seek each.

use std::time::Instant;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use twinlock_core::chain::EntryKind;
use twinlock_core::id::ConversationId;
use twinlock_store::file_body;
use twinlock_store::tokenizer::Query;
use twinlock_store::{ReadLimit, SearchFrom, SearchResult, StoredContent, StoredEntry};

use crate::entries::{self, BODY, COLUMN_COUNT, COLUMNS, KIND};
use crate::error::DbError;
use crate::fts_query::{LastWord, long_prefix, to_fts};
use crate::index;
use crate::row::int;

/// Maximum number of words that are looked up individually for a prefix. With more, the search
/// reads the entries.
const WORDS: usize = 64;
/// The first word from ?1 on.
///
/// Seeks in the list of words. With `>`, SQLite would start at the operand as with `>=`, and step
/// through every entry that has this word.
const SEEK: &str = "SELECT term FROM terms WHERE term >= ?1 LIMIT 1";
/// A suffix that makes a word sort after itself and before every longer word: those continue with a
/// letter, digit or mark.
const BEHIND: char = '\u{1}';
/// Size of the first index window, entries of the record. A window grows if it takes less than an
/// eighth of the remaining time, and shrinks if it takes more than half.
const WINDOW: i64 = 4096;
/// Size of the largest window. The index scans a window without a pause, for 50 ms at worst.
const LARGEST: i64 = 256 * 1024;

/// A search's position in the index, with the words that earlier slices have read.
#[derive(Clone)]
struct IndexPosition {
    /// Only entries with a `seq` below this.
    below: i64,
    /// The indexed words that match a last word of four or more letters.
    words: PrefixWords,
}

/// The indexed words that begin with the last word of a search.
#[derive(Clone)]
enum PrefixWords {
    /// The words read so far, ascending.
    Partial(Vec<String>),
    /// All words, ascending.
    All(Vec<String>),
    /// More words than the search looks up individually.
    TooMany,
}

/// A search slice in progress.
struct SearchSlice<'a> {
    conn: &'a Connection,
    conversation: ConversationId,
    query: Query,
    before: u64,
    limit: ReadLimit,
    until: Instant,
    entries: Vec<StoredEntry>,
    bytes: usize,
}

/// How a part of a search ended.
enum SearchEnd {
    /// The part is complete.
    All,
    /// A limit or the time was reached; the search resumes here.
    At(SearchFrom),
}

/// See [`twinlock_store::EntrySearch::search_some`].
pub(crate) fn some(
    conn: &Connection,
    conversation: ConversationId,
    text: &str,
    from: SearchFrom,
    limit: ReadLimit,
    until: Instant,
) -> Result<SearchResult, DbError> {
    let Some(query) = Query::new(text) else {
        return Ok(SearchResult { entries: Vec::new(), next: None });
    };
    let before = from.before;
    let (entries, bytes) = (Vec::new(), 0);
    let mut search =
        SearchSlice { conn, conversation, query, before, limit, until, entries, bytes };
    let done = index::done(conn)?;
    let ended = match from.into_position() {
        Some(position) => search.indexed(position)?,
        None => match search.tail(done)? {
            SearchEnd::All => {
                let below = search.seq_of(before)?.unwrap_or(i64::MAX);
                let below = below.min(done.saturating_add(1));
                search.indexed(IndexPosition { below, words: PrefixWords::Partial(Vec::new()) })?
            }
            ended => ended,
        },
    };
    let next = match ended {
        SearchEnd::All => None,
        SearchEnd::At(next) => Some(next),
    };
    Ok(SearchResult { entries: search.entries, next })
}

impl SearchSlice<'_> {
    /// Searches the end of the conversation, which is not indexed yet.
    fn tail(&mut self, done: i64) -> Result<SearchEnd, DbError> {
        let mut tail = self.conn.prepare_cached(&format!(
            "SELECT {COLUMNS}, seq FROM entries WHERE conversation = ?1 AND n < ?2 ORDER BY n DESC"
        ))?;
        let mut rows = tail.query(params![int(self.conversation), int(self.before)])?;
        while let Some(row) = rows.next()?
            && row.get::<_, i64>(COLUMN_COUNT)? > done
        {
            let kind = EntryKind(row.get(KIND)?);
            let body = row.get_ref(BODY)?.as_blob_or_null()?;
            let n = entries::number(row)?;
            if body.is_some_and(|body| self.query.matches(&file_body::text(kind, body))) {
                self.take(entries::get_entry(row)?);
            }
            if self.is_over() {
                return Ok(SearchEnd::At(SearchFrom::below(n)));
            }
        }
        Ok(SearchEnd::All)
    }

    /// Searches the indexed entries from `position` on.
    fn indexed(&mut self, mut position: IndexPosition) -> Result<SearchEnd, DbError> {
        let Some(first) = self.seq_of(0)? else { return Ok(SearchEnd::All) };
        let last = match long_prefix(&self.query) {
            None => LastWord::AsItIs,
            Some(prefix) => {
                if let PrefixWords::Partial(words) = position.words {
                    position.words = self.prefix_words(prefix, words)?;
                    if self.is_over() {
                        return Ok(self.at(position));
                    }
                }
                match &position.words {
                    PrefixWords::All(words) if words.is_empty() => return Ok(SearchEnd::All),
                    PrefixWords::All(words) => LastWord::Words(words),
                    PrefixWords::TooMany | PrefixWords::Partial(_) => LastWord::Shortened,
                }
            }
        };
        let read = matches!(last, LastWord::Shortened);
        let fts = to_fts(&self.query, self.conversation, &last);
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
        Ok(SearchEnd::All)
    }

    fn at(&self, position: IndexPosition) -> SearchEnd {
        SearchEnd::At(SearchFrom::at(self.before, position))
    }

    /// Searches entries from `from` to below `below`. Returns where it stopped, if it did.
    fn window(
        &mut self,
        select: &mut CachedStatement<'_>,
        fts: &str,
        below: i64,
        from: i64,
        read: bool,
    ) -> Result<Option<i64>, DbError> {
        let mut rows = select.query(params![fts, below, from, int(self.conversation)])?;
        while let Some(row) = rows.next()? {
            let body = row.get_ref(BODY)?.as_blob_or_null()?;
            let kind = EntryKind(row.get(KIND)?);
            let hit =
                !read || body.is_some_and(|body| self.query.matches(&file_body::text(kind, body)));
            // An erased entry has no body. Its words are gone from the index too, so this is only a
            // safeguard.
            if hit && body.is_some() {
                self.take(entries::get_entry(row)?);
            }
            if self.is_over() {
                return Ok(Some(row.get(COLUMN_COUNT)?));
            }
        }
        Ok(None)
    }

    fn take(&mut self, entry: StoredEntry) {
        if let StoredContent::Body(_, body) = &entry.content {
            self.bytes = self.bytes.saturating_add(body.len());
        }
        self.entries.push(entry);
    }

    fn is_over(&self) -> bool {
        self.entries.len() >= self.limit.entries
            || (self.bytes > self.limit.bytes && !self.entries.is_empty())
            || Instant::now() >= self.until
    }

    /// `seq` of the conversation's first entry with a number of at least `n`.
    fn seq_of(&self, n: u64) -> Result<Option<i64>, DbError> {
        let seq = self
            .conn
            .prepare_cached(
                "SELECT seq FROM entries WHERE conversation = ?1 AND n >= ?2 ORDER BY n LIMIT 1",
            )?
            .query_row(params![int(self.conversation), int(n)], |row| row.get(0))
            .optional()?;
        Ok(seq)
    }

    /// Adds indexed words that begin with `prefix` to `words`.
    ///
    /// Adds at least one word, if there is another, and continues until the time is over. A word
    /// costs one seek, which reads the pages of that word's list (0.8 ms in a million entries) and
    /// none of its entries.
    fn prefix_words(&self, prefix: &str, mut words: Vec<String>) -> Result<PrefixWords, DbError> {
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
            // FTS5 cuts words after 32 KiB, even inside a character. Such a word cannot be queried
            // by name.
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
    use std::time::Duration;

    use rusqlite::StatementStatus;

    use super::*;
    use twinlock_store::tokenizer;

    /// The lobby with `entries` erased entries. The index still has `text` of each.
    fn record(entries: i64, text: &str) -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        for migration in [
            include_str!("../migrations/0001_record.sql"),
            include_str!("../migrations/0003_classic.sql"),
            include_str!("../migrations/0004_bounds.sql"),
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
        let text = tokenizer::of_text(text.as_bytes());
        conn.execute(&format!("{numbers} {insert}"), params![entries, text]).unwrap();
        conn.execute("UPDATE indexed SET seq = ?1", [entries]).unwrap();
        conn
    }

    /// Runs a search in slices of this time, and returns their number.
    fn slices(conn: &Connection, text: &str, time: Duration) -> usize {
        let limit = ReadLimit { entries: 100, bytes: usize::MAX };
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
    fn search__word_list_cost_is_independent_of_frequency() {
        let [rare, frequent] = [10, 20_000].map(|entries| {
            let conn = record(entries, "common commonly commons");
            assert_eq!(slices(&conn, "comm", LONG), 1);
            seeks(&conn, StatementStatus::VmStep)
        });
        assert!(rare > 0);
        assert_eq!(frequent, rare);
    }

    #[test]
    fn search__word_list_is_read_once_for_all_slices() {
        let conn = record(100, "common commonly commons");
        assert_eq!(slices(&conn, "comm", LONG), 1);
        // One seek for each word, and one for the end of the list.
        assert_eq!(seeks(&conn, StatementStatus::Run), 4);
        let count = slices(&conn, "comm", Duration::ZERO);
        assert_eq!(seeks(&conn, StatementStatus::Run), 4);
        // Without time, a slice reads one word or one entry.
        assert!((104..1000).contains(&count), "{count}");
    }

    #[test]
    fn search__word_truncated_by_the_index_is_skipped() {
        // More than 32 KiB after decomposition, cut inside a character of two bytes.
        let text = format!("commo{}", "\u{fb2c}".repeat(6000));
        let conn = record(1, &text);
        assert_eq!(slices(&conn, "comm", LONG), 1);
        assert_eq!(seeks(&conn, StatementStatus::Run), 1);
    }
}
