//! The driver: the task behind a [`crate::Client`], which connects, serves and reconnects.
//!
//! One task owns all state. Connecting, pausing and serving each run concurrently with
//! [`Driver::background`], which takes commands, delivers events to the consumer and collects the
//! results of disk jobs. File transfers use separate connections ([`crate::transfer`]).
//!
//! Disk access runs on blocking threads, so that a slow disk delays no PING. At most one outbox job
//! and one verification job run at a time. Work that arrives during a job is batched into the next
//! one.

mod command;
mod follow;
mod send;
mod serve;
mod served_connection;

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use twinlock_core::Entropy as _;
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::ConversationId;
use twinlock_core::keys::DeviceSecret;
use twinlock_core::proto::{self, request::Op};
use twinlock_transport::OsEntropy;

use crate::blocking::blocking;
use crate::connector::{Connector, ReadySession};
use crate::delays::{Delays, GOOD_CONNECTION};
use crate::error::ClientError;
use crate::home::Home;
use crate::model::{Event, Facts, Options, Rekeyed, Up};
use crate::profile::{Profile, ProfileError};
use crate::ready::{client_info, learning};
use crate::session_log::{self, RecordedCounts};
use crate::state::State;
use command::Recipient;
pub(crate) use command::{DriverCommand, Reply};
use follow::{Checked, Follows};
use send::{OutboxSender, Settled};
use served_connection::ServedConnection;

/// Capacity of the command channel.
const COMMANDS: usize = 64;
/// Capacity of the event channel. Further events wait in [`Driver::queue`].
const EVENTS: usize = 16;
/// Maximum number of requests that wait for a connection.
const WAITING: usize = 256;
/// Interval of the checks whether another process has added to the outbox.
const LOOK: Duration = Duration::from_millis(100);

/// The result of a disk job.
enum JobResult {
    /// Of [`Driver::settle`].
    Settled(Result<Settled, ClientError>),
    /// Of [`Driver::check`].
    Checked(Result<Checked, ClientError>),
    /// Of [`Driver::learn`].
    Learned(Result<Box<Profile>, ClientError>),
    /// Of [`Driver::note_left`].
    Noted(Result<(), ClientError>),
}

/// Why the task ends.
enum StopReason {
    /// A handle closed the client, or the last handle was dropped.
    Asked(Option<oneshot::Sender<()>>),
    /// An error that is not retried.
    Failed(ClientError),
}

struct Driver {
    home: Home,
    profile: Profile,
    options: Options,
    connector: Connector,
    info: proto::ClientInfo,
    commands: mpsc::Receiver<DriverCommand>,
    ended: Arc<OnceLock<ClientError>>,
    events: mpsc::Sender<Event>,
    /// Events that the consumer has not taken.
    queue: VecDeque<Event>,
    /// Requests that wait for a connection.
    waiting: VecDeque<(Op, Recipient)>,
    facts: Vec<Reply<Facts>>,
    /// Rekey requests that wait for a connection.
    rekeys: Vec<Reply<Rekeyed>>,
    jobs: FuturesUnordered<BoxFuture<'static, JobResult>>,
    look: Interval,
    follows: Follows,
    sending: OutboxSender,
    /// A caller wants the next attempt without a delay.
    reconnect_now: bool,
    /// The delay that the server announced with `GoingAway`.
    retry_after: Option<Duration>,
    /// The connection made progress: an ack or an entry arrived. A login alone is not progress, so
    /// that the delays grow if a server drops clients right after it.
    moved: bool,
    /// A connection is being served.
    connected: bool,
    /// Counts of recorded messages, for the log.
    sums: RecordedCounts,
}

