//! Sends the outbox: claims messages in order, pipelines them, and settles results in batches.
//!
//! An ack is written to disk before it is reported. A message stays in the outbox until then, so
//! after a lost connection or a kill it is sent again with the same id.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use twinlock_core::id::{ConversationId, MessageId};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};

use super::command::Recipient;
use crate::error::{ClientError, Refusal};
use crate::outbox::{Ack, Claim, Pending, Settle};
use crate::state::State;

/// Maximum number of messages that are claimed and not settled. Below the server's limit of 1024;
/// above the round-trip time times any rate that a client's disk sustains.
const WINDOW: usize = 512;
/// Ticks of [`super::LOOK`] between two searches for claims of dead processes.
const SWEEP: u32 = 20;

pub(super) struct OutboxSender {
    state: State,
    enabled: bool,
    window: usize,
    /// Messages that are claimed and not sent, by target.
    queues: BTreeMap<String, VecDeque<Pending>>,
    targets: HashMap<String, TargetState>,
    in_flight: HashSet<MessageId>,
    recorded: Vec<(MessageId, Ack)>,
    refused: Vec<(MessageId, RefusalReason)>,
    settling: bool,
    /// There may be messages to claim.
    want: bool,
    /// Release the claims before the next claim, to restart with the oldest message.
    release: bool,
    /// No message is sent before this, because the server cannot record.
    hold: Option<Instant>,
    /// The server has refused since its last ack.
    held: bool,
    /// The refusal and its delay, for an event.
    news: Option<(Refusal, Duration)>,
    /// The last value of [`State::changes`].
    changes: Option<i64>,
    /// Compare [`State::changes`] in the next job.
    look: bool,
    looks: u32,
}

/// The conversation of a target, on this connection.
enum TargetState {
    Asked,
    Known(ConversationId),
}

/// The result of an outbox job.
pub(super) struct Settled {
    pub(super) recorded: Vec<(MessageId, Ack)>,
    pub(super) refused: Vec<(MessageId, RefusalReason)>,
    pub(super) claimed: Vec<Pending>,
    /// There may be more messages to claim.
    pub(super) filled: bool,
    pub(super) changes: Option<i64>,
}

impl OutboxSender {
    /// The target that messages to a conversation name.
    pub(super) fn target_of(&self, conversation: ConversationId) -> Option<String> {
        let is_it =
            |target: &TargetState| matches!(target, TargetState::Known(id) if *id == conversation);
        let found = self.targets.iter().find(|(_, target)| is_it(target));
        found.map(|(name, _)| name.clone())
    }

    /// A copy of a state sends nothing, because it could not keep the outcome.
    pub(super) fn new(state: State, enabled: bool) -> Self {
        let enabled = enabled && !state.is_read_only();
        state.set_sends_now(enabled);
        Self {
            state,
            enabled,
            window: WINDOW,
            queues: BTreeMap::new(),
            targets: HashMap::new(),
            in_flight: HashSet::new(),
            recorded: Vec::new(),
            refused: Vec::new(),
            settling: false,
            want: true,
            release: false,
            hold: None,
            held: false,
            news: None,
            changes: None,
            look: false,
            looks: 0,
        }
    }

    pub(super) fn connection_began(&mut self, info: &proto::ServerInfo) {
        self.state.set_sends_now(self.enabled);
        let most = usize::try_from(info.max_in_flight).unwrap_or(WINDOW);
        self.window = most.clamp(1, WINDOW);
        self.hold = None;
        self.want = true;
    }

