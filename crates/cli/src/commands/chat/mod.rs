//! `chat`: a line-based chat.
//!
//! A typed line goes into the outbox, so it can be typed while there is no connection, and gets a
//! tick when it is recorded. Arriving entries are printed above the line that is being edited. The
//! chat follows its current room, the lobby and all direct conversations; entries of the latter two
//! show their conversation.
//!
//! The state of the chat is in the view models of [`twinlock_app`]. Here, `command` parses lines
//! into intents, `effects` performs what the models ask for, `render` prints their changes, and
//! `event_loop` decides when the chat ends.

mod command;
mod completion;
mod effects;
mod event_loop;
mod external_printer;
mod files;
mod keys;
mod render;
mod screen;

use std::time::Duration;

use twinlock_app::{App, AppOptions, Intent};
use twinlock_client::{Client, Options};
use twinlock_core::text::Untrusted;

use crate::args::ChatArgs;
use crate::context::{Context, OpenProfile};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::signals::interrupted;
use command::{COMMANDS, ChatInput, HELP};
use files::FileTransfers;
use screen::Screen;

/// Number of earlier entries shown at the start.
const BACKLOG: u64 = 20;
/// How long the end waits for unrecorded messages, unless `--timeout` is given.
const PATIENCE: Duration = Duration::from_secs(30);

/// A line-based renderer of an [`App`], with what the app needs from outside.
struct LineChat {
    out: Output,
    app: App,
    client: Client,
    screen: Screen,
    files: FileTransfers,
    /// Number of files that the server refused.
    refused_files: usize,
    /// The worst exit code of a failed file, without a terminal.
    failed: Option<Exit>,
}

pub(crate) async fn run(args: ChatArgs, context: Context) -> Result<(), Failure> {
    // Before the terminal is taken: from then on, no signal ends this without restoring it.
    let interrupt = interrupted();
    // Before slow steps: keys that are typed during them wait for the prompt.
    let (screen, mut input, mut suspensions) = Screen::open(args.plain, context.out)?;
    let OpenProfile { client, mut events, user } = context.open(Options::default())?;
    let options = AppOptions {
        is_interactive: screen.is_terminal(),
        backlog: if screen.is_terminal() { BACKLOG } else { 0 },
        // The terminal keeps what was printed.
        timeline_entries: 0,
    };
    let now = std::time::Instant::now();
    let mut chat = LineChat {
        out: context.out,
        app: App::new(user, args.target.to_string(), options, now),
        client,
        screen,
        files: FileTransfers::new(&context),
        refused_files: 0,
        failed: None,
    };
    if chat.screen.is_terminal() && !context.global.quiet {
        let words = format!("you are {}; /help lists the commands, exit quits", chat.app.user());
        chat.note(&words)?;
    }
    input.request_line(chat.app.conversations().open_target());
    let patience = context.global.timeout.unwrap_or(PATIENCE);
    let ended = chat.run(&mut input, &mut suspensions, &mut events, interrupt, patience).await;
    // An error may have left effects, such as read markers of entries that were never shown.
    chat.app.discard_effects();
    // The outbox is authoritative: any process of the profile may have sent the messages.
    let checked = chat.check_outbox().await;
    chat.screen.restore();
    let ended = ended.and(checked.map(|_| ())).and(chat.screen.report());
    let (queued, refused) = (chat.app.composer().queued_count(), chat.refused_count());
    if queued == 0 {
        chat.client.close().await;
    } else {
        context.out.warn(&format!(
            "{queued} of your messages {} queued in the outbox, not recorded; the next `chat`, \
             `send` or `listen` sends the rest",
            if queued == 1 { "is" } else { "are" }
        ));
    }
    let files = chat.app.transfers().open_count();
    if files > 0 {
        context.out.warn(&format!(
            "{files} of your files {} not sent or fetched; the same again, here or with `put` and \
             `get`, resumes where it stopped",
            if files == 1 { "is" } else { "are" }
        ));
    }
    match ended {
        Err(failure) if failure.exit == Exit::Done && queued + files > 0 => {
            Err(Failure::said(Exit::Queued))
        }
        Err(failure) if failure.exit != Exit::NoConnection || queued == 0 => Err(failure),
        _ if queued + files > 0 => Err(Failure::said(Exit::Queued)),
        _ if refused > 0 => Err(Failure::said(Exit::ServerSaidNo)),
        _ => chat.failed.map_or(Ok(()), |exit| Err(Failure::said(exit))),
    }
}

impl LineChat {
    fn is_unsettled(&self) -> bool {
        self.app.composer().queued_count() > 0 || self.app.transfers().open_count() > 0
    }

    /// Number of messages and files that the server refused.
    fn refused_count(&self) -> usize {
        self.app.composer().rejected_count() + self.refused_files
    }

    /// Takes over outcomes that any process of this profile has settled. Returns whether any were
    /// new.
    async fn check_outbox(&mut self) -> Result<bool, Failure> {
        let queued = self.app.composer().queued_count();
        self.app.check_outbox();
        self.update().await?;
        Ok(self.app.composer().queued_count() < queued)
    }

    /// Handles a typed line. Returns whether the chat continues.
    async fn take_line(&mut self, line: &str) -> Result<bool, Failure> {
        match ChatInput::parse(line) {
            ChatInput::Empty => {}
            ChatInput::Quit => return Ok(false),
            ChatInput::Help => self.screen.print(HELP)?,
            ChatInput::Intent(intent @ Intent::Send { .. }) => self.take_intent(intent).await?,
            ChatInput::Intent(intent) => {
                // A failed command ends a script, but not a chat on a terminal.
                if let Err(failure) = self.take_intent(intent).await {
                    if failure.exit == Exit::Done || !self.screen.is_terminal() {
                        return Err(failure);
                    }
                    self.print_error(&failure.message)?;
                }
            }
            ChatInput::Invalid(line) => {
                let name = line.split_whitespace().next().unwrap_or_default();
                let words = if COMMANDS.contains(&name) {
                    format!("{name} is not used like this; /help shows how")
                } else {
                    let line = Untrusted::new(line).render_line();
                    format!("unknown command {line}; /help lists the commands")
                };
                self.reject_line(&words)?;
            }
        }
        Ok(true)
    }

    async fn take_intent(&mut self, intent: Intent) -> Result<(), Failure> {
        match self.app.handle_intent(intent) {
            Ok(()) => self.update().await,
            Err(error) => self.reject_line(&error.to_string()),
        }
    }

    /// Reports a bad line: as a note on a terminal, else as an error that ends the script.
    fn reject_line(&mut self, words: &str) -> Result<(), Failure> {
        if self.screen.is_terminal() { self.note(words) } else { Err(Failure::usage(words)) }
    }
}
