//! Input and output of `chat`: a terminal with a line editor, or plain streams.
//!
//! The editor runs on a separate thread and prints arriving entries above the line that is being
//! edited. It keeps its history in memory only, so that messages do not remain on disk.

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, PoisonError};

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{ColorMode, CompletionType, Config, Editor};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::completion::{Completions, LineHelper};
use super::external_printer::LinePrinter;
use super::keys::Keys;
use crate::exit::Failure;
use crate::input::LineReader;
use crate::output::{Gone, JsonEvents, Output, write_line};

pub(super) type TypedLine = Result<String, Failure>;

/// Where to print.
pub(super) struct Screen {
    /// Both ends are a terminal.
    is_terminal: bool,
    /// Prints above the line that is being edited, if there is an editor.
    printer: Option<Arc<LinePrinter>>,
    words: Completions,
    /// The output of a script.
    report: Option<JsonEvents>,
}

/// Typed input, line by line.
pub(super) struct TypedInput {
    lines: mpsc::Receiver<TypedLine>,
    /// Lets the editor ask for the next line, with this prompt.
    prompts: Option<blocking::Sender<String>>,
}

impl TypedInput {
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
    pub(super) fn open(
        plain: bool,
        out: Output,
    ) -> Result<(Self, TypedInput, Suspensions), Failure> {
        let words = Completions::default();
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        if !is_terminal || plain || dumb() {
            let report = if is_terminal { None } else { Some(JsonEvents::begin(out)?) };
            let screen = Self { is_terminal, printer: None, words, report };
            let input = TypedInput { lines: read_plain(), prompts: None };
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
        let input = TypedInput { lines: read, prompts: Some(prompts) };
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
        self.report.take().map_or(Ok(()), JsonEvents::end)
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
