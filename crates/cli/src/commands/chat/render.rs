//! Prints the changes of the app, as lines.

use indicatif::HumanBytes;
use twinlock_app::{
    Change, ConversationView, MessageState, Rejection, Settlement, TimelineItem, TransferChange,
    TransferDirection, TransferView,
};
use twinlock_client::error::{Fault, issued_by};
use twinlock_client::model::{Entry, Facts};
use twinlock_core::session::Binding;

use super::LineChat;
use crate::connection_text::{session_words, tls_warning, trying_again};
use crate::entry::{get_it, human};
use crate::exit::{Exit, Failure};
use crate::output::{Style, harmless};

/// Characters of a message repeated after its tick.
const TICK_TEXT: usize = 40;
/// Prefix of the program's own messages.
const NOTE: &str = "-- ";

impl LineChat {
    /// Prints all changes since the last call.
    pub(super) fn render_changes(&mut self) -> Result<(), Failure> {
        while let Some(change) = self.app.poll_change() {
            self.render(change)?;
        }
        Ok(())
    }

    fn render(&mut self, change: Change) -> Result<(), Failure> {
        match change {
            Change::Connected { reconnection, binding, issuer } => {
                if reconnection.was_reported_down {
                    let is_restored = reconnection.is_restored;
                    self.note(if is_restored { "connected again" } else { "connected" })?;
                }
                match tls_warning(binding, issuer.as_deref()) {
                    Some(warning) => {
                        Ok(self.screen.print(&self.out.style(Style::Warning, &warning))?)
                    }
                    None => Ok(()),
                }
            }
            Change::Disconnected { error, retry, is_first: true }
            | Change::RecordingDelayed { error, retry } => self.note(&trying_again(&error, retry)),
            Change::Ready { topic } => {
                let topic = topic.render_line();
                if topic.is_empty() || !self.screen.is_terminal() {
                    return Ok(());
                }
                self.note(&format!("topic: {topic}"))
            }
            Change::Opened { target } => self.note(&format!("you are talking in {target}")),
            Change::Names(names) => {
                self.screen.complete_with(names);
                Ok(())
            }
            Change::Entries { target, is_here, items, .. } => {
                self.render_entries(&target, is_here, &items)
            }
            Change::CaughtUp { target, entries } => {
                self.note(&format!("caught up with {target}: {entries}"))
            }
            Change::Activity { target, entries } => {
                self.note(&format!("{entries} new in {target}"))
            }
            Change::Settled(settlement) => self.render_settled(&settlement),
            Change::Transfer(change) => self.render_transfer(change),
            Change::History(entries) => {
                for entry in &entries {
                    self.screen.print(&human(&self.out, None, entry, &get_here(entry)))?;
                }
                Ok(())
            }
            Change::Online(users) => self.note(&format!("online: {}", users.join(", "))),
            Change::Members { room, users } => {
                self.note(&format!("in {room}: {}", users.join(", ")))
            }
            Change::Rooms(rooms) => rooms.iter().try_for_each(|room| self.render_room(room)),
            Change::Status(facts) => self.render_status(&facts),
            _ => Ok(()),
        }
    }

    fn render_entries(
        &mut self,
        target: &str,
        is_here: bool,
        items: &[TimelineItem],
    ) -> Result<(), Failure> {
        // The text of an own one is on the screen since it was typed.
        for TimelineItem { entry, .. } in items.iter().filter(|item| !item.is_own) {
            let place = (!is_here).then(|| format!("[{target}]"));
            let get = if is_here { get_here(entry) } else { get_it(target, entry) };
            self.screen.print(&human(&self.out, place.as_deref(), entry, &get))?;
        }
        Ok(())
    }

    /// Prints a tick for a recorded message, or why it is not recorded.
    fn render_settled(&mut self, settlement: &Settlement) -> Result<(), Failure> {
        let text = settlement.message.as_ref().map(|message| {
            let text = message.preview.at_most(TICK_TEXT);
            if message.is_aside { format!("[{}] {text}", message.target) } else { text }
        });
        let text = text.unwrap_or_else(|| "(queued earlier)".to_owned());
        let why = match settlement.state {
            // A failed file is reported as a transfer.
            MessageState::Queued | MessageState::FileFailed => return Ok(()),
            MessageState::Recorded { n } => return self.tick(n, &text),
            MessageState::Rejected(Rejection::Refused(refusal)) => refusal.to_string(),
            MessageState::Rejected(Rejection::Dropped) => {
                "another command dropped it from the outbox".to_owned()
            }
        };
        self.print_error(&format!("not recorded: {text}  ({why})"))
    }

