//! Reads standard input: as it is, or as messages, one per line.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use rustix::fs::OFlags;
use tokio::sync::mpsc;
use twinlock_core::limits::MAX_TEXT;

use crate::exit::Failure;
use crate::output::Output;

/// Most lines in one batch; a batch goes into the outbox with one disk sync.
const BATCH: usize = 512;
/// Bytes read at once.
const BUFFER: usize = 128 * 1024;
/// A byte order mark, which some editors put before text.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Batches of lines as they arrive; a line that is not a valid message is the last item.
pub(crate) type LineBatches = mpsc::Receiver<Result<Vec<String>, Failure>>;

/// Standard input.
///
/// # Errors
/// It is closed or open for writing only. The standard library treats both as empty input.
/// See `c/closed_streams.c`.
pub(crate) fn stdin() -> Result<io::Stdin, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::usage(format!("standard input: {why}"));
    let stdin = io::stdin();
    let flags = rustix::fs::fcntl_getfl(&stdin).map_err(|error| failed(&error))?;
    if flags & OFlags::RWMODE == OFlags::WRONLY {
        return Err(failed(&"it is closed, or not open for reading"));
    }
    Ok(stdin)
}

/// Reads standard input on a separate thread and batches the lines that are already available.
/// Skips blank lines.
pub(crate) fn read_lines(out: &Output) -> LineBatches {
    if io::stdin().is_terminal() {
        out.say("each line is a message; Ctrl-D ends the input");
    }
    let (lines, received) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut input = match LineReader::stdin() {
            Ok(input) => input,
            Err(failure) => return drop(lines.blocking_send(Err(failure))),
        };
        loop {
            let mut batch = Vec::new();
            let ended = loop {
                match input.next_line() {
                    Ok(Some(line)) => batch.extend((!line.trim().is_empty()).then_some(line)),
                    Ok(None) => break Some(None),
                    Err(failure) => break Some(Some(failure)),
                }
                if batch.len() >= BATCH || !input.has_line() {
                    break None;
                }
            };
            if !batch.is_empty() && lines.blocking_send(Ok(batch)).is_err() {
                return;
            }
            match ended {
                None => {}
                Some(None) => return,
                Some(Some(failure)) => return drop(lines.blocking_send(Err(failure))),
            }
        }
    });
    received
}

/// Reads lines of bounded length.
pub(crate) struct LineReader<R> {
    input: io::BufReader<R>,
    /// Number of the last line read, from 1.
    number: u64,
}

impl LineReader<io::Stdin> {
    pub(crate) fn stdin() -> Result<Self, Failure> {
        Ok(Self::new(stdin()?))
    }
}

impl<R: io::Read> LineReader<R> {
    fn new(input: R) -> Self {
        Self { input: io::BufReader::with_capacity(BUFFER, input), number: 0 }
    }

    /// The next line without its end, `None` at the end of the input. The error for an invalid
    /// message names the line; nothing can be read after it.
    pub(crate) fn next_line(&mut self) -> Result<Option<String>, Failure> {
        let mut line = Vec::new();
        // Room for the mark, the line end and one byte more, which shows that the message is too
        // long.
        let most = MAX_TEXT as u64 + 6;
        let read = (&mut self.input).take(most).read_until(b'\n', &mut line);
        if read.map_err(|error| Failure::usage(format!("standard input: {error}")))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.number == 1 && line.starts_with(MARK) {
            line.drain(..MARK.len());
        }
        if line.ends_with(b"\n") {
            line.pop();
            if line.ends_with(b"\r") {
                line.pop();
            }
        }
        let place = format!("line {} of the input", self.number);
        let hint = "the lines before it were sent, none after it";
        if line.len() > MAX_TEXT {
            return Err(too_long(&place).hint(hint));
        }
        String::from_utf8(line)
            .map(Some)
            .map_err(|_| Failure::usage(format!("{place} is not UTF-8 text")).hint(hint))
    }

    /// Whether a whole line is already buffered.
    fn has_line(&self) -> bool {
        self.input.buffer().contains(&b'\n')
    }
}

/// Fails if the text is not a valid message.
pub(crate) fn check_text(text: &str) -> Result<(), Failure> {
    if text.len() > MAX_TEXT {
        Err(too_long("the message"))
    } else if text.trim().is_empty() {
        Err(Failure::usage("the message is empty"))
    } else {
        Ok(())
    }
}

fn too_long(what: &str) -> Failure {
    Failure::usage(format!("{what} is longer than a message can be ({MAX_TEXT} bytes)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (Vec<String>, Option<String>) {
        let mut input = LineReader::new(bytes);
        let mut lines = Vec::new();
        loop {
            match input.next_line() {
                Ok(Some(line)) => lines.push(line),
                Ok(None) => return (lines, None),
                Err(failure) => return (lines, Some(failure.message)),
            }
        }
    }

    #[test]
    fn input__lines_are_read_without_line_ending() {
        let text = "\u{feff}one\r\n\n  two \nthree\r".as_bytes();
        let lines = ["one", "", "  two ", "three\r"].map(str::to_owned).to_vec();
        assert_eq!(read(text), (lines, None));
        assert_eq!(read(b""), (Vec::new(), None));
    }

    #[test]
    fn input__non_utf8_line_is_reported_and_ends_input() {
        let (lines, error) = read(b"good\n\xff\nmore\n");
        assert_eq!(lines, ["good"]);
        assert_eq!(error.unwrap(), "line 2 of the input is not UTF-8 text");
    }

    #[test]
    fn input__longest_message_is_accepted_and_longer_refused() {
        let longest = "x".repeat(MAX_TEXT);
        for end in ["", "\n", "\r\n"] {
            let (lines, error) = read(format!("{longest}{end}{longest}{end}").as_bytes());
            if end.is_empty() {
                assert_eq!((lines.len(), error.is_some()), (0, true));
            } else {
                assert_eq!((lines.len(), error), (2, None), "{end:?}");
            }
            let marked = format!("\u{feff}{longest}{end}");
            assert_eq!(read(marked.as_bytes()).0.len(), 1);
        }
        let (lines, error) = read(format!("a\n{longest}y\nb\n").as_bytes());
        assert_eq!(lines, ["a"]);
        assert!(error.unwrap().starts_with("line 2 of the input is longer"));
    }
}
