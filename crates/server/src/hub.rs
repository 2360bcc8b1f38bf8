//! The registry of sessions, and the signals between them.
//!
//! A signal is a wake-up and a flag, never a queue: a session that reads nothing costs one flag for
//! each conversation it follows. The session finds the changes from a position that it holds:
//! entries in [`topics`], users who came or went in [`presence`].

mod presence;
mod topics;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Name};

use presence::Presence;

use crate::config::Limits;
pub(crate) use topics::{Following, Tail, Topics};

/// All sessions and all followed conversations of this process.
#[derive(Default)]
pub(crate) struct Hub {
    lines: Mutex<Lines>,
    pub(crate) topics: Arc<Topics>,
}

#[derive(Default)]
struct Lines {
    next: u64,
    by_id: HashMap<u64, Arc<Handle>>,
    by_owner: HashMap<Owner, Vec<u64>>,
    by_device: HashMap<DeviceId, Vec<u64>>,
    by_instance: HashMap<(DeviceId, Instance), u64>,
    watchers: HashSet<u64>,
    presence: Presence,
    /// The server shuts down: a session that is registered now is closed with this code.
    closing: Option<CloseCode>,
}

/// The owner of sessions that are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    User(Name),
    Invite(InviteId),
}

/// The program instance on a device that a session belongs to, as the client names it.
type Instance = Box<[u8]>;

/// Maximum length of an instance's name, bytes.
const LONGEST_INSTANCE: usize = 16;

/// Factor on the limit of sessions of a device or an invite, for sessions that are not ready.
///
/// A client that lost its connection may reconnect before the server detects the loss. It replaces
/// its old session only after it has named its instance.
const NOT_READY: usize = 2;

/// Maximum number of open sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    /// Of one device, or of one invite.
    pub(crate) device: usize,
    /// Password sessions of one user.
    pub(crate) password: usize,
}

impl From<&Limits> for Most {
    fn from(limits: &Limits) -> Self {
        Self { device: limits.sessions_per_device, password: limits.password_sessions_per_user }
    }
}

/// A session as other parts of the server see it.
pub(crate) struct Handle {
    id: u64,
    owner: Owner,
    device: Option<DeviceId>,
    /// Set once the client is ready.
    instance: OnceLock<Instance>,
    mail: Mutex<Mail>,
    wake: Notify,
}

/// Pending signals of a session, bounded by the number of conversations.
#[derive(Default)]
pub(crate) struct Mail {
    /// Followed conversations with new entries.
    pub(crate) news: BTreeSet<ConversationId>,
    /// Conversations of the user that are new, changed or left.
    pub(crate) changed: BTreeSet<ConversationId>,
    /// A user came or went.
    pub(crate) presence: bool,
    /// Close the session with this code.
    pub(crate) close: Option<CloseCode>,
}

impl Handle {
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
    pub(crate) fn take_mail(&self) -> Mail {
        std::mem::take(&mut *lock(&self.mail))
    }

    fn post(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut lock(&self.mail));
        self.wake.notify_one();
    }

    /// Closes this session with a code; the first code counts.
    pub(crate) fn close(&self, code: CloseCode) {
        self.post(|mail| _ = mail.close.get_or_insert(code));
    }
}

/// A registered session; dropping this removes it from the registry.
pub(crate) struct Entered {
    hub: Arc<Hub>,
    handle: Arc<Handle>,
}

impl Deref for Entered {
    type Target = Arc<Handle>;

    fn deref(&self) -> &Arc<Handle> {
        &self.handle
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut lines = lock(&self.hub.lines);
        let was_online = self.handle.user().is_some_and(|user| lines.is_online(user));
        lines.forget(&self.handle);
        lines.note_presence(&self.handle, was_online);
    }
}

