//! Background tasks that run as long as the server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;
use tokio::task::JoinSet;
use twinlock_store::{Published, Store};

use super::clock;
use super::heads::{self, HeadFile};
use crate::admission::Admission;
use crate::bus::Bus;
use crate::identity::Identity;
use crate::services::Services;

/// Interval between checks of the certificate's expiry.
const RENEWAL: Duration = Duration::from_secs(12 * 60 * 60);

/// Starts the tasks. `sweep`: remove unreferenced content of files.
pub(super) fn spawn(
    services: &Services,
    identity: &Arc<Mutex<Identity>>,
    heads: &Arc<tokio::sync::Mutex<HeadFile>>,
    sweep: bool,
) -> JoinSet<()> {
    let Services { admission, record, bus, .. } = services;
    let mut tasks = JoinSet::new();
    tasks.spawn(publish(bus.clone(), record.store.watch()));
    tasks.spawn(renew(admission.clone(), identity.clone()));
    let files = record.files.clone();
    tasks.spawn(async move { files.upkeep(sweep).await });
    let (store, barred) = (record.store.clone(), record.barred.clone());
    tasks.spawn(async move { barred.upkeep(&*store).await });
    let (store, heads) = (record.store.clone(), heads.clone());
    tasks.spawn(async move { keep_heads(&*store, &heads).await });
    let store = record.store.clone();
    tasks.spawn(async move { clock::watch(&*store).await });
    tasks
}

async fn keep_heads(store: &dyn Store, heads: &tokio::sync::Mutex<HeadFile>) {
    loop {
        tokio::time::sleep(heads::INTERVAL).await;
        heads.lock().await.try_write(store).await;
    }
}

/// Publishes commits of the store to the followers.
async fn publish(bus: Arc<dyn Bus>, mut commits: broadcast::Receiver<Arc<[Published]>>) {
    loop {
        match commits.recv().await {
            Ok(published) => bus.publish(&published),
            Err(broadcast::error::RecvError::Lagged(_)) => bus.missed(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Renews a self-signed certificate in time, and warns before any other expires.
async fn renew(admission: Arc<Admission>, identity: Arc<Mutex<Identity>>) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        let now = SystemTime::now();
        let mut identity = identity.lock().unwrap_or_else(PoisonError::into_inner);
        match identity.renew_if_due(now) {
            Ok(Some(certificate)) => {
                admission.tls().reload(certificate);
                tracing::info!("TLS certificate renewed, with the same key");
            }
            Ok(None) => identity.warn_if_ending(now),
            Err(error) => tracing::error!(%error, "the TLS certificate was not renewed"),
        }
    }
}