/// Starts the driver's task. Returns the sender of its commands and the receiver of its events.
pub(crate) fn start(
    home: &Home,
    profile: Profile,
    state: State,
    options: Options,
    ended: Arc<OnceLock<ClientError>>,
) -> Result<(mpsc::Sender<DriverCommand>, mpsc::Receiver<Event>), ClientError> {
    let (commands, taken) = mpsc::channel(COMMANDS);
    let (sender, events) = mpsc::channel(EVENTS);
    let mut instance = [0; 8];
    OsEntropy.fill(&mut instance);
    let info = proto::ClientInfo {
        instance: Bytes::copy_from_slice(&instance),
        ..client_info(profile.label())
    };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let driver = Driver {
        home: home.clone(),
        connector: Connector::of(&profile, options.address.clone(), options.timing.clone())?
            .over(options.route.clone()),
        profile,
        follows: Follows::new(state.receipts()),
        sending: OutboxSender::new(state, options.send),
        options,
        info,
        commands: taken,
        ended,
        events: sender,
        queue: VecDeque::new(),
        waiting: VecDeque::new(),
        facts: Vec::new(),
        rekeys: Vec::new(),
        sums: RecordedCounts::default(),
        jobs: FuturesUnordered::new(),
        look,
        reconnect_now: false,
        retry_after: None,
        moved: false,
        connected: false,
    };
    tokio::spawn(driver.run());
    Ok((commands, events))
}

impl Driver {
    async fn run(mut self) {
        let stop = self.live().await;
        self.sending.connection_ended();
        self.settle(false);
        // The server's acks must be on disk before any caller learns of the end.
        while let Some(done) = self.jobs.next().await {
            if self.take_done(done).is_err() {
                break;
            }
            self.settle(false);
        }
        self.sums.end();
        let (error, reply) = match stop {
            StopReason::Asked(reply) => (None, reply),
            StopReason::Failed(error) => (Some(error), None),
        };
        let fail = error.clone().unwrap_or(ClientError::Closed);
        // Set before any request fails, so that its caller finds the cause.
        let _first = self.ended.set(fail.clone());
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            command.refuse(&fail);
        }
        for (_, asker) in self.waiting.drain(..) {
            if let Recipient::Caller(reply) = asker {
                let _gone = reply.send(Err(fail.clone()));
            }
        }
        for reply in self.facts.drain(..) {
            let _gone = reply.send(Err(fail.clone()));
        }
        for reply in self.rekeys.drain(..) {
            let _gone = reply.send(Err(fail.clone()));
        }
        self.queue.push_back(Event::Ended(error));
        if let Some(reply) = reply {
            let _gone = reply.send(());
        }
        while let Some(event) = self.queue.pop_front() {
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }

    /// Connects and serves repeatedly, with a back-off in between, until the task must end.
    async fn live(&mut self) -> StopReason {
        let mut delays = Delays::new(&self.options);
        let patient_until = Instant::now() + self.options.patience;
        loop {
            let mut good = false;
            let error = match self.connect().await {
                Ok(opened) => {
                    let began = Instant::now();
                    let error = match self.serve(opened).await {
                        Ok(stop) => return stop,
                        Err(error) => error,
                    };
                    good = std::mem::take(&mut self.moved) || began.elapsed() > GOOD_CONNECTION;
                    error
                }
                Err(StopReason::Failed(error)) => {
                    session_log::failed(self.connector.address(), &error);
                    self.sending.connection_ended();
                    self.settle(false);
                    error
                }
                Err(stop) => return stop,
            };
            let again = self.options.reconnect || error.wants_a_slot();
            if !error.is_retryable() || !again {
                return StopReason::Failed(error);
            }
            let retry = delays.after(good, &error, self.retry_after.take());
            if !self.options.reconnect && Instant::now() + retry >= patient_until {
                return StopReason::Failed(error);
            }
            if let Some(stop) = self.pause(error, retry).await {
                return stop;
            }
        }
    }

    /// Connects and logs in, concurrently with the background work.
    async fn connect(&mut self) -> Result<ReadySession, StopReason> {
        let secret = DeviceSecret::new(self.profile.secret().expose_secret());
        let credential = Credential::Device(*self.profile.device(), secret);
        let (connector, info) = (self.connector.clone(), self.info.clone());
        let mut opening = Box::pin(async move { connector.open(credential, &info).await });
        loop {
            tokio::select! {
                opened = &mut opening => return opened.map_err(StopReason::Failed),
                stop = self.background() => if let Some(stop) = stop { return Err(stop) },
            }
        }
    }

