//! The database of one profile, `state/NAME/state.db`, shared by the outbox and the receipts.
//!
//! SQLite in WAL mode with `synchronous=FULL`, mode 0600: a write survives a kill and a power cut
//! once its call returns. The WAL file stays when a process ends, so a command pays one sync per
//! transaction and none for creating, checkpointing and removing the WAL. There is one file for
//! both, because the ack of a message and its receipt belong in one transaction.
//!
//! Several processes may have it open; within one process all handles share one connection. Every
//! call blocks: from async code, call it on a blocking thread.
//!
//! Every row belongs to an account (server key and user). A replaced profile starts with an empty
//! outbox; messages for the old account are neither sent nor lost.

mod claimer;
mod database;
mod error;
mod read_only_copy;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tempfile::TempDir;
use twinlock_core::id::{ConversationId, Name, ServerKey};

use crate::home::Home;
use crate::limits::MAX_LISTED;
use crate::profile::Profile;
use claimer::{Claimer, OPENING};
use database::{check_not_lost, connect};
pub(crate) use database::{int, uint};
pub use error::StateError;
use read_only_copy::{copy_of, may_write, may_write_to};

/// The open state of one profile for one account. Clones share it.
#[derive(Debug, Clone)]
pub struct State {
    shared: Arc<OpenState>,
}

#[derive(Debug)]
struct OpenState {
    home: Home,
    profile: Name,
    server: i64,
    account: i64,
    /// This process has a session that sends the outbox, or is about to have one.
    sends_now: AtomicBool,
    /// The server's current key.
    server_key: ServerKey,
    /// The server keys in the first links of conversations, as the server sent them.
    origins: Mutex<BTreeMap<ConversationId, ServerKey>>,
    inner: Mutex<ClaimingConnection>,
    /// The directory of a temporary copy; declared after the connection, which uses it.
    copy: Option<TempDir>,
}

#[derive(Debug)]
struct ClaimingConnection {
    conn: Connection,
    claimer: Option<Claimer>,
}

impl State {
    /// Opens the state of a profile; creates it if it is missing.
    ///
    /// # Errors
    /// [`StateError`]; [`StateError::NewerSchema`] leaves the file untouched.
    pub fn open(home: &Home, profile: &Profile) -> Result<Self, StateError> {
        Self::open_for(home, profile.name(), profile.server_key(), profile.user())
    }