    /// Handles a connection that was lost or not established; another process may have one.
    pub(super) fn connection_ended(&mut self) {
        self.state.set_sends_now(false);
        self.begin_again();
        self.in_flight.clear();
        self.targets.clear();
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Notes that this process has added to the outbox.
    pub(super) fn notify_enqueued(&mut self) {
        self.want = true;
    }

    /// Handles a tick: another process may have added to the outbox.
    pub(super) fn look(&mut self) {
        self.looks += 1;
        self.look = true;
        if self.looks.is_multiple_of(SWEEP) {
            self.want = true;
        }
        if self.hold.is_some_and(|until| until <= Instant::now()) && self.in_flight.is_empty() {
            self.hold = None;
            self.want = true;
        }
    }

    /// The next request, if one may be sent.
    pub(super) fn next(&mut self) -> Option<(Op, Recipient)> {
        if self.hold.is_some() {
            return None;
        }
        let mut ask = None;
        for (target, queue) in &mut self.queues {
            match self.targets.get(target) {
                Some(TargetState::Known(conversation)) => {
                    let Some(message) = queue.pop_front() else { continue };
                    let append = proto::Append {
                        conversation: *conversation,
                        message_id: Bytes::copy_from_slice(&message.message_id.0),
                        body: message.body,
                    };
                    self.in_flight.insert(message.message_id);
                    return Some((Op::Append(append), Recipient::Append(message.message_id)));
                }
                Some(TargetState::Asked) => {}
                None => {
                    ask = Some(target.clone());
                    break;
                }
            }
        }
        let target = ask?;
        self.targets.insert(target.clone(), TargetState::Asked);
        let op = match target.strip_prefix('@') {
            Some(user) => Op::OpenDirect(proto::OpenDirect { user: user.to_owned() }),
            None => Op::FindRoom(proto::FindRoom { name: target.clone() }),
        };
        Some((op, Recipient::Target(target)))
    }

    /// The refusal that stops sending, if it is new.
    pub(super) fn take_news(&mut self) -> Option<(Refusal, Duration)> {
        self.news.take()
    }

    /// Whether an answer is outstanding.
    pub(super) fn waits(&self) -> bool {
        let asked = |target: &TargetState| matches!(target, TargetState::Asked);
        !self.in_flight.is_empty() || self.targets.values().any(asked)
    }

    /// Handles the answer to an append.
    pub(super) fn answered(
        &mut self,
        message_id: MessageId,
        answer: Result<Answered, Refusal>,
    ) -> Result<(), ClientError> {
        self.in_flight.remove(&message_id);
        match answer {
            Ok(Answered::Ack(ack)) => {
                self.held = false;
                self.recorded.push((message_id, Ack::read(&ack)?));
            }
            Ok(_) => return Err(ClientError::Protocol("another answer than an ack")),
            Err(no) if no.is_retryable() => self.hold_on(no),
            Err(no) => self.refused.push((message_id, no.why)),
        }
        Ok(())
    }

    /// Handles the answer to the lookup of a target.
    pub(super) fn found(
        &mut self,
        target: String,
        answer: Result<Answered, Refusal>,
    ) -> Result<(), ClientError> {
        match answer {
            Ok(Answered::Conversation(found)) => {
                self.targets.insert(target, TargetState::Known(found.id));
            }
            Ok(_) => return Err(ClientError::Protocol("another answer than a conversation")),
            Err(no) => {
                self.targets.remove(&target);
                if no.is_retryable() {
                    self.hold_on(no);
                } else if let Some(queue) = self.queues.remove(&target) {
                    self.refused.extend(queue.into_iter().map(|m| (m.message_id, no.why)));
                }
            }
        }
        Ok(())
    }

    /// Stops sending until everything outstanding is answered and the delay has passed. Then
    /// sending restarts with the oldest message, which was refused.
    fn hold_on(&mut self, no: Refusal) {
        let pause = Duration::from_secs(u64::from(no.retry_seconds.clamp(1, 60)));
        self.hold = Some(Instant::now() + pause);
        if !std::mem::replace(&mut self.held, true) {
            self.news = Some((no, pause));
        }
        self.begin_again();
    }

    fn begin_again(&mut self) {
        self.queues.clear();
        self.release = true;
    }

    /// The work that writes results to disk and claims more messages, which blocks; `None` if there
    /// is nothing to do, or it is running.
    pub(super) fn settle(
        &mut self,
        connected: bool,
    ) -> Option<impl FnOnce() -> Result<Settled, ClientError> + Send + use<>> {
        if self.settling {
            return None;
        }
        let outstanding =
            self.in_flight.len() + self.queues.values().map(VecDeque::len).sum::<usize>();
        let may_claim =
            self.enabled && connected && self.hold.is_none() && outstanding <= self.window / 2;
        let claim = if may_claim { self.window - outstanding } else { 0 };
        let release = self.release && self.in_flight.is_empty();
        let looking = may_claim && (self.want || self.look);
        if self.recorded.is_empty() && self.refused.is_empty() && !release && !looking {
            return None;
        }
        self.settling = true;
        let sure = self.want && may_claim;
        if may_claim {
            (self.want, self.look) = (false, false);
        }
        if release {
            self.release = false;
        }
        let recorded = std::mem::take(&mut self.recorded);
        let refused = std::mem::take(&mut self.refused);
        let (state, before) = (self.state.clone(), self.changes);
        let held = self.held_messages();
        Some(move || {
            let changes = if claim > 0 { Some(state.changes()?) } else { before };
            let claims = claim > 0 && (sure || changes != before);
            let mut claimed = Vec::new();
            if claims || release || !recorded.is_empty() || !refused.is_empty() {
                claimed = state.outbox().settle(&Settle {
                    recorded: &recorded,
                    refused: &refused,
                    release,
                    claim: claims.then_some(Claim { limit: claim, held }),
                })?;
            }
            let filled = claims && claimed.len() == claim;
            Ok(Settled { recorded, refused, claimed, filled, changes })
        })
    }

    /// Ids of the claimed messages in memory.
    fn held_messages(&self) -> HashSet<MessageId> {
        let queued = self.queues.values().flatten().map(|message| message.message_id);
        self.in_flight.iter().copied().chain(queued).collect()
    }

    /// Handles the result of a job.
    pub(super) fn settled(&mut self, claimed: Vec<Pending>, filled: bool, changes: Option<i64>) {
        self.settling = false;
        self.changes = changes;
        self.want |= filled;
        if self.release {
            // The connection ended during the job: these claims are released with the others.
            return;
        }
        for message in claimed {
            self.queues.entry(message.target.clone()).or_default().push_back(message);
        }
        self.queues.retain(|_, queue| !queue.is_empty());
    }
}
