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

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, ffi, params};
use rusqlite_migration::{M, Migrations, SchemaVersion};
use tempfile::TempDir;
use thiserror::Error;
use twinlock_core::id::{ConversationId, Link, MessageId, Name, ServerKey};

use crate::disk;
use crate::home::{DiskError, Home};
use crate::limits::MAX_LISTED;
use crate::outbox::Outbox;
use crate::profile::Profile;
use crate::receipts::Receipts;
use crate::uploads::Uploads;

/// Busy handler: waits for another process's write, which takes milliseconds.
///
/// Polls every 200 µs for about a quarter of a second, then every 2 ms. Gives up after about ten
/// seconds, which allow for a machine or a disk that wakes up from sleep. SQLite's own handler
/// sleeps up to 100 ms and rarely hits the gaps of a process that writes continuously.
fn wait(tries: i32) -> bool {
    thread::sleep(Duration::from_micros(if tries < 1000 { 200 } else { 2000 }));
    tries < 6000
}

/// The lock for opening the database and creating claimers.
const OPENING: &str = "opening";

/// The database and its WAL.
const FILES: [&str; 2] = ["state.db", "state.db-wal"];
/// Maximum size of a database after an interrupted first use, in bytes.
const PAGE: u64 = 4096;
/// Pages in the WAL at which it is moved into the database. Every command reads the WAL when it opens
/// the state, and `send` writes 11 pages, so this is one checkpoint (two more syncs) in 12 messages.
const CHECKPOINT: i64 = 128;
/// Maximum number of attempts to copy a database that another process writes.
const COPIES: usize = 20;

/// The numbered schema files; append only.
const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("../migrations/0001_state.sql")),
    M::up(include_str!("../migrations/0002_transfers.sql")),
];

/// Errors of the client's state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StateError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A newer version of this program has written the database.
    #[error(
        "{} was written by a newer version (schema {found}, this one knows {known}): update this program",
        path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: usize,
        /// The newest schema version that this program knows.
        known: usize,
    },
    /// There was a state, and a part of it is missing.
    #[error(
        "{} {state}, but {} shows that there was one; nothing was changed. Put {} back from its backup, or, to start without the queued messages and the record's known links, move all of state.db* away",
        path.display(),
        trace.display(),
        path.display()
    )]
    Lost {
        /// The database or its WAL.
        path: PathBuf,
        /// "is missing" or "is empty".
        state: &'static str,
        /// The file that shows that there was a state.
        trace: PathBuf,
    },
    /// The disk is full.
    #[error("the disk that holds this profile's state is full")]
    Full,
    /// The disk of this profile is not writable.
    #[error(
        "this profile is on a disk that cannot be written to, so nothing can be sent or dropped"
    )]
    ReadOnly,
    /// Another process locked the database for longer than a write can take.
    #[error("another program holds this profile's state: try again")]
    Busy,
    /// Any other SQLite error.
    #[error("this profile's state failed: {0}")]
    Database(String),
    /// The message is longer than an entry may be.
    #[error("the message has {got} bytes; the limit is {max}")]
    TooLarge {
        /// Its length in bytes.
        got: usize,
        /// [`twinlock_core::limits::MAX_TEXT`].
        max: usize,
    },
    /// The string is not a valid target of a message.
    #[error("'{}' is neither a room name nor @ and a user name", got.escape_debug())]
    BadTarget {
        /// The given string.
        got: String,
    },
    /// The server sent a number that no record can have.
    #[error("{got} is not the number of an entry or conversation, nor a time")]
    OutOfRange {
        /// The number.
        got: u64,
    },
    /// Tamper evidence: the server's link for an entry differs from the known one.
    #[error(
        "entry {n} of conversation {conversation} was changed: its link was {known}, now it is {got}"
    )]
    Conflict {
        /// The conversation.
        conversation: ConversationId,
        /// The entry.
        n: u64,
        /// The known link.
        known: Link,
        /// The server's link.
        got: Link,
    },
    /// Tamper evidence: a message was acknowledged at another position than before, although the
    /// server always acknowledges an id at its first position.
    #[error("message {message_id} was recorded at one position and is now acknowledged at another")]
    AckChanged {
        /// The message.
        message_id: MessageId,
    },
}

impl From<rusqlite::Error> for StateError {
    fn from(error: rusqlite::Error) -> Self {
        let extended = error.sqlite_error().map(|error| error.extended_code);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            // The shared-memory file gets its full size at once, which fails only on a full disk.
            _ if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Database(error.to_string()),
        }
    }
}

/// The open state of one profile for one account. Clones share it.
#[derive(Debug, Clone)]
pub struct State {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
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
    inner: Mutex<Inner>,
    /// The directory of a temporary copy; declared after the connection, which uses it.
    copy: Option<TempDir>,
}

