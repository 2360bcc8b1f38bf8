//! Turns at reading and hashing files from the disk.
//!
//! Each hash occupies a thread in proportion to the file's length, and every user can ask for many.
//! The server therefore hashes few at once, and only one of each user. The queue for the turns of
//! all contains each user once; further requests of a user wait for that user's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use twinlock_core::id::Name;

/// Files hashed at once.
const CONCURRENT_HASHES: usize = 2;

/// The turns of a server.
pub(crate) struct HashTurns {
    all: Arc<Semaphore>,
    /// Semaphores of users who have a turn or wait for one.
    users: Mutex<HashMap<Name, Arc<Semaphore>>>,
}

/// A turn, kept until the hash is computed.
pub(crate) struct HashTurn {
    _user: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl HashTurns {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(CONCURRENT_HASHES)), users: Mutex::default() })
    }

    /// Waits for a turn. Never returns `None`: the semaphores are not closed.
    pub(super) async fn take(&self, user: &Name) -> Option<HashTurn> {
        let mine = self.of(user);
        let user = mine.acquire_owned().await.ok()?;
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(HashTurn { _user: user, _all: all })
    }

    fn of(&self, user: &Name) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        // A permit and a waiter keep their semaphore alive.
        users.retain(|_, one| Arc::strong_count(one) > 1);
        users.entry(user.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn file_turns__one_user_does_not_starve_others() {
        let turns = HashTurns::new();
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(|name| Name::new(name).unwrap());
        let first = turns.take(&ada).await;
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(turns.take(&ada))).collect();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none());
        }
        // The second of two turns is still available to another user.
        let second = turns.take(&bob).await;
        let mut third = Box::pin(turns.take(&eve));
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        // ada's next request is behind eve's.
        assert!(waiting.first_mut().unwrap().now_or_never().is_none());
        let third = third.await;
        assert!(third.is_some() && second.is_some());
        drop((second, third, waiting));
        drop(turns.take(&bob).await);
        assert_eq!(turns.users.lock().unwrap().len(), 1);
    }
}
