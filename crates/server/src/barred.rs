//! Revocations that could not be written: they hold in memory, and are written as soon as the
//! record takes writes again.
//!
//! A device or classic key that is barred opens nothing until the server stops. Until it is
//! written no text is recorded, so that the room for it is not taken by others; a restart before
//! then would let it in again, which is why the answer is no `Done`.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use twinlock_core::id::{DeviceId, Name};
use twinlock_store::{Store, StoreError};

/// How often the record is tried.
const AGAIN: Duration = Duration::from_secs(1);

/// What was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revocation {
    Device(Name, DeviceId),
    Key(Name),
}

#[derive(Debug, Default)]
pub(crate) struct Barred {
    inner: Mutex<Inner>,
    /// How many are in `inner`, so that a login need not lock it.
    count: AtomicUsize,
    /// How many are to be written.
    unwritten: AtomicUsize,
    more: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    devices: HashMap<DeviceId, Name>,
    keys: HashSet<Name>,
    unwritten: Vec<Revocation>,
}

impl Barred {
    /// Bars it from now on.
    pub(crate) fn bar(&self, revocation: Revocation) {
        let mut inner = self.lock();
        match &revocation {
            Revocation::Device(user, device) => {
                inner.devices.insert(*device, user.clone());
            }
            Revocation::Key(name) => {
                inner.keys.insert(name.clone());
            }
        }
        if !inner.unwritten.contains(&revocation) {
            inner.unwritten.push(revocation);
        }
        self.count(&inner);
        drop(inner);
        self.more.notify_one();
    }

    pub(crate) fn has_device(&self, device: &DeviceId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().devices.contains_key(device)
    }

    pub(crate) fn has_key(&self, name: &Name) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().keys.contains(name)
    }

    /// There is a new key of this name.
    pub(crate) fn free_key(&self, name: &Name) {
        let mut inner = self.lock();
        inner.keys.remove(name);
        self.count(&inner);
    }

    /// One has not been written: no text is recorded before it.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.unwritten.load(Ordering::Acquire) > 0
    }

    /// Writes them, each as soon as the record takes it.
    pub(crate) async fn upkeep(&self, store: &dyn Store) {
        loop {
            if !self.is_unwritten() {
                self.more.notified().await;
            }
            self.write(store).await;
            if self.is_unwritten() {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Tries each once.
    pub(crate) async fn write(&self, store: &dyn Store) {
        let all = self.lock().unwritten.clone();
        for revocation in all {
            let done = match &revocation {
                Revocation::Device(user, device) => store.revoke_device(user, device).await,
                Revocation::Key(name) => store.revoke_classic_key(name).await,
            };
            match done {
                // Or somebody was quicker.
                Ok(_) => tracing::info!(?revocation, "a revocation that had to wait is recorded"),
                Err(error @ (StoreError::Full | StoreError::Database(_) | StoreError::Closed)) => {
                    tracing::debug!(?revocation, %error, "not recorded yet");
                    return;
                }
                Err(error) => {
                    tracing::error!(?revocation, %error, "it holds until a restart only");
                }
            }
            let mut inner = self.lock();
            inner.unwritten.retain(|other| *other != revocation);
            self.count(&inner);
        }
    }

    fn count(&self, inner: &Inner) {
        self.count.store(inner.devices.len() + inner.keys.len(), Ordering::Release);
        self.unwritten.store(inner.unwritten.len(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