    /// Waits before the next attempt, concurrently with the background work. A caller can end the
    /// wait ([`DriverCommand::ReconnectNow`]).
    async fn pause(&mut self, error: ClientError, retry: Duration) -> Option<StopReason> {
        self.reconnect_now = false;
        put(&mut self.queue, Event::Down { error, retry });
        let until = Instant::now() + retry;
        loop {
            tokio::select! {
                () = sleep_until(until) => return None,
                stop = self.background() => if stop.is_some() { return stop },
            }
            if self.reconnect_now {
                return None;
            }
        }
    }

    /// Serves a connection until the connection or the task ends.
    async fn serve(&mut self, opened: ReadySession) -> Result<StopReason, ClientError> {
        session_log::begin(self.connector.address(), &opened);
        let ReadySession { connection, info, binding, tls, transport } = opened;
        self.learn(&info);
        let up = Up { server: (&info).into(), binding, tls, transport };
        self.queue.push_back(Event::Up(Box::new(up.clone())));
        let mut serving = ServedConnection::new(up, connection);
        self.connected = true;
        self.sending.connection_began(&info);
        let end = loop {
            if let Err(error) = self.pump(&mut serving) {
                break Err(error);
            }
            let turn = tokio::select! {
                wake = serving.requests.connection_mut().wait(None) => match wake {
                    Ok(_) => self.take_frames(&mut serving).map(|()| None),
                    Err(error) => Err(error.into()),
                },
                stop = self.background() => Ok(stop),
            };
            match turn {
                Ok(None) => {}
                Ok(Some(stop)) => break Ok(stop),
                Err(error) => break Err(error),
            }
        };
        self.connected = false;
        session_log::end(
            serving.requests.connection().session(),
            match &end {
                Ok(StopReason::Failed(error)) | Err(error) => Some(error),
                Ok(StopReason::Asked(_)) => None,
            },
        );
        self.connection_ended(&mut serving, end.as_ref().err());
        let connection = serving.requests.into_connection();
        // Sending the last frames takes up to 6 s. Only the end of the task waits for it; a
        // reconnection does not.
        match &end {
            Ok(_) => connection.close(CloseCode::Bye).await,
            Err(_) => drop(tokio::spawn(connection.finish())),
        }
        end
    }

    /// Does one step of the work that needs no connection. Cancel-safe.
    async fn background(&mut self) -> Option<StopReason> {
        let events = self.events.clone();
        tokio::select! {
            command = self.commands.recv() => match command {
                Some(DriverCommand::Close(reply)) => return Some(StopReason::Asked(Some(reply))),
                Some(command) => self.take_command(command),
                None => return Some(StopReason::Asked(None)),
            },
            permit = events.reserve(), if !self.queue.is_empty() => match permit {
                Ok(permit) => if let Some(event) = self.queue.pop_front() {
                    self.follows.delivered(&event);
                    permit.send(event);
                },
                // The consumer dropped the receiver. The connection still serves the handles.
                Err(_) => self.queue.clear(),
            },
            Some(done) = self.jobs.next() => if let Err(error) = self.take_done(done) {
                return Some(StopReason::Failed(error));
            },
            _ = self.look.tick(), if self.options.send => {
                self.sending.look();
                self.sums.write_due();
            },
        }
        None
    }

    /// Starts the outbox job, which writes results to disk and claims messages, unless it is
    /// running or has nothing to do.
    fn settle(&mut self, connected: bool) {
        if let Some(work) = self.sending.settle(connected) {
            self.jobs.push(Box::pin(async move { JobResult::Settled(blocking(work).await) }));
        }
    }

    /// Starts the job that verifies received entries, unless it is running or has nothing to do.
    fn check(&mut self) {
        if let Some(work) = self.follows.check() {
            self.jobs.push(Box::pin(async move { JobResult::Checked(blocking(work).await) }));
        }
    }

