//! Where `chat` reads and prints: a terminal with a line editor, or plain streams.
//!
//! The editor runs on a thread of its own and prints what arrives above the line that is being
//! typed. It keeps its history in memory only: what was said does not lie about on disk.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{ColorMode, Config, Editor, Helper};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::above::Above;
use super::keys::Keys;
use crate::commands::input::LineReader;
use crate::exit::Failure;
use crate::output::{Gone, write_line};

type Line = Result<String, Failure>;
type Words = Arc<Mutex<Vec<String>>>;

/// Where to print.
pub(super) struct Screen {
    /// Both ends are a terminal.
    person: bool,
    /// What is printed above the line that is being typed, where one is edited.
    above: Option<Arc<Above>>,
    words: Words,
}

/// What is typed, line by line.
pub(super) struct Input {
    lines: mpsc::Receiver<Line>,
    /// Lets the editor ask for the next line, with this prompt.
    prompts: Option<blocking::Sender<String>>,
}

impl Input {
    /// `None` at its end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Line> {
        self.lines.recv().await
    }

    /// What came before is dealt with; the next line goes to `target`.
    pub(super) fn go_on(&mut self, target: &str) {
        if let Some(prompts) = &self.prompts {
            let _ended = prompts.send(format!("{target}> "));
        }
    }
}

/// When this process is to be suspended, where that takes more than the system does by itself.
pub(super) struct Suspensions(Option<Signal>);

impl Suspensions {
    /// Whoever hears it calls [`Screen::suspend`]. Cancel-safe.
    pub(super) async fn next(&mut self) {
        match &mut self.0 {
            Some(asked) => _ = asked.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Screen {
    /// A line editor if both ends are a terminal that can be written to anywhere, else plain
    /// lines.
    pub(super) fn open() -> Result<(Self, Input, Suspensions), Failure> {
        let words = Words::default();
        let person = io::stdin().is_terminal() && io::stdout().is_terminal();
        if !person || dumb() {
            let screen = Self { person, above: None, words };
            let input = Input { lines: read_plain(), prompts: None };
            return Ok((screen, input, Suspensions(None)));
        }
        let suspensions = signal(SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()));
        // Before anything else: from now on each key waits for the editor, also between two lines.
        let keys =
            Keys::begin().map_err(|error| Failure::usage(format!("the terminal: {error}")))?;
        let failed = |error: ReadlineError| Failure::usage(format!("the terminal: {error}"));
        // The colours are those of the prompt, which has none: it is how text gets above it.
        let config = Config::builder().auto_add_history(true).color_mode(ColorMode::Forced);
        let config = config.max_history_size(500).map_err(failed)?.build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(failed)?;
        let printer = editor.create_external_printer().map_err(failed)?;
        let above = Above::new(keys, Box::new(printer));
        editor.set_helper(Some(Help { words: words.clone(), above: above.clone() }));
        let (lines, read) = mpsc::channel(1);
        let (prompts, asked) = blocking::channel();
        let state = above.clone();
        std::thread::spawn(move || edit(editor, &lines, &asked, &state));
        let screen = Self { person, above: Some(above), words };
        let input = Input { lines: read, prompts: Some(prompts) };
        Ok((screen, input, Suspensions(suspensions.ok())))
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.person
    }

    /// Prints lines above what is being typed.
    pub(super) fn print(&mut self, text: &str) -> Result<(), Gone> {
        match &self.above {
            Some(above) => above.print(text),
            None => write_line(text),
        }
    }

    /// Words that the tabulator completes.
    pub(super) fn complete_with(&self, words: Vec<String>) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// Suspends this process with the terminal as it was, and takes it again when it goes on.
    pub(super) async fn suspend(&self) {
        if let Some(above) = &self.above {
            above.suspend().await;
        }
    }

    /// Gives the terminal back as it was, also while the editor still waits for a line. What was
    /// to be printed is printed, and nothing afterwards.
    pub(super) fn restore(&mut self) {
        if let Some(above) = &self.above {
            above.end();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Where no line can be edited: the editor's own list.
fn dumb() -> bool {
    let cannot = |term: &OsStr| {
        ["dumb", "cons25", "emacs"].iter().any(|name| term.eq_ignore_ascii_case(name))
    };
    std::env::var_os("TERM").is_none_or(|term| cannot(&term))
}

fn edit(
    mut editor: Editor<Help, MemHistory>,
    lines: &mpsc::Sender<Line>,
    prompts: &blocking::Receiver<String>,
    above: &Above,
) {
    while let Ok(prompt) = prompts.recv() {
        if !above.begin_line() {
            return;
        }
        let read = editor.readline(&prompt);
        above.end_line();
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

fn read_plain() -> mpsc::Receiver<Line> {
    let (lines, read) = mpsc::channel(64);
    std::thread::spawn(move || {
        let mut input = LineReader::stdin();
        while let Some(line) = input.next_line().transpose() {
            let ended = line.is_err();
            if lines.blocking_send(line).is_err() || ended {
                return;
            }
        }
    });
    read
}

/// Completes the names of rooms and people, and prints above the prompt.
struct Help {
    words: Words,
    above: Arc<Above>,
}

impl Completer for Help {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..pos).unwrap_or_default();
        let start = typed.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let word = typed.get(start..).unwrap_or_default();
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = |candidate: &&String| !word.is_empty() && candidate.starts_with(word);
        Ok((start, words.iter().filter(begins).cloned().collect()))
    }
}

impl Highlighter for Help {
    /// Called each time the prompt is drawn anew, on a row that was cleared.
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        let text = self.above.take();
        if text.is_empty() { Cow::Borrowed(prompt) } else { Cow::Owned(text + prompt) }
    }
}

impl Hinter for Help {
    type Hint = String;
}
impl Validator for Help {}
impl Helper for Help {}
