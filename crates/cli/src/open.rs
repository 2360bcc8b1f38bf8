//! What most commands begin with: the profile, its state, a line to its server.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;

use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use twinlock_client::home::Home;
use twinlock_client::profile::{self, Profile};
use twinlock_client::state::State;
use twinlock_client::{Client, Event, Options};
use twinlock_core::credential::Password;
use twinlock_core::id::Name;
use twinlock_core::proto;
use twinlock_core::session::Binding;
use zeroize::Zeroizing;

use crate::args::Global;
use crate::exit::Failure;
use crate::logging::Logs;
use crate::output::Output;

/// What a command knows of its surroundings.
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) out: Output,
}

/// A profile in use.
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) user: Name,
}

impl Context {
    pub(crate) fn home(&self) -> Result<Home, Failure> {
        Ok(Home::locate()?)
    }

    /// Which profile was asked for.
    pub(crate) fn profile_name(&self) -> Result<Name, Failure> {
        Ok(profile::choose(self.global.profile.as_deref(), |name| std::env::var_os(name))?)
    }

    pub(crate) fn profile(&self) -> Result<Profile, Failure> {
        Ok(Profile::load(&self.home()?, &self.profile_name()?)?)
    }

    /// Opens the profile and starts its client.
    pub(crate) fn open(&self, mut options: Options) -> Result<Opened, Failure> {
        let home = self.home()?;
        let profile = self.profile()?;
        let level = if self.global.verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
        let dir = home.make_state(profile.name())?;
        Logs { file: &dir.join("client.log"), console: false, level, json: false, color: false }
            .start();
        let state = State::open(&home, &profile)?;
        let user = profile.user().clone();
        options.address.clone_from(&self.global.address);
        let (client, events) = Client::start(&home, profile, state, options)?;
        Ok(Opened { client, events, user })
    }

    /// A client for one question: it tries once and sends nothing.
    pub(crate) fn ask_once(&self) -> Result<Client, Failure> {
        let options = Options { reconnect: false, send: false, ..Options::default() };
        let Opened { client, mut events, .. } = self.open(options)?;
        let out = self.out;
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let Event::Up(up) = event {
                    warn_about_tls(&out, up.binding);
                }
            }
        });
        Ok(client)
    }
}

/// Tells the person when TLS does not reach the server.
pub(crate) fn warn_about_tls(out: &Output, binding: Binding) {
    if let Some(warning) = tls_warning(binding) {
        out.warn(warning);
    }
}

/// What the person has to know about TLS, if anything.
pub(crate) fn tls_warning(binding: Binding) -> Option<&'static str> {
    match binding {
        Binding::Cut => Some(
            "TLS ends somewhere between you and the server: a proxy, or somebody with a forged \
             certificate.\nThe inner lock held: nobody between reads what you write. Names, sizes \
             and times can be seen there.",
        ),
        Binding::Unknown => Some(
            "The server says nothing about its end of TLS, so it is not known whether anybody \
             ends it in between.\nThe inner lock held.",
        ),
        Binding::Bound | Binding::Off => None,
    }
}

/// How a conversation is written on the command line.
pub(crate) fn target_of(conversation: &proto::Conversation) -> String {
    match conversation.kind() {
        proto::conversation::Kind::Direct => format!("@{}", conversation.name),
        _ => conversation.name.clone(),
    }
}

/// Longest password file that is read, bytes.
const PASSWORD_FILE: u64 = 8 * 1024;

/// A password from a file, else from the environment, else from the terminal.
pub(crate) fn password(
    file: Option<&Path>,
    variable: &str,
    prompt: &str,
) -> Result<Password, Failure> {
    match stored_password(file, variable)? {
        Some(password) => Ok(password),
        None => ask_password(prompt),
    }
}

/// A new password, typed twice where it is typed.
pub(crate) fn new_password(
    file: Option<&Path>,
    variable: &str,
    prompt: &str,
) -> Result<Password, Failure> {
    if let Some(password) = stored_password(file, variable)? {
        return Ok(password);
    }
    loop {
        let first = prompt_secret(prompt)?;
        let password = match Password::new(&first) {
            Ok(password) => password,
            Err(problem) => {
                eprint(&problem.to_string());
                continue;
            }
        };
        if *first == *prompt_secret("The same again: ")? {
            return Ok(password);
        }
        eprint("These were two different passwords.");
    }
}

/// Whether there is somebody to ask.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn stored_password(file: Option<&Path>, variable: &str) -> Result<Option<Password>, Failure> {
    let text = match file {
        Some(path) => {
            let fail = |error: io::Error| Failure::usage(format!("{}: {error}", path.display()));
            let mut text = Zeroizing::new(String::with_capacity(PASSWORD_FILE as usize + 1));
            let from = std::fs::File::open(path).map_err(fail)?;
            from.take(PASSWORD_FILE).read_to_string(&mut text).map_err(fail)?;
            text
        }
        None => match std::env::var(variable) {
            Ok(text) => Zeroizing::new(text),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Failure::usage(format!("{variable} is not UTF-8")));
            }
        },
    };
    // The line end is the file's, not the password's.
    let typed = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t));
    let password = Password::new(typed.unwrap_or(&text)).map_err(Failure::usage)?;
    Ok(Some(password))
}

fn ask_password(prompt: &str) -> Result<Password, Failure> {
    Password::new(&prompt_secret(prompt)?).map_err(Failure::usage)
}

fn prompt_secret(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    if !can_ask() {
        return Err(Failure::usage("there is no terminal to ask for the password")
            .hint("--password-file FILE reads it from a file"));
    }
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|error| Failure::usage(format!("the password could not be read: {error}")))
}

fn eprint(words: &str) {
    crate::output::words(words);
}

/// Asks a question that has a visible answer; `default` for an empty one.
pub(crate) fn ask(question: &str, default: Option<&str>) -> Result<String, Failure> {
    if !can_ask() {
        return Err(Failure::usage("there is no terminal to ask on"));
    }
    let shown = default.map_or(String::new(), |d| format!(" [{d}]"));
    crate::output::prompt(&format!("{question}{shown}: "));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.map_err(|error| Failure::usage(format!("standard input: {error}")))? == 0 {
        return Err(Failure::interrupted());
    }
    let answer = answer.trim();
    Ok(if answer.is_empty() { default.unwrap_or_default().to_owned() } else { answer.to_owned() })
}
