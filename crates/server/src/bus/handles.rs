//! What a bus returns to its callers, whatever implements it.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use super::signals::SessionHandle;
use crate::config::Limits;

/// Maximum number of open sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionLimits {
    /// Of one device, or of one invite.
    pub(crate) device: usize,
    /// Password sessions of one user.
    pub(crate) password: usize,
}

impl From<&Limits> for SessionLimits {
    fn from(limits: &Limits) -> Self {
        Self { device: limits.sessions_per_device, password: limits.password_sessions_per_user }
    }
}

/// A registered session; dropping this removes it from the bus.
pub(crate) struct RegisteredSession {
    handle: Arc<SessionHandle>,
    unregister: Unregister,
}

/// Removes a session from the bus that returned it.
type Unregister = Box<dyn Fn(&SessionHandle) + Send + Sync>;

impl RegisteredSession {
    /// A session that `unregister` removes.
    pub(super) fn new(handle: Arc<SessionHandle>, unregister: Unregister) -> Self {
        Self { handle, unregister }
    }
}

impl Deref for RegisteredSession {
    type Target = Arc<SessionHandle>;

    fn deref(&self) -> &Arc<SessionHandle> {
        &self.handle
    }
}

impl Drop for RegisteredSession {
    fn drop(&mut self) {
        (self.unregister)(&self.handle);
    }
}

/// A session's subscription to a conversation; dropping it ends the subscription.
pub(crate) trait TopicSubscription: Send + Sync {
    /// Marks that the session reads now: later entries signal it again.
    fn begin_read(&self);

    /// Entries after `position`: at most `max` of them, of about `bytes` bytes.
    fn after(&self, position: u64, max: usize, bytes: usize) -> Tail;
}

/// Entries after a position, as far as the tail reaches.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing is newer than the position.
    UpToDate,
    /// These encoded entries follow directly after the position.
    Entries(Vec<Bytes>),
    /// The tail begins after the next position: read from the store.
    Behind,
}