impl Hub {
    /// Registers a session.
    ///
    /// A password session is always admitted, because it may be needed to revoke a device. Beyond
    /// `most`, it replaces the user's oldest one.
    ///
    /// # Errors
    /// [`CloseCode::Quota`] if the device or invite has [`NOT_READY`] times its limit already; see
    /// [`Hub::ready`].
    pub(crate) fn enter(
        self: &Arc<Self>,
        owner: Owner,
        device: Option<DeviceId>,
        most: Most,
    ) -> Result<Entered, CloseCode> {
        let mut lines = lock(&self.lines);
        match (&owner, device) {
            (Owner::User(_), None) => lines.make_room_for_password(&owner, most.password.max(1)),
            _ if lines.counted_with(&owner, device).count()
                >= most.device.saturating_mul(NOT_READY) =>
            {
                return Err(CloseCode::Quota);
            }
            _ => {}
        }
        let id = lines.next;
        lines.next += 1;
        let handle = Arc::new(Handle {
            id,
            owner,
            device,
            instance: OnceLock::new(),
            mail: Mutex::default(),
            wake: Notify::new(),
        });
        let was_online = handle.user().is_some_and(|user| lines.is_online(user));
        lines.remember(&handle);
        lines.note_presence(&handle, was_online);
        if let Some(code) = lines.closing {
            handle.close(code);
        }
        Ok(Entered { hub: self.clone(), handle })
    }

    /// Marks the client of this session as ready. The session replaces an older one of the same
    /// device and instance.
    ///
    /// # Errors
    /// [`CloseCode::Quota`] if the device or invite has `most` ready sessions already,
    /// [`CloseCode::Protocol`] if the instance's name is too long.
    pub(crate) fn ready(
        &self,
        line: &Handle,
        instance: &[u8],
        most: Most,
    ) -> Result<(), CloseCode> {
        if instance.len() > LONGEST_INSTANCE {
            return Err(CloseCode::Protocol);
        }
        let mut lines = lock(&self.lines);
        if let Some(device) = line.device {
            let key = (device, instance.into());
            let older = lines.by_instance.insert(key, line.id);
            if let Some(older) = older.and_then(|id| lines.by_id.get(&id).cloned()) {
                lines.forget(&older);
                older.close(CloseCode::Replaced);
            }
        }
        let _first = line.instance.set(instance.into());
        let most = match (&line.owner, line.device) {
            // Limited by [`Hub::enter`].
            (Owner::User(_), None) => most.password.max(1),
            _ => most.device,
        };
        let together = lines.counted_with(&line.owner, line.device);
        let ready = together.filter(|other| other.instance.get().is_some()).count();
        if ready > most { Err(CloseCode::Quota) } else { Ok(()) }
    }

    /// Whether a device of this user is connected.
    pub(crate) fn is_online(&self, user: &Name) -> bool {
        lock(&self.lines).is_online(user)
    }

    /// Whether this device is connected.
    pub(crate) fn is_device_online(&self, device: &DeviceId) -> bool {
        lock(&self.lines).by_device.contains_key(device)
    }

    /// Whether a session of this user belongs to this device.
    pub(crate) fn is_device_of(&self, user: &Name, device: &DeviceId) -> bool {
        let lines = lock(&self.lines);
        let ids = lines.by_device.get(device).map(Vec::as_slice).unwrap_or_default();
        ids.iter().filter_map(|id| lines.by_id.get(id)).any(|line| line.user() == Some(user))
    }

    /// Number of sessions.
    pub(crate) fn count(&self) -> usize {
        lock(&self.lines).by_id.len()
    }

    /// Closes the sessions of a device.
    pub(crate) fn close_device(&self, device: &DeviceId, code: CloseCode) {
        let lines = lock(&self.lines);
        let ids = lines.by_device.get(device).map(Vec::as_slice).unwrap_or_default();
        for line in ids.iter().filter_map(|id| lines.by_id.get(id)) {
            line.close(code);
        }
    }

    /// Closes the password sessions of a user except `this`.
    pub(crate) fn close_password_sessions(&self, user: &Name, this: &Handle, code: CloseCode) {
        for line in lock(&self.lines).of(&Owner::User(user.clone())) {
            if line.device.is_none() && line.id != this.id {
                line.close(code);
            }
        }
    }

    /// Closes every session, including those that are registered later.
    pub(crate) fn close_all(&self, code: CloseCode) {
        let mut lines = lock(&self.lines);
        lines.closing = Some(code);
        for line in lines.by_id.values() {
            line.close(code);
        }
    }

