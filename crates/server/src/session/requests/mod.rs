//! Requests of a device session other than append and follow (section 8).

mod acts;
mod classic_keys;
mod conversations;
pub(super) mod people;
mod reading;

use std::sync::Arc;

use tokio::time::Instant;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{ConversationId, DeviceId, MessageId, Name, Sender};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered};
use twinlock_store::{Appended, NewEntry, Store, StoreError, StoredConversation, StoredPerson};
use twinlock_transport::OsEntropy;

use crate::refusal::{RequestRefusal, bad_name, storage};
use crate::services::Services;

/// Rows of a list in one answer.
const LIST: usize = 100;

/// The device session that sent the request.
pub(super) struct RequestContext<'a> {
    pub(super) services: &'a Services,
    pub(super) person: &'a StoredPerson,
    pub(super) device: &'a DeviceId,
}

pub(super) type RequestResult = Result<Answered, RequestRefusal>;

impl RequestContext<'_> {
    /// Reads the record when it is this user's turn.
    async fn reading<T, R>(
        &self,
        read: impl FnOnce(Arc<dyn Store>) -> R,
    ) -> Result<T, RequestRefusal>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.services.record.read(&self.person.user, read).await.map_err(|e| storage(&e))
    }

    /// This user as currently recorded.
    async fn me(&self) -> Result<Option<StoredPerson>, RequestRefusal> {
        let user = self.person.user.clone();
        self.reading(|store| async move { store.person(&user).await }).await
    }

    /// Counts a change that the server announces to others.
    fn change(&self) -> Result<(), RequestRefusal> {
        let account = self.services.record.accounts.of(&self.person.user);
        account.change(Instant::now().into_std()).map_err(|wait| {
            let max = self.services.env.config.limits.changes_per_minute;
            let again = u32::try_from(wait.as_secs().saturating_add(1)).unwrap_or(u32::MAX);
            RequestRefusal::for_now(RefusalReason::Busy, again)
                .at(proto::Limit::ChangesPerMinute, max)
        })
    }

    /// A conversation of which this user is a member.
    async fn own(&self, id: ConversationId) -> Result<StoredConversation, RequestRefusal> {
        let user = self.person.user.clone();
        let found =
            self.reading(|store| async move { store.conversation(&user, id).await }).await?;
        found.ok_or_else(|| RefusalReason::NotFound.into())
    }

    async fn members(
        &self,
        id: ConversationId,
        after: Option<Name>,
        max: usize,
    ) -> Result<Vec<Name>, RequestRefusal> {
        self.reading(|store| async move { store.members(id, after.as_ref(), max).await }).await
    }

    /// Appends a notice of the server to a conversation.
    async fn post_notice(&self, conversation: ConversationId, text: &str) {
        let entry = NewEntry {
            conversation,
            sender: Sender::Server,
            message_id: MessageId::fresh(self.services.env.now_ms(), &mut OsEntropy),
            kind: EntryKind::SYSTEM,
            body: text.to_owned().into(),
        };
        // The announced change is complete, whether or not the notice can be recorded.
        match self.services.record.store.append(vec![entry]).await {
            Ok(appended) if !matches!(*appended, [Appended::Recorded(_)]) => {
                tracing::warn!(conversation, "a notice of the server was not recorded");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a notice of the server was not recorded"),
        }
    }

    async fn notify_members(&self, id: ConversationId) -> Result<(), RequestRefusal> {
        let mut after = None;
        loop {
            let rows = self.members(id, after, LIST).await?;
            self.services.bus.conversation_changed(&rows, id);
            match rows.last() {
                Some(last) if rows.len() == LIST => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }
}

/// The number of items in an answer: as requested, at most `max`; `max` if not specified.
fn at_most(requested: u32, max: usize) -> usize {
    match usize::try_from(requested) {
        Ok(requested @ 1..) => requested.min(max),
        _ => max,
    }
}

fn page_after(after: &str) -> Result<Option<Name>, RequestRefusal> {
    if after.is_empty() { Ok(None) } else { Name::new(after).map(Some).map_err(bad_name) }
}

pub(super) fn done() -> RequestResult {
    Ok(Answered::Done(proto::Done {}))
}
