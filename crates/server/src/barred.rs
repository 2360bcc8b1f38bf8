//! Revocations that could not be written: they hold in memory until the record accepts writes
//! again.
//!
//! A barred device or classic key cannot authenticate until the server stops, and a barred person
//! until the act is recorded. Until the revocation is recorded, the server refuses all other writes of clients, which could take the disk space
//! that the revocation needs. A restart before that forgets the bar, so the answer must not be
//! `Done`.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use twinlock_core::id::{DeviceId, Name};
use twinlock_store::{
    Act, Actor, AddedClassicKey, Administered, Store, StoreError, StoredClassicKey,
};

/// Interval between attempts to write.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A revoked credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revocation {
    Device(Name, DeviceId),
    Key(Name),
    /// An act of power that takes access away.
    Act(Actor, Act),
}

#[derive(Debug, Default)]
pub(crate) struct Barred {
    barred: Mutex<BarredCredentials>,
    /// Number of credentials in `barred`, so that a login need not lock it.
    count: AtomicUsize,
    /// Number of unwritten revocations.
    unwritten: AtomicUsize,
    more: Notify,
    /// Held while a revocation is written, and while a classic key is added whose name may be
    /// barred.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct BarredCredentials {
    devices: HashMap<DeviceId, Name>,
    keys: HashSet<Name>,
    people: HashSet<Name>,
    unwritten: Vec<Revocation>,
}

impl Barred {
    /// Bars a credential from now on.
    pub(crate) fn bar(&self, revocation: Revocation) {
        let mut barred = self.lock();
        match &revocation {
            Revocation::Device(user, device) => {
                barred.devices.insert(*device, user.clone());
            }
            Revocation::Key(name) => {
                barred.keys.insert(name.clone());
            }
            Revocation::Act(_, Act::RevokeDevice { user, device }) => {
                barred.devices.insert(*device, user.clone());
            }
            Revocation::Act(_, act) => {
                barred.people.insert(act.user().clone());
            }
        }
        if !barred.unwritten.contains(&revocation) {
            barred.unwritten.push(revocation);
        }
        self.count(&barred);
        drop(barred);
        self.more.notify_one();
    }

    pub(crate) fn has_device(&self, device: &DeviceId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().devices.contains_key(device)
    }

