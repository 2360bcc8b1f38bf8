//! The old record: SQL of all its schemas, and its files before SQLite reads them.
//!
//! It is read as it is and never migrated: a refused conversion leaves it to the program that wrote
//! it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};
use rustix::fs::OFlags;
use twinlock_store::StoreError;

use crate::database;
use crate::error::DbError;
use crate::file_names::{wal, with_suffix};
use crate::open_error::OpenError;
use crate::options::Expected;
use crate::people::{classic, credentials};
use crate::row::{get_uint, int};

use super::switch::{NEWEST, has_wal, sync_directory};

/// Page cache, KiB. The scan reads every page once.
const CACHE: i64 = 4 * 1024;

/// The open database of the old form.
pub(super) struct OldRecord {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    pub(super) sql: Queries,
}

/// SQL of a schema. That of [`Queries::NEWEST`] fits `people.db` too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries(u32);

impl OldRecord {
    /// Opens the database to read it. Its content and that of its WAL stay the same.
    pub(super) fn open(path: &Path, expected: &Expected) -> Result<Self, OpenError> {
        let had_wal = has_wal(path);
        check_files(path)?;
        rewrite_wal(path).map_err(|error| OpenError::File { path: wal(path), error })?;
        let sqlite = |error: rusqlite::Error| fault(path, error.into());
        let conn =
            if had_wal { with_wal(path) } else { database::unchanged(path) }.map_err(sqlite)?;
        let schema = || -> rusqlite::Result<(u32, i64)> {
            conn.pragma_update(None, "trusted_schema", false)?;
            conn.pragma_update(None, "cache_size", -CACHE)?;
            let tables = "SELECT count(*) FROM sqlite_schema
                WHERE type = 'table' AND name IN ('users', 'conversations', 'members', 'entries')";
            let version = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok((version, conn.query_row(tables, [], |row| row.get(0))?))
        };
        let (schema, tables) = schema().map_err(sqlite)?;
        if schema > NEWEST {
            let found = usize::try_from(schema).unwrap_or(usize::MAX);
            return Err(OpenError::Newer { path: path.into(), found, known: NEWEST as usize });
        }
        if schema == 0 || tables != 4 {
            return Err(damaged(path, "it is a database without the record of a server"));
        }
        if had_wal && let Some(problem) = mixed(&conn, path).map_err(sqlite)? {
            return Err(damaged(path, format!("it and its WAL do not belong together: {problem}")));
        }
        let record = Self { conn, path: path.to_path_buf(), sql: Queries(schema) };
        record.check(expected)?;
        Ok(record)
    }

    /// Refuses a record that lacks entries which were acknowledged.
    fn check(&self, expected: &Expected) -> Result<(), OpenError> {
        let select = "SELECT 1 FROM entries WHERE conversation = ?1 AND n = ?2 AND link = ?3";
        for at in &expected.entries {
            let found = self.conn.prepare_cached(select).and_then(|mut select| {
                select.exists(params![int(at.conversation), int(at.n), at.link.0])
            });
            if !found.map_err(|error| self.fault(error))? {
                return Err(self.damaged(format!(
                    "entry {} of conversation {}, which was acknowledged, is missing or another \
                     one: the record or its WAL is of an earlier time (to convert it nevertheless, \
                     move the file `heads` away)",
                    at.n, at.conversation
                )));
            }
        }
        Ok(())
    }

    /// The error of a row that does not verify.
    pub(super) fn damaged(&self, problem: impl Into<String>) -> OpenError {
        damaged(&self.path, problem)
    }

    /// The error of a failed operation on the database.
    pub(super) fn fault(&self, error: impl Into<DbError>) -> OpenError {
        fault(&self.path, error.into())
    }
}

impl Queries {
    pub(super) const NEWEST: Self = Self(NEWEST);

    /// All users, as [`credentials::get_person`] takes them, and their numbers.
    pub(super) fn users(self) -> String {
        // It has no states: all users are active.
        "SELECT name, role, password, created_ms, mac, 0, id FROM users ORDER BY id".to_owned()
    }