#[derive(Debug)]
struct Inner {
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
        let inner = Mutex::new(Inner { conn, claimer: None });
        let (home, profile) = (home.clone(), profile.clone());
        Ok(Self {
            shared: Arc::new(Shared {
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

    /// The outgoing messages.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.clone())
    }

    /// The outgoing files.
    #[must_use]
    pub fn uploads(&self) -> Uploads {
        Uploads::new(self.clone())
    }

    /// The known links.
    #[must_use]
    pub fn receipts(&self) -> Receipts {
        Receipts::new(self.clone())
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
        let Inner { conn, claimer } = &mut *inner;
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
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this process may write the state in `dir`. If it may, a failure has another cause, such
/// as a file of another user, and a copy would hide it.
fn may_write(dir: &Path) -> bool {
    let database = rustix::fs::access(dir.join("state.db"), rustix::fs::Access::WRITE_OK);
    may_write_to(dir) && (database.is_ok() || database == Err(rustix::io::Errno::NOENT))
}

fn may_write_to(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Copies a state that is not writable into a temporary directory.
fn copy_of(dir: &Path, profile: &Name) -> Result<TempDir, StateError> {
    let temporary = std::env::temp_dir();
    let copy = tempfile::tempdir().map_err(DiskError::at(&temporary))?;
    let into = Home::at(copy.path()).make_state(profile)?;
    copy_still(dir, &into, |from, to| fs::copy(from, to))?;
    Ok(copy)
}

/// Copies the database files, and repeats until none changed during the copy. Another process may
/// write them, and a database with the WAL of another time is corrupt.
fn copy_still(
    dir: &Path,
    into: &Path,
    mut copy: impl FnMut(&Path, &Path) -> io::Result<u64>,
) -> Result<(), StateError> {
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let stamp = |name: &str| match fs::metadata(dir.join(name)) {
        Ok(found) => {
            let modified = (found.mtime(), found.mtime_nsec());
            Ok(Some((found.ino(), found.len(), modified)))
        }
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(DiskError::at(&dir.join(name))(error)),
    };
    let stamps = || FILES.into_iter().map(stamp).collect::<Result<Vec<_>, _>>();
    for _ in 0..COPIES {
        let before = stamps()?;
        for name in FILES {
            let (from, to) = (dir.join(name), into.join(name));
            match copy(&from, &to) {
                // Left by an earlier attempt.
                Err(error) if is_missing(&error) => drop(fs::remove_file(&to)),
                copied => _ = copied.map_err(DiskError::at(&from))?,
            }
            // The copy has the mode of the original.
            if to.exists() {
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600))
                    .map_err(DiskError::at(&to))?;
            }
        }
        if stamps()? == before {
            return Ok(());
        }
    }
    Err(StateError::Busy)
}

fn connect(path: &Path) -> Result<Connection, StateError> {
    // An absolute path is not read as a URI. The parents are resolved, because `NOFOLLOW` refuses a
    // symbolic link in any component.
    let dir = path.parent().unwrap_or(path);
    let dir = fs::canonicalize(dir).map_err(DiskError::at(dir))?;
    let path = &dir.join(path.file_name().unwrap_or_default());
    check_not_lost(path)?;
    // SQLite creates its other files with the mode of the database.
    disk::make_private_file(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)?;
    conn.busy_handler(Some(wait))?;
    let migrations = Migrations::from_slice(MIGRATIONS);
    let database = |error: rusqlite_migration::Error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => err.into(),
        other => StateError::Database(other.to_string()),
    };
    if let SchemaVersion::Outside(found) = migrations.current_version(&conn).map_err(database)? {
        let (found, known) = (found.get(), MIGRATIONS.len());
        return Err(StateError::NewerSchema { path: path.to_path_buf(), found, known });
    }
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Texts of recorded messages leave no trace in free pages of the database. In the WAL they stay
    // until it is overwritten from its start, after [`CHECKPOINT`] pages.
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
    if migrations.pending_migrations(&conn).map_err(database)? != 0 {
        migrations.to_latest(&mut conn).map_err(database)?;
    }
    // From now on the database file alone shows that there was a state.
    if fs::metadata(path).map_err(DiskError::at(path))?.len() <= PAGE {
        conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    }
    Ok(conn)
}

/// Detects a missing database or WAL.
///
/// The WAL stays when a process ends, so each of the two files shows that the other existed. SQLite
/// would delete a WAL without its database, and would open a database without its WAL as of the
/// last checkpoint.
fn check_not_lost(path: &Path) -> Result<(), StateError> {
    let length = |path: &Path| match fs::symlink_metadata(path) {
        // A symbolic link is refused when it is opened.
        Ok(found) if found.is_file() || found.is_symlink() => Ok(Some(found.len())),
        Ok(_) => Err(StateError::from(DiskError::at(path)(disk::not_a_file()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::at(path)(error).into()),
    };
    let [wal, shm] = ["-wal", "-shm"].map(|suffix| beside(path, suffix));
    let there = |length: Option<u64>| length.is_some_and(|length| length > 0);
    let state = |length| if length == Some(0) { "is empty" } else { "is missing" };
    let (database, log) = (length(path)?, length(&wal)?);
    // SQLite removes the `-shm` before the WAL, and writes an empty WAL where it opens a database without one.
    if !there(database) && there(log) {
        return Err(StateError::Lost { path: path.to_owned(), state: state(database), trace: wal });
    }
    if database.is_some_and(|length| length > PAGE) && log.is_none() && length(&shm)?.is_some() {
        return Err(StateError::Lost { path: wal, state: state(log), trace: shm });
    }
    Ok(())
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// A process that claims messages, identified by a locked file: the kernel releases the lock when
/// the process dies. A lease with a timeout would make the next process wait after a kill.
#[derive(Debug)]
struct Claimer {
    name: String,
    path: PathBuf,
    _file: File,
}

impl Claimer {
    fn new(home: &Home, profile: &Name) -> Result<Self, StateError> {
        // Excludes a sweep between creating the file and locking it.
        let _opening = home.lock(profile, OPENING)?;
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|error| StateError::Database(error.to_string()))?;
        let name = data_encoding::HEXLOWER.encode(&id);
        let path = Self::path(&home.state(profile), &name);
        let file = disk::open_private(&path)?;
        file.lock().map_err(DiskError::at(&path))?;
        Ok(Self { name, path, _file: file })
    }

    fn path(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("claim-{name}.lock"))
    }

    /// Removes the files of killed claimers. The caller holds the lock [`OPENING`].
    fn sweep(dir: &Path) -> Result<(), DiskError> {
        for entry in fs::read_dir(dir).map_err(DiskError::at(dir))? {
            let file = entry.map_err(DiskError::at(dir))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_prefix("claim-"));
            if let Some(name) = name.and_then(|name| name.strip_suffix(".lock")) {
                Self::is_alive(dir, name);
            }
        }
        Ok(())
    }

    /// Whether the claimer `name` is alive; removes the file of a dead one. In doubt it counts as
    /// dead: a claim saves work and decides nothing.
    fn is_alive(dir: &Path, name: &str) -> bool {
        let path = Self::path(dir, name);
        let Ok(file) = File::open(&path) else { return false };
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return true;
        }
        // If the removal fails, the next check repeats it.
        fs::remove_file(&path).ok();
        false
    }
}

impl Drop for Claimer {
    fn drop(&mut self) {
        // As in `is_alive`.
        fs::remove_file(&self.path).ok();
    }
}

/// Converts to SQLite's integers, which end at 2^63 - 1.
pub(crate) fn int(got: u64) -> Result<i64, StateError> {
    i64::try_from(got).map_err(|_| StateError::OutOfRange { got })
}

/// Converts back. The schema and [`int`] exclude negative numbers.
pub(crate) fn uint(stored: i64) -> u64 {
    stored.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn state_db__opens_with_wal_full_sync_and_secure_delete() {
        let dir = tempfile::tempdir().unwrap();
        let conn = connect(&dir.path().join("state.db")).unwrap();
        let pragma = |name: &str| -> String {
            let value = conn.query_row(
                &format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"),
                [],
                |row| row.get(0),
            );
            value.unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal");
        assert_eq!(pragma("synchronous"), "2");
        assert_eq!(pragma("foreign_keys"), "1");
        assert_eq!(pragma("secure_delete"), "1");
    }

    #[test]
    fn state_copy__is_consistent_or_fails_as_busy() {
        let (dir, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (db, wal) = (dir.path().join("state.db"), dir.path().join("state.db-wal"));
        fs::write(&db, "1").unwrap();
        fs::write(&wal, "1").unwrap();
        // The owner writes during the first two copies, then removes the WAL.
        let mut left = 4;
        let copied = copy_still(dir.path(), into.path(), |from, to| {
            let copied = fs::copy(from, to);
            if left > 0 {
                left -= 1;
                fs::write(&db, "2".repeat(10 - left)).unwrap();
                fs::write(&wal, "2").unwrap();
            } else if wal.exists() {
                fs::remove_file(&wal).unwrap();
            }
            copied
        });
        assert_eq!(copied, Ok(()));
        assert_eq!(fs::read(into.path().join("state.db")).unwrap(), fs::read(&db).unwrap());
        assert!(!into.path().join("state.db-wal").exists());
        let busy = copy_still(dir.path(), into.path(), |from, to| {
            fs::OpenOptions::new().append(true).open(&db)?.write_all(b"3")?;
            fs::copy(from, to)
        });
        assert_eq!(busy, Err(StateError::Busy));
    }

    #[test]
    fn state_copy__write_access_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        assert!(may_write(dir.path()));
        fs::write(dir.path().join("state.db"), "").unwrap();
        assert!(may_write(dir.path()));
        assert!(!may_write(&dir.path().join("missing")));
    }

    #[test]
    fn state_db__migrations_run_in_sequence_and_none_is_missing() {
        Migrations::from_slice(MIGRATIONS).validate().unwrap();
        let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
        assert_eq!(files.count(), MIGRATIONS.len());
    }
}
