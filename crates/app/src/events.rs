//! Events of the client and of the transfers, as input of an [`App`].

use std::time::Instant;

use twinlock_client::model::Entry;
use twinlock_client::transfer::TransferEvent;
use twinlock_client::{ConversationInfo, ConversationKind, Event};
use twinlock_core::id::ConversationId;

use crate::app::App;
use crate::change::Change;
use crate::composer::Rejection;
use crate::conversations::{Visibility, typed_name};
use crate::effect::ClientEffect;
use crate::timeline::{Timeline, TimelineItem};
use crate::transfers::TransferChange;

impl App {
    /// Takes an event of the client. [`Event::Ended`] changes nothing; the caller decides what the
    /// end of the client means.
    pub fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Up(up) => {
                let (binding, issuer) = (up.binding, up.tls.issuer);
                let reconnection = self.connection.connected(binding);
                self.change(Change::Connected { reconnection, binding, issuer });
            }
            Event::Down { error, retry } => {
                let is_first = self.connection.disconnected(retry, now);
                self.change(Change::Disconnected { error, retry, is_first });
            }
            Event::Held { error, retry } => self.change(Change::RecordingDelayed { error, retry }),
            Event::Entries { conversation, entries, .. } => {
                self.arrived(conversation, entries, now)
            }
            Event::CaughtUp { conversation, entries, .. } => self.caught_up(conversation, entries),
            Event::Recorded { message_id, ack } => {
                let settled = self.composer.recorded(message_id, &ack);
                self.settled(settled);
            }
            Event::Refused { message_id, why } => {
                let settled = self.composer.rejected(message_id, Rejection::Refused(why.into()));
                self.settled(settled);
            }
            // The roster has it, until then.
            Event::Conversation(changed) if self.is_ready => self.conversation_changed(&changed),
            Event::Presence { user, .. } => self.change(Change::Names(vec![format!("@{user}")])),
            _ => {}
        }
    }

    /// Takes an event of the transfers. Returns whether it is about a file: other events are about
    /// the connections of the transfers, whose state the client reports too.
    pub fn handle_transfer(&mut self, event: TransferEvent) -> bool {
        let is_of_file = !matches!(event, TransferEvent::Up(_) | TransferEvent::Down { .. });
        if let Some(change) = self.transfers.take(event) {
            match &change {
                TransferChange::Recorded { message_id, n, .. } => {
                    self.composer.file_recorded(*message_id, *n);
                }
                TransferChange::Restarted { transfer, message_id } => {
                    self.composer.add_file(*message_id);
                    transfer.message_id.into_iter().for_each(|id| self.composer.file_failed(id));
                }
                TransferChange::Failed { transfer, .. } => {
                    transfer.message_id.into_iter().for_each(|id| self.composer.file_failed(id));
                }
                _ => {}
            }
            self.change(Change::Transfer(change));
        }
        is_of_file
    }

    fn arrived(&mut self, conversation: ConversationId, entries: Vec<Entry>, now: Instant) {
        let arrival = self.conversations.arrived(conversation, &entries);
        let last = entries.last().map_or(0, |entry| entry.n);
        let items = entries.into_iter().map(|entry| {
            let is_own = self.composer.is_own(&entry.message_id);
            TimelineItem::new(entry, &self.user, is_own)
        });
        let capacity = self.options.timeline_entries;
        let timeline =
            self.timelines.entry(conversation).or_insert_with(|| Timeline::new(capacity));
        let items = timeline.append(items.collect());
        if !arrival.is_shown {
            if self.options.is_interactive {
                self.digest.add(conversation, arrival.of_others, now);
            }
            return;
        }
        let target = self.conversations.target(conversation).to_owned();
        self.change(Change::Entries { conversation, target, is_here: arrival.is_here, items });
        // All of them are shown, in any conversation.
        self.mark_read(conversation, last);
    }

    fn caught_up(&mut self, conversation: ConversationId, entries: u64) {
        let view = self.conversations.get(conversation);
        let is_counted = view.is_some_and(|view| view.visibility == Visibility::Counted);
        if entries > 0 && self.connection.is_restored() && !is_counted {
            let target = self.conversations.target(conversation).to_owned();
            self.change(Change::CaughtUp { target, entries });
        }
    }

    fn conversation_changed(&mut self, changed: &ConversationInfo) {
        self.change(Change::Names(vec![typed_name(changed)]));
        if !changed.joined {
            self.conversations.left(changed.id);
            return;
        }
        match changed.kind {
            ConversationKind::Direct => self.follow(changed, Visibility::Shown, 0),
            ConversationKind::Room => self.follow(changed, Visibility::Counted, changed.head),
        }
    }

    /// Follows a conversation from entry `after`, unless it is followed already.
    pub(crate) fn follow(
        &mut self,
        conversation: &ConversationInfo,
        visibility: Visibility,
        after: u64,
    ) {
        if self.conversations.add(conversation, visibility, after) {
            self.effect(ClientEffect::Follow { conversation: conversation.id, after });
        }
    }
}
