//! The only module that prints: data goes to standard output, messages to standard error.
//!
//! When the reader of standard output is gone (`twinlock listen | head`), writing reports [`Gone`]
//! and the command ends quietly. Nothing panics.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use rustix::fs::OFlags;
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;
use twinlock_core::text::{Untrusted, harmless_json};

use crate::exit::{Exit, Failure};
use crate::wrap::wrap;

/// Settings of the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    quiet: bool,
    /// Whether data may be lost.
    optional: bool,
    /// Whether standard output is a terminal.
    terminal: bool,
    color_out: bool,
    color_err: bool,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// A colour, by meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    Good,
    Warning,
    Bad,
    Dim,
    Bold,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
            Self::Dim => "2",
            Self::Bold => "1",
        }
    }
}

impl Output {
    pub(crate) fn new(color: Color, quiet: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v.is_empty() || v == "dumb");
        let on = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !plain,
        };
        Self {
            quiet,
            optional: false,
            terminal: io::stdout().is_terminal(),
            color_out: on(io::stdout().is_terminal()),
            color_err: on(io::stderr().is_terminal()),
        }
    }

    /// Writes one line of data.
    pub(crate) fn line(&self, line: &str) -> Result<(), Gone> {
        self.lines(&format!("{line}\n"))
    }

    /// Tolerates a closed standard output, for a server, which has a log.
    pub(crate) fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// Writes several lines of data in one write.
    pub(crate) fn lines(&self, lines: &str) -> Result<(), Gone> {
        if !self.optional {
            check_open()?;
        }
        let mut out = io::stdout().lock();
        out.write_all(lines.as_bytes()).and_then(|()| out.flush()).map_err(Gone)
    }

    /// Writes one JSON document as a line of data.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Gone> {
        self.line(&json(value))
    }

    /// Fails if standard output cannot take data. A command that prints a result only once calls
    /// this before it acts.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        Ok(check_open()?)
    }

    /// Whether `--quiet` was given.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Prints a message that `--quiet` suppresses.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            words(text);
        }
    }

    /// Prints the same without wrapping, for a command to copy or a QR code.
    pub(crate) fn say_as_is(&self, text: &str) {
        if !self.quiet {
            write_words(text);
        }
    }

    /// Prints a warning, also with `--quiet`.
    pub(crate) fn warn(&self, text: &str) {
        write_words(&self.err_style(Style::Warning, &wrap_lines(text)));
    }

    /// Prints why a command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        let width = words_width();
        if !failure.message.is_empty() {
            let head = "twinlock:";
            // Indented: it may contain untrusted text.
            let message = wrap(&failure.message, head.len() + 1, 2, width);
            write_words(&format!("{} {message}", self.err_style(Style::Bad, head)));
        }
        if let Some(hint) = &failure.hint {
            write_words(&format!("  {}", wrap(hint, 2, 2, width)));
        }
    }

    /// Wraps text that begins after `used` columns if standard output is a terminal, and indents
    /// the further lines; see [`crate::wrap`].
    pub(crate) fn wrap(&self, text: &str, used: usize, indent: usize) -> String {
        // Queried each time, because a window can be resized.
        wrap(text, used, indent, columns(io::stdout()))
    }

    /// Whether standard output is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether standard error is coloured.
    pub(crate) fn colors_words(&self) -> bool {
        self.color_err
    }

    pub(crate) fn style(&self, style: Style, text: &str) -> String {
        paint(self.color_out, style, text)
    }

    pub(crate) fn err_style(&self, style: Style, text: &str) -> String {
        paint(self.color_err, style, text)
    }
}

/// The JSON events of a command that acts. The command continues if they can no longer be written.
#[derive(Debug)]
pub(crate) struct JsonEvents {
    out: Output,
    gone: Option<Gone>,
}

impl JsonEvents {
    /// # Errors
    /// Standard output cannot be written to.
    pub(crate) fn begin(out: Output) -> Result<Self, Failure> {
        out.check()?;
        Ok(Self { out, gone: None })
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) {
        self.line(&json(value));
    }

    pub(crate) fn line(&mut self, line: &str) {
        if self.gone.is_none() {
            self.gone = self.out.line(line).err();
        }
    }

