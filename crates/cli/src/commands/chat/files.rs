//! Files in `chat`: sent and fetched on separate connections while the chat continues.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use twinlock_client::error::Blame;
use twinlock_client::transfer::{
    Copies, Event, Found, Get, Into, JobId, Place, TransferError, Transfers, gather, look, name,
};

use super::Talk;
use crate::args::Moving;
use crate::commands::get::{entry, is_own};
use crate::commands::moving::harmless;
use crate::exit::{Exit, Failure};
use crate::open::Context;
use crate::output::Style;

/// Transfer connections.
const JOBS: u8 = 3;

/// Running transfers and their connections, which are opened on first use.
pub(super) struct Files {
    context: Context,
    lines: Option<(Transfers, mpsc::Receiver<Event>)>,
    /// A description of each, for people.
    open: HashMap<JobId, String>,
    /// Files that threads examine before they are sent, with the target of each. A disk may not
    /// answer, which must not block the chat.
    looked_at: JoinSet<(String, Result<Found, TransferError>)>,
}

/// An event of a file.
pub(super) enum News {
    /// A file was examined: it can be sent, or cannot.
    LookedAt(String, Result<Found, TransferError>),
    Moved(Event),
}

impl Files {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            lines: None,
            open: HashMap::new(),
            looked_at: JoinSet::new(),
        }
    }

    /// Number of running transfers.
    pub(super) fn open(&self) -> usize {
        self.open.len() + self.looked_at.len()
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> News {
        let Self { lines, looked_at, .. } = self;
        let moved = async {
            if let Some((_, events)) = lines
                && let Some(event) = events.recv().await
            {
                return event;
            }
            std::future::pending().await
        };
        tokio::select! {
            event = moved => News::Moved(event),
            // A thread that panicked has already printed a message.
            Some(Ok((target, found))) = looked_at.join_next() => News::LookedAt(target, found),
        }
    }

    fn transfers(&mut self) -> Result<&Transfers, Failure> {
        let lines = match self.lines.take() {
            Some(lines) => lines,
            None => self.context.transfers(&Moving { limit: None, jobs: JOBS, json: false })?,
        };
        Ok(&self.lines.insert(lines).0)
    }
}

impl Talk {
    /// Starts to send a regular file. A pipe or a device is refused, because it may never end.
    pub(super) fn put(&mut self, path: &str) -> Result<(), Failure> {
        let (path, target) = (home_of(path), self.target.to_string());
        let (home, profile) = (self.files.context.home()?, self.files.context.profile()?);
        self.files.looked_at.spawn_blocking(move || {
            let found =
                look(&path).and_then(|_| gather(&home, &profile, &path, &Copies::default()));
            (target, found)
        });
        Ok(())
    }

    /// Handles an event of a file. Returns whether there was progress.
    pub(super) async fn take_file(&mut self, news: News) -> Result<bool, Failure> {
        match news {
            News::Moved(event) => self.moved(event),
            News::LookedAt(target, found) => {
                // A file that cannot be sent does not end the chat.
                if let Err(failure) = self.send_file(&target, found).await {
                    if failure.exit == Exit::Done {
                        return Err(failure);
                    }
                    self.file_failed(failure.exit);
                    self.print_error(&failure.message)?;
                }
                Ok(true)
            }
        }
    }

    fn file_failed(&mut self, exit: Exit) {
        if !self.screen.is_terminal() {
            self.failed = Some(self.failed.map_or(exit, |failed| failed.worse(exit)));
        }
    }

    async fn send_file(
        &mut self,
        target: &str,
        found: Result<Found, TransferError>,
    ) -> Result<(), Failure> {
        let file = found?;
        let words = format!("{} ({})", harmless(&file.name), HumanBytes(file.source.size));
        let jobs = self.files.transfers()?.put(target, vec![file]).await?;
        for (job, begun) in jobs {
            self.composer.add_file(begun.message_id);
            self.files.open.insert(job, format!("{words} to {target}"));
        }
        self.note(&format!("sending {words}"))
    }

    pub(super) async fn get(&mut self, n: u64) -> Result<(), Failure> {
        let target = self.target.to_string();
        let found = self.ask(self.client.target(&target)).await?;
        let client = self.client.clone();
        let entry = self.within(entry(&client, found.id, n, &target)).await?;
        let Some(file) = entry.file.clone() else { return Ok(()) };
        let name = name::harmless(file.name.expose_raw());
        let words = format!("{name} ({})", HumanBytes(file.size));
        let (dir, below) = (PathBuf::from("."), name::below(file.path.expose_raw()));
        let place = Place { dir, below, name: name.into(), force: false, keep_mode: false };
        place.check()?;
        let (conversation, own) = (found.id, is_own(&entry, &self.user));
        let get = Get { conversation, n, file, own, into: Into::Place(place) };
        let job = self.files.transfers()?.get(get)?;
        self.files.open.insert(job, words.clone());
        self.note(&format!("fetching {words}"))
    }

    fn moved(&mut self, event: Event) -> Result<bool, Failure> {
        match event {
            Event::Sent { job, ack, .. } => {
                let Some(words) = self.files.open.remove(&job) else { return Ok(true) };
                let tick = self.out.style(Style::Good, "\u{2713}");
                self.screen.print(&format!("{tick} #{} {words}", ack.n))?;
            }
            Event::Got { job, path } => {
                let words = self.files.open.remove(&job).unwrap_or_default();
                let path = path.unwrap_or_default();
                self.note(&format!("saved {words} as {}", harmless(&path.to_string_lossy())))?;
            }
            Event::Failed { job, error } => {
                let words = self.files.open.remove(&job).unwrap_or_default();
                self.refused += u32::from(error.blame() == Blame::Request);
                let failure = Failure::from(error);
                self.file_failed(failure.exit);
                self.print_error(&format!("{words}: {}", failure.message))?;
            }
            Event::Changed { job, message_id, .. } => {
                self.composer.add_file(message_id);
                let words = self.files.open.get(&job).cloned().unwrap_or_default();
                self.note(&format!(
                    "{words} changed while it was sent; sending it again from the start"
                ))?;
            }
            Event::Began { .. } | Event::Progress { .. } => {}
            // The chat's own connection reports it.
            Event::Up(_) | Event::Down { .. } => return Ok(false),
        }
        Ok(true)
    }
}

/// Expands `~/`, because no shell has processed this path.
pub(super) fn home_of(path: &str) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}
