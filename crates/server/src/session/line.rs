//! The loop of a session: frames in, answers and entries out, until either side ends it.
//!
//! Everything is bounded. Requests are read ahead up to the bound of [`Intake`]; beyond it nothing
//! is read, and only a close by the peer is detected. While the backlog exceeds [`HIGH_WATER`]
//! bytes, no request starts. While the recorder has as many appends as a session may have in
//! flight, no other is handed over. Signals from other sessions wait as flags, and what they lead
//! to is sent only while the backlog is below [`ROOM`]. File bytes come after all of this, under
//! the same condition.
//!
//! The request in progress ([`job`]) and the reads for follows and changes ([`news`]) are polled
//! together with the connection. Nothing else waits for them: a session ends at once and drops its
//! queued requests. Appends that are being handed over are always polled until the recorder has
//! them, because those of other sessions queue behind them.

mod dispatch;
mod ear;
mod job;
mod log;
mod news;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt as _;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use twinlock_core::chain::Kind;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, CredentialId, DeviceId, Name, Sender};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_core::session::{Binding, SendError, SessionEvent};
use twinlock_core::text::Untrusted;
use twinlock_store::{Appended, Holder, Person, StoreError};
use twinlock_transport::connection::{Connection, ConnectionError, HIGH_WATER, Wake};
use twinlock_transport::transport::Transport;

use super::appends::{Appends, Batch, Recorded};
use super::follow::{Cursors, ROOM};
use super::intake::{Intake, Malformed};
use super::out::Out;
use super::refusal::{Refused, not_recorded, storage};
use super::register::{Registrar, Registrations};
use super::step_up::StepUp;
use super::transfers::{Done, Transfers, Violation};
use crate::append_log::{AppendLog, Logged, Who, with_name, write_text};
use crate::convert;
use crate::hub::Entered;
use crate::limits::Origin;
use crate::server::Shared;
use ear::{Ear, listen};
use job::{Finished, Job, next_finished};
use log::{log_begin, log_end};
use news::{Looking, next_news};

/// Backlog at the end, in bytes, up to which a session leaves the registry at once.
const LITTLE: usize = 16 * 1024;
/// Presence changes sent at a time.
const PRESENCE: usize = 500;
/// Characters of the client's software name that are logged.
const SOFTWARE: usize = 64;

/// The kind of session, which determines the allowed requests.
enum Rights {
    /// Everything of section 8 that the user's role allows.
    Device(Arc<Person>, DeviceId),
    /// Registration and management of the user's own devices, within `Limits::fresh_password`.
    /// `None` while the request in progress has the registrations.
    Password(Name, Option<Registrations>),
    /// Registration of a new user.
    Invite(Option<Registrations>),
}

/// Why the loop ended.
enum End {
    /// Send this code and close.
    Close(CloseCode),
    /// The connection can send nothing more, or has sent its last frame.
    Connection(ConnectionError),
    /// The peer has closed the session.
    Bye(CloseCode),
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<Malformed> for End {
    fn from(_: Malformed) -> Self {
        Self::Close(CloseCode::Protocol)
    }
}

impl From<Violation> for End {
    fn from(_: Violation) -> Self {
        Self::Close(CloseCode::Protocol)
    }
}

/// An item does not fit in a frame, which must not happen to any answer; or the session has ended,
/// which is detected before.
impl From<SendError> for End {
    fn from(_: SendError) -> Self {
        Self::Close(CloseCode::Internal)
    }
}

/// The record cannot be read, so the session cannot send what it owes the client.
impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        storage(&error);
        Self::Close(CloseCode::Internal)
    }
}

/// The session of an authenticated client.
pub(crate) struct Serving<S> {
    shared: Arc<Shared>,
    handle: Entered,
    line: Connection<S>,
    rights: Rights,
    /// Step-up state of a device session, from its first step-up on.
    step_up: Option<Box<StepUp>>,
    intake: Intake,
    job: Option<Job>,
    appends: Appends,
    cursors: Cursors,
    /// Changed conversations to send.
    changed: BTreeSet<ConversationId>,
    /// The changed conversation that is being looked up.
    looking: Option<Looking>,
    presence: Presence,
    /// Created with the first file.
    files: Option<Box<Transfers>>,
    out: Out,
    log: AppendLog,
    peer: SocketAddr,
    began: Instant,
}

/// How much of the presence changes a session has sent.
#[derive(Clone, Copy)]
enum Presence {
    /// The client did not ask for presence.
    Unwatched,
    /// All changes up to this number.
    Told(u64),
    /// There are changes after this number.
    Behind(u64),
}

