//! Followed conversations: their positions, and received entries that are not verified yet.
//!
//! One check at a time runs on a blocking thread, because it reads and writes receipts. A position
//! advances only past verified entries. If the consumer does not keep up, the driver unfollows, and
//! follows again from the same position later.
//!
//! A head below the newest known entry may only be an old answer, because other processes of this
//! profile also add receipts. So the driver asks the server once more. If the head is still below
//! what was known before that request, the record was truncated.

use std::collections::{BTreeMap, VecDeque};

use twinlock_core::chain::{Broken, Position};
use twinlock_core::id::ConversationId;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};

use crate::directory::{ConversationInfo, ConversationKind};
use crate::error::{ClientError, Refusal};
use crate::model::{Entry, Event, FollowToken};
use crate::receipts::Receipts;
use crate::record::{self, known_head};

/// Entries queued for the consumer above which the driver unfollows. With the largest texts that is
/// 64 MiB, with ordinary ones less than 1 MiB.
const MOST_ENTRIES: usize = 2048;

/// All followed conversations.
pub(super) struct Follows {
    receipts: Receipts,
    all: BTreeMap<ConversationId, FollowState>,
    /// Verified position of each conversation; moved out while a check runs.
    positions: BTreeMap<ConversationId, Position>,
    unchecked: VecDeque<UncheckedStep>,
    checking: bool,
    /// Entries that were received and not delivered to the consumer.
    held: usize,
    paused: bool,
    /// Ended follows for which the unfollow is not sent yet.
    ended: Vec<ConversationId>,
    generations: u64,
}

struct FollowState {
    /// Number of the newest received entry.
    after: u64,
    flow: Flow,
    /// Position and head at the start of the catch-up.
    catching_up: Option<(u64, u64)>,
    /// Minimum head in the next answer.
    owed: u64,
    /// Distinguishes this follow from an earlier one of the same conversation.
    generation: u64,
    /// The caller's number of this follow.
    token: FollowToken,
}

/// Whether the connection follows the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Off,
    Asked,
    On,
}

/// Something to verify, in order of arrival.
enum UncheckedStep {
    /// The server's answer to a follow.
    Begin {
        following: proto::Following,
        owed: u64,
        generation: u64,
    },
    /// The server has no entry `after`.
    Ahead {
        conversation: ConversationId,
        after: u64,
    },
    Entries {
        conversation: ConversationId,
        entries: Vec<proto::Entry>,
        generation: u64,
    },
}

/// The result of a check, in order.
pub(super) struct Checked {
    positions: BTreeMap<ConversationId, Position>,
    steps: Vec<CheckedStep>,
    /// The fault that ended the check.
    pub(super) fault: Option<ClientError>,
}

enum CheckedStep {
    /// `known`: the newest entry known at the check; 0 for the answer to a repeated request.
    Began {
        following: proto::Following,
        known: u64,
        generation: u64,
    },
    Entries {
        conversation: ConversationId,
        entries: Vec<Entry>,
        generation: u64,
    },
}

impl Follows {
    pub(super) fn new(receipts: Receipts) -> Self {
        Self {
            receipts,
            all: BTreeMap::new(),
            positions: BTreeMap::new(),
            unchecked: VecDeque::new(),
            checking: false,
            held: 0,
            paused: false,
            ended: Vec::new(),
            generations: 0,
        }
    }

    pub(super) fn receipts(&self) -> Receipts {
        self.receipts.clone()
    }

    pub(super) fn any(&self) -> bool {
        !self.all.is_empty()
    }

    /// Starts to follow, instead of an earlier follow with a smaller token. A later one continues.
    pub(super) fn begin(&mut self, conversation: ConversationId, after: u64, token: FollowToken) {
        if self.all.get(&conversation).is_some_and(|follow| follow.token >= token) {
            return;
        }
        self.end(conversation);
        self.generations += 1;
        let generation = self.generations;
        let (flow, catching_up, owed) = (Flow::Off, None, 0);
        let new = FollowState { after, flow, catching_up, owed, generation, token };
        self.all.insert(conversation, new);
    }

    /// Stops following, unless another follow than this one has begun.
    pub(super) fn end_one(&mut self, conversation: ConversationId, token: FollowToken) {
        if self.all.get(&conversation).is_some_and(|follow| follow.token == token) {
            self.end(conversation);
        }
    }

