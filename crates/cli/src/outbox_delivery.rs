//! Queues messages in the outbox and waits until the server has them on its disk.
//!
//! Lines enter the outbox as they are read, so that they survive a kill. The client retries while
//! the server is unreachable. When the wait ends, messages that are not recorded stay queued and
//! are reported.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use twinlock_client::error::{Fault, Refusal, RefusalReason};
use twinlock_client::outbox::{Ack, MessageOutcome};
use twinlock_client::state::StateError;
use twinlock_client::{Client, ClientError, Event, Options};
use twinlock_core::id::MessageId;
use twinlock_transport::OsEntropy;

use crate::blocking::blocking;
use crate::clock::now_ms;
use crate::connection_text::{trying_again, warn_about_tls, why_down};
use crate::context::{Context, OpenProfile};
use crate::entry::AckJson;
use crate::exit::{Exit, Failure};
use crate::input::LineBatches;
use crate::output::{JsonEvents, Output};
use crate::progress_timeout::ProgressTimeout;
use crate::signals::interrupted;

/// How long to wait without an acknowledgement or new input, unless `--timeout` is given.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long without an acknowledgement before the wait is explained.
pub(crate) const QUIET: Duration = Duration::from_secs(3);
/// Outcomes looked up at once.
const BATCH: usize = 512;
/// Input pauses at this number of unacknowledged messages in the outbox.
const AHEAD: usize = 8192;
/// How often to check whether another process of this profile has sent our messages.
pub(crate) const LOOK: Duration = Duration::from_millis(200);

/// The messages of one command on their way to the record.
pub(crate) struct Delivery<'a> {
    out: &'a Output,
    client: Client,
    events: mpsc::Receiver<Event>,
    /// As spelled on the command line.
    target: String,
    /// Prints the acks, with `--json`.
    report: Option<JsonEvents>,
    waiting: HashSet<MessageId>,
    /// Dropped from the outbox by another process. One that was already sent may still be recorded.
    dropped: HashSet<MessageId>,
    recorded: u64,
    refused: Option<RefusalReason>,
    /// Why there is no connection now.
    down: Option<ClientError>,
    /// Why the server records nothing now.
    held: Option<ClientError>,
    patience: Duration,
    /// The wait has been explained.
    told: bool,
}

impl<'a> Delivery<'a> {
    /// Opens the profile with nothing to send yet. `target` is the conversation of the messages,
    /// `report` takes their acks.
    pub(crate) fn open(
        context: &'a Context,
        target: String,
        report: Option<JsonEvents>,
    ) -> Result<Self, Failure> {
        let OpenProfile { client, events, .. } = context.open(Options::default())?;
        Ok(Self {
            out: &context.out,
            client,
            events,
            target,
            report,
            waiting: HashSet::new(),
            dropped: HashSet::new(),
            recorded: 0,
            refused: None,
            down: None,
            held: None,
            patience: context.global.timeout.unwrap_or(PROGRESS_TIMEOUT),
            told: false,
        })
    }

    /// Queues each line as a message.
    pub(crate) async fn enqueue(&mut self, lines: Vec<String>) -> Result<(), Failure> {
        let outbox = self.client.state().outbox();
        let target = self.target.clone();
        let ids = blocking(move || {
            let messages = lines.iter().map(|line| (target.as_str(), line.as_bytes()));
            outbox.enqueue_many(messages, now_ms(), &mut OsEntropy)
        });
        self.waiting.extend(ids.await?);
        // The event loop notices the end of the client.
        let _closed = self.client.notify_enqueued().await;
        Ok(())
    }

    /// Queues the refused messages again, and waits for all queued ones. Returns their number.
    pub(crate) async fn resend(&mut self) -> Result<usize, Failure> {
        let outbox = self.client.state().outbox();
        let queued = blocking(move || {
            outbox.retry_refused()?;
            Ok::<_, StateError>(outbox.pending(usize::MAX)?.into_iter().map(|m| m.message_id))
        });
        self.waiting.extend(queued.await?);
        let _closed = self.client.notify_enqueued().await;
        Ok(self.waiting.len())
    }

    /// Reads `input` to its end and waits until every message is recorded, refused or dropped.
    pub(crate) async fn settle(mut self, mut input: Option<LineBatches>) -> Result<(), Failure> {
        let mut bad_input = None;
        let mut timeout = ProgressTimeout::new(self.patience);
        let mut moved_at = Instant::now();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut interrupt = std::pin::pin!(interrupted());
        // Too many sessions: another process of this profile may send our messages.
        let mut limited = None;
        let ended = loop {
            if input.is_none() && self.waiting.is_empty() {
                break None;
            }
            // The timeout applies only while a message is outstanding.
            let late = !self.waiting.is_empty();
            tokio::select! {
                lines = next(&mut input), if self.waiting.len() < AHEAD => match lines {
                    Some(Ok(lines)) => {
                        timeout.renew();
                        self.enqueue(lines).await?;
                    }
                    Some(Err(failure)) => {
                        bad_input = Some(failure);
                        input = None;
                    }
                    None => input = None,
                },
                event = self.events.recv(), if limited.is_none() => match event {
                    Some(Event::Ended(Some(error @ ClientError::TooManySessions))) => {
                        limited = Some(Failure::from(error));
                    }
                    Some(Event::Ended(error)) => break error.map(Failure::from),
                    Some(event) => if self.take(event)? {
                        moved_at = Instant::now();
                        timeout.renew();
                    },
                    None => break None,
                },
                _ = look.tick(), if late => if self.look().await? {
                    moved_at = Instant::now();
                    timeout.renew();
                },
                () = sleep_until(moved_at + QUIET), if late && !self.told => self.tell(),
                () = timeout.is_over(), if late => break limited.take(),
                () = &mut interrupt => break Some(Failure::interrupted()),
            }
        };
        // The closed client has settled the final outcomes.
        self.look().await?;
        self.conclude(ended, bad_input).await
    }