    /// All credentials, as [`credentials::read_row`] takes them.
    pub(super) fn credentials(self) -> String {
        format!("SELECT {} FROM credentials ORDER BY cid", credentials::COLUMNS)
    }

    /// All conversations.
    pub(super) fn conversations(self) -> String {
        let made_by = if self.0 >= 4 { "made_by" } else { "NULL" };
        format!(
            "SELECT id, name, low, high, topic, server_key, created_ms, {made_by}, members
             FROM conversations ORDER BY id"
        )
    }

    /// All members, with their read markers.
    pub(super) fn members(self) -> String {
        "SELECT conversation, user, read FROM members ORDER BY conversation, user".into()
    }

    /// All classic keys, as [`classic::read_row`] takes them.
    pub(super) fn classic_keys(self) -> Option<String> {
        let columns = match self.0 {
            0..3 => return None,
            3..7 => classic::COLUMNS.replace("k.sealed", "NULL"),
            _ => classic::COLUMNS.to_owned(),
        };
        Some(format!("SELECT {columns} FROM classic_keys k ORDER BY name"))
    }

    /// All login sources.
    pub(super) fn sources(self) -> Option<String> {
        let by_device = match self.0 {
            0..5 => return None,
            5..8 => "1",
            _ => "by_device",
        };
        Some(format!("SELECT tag, user, seen_ms, {by_device} FROM sources ORDER BY tag"))
    }

    /// All references to files.
    pub(super) fn files(self) -> Option<&'static str> {
        (self.0 >= 2).then_some("SELECT conversation, n, user, hash, size FROM files")
    }
}

/// The error of a record that does not verify.
fn damaged(path: &Path, problem: impl Into<String>) -> OpenError {
    let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    OpenError::Damaged { path: path.to_path_buf(), directory, problem: problem.into() }
}

fn fault(path: &Path, error: DbError) -> OpenError {
    match StoreError::from(error) {
        StoreError::Damaged(problem) => damaged(path, problem),
        StoreError::Full => {
            OpenError::File { path: path.to_path_buf(), error: io::ErrorKind::StorageFull.into() }
        }
        other => OpenError::Database { path: path.to_path_buf(), problem: other.to_string() },
    }
}

/// Refuses a database, WAL or `-shm` that is not a regular file.
fn check_files(path: &Path) -> Result<(), OpenError> {
    for path in [path.to_path_buf(), wal(path), with_suffix(path, "-shm")] {
        let error = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => continue,
            Ok(_) => io::Error::other("it is not a regular file"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => error,
        };
        return Err(OpenError::File { path, error });
    }
    Ok(())
}

/// Rewrites and syncs the WAL before SQLite recovers it.
///
/// A commit that was written and not synced when the server was killed may exist in the page cache
/// only. It is rewritten with its own content before it is synced: after a failed sync the kernel
/// takes the pages for written, and would sync nothing.
fn rewrite_wal(database: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.read(true).write(true).custom_flags(flags.bits().cast_signed());
    let mut file: File = match options.open(wal(database)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let (mut part, mut at) = (vec![0; 1024 * 1024], 0);
    loop {
        let read = match file.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            break;
        }
        file.write_all_at(part.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
    file.sync_all()?;
    sync_directory(database.parent().unwrap_or(Path::new("/"))).map_err(io::Error::other)
}

/// Why a database and its WAL cannot be of one time. SQLite accepts any WAL, and would copy it into
/// the database.
fn mixed(conn: &Connection, path: &Path) -> rusqlite::Result<Option<String>> {
    let value = |name| conn.pragma_query_value(None, name, |row| get_uint(row, 0));
    // A record only grows, and a checkpoint makes the file as long as the WAL says.
    let length = fs::symlink_metadata(path).map_or(0, |meta| meta.len());
    if length > value("page_count")?.saturating_mul(value("page_size")?) {
        return Ok(Some("the database is longer than the WAL knows".into()));
    }
    let check = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))?;
    Ok((check != "ok").then_some(check))
}

fn with_wal(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(conn)
}
