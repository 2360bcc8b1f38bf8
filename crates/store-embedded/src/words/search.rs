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
use twinlock_core::id::ConversationId;
use twinlock_store::file_body;
use twinlock_store::tokenizer::Query;
use twinlock_store::{ReadLimit, SearchFrom, SearchResult, StoreError, StoredContent, StoredEntry};

use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::log::{RunEntry, RunPlace};
use crate::row::{get_uint, int};
use crate::words::database;
use crate::words::fts_query::{LastWord, long_prefix, to_fts};

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
const WINDOW: u64 = 4096;
/// Size of the largest window. The index scans a window without a pause, for 50 ms at worst.
const LARGEST: u64 = 256 * 1024;

/// Runs that one look at a conversation returns.
const RUNS: usize = 64;

/// A search's position in the index, with the words that earlier slices have read.
#[derive(Clone)]
struct IndexPosition {
    /// Only entries with a `seq` below this.
    below: u64,
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
    words: &'a Connection,
    reader: EntryReader<'a>,
    /// The run that was read last: neighbouring hits are in one.
    run: Option<(RunPlace, Vec<RunEntry>)>,
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
    words: &Connection,
    reader: EntryReader<'_>,
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
    let (entries, bytes, run) = (Vec::new(), 0, None);
    let mut search = SearchSlice {
        words,
        reader,
        run,
        conversation,
        query,
        before,
        limit,
        until,
        entries,
        bytes,
    };
    // One state of the index for the whole slice. The log has all entries that it covers.
    let snapshot = words.unchecked_transaction()?;
    let next = database::next(words)?;
    let ended = match from.into_position() {
        Some(position) => search.indexed(position)?,
        None => match search.tail(next)? {
            SearchEnd::All => {
                let below = search.seq_of(before)?.unwrap_or(u64::MAX).min(next);
                search.indexed(IndexPosition { below, words: PrefixWords::Partial(Vec::new()) })?
            }
            ended => ended,
        },
    };
    drop(snapshot);
    let next = match ended {
        SearchEnd::All => None,
        SearchEnd::At(next) => Some(next),
    };
    Ok(SearchResult { entries: search.entries, next })
}

