//! Counts logins of existing devices by device instead of by address.
//!
//! A device's secret has 256 bits and its id 128, so neither can be guessed. Its logins do not
//! count for its address, whose limit others may have exhausted. Members see each other's device
//! ids, so unfinished logins of one device have a bound. Beyond it they count for their address
//! like all others, so a stranger who knows the id locks out no one.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use twinlock_core::id::DeviceId;

/// Unfinished logins of a device within [`WINDOW`]. A client on a bad network makes a few.
const MAX_UNFINISHED: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Devices remembered, least recently used first to go; about 100 bytes each.
const TABLE_SIZE: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// Counted instead of a device that does not exist, so that the work is the same. Never drawn.
const UNUSED_ID: DeviceId = DeviceId([0; 16]);

/// Unfinished logins by device.
pub(crate) struct DeviceLogins(Mutex<LruCache<DeviceId, Unfinished>>);

#[derive(Debug, Clone, Copy)]
struct Unfinished {
    count: u32,
    since: Instant,
}

impl DeviceLogins {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(TABLE_SIZE)))
    }

    /// Counts a login of this device. `false`: the device does not exist or has too many unfinished
    /// logins, so the login counts for its address.
    pub(crate) fn take(&self, device: &DeviceId, exists: bool, now: Instant) -> bool {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if exists { *device } else { UNUSED_ID };
        let fresh = Unfinished { count: 0, since: now };
        let unfinished = devices.get_or_insert_mut(key, || fresh);
        if now.saturating_duration_since(unfinished.since) >= WINDOW {
            *unfinished = fresh;
        }
        let free = unfinished.count < MAX_UNFINISHED;
        unfinished.count = unfinished.count.saturating_add(u32::from(free));
        free && exists
    }

    /// Undoes the count of a login that succeeded.
    pub(crate) fn give_back(&self, device: &DeviceId) {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unfinished) = devices.get_mut(device) {
            unfinished.count = unfinished.count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices__only_unfinished_logins_count_towards_limit() {
        let devices = DeviceLogins::new();
        let now = Instant::now();
        let [a, b] = [1, 2].map(|n| DeviceId([n; 16]));
        for _ in 0..100 {
            assert!(devices.take(&a, true, now));
            devices.give_back(&a);
        }
        for _ in 0..MAX_UNFINISHED {
            assert!(devices.take(&a, true, now));
        }
        assert!(!devices.take(&a, true, now + WINDOW / 2));
        assert!(devices.take(&b, true, now));
        assert!(devices.take(&a, true, now + WINDOW));
    }

    #[test]
    fn devices__unknown_ids_are_never_exempt_or_stored() {
        let devices = DeviceLogins::new();
        let now = Instant::now();
        for n in 0..1000_u16 {
            let made_up = DeviceId([n.to_be_bytes(); 8].concat().try_into().unwrap());
            assert!(!devices.take(&made_up, false, now));
        }
        assert_eq!(devices.0.lock().unwrap().len(), 1);
    }
}
