//! The pending signals of a session.
//!
//! A signal is a wake-up and a flag, never a queue: a session that reads nothing costs one flag for
//! each conversation it follows. The session finds the changes from a position that it holds.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Name};

/// The owner of sessions that are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    User(Name),
    Invite(InviteId),
}

/// The program instance on a device that a session belongs to, as the client names it.
pub(super) type Instance = Box<[u8]>;

/// A session as other parts of the server see it.
pub(crate) struct SessionHandle {
    pub(super) id: u64,
    pub(super) owner: Owner,
    pub(super) device: Option<DeviceId>,
    /// Set once the client is ready.
    pub(super) instance: OnceLock<Instance>,
    pending: Mutex<PendingSignals>,
    wake: Notify,
}

/// Pending signals of a session, bounded by the number of conversations.
#[derive(Default)]
pub(crate) struct PendingSignals {
    /// Followed conversations with new entries.
    pub(crate) new_entries: BTreeSet<ConversationId>,
    /// Conversations of the user that are new, changed or left.
    pub(crate) changed: BTreeSet<ConversationId>,
    /// A user came or went.
    pub(crate) presence: bool,
    /// Close the session with this code.
    pub(crate) close: Option<CloseCode>,
}

impl SessionHandle {
    pub(super) fn new(id: u64, owner: Owner, device: Option<DeviceId>) -> Self {
        let (instance, pending, wake) = Default::default();
        Self { id, owner, device, instance, pending, wake }
    }

    /// The user, unless it is the session of an invite.
    pub(crate) fn user(&self) -> Option<&Name> {
        match &self.owner {
            Owner::User(user) => Some(user),
            Owner::Invite(_) => None,
        }
    }

    /// Waits for a signal. Cancel-safe.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Takes the pending signals.
    pub(crate) fn take_signals(&self) -> PendingSignals {
        std::mem::take(&mut *lock(&self.pending))
    }

    pub(super) fn signal(&self, write: impl FnOnce(&mut PendingSignals)) {
        write(&mut lock(&self.pending));
        self.wake.notify_one();
    }

    /// Closes this session with a code; the first code counts.
    pub(crate) fn close(&self, code: CloseCode) {
        self.signal(|signals| _ = signals.close.get_or_insert(code));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
