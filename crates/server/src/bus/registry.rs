//! The registry: the sessions by user and by device, and the users who are online.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, DeviceId, Name};

use super::handles::{RegisteredSession, SessionLimits};
use super::presence::PresenceLog;
use super::signals::{Instance, Owner, SessionHandle, lock};

/// All sessions of this process.
#[derive(Default)]
pub(super) struct Registry {
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    next: u64,
    by_id: HashMap<u64, Arc<SessionHandle>>,
    by_owner: HashMap<Owner, Vec<u64>>,
    by_device: HashMap<DeviceId, Vec<u64>>,
    by_instance: HashMap<(DeviceId, Instance), u64>,
    watchers: HashSet<u64>,
    presence: PresenceLog,
    /// The server shuts down: a session that is registered now is closed with this code.
    closing: Option<CloseCode>,
}

/// Maximum length of an instance's name, bytes.
const MAX_INSTANCE: usize = 16;

/// Factor on the limit of sessions of a device or an invite, for sessions that are not ready.
///
/// A client that lost its connection may reconnect before the server detects the loss. It replaces
/// its old session only after it has named its instance.
const UNREADY_FACTOR: usize = 2;

impl Registry {
    /// Registers a session.
    ///
    /// A password session is always admitted, because it may be needed to revoke a device. Beyond
    /// the limit, it replaces the user's oldest one.
    ///
    /// # Errors
    /// [`CloseCode::Quota`] if the device or invite has [`UNREADY_FACTOR`] times its limit already;
    /// see [`Registry::ready`].
    pub(super) fn enter(
        self: &Arc<Self>,
        owner: Owner,
        device: Option<DeviceId>,
        limits: SessionLimits,
    ) -> Result<RegisteredSession, CloseCode> {
        let mut sessions = lock(&self.sessions);
        match (&owner, device) {
            (Owner::User(_), None) => {
                sessions.make_room_for_password(&owner, limits.password.max(1))
            }
            _ if sessions.sharing_limit(&owner, device).count()
                >= limits.device.saturating_mul(UNREADY_FACTOR) =>
            {
                return Err(CloseCode::Quota);
            }
            _ => {}
        }
        let id = sessions.next;
        sessions.next += 1;
        let handle = Arc::new(SessionHandle::new(id, owner, device));
        let was_online = handle.user().is_some_and(|user| sessions.is_online(user));
        sessions.remember(&handle);
        sessions.note_presence(&handle, was_online);
        if let Some(code) = sessions.closing {
            handle.close(code);
        }
        let registry = self.clone();
        Ok(RegisteredSession::new(handle, Box::new(move |session| registry.leave(session))))
    }

    fn leave(&self, session: &SessionHandle) {
        let mut sessions = lock(&self.sessions);
        let was_online = session.user().is_some_and(|user| sessions.is_online(user));
        sessions.forget(session);
        sessions.note_presence(session, was_online);
    }

    /// Marks the client of this session as ready. The session replaces an older one of the same
    /// device and instance.
    ///
    /// # Errors
    /// [`CloseCode::Quota`] if the device or invite has as many ready sessions as allowed already,
    /// [`CloseCode::Protocol`] if the instance's name is too long.
    pub(super) fn ready(
        &self,
        session: &SessionHandle,
        instance: &[u8],
        limits: SessionLimits,
    ) -> Result<(), CloseCode> {
        if instance.len() > MAX_INSTANCE {
            return Err(CloseCode::Protocol);
        }
        let mut sessions = lock(&self.sessions);
        if let Some(device) = session.device {
            let key = (device, instance.into());
            let older = sessions.by_instance.insert(key, session.id);
            if let Some(older) = older.and_then(|id| sessions.by_id.get(&id).cloned()) {
                sessions.forget(&older);
                older.close(CloseCode::Replaced);
            }
        }
        let _first = session.instance.set(instance.into());
        let max_ready = match (&session.owner, session.device) {
            // Limited by [`Registry::enter`].
            (Owner::User(_), None) => limits.password.max(1),
            _ => limits.device,
        };
        let together = sessions.sharing_limit(&session.owner, session.device);
        let ready = together.filter(|other| other.instance.get().is_some()).count();
        if ready > max_ready { Err(CloseCode::Quota) } else { Ok(()) }
    }

    /// Whether a device of this user is connected.
    pub(super) fn is_online(&self, user: &Name) -> bool {
        lock(&self.sessions).is_online(user)
    }

    /// Whether this device is connected.
    pub(super) fn is_device_online(&self, device: &DeviceId) -> bool {
        lock(&self.sessions).by_device.contains_key(device)
    }

    /// Whether a session of this user belongs to this device.
    pub(super) fn is_device_of(&self, user: &Name, device: &DeviceId) -> bool {
        let sessions = lock(&self.sessions);
        let ids = sessions.by_device.get(device).map(Vec::as_slice).unwrap_or_default();
        ids.iter()
            .filter_map(|id| sessions.by_id.get(id))
            .any(|session| session.user() == Some(user))
    }

    /// Number of sessions.
    pub(super) fn count(&self) -> usize {
        lock(&self.sessions).by_id.len()
    }

