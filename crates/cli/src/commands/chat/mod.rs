//! `chat`: a line-based chat.
//!
//! A typed line goes into the outbox, so it can be typed while there is no connection, and gets a
//! tick when it is recorded. Arriving entries are printed above the line that is being edited. The
//! chat follows its current room, the lobby and all direct conversations; entries of the latter two
//! show their conversation.
//!
//! The state of the chat is in the view models of [`twinlock_app`]. Here, `command` parses lines
//! into intents, `effects` performs what the models ask for, `render` prints their changes, and the
//! loop below decides when the chat ends.

mod command;
mod effects;
mod external_printer;
mod files;
mod keys;
mod render;
mod screen;

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use twinlock_app::{App, AppOptions, Intent, load_roster};
use twinlock_client::{Client, ClientError, Event, Options};
use twinlock_core::text::Untrusted;

use super::send::{LOOK, QUIET, waits};
use crate::args::Chat;
use crate::exit::{Exit, Failure};
use crate::interrupted;
use crate::open::{Context, Opened};
use crate::output::Output;
use crate::patience::Patience;
use command::{COMMANDS, ChatInput, HELP};
use files::Files;
use screen::{Input, Screen, Suspensions};

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
    files: Files,
    /// Number of files that the server refused.
    refused_files: u32,
    /// The worst exit code of a failed file, without a terminal.
    failed: Option<Exit>,
}

pub(crate) async fn run(args: Chat, context: Context) -> Result<(), Failure> {
    // Before the terminal is taken: from then on, no signal ends this without restoring it.
    let interrupt = interrupted();
    // Before slow steps: keys that are typed during them wait for the prompt.
    let (screen, mut input, mut suspensions) = Screen::open(args.plain, context.out)?;
    let Opened { client, mut events, user } = context.open(Options::default())?;
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
        files: Files::new(&context),
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
    /// Runs until the user ends it, or until the input ends and all of it is recorded.
    async fn run(
        &mut self,
        input: &mut Input,
        suspensions: &mut Suspensions,
        events: &mut tokio::sync::mpsc::Receiver<Event>,
        interrupt: impl Future<Output = ()>,
        patience: Duration,
    ) -> Result<(), Failure> {
        let mut interrupt = std::pin::pin!(interrupt);
        let is_script = !self.screen.is_terminal();
        let mut is_loaded = false;
        // Kept across all iterations, because dropping the future would lose the request.
        let (client, target) =
            (self.client.clone(), self.app.conversations().open_target().to_owned());
        let mut loading = std::pin::pin!(load_roster(&client, &target));
        let mut open = true;
        let mut bad_input = None;
        let mut limited = None;
        let mut deadline = Patience::new(patience);
        let mut is_explained = false;
        let mut closed_at = Instant::now();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while open || self.is_unsettled() {
            // Until its last line is settled, a script reads no more; the deadline counts as after
            // the end of the input.
            let settles = is_script && open && self.must_settle();
            let waits = !open || settles;
            if !waits {
                closed_at = Instant::now();
            } else {
                // No key is read any more, so signal keys (Ctrl-C) work again.
                self.screen.restore();
                if self.app.connection().is_down() && !is_explained {
                    is_explained = true;
                    self.explain_wait(patience);
                }
            }
            let timeout = self.app.poll_timeout().map(Instant::from_std);
            tokio::select! {
                roster = &mut loading, if !is_loaded => {
                    is_loaded = true;
                    match roster.map_err(Failure::from) {
                        Ok(roster) => {
                            self.app.handle_roster(roster);
                            self.update().await?;
                        }
                        // Wait until the server refuses the earlier lines, so that none stays
                        // queued.
                        Err(failure) if is_script && self.app.composer().queued_count() > 0 => {
                            bad_input = Some(failure);
                            open = false;
                            deadline.renew();
                        }
                        Err(failure) => return Err(failure),
                    }
                }
                line = input.next(), if open && !settles => match line {
                    Some(Ok(line)) => {
                        deadline.renew();
                        match self.take_line(&line).await {
                            Ok(is_open) => open = is_open,
                            // The next line may be meant for the room that this one failed to
                            // enter.
                            Err(failure) if is_script && failure.exit != Exit::Done => {
                                bad_input = Some(failure.hint("no line after it was sent"));
                                open = false;
                            }
                            Err(failure) => return Err(failure),
                        }
                        if open {
                            input.request_line(self.app.conversations().open_target());
                        }
                    }
                    Some(Err(failure)) if failure.exit == Exit::Interrupted => return Err(failure),
                    // Earlier lines are still recorded.
                    Some(Err(failure)) => {
                        bad_input = Some(failure);
                        open = false;
                        deadline.renew();
                    }
                    None => {
                        open = false;
                        deadline.renew();
                    }
                },
                event = events.recv(), if limited.is_none() => match event {
                    // Another process of the profile that has a session sends a script's messages.
                    Some(Event::Ended(Some(error @ ClientError::TooManySessions))) if is_script => {
                        limited = Some(Failure::from(error));
                    }
                    Some(Event::Ended(Some(error))) => return Err(error.into()),
                    Some(Event::Ended(None)) => return Ok(()),
                    None => return Err(ClientError::Closed.into()),
                    Some(event) => {
                        if matches!(event, Event::Recorded { .. }) {
                            deadline.renew();
                        }
                        self.app.handle_event(event, std::time::Instant::now());
                        self.update().await?;
                    }
                },
                event = self.files.next() => if self.take_file_event(event).await? {
                    deadline.renew();
                },
                // Another process of this profile may have sent it.
                _ = look.tick(), if self.app.composer().queued_count() > 0 => {
                    if self.check_outbox().await? {
                        deadline.renew();
                    }
                }
                () = sleep_until(closed_at + QUIET), if waits && !is_explained => {
                    is_explained = true;
                    self.explain_wait(patience);
                }
                () = deadline.is_over(), if waits => {
                    if settles {
                        self.out.warn("no line after it was sent");
                    }
                    break;
                }
                () = sleep_until(timeout.unwrap_or(closed_at)), if timeout.is_some() => {
                    self.app.handle_timeout(std::time::Instant::now());
                    self.update().await?;
                }
                () = suspensions.next() => self.screen.suspend().await,
                () = &mut interrupt => return Err(Failure::interrupted()),
            }
            if is_script && open && (self.refused_count() > 0 || self.failed.is_some()) {
                self.out.warn("no line after it was sent");
                open = false;
                deadline.renew();
            }
        }
        let unsettled = self.is_unsettled();
        limited.filter(|_| unsettled).or(bad_input).map_or(Ok(()), Err)
    }

    /// Whether a script's next line depends on a pending file or a pending text for another room.
    fn must_settle(&self) -> bool {
        self.app.transfers().open_count() > 0 || self.app.composer().has_queued_aside()
    }

    fn explain_wait(&self, patience: Duration) {
        let (messages, files) =
            (self.app.composer().queued_count(), self.app.transfers().open_count());
        if messages > 0 {
            self.out.say(&waits(messages, patience));
        } else if files > 0 {
            let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
            self.out.say(&format!("waiting for {files}; Ctrl-C ends the wait"));
        }
    }

    fn is_unsettled(&self) -> bool {
        self.app.composer().queued_count() > 0 || self.app.transfers().open_count() > 0
    }

    /// Number of messages and files that the server refused.
    fn refused_count(&self) -> u32 {
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