    pub(crate) fn has_person(&self, user: &Name) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().people.contains(user)
    }

    /// Whether a classic key or its user is barred.
    pub(crate) fn has_key(&self, key: &StoredClassicKey) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let barred = self.lock();
        barred.keys.contains(&key.name) || barred.people.contains(&key.user)
    }

    /// Calls [`add_classic_key`](twinlock_store::ClassicKeyStore::add_classic_key), and lifts the
    /// bar on the name of the new key. The record accepts a key only after its predecessor was
    /// revoked.
    pub(crate) async fn add_classic_key(
        &self,
        store: &dyn Store,
        key: StoredClassicKey,
    ) -> Result<AddedClassicKey, StoreError> {
        let _writing = self.writing.lock().await;
        let name = key.name.clone();
        let added = store.add_classic_key(key).await?;
        if added == AddedClassicKey::Added {
            self.lock().keys.remove(&name);
            self.written(&Revocation::Key(name));
        }
        Ok(added)
    }

    /// Marks the revocation as recorded.
    pub(crate) fn written(&self, revocation: &Revocation) {
        let mut barred = self.lock();
        barred.unwritten.retain(|other| other != revocation);
        if let Revocation::Act(_, act) = revocation
            && act.shuts_out()
        {
            let of_person = |other: &Revocation| matches!(other, Revocation::Act(_, it) if it.shuts_out() && it.user() == act.user());
            if !barred.unwritten.iter().any(of_person) {
                barred.people.remove(act.user());
            }
        }
        self.count(&barred);
    }

    /// Whether a revocation is unwritten. It must be written before anything else.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.unwritten.load(Ordering::Acquire) > 0
    }

    /// Writes each revocation as soon as the record accepts it.
    pub(crate) async fn upkeep(&self, store: &dyn Store) {
        loop {
            if !self.is_unwritten() {
                self.more.notified().await;
            }
            self.write(store).await;
            if self.is_unwritten() {
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }

    /// Tries to write each revocation once.
    pub(crate) async fn write(&self, store: &dyn Store) {
        let all = self.lock().unwritten.clone();
        for revocation in all {
            let _writing = self.writing.lock().await;
            // The name may belong to a new key by now.
            if !self.lock().unwritten.contains(&revocation) {
                continue;
            }
            let done = match &revocation {
                Revocation::Device(user, device) => {
                    store.revoke_device(user, device).await.map(|_| true)
                }
                Revocation::Key(name) => store.revoke_classic_key(name).await.map(|_| true),
                Revocation::Act(by, act) => {
                    store.administer(by.clone(), act.clone()).await.map(|administered| {
                        !matches!(
                            administered,
                            Administered::NotAllowed(_) | Administered::LastOwner
                        )
                    })
                }
            };
            match done {
                // Or it was revoked by another request before.
                Ok(true) => tracing::info!(?revocation, "a deferred revocation is recorded"),
                Ok(false) => {
                    tracing::error!(
                        ?revocation,
                        "no longer allowed: it applies only until a restart"
                    );
                    self.lock().unwritten.retain(|other| *other != revocation);
                    self.recount();
                    continue;
                }
                Err(error @ (StoreError::Full | StoreError::Database(_) | StoreError::Closed)) => {
                    tracing::debug!(?revocation, %error, "not recorded yet");
                    return;
                }
                Err(error) => {
                    tracing::error!(?revocation, %error, "it applies only until a restart");
                }
            }
            self.written(&revocation);
        }
    }

    fn recount(&self) {
        self.count(&self.lock());
    }

    fn count(&self, barred: &BarredCredentials) {
        let count = barred.devices.len() + barred.keys.len() + barred.people.len();
        self.count.store(count, Ordering::Release);
        self.unwritten.store(barred.unwritten.len(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, BarredCredentials> {
        self.barred.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use twinlock_core::frame::CloseCode;
    use twinlock_core::proto::{self, RefusalReason, request::Op};

    use super::*;
    use crate::common::classic::{add_key, list_keys, revoke_key};
    use crate::common::*;

    const FORM: proto::ClassicForm = proto::ClassicForm::JweLines;

    fn lamp() -> Revocation {
        Revocation::Key(Name::new("lamp").unwrap())
    }

    #[tokio::test]
    async fn barred__pending_revocation_refuses_other_writes() {
        let host = TestServer::start().await;
        let (laptop, mut ada) = host.owner().await;
        let barred = host.server().services.record.barred.clone();
        add_key(&mut ada, "lamp", LOBBY, FORM).await.unwrap();
        let open = ada.offer(put(random(), "x", 3)).await.unwrap().transfer;
        ada.send_part(open, b"abc", 0, 3).await;
        let writing = barred.writing.lock().await;
        barred.bar(lamp());
        assert_eq!(ada.end_file(open, b"abc").await, Err(RefusalReason::Storage));
        let room = || proto::CreateRoom { name: "room".into(), topic: String::new() };
        for op in [
            Op::CreateRoom(room()),
            Op::JoinRoom(proto::JoinRoom { name: "lobby".into() }),
            Op::LeaveRoom(proto::LeaveRoom { conversation: LOBBY }),
            Op::SetTopic(proto::SetTopic { conversation: LOBBY, topic: "new".into() }),
            Op::OpenDirect(proto::OpenDirect { user: "ada".into() }),
            Op::Mark(proto::Mark { conversation: LOBBY, n: 1 }),
            Op::MakeInvite(proto::MakeInvite::default()),
            Op::AddClassicKey(proto::AddClassicKey::default()),
            Op::RegisterFinish(proto::RegisterFinish::default()),
            append(LOBBY, "text"),
            Op::PutFile(put(random(), "x", 3)),
        ] {
            assert_eq!(ada.ask(op.clone()).await.unwrap_err(), RefusalReason::Storage, "{op:?}");
        }
        // Reads, logins and other revocations continue.
        assert_eq!(ada.read(LOBBY, 0).await.unwrap().entries.len(), 0);
        let mut again = host.connect(laptop.credential()).await.unwrap();
        assert_eq!(revoke_key(&mut again, "candle").await, Err(RefusalReason::NotFound));
        drop(writing);
        let written = async {
            while barred.is_unwritten() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon("a revocation that is written", written).await;
        assert!(list_keys(&mut ada).await.is_empty());
        ada.ask(Op::CreateRoom(room())).await.unwrap();
        again.append(LOBBY, "text").await.unwrap();
    }

    #[tokio::test]
    async fn barred__person_is_locked_out_until_the_act_is_recorded() {
        let host = TestServer::start().await;
        let (laptop, mut ada) = host.owner().await;
        let (phone, mut bob) = host.member(&mut ada, "bob").await;
        let record = &host.server().services.record;
        let [ada_name, bob_name] = ["ada", "bob"].map(|name| Name::new(name).unwrap());
        let writing = record.barred.writing.lock().await;
        let by = Actor::Person { user: ada_name, device: laptop.id };
        let suspend = Act::Suspend { user: bob_name.clone() };
        record.barred.bar(Revocation::Act(by.clone(), suspend.clone()));
        let mut again = host.connect(phone.credential()).await.unwrap();
        assert_eq!(again.end().await.unwrap(), CloseCode::Revoked);
        // A session that is there already ends with the request, and records nothing until then.
        assert_eq!(bob.append(LOBBY, "x").await.map(drop), Err(RefusalReason::Storage));
        drop(writing);
        let written = async {
            while record.barred.is_unwritten() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon("a suspension that is written", written).await;
        assert!(!record.store.person(&bob_name).await.unwrap().unwrap().is_active());
        // From now on the record counts, and it can be lifted there.
        assert!(!record.barred.has_person(&bob_name));
        let restore = Act::Restore { user: bob_name.clone() };
        record.store.administer(by, restore).await.unwrap();
        let mut bob = host.connect(phone.credential()).await.unwrap();
        bob.append(LOBBY, "here again").await.unwrap();
        // One that is not allowed any more holds until a restart.
        let by = Actor::Person { user: bob_name.clone(), device: phone.id };
        let last = Act::Remove { user: Name::new("ada").unwrap() };
        record.barred.bar(Revocation::Act(by, last));
        record.barred.write(&*record.store).await;
        assert!(!record.barred.is_unwritten());
        let mut again = host.connect(laptop.credential()).await.unwrap();
        assert_eq!(again.end().await.unwrap(), CloseCode::Revoked);
    }

    #[tokio::test]
    async fn barred__pending_revocation_spares_new_key_of_same_name() {
        let host = TestServer::start().await;
        let (_, mut ada) = host.owner().await;
        let record = &host.server().services.record;
        add_key(&mut ada, "lamp", LOBBY, FORM).await.unwrap();
        let store = &*record.store;
        let name = Name::new("lamp").unwrap();
        // The lock prevents an attempt before the request below revokes the key.
        let writing = record.barred.writing.lock().await;
        record.barred.bar(lamp());
        revoke_key(&mut ada, "lamp").await.unwrap();
        assert!(!record.barred.is_unwritten());
        drop(writing);
        add_key(&mut ada, "lamp", LOBBY, FORM).await.unwrap();
        let key = store.classic_key(&name).await.unwrap().unwrap();
        assert!(!record.barred.has_key(&key));
        // The name is barred while the new key is added.
        let barred = Barred::default();
        barred.bar(lamp());
        assert!(barred.has_key(&key));
        assert!(store.revoke_classic_key(&name).await.unwrap());
        let added = barred.add_classic_key(store, key.clone()).await;
        assert_eq!(added, Ok(AddedClassicKey::Added));
        barred.write(store).await;
        assert!(!barred.has_key(&key));
        assert_eq!(list_keys(&mut ada).await.len(), 1);
    }
}