    fn take_command(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Follow { conversation, after, token } => {
                self.follows.begin(conversation, after, token);
            }
            DriverCommand::Unfollow { conversation, token } => {
                self.follows.end_one(conversation, token);
            }
            DriverCommand::Enqueued => self.sending.notify_enqueued(),
            DriverCommand::ReconnectNow => self.reconnect_now = true,
            DriverCommand::Facts(reply) => self.facts.push(reply),
            DriverCommand::Rekey(reply) => self.rekeys.push(reply),
            DriverCommand::Request { reply, .. } if self.waiting.len() >= WAITING => {
                let _gone = reply.send(Err(ClientError::TooManyRequests));
            }
            DriverCommand::Request { op, reply } => {
                self.waiting.push_back((*op, Recipient::Caller(reply)));
            }
            DriverCommand::Close(_) => {}
        }
    }

    fn take_done(&mut self, done: JobResult) -> Result<(), ClientError> {
        match done {
            JobResult::Settled(settled) => {
                let Settled { recorded, refused, claimed, filled, changes } = settled?;
                for (message_id, ack) in recorded {
                    let to = || self.sending.target_of(ack.conversation);
                    self.sums.note(ack.conversation, ack.n, to);
                    self.queue.push_back(Event::Recorded { message_id, ack });
                }
                self.sums.write_due();
                if !refused.is_empty() {
                    tracing::info!(count = refused.len(), "messages refused");
                }
                for (message_id, why) in refused {
                    self.queue.push_back(Event::Refused { message_id, why });
                }
                self.sending.settled(claimed, filled, changes);
                // Settles the results that arrived during the job. Without a connection, releases
                // the claims for other processes.
                self.settle(self.connected);
            }
            JobResult::Checked(checked) => {
                let mut checked = checked?;
                let fault = checked.fault.take();
                let events = self.follows.checked(checked);
                self.queue.extend(events);
                if let Some(fault) = fault {
                    return Err(fault);
                }
            }
            JobResult::Learned(Ok(profile)) => {
                let (address, timing) = (self.options.address.clone(), self.options.timing.clone());
                let route = self.options.route.clone();
                self.connector = Connector::of(&profile, address, timing)?.over(route);
                self.profile = *profile;
            }
            // The profile now belongs to another account, whose messages this task must not send.
            JobResult::Learned(Err(
                error @ ClientError::Profile(ProfileError::Replaced { .. }),
            )) => {
                return Err(error);
            }
            JobResult::Learned(Err(error)) => {
                tracing::warn!(%error, "the facts of READY were not stored");
            }
            JobResult::Noted(noted) => noted?,
        }
        Ok(())
    }

    /// Stores that the user left a conversation, so that an audit does not report the conversation
    /// as missing.
    fn note_left(&mut self, conversation: ConversationId) {
        let receipts = self.follows.receipts();
        self.jobs.push(Box::pin(async move {
            let note = move || crate::record::note_left(&receipts, conversation);
            JobResult::Noted(blocking(note).await)
        }));
    }

    /// Stores the pins and the version of READY in the profile, for the next connection.
    fn learn(&mut self, info: &proto::ServerInfo) {
        let learn = learning(&self.home, &self.profile, info);
        self.jobs.push(Box::pin(async move {
            JobResult::Learned(blocking(move || learn().map(Box::new)).await)
        }));
    }
}

/// Queues an event and removes older ones that it supersedes. A consumer that pauses for long then
/// finds the current state, not its history.
fn put(queue: &mut VecDeque<Event>, event: Event) {
    let stale = |old: &Event| match (old, &event) {
        // A consumer has to know that a conversation was left, also if it was joined again.
        (Event::Conversation(old), Event::Conversation(new)) => {
            old.id == new.id && (old.joined || !new.joined)
        }
        (Event::Presence { user: old, .. }, Event::Presence { user: new, .. }) => old == new,
        (Event::Down { .. }, Event::Down { .. }) => true,
        (Event::Held { .. }, Event::Held { .. }) => true,
        _ => false,
    };
    queue.retain(|old| !stale(old));
    queue.push_back(event);
}