    /// Signals to these users that a conversation is new, changed or left.
    pub(crate) fn tell_changed<'a>(
        &self,
        users: impl IntoIterator<Item = &'a Name>,
        conversation: ConversationId,
    ) {
        let lines = lock(&self.lines);
        for user in users {
            for line in lines.of(&Owner::User(user.clone())) {
                line.post(|mail| _ = mail.changed.insert(conversation));
            }
        }
    }

    /// Signals presence changes to this session from now on; returns the number of the newest
    /// change.
    pub(crate) fn watch_presence(&self, line: &Handle) -> u64 {
        let mut lines = lock(&self.lines);
        lines.watchers.insert(line.id);
        lines.presence.now()
    }

    /// At most `most` users whose presence changed after `since`, whether each is online, and the
    /// number of the last change among them.
    pub(crate) fn presence_since(&self, since: u64, most: usize) -> (Vec<(Name, bool)>, u64) {
        let lines = lock(&self.lines);
        let (users, now) = lines.presence.since(since, most);
        let tell = |user: &Name| (user.clone(), lines.is_online(user));
        (users.map(tell).collect(), now)
    }
}

impl Lines {
    fn of(&self, owner: &Owner) -> impl Iterator<Item = &Arc<Handle>> {
        let ids = self.by_owner.get(owner).map(Vec::as_slice).unwrap_or_default();
        ids.iter().filter_map(|id| self.by_id.get(id))
    }

    /// The sessions that are counted together with one of this owner and device.
    fn counted_with(
        &self,
        owner: &Owner,
        device: Option<DeviceId>,
    ) -> impl Iterator<Item = &Arc<Handle>> {
        self.of(owner).filter(move |line| line.device == device)
    }

    /// Closes the oldest password sessions of this user until one more fits.
    fn make_room_for_password(&mut self, owner: &Owner, most: usize) {
        while self.counted_with(owner, None).count() >= most {
            // Lists are in the order of registration.
            let Some(oldest) = self.counted_with(owner, None).next().cloned() else { return };
            self.forget(&oldest);
            oldest.close(CloseCode::Quota);
        }
    }

    fn is_online(&self, user: &Name) -> bool {
        self.of(&Owner::User(user.clone())).any(|line| line.device.is_some())
    }

    fn remember(&mut self, line: &Arc<Handle>) {
        self.by_id.insert(line.id, line.clone());
        self.by_owner.entry(line.owner.clone()).or_default().push(line.id);
        if let Some(device) = line.device {
            self.by_device.entry(device).or_default().push(line.id);
        }
    }

    fn forget(&mut self, line: &Handle) {
        if self.by_id.remove(&line.id).is_none() {
            return;
        }
        self.watchers.remove(&line.id);
        remove_one(&mut self.by_owner, &line.owner, line.id);
        let Some(device) = line.device else { return };
        remove_one(&mut self.by_device, &device, line.id);
        if let Some(instance) = line.instance.get() {
            let key = (device, instance.clone());
            // A newer session may have taken over the instance.
            if self.by_instance.get(&key) == Some(&line.id) {
                self.by_instance.remove(&key);
            }
        }
    }

