//! The files of a conversion, and the renames that put the new record in place of the old one.
//!
//! | after step | `record.db` | `record.db.before-log` | `record.new/` | `record/` |
//! |---|---|---|---|---|
//! | before | old record | | | |
//! | the copy is built | old record | | new record | |
//! | `Linked` | old record | the same file | new record | |
//! | `Replaced` | refused by older programs | old record | new record | |
//! | `Renamed` | refused by older programs | old record | | new record |
//!
//! `record.db` always exists and says which form counts, so one rename decides.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags};

use crate::file_names::{resolve, wal, with_suffix};
use crate::log;
use crate::open_error::OpenError;

use super::{Hook, Step};

/// How long the old record is kept, unless an entry is erased before.
pub const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Newest schema of the old form.
pub(super) const NEWEST: u32 = 8;
/// Schema of the file in its place, which older programs refuse as written by a newer version.
const REPLACED: u32 = NEWEST + 1;
/// The tables by which older programs know a record. Without them they would call the file damaged.
const REPLACEMENT: &str = "
    CREATE TABLE users (moved_to_the_directory_record);
    CREATE TABLE conversations (moved_to_the_directory_record);
    CREATE TABLE entries (moved_to_the_directory_record);
    PRAGMA user_version = 9;";
const BEFORE: &str = "record.db.before-log";
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Offset of `PRAGMA user_version` in a database.
const USER_VERSION: usize = 60;

/// The files of a record in both forms.
#[derive(Debug, Clone)]
pub(super) struct RecordPaths {
    /// `record.db`.
    pub(super) database: PathBuf,
    /// `record.db.before-log`.
    before: PathBuf,
    /// `record.db.new`, which becomes `record.db`.
    replacement: PathBuf,
    /// `record`.
    pub(super) directory: PathBuf,
    /// `record.new`.
    pub(super) new: PathBuf,
}

/// Which form of a record is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// None of the old form.
    Nothing,
    /// The old form counts.
    Old,
    /// The new form counts, and does not have its name yet.
    Replaced,
    /// The new form is in its place.
    Done,
    /// The new form was there, and is missing.
    Lost,
}

impl RecordPaths {
    /// Resolves the symbolic links of the directory that both are in.
    pub(super) fn new(database: &Path, directory: &Path) -> Result<Self, OpenError> {
        let (database, directory) = (resolve(database)?, resolve(directory)?);
        Ok(Self {
            before: directory.with_file_name(BEFORE),
            replacement: with_suffix(&database, ".new"),
            new: with_suffix(&directory, ".new"),
            database,
            directory,
        })
    }

    /// The directory that has both forms.
    pub(super) fn parent(&self) -> &Path {
        self.database.parent().unwrap_or(Path::new("/"))
    }

    /// Which form is there.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] if both forms could count, or the file is no database.
    pub(super) fn place(&self) -> Result<Place, OpenError> {
        let version = schema(&self.database).map_err(|error| self.fault(&self.database, error))?;
        let new = |directory: &Path| Ok::<_, OpenError>(log::record_id(directory)?.is_some());
        let damaged = |path: &Path, problem: &str| self.damaged(path, problem);
        match version {
            Schema::NoDatabase => Err(damaged(&self.database, "it is not a database")),
            Schema::Missing if !has_wal(&self.database) => Ok(Place::Nothing),
            Schema::Missing => Err(damaged(&self.database, "it is missing, and its WAL is there")),
            Schema::Version(REPLACED) if new(&self.directory)? => Ok(Place::Done),
            Schema::Version(REPLACED) if new(&self.new)? => Ok(Place::Replaced),
            Schema::Version(REPLACED) => Ok(Place::Lost),
            Schema::Version(found) if found > REPLACED => Err(OpenError::Newer {
                path: self.database.clone(),
                found: usize::try_from(found).unwrap_or(usize::MAX),
                known: REPLACED as usize,
            }),
            Schema::Version(_) if self.is_occupied()? => Err(damaged(
                &self.directory,
                "it has a record, and so has record.db next to it: move away the one that is older",
            )),
            Schema::Version(_) => Ok(Place::Old),
        }
    }

