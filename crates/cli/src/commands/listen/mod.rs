//! `listen`: prints arriving entries, reconnects as needed, and resumes where the last run ended.
//!
//! A position for each conversation records which entries are handled: printed, or with `--exec`
//! passed to a command that exited with 0. It moves afterwards, so that a kill in between repeats
//! an entry and loses none. With `--exec-tries`, an entry whose command keeps failing is handled
//! once it is in the profile's dead-letter file.

mod downloads;
mod exec;

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use twinlock_client::model::Entry;
use twinlock_client::{
    Client, ClientError, ConnectionEvent, Inbox, InboxEvent, InboxOptions, Options,
};
use twinlock_core::id::ConversationId;

use crate::args::ListenArgs;
use crate::connection_text::{trying_again, warn_about_tls, why_down};
use crate::context::Context;
use crate::entry::{EntryJson, get_it, human};
use crate::exit::{Exit, Failure};
use crate::output::{harmless, json, reader_gone};
use crate::progress_timeout::after;
use downloads::Downloads;
use exec::{EXECUTED, ExecCommand, only_one};

/// The position that printing keeps, see [`twinlock_client::receipts`].
const PRINTED: &str = "listen";
/// How long the end waits for a read marker, which is a convenience.
const MARKING: Duration = Duration::from_secs(1);

struct Listening<'a> {
    context: &'a Context,
    client: Client,
    inbox: Inbox,
    args: ListenArgs,
    left: Option<u64>,
    downloads: Option<Downloads>,
    /// Why there is no connection now.
    down: Option<ClientError>,
    /// The read marker that was sent last; the server answers earlier ones first.
    marking: Option<JoinHandle<Option<()>>>,
}

pub(crate) async fn run(args: ListenArgs, context: &Context) -> Result<(), Failure> {
    // A long-running `listen` also sends the outbox.
    let client = context.connect(Options::default())?;
    if args.exec.is_some() && client.state().is_read_only() {
        return Err(Failure::usage(
            "`listen --exec` has to keep its position, and this profile cannot be written to",
        )
        .hint("use a profile on another disk: --profile NAME or TWINLOCK_HOME"));
    }
    let (position, _lock) = match args.exec {
        Some(_) => (EXECUTED, Some(only_one(context)?)),
        None => (PRINTED, None),
    };
    let options = InboxOptions {
        targets: args.targets.clone(),
        position: Some(position.to_owned()),
        start: args.since,
    };
    let mut connection = client.connection_events()?;
    let user = client.user().clone();
    let mut listening = Listening {
        context,
        inbox: client.inbox(options)?,
        client,
        left: args.count,
        downloads: args
            .get
            .as_deref()
            .map(|dir| Downloads::start(context, dir, user))
            .transpose()?,
        args,
        down: None,
        marking: None,
    };
    // With --exec nothing is printed.
    let prints = listening.args.exec.is_none();
    let mut gone = pin!(reader_gone());
    let mut late = pin!(after(context.global.timeout));
    loop {
        let event = tokio::select! {
            () = &mut gone, if prints => return Err(Failure::said(Exit::Done)),
            () = &mut late => return Err(listening.timed_out()),
            Some(event) = connection.next() => {
                listening.connection_changed(event);
                continue;
            }
            event = listening.inbox.next() => event?,
        };
        match event {
            InboxEvent::Entries { conversation, target, entries } => {
                // If this ends early, the entry stays unhandled: its position moves last.
                let handled = tokio::select! {
                    () = &mut gone, if prints => return Err(Failure::said(Exit::Done)),
                    () = &mut late => None,
                    done = listening.take(conversation, &target, entries) => Some(done?),
                };
                match handled {
                    Some(true) => return listening.end().await,
                    Some(false) => {}
                    None => return Err(listening.timed_out()),
                }
            }
            InboxEvent::CaughtUp { target, entries } if entries > 0 => {
                tracing::info!(name = target.as_str(), entries, "caught up");
                context.out.say(&format!("caught up with {target}: {entries}"));
            }
            InboxEvent::Left { .. } if !listening.args.targets.is_empty() => {
                context.out.warn("you have left a room that `listen` follows");
            }
            _ => {}
        }
        if listening.args.until_now && listening.inbox.is_caught_up() {
            return listening.end().await;
        }
    }
}

