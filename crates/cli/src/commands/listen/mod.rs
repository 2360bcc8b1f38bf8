//! `listen`: prints arriving entries, reconnects as needed, and resumes where the last run ended.
//!
//! A position for each conversation records which entries are handled: printed, or with `--exec`
//! passed to a command that exited with 0. It moves afterwards, so that a kill in between repeats
//! an entry and loses none. With `--exec-tries`, an entry whose command keeps failing is handled
//! once it is in the profile's dead-letter file.

mod downloads;
mod exec;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use twinlock_client::model::Entry;
use twinlock_client::receipts::Handled;
use twinlock_client::{Client, ClientError, ConversationInfo, ConversationKind, Event, Options};
use twinlock_core::id::ConversationId;

use crate::args::{ListenArgs, Since};
use crate::blocking::blocking;
use crate::connection_text::{trying_again, warn_about_tls, why_down};
use crate::context::{Context, OpenProfile};

use crate::entry::{EntryJson, get_it, human};
use crate::exit::{Exit, Failure};
use crate::output::{harmless, json, reader_gone};
use crate::progress_timeout::after;
use crate::retry::until_answered;
use downloads::Downloads;
use exec::{EXECUTED, ExecCommand, only_one};

/// The position that printing keeps, see [`twinlock_client::receipts`].
const PRINTED: &str = "listen";
/// A position under this id records that all conversations were followed once. A direct
/// conversation that is found later is then new. No conversation has this id.
const EVERYTHING: ConversationId = 0;
/// How long the end waits for a read marker, which is a convenience.
const MARKING: Duration = Duration::from_secs(1);

struct Listening<'a> {
    context: &'a Context,
    client: Client,
    args: ListenArgs,
    names: HashMap<ConversationId, String>,
    left: Option<u64>,
    downloads: Option<Downloads>,
    purpose: &'static str,
    /// The profile has followed all conversations before.
    resumes: bool,
    /// Followed conversations whose existing entries have not all arrived.
    behind: HashSet<ConversationId>,
    /// The read marker that was sent last; the server answers earlier ones first.
    marking: Option<JoinHandle<Option<()>>>,
}

type Finding = Pin<Box<dyn Future<Output = Result<Vec<ConversationInfo>, Failure>>>>;

pub(crate) async fn run(args: ListenArgs, context: &Context) -> Result<(), Failure> {
    // A long-running `listen` also sends the outbox.
    let OpenProfile { client, mut events, user } = context.open(Options::default())?;
    if args.exec.is_some() && client.state().is_read_only() {
        return Err(Failure::usage(
            "`listen --exec` has to keep its position, and this profile cannot be written to",
        )
        .hint("use a profile on another disk: --profile NAME or TWINLOCK_HOME"));
    }
    let (purpose, _lock) = match args.exec {
        Some(_) => (EXECUTED, Some(only_one(context)?)),
        None => (PRINTED, None),
    };
    let left = args.count;
    let downloads =
        args.get.as_deref().map(|dir| Downloads::start(context, dir, user)).transpose()?;
    let mut listening = Listening {
        context,
        client,
        args,
        names: HashMap::new(),
        left,
        downloads,
        purpose,
        resumes: false,
        behind: HashSet::new(),
        marking: None,
    };
    let everything = listening.args.targets.is_empty();
    listening.resumes = everything && listening.position(EVERYTHING).await?.is_some();
    // The list of conversations needs the connection, whose events must be taken at the same time.
    // The future survives all iterations, because dropping it would lose the request.
    let mut finding = Some(listening.find());
    let mut down = None;
    // With --exec nothing is printed.
    let prints = listening.args.exec.is_none();
    let mut gone = pin!(reader_gone());
    let mut late = pin!(after(context.global.timeout));
    loop {
        let event = tokio::select! {
            () = &mut gone, if prints => return Err(Failure::said(Exit::Done)),
            () = &mut late => return Err(listening.timed_out(down.as_ref())),
            found = next(&mut finding) => {
                finding = None;
                for conversation in found? {
                    listening.follow(conversation).await?;
                }
                if everything && !listening.resumes {
                    // A conversation found from now on began during this run.
                    listening.handled(EVERYTHING, 1).await?;
                    listening.resumes = true;
                }
                if listening.is_done() {
                    return listening.end().await;
                }
                continue;
            }
            event = events.recv() => event,
        };
        match event {
            Some(Event::Entries { conversation, entries }) => {
                // If this ends early, the entry stays unhandled: its position moves last.
                let handled = tokio::select! {
                    () = &mut gone, if prints => return Err(Failure::said(Exit::Done)),
                    () = &mut late => None,
                    done = listening.take(conversation, entries) => Some(done?),
                };
                match handled {
                    Some(true) => return listening.end().await,
                    Some(false) => {}
                    None => return Err(listening.timed_out(down.as_ref())),
                }
            }
            Some(Event::Up(up)) => {
                if down.take().is_some() {
                    context.out.say("connected again");
                    // Conversations may have begun while there was no connection.
                    if listening.args.targets.is_empty() && finding.is_none() {
                        finding = Some(listening.find());
                    }
                }
                warn_about_tls(&context.out, up.binding);
            }
            Some(Event::Down { error, retry }) => {
                // Reported once: further failed attempts go to the log.
                if down.is_none() {
                    context.out.say(&trying_again(&error, retry));
                }
                down = Some(error);
            }
            Some(Event::CaughtUp { conversation, entries }) => {
                if entries > 0 {
                    let name = listening.name(conversation);
                    tracing::info!(name = name.as_str(), conversation, entries, "caught up");
                    context.out.say(&format!("caught up with {name}: {entries}"));
                }
                listening.behind.remove(&conversation);
                if finding.is_none() && listening.is_done() {
                    return listening.end().await;
                }
            }
            Some(Event::Conversation(changed)) => listening.changed(changed).await?,
            Some(Event::Ended(Some(error))) => return Err(error.into()),
            Some(Event::Ended(None)) => return Ok(()),
            None => return Err(ClientError::Closed.into()),
            Some(_) => {}
        }
    }
}

