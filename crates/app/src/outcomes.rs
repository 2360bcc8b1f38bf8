//! Outcomes of effects, as input of an [`App`].

use twinlock_client::record::Page;
use twinlock_client::{ClientError, ConversationInfo, ConversationKind, PersonInfo};

use crate::app::App;
use crate::change::Change;
use crate::composer::{OwnMessage, Preview};
use crate::conversations::{ConversationView, Visibility, typed_name};
use crate::effect::{ClientEffect, EffectOutcome, HistoryPosition};
use crate::perform::Roster;
use crate::timeline::{Timeline, TimelineItem};

/// Number of earlier entries that are shown when a conversation is opened.
const OPENED_ENTRIES: u64 = 20;

impl App {
    /// Takes the user's conversations, and follows those that are not followed yet. Call this at
    /// the start, and with a new roster after each [`Change::Connected`] that restores a session:
    /// conversations may have begun, and the server reports presence only to sessions that asked for it.
    pub fn handle_roster(&mut self, roster: Roster) {
        let is_first = !std::mem::replace(&mut self.is_ready, true);
        let Roster { open, shown, rooms, people } = roster;
        let names = shown.iter().chain([&open]).chain(&rooms).map(typed_name);
        let people = people.into_iter().map(|person| format!("@{}", person.user));
        let names = names.chain(people).collect();
        self.change(Change::Names(names));
        for conversation in &shown {
            // A direct conversation that is found later began while there was no connection.
            let is_new = !is_first && conversation.kind == ConversationKind::Direct;
            let after = if is_new { 0 } else { conversation.head };
            self.follow(conversation, Visibility::Shown, after);
        }
        for room in rooms.iter().filter(|room| room.joined) {
            self.follow(room, Visibility::Counted, room.head);
        }
        if is_first {
            let after = open.head.saturating_sub(self.options.backlog);
            self.follow(&open, Visibility::Shown, after);
            self.change(Change::Ready { topic: open.topic });
        } else {
            self.follow(&open, Visibility::Shown, open.head);
        }
    }

    /// Takes the outcome of an effect.
    ///
    /// # Errors
    /// [`ClientError`] if an entry of the record is faulty. The entries before it are in the
    /// changes.
    pub fn handle_outcome(&mut self, outcome: EffectOutcome) -> Result<(), ClientError> {
        match outcome {
            EffectOutcome::Done => {}
            EffectOutcome::Queued { message_id, target, text, is_aside } => {
                let preview = Preview::new(&text);
                self.composer.queue(message_id, OwnMessage { target, preview, is_aside });
            }
            EffectOutcome::OutboxChecked(outcomes) => {
                let settled = self.composer.take_outcomes(outcomes);
                self.settled(settled);
            }
            EffectOutcome::Found(conversation) => self.open(conversation),
            EffectOutcome::FoundForHistory { conversation, entries } => {
                self.read_last(&conversation, entries, None);
            }
            EffectOutcome::Page(position, page) => return self.take_page(position, page),
            EffectOutcome::People(people) => self.show_people(people),
            EffectOutcome::Members { room, users } => self.change(Change::Members { room, users }),
            EffectOutcome::Rooms(rooms) => {
                let view = |room: &ConversationInfo| {
                    ConversationView::new(room, Visibility::Counted, room.head)
                };
                self.change(Change::Rooms(rooms.iter().map(view).collect()));
            }
            EffectOutcome::Facts(facts) => self.change(Change::Status(facts)),
        }
        Ok(())
    }

    fn open(&mut self, conversation: ConversationInfo) {
        let target = conversation.target();
        self.conversations.open(target.clone());
        self.change(Change::Opened { target });
        let opens = Some(Box::new(conversation.clone()));
        self.read_last(&conversation, OPENED_ENTRIES, opens);
    }

    /// Reads the last entries of a conversation, then opens the one that is given.
    fn read_last(
        &mut self,
        conversation: &ConversationInfo,
        entries: u64,
        opens: Option<Box<ConversationInfo>>,
    ) {
        let upto = conversation.head;
        let after = upto.saturating_sub(entries);
        self.read_on(HistoryPosition { conversation: conversation.id, after, upto, opens });
    }

    /// Reads the next page, if there is one.
    fn read_on(&mut self, position: HistoryPosition) {
        if position.after < position.upto {
            self.effect(ClientEffect::ReadPage(position));
        } else if let Some(opened) = position.opens {
            self.digest.remove(opened.id);
            self.follow(&opened, Visibility::Shown, opened.head);
            self.mark_read(opened.id, opened.head);
        }
    }

    fn take_page(&mut self, position: HistoryPosition, page: Page) -> Result<(), ClientError> {
        let HistoryPosition { conversation, after, upto, opens } = position;
        // A page without progress is the last one.
        let next = if page.upto > after { page.upto } else { upto };
        let mut entries = page.entries;
        // Later entries arrive because the conversation is followed.
        entries.retain(|entry| entry.n <= upto && page.upto > after);
        let capacity = self.options.timeline_entries;
        let kept = entries.iter().skip(entries.len().saturating_sub(capacity));
        let items = kept.map(|entry| {
            let is_own = self.composer.is_own(&entry.message_id);
            TimelineItem::new(entry.clone(), &self.user, is_own)
        });
        self.timelines
            .entry(conversation)
            .or_insert_with(|| Timeline::new(capacity))
            .add_history(items.collect());
        self.change(Change::History(entries));
        if let Some(fault) = page.faults.into_iter().next().filter(|_| page.upto > after) {
            return Err(fault);
        }
        self.read_on(HistoryPosition { conversation, after: next, upto, opens });
        Ok(())
    }

    fn show_people(&mut self, people: Vec<PersonInfo>) {
        let online = people.into_iter().filter(|person| person.online);
        self.change(Change::Online(online.map(|person| person.user).collect()));
        let open = self.conversations.open_target();
        if !open.starts_with('@') {
            self.effect(ClientEffect::ListMembers { room: open.to_owned() });
        }
    }
}
