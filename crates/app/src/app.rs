//! [`App`] combines the view models of one chat into a state machine without I/O.
//!
//! Its inputs are intents ([`App::handle_intent`]), events of the client and of the transfers
//! ([`App::handle_event`], [`App::handle_transfer`]) and the time ([`App::handle_timeout`], when
//! [`App::poll_timeout`] is due). After each input the caller repeats until nothing is left:
//!
//! 1. take all changes ([`App::poll_change`]) and render them;
//! 2. take one effect ([`App::poll_effect`]), perform it and return its outcome
//!    ([`App::handle_outcome`]).
//!
//! The app neither renders nor performs anything. A file effect is the caller's, because the caller
//! knows directories and whether a file may be overwritten.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use twinlock_core::id::{ConversationId, Name};
use twinlock_core::limits::MAX_TEXT;

use crate::change::Change;
use crate::composer::{Composer, Settlement};
use crate::connection::ConnectionView;
use crate::conversations::ConversationList;
use crate::digest::ActivityDigest;
use crate::effect::{ClientEffect, Effect, FileEffect};
use crate::intent::{Intent, IntentError};
use crate::timeline::Timeline;
use crate::transfers::{TransferList, TransferView};

/// Settings of an [`App`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppOptions {
    /// A person reads the output, so the app moves read markers and announces activity in
    /// conversations that are not shown.
    pub is_interactive: bool,
    /// Number of earlier entries that the first conversation shows at the start.
    pub backlog: u64,
    /// Number of entries that each timeline keeps. 0 for a renderer that never draws an entry
    /// again.
    pub timeline_entries: usize,
}

/// The state of a chat.
#[derive(Debug)]
pub struct App {
    pub(crate) options: AppOptions,
    pub(crate) user: Name,
    pub(crate) conversations: ConversationList,
    pub(crate) timelines: BTreeMap<ConversationId, Timeline>,
    pub(crate) composer: Composer,
    pub(crate) transfers: TransferList,
    pub(crate) connection: ConnectionView,
    pub(crate) digest: ActivityDigest,
    /// The user's conversations are known.
    pub(crate) is_ready: bool,
    changes: VecDeque<Change>,
    effects: VecDeque<Effect>,
}

impl App {
    /// Creates a chat of `user`. `open` is the conversation to open first: a room's name, or `@`
    /// and a user name.
    #[must_use]
    pub fn new(user: Name, open: String, options: AppOptions, now: Instant) -> Self {
        Self {
            options,
            conversations: ConversationList::new(user.clone(), open),
            user,
            timelines: BTreeMap::new(),
            composer: Composer::default(),
            transfers: TransferList::default(),
            connection: ConnectionView::default(),
            digest: ActivityDigest::new(now),
            is_ready: false,
            changes: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// The user of this chat.
    #[must_use]
    pub fn user(&self) -> &Name {
        &self.user
    }

    /// Whether the user's conversations are known.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// The user's conversations, with unread counts and mentions.
    #[must_use]
    pub fn conversations(&self) -> &ConversationList {
        &self.conversations
    }

    /// The timeline of a conversation, if entries of it have arrived.
    #[must_use]
    pub fn timeline(&self, conversation: ConversationId) -> Option<&Timeline> {
        self.timelines.get(&conversation)
    }

    /// The user's own messages, with the state of each.
    #[must_use]
    pub fn composer(&self) -> &Composer {
        &self.composer
    }

    /// The running transfers.
    #[must_use]
    pub fn transfers(&self) -> &TransferList {
        &self.transfers
    }

    /// The state of the connection.
    #[must_use]
    pub fn connection(&self) -> &ConnectionView {
        &self.connection
    }

    /// The next change to render.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// The next effect to perform. If an effect fails, the caller reports the error and returns no
    /// outcome.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Drops the effects that are not polled yet. Call this when the chat ends by an error.
    pub fn discard_effects(&mut self) {
        self.effects.clear();
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.digest.poll_timeout()
    }

    /// Announces the collected activity ([`Change::Activity`]), if it is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for (conversation, entries) in self.digest.take(now) {
            let target = self.conversations.target(conversation).to_owned();
            self.change(Change::Activity { target, entries });
        }
    }

    /// Handles an intent of the user.
    ///
    /// # Errors
    /// [`IntentError`]: the intent has no effect.
    pub fn handle_intent(&mut self, intent: Intent) -> Result<(), IntentError> {
        let target = self.conversations.open_target().to_owned();
        let effect = match intent {
            Intent::Send { text } => return self.send(target, text),
            Intent::SendDirect { user, text } => return self.send(format!("@{user}"), text),
            Intent::OpenRoom(room) => ClientEffect::JoinRoom(room),
            Intent::OpenDirect(user) => ClientEffect::OpenDirect(user),
            Intent::ShowHistory { entries } => ClientEffect::FindForHistory { target, entries },
            Intent::ShowPeople => ClientEffect::ListPeople,
            Intent::ShowRooms => ClientEffect::ListRooms,
            Intent::ShowStatus => ClientEffect::ReadFacts,
            Intent::SendFile { path } => {
                self.transfers.begin_examination();
                self.effects.push_back(Effect::File(FileEffect::Send { path, target }));
                return Ok(());
            }
            Intent::FetchFile { n } => {
                self.effects.push_back(Effect::File(FileEffect::Fetch { target, n }));
                return Ok(());
            }
        };
        self.effect(effect);
        Ok(())
    }

    fn send(&mut self, target: String, text: String) -> Result<(), IntentError> {
        if text.len() > MAX_TEXT {
            return Err(IntentError::TextTooLong { most: MAX_TEXT });
        }
        let is_aside = target != self.conversations.open_target();
        self.effect(ClientEffect::Enqueue { target, text, is_aside });
        Ok(())
    }

    /// Queues an effect that looks up the outcomes of all queued messages, because another process
    /// of the profile may have sent them. Call this at intervals while messages are queued.
    pub fn check_outbox(&mut self) {
        self.effect(ClientEffect::CheckOutbox(self.composer.queued()));
    }

    /// Notes that the examination of a file ([`FileEffect::Send`]) has ended. If the file can be
    /// sent, [`Self::start_transfer`] follows.
    pub fn end_examination(&mut self) {
        self.transfers.end_examination();
    }

    /// Adds a transfer that the caller has queued.
    pub fn start_transfer(
        &mut self,
        job: twinlock_client::transfer::JobId,
        transfer: TransferView,
    ) {
        if let Some(message_id) = transfer.message_id {
            self.composer.add_file(message_id);
        }
        let change = self.transfers.start(job, transfer);
        self.change(Change::Transfer(change));
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.changes.push_back(change);
    }

    pub(crate) fn effect(&mut self, effect: ClientEffect) {
        self.effects.push_back(Effect::Client(effect));
    }

    pub(crate) fn settled(&mut self, settlements: impl IntoIterator<Item = Settlement>) {
        self.changes.extend(settlements.into_iter().map(Change::Settled));
    }

    /// Moves the read marker, if a person reads the output.
    pub(crate) fn mark_read(&mut self, conversation: ConversationId, n: u64) {
        if self.options.is_interactive && n > 0 {
            self.conversations.read_up_to(conversation, n);
            self.effect(ClientEffect::MarkRead { conversation, n });
        }
    }
}
