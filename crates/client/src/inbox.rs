//! An inbox: the entries of several conversations, from stored positions, across any number of
//! reconnects.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use twinlock_core::id::ConversationId;

use crate::blocking::blocking;
use crate::client::Client;
use crate::directory::{ConversationInfo, ConversationKind};
use crate::error::ClientError;
use crate::event_router::EventRouter;
use crate::model::Entry;
use crate::receipts::Handled;
use crate::subscription::{Subscription, SubscriptionItem};
use crate::target::Target;

/// A position under this id records that all conversations were followed once. A conversation that
/// is found later is then new. No conversation has this id.
const EVERYTHING: ConversationId = 0;

/// Where an [`Inbox`] starts in each conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxStart {
    /// With the first entry.
    All,
    /// With the next entry.
    New,
    /// After the entry of this number.
    After(u64),
}

/// Settings of an [`Inbox`].
#[derive(Debug, Clone, Default)]
pub struct InboxOptions {
    /// The conversations. Empty: all of the user, and those that begin later.
    pub targets: Vec<Target>,
    /// The name of the stored positions, which [`Inbox::handled`] advances; `None`: none are
    /// stored. `twinlock listen` has `listen` and `exec`; [`crate::Messages::resume`] puts `sdk:`
    /// before a program's own name.
    pub position: Option<String>,
    /// Where to start, whatever the stored position is. `None`: after the stored position, or
    /// without one with the next entry.
    pub start: Option<InboxStart>,
}

/// What an [`Inbox`] has received.
#[derive(Debug)]
#[non_exhaustive]
pub enum InboxEvent {
    /// Verified entries, in order: at least one.
    Entries {
        /// The conversation.
        conversation: ConversationId,
        /// The conversation's spelling as a target.
        target: String,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// All entries that existed when following began, or when the connection came back, have
    /// arrived.
    CaughtUp {
        /// The conversation's spelling as a target.
        target: String,
        /// Their number.
        entries: u64,
    },
    /// The conversations are known and followed.
    Following,
    /// The user has left a conversation of the inbox, perhaps on another device.
    Left {
        /// The conversation's spelling as a target.
        target: String,
    },
    /// Another inbox of this client takes the entries of a conversation now.
    Superseded {
        /// The conversation's spelling as a target.
        target: String,
    },
}

/// Receives the entries of several conversations; see [`Client::inbox`].
///
/// Each conversation has one inbox of a client at a time; the latest gets its entries.
pub struct Inbox {
    client: Client,
    router: EventRouter,
    subscription: Arc<Subscription>,
    options: InboxOptions,
    /// The followed conversations, as targets.
    followed: HashMap<ConversationId, String>,
    /// Followed conversations whose existing entries have not all arrived.
    behind: HashSet<ConversationId>,
    /// The request for the conversations, which survives a cancelled [`Self::next`].
    finding: Option<BoxFuture<'static, Result<Vec<ConversationInfo>, ClientError>>>,
    found: VecDeque<ConversationInfo>,
    /// Changes that arrived during the request.
    changed_meanwhile: VecDeque<ConversationInfo>,
    /// Conversations that another inbox has taken over.
    superseded: HashSet<ConversationId>,
    /// `found` is the answer to `finding`, which is reported once all of them are followed.
    reports: bool,
    has_begun: bool,
    /// The profile has followed all conversations before.
    resumes: bool,
}

impl Inbox {
    pub(crate) fn new(client: Client, router: EventRouter, options: InboxOptions) -> Self {
        let subscription = router.subscribe();
        Self {
            client,
            router,
            subscription,
            options,
            followed: HashMap::new(),
            behind: HashSet::new(),
            finding: None,
            found: VecDeque::new(),
            changed_meanwhile: VecDeque::new(),
            superseded: HashSet::new(),
            reports: false,
            has_begun: false,
            resumes: false,
        }
    }