    fn render_transfer(&mut self, change: TransferChange) -> Result<(), Failure> {
        match change {
            TransferChange::Started(transfer) => {
                let file = file_words(&transfer);
                self.note(&match transfer.direction {
                    TransferDirection::Sending => format!("sending {file}"),
                    TransferDirection::Fetching => format!("fetching {file}"),
                })
            }
            TransferChange::Recorded { transfer, n, .. } => self.tick(n, &words(&transfer)),
            TransferChange::Saved { transfer, path } => {
                let path = path.unwrap_or_default();
                let path = harmless(&path.to_string_lossy());
                self.note(&format!("saved {} as {path}", words(&transfer)))
            }
            TransferChange::Restarted { transfer, .. } => self.note(&format!(
                "{} changed while it was sent; sending it again from the start",
                words(&transfer)
            )),
            TransferChange::Failed { transfer, error } => {
                self.refused_files += usize::from(error.fault() == Fault::Request);
                let failure = Failure::from(error);
                self.note_failed_file(failure.exit);
                self.print_error(&format!("{}: {}", words(&transfer), failure.message))
            }
            TransferChange::Progressed(_) => Ok(()),
        }
    }

    /// Notes a failed file for the exit code.
    pub(super) fn note_failed_file(&mut self, exit: Exit) {
        if !self.screen.is_terminal() {
            self.failed = Some(self.failed.map_or(exit, |failed| failed.worse(exit)));
        }
    }

    fn render_room(&mut self, room: &ConversationView) -> Result<(), Failure> {
        let name = self.out.style(Style::Bold, &room.target);
        let state = match (room.is_joined, room.unread) {
            (false, _) => "  (join it with /join)".to_owned(),
            (true, 0) => String::new(),
            (true, unread) => format!("  {unread} unread"),
        };
        let line = format!("{state}  {}", room.topic.render_line());
        let line = self.out.wrap(line.trim_end(), room.target.len(), 4);
        Ok(self.screen.print(&format!("{name}{line}"))?)
    }

    fn render_status(&mut self, facts: &Facts) -> Result<(), Failure> {
        let unknown = || "unknown".to_owned();
        let tls = &facts.up.tls;
        let by = issued_by(tls.issuer.as_deref());
        let lock_1 = format!(
            "lock 1: {}, {}, {}; it {}",
            tls.version.clone().unwrap_or_else(unknown),
            tls.group.clone().unwrap_or_else(unknown),
            tls.suite.clone().unwrap_or_else(unknown),
            match facts.up.binding {
                Binding::Bound => "reaches the server".to_owned(),
                Binding::Off => "is not compared: the profile sets binding = \"off\"".to_owned(),
                Binding::Cut => format!("is intercepted{by}"),
                Binding::Unknown => "may be intercepted: the server sent no binding".to_owned(),
            },
        );
        let lock_2 = format!("lock 2: {}", session_words(facts));
        let words = twinlock_core::invite::server_words(&facts.server_key);
        let software = facts.up.server.software.render_line();
        let user = self.app.user();
        let identity = format!("you are {user}; server: {software}, its words: {words}");
        self.note(&identity)?;
        self.note(&lock_1)?;
        self.note(&lock_2)
    }

    fn tick(&mut self, n: u64, text: &str) -> Result<(), Failure> {
        let tick = self.out.style(Style::Good, "\u{2713}");
        Ok(self.screen.print(&format!("{tick} #{n} {text}"))?)
    }

    /// Prints an error, folded at the terminal's width.
    pub(super) fn print_error(&mut self, words: &str) -> Result<(), Failure> {
        let words = self.out.wrap(words, 0, 2);
        Ok(self.screen.print(&self.out.style(Style::Bad, &words))?)
    }

    /// Prints a message of the program itself.
    pub(super) fn note(&mut self, words: &str) -> Result<(), Failure> {
        let words = self.out.wrap(words, NOTE.len(), NOTE.len());
        Ok(self.screen.print(&self.out.style(Style::Dim, &format!("{NOTE}{words}")))?)
    }
}

/// How to fetch a file of the open conversation.
fn get_here(entry: &Entry) -> String {
    format!("get it with: /get {}", entry.n)
}

fn file_words(transfer: &TransferView) -> String {
    format!("{} ({})", transfer.name, HumanBytes(transfer.size))
}

/// A file, with its target if it is sent.
fn words(transfer: &TransferView) -> String {
    let file = file_words(transfer);
    match transfer.direction {
        TransferDirection::Sending => format!("{file} to {}", transfer.target),
        TransferDirection::Fetching => file,
    }
}