    /// [`Self::open`] with the profile's name and the account.
    ///
    /// If the disk is not writable, opens a temporary copy that is removed with the last handle;
    /// see [`Self::is_read_only`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open_for(
        home: &Home,
        profile: &Name,
        server_key: &ServerKey,
        user: &Name,
    ) -> Result<Self, StateError> {
        let dir = home.state(profile);
        let from_copy = || {
            check_not_lost(&dir.join("state.db"))?;
            let copy = copy_of(&dir, profile)?;
            let home = Home::at(copy.path());
            Self::open_in(&home, profile, server_key, user, Some(copy))
        };
        // Its files alone are not enough: claims are files as well.
        if dir.is_dir() && !may_write_to(&dir) {
            return from_copy();
        }
        match Self::open_in(home, profile, server_key, user, None) {
            Err(StateError::Disk(error)) if error.is_read_only() && !may_write(&dir) => from_copy(),
            opened => opened,
        }
    }

    /// Whether this is a temporary copy: writes are not kept, so nothing can be sent.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.shared.copy.is_some()
    }

    /// # Errors
    /// [`StateError::ReadOnly`].
    pub(crate) fn wants_disk(&self) -> Result<(), StateError> {
        if self.is_read_only() { Err(StateError::ReadOnly) } else { Ok(()) }
    }

    fn open_in(
        home: &Home,
        profile: &Name,
        server_key: &ServerKey,
        user: &Name,
        copy: Option<TempDir>,
    ) -> Result<Self, StateError> {
        let dir = home.make_state(profile)?;
        // Serialized: SQLite's busy handler does not cover the switch to WAL.
        let _opening = home.lock(profile, OPENING)?;
        Claimer::sweep(&dir)?;
        let mut conn = connect(&dir.join("state.db"))?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute("INSERT OR IGNORE INTO server (key) VALUES (?1)", [server_key.0])?;
        let server: i64 =
            tx.query_row("SELECT id FROM server WHERE key = ?1", [server_key.0], |row| row.get(0))?;
        let account = params![server, user.as_str()];
        tx.execute("INSERT OR IGNORE INTO account (server, user) VALUES (?1, ?2)", account)?;
        let account: i64 = tx.query_row(
            "SELECT id FROM account WHERE server = ?1 AND user = ?2",
            account,
            |row| row.get(0),
        )?;
        tx.commit()?;
        let inner = Mutex::new(ClaimingConnection { conn, claimer: None });
        let (home, profile) = (home.clone(), profile.clone());
        Ok(Self {
            shared: Arc::new(OpenState {
                home,
                profile,
                server,
                account,
                sends_now: AtomicBool::new(false),
                server_key: *server_key,
                origins: Mutex::default(),
                copy,
                inner,
            }),
        })
    }

    /// A number that changes when another process writes. Cheap: it reads no table. Writes of this
    /// process do not change it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn changes(&self) -> Result<i64, StateError> {
        Ok(self.lock().conn.query_row("PRAGMA data_version", [], |row| row.get(0))?)
    }

    /// Whether this process currently sends the outbox, and so claims messages as it enqueues them.
    /// Without a session, another process may send them first.
    pub(crate) fn sends_now(&self) -> bool {
        self.shared.sends_now.load(Ordering::Relaxed)
    }

    pub(crate) fn set_sends_now(&self, sends_now: bool) {
        self.shared.sends_now.store(sends_now, Ordering::Relaxed);
    }

    /// Stores the server key in a conversation's first link; `false` if there are too many
    /// conversations.
    pub(crate) fn learn_origin(&self, conversation: ConversationId, key: ServerKey) -> bool {
        let mut origins = self.shared.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if origins.len() >= MAX_LISTED && !origins.contains_key(&conversation) {
            return false;
        }
        origins.insert(conversation, key);
        true
    }

    /// The server key in a conversation's first link: as the server sent it, else its current key.
    pub(crate) fn origin(&self, conversation: ConversationId) -> ServerKey {
        let origins = self.shared.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.get(&conversation).copied().unwrap_or(self.shared.server_key)
    }

    pub(crate) fn server(&self) -> i64 {
        self.shared.server
    }

    pub(crate) fn account(&self) -> i64 {
        self.shared.account
    }

    /// Reads from one snapshot per call.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut inner = self.lock();
        let tx = inner.conn.transaction_with_behavior(TransactionBehavior::Deferred)?;
        read(&tx)
    }

    /// Writes in one transaction: on disk when it returns `Ok`, rolled back when it returns `Err`.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        // Immediate: a transaction that reads first and then finds another writer cannot wait.
        let mut inner = self.lock();
        let tx = inner.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = write(&tx)?;
        tx.commit()?;
        Ok(done)
    }

    /// [`Self::write`] for claims; also passes this handle's claimer name and a check whether
    /// another claimer is alive.
    pub(crate) fn write_claims<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>, &str, &dyn Fn(&str) -> bool) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut inner = self.lock();
        let ClaimingConnection { conn, claimer } = &mut *inner;
        let claimer = match claimer {
            Some(claimer) => claimer,
            none => none.insert(Claimer::new(&self.shared.home, &self.shared.profile)?),
        };
        let dir = self.shared.home.state(&self.shared.profile);
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = write(&tx, &claimer.name, &|other| Claimer::is_alive(&dir, other))?;
        tx.commit()?;
        Ok(done)
    }

    /// Ignores poisoning: a panic leaves no partial change, because transactions roll back on drop.
    fn lock(&self) -> MutexGuard<'_, ClaimingConnection> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