impl Listening<'_> {
    fn connection_changed(&mut self, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Up(up) => {
                if self.down.take().is_some() {
                    self.context.out.say("connected again");
                }
                warn_about_tls(&self.context.out, up.binding, up.tls.issuer.as_deref());
            }
            ConnectionEvent::Down { error, retry } => {
                // Reported once: further failed attempts go to the log.
                if self.down.is_none() {
                    self.context.out.say(&trying_again(&error, retry));
                }
                self.down = Some(error);
            }
            _ => {}
        }
    }

    /// The failure of `--timeout`.
    fn timed_out(&self) -> Failure {
        match self.down.as_ref().or_else(|| self.downloads.as_ref()?.down()) {
            Some(error) => Failure::new(Exit::NoConnection, why_down(error)),
            None => Failure::new(Exit::TimedOut, "timed out"),
        }
    }

    /// Closes the connection once the server has the last read marker.
    async fn end(self) -> Result<(), Failure> {
        if let Some(marking) = self.marking {
            let _unmarked = timeout(MARKING, marking).await;
        }
        self.client.close().await;
        Ok(())
    }

    /// Handles entries in order. Returns whether `--count` is reached.
    async fn take(
        &mut self,
        conversation: ConversationId,
        name: &str,
        mut entries: Vec<Entry>,
    ) -> Result<bool, Failure> {
        if let Some(left) = &mut self.left {
            entries.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= entries.len() as u64;
        }
        let mut started = match &mut self.downloads {
            Some(downloads) => downloads.begin(name, conversation, &entries).await?,
            None => BTreeMap::new(),
        };
        let mut lines = String::new();
        for (at, entry) in entries.iter().enumerate() {
            let download = started.remove(&entry.n);
            if download.is_some() {
                // Entries before a file do not wait for it.
                self.print(&mut lines, conversation, entry.n - 1).await?;
            }
            let saved = match (&mut self.downloads, download) {
                (Some(downloads), Some(download)) => downloads.wait(download, name, entry).await?,
                _ => None,
            };
            if let Some(command) = &self.args.exec {
                let command =
                    ExecCommand { context: self.context, command, tries: self.args.exec_tries };
                command.run(name, entry, saved.as_deref()).await?;
                self.inbox.handled(conversation, entry.n).await?;
                continue;
            }
            lines += &self.line(name, entry, saved.as_deref());
            if at + 1 == entries.len() {
                self.print(&mut lines, conversation, entry.n).await?;
            }
        }
        Ok(self.left == Some(0))
    }

    /// The output for an entry.
    fn line(&self, name: &str, entry: &Entry, saved: Option<&Path>) -> String {
        if self.args.json {
            return json(&EntryJson::new(name, entry).saved(saved)) + "\n";
        }
        let several = self.args.targets.len() != 1;
        let get = match saved {
            Some(path) => format!("saved as {}", harmless(&path.to_string_lossy())),
            None => get_it(name, entry),
        };
        human(&self.context.out, several.then_some(name), entry, &get) + "\n"
    }

    /// Prints pending lines, if any; then entry `n` is handled.
    async fn print(
        &mut self,
        lines: &mut String,
        conversation: ConversationId,
        n: u64,
    ) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        self.context.out.lines(&std::mem::take(lines))?;
        if self.context.out.is_terminal() {
            // Only for a terminal, where a person has seen it. The next marker covers a lost one.
            let client = self.client.clone();
            let mark = async move { client.mark_read(conversation, n).await.ok() };
            self.marking = Some(tokio::spawn(mark));
        }
        Ok(self.inbox.handled(conversation, n).await?)
    }
}