    /// An inbox of one conversation that is known.
    pub(crate) fn of(client: Client, router: EventRouter, info: ConversationInfo) -> Self {
        let mut inbox = Self::new(client, router, InboxOptions::default());
        inbox.found.push_back(info);
        inbox.has_begun = true;
        inbox
    }

    pub(crate) fn set_position(&mut self, name: String) {
        self.options.position = Some(name);
    }

    /// The name of the stored positions, if there is one.
    pub(crate) fn position_name(&self) -> Option<&str> {
        self.options.position.as_deref()
    }

    /// Waits for the next event. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::NoTarget`] for a target that does not exist; [`ClientError::State`]; or the
    /// error that ended the client. A lost connection is not an error.
    pub async fn next(&mut self) -> Result<InboxEvent, ClientError> {
        if !self.has_begun {
            self.begin().await?;
        }
        loop {
            if self.follow_found().await? {
                return Ok(InboxEvent::Following);
            }
            let item = tokio::select! {
                item = self.subscription.next() => item?,
                found = answer(&mut self.finding) => {
                    self.finding = None;
                    self.found.extend(found?);
                    self.reports = true;
                    continue;
                }
            };
            if let Some(event) = self.take(item).await? {
                return Ok(event);
            }
        }
    }

    /// Stores that the entries of a conversation up to this one are handled. The next inbox with
    /// this position starts after it.
    ///
    /// # Errors
    /// [`ClientError::State`].
    pub async fn handled(&self, conversation: ConversationId, n: u64) -> Result<(), ClientError> {
        let Some(purpose) = self.options.position.clone() else { return Ok(()) };
        let receipts = self.client.state().receipts();
        let advance =
            move || Ok(receipts.advance(&Handled { conversation, purpose: &purpose, n })?);
        blocking(advance).await
    }

    /// Whether all entries that existed at the start have been returned.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        let is_found = self.has_begun && self.finding.is_none() && self.found.is_empty();
        is_found && self.behind.is_empty()
    }

    fn takes_all(&self) -> bool {
        self.options.targets.is_empty()
    }

    async fn begin(&mut self) -> Result<(), ClientError> {
        self.resumes = self.takes_all() && self.position(EVERYTHING).await?.is_some();
        self.find();
        self.has_begun = true;
        Ok(())
    }

    /// Starts to look up the conversations, unless that is in progress.
    fn find(&mut self) {
        let (client, targets) = (self.client.clone(), self.options.targets.clone());
        let find = async move {
            if targets.is_empty() {
                return client.until_answered(|| client.conversations(false)).await;
            }
            let mut found = Vec::with_capacity(targets.len());
            for target in targets.iter().map(Target::to_string) {
                found.push(client.until_answered(|| client.target(&target)).await?);
            }
            Ok(found)
        };
        self.finding.get_or_insert_with(|| Box::pin(find));
    }

    /// Follows the conversations that were found. Returns whether that was a complete answer.
    async fn follow_found(&mut self) -> Result<bool, ClientError> {
        while let Some(info) = self.found.front().cloned() {
            self.follow(&info).await?;
            self.found.pop_front();
        }
        if self.reports && self.takes_all() && !self.resumes {
            // A conversation that is found from now on began during this run.
            self.handled(EVERYTHING, 1).await?;
            self.resumes = true;
        }
        if std::mem::take(&mut self.reports) {
            self.found.append(&mut self.changed_meanwhile);
            return Ok(true);
        }
        Ok(false)
    }

    /// Follows a conversation, unless it is followed already. May be repeated after it was
    /// cancelled.
    async fn follow(&mut self, info: &ConversationInfo) -> Result<(), ClientError> {
        if self.followed.contains_key(&info.id) || self.superseded.contains(&info.id) {
            return Ok(());
        }
        let new = if self.resumes { first_entry(info) } else { info.head };
        let after = self.start_of(info, new).await?;
        let (token, after) = self.router.add_conversation(&self.subscription, info.id, after);
        self.client.follow_as(info.id, after, token).await?;
        self.behind.insert(info.id);
        self.followed.insert(info.id, info.target());
        Ok(())
    }

