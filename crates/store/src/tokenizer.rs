//! The tokenizer, for the index, for queries, and for the scan of entries that are not indexed yet.
//!
//! A word is a run of letters, digits and marks, in lower case, in compatibility form and without
//! accents. Scripts without spaces are split into characters, so that any part of a sentence
//! matches.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Calls `word` with each word of `text`, in order.
fn each(text: &str, mut word: impl FnMut(&str)) {
    let mut run = String::new();
    let mut take = |c: char| {
        if is_unspaced(c) {
            flush(&mut run, &mut word);
            word(c.encode_utf8(&mut [0; 4]));
        } else if c.is_alphanumeric() || is_combining_mark(c) {
            run.extend(c.to_lowercase().filter(|c| !is_accent(*c)));
        } else {
            flush(&mut run, &mut word);
        }
    };
    // Most text needs no Unicode tables.
    if text.is_ascii() {
        text.chars().for_each(&mut take);
    } else {
        text.nfkd().filter(|c| !is_accent(*c)).for_each(&mut take);
    }
    take(' ');
}

fn flush(run: &mut String, word: &mut impl FnMut(&str)) {
    if !run.is_empty() {
        word(run);
        run.clear();
    }
}

/// The combining marks of Latin, Greek and Cyrillic letters. Marks of other scripts are vowels and
/// belong to the word.
fn is_accent(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}')
}

/// Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar.
fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{0e01}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3005}'..='\u{3007}' | '\u{3041}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// The words of a text, separated by spaces, as they are indexed.
#[must_use]
pub fn of_text(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut words = String::with_capacity(text.len());
    each(&text, |word| {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    });
    words
}

/// Minimum length of a prefix match, letters.
///
/// An index must find words by such a prefix. A shorter prefix would match nearly everything.
pub const PREFIX: usize = 3;

/// A query: all of these words must match, the last one as a prefix if it has [`PREFIX`] letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The words that match as a whole.
    pub whole: Vec<String>,
    /// The last word, if it matches as a prefix.
    pub prefix: Option<String>,
}

impl Query {
    /// Parses a query; `None`: it contains no word.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut whole = Vec::new();
        each(text, |word| whole.push(word.to_owned()));
        let is_long = whole.last()?.chars().nth(PREFIX - 1).is_some();
        let prefix = if is_long { whole.pop() } else { None };
        Some(Self { whole, prefix })
    }

    /// Whether a text matches the query.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        let text = String::from_utf8_lossy(text);
        let mut missing: Vec<&str> = self.whole.iter().map(String::as_str).collect();
        let mut prefix = self.prefix.is_none();
        each(&text, |word| {
            missing.retain(|wanted| *wanted != word);
            prefix |= self.prefix.as_ref().is_some_and(|prefix| word.starts_with(prefix));
        });
        prefix && missing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokenizer__folds_case_and_accents_and_splits_words() {
        for (text, words) in [
            ("Hello, World!", "hello world"),
            ("Crème BRÛLÉE\n2x", "creme brulee 2x"),
            ("e\u{301}t\u{e9} ﬁn", "ete fin"),
            ("会議は3時", "会 議 は 3 時"),
            ("हिन्दी भाषा", "हिन्दी भाषा"),
            ("İstanbul", "istanbul"),
            ("\u{1b}[31m\"quoted\" -x", "31m quoted x"),
            (" ... ", ""),
        ] {
            assert_eq!(of_text(text.as_bytes()), words.nfkd().collect::<String>(), "{text:?}");
        }
    }

    #[test]
    fn search_query__matches_all_words_and_prefix_of_the_last() {
        let body = "The quick brown fox".as_bytes();
        for (query, found) in [
            ("quick the", true),
            ("fox bro", true),
            ("bro fox", false),
            ("quick slow", false),
            ("QUICK", true),
            ("ick", false),
            ("fox the", true),
            // Two letters match as a whole word only.
            ("fox th", false),
        ] {
            assert_eq!(Query::new(query).unwrap().matches(body), found, "{query}");
        }
        assert!(Query::new(" -!\"").is_none());
    }
}
