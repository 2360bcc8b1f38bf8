//! The user's conversations: rooms and people, with unread entries and mentions.

use std::collections::BTreeMap;

use twinlock_client::model::Entry;
use twinlock_client::{ConversationInfo, ConversationKind};
use twinlock_core::id::{ConversationId, Name, Sender};
use twinlock_core::text::Untrusted;

use crate::mentions::mentions;

/// How new entries of a conversation that is not open are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Each entry is shown, as in a direct conversation.
    Shown,
    /// Entries are only counted.
    Counted,
}

/// A conversation as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationView {
    /// The name of the conversation as a target: a room's name, or `@` and a user name.
    pub target: String,
    /// Room or direct conversation.
    pub kind: ConversationKind,
    /// The room's topic; empty if there is none.
    pub topic: Untrusted,
    /// Whether entries are shown while another conversation is open.
    pub visibility: Visibility,
    /// Whether the user is a member.
    pub is_joined: bool,
    /// The number of the newest known entry.
    pub head: u64,
    /// The number of the last read entry.
    pub read: u64,
    /// Entries of others after [`Self::read`]. An upper bound after a read marker of another device,
    /// which does not say whose the remaining entries are.
    pub unread: u64,
    /// Unread entries that mention the user, as far as this program has received them.
    pub mentions: u64,
}

impl ConversationView {
    /// A conversation as the server describes it; later entries than `after` will arrive.
    pub(crate) fn new(found: &ConversationInfo, visibility: Visibility, after: u64) -> Self {
        let unread = found.unread();
        Self {
            target: found.target(),
            kind: found.kind,
            topic: found.topic.clone(),
            visibility,
            is_joined: found.joined,
            head: after,
            read: found.read,
            // Later entries are counted when they arrive.
            unread: unread.min(after.saturating_sub(found.read)),
            mentions: 0,
        }
    }

    fn read_up_to(&mut self, n: u64) {
        if n > self.read {
            self.read = n;
            self.unread = self.unread.min(self.head.saturating_sub(n));
            self.mentions = self.mentions.min(self.unread);
        }
    }
}

/// The effect of entries that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The conversation is open.
    pub is_here: bool,
    /// The entries are to be shown: the conversation is open, or [`Visibility::Shown`].
    pub is_shown: bool,
    /// Number of entries of other users.
    pub of_others: u64,
}

/// All conversations that the program follows, and which of them is open.
#[derive(Debug)]
pub struct ConversationList {
    user: Name,
    all: BTreeMap<ConversationId, ConversationView>,
    open: String,
}

impl ConversationList {
    /// An empty list of this user. `open` is the target of the open conversation, which need not be
    /// known yet.
    #[must_use]
    pub fn new(user: Name, open: String) -> Self {
        Self { user, all: BTreeMap::new(), open }
    }

    /// The target of the open conversation.
    #[must_use]
    pub fn open_target(&self) -> &str {
        &self.open
    }

    /// Opens another conversation.
    pub fn open(&mut self, target: String) {
        self.open = target;
    }

    /// Adds a conversation, or updates a known one, which keeps its visibility. Returns whether it
    /// is new, or joined again; the caller then follows it from entry `after`.
    pub fn add(&mut self, found: &ConversationInfo, visibility: Visibility, after: u64) -> bool {
        let Some(known) = self.all.get_mut(&found.id) else {
            self.all.insert(found.id, ConversationView::new(found, visibility, after));
            return true;
        };
        if found.joined && !known.is_joined {
            let after = after.max(known.head);
            *known = ConversationView::new(found, known.visibility, after);
            return true;
        }
        known.target = found.target();
        known.topic = found.topic.clone();
        known.is_joined = found.joined;
        // Another device of the user may have read more.
        known.read_up_to(found.read.min(known.head));
        false
    }

    /// Takes entries that arrived, in order.
    pub fn arrived(&mut self, conversation: ConversationId, entries: &[Entry]) -> Arrival {
        let Some(view) = self.all.get_mut(&conversation) else {
            return Arrival { is_here: false, is_shown: true, of_others: 0 };
        };
        let is_here = view.target == self.open;
        let is_shown = is_here || view.visibility == Visibility::Shown;
        let mut of_others = 0;
        for entry in entries {
            if entry.n <= view.head {
                continue;
            }
            view.head = entry.n;
            if entry.sender.as_ref().and_then(Sender::user) == Some(&self.user) {
                continue;
            }
            of_others += 1;
            if entry.n > view.read {
                view.unread += 1;
                let text = entry.text.as_ref().map_or("", |text| text.expose_raw());
                view.mentions += u64::from(mentions(text, &self.user));
            }
        }
        Arrival { is_here, is_shown, of_others }
    }

    /// Notes that the user has read up to entry `n`.
    pub fn read_up_to(&mut self, conversation: ConversationId, n: u64) {
        if let Some(view) = self.all.get_mut(&conversation) {
            view.head = view.head.max(n);
            view.read_up_to(n);
        }
    }

    /// Notes that the user has left a conversation.
    pub fn left(&mut self, conversation: ConversationId) {
        if let Some(view) = self.all.get_mut(&conversation) {
            view.is_joined = false;
        }
    }

    /// A known conversation.
    #[must_use]
    pub fn get(&self, conversation: ConversationId) -> Option<&ConversationView> {
        self.all.get(&conversation)
    }

