//! Queues messages in the outbox and waits until the server has them on its disk.
//!
//! Lines enter the outbox as they are read, so that they survive a kill. The client retries while
//! the server is unreachable. When the wait ends, messages that are not recorded stay queued and
//! are reported.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use twinlock_client::error::{Fault, Refusal, RefusalReason};
use twinlock_client::{
    Client, ClientError, ConnectionEvent, ConnectionEvents, Deliveries, DeliveryEvent, Options,
};
use twinlock_core::id::MessageId;

use crate::connection_text::{trying_again, warn_about_tls, why_down};
use crate::context::Context;
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
/// Input pauses at this number of unacknowledged messages in the outbox.
const AHEAD: usize = 8192;
/// How often to check whether another process of this profile has sent our messages.
pub(crate) const LOOK: Duration = Duration::from_millis(200);

/// The messages of one command on their way to the record.
pub(crate) struct Delivery<'a> {
    out: &'a Output,
    client: Client,
    messages: Deliveries,
    connection: ConnectionEvents,
    /// As spelled on the command line.
    target: String,
    /// Prints the acks, with `--json`.
    report: Option<JsonEvents>,
    /// Removed from the outbox by another process. One that was already sent may still be recorded.
    discarded: HashSet<MessageId>,
    recorded: u64,
    refused: Option<RefusalReason>,
    /// Why there is no connection now.
    down: Option<ClientError>,
    /// Why the server records nothing now.
    held: Option<ClientError>,
    /// Why this process has no session. Another one of the profile may send the messages.
    no_session: Option<ClientError>,
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
        let client = context.connect(Options::default())?;
        Ok(Self {
            out: &context.out,
            messages: client.deliveries()?.outlasting_session(),
            connection: client.connection_events()?,
            client,
            target,
            report,
            discarded: HashSet::new(),
            recorded: 0,
            refused: None,
            down: None,
            held: None,
            no_session: None,
            patience: context.global.timeout.unwrap_or(PROGRESS_TIMEOUT),
            told: false,
        })
    }

    /// Queues each line as a message.
    pub(crate) async fn enqueue(&mut self, lines: Vec<String>) -> Result<(), Failure> {
        self.messages.send(&self.target, lines).await?;
        Ok(())
    }

    /// Queues the refused messages again, and waits for all queued ones. Returns their number.
    pub(crate) async fn resend(&mut self) -> Result<usize, Failure> {
        Ok(self.messages.resend_refused().await?)
    }

    /// Reads `input` to its end and waits until every message is recorded, refused or discarded.
    pub(crate) async fn settle(mut self, mut input: Option<LineBatches>) -> Result<(), Failure> {
        let mut bad_input = None;
        let mut timeout = ProgressTimeout::new(self.patience);
        let mut moved_at = Instant::now();
        let mut interrupt = std::pin::pin!(interrupted());
        let ended = loop {
            let pending = self.messages.pending_count();
            if input.is_none() && pending == 0 {
                break None;
            }
            // The timeout applies only while a message is outstanding.
            let late = pending > 0;
            tokio::select! {
                lines = next(&mut input), if pending < AHEAD => match lines {
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
                event = self.messages.next() => match event {
                    Ok(event) => {
                        self.take(event);
                        moved_at = Instant::now();
                        timeout.renew();
                    }
                    Err(error) => break Some(error.into()),
                },
                Some(event) = self.connection.next() => self.connection_changed(event),
                () = sleep_until(moved_at + QUIET), if late && !self.told => self.tell(),
                () = timeout.is_over(), if late => {
                    break self.no_session.take().map(Failure::from);
                }
                () = &mut interrupt => break Some(Failure::interrupted()),
            }
        };
        for event in self.messages.last_results().await? {
            self.take(event);
        }
        self.conclude(ended, bad_input).await
    }

    /// Reports what is not recorded. `ended` is why the wait ended early, `bad_input` why the input
    /// did.
    async fn conclude(
        self,
        ended: Option<Failure>,
        bad_input: Option<Failure>,
    ) -> Result<(), Failure> {
        let Self {
            out, client, messages, discarded, refused, down, held, recorded, report, ..
        } = self;
        let queued = messages.pending_count();
        if queued == 0 && down.is_none() {
            client.close().await;
        }
        if !discarded.is_empty() {
            out.warn(&match discarded.len() {
                1 => "1 message is not sent: another command dropped it from the outbox".to_owned(),
                many => {
                    format!(
                        "{many} messages are not sent: another command dropped them from the outbox"
                    )
                }
            });
        }
        if queued > 0 {
            if let Some(failure) = &bad_input {
                out.failure(failure);
            }
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
            _ if !discarded.is_empty() => Err(Failure::said(Exit::ServerSaidNo)),
            _ => report.map_or(Ok(()), JsonEvents::end),
        }
    }

    fn connection_changed(&mut self, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Up(up) => {
                if self.down.take().is_some() {
                    self.out.say("connected again");
                }
                warn_about_tls(self.out, up.binding, up.tls.issuer.as_deref());
            }
            ConnectionEvent::Down { error, retry } => {
                if self.down.is_none() && error.fault() == Fault::Network {
                    self.out.say(&trying_again(&error, retry));
                    self.tell();
                }
                self.down = Some(error);
            }
            ConnectionEvent::Held { error, retry } => {
                self.out.say(&trying_again(&error, retry));
                self.held = Some(error);
            }
            ConnectionEvent::Ended(error) => self.no_session = error,
            _ => {}
        }
    }

    /// Explains the wait once: its reason, and how to end it.
    fn tell(&mut self) {
        let pending = self.messages.pending_count();
        if !std::mem::replace(&mut self.told, true) && pending > 0 {
            self.out.say(&waits(pending, self.patience));
        }
    }

    fn take(&mut self, event: DeliveryEvent) {
        match event {
            DeliveryEvent::Recorded { message_id, ack } => {
                self.discarded.remove(&message_id);
                self.recorded += 1;
                self.held = None;
                if let Some(report) = &mut self.report {
                    report.json(&AckJson::new(&self.target, &message_id, &ack));
                }
            }
            DeliveryEvent::Refused { message_id, why } if !self.discarded.contains(&message_id) => {
                self.refused = Some(why);
            }
            DeliveryEvent::Discarded { message_id } => _ = self.discarded.insert(message_id),
            // The client also sends older messages of this outbox; other commands own them.
            _ => {}
        }
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