    /// Signals the watchers if the user of this session came or went.
    fn note_presence(&mut self, line: &Handle, was_online: bool) {
        let Some(user) = line.user() else { return };
        if self.is_online(user) == was_online {
            return;
        }
        self.presence.note(user);
        for watcher in self.watchers.iter().filter_map(|id| self.by_id.get(id)) {
            watcher.post(|mail| mail.presence = true);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far more than these tests need.
    const PLENTY: Most = Most { device: 16, password: 16 };

    fn user(name: &str) -> Owner {
        Owner::User(Name::new(name).unwrap())
    }

    fn device(n: u8) -> Option<DeviceId> {
        Some(DeviceId([n; 16]))
    }

    #[test]
    fn registry__same_instance_replaces_session_at_limit() {
        let hub = Arc::new(Hub::default());
        let most = Most { device: 2, password: 2 };
        let enter = |device| hub.enter(user("ada"), device, most).unwrap();
        let first = enter(device(1));
        let second = enter(device(1));
        assert_eq!(hub.ready(&first, b"run", most), Ok(()));
        assert_eq!(hub.ready(&second, b"second", most), Ok(()));
        let newer = enter(device(1));
        assert_eq!(hub.ready(&newer, b"run", most), Ok(()));
        assert_eq!(first.take_mail().close, Some(CloseCode::Replaced));
        // Another instance on the same device is another session.
        let other = enter(device(1));
        assert_eq!(hub.ready(&other, b"another", most), Err(CloseCode::Quota));
        assert_eq!(hub.enter(user("ada"), device(1), most).map(drop), Ok(()));
        let _more = enter(device(1));
        assert_eq!(hub.enter(user("ada"), device(1), most).map(drop), Err(CloseCode::Quota));
        drop((first, other));
        assert_eq!([&newer, &second].map(|line| line.take_mail().close), [None, None]);
        assert!(hub.is_device_online(&DeviceId([1; 16])));
        drop((newer, second, _more));
        let lines = lock(&hub.lines);
        assert!(lines.by_id.is_empty() && lines.by_owner.is_empty() && lines.by_device.is_empty());
        assert!(lines.by_instance.is_empty());
    }

    #[test]
    fn registry__sessions_limited_by_device_and_password() {
        let hub = Arc::new(Hub::default());
        let most = Most { device: 1, password: 2 };
        let enter = |device| hub.enter(user("ada"), device, most);
        let full = [enter(device(1)).unwrap(), enter(device(1)).unwrap()];
        assert_eq!(hub.ready(&full[0], b"one", most), Ok(()));
        assert_eq!(hub.ready(&full[1], b"two", most), Err(CloseCode::Quota));
        assert_eq!(enter(device(1)).map(drop), Err(CloseCode::Quota));
        let other = enter(device(2)).unwrap();
        assert_eq!(hub.ready(&other, b"one", most), Ok(()));
        // A password session is always admitted, and the oldest one is closed.
        let passwords = [(); 4].map(|()| enter(None).unwrap());
        for line in &passwords {
            assert_eq!(hub.ready(line, b"", most), Ok(()));
        }
        let closed = passwords.each_ref().map(|line| line.take_mail().close);
        let quota = Some(CloseCode::Quota);
        assert_eq!(closed, [quota, quota, None, None]);
        assert_eq!([&full[0], &other].map(|line| line.take_mail().close), [None, None]);
    }

    #[test]
    fn registry__instance_id_is_at_most_16_bytes_or_empty() {
        let hub = Arc::new(Hub::default());
        let line = hub.enter(user("ada"), device(1), PLENTY).unwrap();
        assert_eq!(hub.ready(&line, &[0; 17], PLENTY), Err(CloseCode::Protocol));
        let [a, b] = [(); 2].map(|()| hub.enter(user("ada"), device(1), PLENTY).unwrap());
        assert_eq!([&a, &b].map(|line| hub.ready(line, b"", PLENTY)), [Ok(()); 2]);
        assert_eq!([&a, &b].map(|l| l.take_mail().close), [Some(CloseCode::Replaced), None]);
    }

    #[test]
    fn presence__repeated_changes_are_reported_once() {
        let hub = Arc::new(Hub::default());
        let watcher = hub.enter(user("ada"), device(1), PLENTY).unwrap();
        let seen = hub.watch_presence(&watcher);
        let bob = Name::new("bob").unwrap();
        for _ in 0..1000 {
            drop(hub.enter(user("bob"), device(2), PLENTY).unwrap());
        }
        let here = hub.enter(user("bob"), device(2), PLENTY).unwrap();
        // A password session does not count as presence.
        let eve = hub.enter(user("eve"), None, PLENTY).unwrap();
        assert!(watcher.take_mail().presence);
        let (changes, seen) = hub.presence_since(seen, 10);
        assert_eq!(changes, [(bob.clone(), true)]);
        drop((here, eve));
        assert_eq!(hub.presence_since(seen, 10).0, [(bob, false)]);
    }

    #[test]
    fn registry__session_during_shutdown_is_closed() {
        let hub = Arc::new(Hub::default());
        hub.close_all(CloseCode::Shutdown);
        let late = hub.enter(user("ada"), device(1), PLENTY).unwrap();
        assert_eq!(late.take_mail().close, Some(CloseCode::Shutdown));
    }

    #[test]
    fn registry__password_change_closes_other_password_sessions() {
        let hub = Arc::new(Hub::default());
        let this = hub.enter(user("ada"), None, PLENTY).unwrap();
        let other = hub.enter(user("ada"), None, PLENTY).unwrap();
        let laptop = hub.enter(user("ada"), device(1), PLENTY).unwrap();
        let ada = Name::new("ada").unwrap();
        hub.close_password_sessions(&ada, &this, CloseCode::LogInAgain);
        let closed = [&this, &other, &laptop].map(|line| line.take_mail().close);
        assert_eq!(closed, [None, Some(CloseCode::LogInAgain), None]);
    }
}
