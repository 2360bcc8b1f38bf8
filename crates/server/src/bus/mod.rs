//! What one session must learn of another: new entries, changed conversations, presence, and
//! revoked credentials.
//!
//! [`Bus`] is the contract. [`local::LocalBus`] implements it for one process. Several nodes need
//! another implementation, which also passes on what happens on other nodes. A signal about entries
//! may be late or repeated: a session has a position and reads the entries after it.

mod handles;
pub(crate) mod local;
mod presence;
mod pubsub;
mod registry;
mod signals;

use std::sync::Arc;

use tokio::sync::watch;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Name};
use twinlock_store::Published;

pub(crate) use handles::{RegisteredSession, SessionLimits, Tail, TopicSubscription};
pub(crate) use signals::{Owner, PendingSignals, SessionHandle};

/// The sessions of the server, and the signals between them.
pub(crate) trait Bus: Send + Sync {
    // ---- sessions

    /// Registers a session.
    ///
    /// A password session is always admitted, because it may be needed to revoke a device. Beyond
    /// the limit, it replaces the user's oldest one.
    ///
    /// # Errors
    /// [`CloseCode::Quota`] if the device or invite has too many sessions already.
    fn enter(
        &self,
        owner: Owner,
        device: Option<DeviceId>,
        limits: SessionLimits,
    ) -> Result<RegisteredSession, CloseCode>;

    /// Marks the client of this session as ready. The session replaces an older one of the same
    /// device and instance.
    ///
    /// # Errors
    /// [`CloseCode::Quota`] if the device or invite has as many ready sessions as allowed already,
    /// [`CloseCode::Protocol`] if the instance's name is too long.
    fn ready(
        &self,
        session: &SessionHandle,
        instance: &[u8],
        limits: SessionLimits,
    ) -> Result<(), CloseCode>;

    /// Number of sessions.
    fn sessions(&self) -> usize;

    /// Closes every session, including those that are registered later.
    fn close_all(&self, code: CloseCode);

    // ---- new entries

    /// Subscribes a session to a conversation, and signals it so that it looks for entries at once.
    fn follow(
        &self,
        session: &Arc<SessionHandle>,
        conversation: ConversationId,
    ) -> Box<dyn TopicSubscription>;

    /// Publishes committed entries to the followers.
    fn publish(&self, published: &[Published]);

    /// Signals every follower after commits that were not published.
    fn missed(&self);

    // ---- changed conversations

    /// Signals to these users that a conversation is new, changed or left.
    fn conversation_changed(&self, users: &[Name], conversation: ConversationId);

    // ---- presence

    /// Whether a device of this user is connected.
    fn is_online(&self, user: &Name) -> bool;

    /// Whether this device is connected.
    fn is_device_online(&self, device: &DeviceId) -> bool;

    /// Whether a session of this user belongs to this device.
    fn is_device_of(&self, user: &Name, device: &DeviceId) -> bool;

    /// Signals presence changes to this session from now on; returns the number of the newest
    /// change.
    fn watch_presence(&self, session: &SessionHandle) -> u64;

    /// At most `max` users whose presence changed after `since`, whether each is online, and the
    /// number of the last change among them.
    fn presence_since(&self, since: u64, max: usize) -> (Vec<(Name, bool)>, u64);

    // ---- revoked and replaced credentials

    /// Closes the sessions of a revoked device.
    fn device_revoked(&self, device: &DeviceId);

    /// Closes the sessions of a revoked invite.
    fn invite_revoked(&self, invite: &InviteId);

    /// Closes all sessions of a user who was suspended or removed.
    fn person_shut_out(&self, user: &Name);

    /// Closes the password sessions of a user with a new password, except `this`.
    fn password_changed(&self, user: &Name, this: &SessionHandle);

    /// Signals every classic connection that a key was revoked.
    fn key_revoked(&self);

    /// Changes with every revoked key.
    fn watch_keys(&self) -> watch::Receiver<u64>;
}