impl Listening<'_> {
    fn name(&self, conversation: ConversationId) -> String {
        self.names.get(&conversation).cloned().unwrap_or_else(|| conversation.to_string())
    }

    /// The failure of `--timeout`; `down` is why there is no connection.
    fn timed_out(&self, down: Option<&ClientError>) -> Failure {
        match down.or_else(|| self.downloads.as_ref()?.down()) {
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

    /// With `--until-now`: whether all entries that existed at the start are handled.
    fn is_done(&self) -> bool {
        self.args.until_now && self.behind.is_empty()
    }

    /// Finds the conversations to follow.
    fn find(&self) -> Finding {
        let client = self.client.clone();
        let targets: Vec<_> = self.args.targets.iter().map(ToString::to_string).collect();
        Box::pin(async move {
            if targets.is_empty() {
                return until_answered(&client, async |client| client.conversations(false).await)
                    .await;
            }
            let mut found = Vec::new();
            for target in targets {
                found.push(
                    until_answered(&client, async |client| client.target(&target).await).await?,
                );
            }
            Ok(found)
        })
    }

    /// Follows a conversation unless it is already followed.
    async fn follow(&mut self, conversation: ConversationInfo) -> Result<(), Failure> {
        if self.names.contains_key(&conversation.id) {
            return Ok(());
        }
        self.names.insert(conversation.id, conversation.target());
        self.behind.insert(conversation.id);
        let new = if self.resumes { beginning(&conversation) } else { conversation.head };
        let after = self.begin(&conversation, new).await?;
        Ok(self.client.follow(conversation.id, after).await?)
    }

    /// The position to start after; `new` is the one after which entries are new. The first
    /// position of a conversation is stored at once, so that the next `listen` starts no later than
    /// this one.
    async fn begin(&self, conversation: &ConversationInfo, new: u64) -> Result<u64, Failure> {
        let kept = self.position(conversation.id).await?;
        let start = match self.args.since {
            Some(Since::All) => 0,
            Some(Since::New) => new,
            // With several conversations, some may be shorter.
            Some(Since::After(n)) if self.args.targets.len() != 1 => n.min(conversation.head),
            Some(Since::After(n)) => n,
            None => kept.unwrap_or(new),
        };
        if kept.is_none() {
            self.handled(conversation.id, start.min(conversation.head)).await?;
        }
        Ok(start)
    }

    /// The position up to which entries of a conversation are handled.
    async fn position(&self, id: ConversationId) -> Result<Option<u64>, Failure> {
        let (receipts, purpose) = (self.client.state().receipts(), self.purpose);
        blocking(move || receipts.position(id, purpose)).await
    }

    /// Handles a new, changed or left conversation.
    async fn changed(&mut self, changed: ConversationInfo) -> Result<(), Failure> {
        if !changed.joined {
            self.behind.remove(&changed.id);
            if self.names.remove(&changed.id).is_some() && !self.args.targets.is_empty() {
                self.context.out.warn("you have left a room that `listen` follows");
            }
            return Ok(());
        }
        // Until the first list arrives, ignore changes: the list contains them.
        if self.args.targets.is_empty() && self.resumes {
            self.follow(changed).await?;
        }
        Ok(())
    }

    /// Handles entries in order. Returns whether `--count` is reached.
    async fn take(
        &mut self,
        conversation: ConversationId,
        mut entries: Vec<Entry>,
    ) -> Result<bool, Failure> {
        if let Some(left) = &mut self.left {
            entries.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= entries.len() as u64;
        }
        let name = self.name(conversation);
        let mut started = match &mut self.downloads {
            Some(downloads) => downloads.begin(&name, conversation, &entries).await?,
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
                (Some(downloads), Some(download)) => downloads.wait(download, &name, entry).await?,
                _ => None,
            };
            if let Some(command) = &self.args.exec {
                let command =
                    ExecCommand { context: self.context, command, tries: self.args.exec_tries };
                command.run(&name, entry, saved.as_deref()).await?;
                self.handled(conversation, entry.n).await?;
                continue;
            }
            lines += &self.line(&name, entry, saved.as_deref());
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
        self.handled(conversation, n).await
    }

    async fn handled(&self, conversation: ConversationId, n: u64) -> Result<(), Failure> {
        let (receipts, purpose) = (self.client.state().receipts(), self.purpose);
        let keep = move || receipts.advance(&Handled { conversation, purpose, n });
        blocking(keep).await
    }
}

/// The position after which a conversation without a stored position is new. A direct one is new
/// from its first entry. In a room, the server set the read marker to the head when this user
/// joined, perhaps between two runs.
fn beginning(conversation: &ConversationInfo) -> u64 {
    match conversation.kind {
        ConversationKind::Direct => 0,
        ConversationKind::Room => conversation.read.min(conversation.head),
    }
}

async fn next(finding: &mut Option<Finding>) -> Result<Vec<ConversationInfo>, Failure> {
    match finding {
        Some(finding) => finding.await,
        None => std::future::pending().await,
    }
}
