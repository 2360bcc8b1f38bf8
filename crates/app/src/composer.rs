//! The user's own messages and the state of each.
//!
//! A message is [`MessageState::Queued`] once it is in the outbox. It then reaches exactly one final
//! state. Reports come from two sources, the client's events and the outbox, which other processes
//! of the profile change too; the first report wins, and later ones have no effect.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use twinlock_client::error::Refusal;
use twinlock_client::outbox::{Ack, MessageOutcome};
use twinlock_core::id::MessageId;
use twinlock_core::text::Untrusted;

/// Maximum length of a [`Preview`] in characters.
const PREVIEW: usize = 120;

/// The state of an own message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// In the outbox, or a file that is being sent.
    Queued,
    /// On the server's disk, as this entry of its conversation.
    Recorded {
        /// The number of the entry.
        n: u64,
    },
    /// It will not be recorded.
    Rejected(Rejection),
    /// A file that could not be sent, or that changed and is sent as another message.
    FileFailed,
}

/// Why a message will not be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The server refused it.
    Refused(Refusal),
    /// Another command removed it from the outbox.
    Dropped,
}

/// The beginning of a text as one line without harmful characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    line: String,
    is_cut: bool,
}

impl Preview {
    /// The beginning of `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let line = Untrusted::new(text).render_line();
        match line.char_indices().nth(PREVIEW) {
            Some((end, _)) => {
                Self { line: line.get(..end).unwrap_or_default().to_owned(), is_cut: true }
            }
            None => Self { line, is_cut: false },
        }
    }

    /// At most `most` characters, with an ellipsis if the text is longer.
    #[must_use]
    pub fn at_most(&self, most: usize) -> String {
        match self.line.char_indices().nth(most) {
            Some((end, _)) => format!("{}\u{2026}", self.line.get(..end).unwrap_or_default()),
            None if self.is_cut => format!("{}\u{2026}", self.line),
            None => self.line.clone(),
        }
    }
}

/// A message that the user wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnMessage {
    /// The target: a room's name, or `@` and a user name.
    pub target: String,
    /// The beginning of the text. The outbox has all of it until the server has recorded it.
    pub preview: Preview,
    /// The target was not the open conversation.
    pub is_aside: bool,
}

/// A message that has reached its final state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The message's id.
    pub message_id: MessageId,
    /// The message; `None` if an earlier program queued it.
    pub message: Option<OwnMessage>,
    /// [`MessageState::Recorded`] or [`MessageState::Rejected`].
    pub state: MessageState,
}

/// The own messages of this program. Grows by one small state for each message.
#[derive(Debug, Default)]
pub struct Composer {
    states: HashMap<MessageId, MessageState>,
    /// The messages in [`MessageState::Queued`], except files, each with its place in the order of
    /// sending.
    queued: HashMap<MessageId, (u64, OwnMessage)>,
    /// Number of queued messages that are aside. A script asks after each line.
    queued_asides: usize,
    /// By the order of sending.
    rejected: BTreeMap<u64, (MessageId, OwnMessage)>,
    next: u64,
}

impl Composer {
    /// Adds a message that is in the outbox.
    pub fn queue(&mut self, message_id: MessageId, message: OwnMessage) {
        if let Entry::Vacant(state) = self.states.entry(message_id) {
            state.insert(MessageState::Queued);
            self.queued_asides += usize::from(message.is_aside);
            self.queued.insert(message_id, (self.next, message));
            self.next += 1;
        }
    }

    fn unqueue(&mut self, message_id: &MessageId) -> Option<(u64, OwnMessage)> {
        let (order, message) = self.queued.remove(message_id)?;
        self.queued_asides -= usize::from(message.is_aside);
        Some((order, message))
    }

    /// Adds the message of a file that is being sent.
    pub fn add_file(&mut self, message_id: MessageId) {
        self.states.entry(message_id).or_insert(MessageState::Queued);
    }

    /// Takes the report that a file and its message are recorded.
    pub fn file_recorded(&mut self, message_id: MessageId, n: u64) {
        if !self.queued.contains_key(&message_id)
            && let Some(state) = self.states.get_mut(&message_id)
        {
            *state = MessageState::Recorded { n };
        }
    }

    /// Takes the report that a file will not be recorded as this message.
    pub fn file_failed(&mut self, message_id: MessageId) {
        if !self.queued.contains_key(&message_id)
            && let Some(state @ MessageState::Queued) = self.states.get_mut(&message_id)
        {
            *state = MessageState::FileFailed;
        }
    }

