//! The search for words.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use twinlock_core::id::ConversationId;

use crate::error::StoreError;
use crate::log::{ReadLimit, StoredEntry};

/// Time of one slice of a search. Between slices, other reads and checkpoints run.
pub const SLICE: Duration = Duration::from_millis(20);

/// The search for entries by their words.
#[async_trait]
pub trait EntrySearch: Send + Sync + 'static {
    /// Searches for entries that contain all words of `text`, newest first, for about `time`.
    ///
    /// A last word of three or more letters matches as a prefix. [`SearchResult::next`] is where the
    /// search resumes. The call reads one snapshot of the record, which delays checkpoints until it
    /// returns. It finds at most `limit.entries` entries with about `limit.bytes` of bodies, but at
    /// least one entry if there is one.
    async fn search_some(
        &self,
        conversation: ConversationId,
        text: &str,
        from: SearchFrom,
        limit: ReadLimit,
        time: Duration,
    ) -> Result<SearchResult, StoreError>;

    /// Approximate number of bytes that a search may have to read because they are not indexed yet.
    /// Counts bodies, plus 256 for each entry; 0 when the index is up to date.
    fn unindexed(&self) -> u64;

    /// Repeats [`Self::search_some`] below `before` until it is complete or has `entries` entries.
    /// Its time is not bounded.
    async fn search(
        &self,
        conversation: ConversationId,
        text: &str,
        before: u64,
        entries: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let mut all = Vec::new();
        let mut from = Some(SearchFrom::below(before));
        while let Some(at) = from
            && all.len() < entries
        {
            let limit = ReadLimit { entries: entries - all.len(), bytes: usize::MAX };
            let found = self.search_some(conversation, text, at, limit, SLICE).await?;
            all.extend(found.entries);
            from = found.next;
        }
        Ok(all)
    }
}

/// Where a search starts or resumes.
#[derive(Debug, Clone)]
pub struct SearchFrom {
    /// Only entries with numbers below this.
    pub before: u64,
    /// The store's own position in its index, once the search has reached it.
    position: Option<Arc<dyn Any + Send + Sync>>,
}

impl SearchFrom {
    /// Starts at the newest entry with a number below `before`.
    #[must_use]
    pub fn below(before: u64) -> Self {
        Self { before, position: None }
    }

    /// Resumes at a position in the store's index. For stores.
    #[must_use]
    pub fn at(before: u64, position: impl Any + Send + Sync) -> Self {
        Self { before, position: Some(Arc::new(position)) }
    }

    /// The position of [`Self::at`]. For stores.
    #[must_use]
    pub fn into_position<P: Any + Send + Sync + Clone>(self) -> Option<P> {
        self.position?.downcast().ok().map(Arc::unwrap_or_clone)
    }
}

/// The result of one slice of a search.
#[derive(Debug, Clone)]
pub struct SearchResult {
    /// Matching entries, newest first.
    pub entries: Vec<StoredEntry>,
    /// Where the search resumes; `None`: it is complete.
    pub next: Option<SearchFrom>,
}
