//! A pool of reading connections, used on threads that may block.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;
use twinlock_store::StoreError;

use crate::error::DbError;
use crate::open;
use crate::record_files::{InPlace, RecordLock};

/// Maximum number of connections; each is opened when it is first needed.
///
/// A connection costs its page cache and about as much again in prepared statements. More
/// connections than cores help only while the disk reads.
const MAX_READERS: u32 = 4;

/// The pool. A connection is lent for one call, which reads one snapshot of the record.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    in_place: Arc<InPlace>,
    pool: Mutex<ConnectionPool>,
    /// Notified when a connection is returned, or when lending is allowed again.
    back: Condvar,
    turns: Arc<Semaphore>,
    /// The record's lock: a read that continues after its caller has gone still needs it.
    lock: Mutex<Option<Arc<RecordLock>>>,
}

#[derive(Debug, Default)]
struct ConnectionPool {
    idle: Vec<Connection>,
    out: u32,
    /// No connection may be lent.
    barred: bool,
}

/// A lent connection; it returns to the pool when this is dropped.
struct LentConnection<'r> {
    readers: &'r Readers,
    conn: Option<Connection>,
}

impl Drop for LentConnection<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.pool();
        pool.out = pool.out.saturating_sub(1);
        pool.idle.extend(self.conn.take());
        self.readers.back.notify_all();
    }
}

impl Readers {
    pub(crate) fn new(path: PathBuf, in_place: Arc<InPlace>, lock: Arc<RecordLock>) -> Self {
        let turns = Arc::new(Semaphore::new(MAX_READERS as usize));
        let (pool, back) = (Mutex::default(), Condvar::new());
        Self { path, in_place, pool, back, turns, lock: Mutex::new(Some(lock)) }
    }

    /// Runs `read` on a connection, when one is free.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let result = readers.lend(read).map_err(StoreError::from);
            drop(readers);
            drop(turn);
            result
        });
        done.await.map_err(|error| StoreError::Database(error.to_string()))?
    }

    fn lend<T>(&self, read: impl FnOnce(&Connection) -> Result<T, DbError>) -> Result<T, DbError> {
        let mut out = self.take();
        self.in_place.check()?;
        let conn = match out.conn.take() {
            Some(conn) => conn,
            None => open::reader(&self.path)?,
        };
        let result = {
            let _one_moment = conn.unchecked_transaction()?;
            read(&conn)
        };
        out.conn = Some(conn);
        result
    }

    fn take(&self) -> LentConnection<'_> {
        let mut pool = self.pool();
        while pool.barred {
            pool = self.wait(pool);
        }
        pool.out += 1;
        LentConnection { readers: self, conn: pool.idle.pop() }
    }

    /// Runs `work` while no connection is open; reads wait until it ends.
    pub(crate) fn without_any<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut pool = self.pool();
        pool.barred = true;
        while pool.out > 0 {
            pool = self.wait(pool);
        }
        pool.idle.clear();
        drop(pool);
        let done = work();
        self.pool().barred = false;
        self.back.notify_all();
        done
    }

    fn wait<'p>(&self, pool: MutexGuard<'p, ConnectionPool>) -> MutexGuard<'p, ConnectionPool> {
        self.back.wait(pool).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the reads in progress, then closes the connections.
    pub(crate) async fn close(&self) {
        if let Ok(all) = self.turns.acquire_many(MAX_READERS).await {
            self.turns.close();
            drop(all);
        }
        self.close_idle();
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Closes the unused connections. The recorder's connection must close last, because only it
    /// can delete the WAL.
    pub(crate) fn close_idle(&self) {
        self.pool().idle.clear();
    }

    fn pool(&self) -> MutexGuard<'_, ConnectionPool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
