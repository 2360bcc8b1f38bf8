//! Cached names of conversations, for the log.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use twinlock_core::id::ConversationId;

/// Cached names; about 100 bytes each.
const CACHE_SIZE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Names by conversation. A room keeps its name.
pub(super) struct Names(Mutex<LruCache<ConversationId, Arc<str>>>);

impl Names {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(CACHE_SIZE)))
    }

    pub(super) fn get(&self, id: ConversationId) -> Option<Arc<str>> {
        self.lock().get(&id).cloned()
    }

    pub(super) fn put(&self, id: ConversationId, name: Arc<str>) {
        self.lock().put(id, name);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<ConversationId, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