    /// Stops following.
    pub(super) fn end(&mut self, conversation: ConversationId) {
        self.unchecked.retain(|step| match step {
            UncheckedStep::Entries { conversation: id, entries, .. } if *id == conversation => {
                self.held = self.held.saturating_sub(entries.len());
                false
            }
            UncheckedStep::Begin { following, .. } => following.conversation != conversation,
            UncheckedStep::Ahead { conversation: id, .. } => *id != conversation,
            UncheckedStep::Entries { .. } => true,
        });
        self.positions.remove(&conversation);
        let ended = self.all.remove(&conversation);
        if ended.is_some_and(|follow| follow.flow != Flow::Off) {
            self.ended.push(conversation);
        }
    }

    pub(super) fn connection_ended(&mut self) {
        self.ended.clear();
        for follow in self.all.values_mut() {
            follow.flow = Flow::Off;
        }
    }

    /// The requests to send now: follows, and unfollows of ended follows or while the consumer
    /// catches up.
    pub(super) fn requests(&mut self) -> Vec<(Op, Option<ConversationId>)> {
        if self.held == 0 {
            self.paused = false;
        } else if self.held > MOST_ENTRIES {
            self.paused = true;
        }
        // Unfollows first: a conversation may be in both lists.
        let unfollow = |conversation| Op::Unfollow(proto::Unfollow { conversation });
        let mut requests: Vec<_> = self.ended.drain(..).map(|id| (unfollow(id), None)).collect();
        for (&conversation, follow) in &mut self.all {
            match (self.paused, follow.flow) {
                (true, Flow::On) => {
                    follow.flow = Flow::Off;
                    requests.push((unfollow(conversation), None));
                }
                (false, Flow::Off) => {
                    follow.flow = Flow::Asked;
                    let ask = proto::Follow { conversation, after: follow.after };
                    requests.push((Op::Follow(ask), Some(conversation)));
                }
                _ => {}
            }
        }
        requests
    }

    /// Handles the answer to a follow.
    pub(super) fn answered(
        &mut self,
        conversation: ConversationId,
        answer: Result<Answered, Refusal>,
    ) -> Result<Option<Event>, ClientError> {
        // The follow has ended, or this answers an earlier one of the same conversation.
        let Some(follow) = self.all.get_mut(&conversation).filter(|f| f.flow == Flow::Asked) else {
            return Ok(None);
        };
        match answer {
            Ok(Answered::Following(following)) => {
                if following.after == follow.after && following.conversation == conversation {
                    follow.flow = Flow::On;
                    let (owed, generation) = (follow.owed, follow.generation);
                    self.unchecked.push_back(UncheckedStep::Begin { following, owed, generation });
                }
                Ok(None)
            }
            Ok(_) => Err(ClientError::Protocol("an answer to another question")),
            Err(no) if no.why == RefusalReason::Ahead => {
                let after = follow.after;
                self.unchecked.push_back(UncheckedStep::Ahead { conversation, after });
                Ok(None)
            }
            Err(no) if no.why == RefusalReason::NotFound => {
                self.all.remove(&conversation);
                // Only a room can be left.
                let left =
                    ConversationInfo::new(conversation, ConversationKind::Room, String::new());
                Ok(Some(Event::Conversation(left)))
            }
            Err(no) if no.is_retryable() => {
                Err(ClientError::Lost(ClientError::Refused(no).to_string()))
            }
            Err(no) => Err(ClientError::Refused(no)),
        }
    }

    /// Handles received entries.
    pub(super) fn arrived(&mut self, conversation: ConversationId, mut entries: Vec<proto::Entry>) {
        let follow = self.all.get_mut(&conversation).filter(|f| f.flow == Flow::On);
        let Some(follow) = follow else { return };
        // The server sends entries from before a pause again after it.
        entries.retain(|entry| entry.n > follow.after);
        let Some(last) = entries.last() else { return };
        follow.after = last.n;
        self.held += entries.len();
        let generation = follow.generation;
        match self.unchecked.back_mut() {
            Some(UncheckedStep::Entries { generation: of, entries: before, .. })
                if *of == generation =>
            {
                before.append(&mut entries);
            }
            _ => self.unchecked.push_back(UncheckedStep::Entries {
                conversation,
                entries,
                generation,
            }),
        }
    }

    /// Notes that the consumer has taken an event.
    pub(super) fn delivered(&mut self, event: &Event) {
        if let Event::Entries { entries, .. } = event {
            self.held = self.held.saturating_sub(entries.len());
        }
    }

