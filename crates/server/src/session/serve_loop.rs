//! The loop of a session (sections 8, 9): reads frames, runs requests, sends answers and entries.
//!
//! Every buffer has a bound:
//!
//! - Requests: the session reads ahead up to the bound of [`RequestQueue`]. While the queue is
//!   full, it reads nothing and only detects a close by the peer.
//! - Answers: no request starts while the backlog exceeds [`HIGH_WATER`] bytes.
//! - Appends: none goes to the recorder while the session has its maximum in flight.
//! - Updates: signals from other sessions wait as flags. The session sends the entries and changes
//!   behind them only while the backlog is below [`ROOM`]. File bytes come last.
//!
//! The session polls the request in progress ([`in_progress`]) and the reads for follows and
//! changes ([`updates`]) together with the connection. So it can end at any time, and it then drops
//! its queued requests (design 012). It never leaves a hand-over of appends unpolled, because the
//! appends of other sessions queue behind it: it polls the hand-over, or drops it.

mod dispatch;
mod end;
mod files;
mod in_progress;
mod log;
mod read_mode;
#[cfg(test)]
mod tests;
mod updates;

use std::collections::BTreeSet;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt as _;
use prost::Message as _;
use tokio::time::{Instant, sleep_until};
use twinlock_core::chain::EntryKind;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, CredentialId, DeviceId, Name, Sender};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_core::session::{Binding, SessionEvent};
use twinlock_core::text::Untrusted;
use twinlock_store::{Appended, Holder, StoredPerson};
use twinlock_transport::connection::{Connection, HIGH_WATER, Wake};
use twinlock_transport::transport::Transport;

use super::follow::{Cursors, ROOM};
use super::frame_writer::FrameWriter;
use super::register::{Registrar, Registrations};
use super::request_queue::RequestQueue;
use super::step_up::SessionStepUp;
use super::transfers::{SessionTransfers, TransferViolation};
use crate::append_log::{AppendLog, AppendSender, RecordedAppend, write_text};
use crate::appends::{AnsweredBatch, AppendBatch, Appends};
use crate::bus::RegisteredSession;
use crate::convert;
use crate::limits::SourcePrefix;
use crate::refusal::{RequestRefusal, not_recorded};
use crate::services::Services;
use end::{SessionEnd, send_close};
use files::next_done;
use in_progress::{FinishedWork, InProgress, next_finished};
use log::{log_begin, log_end};
use read_mode::{ReadMode, wait_for_peer};
use updates::{ConversationLookup, next_read};

/// Backlog of an ending session, in bytes, up to which it leaves the registry at once.
const SMALL_BACKLOG: usize = 16 * 1024;
/// Maximum length of the client's software name in the log, characters.
const SOFTWARE: usize = 64;

/// The kind of session, which determines the allowed requests (section 8, Rights).
///
/// `Registrations` are `None` while the request in progress has them.
enum Rights {
    /// Every request that the user's role allows, except enrolment of a device.
    Device(Arc<StoredPerson>, DeviceId),
    /// Registration, and management of the user's own devices, for `Limits::fresh_password` after
    /// the login.
    Password(Name, Option<Registrations>),
    /// Registration of what the invite allows.
    Invite(Option<Registrations>),
}

/// The session of an authenticated client.
pub(crate) struct SessionLoop<S> {
    services: Services,
    handle: RegisteredSession,
    connection: Connection<S>,
    rights: Rights,
    /// Step-up state of a device session. `None` before its first step-up, and while the request in
    /// progress has it.
    step_up: Option<Box<SessionStepUp>>,
    queue: RequestQueue,
    in_progress: Option<InProgress>,
    appends: Appends,
    cursors: Cursors,
    /// Changed conversations to send.
    changed: BTreeSet<ConversationId>,
    /// The lookup of a changed conversation in progress.
    lookup: Option<ConversationLookup>,
    presence: PresenceProgress,
    /// The session's file transfers, created with the first file.
    files: Option<Box<SessionTransfers>>,
    writer: FrameWriter,
    log: AppendLog,
    peer: SocketAddr,
    transport: proto::Transport,
    began: Instant,
}

