//! Lists that arrive in pages.

use prost::Message;

use crate::error::ClientError;
use crate::limits::MAX_LISTED;

/// Maximum size of one list in bytes, encoded.
const LISTED_BYTES: usize = 32 * 1024 * 1024;

/// A list that arrives in pages. Rejects pages that do not ascend or never end.
pub(super) struct Listing<T, K> {
    what: &'static str,
    key: fn(&T) -> K,
    all: Vec<T>,
    bytes: usize,
}

impl<T: Message, K: Ord + Default> Listing<T, K> {
    pub(super) fn new(what: &'static str, key: fn(&T) -> K) -> Self {
        Self { what, key, all: Vec::new(), bytes: 0 }
    }

    pub(super) fn last(&self) -> Option<K> {
        self.all.last().map(self.key)
    }

    /// Adds a page; returns the complete list after the last page.
    pub(super) fn add(&mut self, page: Vec<T>, more: bool) -> Result<Option<Vec<T>>, ClientError> {
        let more = more && !page.is_empty();
        let mut last = self.last().unwrap_or_default();
        for item in page {
            let key = (self.key)(&item);
            self.bytes = self.bytes.saturating_add(item.encoded_len());
            let is_over = self.all.len() >= MAX_LISTED || self.bytes > LISTED_BYTES;
            if key <= last || is_over {
                return Err(ClientError::BadList(self.what));
            }
            last = key;
            self.all.push(item);
        }
        Ok((!more).then(|| std::mem::take(&mut self.all)))
    }
}