    /// The check of received entries, which blocks; `None` if there are none, or one is running.
    pub(super) fn check(
        &mut self,
    ) -> Option<impl FnOnce() -> Result<Checked, ClientError> + Send + use<>> {
        if self.checking || self.unchecked.is_empty() {
            return None;
        }
        self.checking = true;
        let steps = std::mem::take(&mut self.unchecked);
        let positions = std::mem::take(&mut self.positions);
        let receipts = self.receipts.clone();
        Some(move || check(&receipts, positions, steps))
    }

    /// Handles the result of a check; returns the events for the consumer.
    pub(super) fn checked(&mut self, checked: Checked) -> Vec<Event> {
        self.checking = false;
        let mut events = Vec::new();
        for step in checked.steps {
            match step {
                CheckedStep::Began { following, known, generation } => {
                    let proto::Following { conversation, after, head, .. } = following;
                    let follow = self.all.get_mut(&conversation);
                    let Some(follow) = follow.filter(|f| f.generation == generation) else {
                        continue;
                    };
                    if known > head && follow.flow == Flow::On {
                        // Asks again from the current position. The server sends entries that
                        // arrive until then again.
                        (follow.owed, follow.flow) = (known, Flow::Off);
                    } else {
                        follow.owed = 0;
                    }
                    if head <= after {
                        let follow = follow.token;
                        events.push(Event::CaughtUp { conversation, follow, entries: 0 });
                    } else {
                        follow.catching_up = Some((after, head));
                    }
                }
                CheckedStep::Entries { conversation, entries, generation } => {
                    let follow = self.all.get_mut(&conversation);
                    let follow = follow.filter(|f| f.generation == generation);
                    let (Some(follow), Some(last)) = (follow, entries.last()) else {
                        self.held = self.held.saturating_sub(entries.len());
                        continue;
                    };
                    let caught_up = follow.catching_up.filter(|(_, head)| last.n >= *head);
                    let token = follow.token;
                    if caught_up.is_some() {
                        follow.catching_up = None;
                    }
                    events.push(Event::Entries { conversation, follow: token, entries });
                    if let Some((after, head)) = caught_up {
                        let entries = head - after;
                        events.push(Event::CaughtUp { conversation, follow: token, entries });
                    }
                }
            }
        }
        self.positions = checked.positions;
        self.positions.retain(|conversation, _| self.all.contains_key(conversation));
        events
    }
}

/// Verifies the steps in order.
fn check(
    receipts: &Receipts,
    mut positions: BTreeMap<ConversationId, Position>,
    steps: VecDeque<UncheckedStep>,
) -> Result<Checked, ClientError> {
    let mut checked = Vec::new();
    for step in steps {
        match step {
            UncheckedStep::Begin { following, owed, generation } => {
                let proto::Following { conversation, after, head, .. } = following;
                record::check_head(conversation, head, owed)?;
                let begins = record::begin(receipts, conversation, after, &following.link_after)?;
                match positions.get(&conversation).filter(|at| at.n() == after) {
                    Some(at) if at.link() != begins.link() => {
                        return Err(Broken::Link { conversation, n: after }.into());
                    }
                    Some(_) => {}
                    None => _ = positions.insert(conversation, begins),
                }
                // The request is repeated once only: other processes continue to learn of entries.
                let known = if owed > 0 { 0 } else { known_head(receipts, conversation)? };
                checked.push(CheckedStep::Began { following, known, generation });
            }
            UncheckedStep::Ahead { conversation, after } => {
                let known = receipts.known(conversation)?.filter(|known| known.n >= after);
                return Err(match known {
                    Some(known) => {
                        let head = after.saturating_sub(1);
                        ClientError::Truncated { conversation, head, known: known.n }
                    }
                    None => ClientError::Refused(RefusalReason::Ahead.into()),
                });
            }
            UncheckedStep::Entries { conversation, entries, generation } => {
                let position = positions
                    .get_mut(&conversation)
                    .ok_or(ClientError::Protocol("entries before the answer to a follow"))?;
                let advanced = record::advance(receipts, conversation, position, &entries)?;
                let (mut entries, mut faults) = (advanced.entries, advanced.faults);
                // Entries before the first fault are good; checking stops there.
                entries.truncate(advanced.good);
                checked.push(CheckedStep::Entries { conversation, entries, generation });
                if !faults.is_empty() {
                    let fault = Some(faults.swap_remove(0));
                    return Ok(Checked { positions, steps: checked, fault });
                }
            }
        }
    }
    Ok(Checked { positions, steps: checked, fault: None })
}
