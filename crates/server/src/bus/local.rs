//! The bus of a single process.

use std::sync::Arc;

use tokio::sync::watch;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Name};
use twinlock_store::Published;

use super::Bus;
use super::handles::{RegisteredSession, SessionLimits, TopicSubscription};
use super::pubsub::PubSub;
use super::registry::Registry;
use super::signals::{Owner, SessionHandle};

/// All sessions and all followed conversations of this process.
#[derive(Default)]
pub(crate) struct LocalBus {
    registry: Arc<Registry>,
    pubsub: Arc<PubSub>,
    /// Counts revoked keys; each classic connection then checks whether its key still exists.
    revoked_keys: watch::Sender<u64>,
}

impl Bus for LocalBus {
    fn enter(
        &self,
        owner: Owner,
        device: Option<DeviceId>,
        limits: SessionLimits,
    ) -> Result<RegisteredSession, CloseCode> {
        self.registry.enter(owner, device, limits)
    }

    fn ready(
        &self,
        session: &SessionHandle,
        instance: &[u8],
        limits: SessionLimits,
    ) -> Result<(), CloseCode> {
        self.registry.ready(session, instance, limits)
    }

    fn sessions(&self) -> usize {
        self.registry.count()
    }

    fn close_all(&self, code: CloseCode) {
        self.registry.close_all(code);
    }

    fn follow(
        &self,
        session: &Arc<SessionHandle>,
        conversation: ConversationId,
    ) -> Box<dyn TopicSubscription> {
        Box::new(self.pubsub.follow(session, conversation))
    }

    fn publish(&self, published: &[Published]) {
        self.pubsub.publish(published);
    }

    fn missed(&self) {
        self.pubsub.missed();
    }

    fn conversation_changed(&self, users: &[Name], conversation: ConversationId) {
        self.registry.conversation_changed(users, conversation);
    }

    fn is_online(&self, user: &Name) -> bool {
        self.registry.is_online(user)
    }

    fn is_device_online(&self, device: &DeviceId) -> bool {
        self.registry.is_device_online(device)
    }

    fn is_device_of(&self, user: &Name, device: &DeviceId) -> bool {
        self.registry.is_device_of(user, device)
    }

    fn watch_presence(&self, session: &SessionHandle) -> u64 {
        self.registry.watch_presence(session)
    }

    fn presence_since(&self, since: u64, max: usize) -> (Vec<(Name, bool)>, u64) {
        self.registry.presence_since(since, max)
    }

    fn device_revoked(&self, device: &DeviceId) {
        self.registry.close_device(device, CloseCode::Revoked);
    }

    fn person_shut_out(&self, user: &Name) {
        self.registry.close_owner(&Owner::User(user.clone()), CloseCode::Revoked);
    }

    fn invite_revoked(&self, invite: &InviteId) {
        self.registry.close_owner(&Owner::Invite(*invite), CloseCode::Revoked);
    }

    fn password_changed(&self, user: &Name, this: &SessionHandle) {
        self.registry.password_changed(user, this, CloseCode::LogInAgain);
    }

    fn key_revoked(&self) {
        self.revoked_keys.send_modify(|count| *count += 1);
    }

    fn watch_keys(&self) -> watch::Receiver<u64> {
        self.revoked_keys.subscribe()
    }
}
