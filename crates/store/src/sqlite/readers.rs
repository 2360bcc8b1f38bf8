//! A few connections that read, on threads that may block.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::open::{self, Lock};
use crate::StoreError;

/// Connections at most, opened when they are first needed. Each costs its page cache and about as
/// much again in prepared statements; more of them than cores only help while the disk reads.
const MOST: u32 = 4;

/// The pool. A connection is out for the length of one call, which sees one moment of the record.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
    /// A read that goes on after its caller has gone still holds the record.
    lock: Mutex<Option<Arc<Lock>>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, lock: Arc<Lock>) -> Self {
        let turns = Arc::new(Semaphore::new(MOST as usize));
        Self { path, idle: Mutex::default(), turns, lock: Mutex::new(Some(lock)) }
    }

    /// Reads; waits for its turn.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let taken = readers.idle().pop();
            let conn = match taken {
                Some(conn) => conn,
                None => open::reader(&readers.path)?,
            };
            let result = {
                let _one_moment = conn.unchecked_transaction()?;
                read(&conn)
            };
            readers.idle().push(conn);
            drop(readers);
            drop(turn);
            result
        });
        done.await.map_err(|error| StoreError::Database(error.to_string()))?
    }

    /// Waits for the reads that are under way and closes the connections.
    pub(super) async fn close(&self) {
        if let Ok(all) = self.turns.acquire_many(MOST).await {
            self.turns.close();
            drop(all);
        }
        self.close_idle();
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Closes the connections that nobody uses. The recorder's shall be the last to close, since
    /// that one can take the WAL away.
    pub(super) fn close_idle(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