    /// The entry to start after; entries after `new` are new. The first position of a conversation
    /// is stored at once, so that the next inbox starts no later than this one.
    async fn start_of(&self, info: &ConversationInfo, new: u64) -> Result<u64, ClientError> {
        let stored = self.position(info.id).await?;
        let start = match self.options.start {
            Some(InboxStart::All) => 0,
            Some(InboxStart::New) => new,
            // With several conversations, some may be shorter.
            Some(InboxStart::After(n)) if self.options.targets.len() != 1 => n.min(info.head),
            Some(InboxStart::After(n)) => n,
            None => stored.unwrap_or(new),
        };
        if stored.is_none() {
            self.handled(info.id, start.min(info.head)).await?;
        }
        Ok(start)
    }

    /// The entry up to which a conversation is handled.
    async fn position(&self, conversation: ConversationId) -> Result<Option<u64>, ClientError> {
        let Some(purpose) = self.options.position.clone() else { return Ok(None) };
        let receipts = self.client.state().receipts();
        blocking(move || Ok(receipts.position(conversation, &purpose)?)).await
    }

    async fn take(&mut self, item: SubscriptionItem) -> Result<Option<InboxEvent>, ClientError> {
        match item {
            SubscriptionItem::Entries { conversation, entries } => {
                let Some(target) = self.followed.get(&conversation).cloned() else {
                    return Ok(None);
                };
                return Ok(Some(InboxEvent::Entries { conversation, target, entries }));
            }
            SubscriptionItem::CaughtUp { conversation, entries } => {
                self.behind.remove(&conversation);
                let target = self.followed.get(&conversation).cloned();
                return Ok(target.map(|target| InboxEvent::CaughtUp { target, entries }));
            }
            SubscriptionItem::Changed(info) if !info.joined => {
                let left = self.forget(info.id);
                return Ok(left.map(|target| InboxEvent::Left { target }));
            }
            SubscriptionItem::Superseded(conversation) => {
                self.superseded.insert(conversation);
                let lost = self.forget(conversation);
                return Ok(lost.map(|target| InboxEvent::Superseded { target }));
            }
            // The answer may be from before the change.
            SubscriptionItem::Changed(info) => {
                if self.takes_all() && self.finding.is_some() {
                    self.changed_meanwhile.push_back(*info);
                } else if self.takes_all() {
                    self.found.push_back(*info);
                }
            }
            // Conversations may have begun while there was no connection.
            SubscriptionItem::Reconnected => {
                if self.takes_all() {
                    self.find();
                }
            }
            SubscriptionItem::FollowAgain(conversation) => {
                let again = self.router.follow_again(&self.subscription, conversation);
                if let Some((token, after)) = again {
                    self.client.follow_as(conversation, after, token).await?;
                    self.subscription.followed_again(conversation, token);
                }
            }
        }
        Ok(None)
    }

    fn forget(&mut self, conversation: ConversationId) -> Option<String> {
        self.behind.remove(&conversation);
        self.followed.remove(&conversation)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // The router stops following a conversation at its next entry.
        self.router.unsubscribe(&self.subscription);
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The entry before the first new one of a conversation without a stored position. A direct one is
/// new from its first entry. In a room, the server set the read marker to the head when this user
/// joined, perhaps between two runs.
fn first_entry(info: &ConversationInfo) -> u64 {
    match info.kind {
        ConversationKind::Direct => 0,
        ConversationKind::Room => info.read.min(info.head),
    }
}

async fn answer<T>(finding: &mut Option<BoxFuture<'static, T>>) -> T {
    match finding {
        Some(finding) => finding.await,
        None => std::future::pending().await,
    }
}