impl SearchSlice<'_> {
    /// Searches the end of the conversation, from sequence `next` on, which is not indexed yet.
    fn tail(&mut self, next: u64) -> Result<SearchEnd, DbError> {
        let Some(mut at) = self.before.checked_sub(1) else { return Ok(SearchEnd::All) };
        loop {
            let runs = self.reader.runs_back_from(self.conversation, at, RUNS)?;
            if runs.is_empty() {
                return Ok(SearchEnd::All);
            }
            for place in runs {
                at = place.first.saturating_sub(1);
                for entry in self.read(&place)?.iter().rev() {
                    if entry.n >= self.before {
                        continue;
                    }
                    if place.seq_of(entry.n) < next {
                        return Ok(SearchEnd::All);
                    }
                    let n = entry.n;
                    if self.matches(entry) {
                        self.take(entry.clone());
                    }
                    if self.is_over() {
                        return Ok(SearchEnd::At(SearchFrom::below(n)));
                    }
                }
            }
        }
    }

    /// The entries of a run.
    fn read(&self, place: &RunPlace) -> Result<Vec<RunEntry>, DbError> {
        let entries = self.reader.run(place)?.entries().collect::<Result<Vec<_>, _>>();
        Ok(entries.map_err(StoreError::from)?)
    }

    /// Whether the text of an entry matches; an erased one has none.
    fn matches(&self, entry: &RunEntry) -> bool {
        let query = &self.query;
        entry.body_matches() && query.matches(&file_body::text(entry.kind, &entry.body))
    }

    /// The entry with this sequence, if it is in this conversation.
    fn entry(&mut self, seq: u64) -> Result<Option<RunEntry>, DbError> {
        let contains =
            |place: &RunPlace| (place.seq..place.seq + u64::from(place.count)).contains(&seq);
        if !self.run.as_ref().is_some_and(|(place, _)| contains(place)) {
            let Some(place) = self.reader.run_of(seq)? else { return Ok(None) };
            self.run = Some((place, self.read(&place)?));
        }
        let Some((place, entries)) = &self.run else { return Ok(None) };
        if place.conversation != self.conversation {
            return Ok(None);
        }
        Ok(entries.iter().find(|entry| place.seq_of(entry.n) == seq).cloned())
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
        let mut select = self.words.prepare_cached(
            "SELECT rowid FROM words WHERE words MATCH ?1 AND rowid < ?2 AND rowid >= ?3
             ORDER BY rowid DESC",
        )?;
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
        below: u64,
        from: u64,
        read: bool,
    ) -> Result<Option<u64>, DbError> {
        let mut rows = select.query(params![fts, int(below), int(from)])?;
        while let Some(row) = rows.next()? {
            let seq = get_uint(row, 0)?;
            // The words of an erased entry are gone from the index, so the second test is only a
            // safeguard.
            if let Some(entry) = self.entry(seq)?
                && entry.body_matches()
                && (!read || self.matches(&entry))
            {
                self.take(entry);
            }
            if self.is_over() {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    fn take(&mut self, entry: RunEntry) {
        let entry = entry.into_stored();
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

    /// The sequence of the conversation's first entry with a number of at least `n`.
    fn seq_of(&self, n: u64) -> Result<Option<u64>, DbError> {
        let n = n.max(1);
        let runs = self.reader.runs_back_from(self.conversation, n, 1)?;
        let run = runs.first().filter(|run| run.last() >= n);
        Ok(run.map(|run| run.seq_of(n)))
    }

    /// Adds indexed words that begin with `prefix` to `words`.
    ///
    /// Adds at least one word, if there is another, and continues until the time is over. A word
    /// costs one seek, which reads the pages of that word's list (0.8 ms in a million entries) and
    /// none of its entries.
    fn prefix_words(&self, prefix: &str, mut words: Vec<String>) -> Result<PrefixWords, DbError> {
        let mut seek = self.words.prepare_cached(SEEK)?;
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
    use std::sync::Arc;
    use std::time::Duration;

    use rusqlite::StatementStatus;
    use tempfile::TempDir;
    use twinlock_store::{Close as _, EntryLog as _, EntrySearch as _, LOBBY};

    use super::*;
    use crate::database;
    use crate::index::INDEX;
    use crate::log::{self, Faults, Segments};
    use crate::open::tests::{entry, with_ada};
    use crate::tail::Tail;
    use crate::words::WORDS as WORDS_DB;

    /// An indexed record whose lobby has `text` this often.
    struct Record {
        _dir: TempDir,
        words: Connection,
        index: Connection,
        tail: Tail,
        segments: Arc<Segments>,
    }

    impl Record {
        async fn new(entries: usize, text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("record");
            let store = with_ada(&path).await;
            let mut left = entries;
            while left > 0 {
                let count = left.min(500);
                let new = (0..count).map(|_| entry(text)).collect();
                store.append(new).await.unwrap();
                left -= count;
            }
            while store.unindexed() > 0 {
                tokio::task::yield_now().await;
            }
            store.close().await.unwrap();
            drop(store);
            let id = log::record_id(&path).unwrap().unwrap();
            let segments = Arc::new(Segments::new(&path, id, &Faults::default()));
            let reader = |file| database::reader(&path.join(file)).unwrap();
            let (words, index) = (reader(WORDS_DB.file), reader(INDEX.file));
            Self { words, index, tail: Tail::default(), segments, _dir: dir }
        }

        /// Runs a search in slices of this time. Returns their number, and that of the entries.
        fn slices(&self, text: &str, time: Duration) -> (usize, usize) {
            let limit = ReadLimit { entries: 100, bytes: usize::MAX };
            let Self { words, index, tail, segments, .. } = self;
            let reader = EntryReader { index, tail, segments };
            let (mut slices, mut found) = (0, 0);
            let mut from = Some(SearchFrom::below(u64::MAX));
            while let Some(at) = from
                && slices < 1000
            {
                let until = Instant::now() + time;
                let result = some(words, reader, LOBBY, text, at, limit, until).unwrap();
                (from, found, slices) = (result.next, found + result.entries.len(), slices + 1);
            }
            (slices, found)
        }

        fn seeks(&self, what: StatementStatus) -> i32 {
            self.words.prepare_cached(SEEK).unwrap().reset_status(what)
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread")]
    async fn search__word_list_cost_is_independent_of_frequency() {
        let mut steps = Vec::new();
        for entries in [10, 3000] {
            let record = Record::new(entries, "common commonly commons").await;
            assert_eq!(record.slices("comm", LONG).1, entries);
            steps.push(record.seeks(StatementStatus::VmStep));
        }
        assert!(steps[0] > 0);
        assert_eq!(steps[0], steps[1]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn search__word_list_is_read_once_for_all_slices() {
        let record = Record::new(100, "common commonly commons").await;
        assert_eq!(record.slices("comm", LONG).1, 100);
        // One seek for each word, and one for the end of the list.
        assert_eq!(record.seeks(StatementStatus::Run), 4);
        let (slices, found) = record.slices("comm", Duration::ZERO);
        assert_eq!((record.seeks(StatementStatus::Run), found), (4, 100));
        // Without time, a slice reads one word or one entry.
        assert!((104..1000).contains(&slices), "{slices}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn search__word_truncated_by_the_index_is_skipped() {
        // More than 32 KiB after decomposition, cut inside a character of two bytes.
        let text = format!("commo{}", "\u{fb2c}".repeat(6000));
        let record = Record::new(1, &text).await;
        // It is read from the record instead.
        assert_eq!(record.slices("comm", LONG).1, 1);
        assert_eq!(record.seeks(StatementStatus::Run), 1);
    }
}