    /// The target of a known conversation; empty for an unknown one.
    #[must_use]
    pub fn target(&self, conversation: ConversationId) -> &str {
        self.get(conversation).map_or("", |view| &view.target)
    }

    /// All known conversations, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ConversationId, &ConversationView)> {
        self.all.iter().map(|(id, view)| (*id, view))
    }
}

/// A conversation as a user writes it: `#` and a room's name, or `@` and a user name.
pub(crate) fn typed_name(conversation: &ConversationInfo) -> String {
    match conversation.kind {
        ConversationKind::Direct => conversation.target(),
        ConversationKind::Room => format!("#{}", conversation.name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{ALICE, BOB, USERS, entry, name, room};

    fn list() -> ConversationList {
        ConversationList::new(name("alice"), "room1".to_owned())
    }

    #[derive(Debug, Clone)]
    enum UnreadStep {
        Arrive(Vec<(usize, bool)>),
        /// Read so much of what there is, in percent.
        Read(u64),
        ReadElsewhere(u64),
    }

    fn step() -> impl Strategy<Value = UnreadStep> {
        prop_oneof![
            prop::collection::vec((0..3_usize, any::<bool>()), 1..5).prop_map(UnreadStep::Arrive),
            (0..=100_u64).prop_map(UnreadStep::Read),
            (0..=100_u64).prop_map(UnreadStep::ReadElsewhere),
        ]
    }

    proptest! {
        #[test]
        fn unread__counts_entries_of_others_after_the_read_marker(
            head in 0..50_u64,
            read in 0..=100_u64,
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let mut list = list();
            let mut n = head;
            // The entries of others that were not read; all of the first ones are of others.
            let mut read = head * read / 100;
            let mut unread: Vec<(u64, bool)> = (read + 1..=head).map(|n| (n, false)).collect();
            prop_assert!(list.add(&room(1, head, read), Visibility::Counted, head));
            let mut is_exact = true;
            for step in steps {
                match step {
                    UnreadStep::Arrive(some) => {
                        let mut entries = Vec::new();
                        for (from, is_mention) in some {
                            n += 1;
                            let text = if is_mention { "hi @alice" } else { "hi" };
                            entries.push(entry(n, USERS[from], text));
                            if USERS[from] != ALICE {
                                unread.push((n, is_mention));
                            }
                        }
                        let arrival = list.arrived(1, &entries);
                        let others = entries.iter().filter(|e| {
                            e.sender.as_ref().and_then(Sender::user) != Some(&name("alice"))
                        });
                        prop_assert_eq!(arrival.of_others, others.count() as u64);
                        // The same again changes nothing.
                        prop_assert_eq!(list.arrived(1, &entries).of_others, 0);
                    }
                    UnreadStep::Read(part) => {
                        let before = read;
                        read = before.max(n * part / 100);
                        is_exact = read == n || is_exact && read == before;
                        list.read_up_to(1, read);
                    }
                    UnreadStep::ReadElsewhere(part) => {
                        let before = read;
                        read = before.max(n * part / 100);
                        is_exact = read == n || is_exact && read == before;
                        prop_assert!(!list.add(&room(1, n, read), Visibility::Shown, 0));
                    }
                }
                unread.retain(|(n, _)| *n > read);
                let view = list.get(1).unwrap();
                prop_assert_eq!(view.read, read);
                prop_assert_eq!(view.head, n);
                prop_assert!(view.unread >= unread.len() as u64, "an unread entry is not counted");
                prop_assert!(view.unread <= n - read, "more than there is");
                prop_assert!(view.mentions <= view.unread);
                prop_assert_eq!(view.visibility, Visibility::Counted);
                if is_exact {
                    prop_assert_eq!(view.unread, unread.len() as u64);
                }
            }
            list.read_up_to(1, n);
            prop_assert_eq!((list.get(1).unwrap().unread, list.get(1).unwrap().mentions), (0, 0));
        }
    }

    #[test]
    fn conversations__backlog_is_not_unread() {
        let mut list = list();
        list.add(&room(1, 30, 30), Visibility::Shown, 10);
        let backlog: Vec<_> = (11..=30).map(|n| entry(n, BOB, "hi @alice")).collect();
        let arrival = list.arrived(1, &backlog);
        assert_eq!(arrival, Arrival { is_here: true, is_shown: true, of_others: 20 });
        assert_eq!(list.get(1).unwrap().unread, 0);
        list.arrived(1, &[entry(31, BOB, "hi @alice"), entry(32, ALICE, "@alice")]);
        assert_eq!((list.get(1).unwrap().unread, list.get(1).unwrap().mentions), (1, 1));
    }

    #[test]
    fn conversations__open_one_is_shown() {
        let mut list = list();
        list.add(&room(1, 0, 0), Visibility::Shown, 0);
        list.add(&room(2, 0, 0), Visibility::Counted, 0);
        assert!(!list.arrived(2, &[entry(1, BOB, "x")]).is_shown);
        list.open("room2".to_owned());
        assert!(list.arrived(2, &[entry(2, BOB, "x")]).is_shown);
        let arrival = list.arrived(1, &[entry(1, BOB, "x")]);
        assert_eq!((arrival.is_here, arrival.is_shown), (false, true));
    }
}
