//! Where `chat` reads and prints: a terminal with a line editor, or plain streams.
//!
//! The editor runs on a thread of its own and prints what arrives above the line that is being
//! typed. It keeps its history in memory only: what was said does not lie about on disk.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Editor, ExternalPrinter, Helper};
use tokio::sync::mpsc;

use crate::commands::input::LineReader;
use crate::exit::Failure;
use crate::output::{Gone, write_line};

type Line = Result<String, Failure>;
type Words = Arc<Mutex<Vec<String>>>;

/// Where to print.
pub(super) struct Screen {
    /// Both ends are a terminal.
    person: bool,
    printer: Option<Box<dyn ExternalPrinter + Send>>,
    /// As the terminal was before the editor.
    before: Option<Termios>,
    words: Words,
    /// The editor waits for keys, and the terminal is as it needs it.
    editing: Arc<AtomicBool>,
}

/// Ends the mode in which a terminal marks what is pasted.
const PASTE_UNMARKED: &str = "\u{1b}[?2004l";

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

    /// The line is dealt with; the next one goes to `target`.
    pub(super) fn go_on(&mut self, target: &str) {
        if let Some(prompts) = &self.prompts {
            let _ended = prompts.send(prompt(target));
        }
    }
}

fn prompt(target: &str) -> String {
    format!("{target}> ")
}

impl Screen {
    /// A line editor if both ends are a terminal that can be written to anywhere, else plain
    /// lines.
    pub(super) fn open(target: &str) -> Result<(Self, Input), Failure> {
        let words = Words::default();
        let editing = Arc::new(AtomicBool::new(false));
        let person = io::stdin().is_terminal() && io::stdout().is_terminal();
        if !person || dumb() {
            let screen = Self { person, printer: None, before: None, words, editing };
            return Ok((screen, Input { lines: read_plain(), prompts: None }));
        }
        let failed = |error: ReadlineError| Failure::usage(format!("the terminal: {error}"));
        let before = tcgetattr(io::stdin()).ok();
        let config = Config::builder().auto_add_history(true).max_history_size(500);
        let config = config.map_err(failed)?.build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(failed)?;
        editor.set_helper(Some(Names(words.clone())));
        let printer = editor.create_external_printer().map_err(failed)?;
        let (lines, read) = mpsc::channel(1);
        let (prompts, asked) = blocking::channel();
        let state = editing.clone();
        std::thread::spawn(move || edit(editor, &lines, &asked, &state));
        let _sent = prompts.send(prompt(target));
        let printer: Box<dyn ExternalPrinter + Send> = Box::new(printer);
        let screen = Self { person, printer: Some(printer), before, words, editing };
        Ok((screen, Input { lines: read, prompts: Some(prompts) }))
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.person
    }

    /// Prints lines above what is being typed.
    pub(super) fn print(&mut self, text: &str) -> Result<(), Gone> {
        match &mut self.printer {
            Some(printer) => printer.print(format!("{text}\n")).map_err(|error| {
                Gone::from(match error {
                    ReadlineError::Io(error) => error,
                    other => io::Error::other(other.to_string()),
                })
            }),
            None => write_line(text),
        }
    }

    /// Words that the tabulator completes.
    pub(super) fn complete_with(&self, words: Vec<String>) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// Gives the terminal back as it was, also while the editor still waits for a line. Nothing is
    /// printed by it afterwards.
    pub(super) fn restore(&mut self) {
        self.printer = None;
        let Some(before) = self.before.take() else { return };
        if self.editing.load(Ordering::SeqCst) {
            // What follows does not go on the line that was being typed.
            let mut out = io::stdout().lock();
            let _gone = write!(out, "{PASTE_UNMARKED}\r\n").and_then(|()| out.flush());
        }
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Where no line can be edited.
fn dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term == "dumb")
}

fn edit(
    mut editor: Editor<Names, MemHistory>,
    lines: &mpsc::Sender<Line>,
    prompts: &blocking::Receiver<String>,
    editing: &AtomicBool,
) {
    while let Ok(prompt) = prompts.recv() {
        editing.store(true, Ordering::SeqCst);
        let read = editor.readline(&prompt);
        editing.store(false, Ordering::SeqCst);
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

/// Completes the names of rooms and people.
struct Names(Words);

impl Completer for Names {
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
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = |candidate: &&String| !word.is_empty() && candidate.starts_with(word);
        Ok((start, words.iter().filter(begins).cloned().collect()))
    }
}

impl Hinter for Names {
    type Hint = String;
}
impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}
