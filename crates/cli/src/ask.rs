//! Asks the user for passwords and names.
//!
//! A blocking thread reads the answer, so that Ctrl-C and `--timeout` work while a question is
//! open. In both cases the terminal gets its echo back.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use twinlock_core::credential::Password;
use zeroize::Zeroizing;

use crate::exit::Failure;
use crate::input::stdin;
use crate::output::{prompt, words};

/// How long a dropped question may take to end or to wait for a key.
const REST: Duration = Duration::from_millis(500);
/// Longest password file that is read, bytes.
const PASSWORD_FILE: u64 = 8 * 1024;

/// Environment variables that hold a secret. No child process inherits them.
pub(crate) const SECRET_VARIABLES: [&str; 2] = ["TWINLOCK_PASSWORD", "TWINLOCK_NEW_PASSWORD"];

/// A password from a file, else from the environment, else from the terminal.
pub(crate) async fn password(
    file: Option<&Path>,
    variable: &str,
    question: &str,
) -> Result<Password, Failure> {
    match stored_password(file, variable).await? {
        Some(password) => Ok(password),
        None => Password::new(&secret(question, "--password-file").await?).map_err(Failure::usage),
    }
}

/// A new password, asked for twice on a terminal.
pub(crate) async fn new_password(
    file: Option<&Path>,
    variable: &str,
    question: &str,
) -> Result<Password, Failure> {
    if let Some(password) = stored_password(file, variable).await? {
        return Ok(password);
    }
    let [_, new] = SECRET_VARIABLES;
    let option = if variable == new { "--new-password-file" } else { "--password-file" };
    loop {
        let first = secret(question, option).await?;
        let password = match Password::new(&first) {
            Ok(password) => password,
            Err(problem) => {
                words(&problem.to_string());
                continue;
            }
        };
        if *first == *secret("The same again: ", option).await? {
            return Ok(password);
        }
        words("The two passwords differ.");
    }
}

/// Whether an environment variable is set and not empty.
pub(crate) fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Whether a user can be asked.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question whose answer is visible; an empty answer means `default`.
pub(crate) async fn ask(question: &str, default: Option<&str>) -> Result<String, Failure> {
    if !can_ask() {
        return Err(Failure::usage("no terminal to ask on"));
    }
    let shown = default.map_or(String::new(), |d| format!(" [{d}]"));
    prompt(&format!("{question}{shown}: "));
    let answer = waiting(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|read| (read > 0).then_some(answer))
    });
    let answer = answer.await?.ok_or_else(Failure::interrupted)?;
    let answer = answer.trim();
    Ok(if answer.is_empty() { default.unwrap_or_default().to_owned() } else { answer.to_owned() })
}

async fn stored_password(file: Option<&Path>, variable: &str) -> Result<Option<Password>, Failure> {
    let text = match file {
        Some(path) => {
            let fail = |error: io::Error| Failure::usage(format!("{}: {error}", path.display()));
            let bytes = secret_file(path, PASSWORD_FILE).await?.map_err(fail)?;
            let text =
                std::str::from_utf8(&bytes).map_err(|error| fail(io::Error::other(error)))?;
            Zeroizing::new(text.to_owned())
        }
        None => match std::env::var(variable) {
            // An empty variable counts as unset, as every variable does.
            Ok(text) if text.is_empty() => return Ok(None),
            Ok(text) => Zeroizing::new(text),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Failure::usage(format!("{variable} is not UTF-8")));
            }
        },
    };
    // The line end belongs to the file, not to the password.
    let typed = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t));
    let password = Password::new(typed.unwrap_or(&text)).map_err(Failure::usage)?;
    Ok(Some(password))
}

/// The first `most` bytes of a file, which may be a pipe, or `-` for standard input.
///
/// Reads on a blocking thread, because a pipe without a writer must not delay Ctrl-C.
///
/// # Errors
/// The outer one: standard input is closed. The inner one: the file cannot be read.
pub(crate) async fn secret_file(
    path: &Path,
    most: u64,
) -> Result<io::Result<Zeroizing<Vec<u8>>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(most as usize + 1));
    let stdin = if path == Path::new("-") { Some(stdin()?) } else { None };
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        match stdin {
            Some(stdin) => stdin.take(most).read_to_end(&mut bytes),
            None => std::fs::File::open(path)?.take(most).read_to_end(&mut bytes),
        }?;
        Ok(bytes)
    });
    Ok(read.await.map_err(io::Error::other).flatten())
}

async fn secret(question: &str, option: &str) -> Result<Zeroizing<String>, Failure> {
    if !can_ask() {
        return Err(Failure::usage("no terminal to ask for the password")
            .hint(format!("{option} FILE reads it from a file")));
    }
    let question = question.to_owned();
    waiting(move || {
        // Before the prompt, so that an immediate answer is not echoed either.
        let silent = Silent::begin();
        prompt(&question);
        let answer = rpassword::read_password().map(Zeroizing::new);
        drop(silent);
        answer
    })
    .await
}

/// Turns the terminal's echo off until it is dropped.
struct Silent(Option<Termios>);

impl Silent {
    fn begin() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut silent = before.clone();
            silent.local_modes.remove(LocalModes::ECHO);
            let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &silent);
        }
        Self(before)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _gone = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Awaits an answer; restores the terminal if the future is dropped.
async fn waiting<T: Send + 'static>(
    answer: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let (here, ended) = channel::<()>();
    let mut terminal = Echoing { before: tcgetattr(io::stdin()).ok(), ended };
    let answered = tokio::task::spawn_blocking(move || {
        let _here = here;
        answer()
    });
    let answered = answered.await.map_err(io::Error::other).and_then(|answered| answered);
    if answered.is_ok() {
        terminal.before = None;
    }
    answered.map_err(|error| match error.kind() {
        // Ctrl-C while keys are read one by one.
        io::ErrorKind::Interrupted => Failure::interrupted(),
        _ => Failure::usage(format!("the answer cannot be read: {error}")),
    })
}

/// Restores the terminal if it is dropped without an answer.
struct Echoing {
    before: Option<Termios>,
    /// Disconnected once the question has ended.
    ended: Receiver<()>,
}

impl Drop for Echoing {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The reader sets the terminal's mode before and after reading, on another thread.
            // After Ctrl-C it ends; otherwise it waits for a key and no longer changes the mode.
            let _ended = self.ended.recv_timeout(REST);
            // The next output starts on a new line.
            prompt("\n");
            let _gone = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