impl<S: Transport> Serving<S> {
    /// Boxed, so that the futures that pass it on stay small.
    pub(crate) fn new(
        shared: Arc<Shared>,
        handle: Entered,
        line: Connection<S>,
        holder: Holder,
        origin: Option<Origin>,
        peer: SocketAddr,
    ) -> Option<Box<Self>> {
        let sid = line.session().id();
        let who = |user: &Name, device: Option<&DeviceId>| Who {
            user: user.clone(),
            sender: Sender::new(user, device).to_string().into(),
            kind: Kind::TEXT,
            sid: Some(sid),
        };
        let log = match &holder {
            Holder::User(person) => Some(who(&person.user, None)),
            Holder::Device(person, device) => Some(who(&person.user, Some(device))),
            Holder::Invite(_) => None,
        };
        let rights = match (holder, line.session().credential()) {
            (Holder::Device(person, device), CredentialId::Device(_)) => {
                Rights::Device(Arc::new(person), device)
            }
            (Holder::User(person), CredentialId::User(_)) => {
                let registrar = Registrar::User(person.user.clone());
                let registrations = Registrations::new(registrar, origin);
                Rights::Password(person.user, Some(registrations))
            }
            (Holder::Invite(terms), CredentialId::Invite(id)) => {
                let registrar = Registrar::Invite(*id, terms);
                Rights::Invite(Some(Registrations::new(registrar, origin)))
            }
            // The store has returned another kind of credential than requested.
            _ => return None,
        };
        let account = handle.user().map(|user| shared.accounts.of(user));
        Some(Box::new(Self {
            shared,
            handle,
            line,
            rights,
            step_up: None,
            intake: Intake::default(),
            job: None,
            appends: account.map(Appends::of).unwrap_or_default(),
            cursors: Cursors::default(),
            changed: BTreeSet::new(),
            looking: None,
            presence: Presence::Unwatched,
            files: None,
            out: Out::default(),
            log: AppendLog::new(log),
            peer,
            began: Instant::now(),
        }))
    }