    /// Closes the sessions of a device.
    pub(super) fn close_device(&self, device: &DeviceId, code: CloseCode) {
        let sessions = lock(&self.sessions);
        let ids = sessions.by_device.get(device).map(Vec::as_slice).unwrap_or_default();
        for session in ids.iter().filter_map(|id| sessions.by_id.get(id)) {
            session.close(code);
        }
    }

    /// Closes all sessions of a user or an invite.
    pub(super) fn close_owner(&self, owner: &Owner, code: CloseCode) {
        for session in lock(&self.sessions).of(owner) {
            session.close(code);
        }
    }

    /// Closes the password sessions of a user except `this`.
    pub(super) fn password_changed(&self, user: &Name, this: &SessionHandle, code: CloseCode) {
        for session in lock(&self.sessions).of(&Owner::User(user.clone())) {
            if session.device.is_none() && session.id != this.id {
                session.close(code);
            }
        }
    }

    /// Closes every session, including those that are registered later.
    pub(super) fn close_all(&self, code: CloseCode) {
        let mut sessions = lock(&self.sessions);
        sessions.closing = Some(code);
        for session in sessions.by_id.values() {
            session.close(code);
        }
    }

    /// Signals to these users that a conversation is new, changed or left.
    pub(super) fn conversation_changed(&self, users: &[Name], conversation: ConversationId) {
        let sessions = lock(&self.sessions);
        for user in users {
            for session in sessions.of(&Owner::User(user.clone())) {
                session.signal(|signals| _ = signals.changed.insert(conversation));
            }
        }
    }

    /// Signals presence changes to this session from now on; returns the number of the newest
    /// change.
    pub(super) fn watch_presence(&self, session: &SessionHandle) -> u64 {
        let mut sessions = lock(&self.sessions);
        sessions.watchers.insert(session.id);
        sessions.presence.now()
    }

    /// At most `max` users whose presence changed after `since`, whether each is online, and the
    /// number of the last change among them.
    pub(super) fn presence_since(&self, since: u64, max: usize) -> (Vec<(Name, bool)>, u64) {
        let sessions = lock(&self.sessions);
        let (users, now) = sessions.presence.since(since, max);
        let with_presence = |user: &Name| (user.clone(), sessions.is_online(user));
        (users.map(with_presence).collect(), now)
    }
}

impl Sessions {
    fn of(&self, owner: &Owner) -> impl Iterator<Item = &Arc<SessionHandle>> {
        let ids = self.by_owner.get(owner).map(Vec::as_slice).unwrap_or_default();
        ids.iter().filter_map(|id| self.by_id.get(id))
    }

    /// The sessions that are counted together with one of this owner and device.
    fn sharing_limit(
        &self,
        owner: &Owner,
        device: Option<DeviceId>,
    ) -> impl Iterator<Item = &Arc<SessionHandle>> {
        self.of(owner).filter(move |session| session.device == device)
    }

    /// Closes the oldest password sessions of this user until one more fits.
    fn make_room_for_password(&mut self, owner: &Owner, max: usize) {
        while self.sharing_limit(owner, None).count() >= max {
            // Lists are in the order of registration.
            let Some(oldest) = self.sharing_limit(owner, None).next().cloned() else { return };
            self.forget(&oldest);
            oldest.close(CloseCode::Quota);
        }
    }

    fn is_online(&self, user: &Name) -> bool {
        self.of(&Owner::User(user.clone())).any(|session| session.device.is_some())
    }

    fn remember(&mut self, session: &Arc<SessionHandle>) {
        self.by_id.insert(session.id, session.clone());
        self.by_owner.entry(session.owner.clone()).or_default().push(session.id);
        if let Some(device) = session.device {
            self.by_device.entry(device).or_default().push(session.id);
        }
    }

    fn forget(&mut self, session: &SessionHandle) {
        if self.by_id.remove(&session.id).is_none() {
            return;
        }
        self.watchers.remove(&session.id);
        remove_one(&mut self.by_owner, &session.owner, session.id);
        let Some(device) = session.device else { return };
        remove_one(&mut self.by_device, &device, session.id);
        if let Some(instance) = session.instance.get() {
            let key = (device, instance.clone());
            // A newer session may have taken over the instance.
            if self.by_instance.get(&key) == Some(&session.id) {
                self.by_instance.remove(&key);
            }
        }
    }

    /// Signals the watchers if the user of this session came or went.
    fn note_presence(&mut self, session: &SessionHandle, was_online: bool) {
        let Some(user) = session.user() else { return };
        if self.is_online(user) == was_online {
            return;
        }
        self.presence.note(user);
        for watcher in self.watchers.iter().filter_map(|id| self.by_id.get(id)) {
            watcher.signal(|signals| signals.presence = true);
        }
    }
}

fn remove_one<K: Eq + Hash>(lists: &mut HashMap<K, Vec<u64>>, key: &K, one: u64) {
    if let Some(list) = lists.get_mut(key) {
        list.retain(|id| *id != one);
        if list.is_empty() {
            lists.remove(key);
        }
    }
}
