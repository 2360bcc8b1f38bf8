//! Tab completion of `chat`, and the other hooks of its line editor.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::Helper;
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;

use super::command::COMMANDS;
use super::external_printer::LinePrinter;

/// Words that Tab completes.
pub(super) type Completions = Arc<Mutex<BTreeSet<String>>>;

/// Completes commands, paths, and the names of rooms and people, and prints above the prompt.
pub(super) struct LineHelper {
    pub(super) words: Completions,
    pub(super) printer: Arc<LinePrinter>,
    /// The line that is being edited has text.
    pub(super) typed: Arc<AtomicBool>,
}

impl Completer for LineHelper {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..pos).unwrap_or_default();
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(complete(typed, &words))
    }
}

/// The start of the completed word, and its candidates. `words` have a `#` or `@` prefix; a word
/// that is typed without one gets none.
fn complete(typed: &str, words: &BTreeSet<String>) -> (usize, Vec<String>) {
    if let Some(path) = typed.strip_prefix(PUT) {
        return (PUT.len(), paths(path));
    }
    let start = typed.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let word = typed.get(start..).unwrap_or_default();
    let found = match word.chars().next() {
        None => Vec::new(),
        Some('/') if start == 0 => {
            COMMANDS.iter().filter(|c| c.starts_with(word)).map(ToString::to_string).collect()
        }
        Some('#' | '@') => words.iter().filter(|w| w.starts_with(word)).cloned().collect(),
        Some(_) => {
            let bare = |w: &String| w.get(1..).filter(|w| w.starts_with(word)).map(str::to_owned);
            words.iter().filter_map(bare).collect()
        }
    };
    (start, found)
}

const PUT: &str = "/put ";

/// The paths that begin with `typed`; directories end with `/`. Hidden files are included only once
/// their dot is typed.
fn paths(typed: &str) -> Vec<String> {
    let (dir, name) = match typed.rfind('/') {
        Some(at) => typed.split_at(at + 1),
        None => ("", typed),
    };
    let Ok(entries) =
        std::fs::read_dir(super::files::expand_home(if dir.is_empty() { "." } else { dir }))
    else {
        return Vec::new();
    };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let found = entry.file_name().into_string().ok()?;
            let hidden = found.starts_with('.') && !name.starts_with('.');
            let is_dir = Path::is_dir(&entry.path());
            let end = if is_dir { "/" } else { "" };
            // Control characters in a name would act on the terminal.
            let plain = !found.chars().any(char::is_control);
            (found.starts_with(name) && !hidden && plain).then(|| format!("{dir}{found}{end}"))
        })
        .collect();
    found.sort_unstable();
    found
}

impl Highlighter for LineHelper {
    /// Called at each drawing of the prompt, on a cleared row.
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        let text = self.printer.take();
        if text.is_empty() { Cow::Borrowed(prompt) } else { Cow::Owned(text + prompt) }
    }
}

impl Hinter for LineHelper {
    type Hint = String;

    /// Gives no hint; it is called whenever the line changes.
    fn hint(&self, line: &str, _: usize, _: &rustyline::Context<'_>) -> Option<String> {
        self.typed.store(!line.is_empty(), Ordering::Relaxed);
        None
    }
}
impl Validator for LineHelper {}
impl Helper for LineHelper {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chat_completion__covers_commands_rooms_users_and_paths() {
        let words = ["#lobby", "#ops", "@bob", "@bert"].map(str::to_owned).into_iter().collect();
        let found = |typed: &str| complete(typed, &words);
        let list = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("/jo"), (0, list(&["/join"])));
        assert_eq!(found("/h"), (0, list(&["/help", "/history"])));
        assert_eq!(found("@b"), (0, list(&["@bert", "@bob"])));
        assert_eq!(found("hello @bo"), (6, list(&["@bob"])));
        assert_eq!(found("see #o"), (4, list(&["#ops"])));
        assert_eq!(found("/dm be"), (4, list(&["bert"])));
        assert_eq!(found("/join lo"), (6, list(&["lobby"])));
        assert_eq!(found(""), (0, Vec::new()));
        let dir = tempfile::tempdir().unwrap();
        for name in ["a b.txt", "abc", ".hidden"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(dir.path().join("adir")).unwrap();
        let dir = dir.path().to_str().unwrap();
        let path = |name: &str| format!("{dir}/{name}");
        let all = ["a b.txt", "abc", "adir/"].map(path).to_vec();
        assert_eq!(found(&format!("/put {dir}/a")), (5, all));
        assert_eq!(found(&format!("/put {dir}/a b")), (5, vec![path("a b.txt")]));
        assert_eq!(found(&format!("/put {dir}/.h")), (5, vec![path(".hidden")]));
        assert_eq!(found("/put /no/such/dir/x"), (5, Vec::new()));
    }
}