    /// Takes the report that the server has recorded a message. Returns the change, if this is the
    /// first report.
    pub fn recorded(&mut self, message_id: MessageId, ack: &Ack) -> Option<Settlement> {
        let state = MessageState::Recorded { n: ack.n };
        let message = self.unqueue(&message_id).map(|(_, message)| message);
        match self.states.get(&message_id) {
            // A file's state changes with its transfer, or its final state is known.
            Some(_) if message.is_none() => return None,
            Some(_) => _ = self.states.insert(message_id, state),
            // Not remembered: the outbox may have any number of earlier messages.
            None => {}
        }
        Some(Settlement { message_id, message, state })
    }

    /// Takes the report that a message will not be recorded. Returns the change, if this is the
    /// first report and the message is of this program.
    pub fn rejected(&mut self, message_id: MessageId, why: Rejection) -> Option<Settlement> {
        let (order, message) = self.unqueue(&message_id)?;
        let state = MessageState::Rejected(why);
        self.states.insert(message_id, state);
        self.rejected.insert(order, (message_id, message.clone()));
        Some(Settlement { message_id, message: Some(message), state })
    }

    /// Takes the outcomes that the outbox has, `None` for a message that it does not have. Returns
    /// the changes: recorded messages in the order of the record, then rejected ones.
    pub fn take_outcomes(
        &mut self,
        outcomes: impl IntoIterator<Item = (MessageId, Option<MessageOutcome>)>,
    ) -> Vec<Settlement> {
        let (mut recorded, mut rejected) = (Vec::new(), Vec::new());
        for (message_id, outcome) in outcomes {
            match outcome {
                Some(MessageOutcome::Recorded(ack)) => recorded.push((message_id, ack)),
                Some(MessageOutcome::Refused(why)) => {
                    rejected.push((message_id, Rejection::Refused(why.into())));
                }
                Some(MessageOutcome::Pending) => {}
                None => rejected.push((message_id, Rejection::Dropped)),
            }
        }
        recorded.sort_by_key(|(_, ack)| (ack.conversation, ack.n));
        // Refusals before drops, as they are more important.
        rejected.sort_by_key(|(_, why)| *why == Rejection::Dropped);
        let mut changes = Vec::new();
        for (message_id, ack) in recorded {
            changes.extend(self.recorded(message_id, &ack));
        }
        for (message_id, why) in rejected {
            changes.extend(self.rejected(message_id, why));
        }
        changes
    }

    /// The ids of the queued messages, in no order.
    #[must_use]
    pub fn queued(&self) -> Vec<MessageId> {
        self.queued.keys().copied().collect()
    }

    /// Number of queued messages.
    #[must_use]
    pub fn queued_count(&self) -> usize {
        self.queued.len()
    }

    /// Whether a queued message is for another conversation than the one that was open.
    #[must_use]
    pub fn has_queued_aside(&self) -> bool {
        self.queued_asides > 0
    }

    /// Number of rejected messages.
    #[must_use]
    pub fn rejected_count(&self) -> usize {
        self.rejected.len()
    }

    /// The messages that are queued or rejected, in the order of sending. Recorded messages are in
    /// the timeline of their conversation.
    #[must_use]
    pub fn unrecorded(&self) -> Vec<(MessageId, &OwnMessage)> {
        let queued = self.queued.iter().map(|(id, (order, message))| (*order, *id, message));
        let rejected = self.rejected.iter().map(|(order, (id, message))| (*order, *id, message));
        let mut all: Vec<_> = queued.chain(rejected).collect();
        all.sort_unstable_by_key(|(order, ..)| *order);
        all.into_iter().map(|(_, id, message)| (id, message)).collect()
    }

    /// The state of an own message; `None` if this program did not send it.
    #[must_use]
    pub fn state(&self, message_id: &MessageId) -> Option<MessageState> {
        self.states.get(message_id).copied()
    }

