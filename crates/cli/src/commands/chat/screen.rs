//! Input and output of `chat`: a terminal with a line editor, or plain streams.
//!
//! The editor runs on a separate thread and prints arriving entries above the line that is being
//! edited. It keeps its history in memory only, so that messages do not remain on disk.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{ColorMode, CompletionType, Config, Editor, Helper};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::command::COMMANDS;
use super::external_printer::LinePrinter;
use super::keys::Keys;
use crate::commands::input::LineReader;
use crate::exit::Failure;
use crate::output::{Gone, Output, Report, write_line};

type TypedLine = Result<String, Failure>;
type Completions = Arc<Mutex<BTreeSet<String>>>;

/// Where to print.
pub(super) struct Screen {
    /// Both ends are a terminal.
    is_terminal: bool,
    /// Prints above the line that is being edited, if there is an editor.
    printer: Option<Arc<LinePrinter>>,
    words: Completions,
    /// The output of a script.
    report: Option<Report>,
}

/// Typed input, line by line.
pub(super) struct Input {
    lines: mpsc::Receiver<TypedLine>,
    /// Lets the editor ask for the next line, with this prompt.
    prompts: Option<blocking::Sender<String>>,
}

impl Input {
    /// The next line, `None` at the end of the input. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<TypedLine> {
        self.lines.recv().await
    }

    /// Requests the next line, which goes to `target`, after the previous one was handled.
    pub(super) fn request_line(&mut self, target: &str) {
        if let Some(prompts) = &self.prompts {
            let _ended = prompts.send(format!("{target}> "));
        }
    }
}

/// Requests to suspend this process, if that takes more than the system's default action.
pub(super) struct Suspensions(Option<Signal>);

impl Suspensions {
    /// Resolves at a request; the caller then calls [`Screen::suspend`]. Cancel-safe.
    pub(super) async fn next(&mut self) {
        match &mut self.0 {
            Some(asked) => _ = asked.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Screen {
    /// Opens a line editor if both ends are a terminal that supports one. Otherwise, or with
    /// `plain`, reads plain lines.
    pub(super) fn open(plain: bool, out: Output) -> Result<(Self, Input, Suspensions), Failure> {
        let words = Completions::default();
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        if !is_terminal || plain || dumb() {
            let report = if is_terminal { None } else { Some(Report::begin(out)?) };
            let screen = Self { is_terminal, printer: None, words, report };
            let input = Input { lines: read_plain(), prompts: None };
            return Ok((screen, input, Suspensions(None)));
        }
        let suspensions = signal(SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()));
        // Before anything else: from now on each key waits for the editor, also between two lines.
        let keys =
            Keys::begin().map_err(|error| Failure::usage(format!("the terminal: {error}")))?;
        let failed = |error: ReadlineError| Failure::usage(format!("the terminal: {error}"));
        // Forced, because the highlighted prompt is how text gets above it. The prompt has no
        // colour.
        let config = Config::builder().auto_add_history(true).color_mode(ColorMode::Forced);
        // Cycling through candidates would delay all output until the next key.
        let config = config.completion_type(CompletionType::List);
        let config = config.max_history_size(500).map_err(failed)?.build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(failed)?;
        let external = editor.create_external_printer().map_err(failed)?;
        let printer = LinePrinter::new(keys, Box::new(external));
        let typed = Arc::new(AtomicBool::new(false));
        let help =
            LineHelper { words: words.clone(), printer: printer.clone(), typed: typed.clone() };
        editor.set_helper(Some(help));
        let (lines, read) = mpsc::channel(1);
        let (prompts, asked) = blocking::channel();
        let above = printer.clone();
        std::thread::spawn(move || edit(editor, &lines, &asked, &above, &typed));
        let screen = Self { is_terminal, printer: Some(printer), words, report: None };
        let input = Input { lines: read, prompts: Some(prompts) };
        Ok((screen, input, Suspensions(suspensions.ok())))
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Prints lines above the line that is being edited.
    pub(super) fn print(&mut self, text: &str) -> Result<(), Gone> {
        match &self.printer {
            Some(printer) => printer.print(text),
            None if self.is_terminal => write_line(text),
            // The rest of a script is still sent.
            None => {
                if let Some(report) = &mut self.report {
                    report.line(text);
                }
                Ok(())
            }
        }
    }

    /// Fails if some of a script's output was not written although its reader still existed.
    pub(super) fn report(&mut self) -> Result<(), Failure> {
        self.report.take().map_or(Ok(()), Report::end)
    }

    /// Adds words that Tab completes: `#` and a room, or `@` and a user.
    pub(super) fn complete_with(&self, words: impl IntoIterator<Item = String>) {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).extend(words);
    }

    /// Suspends this process with the terminal restored; takes the terminal again on resume.
    pub(super) async fn suspend(&self) {
        if let Some(printer) = &self.printer {
            printer.suspend().await;
        }
    }

    /// Restores the terminal, even if the editor still waits for a line. Pending text is printed,
    /// and nothing afterwards.
    pub(super) fn restore(&mut self) {
        if let Some(printer) = &self.printer {
            printer.end();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Whether the terminal cannot edit lines, by the editor's own list.
fn dumb() -> bool {
    let cannot = |term: &OsStr| {
        ["dumb", "cons25", "emacs"].iter().any(|name| term.eq_ignore_ascii_case(name))
    };
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || cannot(&term))
}

fn edit(
    mut editor: Editor<LineHelper, MemHistory>,
    lines: &mpsc::Sender<TypedLine>,
    prompts: &blocking::Receiver<String>,
    printer: &LinePrinter,
    typed: &AtomicBool,
) {
    let mut cleared = None;
    while let Some(prompt) = cleared.take().or_else(|| prompts.recv().ok()) {
        if !printer.begin_line() {
            return;
        }
        typed.store(false, Ordering::Relaxed);
        let read = editor.readline(&prompt);
        printer.end_line();
        // Ctrl-C on a line with text clears it; on an empty line it ends the chat.
        if matches!(read, Err(ReadlineError::Interrupted)) && typed.load(Ordering::Relaxed) {
            cleared = Some(prompt);
            continue;
        }
        let line = match read {
            Ok(line) => Ok(line),
            Err(ReadlineError::Eof) => return,
            Err(ReadlineError::Interrupted) => Err(Failure::interrupted()),
            Err(error) => Err(Failure::usage(format!("the terminal: {error}"))),
        };
        let ended = line.is_err();
        if lines.blocking_send(line).is_err() || ended {
            return;
        }
    }
}

fn read_plain() -> mpsc::Receiver<TypedLine> {
    let (lines, read) = mpsc::channel(64);
    std::thread::spawn(move || {
        let mut input = match LineReader::stdin() {
            Ok(input) => input,
            Err(failure) => return drop(lines.blocking_send(Err(failure))),
        };
        while let Some(line) = input.next_line().transpose() {
            let ended = line.is_err();
            if lines.blocking_send(line).is_err() || ended {
                return;
            }
        }
    });
    read
}

/// Completes commands, paths, and the names of rooms and people, and prints above the prompt.
struct LineHelper {
    words: Completions,
    printer: Arc<LinePrinter>,
    /// The line that is being edited has text.
    typed: Arc<AtomicBool>,
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
