//! A pool of reading connections, used on threads that may block.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;
use twinlock_core::id::{ConversationId, Link, Name, ServerKey};
use twinlock_store::StoreError;

use crate::database::{self, DatabaseKind};
use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::index::INDEX;
use crate::log::Segments;
use crate::people::{Heads, PEOPLE};
use crate::record_lock::RecordLock;
use crate::tail::Tail;
use crate::words::WORDS;

/// Maximum number of reads at a time; connections are opened when they are first needed.
///
/// A connection costs its page cache and about as much again in prepared statements. More
/// connections than cores help only while the disk reads.
const MAX_READERS: u32 = 4;

/// The pool. Its connections are lent for one call.
pub(crate) struct Readers {
    directory: PathBuf,
    pub(crate) tail: Arc<Tail>,
    pub(crate) segments: Arc<Segments>,
    idle: Mutex<Vec<Connections>>,
    turns: Arc<Semaphore>,
    /// The record's lock: a read that continues after its caller has gone still needs it.
    lock: Mutex<Option<Arc<RecordLock>>>,
}

/// The connections of one reader.
#[derive(Default)]
struct Connections {
    people: OnceCell<Connection>,
    index: OnceCell<Connection>,
    words: OnceCell<Connection>,
}

/// What a read sees.
pub(crate) struct ReadView<'r> {
    readers: &'r Readers,
    connections: &'r Connections,
}

impl ReadView<'_> {
    /// Accounts, conversations and members.
    pub(crate) fn people(&self) -> Result<&Connection, DbError> {
        self.open(&self.connections.people, &PEOPLE)
    }

    /// The entries.
    pub(crate) fn entries(&self) -> Result<EntryReader<'_>, DbError> {
        let index = self.open(&self.connections.index, &INDEX)?;
        Ok(EntryReader { index, tail: &self.readers.tail, segments: &self.readers.segments })
    }

    /// The index of words.
    pub(crate) fn words(&self) -> Result<&Connection, DbError> {
        self.open(&self.connections.words, &WORDS)
    }

    fn open<'c>(
        &self,
        cell: &'c OnceCell<Connection>,
        kind: &DatabaseKind,
    ) -> Result<&'c Connection, DbError> {
        if let Some(conn) = cell.get() {
            return Ok(conn);
        }
        let conn = database::reader(&self.readers.directory.join(kind.file))?;
        Ok(cell.get_or_init(|| conn))
    }
}

impl Heads for ReadView<'_> {
    fn head(
        &self,
        conversation: ConversationId,
        server_key: &ServerKey,
    ) -> Result<(u64, Link), DbError> {
        self.entries()?.head_or_start(conversation, server_key)
    }

    fn own_after(
        &self,
        conversation: ConversationId,
        user: &Name,
        after: u64,
        last: u64,
    ) -> Result<u64, DbError> {
        self.entries()?.own_after(conversation, user, after, last)
    }
}

impl Readers {
    pub(crate) fn new(
        directory: PathBuf,
        tail: Arc<Tail>,
        segments: Arc<Segments>,
        lock: Arc<RecordLock>,
    ) -> Self {
        let turns = Arc::new(Semaphore::new(MAX_READERS as usize));
        let (idle, lock) = (Mutex::default(), Mutex::new(Some(lock)));
        Self { directory, tail, segments, idle, turns, lock }
    }

    /// Runs `read` when connections are free.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&ReadView<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let connections = readers.idle().pop().unwrap_or_default();
            let view = ReadView { readers: &readers, connections: &connections };
            let result = read(&view).map_err(StoreError::from);
            readers.idle().push(connections);
            drop(readers);
            drop(turn);
            result
        });
        done.await.map_err(|error| StoreError::Database(error.to_string()))?
    }

    /// Runs `read` on one state of `people.db`.
    pub(crate) async fn read_people<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection, &ReadView<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read(move |view| {
            let people = view.people()?;
            let _one_state = people.unchecked_transaction()?;
            read(people, view)
        })
        .await
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

    /// Closes the unused connections, so that the writing ones close last and remove the WALs.
    pub(crate) fn close_idle(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connections>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