    /// Runs the session to its end.
    pub(crate) async fn run(mut self: Box<Self>) {
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
        };
        Box::pin(self.conclude(end)).await;
    }

    async fn conclude(self: Box<Self>, end: End) {
        // Appends that the recorder has are recorded in any case. A hand-over or a read that waits
        // for its turn is dropped, so that it does not delay others while this session ends.
        let Self {
            handle,
            line,
            appends,
            cursors,
            looking,
            files,
            job,
            intake,
            mut log,
            shared,
            peer,
            began,
            ..
        } = *self;
        drop((appends, cursors, looking, job, intake));
        log.end(&shared);
        log_end(&shared, &handle, &line, peer, &end, began);
        // With a large backlog, the session stays registered until that is written: a client that
        // ends sessions in a flood gets no more of them than one that keeps them. Other clients can
        // reconnect at once.
        let handle = (line.backlog() > LITTLE).then_some(handle);
        let rest = async {
            if let Some(files) = files {
                files.conclude().await;
            }
        };
        tokio::join!(say_bye(line, end), rest);
        drop(handle);
    }

    /// Does the work that is possible, then waits for the next event.
    async fn turn(&mut self) -> Result<(), End> {
        // First: a revoked session does nothing more, however busy it keeps the connection.
        self.read_mail().await?;
        if !self.line.can_write() {
            self.drop_requests();
        }
        if self.can_work()? {
            self.work()?;
        }
        self.tell_news()?;
        let mut busy = self.can_work()?;
        if !busy {
            self.out.flush(self.line.session_mut())?;
            // The flush makes the backlog exact, so check again.
            busy = self.can_work()?;
        }
        self.send_files(busy)?;
        // A connection that cannot be written is still read, whatever its backlog.
        let stuffed = self.line.can_write() && self.line.backlog() > HIGH_WATER;
        let room = if stuffed && !self.intake.is_empty() {
            Some(HIGH_WATER)
        } else {
            let bytes = self.has_bytes() && !self.has_news();
            self.news_room().or(bytes.then_some(ROOM - 1))
        };
        let ear = if self.is_held() {
            Ear::Closed
        } else if self.intake.is_full() {
            Ear::Watching
        } else {
            Ear::Open
        };
        let unwritten = self.files.as_ref().is_some_and(|files| files.can_write());
        if busy || unwritten || room.is_some() {
            // A fast peer always causes more work, so the connection is polled before the next
            // work. All received bytes of a file then go to the disk together.
            tokio::select! {
                biased;
                () = self.handle.woken() => return Ok(()),
                wake = listen(&mut self.line, ear, None) => {
                    wake?;
                    return self.open_frames();
                }
                Some(finished) = next_finished(&mut self.job) => return self.finish(finished),
                Some(recorded) = self.appends.next() => return self.acknowledge(recorded),
                Some(done) = next_done(&mut self.files) => return self.settle(done),
                news = next_news(&mut self.cursors, &mut self.looking) => {
                    return self.take_news(news);
                }
                () = ready(()) => {}
            }
            if busy {
                return Ok(());
            }
        }
        if let Some(files) = self.files.as_deref_mut().filter(|_| unwritten) {
            files.write();
        }
        tokio::select! {
            wake = listen(&mut self.line, ear, room) => {
                if wake? == Wake::Frame {
                    self.open_frames()?;
                }
            }
            Some(finished) = next_finished(&mut self.job) => self.finish(finished)?,
            Some(recorded) = self.appends.next() => self.acknowledge(recorded)?,
            Some(done) = next_done(&mut self.files) => self.settle(done)?,
            news = next_news(&mut self.cursors, &mut self.looking) => self.take_news(news)?,
            // Handled in the next turn.
            () = self.handle.woken() => {}
            () = at(self.log.due()) => self.log.write_due(&self.shared, Instant::now()),
        }
        Ok(())
    }

    /// Drops the queue, and the request in progress if it only reads.
    fn drop_requests(&mut self) {
        self.intake.clear();
        if self.job.as_ref().is_some_and(|job| !job.is_lasting()) {
            self.job = None;
        }
    }

    // ---- receiving

    /// Opens every complete frame, until a file has to wait for the disk. A frame that does not
    /// open ends the session.
    fn open_frames(&mut self) -> Result<(), End> {
        while !self.is_held() && !matches!(self.line.has_frame(), Ok(false)) {
            let sid = self.line.session().id();
            match self.line.open_frame()? {
                SessionEvent::App(body) => self.intake.push(body),
                SessionEvent::Ready { info, binding } => {
                    let info = proto::ClientInfo::decode(info).unwrap_or_default();
                    let software: String = info.software.chars().take(SOFTWARE).collect();
                    let software = Untrusted::new(software);
                    log_begin(&self.handle, self.line.session(), self.peer, &software, binding);
                    if binding == Binding::Cut {
                        tracing::warn!(%sid, "TLS is intercepted between this client and the server");
                    }
                    let most = (&self.shared.config.limits).into();
                    let ready = self.shared.hub.ready(&self.handle, &info.instance, most);
                    ready.map_err(End::Close)?;
                }
                SessionEvent::Closed(code) => return Err(End::Bye(code)),
                SessionEvent::Bulk { transfer, offset, data } => match &mut self.files {
                    Some(files) => files.take(transfer, offset, data)?,
                    None => return Err(Violation.into()),
                },
                SessionEvent::Rekeyed(epoch) => {
                    let user = self.handle.user().map(Name::as_str);
                    tracing::info!(%sid, user, epoch, "rekeyed");
                }
                SessionEvent::Nothing => {}
            }
        }
        Ok(())
    }

    /// Whether a request is queued and can start: none is in progress, and there is room for its
    /// answer.
    fn can_work(&mut self) -> Result<bool, End> {
        if self.job.is_some() {
            return Ok(false);
        }
        let room = self.line.backlog() + self.out.bytes() <= HIGH_WATER;
        Ok(match self.intake.peek()? {
            Some(proto::Request { op: Some(Op::Append(_)), .. }) => {
                room && self.appends.have_room(&Batch::default(), &self.shared.config.limits)
            }
            // Earlier appends are answered first, so that a read sees them. Results of a lookup
            // must not be sent after an answer with newer ones.
            Some(_) => room && self.appends.is_empty() && self.looking.is_none(),
            None => false,
        })
    }

    /// Hands over the next appends as one batch, or starts one other request.
    fn work(&mut self) -> Result<(), End> {
        let limits = &self.shared.config.limits;
        let mut batch = Batch::default();
        loop {
            match self.intake.peek()? {
                Some(proto::Request { op: Some(Op::Append(_)), .. }) => {}
                Some(_) if batch.is_empty() => return self.begin_one(),
                _ => break,
            }
            if !self.appends.have_room(&batch, limits) {
                break;
            }
            let Some(proto::Request { id, op: Some(Op::Append(append)) }) = self.intake.pop()
            else {
                break;
            };
            match self.check_append(id, append) {
                Ok(entry) => batch.push(id, entry),
                Err(refused) => {
                    let refusal = Answered::Refusal(refused.into());
                    self.out.answer(self.line.session_mut(), id, refusal)?;
                }
            }
        }
        if self.shared.config.log_messages
            && let Rights::Device(person, _) = &self.rights
        {
            for entry in batch.entries() {
                write_text(&self.shared, &person.user, entry);
            }
        }
        if let Some(mut handing) = self.appends.begin(&self.shared, batch) {
            // The recorder usually has room at once.
            match (&mut handing).now_or_never() {
                Some(handed) => self.appends.handed(handed),
                None => self.job = Some(Job::handing(handing)),
            }
        }
        Ok(())
    }

    /// Handles the output of the request in progress.
    fn finish(&mut self, finished: Finished) -> Result<(), End> {
        match finished {
            Finished::Request(done) => self.answer(*done),
            Finished::Handed(handed) => {
                self.appends.handed(handed);
                Ok(())
            }
            Finished::Failed => Err(End::Close(CloseCode::Internal)),
        }
    }

    // ---- appends

    fn acknowledge(&mut self, recorded: Recorded) -> Result<(), End> {
        let Recorded { requests, result, .. } = recorded;
        let session = self.line.session_mut();
        let appended = match result {
            Ok(appended) => appended,
            Err(error) => {
                let refused = not_recorded(&error);
                for asked in requests {
                    self.out.answer(session, asked.id, Answered::Refusal(refused.into()))?;
                }
                return Ok(());
            }
        };
        let mut acks = convert::Acks::new(appended.len());
        let mut logged = Vec::with_capacity(appended.len());
        for (asked, appended) in requests.into_iter().zip(appended) {
            let answer = match appended {
                Appended::Recorded(receipt) => {
                    let (conversation, n, bytes) = (receipt.conversation, receipt.n, asked.bytes);
                    logged.push(Logged { conversation, n, bytes });
                    Answered::Ack(acks.ack(&receipt))
                }
                Appended::NotAMember => {
                    Answered::Refusal(Refused::from(RefusalReason::NotFound).into())
                }
            };
            self.out.answer(session, asked.id, answer)?;
        }
        self.log.note(&self.shared, &logged);
        Ok(())
    }

    // ---- files

    /// Whether an upload waits for the disk, so that nothing more is read.
    fn is_held(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.are_stuffed())
    }

    /// Whether a download has bytes to send and waits for room.
    fn has_bytes(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.want_room())
    }

    /// Handles file acknowledgements, and sends file bytes after everything else.
    fn send_files(&mut self, busy: bool) -> Result<(), End> {
        let acks = self.intake.take_acks();
        match &mut self.files {
            None if acks.is_empty() => {}
            None => return Err(Violation.into()),
            Some(files) => {
                for ack in &acks {
                    files.acknowledge(ack)?;
                }
                if !busy && !self.has_news() {
                    self.send_bytes()?;
                }
            }
        }
        Ok(())
    }

    fn send_bytes(&mut self) -> Result<(), End> {
        self.out.flush(self.line.session_mut())?;
        match &mut self.files {
            Some(files) => Ok(files.send(self.line.session_mut(), ROOM)?),
            None => Ok(()),
        }
    }

    fn settle(&mut self, done: Done) -> Result<(), End> {
        if let (Done::Recorded { bytes, result: Ok(ack), .. }, Rights::Device(person, _)) =
            (&done, &self.rights)
        {
            let (sid, bytes) = (self.line.session().id(), *bytes);
            let (conversation, n) = (ack.conversation, ack.n);
            with_name(&self.shared, &person.user, conversation, move |room| {
                tracing::info!(%sid, room, conversation, n, bytes, "file recorded");
            });
        }
        match &mut self.files {
            Some(files) => Ok(files.settle(done, self.line.session_mut(), &mut self.out)?),
            None => Ok(()),
        }
    }
}

/// Ends a connection, with a CLOSE if one is due.
async fn say_bye<S: AsyncRead + AsyncWrite + Unpin>(line: Connection<S>, end: End) {
    match end {
        End::Close(code) => line.close(code).await,
        End::Connection(ConnectionError::Cut(_)) => {}
        End::Bye(_) | End::Connection(_) => line.finish().await,
    }
}

/// Sleeps until then, or forever.
async fn at(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn files<'f>(files: &'f mut Option<Box<Transfers>>, shared: &Shared) -> &'f mut Transfers {
    files.get_or_insert_with(|| Box::new(Transfers::new(shared.files.clone())))
}

/// The output of the session's next file job. Cancel-safe.
async fn next_done(files: &mut Option<Box<Transfers>>) -> Option<Done> {
    match files {
        Some(files) => files.next().await,
        None => None,
    }
}
