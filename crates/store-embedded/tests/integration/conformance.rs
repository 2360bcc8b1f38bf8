//! The conformance suite, on the log.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use twinlock_core::id::ServerKey;
use twinlock_store::conformance::{self, Ground};
use twinlock_store::{Bounds, Clock, Store};
use twinlock_store_embedded::EmbeddedStore;

struct Dir(TempDir);

impl Ground for Dir {
    fn open(&self, clock: Clock, bounds: Bounds) -> Result<Arc<dyn Store>, String> {
        let options = crate::common::options().clock(clock).bounds(bounds);
        let store = EmbeddedStore::open(&self.0.path().join("record"), options);
        Ok(store.map_err(|error| error.to_string())?)
    }

    fn server_key(&self) -> ServerKey {
        crate::common::SERVER_KEY
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance__log_passes_every_test() {
    let run = conformance::run_all(|| Dir(tempfile::tempdir().unwrap()));
    let held = tokio::time::timeout(Duration::from_secs(120), run).await.unwrap();
    assert_eq!(held, Ok(68));
}

#[tokio::test]
async fn conformance__single_thread_runtime_is_sufficient() {
    let run = conformance::run_all(|| Dir(tempfile::tempdir().unwrap()));
    let held = tokio::time::timeout(Duration::from_secs(120), run).await.unwrap();
    assert_eq!(held, Ok(68));
}
