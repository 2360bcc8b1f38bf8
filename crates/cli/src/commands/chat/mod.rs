//! `chat`: a line-based chat.
//!
//! A typed line goes into the outbox, so it can be typed while there is no connection, and gets a
//! tick when it is recorded. Arriving entries are printed above the line that is being edited. The
//! chat follows its current room, the lobby and all direct conversations; entries of the latter two
//! show their conversation.

mod above;
mod command;
mod files;
mod keys;
mod screen;

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use twinlock_app::{
    ActivityDigest, Composer, ConversationList, MessageState, OwnMessage, Preview, Rejection,
    Settlement, Visibility,
};
use twinlock_client::client::Entry;
use twinlock_client::{Client, ClientError, Event, Options};
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::limits::MAX_TEXT;
use twinlock_core::proto;
use twinlock_core::text::Untrusted;
use twinlock_transport::OsEntropy;

use super::send::{LOOK, QUIET, blocking, now_ms, waits};
use crate::args::{Chat, Target};
use crate::entry::{get_it, human};
use crate::exit::{Exit, Failure};
use crate::interrupted;
use crate::open::{Context, Opened, target_of, tls_warning, trying_again};
use crate::output::{Output, Style};
use crate::patience::{self, Patience};
use command::{COMMANDS, Said};
use files::Files;
use screen::{Input, Screen, Suspensions};

/// Number of earlier entries shown at the start.
const BACKLOG: u64 = 20;
/// How long the end waits for unrecorded messages, unless `--timeout` is given.
const PATIENCE: Duration = Duration::from_secs(30);
/// Timeout of a request: there may be no connection.
const ANSWER: Duration = Duration::from_secs(10);
/// Characters of a message repeated after its tick.
const TICK_TEXT: usize = 40;
/// Prefix of the program's own messages.
const NOTE: &str = "-- ";

struct Talk {
    out: Output,
    client: Client,
    screen: Screen,
    user: Name,
    /// The target of typed text.
    target: Target,
    conversations: ConversationList,
    /// New entries of rooms that are only counted.
    digest: ActivityDigest,
    composer: Composer,
    files: Files,
    refused: u32,
    /// The worst exit code of a failed file, without a terminal.
    failed: Option<Exit>,
    down: Option<ClientError>,
    was_up: bool,
    /// This is not the first connection: entries that arrive late were missed.
    again: bool,
}

pub(crate) async fn run(args: Chat, context: Context) -> Result<(), Failure> {
    // Before the terminal is taken: from then on, no signal ends this without restoring it.
    let interrupt = interrupted();
    // Before slow steps: keys that are typed during them wait for the prompt.
    let (screen, mut input, mut suspensions) = Screen::open(args.plain, context.out)?;
    let Opened { client, mut events, user } = context.open(Options::default())?;
    let mut talk = Talk {
        out: context.out,
        client,
        screen,
        conversations: ConversationList::new(user.clone(), args.target.to_string()),
        user,
        target: args.target,
        digest: ActivityDigest::new(std::time::Instant::now()),
        composer: Composer::default(),
        files: Files::new(&context),
        refused: 0,
        failed: None,
        down: None,
        was_up: false,
        again: false,
    };
    if talk.screen.is_terminal() && !context.global.quiet {
        let words = format!("you are {}; /help lists the commands, exit quits", talk.user);
        talk.note(&words)?;
    }
    input.go_on(&talk.target.to_string());
    let patience = context.global.timeout.unwrap_or(PATIENCE);
    let ended = talk.run(&mut input, &mut suspensions, &mut events, interrupt, patience).await;
    // The outbox is authoritative: any process of the profile may have sent the messages.
    let seen = talk.look().await;
    talk.screen.restore();
    let ended = ended.and(seen.map(|_| ())).and(talk.screen.report());
    let (queued, refused) = (talk.composer.queued_count(), talk.refused_count());
    if queued == 0 {
        talk.client.close().await;
    } else {
        context.out.warn(&format!(
            "{queued} of your messages {} queued in the outbox, not recorded; the next `chat`, \
             `send` or `listen` sends the rest",
            if queued == 1 { "is" } else { "are" }
        ));
    }
    let files = talk.files.open();
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
        _ => talk.failed.map_or(Ok(()), |exit| Err(Failure::said(exit))),
    }
}

