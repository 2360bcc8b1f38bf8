//! Claims of open uploads to disk space and quotas.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use twinlock_store::LEAST_CHARGE;

use super::UploadId;

/// What open uploads will take of disk and quotas.
#[derive(Default)]
pub(super) struct Claims(Arc<Mutex<OpenClaims>>);

#[derive(Default)]
struct OpenClaims {
    next: u64,
    by_number: HashMap<u64, (UploadId, Arc<AtomicU64>)>,
}

impl Claims {
    /// Claims the space of an upload. Returns what other uploads have claimed, too.
    pub(super) fn claim(&self, id: &UploadId) -> (QuotaClaim, Others) {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = Others::default();
        for (other, written) in claims.by_number.values().filter(|(other, _)| other != id) {
            let to_come = other.size.saturating_sub(written.load(Ordering::Relaxed));
            others.to_come = others.to_come.saturating_add(to_come);
            others.number += 1;
            if other.user == id.user {
                others.of_user = others.of_user.saturating_add(charge(other));
                others.number_of_user += 1;
            }
        }
        let (number, written) = (claims.next, Arc::new(AtomicU64::new(0)));
        claims.next += 1;
        claims.by_number.insert(number, (id.clone(), written.clone()));
        (QuotaClaim { claims: self.0.clone(), number, written }, others)
    }
}

/// An upload's claim to disk space and quota, until it is dropped.
pub(crate) struct QuotaClaim {
    claims: Arc<Mutex<OpenClaims>>,
    number: u64,
    written: Arc<AtomicU64>,
}

impl QuotaClaim {
    /// Sets how many bytes of the upload are on disk.
    pub(crate) fn set_written(&self, bytes: u64) {
        self.written.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for QuotaClaim {
    fn drop(&mut self) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.by_number.remove(&self.number);
    }
}

/// Bytes that an upload is charged.
pub(super) fn charge(id: &UploadId) -> u64 {
    id.size.max(LEAST_CHARGE)
}

/// Claims of other uploads.
#[derive(Default)]
pub(super) struct Others {
    /// Bytes of this user's uploads.
    pub(super) of_user: u64,
    /// Number of this user's uploads.
    pub(super) number_of_user: u64,
    /// Bytes of all users' uploads that are not written yet.
    pub(super) to_come: u64,
    /// Number of all users' uploads.
    pub(super) number: u64,
}
