//! Queries of the full-text index, in the syntax of FTS5.

use twinlock_store::tokenizer::{PREFIX, Query};

/// How the last word is looked up.
pub(crate) enum LastWord<'q> {
    /// Unchanged: as a whole word, or as a prefix of [`PREFIX`] letters, which has a list in the
    /// index (`prefix` in its schema).
    AsItIs,
    /// As one of these words, which are all that have the prefix.
    Words(&'q [String]),
    /// By its first [`PREFIX`] letters; matches must be verified against the entry.
    Shortened,
}

/// The prefix of a query, if it is longer than the prefixes in the index.
pub(crate) fn long_prefix(query: &Query) -> Option<&str> {
    query.prefix.as_deref().filter(|prefix| prefix.chars().nth(PREFIX).is_some())
}

/// The query in FTS5 syntax. Inside quotes, no character of a word has a meaning.
pub(crate) fn to_fts(query: &Query, conversation: u64, last: &LastWord<'_>) -> String {
    let quoted = |word: &str| format!("\"{word}\"");
    let mut all: Vec<String> = query.whole.iter().map(|word| quoted(word)).collect();
    match (&query.prefix, last) {
        (None, _) => {}
        (Some(prefix), LastWord::AsItIs) => all.push(format!("{} *", quoted(prefix))),
        (Some(prefix), LastWord::Shortened) => {
            let short: String = prefix.chars().take(PREFIX).collect();
            all.push(format!("{} *", quoted(&short)));
        }
        (Some(_), LastWord::Words(words)) => {
            let any: Vec<_> = words.iter().map(|word| quoted(word)).collect();
            all.push(format!("({})", any.join(" OR ")));
        }
    }
    format!("place : {} AND body : ({})", quoted(&conversation.to_string()), all.join(" AND "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_query__text_is_never_fts_syntax() {
        let query = Query::new("a\" OR body:* NEAR(b)").unwrap();
        assert_eq!(
            to_fts(&query, 7, &LastWord::AsItIs),
            "place : \"7\" AND body : (\"a\" AND \"or\" AND \"body\" AND \"near\" AND \"b\")"
        );
        let query = Query::new("a nearly\"").unwrap();
        let words = ["nearly".to_owned(), "nearlyso".to_owned()];
        for (last, expected) in [
            (LastWord::AsItIs, "\"nearly\" *"),
            (LastWord::Shortened, "\"nea\" *"),
            (LastWord::Words(&words), "(\"nearly\" OR \"nearlyso\")"),
        ] {
            let expected = format!("place : \"7\" AND body : (\"a\" AND {expected})");
            assert_eq!(to_fts(&query, 7, &last), expected);
        }
    }
}