    /// Whether the directory of the new record has anything.
    fn is_occupied(&self) -> Result<bool, OpenError> {
        match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.fault(&self.directory, error)),
            Ok(mut items) => Ok(items.next().is_some()),
        }
    }

    /// Removes what an interrupted conversion has left. The old form counts.
    pub(super) fn remove_unfinished(&self) -> Result<(), OpenError> {
        match fs::remove_dir_all(&self.new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.fault(&self.new, error));
            }
            _ => {}
        }
        self.remove(&self.replacement)?;
        self.remove(&with_suffix(&self.replacement, "-journal"))?;
        let inode = |path: &Path| fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()));
        match (inode(&self.before), inode(&self.database)) {
            (Ok(before), Ok(database)) if before == database => self.remove(&self.before),
            (Ok(_), _) => {
                let problem = "it is another record, which an earlier conversion has kept: move it \
                               away, and start again";
                Err(self.fault(&self.before, io::Error::other(problem)))
            }
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            (Err(error), _) => Err(self.fault(&self.before, error)),
        }
    }

    /// Fails if the file system has no hard links, which the switch needs: before the copy, which
    /// takes time.
    pub(super) fn check_links(&self) -> Result<(), OpenError> {
        self.link_before()?;
        self.remove(&self.before)
    }

    fn link_before(&self) -> Result<(), OpenError> {
        fs::hard_link(&self.database, &self.before).map_err(|error| {
            let problem = format!(
                "the conversion needs a hard link here, and the file system makes none ({error}): \
                 move the data directory to another file system"
            );
            self.fault(&self.before, io::Error::other(problem))
        })
    }

    /// Puts the new record, which is complete and on disk, in place of the old one.
    pub(super) fn switch(&self, hook: Hook<'_>) -> Result<(), OpenError> {
        self.close_old()?;
        hook(Step::Closed)?;
        self.write_replacement()?;
        self.link_before()?;
        sync_directory(self.parent())?;
        hook(Step::Linked)?;
        fs::rename(&self.replacement, &self.database)
            .map_err(|error| self.fault(&self.database, error))?;
        sync_directory(self.parent())?;
        hook(Step::Replaced)?;
        self.rename_new(hook)
    }

    /// Gives the new record its name.
    pub(super) fn rename_new(&self, hook: Hook<'_>) -> Result<(), OpenError> {
        // An empty directory. Not recursive: nothing else is removed.
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.fault(&self.directory, error));
            }
            _ => {}
        }
        fs::rename(&self.new, &self.directory)
            .map_err(|error| self.fault(&self.directory, error))?;
        sync_directory(self.parent())?;
        hook(Step::Renamed)
    }

    /// Copies the WAL of the old record into its database, so that it is one file.
    fn close_old(&self) -> Result<(), OpenError> {
        let fault = |error: rusqlite::Error| OpenError::Database {
            path: self.database.clone(),
            problem: error.to_string(),
        };
        if has_wal(&self.database) {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX
                | OpenFlags::SQLITE_OPEN_NOFOLLOW;
            let conn = Connection::open_with_flags(&self.database, flags).map_err(fault)?;
            conn.pragma_update(None, "synchronous", "FULL").map_err(fault)?;
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fault)?;
            conn.close().map_err(|(_, error)| fault(error))?;
        }
        if has_wal(&self.database) {
            let error = io::Error::other("another program has the record open");
            return Err(self.fault(&wal(&self.database), error));
        }
        for suffix in ["-wal", "-shm"] {
            self.remove(&with_suffix(&self.database, suffix))?;
        }
        // From now on, `forget_when_old` counts the days.
        let file = open_file(&self.database)?;
        // A restored file may be readable by others, and it stays for weeks.
        file.set_permissions(Permissions::from_mode(0o600))
            .and_then(|()| file.set_modified(SystemTime::now()))
            .and_then(|()| file.sync_all())
            .map_err(|error| self.fault(&self.database, error))
    }

    fn write_replacement(&self) -> Result<(), OpenError> {
        let path = &self.replacement;
        let fault = |error: rusqlite::Error| OpenError::Database {
            path: path.clone(),
            problem: error.to_string(),
        };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| self.fault(path, error))?;
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
        let conn = conn.map_err(fault)?;
        conn.execute_batch(REPLACEMENT).map_err(fault)?;
        conn.close().map_err(|(_, error)| fault(error))?;
        sync_file(path)
    }

    fn remove(&self, path: &Path) -> Result<(), OpenError> {
        match fs::remove_file(path) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Err(self.fault(path, error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn damaged(&self, path: &Path, problem: &str) -> OpenError {
        let (path, directory) = (path.to_path_buf(), self.parent().to_path_buf());
        OpenError::Damaged { path, directory, problem: problem.into() }
    }

    fn fault(&self, path: &Path, error: io::Error) -> OpenError {
        OpenError::File { path: path.to_path_buf(), error }
    }
}

/// Writes a `record.db` next to the record in `directory`, if there is none: an older program, which
/// knows no other form, would begin a new record.
pub(crate) fn refuse_older_programs(directory: &Path) -> Result<(), OpenError> {
    let paths = RecordPaths::new(&directory.with_file_name("record.db"), directory)?;
    let fault = |error| paths.fault(&paths.database, error);
    match schema(&paths.database).map_err(fault)? {
        Schema::Missing if !has_wal(&paths.database) => {}
        _ => return Ok(()),
    }
    paths.remove(&paths.replacement)?;
    paths.write_replacement()?;
    fs::rename(&paths.replacement, &paths.database).map_err(fault)?;
    sync_directory(paths.parent())
}

/// Removes the old record that the conversion of the record in `directory` has kept, and returns
/// whether there was one. An erased entry would stay readable in it.
///
/// # Errors
/// The cause, if it cannot be removed.
pub fn forget_old_record(directory: &Path) -> io::Result<bool> {
    let before = directory.with_file_name(BEFORE);
    match fs::remove_file(&before) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(()) => {
            File::open(before.parent().unwrap_or(Path::new("/")))?.sync_all()?;
            Ok(true)
        }
    }
}

/// [`forget_old_record`], if the conversion is longer ago than [`KEPT_FOR`].
///
/// # Errors
/// As [`forget_old_record`].
pub fn forget_when_old(directory: &Path, now: SystemTime) -> io::Result<bool> {
    let since = match fs::symlink_metadata(directory.with_file_name(BEFORE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        meta => meta?.modified()?,
    };
    match now.duration_since(since) {
        Ok(age) if age > KEPT_FOR => forget_old_record(directory),
        _ => Ok(false),
    }
}

enum Schema {
    /// The file is missing or empty.
    Missing,
    NoDatabase,
    Version(u32),
}

/// The schema's number in the file's header. An old record may have a newer one in its WAL, which
/// makes no difference here: the file of [`REPLACEMENT`] has none.
fn schema(database: &Path) -> io::Result<Schema> {
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = match options.open(database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Schema::Missing),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut head = Vec::new();
    file.take(100).read_to_end(&mut head)?;
    let version = head.get(USER_VERSION..).and_then(|rest| rest.first_chunk::<4>());
    Ok(match version {
        _ if head.is_empty() => Schema::Missing,
        Some(version) if head.starts_with(MAGIC) => Schema::Version(u32::from_be_bytes(*version)),
        _ => Schema::NoDatabase,
    })
}

/// Whether the WAL of a database that is not open contains anything.
pub(super) fn has_wal(database: &Path) -> bool {
    fs::symlink_metadata(wal(database)).is_ok_and(|meta| meta.len() > 0)
}

fn open_file(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NOFOLLOW;
    options.read(true).write(true).custom_flags(flags.bits().cast_signed());
    options.open(path).map_err(|error| OpenError::File { path: path.to_path_buf(), error })
}

pub(super) fn sync_file(path: &Path) -> Result<(), OpenError> {
    open_file(path)?.sync_all().map_err(|error| OpenError::File { path: path.to_path_buf(), error })
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), OpenError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| OpenError::File { path: directory.to_path_buf(), error })
}