/// Which presence changes a session has sent.
#[derive(Clone, Copy)]
enum PresenceProgress {
    /// The client has not requested presence.
    Unwatched,
    /// All changes up to this number; there are no later ones.
    Sent(u64),
    /// All changes up to this number; later ones must be sent.
    Behind(u64),
}

impl<S: Transport> SessionLoop<S> {
    /// Creates a session; `None` if the store returned another kind of credential than requested.
    ///
    /// Boxed, so that the futures that pass it on stay small.
    pub(crate) fn new(
        services: Services,
        handle: RegisteredSession,
        connection: Connection<S>,
        holder: Holder,
        source: Option<SourcePrefix>,
        peer: SocketAddr,
        transport: proto::Transport,
    ) -> Option<Box<Self>> {
        let sid = connection.session().id();
        let who = |user: &Name, device: Option<&DeviceId>| AppendSender {
            user: user.clone(),
            sender: Sender::new(user, device).to_string().into(),
            kind: EntryKind::TEXT,
            sid: Some(sid),
        };
        let log = match &holder {
            Holder::User(person) => Some(who(&person.user, None)),
            Holder::Device(person, device) => Some(who(&person.user, Some(device))),
            Holder::Invite(_) => None,
        };
        let rights = match (holder, connection.session().credential()) {
            (Holder::Device(person, device), CredentialId::Device(_)) => {
                Rights::Device(Arc::new(person), device)
            }
            (Holder::User(person), CredentialId::User(_)) => {
                let registrar = Registrar::User(person.user.clone());
                let registrations = Registrations::new(registrar, source);
                Rights::Password(person.user, Some(registrations))
            }
            (Holder::Invite(terms), CredentialId::Invite(id)) => {
                let registrar = Registrar::Invite(*id, terms);
                Rights::Invite(Some(Registrations::new(registrar, source)))
            }
            _ => return None,
        };
        let account = handle.user().map(|user| services.record.accounts.of(user));
        Some(Box::new(Self {
            services,
            handle,
            connection,
            rights,
            step_up: None,
            queue: RequestQueue::default(),
            in_progress: None,
            appends: account.map(Appends::of).unwrap_or_default(),
            cursors: Cursors::default(),
            changed: BTreeSet::new(),
            lookup: None,
            presence: PresenceProgress::Unwatched,
            files: None,
            writer: FrameWriter::default(),
            log: AppendLog::new(log),
            peer,
            transport,
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

    async fn conclude(self: Box<Self>, end: SessionEnd) {
        // Appends that the recorder has are recorded in any case. Drops a hand-over or a read that
        // waits for its turn, so that it does not delay other sessions while this one ends.
        let Self {
            handle,
            connection,
            appends,
            cursors,
            lookup,
            files,
            in_progress,
            queue,
            mut log,
            services,
            peer,
            began,
            ..
        } = *self;
        drop((appends, cursors, lookup, in_progress, queue));
        log.end(&services.record);
        log_end(&services.env, &handle, &connection, peer, &end, began);
        // A session with a large backlog stays registered until the backlog is written. So a client
        // cannot exceed its number of sessions, and their memory, by ending sessions in a flood.
        // With a small backlog a client can reconnect at once.
        let handle = (connection.backlog() > SMALL_BACKLOG).then_some(handle);
        let conclude_files = async {
            if let Some(files) = files {
                files.conclude().await;
            }
        };
        tokio::join!(send_close(connection, end), conclude_files);
        drop(handle);
    }

    /// Does the work that is possible, then waits for the next event.
    async fn turn(&mut self) -> Result<(), SessionEnd> {
        // Before any work: a revoked session does nothing more, even if its connection is busy.
        self.take_signals().await?;
        if !self.connection.can_write() {
            self.drop_requests();
        }
        if self.can_work()? {
            self.work()?;
        }
        self.send_updates()?;
        let mut busy = self.can_work()?;
        if !busy {
            self.writer.flush(self.connection.session_mut())?;
            // The backlog is exact only after the flush, so check again.
            busy = self.can_work()?;
        }
        self.send_files(busy)?;
        // A connection that cannot be written is read regardless of its backlog.
        let backlogged = self.connection.can_write() && self.connection.backlog() > HIGH_WATER;
        let room = if backlogged && !self.queue.is_empty() {
            Some(HIGH_WATER)
        } else {
            let bytes = self.has_bytes() && !self.has_updates();
            self.room_for_updates().or(bytes.then_some(ROOM - 1))
        };
        let mode = if self.is_blocked_by_disk() {
            ReadMode::Nothing
        } else if self.queue.is_full() {
            ReadMode::CloseOnly
        } else {
            ReadMode::All
        };
        let unwritten = self.files.as_ref().is_some_and(|files| files.can_write());
        if busy || unwritten || room.is_some() {
            // Polls once without waiting. A fast peer always has more requests queued, so this must
            // happen between any two. All received bytes of a file then go to the disk together.
            tokio::select! {
                biased;
                () = self.handle.woken() => return Ok(()),
                wake = wait_for_peer(&mut self.connection, mode, None) => {
                    wake?;
                    return self.open_frames();
                }
                Some(finished) = next_finished(&mut self.in_progress) => return self.finish(finished),
                Some(recorded) = self.appends.next() => return self.acknowledge(recorded),
                Some(done) = next_done(&mut self.files) => return self.complete_job(done),
                read = next_read(&mut self.cursors, &mut self.lookup) => {
                    return self.send_read(read);
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
            wake = wait_for_peer(&mut self.connection, mode, room) => {
                if wake? == Wake::Frame {
                    self.open_frames()?;
                }
            }
            Some(finished) = next_finished(&mut self.in_progress) => self.finish(finished)?,
            Some(recorded) = self.appends.next() => self.acknowledge(recorded)?,
            Some(done) = next_done(&mut self.files) => self.complete_job(done)?,
            read = next_read(&mut self.cursors, &mut self.lookup) => self.send_read(read)?,
            // Handled in the next turn.
            () = self.handle.woken() => {}
            () = at(self.log.due()) => self.log.write_due(&self.services.record, Instant::now()),
        }
        Ok(())
    }

    /// Drops the queued requests, and the work in progress unless it changes something.
    fn drop_requests(&mut self) {
        self.queue.clear();
        if self.in_progress.as_ref().is_some_and(|job| !job.is_lasting()) {
            self.in_progress = None;
        }
    }

    // ---- receiving

    /// Opens and handles each complete frame, until an upload has to wait for the disk. A frame
    /// that does not open ends the session.
    fn open_frames(&mut self) -> Result<(), SessionEnd> {
        while !self.is_blocked_by_disk() && !matches!(self.connection.has_frame(), Ok(false)) {
            let sid = self.connection.session().id();
            match self.connection.open_frame()? {
                SessionEvent::App(body) => self.queue.push(body),
                SessionEvent::Ready { info, binding } => {
                    let info = proto::ClientInfo::decode(info).unwrap_or_default();
                    let software: String = info.software.chars().take(SOFTWARE).collect();
                    let software = Untrusted::new(software);
                    log_begin(
                        &self.handle,
                        self.connection.session(),
                        self.peer,
                        self.transport,
                        &software,
                        binding,
                    );
                    if binding == Binding::Cut {
                        tracing::warn!(%sid, "TLS is intercepted between this client and the server");
                    }
                    let limits = (&self.services.env.config.limits).into();
                    let ready = self.services.bus.ready(&self.handle, &info.instance, limits);
                    ready.map_err(SessionEnd::Close)?;
                }
                SessionEvent::Closed(code) => return Err(SessionEnd::Bye(code)),
                SessionEvent::Bulk { transfer, offset, data } => match &mut self.files {
                    Some(files) => files.take(transfer, offset, data)?,
                    None => return Err(TransferViolation.into()),
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
    fn can_work(&mut self) -> Result<bool, SessionEnd> {
        if self.in_progress.is_some() {
            return Ok(false);
        }
        let room = self.connection.backlog() + self.writer.bytes() <= HIGH_WATER;
        Ok(match self.queue.peek()? {
            Some(proto::Request { op: Some(Op::Append(_)), .. }) => {
                room && self
                    .appends
                    .have_room(&AppendBatch::default(), &self.services.env.config.limits)
            }
            // Waits for the answers to earlier appends, which a read must see. Also waits for a
            // lookup under way: its result must not follow an answer with newer facts.
            Some(_) => room && self.appends.is_empty() && self.lookup.is_none(),
            None => false,
        })
    }

    /// Hands the next appends to the recorder as one batch, or starts one other request.
    fn work(&mut self) -> Result<(), SessionEnd> {
        let limits = &self.services.env.config.limits;
        let mut batch = AppendBatch::default();
        loop {
            match self.queue.peek()? {
                Some(proto::Request { op: Some(Op::Append(_)), .. }) => {}
                Some(_) if batch.is_empty() => return self.begin_one(),
                _ => break,
            }
            if !self.appends.have_room(&batch, limits) {
                break;
            }
            let Some(proto::Request { id, op: Some(Op::Append(append)) }) = self.queue.pop() else {
                break;
            };
            match self.check_append(id, append) {
                Ok(entry) => batch.push(id, entry),
                Err(refused) => {
                    let refusal = Answered::Refusal(refused.into());
                    self.writer.answer(self.connection.session_mut(), id, refusal)?;
                }
            }
        }
        if self.services.env.config.log_messages
            && let Rights::Device(person, _) = &self.rights
        {
            for entry in batch.entries() {
                write_text(&self.services.record, &person.user, entry);
            }
        }
        if let Some(mut append) = self.appends.begin(&self.services.record, batch) {
            // The recorder usually has room, so the first poll completes the hand-over.
            match (&mut append).now_or_never() {
                Some(handed) => self.appends.add_batch(handed),
                None => self.in_progress = Some(InProgress::append(append)),
            }
        }
        Ok(())
    }

    /// Handles the output of the work in progress.
    fn finish(&mut self, finished: FinishedWork) -> Result<(), SessionEnd> {
        match finished {
            FinishedWork::Request(done) => self.answer(*done),
            FinishedWork::Handed(handed) => {
                self.appends.add_batch(handed);
                Ok(())
            }
            FinishedWork::Failed => Err(SessionEnd::Close(CloseCode::Internal)),
        }
    }

    // ---- appends

    fn acknowledge(&mut self, recorded: AnsweredBatch) -> Result<(), SessionEnd> {
        let AnsweredBatch { requests, result, .. } = recorded;
        let session = self.connection.session_mut();
        let appended = match result {
            Ok(appended) => appended,
            Err(error) => {
                let refused = not_recorded(&error);
                for asked in requests {
                    self.writer.answer(session, asked.id, Answered::Refusal(refused.into()))?;
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
                    logged.push(RecordedAppend { conversation, n, bytes });
                    Answered::Ack(acks.ack(&receipt))
                }
                Appended::NotAMember => {
                    Answered::Refusal(RequestRefusal::from(RefusalReason::NotFound).into())
                }
                Appended::ReadOnly => {
                    Answered::Refusal(RequestRefusal::from(RefusalReason::ReadOnly).into())
                }
            };
            self.writer.answer(session, asked.id, answer)?;
        }
        self.log.note(&self.services.record, &logged);
        Ok(())
    }
}

/// Sleeps until the given time; forever if there is none.
async fn at(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