    /// # Errors
    /// Some events were not written although the reader still existed.
    pub(crate) fn end(self) -> Result<(), Failure> {
        match self.gone.map(Failure::from) {
            Some(failure) if failure.exit != Exit::Done => {
                Err(failure.hint("the command has done its work; only its output is incomplete"))
            }
            _ => Ok(()),
        }
    }
}

/// Waits until the reader of standard output is gone, if that is a pipe or a socket.
pub(crate) async fn reader_gone() {
    let gone = async {
        let out = io::stdout().as_fd().try_clone_to_owned()?;
        // Unchecked: the checked constructor makes the stream non-blocking for every process that
        // shares it. A file fails here; a terminal never reports this error.
        let out = Sender::from_owned_fd_unchecked(out)?;
        loop {
            let ready = out.ready(Interest::ERROR).await?;
            if ready.is_error() || ready.is_write_closed() {
                return io::Result::Ok(());
            }
            // Spurious readiness, which may persist: do not spin.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    if gone.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Fails if standard output is closed or open for reading only. The standard library reports
/// success in both cases. See `c/closed_streams.c`.
pub(crate) fn check_open() -> Result<(), Gone> {
    let flags = rustix::fs::fcntl_getfl(io::stdout()).map_err(io::Error::from)?;
    if flags & OFlags::RWMODE == OFlags::RDONLY {
        return Err(Gone(io::Error::other("it is closed, or not open for writing")));
    }
    Ok(())
}

/// Writes a line of data.
pub(crate) fn write_line(line: &str) -> Result<(), Gone> {
    check_open()?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Gone)
}

/// Prints a message, wrapped if standard error is a terminal.
pub(crate) fn words(text: &str) {
    write_words(&wrap_lines(text));
}

/// Columns of a stream's terminal; unlimited if it is not a terminal or the size is unknown.
fn columns(stream: impl AsFd + io::IsTerminal) -> usize {
    let size = if stream.is_terminal() { tcgetwinsize(stream).ok() } else { None };
    size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(usize::MAX)
}

fn words_width() -> usize {
    columns(io::stderr())
}

fn wrap_lines(text: &str) -> String {
    let width = words_width();
    let lines: Vec<_> = text.split('\n').map(|line| wrap(line, 0, 0, width)).collect();
    lines.join("\n")
}

pub(crate) fn write_words(text: &str) {
    // A failure to write to standard error cannot be reported anywhere.
    let _gone = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a question; the answer is typed on the same line.
pub(crate) fn prompt(text: &str) {
    let mut err = io::stderr().lock();
    let _gone = write!(err, "{text}").and_then(|()| err.flush());
}

fn paint(on: bool, style: Style, text: &str) -> String {
    if on { format!("\u{1b}[{}m{text}\u{1b}[0m", style.code()) } else { text.to_owned() }
}

/// A name or path, safe to show to people.
pub(crate) fn harmless(text: &str) -> String {
    Untrusted::new(text).render_line()
}

/// A JSON document on one line, safe to print on a terminal.
pub(crate) fn json(value: &impl Serialize) -> String {
    // Every line is an object. Serialization does not fail: paths go through `json_path`.
    let json = serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned());
    harmless_json(&json).into_owned()
}

/// A path for JSON, whose strings are Unicode: `\xNN` is a byte outside UTF-8 in two hexadecimal
/// digits, and `\\` a backslash.
pub(crate) fn json_path(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut escaped = String::with_capacity(bytes.len() + 8);
    for part in bytes.utf8_chunks() {
        escaped += &part.valid().replace('\\', "\\\\");
        for byte in part.invalid() {
            escaped += &format!("\\x{byte:02x}");
        }
    }
    escaped
}

/// Standard output cannot be written to.
#[derive(Debug)]
pub(crate) struct Gone(io::Error);

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<Gone> for Failure {
    fn from(Gone(error): Gone) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::said(Exit::Done)
        } else {
            Self::usage(format!("standard output: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_path__non_utf8_and_backslash_are_escaped() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = |bytes| json_path(Path::new(std::ffi::OsStr::from_bytes(bytes)));
        assert_eq!(path(b"dir/caf\xc3\xa9 x"), "dir/caf\u{e9} x");
        // Otherwise this name would look like the next one.
        assert_eq!(path(b"caf\\xe9"), "caf\\\\xe9");
        assert_eq!(path(b"dir/caf\xe9\\\xff.txt"), "dir/caf\\xe9\\\\\\xff.txt");
    }
}