    /// Whether this program sent a message.
    #[must_use]
    pub fn is_own(&self, message_id: &MessageId) -> bool {
        self.states.contains_key(message_id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use twinlock_client::error::RefusalReason;

    use super::*;
    use crate::fixtures::{ack, id};

    fn message(is_aside: bool) -> OwnMessage {
        OwnMessage { target: "ops".into(), preview: Preview::new("hello"), is_aside }
    }

    #[derive(Debug, Clone)]
    enum ComposerStep {
        Queue(u8, bool),
        AddFile(u8),
        Recorded(u8, u64),
        Refused(u8),
        Outcomes(Vec<(u8, u8)>),
    }

    fn step() -> impl Strategy<Value = ComposerStep> {
        let any_id = 0..8_u8;
        prop_oneof![
            (any_id.clone(), any::<bool>()).prop_map(|(i, aside)| ComposerStep::Queue(i, aside)),
            (8..10_u8).prop_map(ComposerStep::AddFile),
            (0..10_u8, 1..100_u64).prop_map(|(i, n)| ComposerStep::Recorded(i, n)),
            any_id.clone().prop_map(ComposerStep::Refused),
            prop::collection::vec((any_id, 0..4_u8), 0..6).prop_map(ComposerStep::Outcomes),
        ]
    }

    proptest! {
        #[test]
        fn composer__each_queued_message_has_one_final_state(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let mut composer = Composer::default();
            let (mut added, mut finals) = (HashMap::new(), HashMap::new());
            // In order, without those that are recorded.
            let mut sent = Vec::new();
            for step in steps {
                let changes: Vec<Settlement> = match step {
                    ComposerStep::Queue(i, is_aside) => {
                        composer.queue(id(i), message(is_aside));
                        added.entry(id(i)).or_insert_with(|| {
                            sent.push(id(i));
                            is_aside
                        });
                        Vec::new()
                    }
                    ComposerStep::AddFile(i) => {
                        composer.add_file(id(i));
                        Vec::new()
                    }
                    ComposerStep::Recorded(i, n) => composer.recorded(id(i), &ack(n)).into_iter().collect(),
                    ComposerStep::Refused(i) => {
                        let why = Rejection::Refused(RefusalReason::NotAllowed.into());
                        composer.rejected(id(i), why).into_iter().collect()
                    }
                    ComposerStep::Outcomes(outcomes) => {
                        composer.take_outcomes(outcomes.into_iter().map(|(i, outcome)| {
                            (id(i), match outcome {
                                0 => None,
                                1 => Some(MessageOutcome::Pending),
                                2 => Some(MessageOutcome::Recorded(ack(u64::from(i) + 1))),
                                _ => Some(MessageOutcome::Refused(RefusalReason::Limit)),
                            })
                        }))
                    }
                };
                for change in changes {
                    prop_assert_ne!(change.state, MessageState::Queued);
                    if change.message.is_some() {
                        let earlier = finals.insert(change.message_id, change.state);
                        prop_assert_eq!(earlier, None, "two final states");
                    } else {
                        prop_assert!(!added.contains_key(&change.message_id));
                    }
                }
                for id in added.keys() {
                    let state = finals.get(id).copied().unwrap_or(MessageState::Queued);
                    prop_assert_eq!(composer.state(id), Some(state));
                }
                let open = |id: &MessageId| !finals.contains_key(id);
                prop_assert_eq!(
                    composer.queued_count(),
                    added.keys().filter(|id| open(id)).count()
                );
                prop_assert_eq!(
                    composer.has_queued_aside(),
                    added.iter().any(|(id, is_aside)| *is_aside && open(id))
                );
                let rejected =
                    finals.values().filter(|s| matches!(s, MessageState::Rejected(_))).count();
                prop_assert_eq!(composer.rejected_count(), rejected);
                sent.retain(|id| !matches!(finals.get(id), Some(MessageState::Recorded { .. })));
                let unrecorded: Vec<_> = composer.unrecorded().iter().map(|(id, _)| *id).collect();
                prop_assert_eq!(&unrecorded, &sent);
            }
        }

        #[test]
        fn preview__is_one_line_of_limited_length(text in any::<String>(), most in 0..200_usize) {
            let shown = Preview::new(&text).at_most(most);
            prop_assert!(!shown.contains('\n'));
            prop_assert!(shown.chars().count() <= most.min(PREVIEW) + 1);
            let whole = Untrusted::new(text).render_line();
            let is_beginning = whole.starts_with(shown.trim_end_matches('\u{2026}'));
            prop_assert!(is_beginning);
        }
    }

    #[test]
    fn composer__outcomes_are_in_order_of_the_record() {
        let mut composer = Composer::default();
        for i in 1..=4 {
            composer.queue(id(i), message(false));
        }
        let changes = composer.take_outcomes([
            (id(1), None),
            (id(2), Some(MessageOutcome::Refused(RefusalReason::NotAllowed))),
            (id(3), Some(MessageOutcome::Recorded(ack(9)))),
            (id(4), Some(MessageOutcome::Recorded(ack(8)))),
        ]);
        let order: Vec<_> = changes.iter().map(|change| change.message_id).collect();
        assert_eq!(order, [id(4), id(3), id(2), id(1)]);
    }

    #[test]
    fn composer__reports_messages_of_an_earlier_program() {
        let mut composer = Composer::default();
        let settled = composer.recorded(id(1), &ack(3)).unwrap();
        assert_eq!(settled.message, None);
        assert_eq!(composer.rejected(id(2), Rejection::Dropped), None);
        assert!(!composer.is_own(&id(1)));
    }
}
