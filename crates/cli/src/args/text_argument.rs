//! TARGET and TEXT of `send` and `room topic`, with `--` between them if TEXT begins with `-`.

use std::ffi::OsString;

use twinlock_client::Target;

use crate::exit::Failure;

/// Ends the options.
pub(super) const ESCAPE: &str = "--";

/// A target, and the text for it.
#[derive(Debug)]
pub(crate) struct TargetAndText {
    pub(crate) target: Target,
    pub(crate) text: Option<String>,
    /// Whether `--` precedes the text; then `-` is text, not standard input.
    pub(crate) escaped: bool,
}

/// Splits TARGET, an optional `--` and an optional TEXT. Refuses a TEXT that begins with `-`
/// without `--`, because it may be a misplaced option.
pub(super) fn target_and_text(words: Vec<String>) -> Result<TargetAndText, Failure> {
    let line: Vec<OsString> = std::env::args_os().collect();
    let before = line.len().checked_sub(words.len() + 1).and_then(|at| line.get(at));
    split(words, before.is_some_and(|word| word == ESCAPE))
}

/// `escaped`: whether `--` precedes all of them.
fn split(words: Vec<String>, mut escaped: bool) -> Result<TargetAndText, Failure> {
    let mut words = words.into_iter().peekable();
    let target = words.next().unwrap_or_default();
    let target: Target = target.parse().map_err(|problem| {
        Failure::usage(format!("'{}' is not a TARGET: {problem}", target.escape_debug()))
    })?;
    if !escaped && words.next_if(|word| word == ESCAPE).is_some() {
        escaped = true;
        if words.peek().is_none() {
            return Err(Failure::usage(format!("no text follows `--` after {target}"))
                .hint("a text of two dashes is `-- --`; without `--`, each line of standard input is sent"));
        }
    }
    let text = words.next();
    if let Some(text) = &text
        && text.starts_with('-')
        && text != "-"
        && !escaped
    {
        let text = text.escape_debug();
        return Err(Failure::usage(format!("'{text}' after {target} begins with '-'"))
            .hint("options go before TARGET; text that begins with '-' goes after `--`"));
    }
    match words.next() {
        None => Ok(TargetAndText { target, text, escaped }),
        Some(more) => Err(Failure::usage(format!(
            "'{}' is one argument too many: TEXT is one argument, so quote it",
            more.escape_debug()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn args__text_starting_with_dash_needs_escape() {
        let text = |list: &[&str], escaped| split(words(list), escaped).map(|split| split.text);
        assert_eq!(text(&["ops"], false).unwrap(), None);
        assert_eq!(text(&["ops", "-"], false).unwrap().as_deref(), Some("-"));
        assert!(text(&["ops", "--"], false).unwrap_err().message.contains("no text"));
        assert_eq!(text(&["ops", "--", "--"], false).unwrap().as_deref(), Some("--"));
        assert_eq!(text(&["ops", "--", "-h"], false).unwrap().as_deref(), Some("-h"));
        assert_eq!(text(&["ops", "-h"], true).unwrap().as_deref(), Some("-h"));
        assert_eq!(text(&["ops", "--"], true).unwrap().as_deref(), Some("--"));
        for refused in [&["ops", "-h"][..], &["ops", "--json", "x"], &["ops", "a", "b"]] {
            assert!(text(refused, false).is_err(), "{refused:?}");
        }
    }
}
