//! What a caller says of a record when it opens it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use twinlock_core::id::ServerKey;
use twinlock_store::{Bounds, Clock, Newest, RowKey};

/// Options for opening a record.
pub struct StoreOptions {
    pub(crate) server_key: ServerKey,
    pub(crate) row_key: RowKey,
    pub(crate) clock: Clock,
    pub(crate) bounds: Bounds,
}

/// The expected state of a record, known before it is opened.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Entries that were on disk in it.
    pub entries: Vec<Newest>,
}

impl StoreOptions {
    /// Options with the system clock and the default bounds.
    ///
    /// `server_key` goes into `link_0` of new conversations. `row_key` is the key of the MACs over
    /// users and credentials.
    #[must_use]
    pub fn new(server_key: ServerKey, row_key: RowKey) -> Self {
        let bounds = Bounds::default();
        let clock = Arc::new(system_ms);
        Self { server_key, row_key, clock, bounds }
    }

    /// Sets other bounds.
    #[must_use]
    pub fn bounds(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// Sets another clock.
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }
}

fn system_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