    /// Reports what is not recorded. `ended` is why the wait ended early, `bad_input` why the input
    /// did.
    async fn conclude(
        self,
        ended: Option<Failure>,
        bad_input: Option<Failure>,
    ) -> Result<(), Failure> {
        let Self { out, client, waiting, dropped, refused, down, held, recorded, report, .. } =
            self;
        if waiting.is_empty() && down.is_none() {
            client.close().await;
        }
        if !dropped.is_empty() {
            out.warn(&match dropped.len() {
                1 => "1 message is not sent: another command dropped it from the outbox".to_owned(),
                many => {
                    format!(
                        "{many} messages are not sent: another command dropped them from the outbox"
                    )
                }
            });
        }
        if !waiting.is_empty() {
            if let Some(failure) = &bad_input {
                out.failure(failure);
            }
            let queued = waiting.len();
            let words = format!(
                "{queued} {} queued in the outbox, not recorded ({recorded} recorded); the next \
                 `send`, `listen` or `chat` sends the rest",
                if queued == 1 { "message is" } else { "messages are" },
            );
            return Err(match ended {
                Some(failure) if failure.exit != Exit::NoConnection => {
                    out.warn(&words);
                    failure
                }
                ended => {
                    let failure = Failure::new(Exit::Queued, words);
                    match (ended, down.or(held)) {
                        (Some(why), _) => failure.hint(why.message),
                        (None, Some(why)) => failure.hint(why_down(&why)),
                        (None, None) => failure,
                    }
                }
            });
        }
        if let Some(failure) = bad_input {
            return Err(failure);
        }
        match (ended, refused) {
            (Some(failure), _) if failure.exit != Exit::NoConnection => Err(failure),
            (_, Some(why)) => {
                Err(Failure::refused(format!("not recorded: {}", Refusal::from(why)), why))
            }
            _ if !dropped.is_empty() => Err(Failure::said(Exit::ServerSaidNo)),
            _ => report.map_or(Ok(()), JsonEvents::end),
        }
    }

    /// Returns whether there was progress.
    fn take(&mut self, event: Event) -> Result<bool, Failure> {
        match event {
            Event::Up(up) => {
                if self.down.take().is_some() {
                    self.out.say("connected again");
                }
                warn_about_tls(self.out, up.binding);
                Ok(false)
            }
            Event::Down { error, retry } => {
                if self.down.is_none() && error.fault() == Fault::Network {
                    self.out.say(&trying_again(&error, retry));
                    self.tell();
                }
                self.down = Some(error);
                Ok(false)
            }
            Event::Held { error, retry } => {
                self.out.say(&trying_again(&error, retry));
                self.held = Some(error);
                Ok(false)
            }
            Event::Recorded { message_id, ack } => self.recorded(&message_id, &ack),
            Event::Refused { message_id, why } => Ok(self.refused(&message_id, why)),
            _ => Ok(false),
        }
    }

    /// Explains the wait once: its reason, and how to end it.
    fn tell(&mut self) {
        if !std::mem::replace(&mut self.told, true) && !self.waiting.is_empty() {
            self.out.say(&waits(self.waiting.len(), self.patience));
        }
    }

    fn recorded(&mut self, message_id: &MessageId, ack: &Ack) -> Result<bool, Failure> {
        // The client also sends older messages of this outbox; other commands own them.
        if !self.waiting.remove(message_id) && !self.dropped.remove(message_id) {
            return Ok(true);
        }
        self.recorded += 1;
        self.held = None;
        if let Some(report) = &mut self.report {
            report.json(&AckJson::new(&self.target, message_id, ack));
        }
        Ok(true)
    }

    fn refused(&mut self, message_id: &MessageId, why: RefusalReason) -> bool {
        if self.waiting.remove(message_id) {
            self.refused = Some(why);
        }
        true
    }

    /// Looks up messages that another process may have sent, or that were settled at the end.
    async fn look(&mut self) -> Result<bool, Failure> {
        let ids: Vec<MessageId> = self.waiting.iter().copied().collect();
        let mut moved = false;
        for some in ids.chunks(BATCH) {
            let outbox = self.client.state().outbox();
            let asked = some.to_vec();
            let outcomes = blocking(move || outbox.outcomes(&asked)).await?;
            for (id, outcome) in some.iter().zip(outcomes) {
                moved |= match outcome {
                    Some(MessageOutcome::Recorded(ack)) => self.recorded(id, &ack)?,
                    Some(MessageOutcome::Refused(why)) => self.refused(id, why),
                    Some(MessageOutcome::Pending) => false,
                    None => self.waiting.remove(id) && self.dropped.insert(*id),
                };
            }
        }
        Ok(moved)
    }
}

/// The explanation of the wait.
pub(crate) fn waits(messages: usize, patience: Duration) -> String {
    format!(
        "waiting at most {} s until the server has recorded {messages} {}; Ctrl-C ends the wait, and a \
         message that is not recorded stays in the outbox",
        patience.as_secs().max(1),
        if messages == 1 { "message" } else { "messages" },
    )
}

async fn next(input: &mut Option<LineBatches>) -> Option<Result<Vec<String>, Failure>> {
    match input {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}
