//! A few connections that read, on threads that may block.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::open::{self, InPlace, RecordLock};
use crate::StoreError;

/// Connections at most, opened when they are first needed. Each costs its page cache and about as
/// much again in prepared statements; more of them than cores only help while the disk reads.
const MOST: u32 = 4;

/// The pool. A connection is out for the length of one call, which sees one moment of the record.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    in_place: Arc<InPlace>,
    pool: Mutex<Pool>,
    /// One has come back, or may go out again.
    back: Condvar,
    turns: Arc<Semaphore>,
    /// A read that goes on after its caller has gone still holds the record.
    lock: Mutex<Option<Arc<RecordLock>>>,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Connection>,
    out: u32,
    /// None goes out.
    barred: bool,
}

/// One that is out; a connection that is in it at its end comes back.
struct Out<'r> {
    readers: &'r Readers,
    conn: Option<Connection>,
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.pool();
        pool.out = pool.out.saturating_sub(1);
        pool.idle.extend(self.conn.take());
        self.readers.back.notify_all();
    }
}

impl Readers {
    pub(super) fn new(path: PathBuf, in_place: Arc<InPlace>, lock: Arc<RecordLock>) -> Self {
        let turns = Arc::new(Semaphore::new(MOST as usize));
        let (pool, back) = (Mutex::default(), Condvar::new());
        Self { path, in_place, pool, back, turns, lock: Mutex::new(Some(lock)) }
    }

    /// Reads; waits for its turn.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let result = readers.lend(read);
            drop(readers);
            drop(turn);
            result
        });
        done.await.map_err(|error| StoreError::Database(error.to_string()))?
    }

    fn lend<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
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

    fn take(&self) -> Out<'_> {
        let mut pool = self.pool();
        while pool.barred {
            pool = self.wait(pool);
        }
        pool.out += 1;
        Out { readers: self, conn: pool.idle.pop() }
    }

    /// Does something while no connection is open; those who read meanwhile wait.
    pub(super) fn without_any<T>(&self, work: impl FnOnce() -> T) -> T {
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

    fn wait<'p>(&self, pool: MutexGuard<'p, Pool>) -> MutexGuard<'p, Pool> {
        self.back.wait(pool).unwrap_or_else(PoisonError::into_inner)
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
        self.pool().idle.clear();
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