impl Talk {
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
        let mut begun = false;
        // Kept across all iterations, because dropping the future would lose the request.
        let mut finding = std::pin::pin!(find(self.client.clone(), self.target.to_string()));
        let mut open = true;
        let mut bad_input = None;
        let mut limited = None;
        let mut deadline = Patience::new(patience);
        let mut told = false;
        let mut closed_at = Instant::now();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while open || self.composer.queued_count() > 0 || self.files.open() > 0 {
            // Until its last line is settled, a script reads no more; the deadline counts as after
            // the end of the input.
            let settles = is_script && open && self.must_settle();
            let waits = !open || settles;
            if !waits {
                closed_at = Instant::now();
            } else {
                // No key is read any more, so signal keys (Ctrl-C) work again.
                self.screen.restore();
                if self.down.is_some() && !told {
                    told = true;
                    self.say_what_is_waited_for(patience);
                }
            }
            let digest_due = self.digest.poll_timeout().map(Instant::from_std);
            tokio::select! {
                found = &mut finding, if !begun => {
                    begun = true;
                    match found {
                        Ok(found) => self.begin(found).await?,
                        // Wait until the server refuses the earlier lines, so that none stays
                        // queued.
                        Err(failure) if is_script && self.composer.queued_count() > 0 => {
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
                            Ok(goes_on) => open = goes_on,
                            // The next line may be meant for the room that this one failed to
                            // enter.
                            Err(failure) if is_script && failure.exit != Exit::Done => {
                                bad_input = Some(failure.hint("no line after it was sent"));
                                open = false;
                            }
                            Err(failure) => return Err(failure),
                        }
                        if open {
                            input.go_on(&self.target.to_string());
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
                        self.take_event(event, begun).await?;
                    }
                },
                news = self.files.next() => if self.take_file(news).await? {
                    deadline.renew();
                },
                // Another process of this profile may have sent it.
                _ = look.tick(), if self.composer.queued_count() > 0 => if self.look().await? {
                    deadline.renew();
                },
                () = sleep_until(closed_at + QUIET), if waits && !told => {
                    told = true;
                    self.say_what_is_waited_for(patience);
                }
                () = deadline.is_over(), if waits => {
                    if settles {
                        self.out.warn("no line after it was sent");
                    }
                    break;
                }
                () = sleep_until(digest_due.unwrap_or(closed_at)), if digest_due.is_some() => {
                    self.announce_activity()?;
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
        let unsettled = self.composer.queued_count() > 0 || self.files.open() > 0;
        limited.filter(|_| unsettled).or(bad_input).map_or(Ok(()), Err)
    }

    /// Whether a script's next line depends on a pending file or a pending text for another room.
    fn must_settle(&self) -> bool {
        self.files.open() > 0 || self.composer.has_queued_aside()
    }

    fn say_what_is_waited_for(&self, patience: Duration) {
        let (messages, files) = (self.composer.queued_count(), self.files.open());
        if messages > 0 {
            self.out.say(&waits(messages, patience));
        } else if files > 0 {
            let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
            self.out.say(&format!("waiting for {files}; Ctrl-C ends the wait"));
        }
    }

    /// Takes over outcomes that any process of this profile has settled. Returns whether any were
    /// new.
    async fn look(&mut self) -> Result<bool, Failure> {
        let ids = self.composer.queued();
        let (outbox, asked) = (self.client.state().outbox(), ids.clone());
        let outcomes = blocking(move || outbox.outcomes(&asked)).await?;
        let settled = self.composer.take_outcomes(ids.into_iter().zip(outcomes));
        for settlement in &settled {
            self.show_settled(settlement)?;
        }
        Ok(!settled.is_empty())
    }

    fn refused_count(&self) -> u32 {
        self.composer.rejected_count() + self.refused
    }

    /// Prints a tick for a recorded message, or why it is not recorded.
    fn show_settled(&mut self, settlement: &Settlement) -> Result<(), Failure> {
        let text = settlement.message.as_ref().map(|message| {
            let text = message.preview.at_most(TICK_TEXT);
            if message.is_aside { format!("[{}] {text}", message.target) } else { text }
        });
        let text = text.unwrap_or_else(|| "(queued earlier)".to_owned());
        let why = match settlement.state {
            MessageState::Queued => return Ok(()),
            MessageState::Recorded { n } => {
                let tick = self.out.style(Style::Good, "\u{2713}");
                return Ok(self.screen.print(&format!("{tick} #{n} {text}"))?);
            }
            MessageState::Rejected(Rejection::Refused(refusal)) => refusal.to_string(),
            MessageState::Rejected(Rejection::Dropped) => {
                "another command dropped it from the outbox".to_owned()
            }
        };
        self.print_error(&format!("not recorded: {text}  ({why})"))
    }

    /// Follows the conversations that were found.
    async fn begin(&mut self, found: Found) -> Result<(), Failure> {
        let Found { current, others, rooms, people } = found;
        let shown = if self.screen.is_terminal() { BACKLOG } else { 0 };
        let names = others.iter().chain([&current]).chain(&rooms).map(completed);
        self.screen.complete_with(names);
        self.screen.complete_with(people.into_iter().map(|person| format!("@{}", person.user)));
        for conversation in others {
            self.follow(&conversation, conversation.head).await?;
        }
        for room in rooms.into_iter().filter(|room| room.joined) {
            self.count(&room).await?;
        }
        self.follow(&current, current.head.saturating_sub(shown)).await?;
        if !current.topic.is_empty() && self.screen.is_terminal() {
            let topic = Untrusted::new(current.topic).render_line();
            self.note(&format!("topic: {topic}"))?;
        }
        Ok(())
    }

    async fn follow(
        &mut self,
        conversation: &proto::Conversation,
        after: u64,
    ) -> Result<(), Failure> {
        if self.conversations.add(conversation, Visibility::Shown, after) {
            self.client.follow(conversation.id, after).await?;
        }
        Ok(())
    }

    /// Follows a room only to count its new entries.
    async fn count(&mut self, room: &proto::Conversation) -> Result<(), Failure> {
        if self.conversations.add(room, Visibility::Counted, room.head) {
            self.client.follow(room.id, room.head).await?;
        }
        Ok(())
    }

    fn announce_activity(&mut self) -> Result<(), Failure> {
        for (conversation, entries) in self.digest.take(std::time::Instant::now()) {
            let name = self.conversations.target(conversation);
            let words = format!("{entries} new in {name}");
            self.note(&words)?;
        }
        Ok(())
    }

    /// Moves the read marker, for a person at a terminal.
    fn mark_read(&mut self, conversation: ConversationId, n: u64) {
        if self.screen.is_terminal() && n > 0 {
            self.conversations.read_up_to(conversation, n);
            let client = self.client.clone();
            // A lost marker is harmless; the next one replaces it.
            tokio::spawn(async move { client.mark_read(conversation, n).await.ok() });
        }
    }

    /// Handles a typed line. Returns whether the chat continues.
    async fn take_line(&mut self, line: &str) -> Result<bool, Failure> {
        match Said::parse(line) {
            Said::Nothing => Ok(true),
            Said::Text(text) => {
                let target = self.target.clone();
                self.say(&target, &text).await?;
                Ok(true)
            }
            Said::Quit => Ok(false),
            Said::Command(command) => {
                // A failed command ends a script, but not a chat on a terminal.
                if let Err(failure) = self.obey(command).await {
                    if failure.exit == Exit::Done || !self.screen.is_terminal() {
                        return Err(failure);
                    }
                    self.print_error(&failure.message)?;
                }
                Ok(true)
            }
            Said::Unknown(word) => {
                let name = word.split_whitespace().next().unwrap_or_default();
                let words = if COMMANDS.contains(&name) {
                    format!("{name} is not used like this; /help shows how")
                } else {
                    let word = Untrusted::new(word).render_line();
                    format!("unknown command {word}; /help lists the commands")
                };
                self.complain(&words)?;
                Ok(true)
            }
        }
    }

    async fn say(&mut self, target: &Target, text: &str) -> Result<(), Failure> {
        if text.len() > MAX_TEXT {
            return self.complain(&format!("too long: a message has at most {MAX_TEXT} bytes"));
        }
        let outbox = self.client.state().outbox();
        let (name, body) = (target.to_string(), text.to_owned());
        let enqueue = move || outbox.enqueue(&name, body.as_bytes(), now_ms(), &mut OsEntropy);
        let id = blocking(enqueue).await?;
        let preview = Preview::new(text);
        let is_aside = *target != self.target;
        self.composer.queue(id, OwnMessage { target: target.to_string(), preview, is_aside });
        let _closed = self.client.written().await;
        Ok(())
    }

    async fn take_event(&mut self, event: Event, begun: bool) -> Result<(), Failure> {
        match event {
            Event::Up(up) => {
                if self.down.take().is_some() {
                    self.note(if self.was_up { "connected again" } else { "connected" })?;
                }
                self.again = self.was_up;
                self.was_up = true;
                if let Some(warning) = tls_warning(up.binding) {
                    self.screen.print(&self.out.style(Style::Warning, warning))?;
                }
                Ok(())
            }
            Event::Down { error, retry } => {
                if self.down.is_none() {
                    self.note(&trying_again(&error, retry))?;
                }
                self.down = Some(error);
                Ok(())
            }
            Event::Held { error, retry } => self.note(&trying_again(&error, retry)),
            Event::Entries { conversation, entries } => self.show(conversation, &entries).await,
            Event::CaughtUp { conversation, entries }
                if entries > 0 && self.again && !self.is_counted(conversation) =>
            {
                let words = format!(
                    "caught up with {}: {entries}",
                    self.conversations.target(conversation)
                );
                self.note(&words)
            }
            Event::Recorded { message_id, ack } => match self.composer.recorded(message_id, &ack) {
                Some(settlement) => self.show_settled(&settlement),
                None => Ok(()),
            },
            Event::Refused { message_id, why } => {
                match self.composer.rejected(message_id, Rejection::Refused(why.into())) {
                    Some(settlement) => self.show_settled(&settlement),
                    None => Ok(()),
                }
            }
            Event::Conversation(changed) if begun => self.changed(changed).await,
            Event::Presence { user, .. } => {
                self.screen.complete_with([format!("@{user}")]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn show(
        &mut self,
        conversation: ConversationId,
        entries: &[Entry],
    ) -> Result<(), Failure> {
        let arrival = self.conversations.arrived(conversation, entries);
        if !arrival.is_shown {
            if self.screen.is_terminal() {
                self.digest.add(conversation, arrival.of_others, std::time::Instant::now());
            }
            return Ok(());
        }
        let here = arrival.is_here;
        let name = self.conversations.target(conversation).to_owned();
        for entry in entries {
            if self.composer.is_own(&entry.message_id) {
                continue;
            }
            let place = (!here).then(|| format!("[{name}]"));
            let get = if here { get_here(entry) } else { get_it(&name, entry) };
            self.screen.print(&human(&self.out, place.as_deref(), entry, &get))?;
        }
        if let Some(last) = entries.last() {
            // All of them were shown, in any room.
            self.mark_read(conversation, last.n);
        }
        Ok(())
    }

    fn is_counted(&self, conversation: ConversationId) -> bool {
        let view = self.conversations.get(conversation);
        view.is_some_and(|view| view.visibility == Visibility::Counted)
    }

    async fn changed(&mut self, changed: proto::Conversation) -> Result<(), Failure> {
        let direct = changed.kind() == proto::conversation::Kind::Direct;
        self.screen.complete_with([completed(&changed)]);
        match (changed.joined, direct) {
            (true, true) => self.follow(&changed, 0).await,
            (true, false) => self.count(&changed).await,
            (false, _) => Ok(()),
        }
    }

    /// Reports a bad line: as a note on a terminal, else as an error that ends the script.
    fn complain(&mut self, words: &str) -> Result<(), Failure> {
        if self.screen.is_terminal() { self.note(words) } else { Err(Failure::usage(words)) }
    }

    /// Prints an error, folded at the terminal's width.
    fn print_error(&mut self, words: &str) -> Result<(), Failure> {
        let words = self.out.fold(words, 0, 2);
        Ok(self.screen.print(&self.out.style(Style::Bad, &words))?)
    }

    /// Prints a message of the program itself.
    fn note(&mut self, words: &str) -> Result<(), Failure> {
        let words = self.out.fold(words, NOTE.len(), NOTE.len());
        Ok(self.screen.print(&self.out.style(Style::Dim, &format!("{NOTE}{words}")))?)
    }

    /// Sends a request to the server, which may be unreachable.
    async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Failure> {
        let question = async {
            match question.await {
                Err(ClientError::Lost(_)) => Err(no_line()),
                answer => Ok(answer?),
            }
        };
        self.within(question).await
    }

    /// The same for several requests in a row.
    async fn within<T>(
        &self,
        questions: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if self.down.is_some() {
            return Err(no_line());
        }
        patience::within(ANSWER, questions).await.unwrap_or_else(|| Err(no_line()))
    }
}

fn no_line() -> Failure {
    Failure::new(Exit::NoConnection, "no connection to the server now")
}

/// A conversation as Tab completes it.
fn completed(conversation: &proto::Conversation) -> String {
    match conversation.kind() {
        proto::conversation::Kind::Direct => target_of(conversation),
        _ => format!("#{}", conversation.name),
    }
}

/// How to fetch a file of the current room.
fn get_here(entry: &Entry) -> String {
    format!("get it with: /get {}", entry.n)
}

/// The conversations and people at the start.
struct Found {
    current: proto::Conversation,
    /// The lobby and direct conversations, which are shown too.
    others: Vec<proto::Conversation>,
    /// The other rooms, joined or not.
    rooms: Vec<proto::Conversation>,
    people: Vec<proto::Person>,
}

/// Repeats the requests until a connection delivers the answers.
async fn find(client: Client, target: String) -> Result<Found, Failure> {
    let once = async || -> Result<Found, ClientError> {
        let current = client.target(&target).await?;
        let mut all = client.conversations(false).await?;
        all.retain(|other| other.id != current.id);
        let is_shown = |other: &proto::Conversation| {
            other.name == "lobby" || other.kind() == proto::conversation::Kind::Direct
        };
        let (others, mut rooms): (Vec<_>, Vec<_>) = all.into_iter().partition(is_shown);
        rooms.extend(client.conversations(true).await?);
        // Also subscribes to presence from now on.
        let people = client.people(true).await?;
        Ok(Found { current, others, rooms, people })
    };
    loop {
        match once().await {
            Err(ClientError::Lost(_)) => {}
            // The client's last event carries the reason.
            Err(ClientError::Closed | ClientError::TooManySessions) => std::future::pending().await,
            found => return Ok(found?),
        }
    }
}
