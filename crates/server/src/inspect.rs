//! What can be said about a server's data directory and machine without starting a server, for
//! `twinlock doctor --data`. Nothing here creates or changes a file.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twinlock_core::opaque::ServerSetup;
pub use twinlock_store_embedded::convert::Room;
use twinlock_store_embedded::{CheckKeys, ReadLock, check_record, convert, examine_record};
pub use twinlock_store_embedded::{CheckProgress, Finding, RecordReport, RecordState};
use twinlock_transport::tls::ServerCert;

use crate::config::Config;
use crate::error::StartError;
use crate::identity;
use crate::limits::text_reserve::{DiskSpace, disk_space};
use crate::private;
use crate::server::{OLD_RECORD, RECORD, expected, heads_time};

/// State of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortCheck {
    /// A server could listen there.
    Free,
    /// A process listens there.
    Taken,
}

/// Free space of the record's disk, and what text leaves of it, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Free for this user.
    pub free: u64,
    /// Text stops at this.
    pub reserve: u64,
}

/// The canonical path of an existing data directory that no other user can write to, and the files
/// in it that other users can read. `None`: it does not exist.
///
/// # Errors
/// A message that names the directory.
pub fn directory(data: &Path) -> Result<Option<(PathBuf, Vec<PathBuf>)>, String> {
    if let Err(error) = fs::metadata(data)
        && error.kind() == ErrorKind::NotFound
    {
        return Ok(None);
    }
    let failed = |failed| StartError::from(failed).to_string();
    let dir = private::checked_directory(data).map_err(failed)?;
    let identity = dir.join("identity");
    let paths = ["record", "record.db", "record.db-wal", "record.db.before-log", "identity"]
        .map(|name| dir.join(name));
    let secrets = identity::SECRETS.map(|name| identity.join(name));
    let is_open = |path: &PathBuf| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::symlink_metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
    };
    let open = paths.into_iter().chain(secrets).filter(is_open).collect();
    Ok(Some((dir, open)))
}

/// Reads the identity, and returns its certificate. `None`: there is none yet.
///
/// # Errors
/// A message that names the file.
pub fn read_identity(config: &Config) -> Result<Option<ServerCert>, String> {
    let dir = config.data.join("identity");
    let read =
        identity::read(&dir, config.own_files.as_ref()).map_err(|error| error.to_string())?;
    let Some((setup, certificate)) = read else { return Ok(None) };
    match ServerSetup::from_bytes(&setup) {
        Ok(_) => Ok(Some(certificate)),
        Err(_) => Err(StartError::Setup(dir.join("opaque-setup")).to_string()),
    }
}

/// Checks the record quickly, unless a server has it open.
///
/// # Errors
/// A message that names the file.
pub fn record(data: &Path) -> Result<RecordState, String> {
    let (database, directory) = (data.join(OLD_RECORD), data.join(RECORD));
    examine_record(&database, &directory).map_err(|error| error.to_string())
}

/// The result of a check of the whole record.
#[derive(Debug)]
pub enum RecordCheck {
    /// There is none.
    Missing,
    /// It has the form of version 0.1, and the next start converts it.
    Old(Room),
    /// The findings, and totals.
    Done(RecordReport),
}

/// Checks the whole record of a server that is not running: each batch, entry, link and MAC of the
/// log, and the databases made from it.
///
/// # Errors
/// A message: a server has it open, the identity is missing or of another server, or a file cannot
/// be read.
pub fn whole_record(
    data: &Path,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<RecordCheck, StartError> {
    let data = private::checked_directory(data)?;
    let (database, directory) = (data.join(OLD_RECORD), data.join(RECORD));
    // A running conversion has both forms.
    let _lock = ReadLock::take(&directory)?;
    if let Some(room) = convert::room_for(&database, &directory)? {
        return Ok(RecordCheck::Old(room));
    }
    let identity = data.join("identity");
    let path = identity.join("opaque-setup");
    let Some(setup) = identity::read_setup(&identity)? else {
        return match private::is_there(&directory)? {
            true => Err(StartError::SetupLost(path)),
            false => Ok(RecordCheck::Missing),
        };
    };
    let setup = ServerSetup::from_bytes(&setup).map_err(|_| StartError::Setup(path))?;
    let (row, server) = (setup.row_key(), setup.server_key());
    let keys = CheckKeys { row: &row, server: &server };
    let (expected, damaged) = expected(&data)?;
    let report = check_record(&directory, keys, &expected, progress)?;
    Ok(report.map_or(RecordCheck::Missing, |mut report| {
        let note =
            |file| format!("{file} is damaged, so the entries that it names were not looked for");
        report.notes.extend(damaged.into_iter().map(note));
        RecordCheck::Done(report)
    }))
}

/// Each configured listening address, with the option that sets it.
#[must_use]
pub fn addresses(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let all = [
        ("--port", Some(config.listen)),
        ("--plain-port", config.plain),
        ("--classic-port", config.classic.lines),
        ("--origin-port", config.classic.origin),
    ];
    all.into_iter().filter_map(|(option, at)| Some((option, at?))).collect()
}

/// Whether a port is free.
///
/// # Errors
/// The system's error for an address that cannot be used.
pub fn port(address: SocketAddr) -> io::Result<PortCheck> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(PortCheck::Free),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(PortCheck::Taken),
        Err(error) => Err(error),
    }
}

/// Most unauthenticated connections under this configuration, which take a descriptor each. Sessions
/// come on top.
#[must_use]
pub fn unauthenticated(config: &Config) -> u64 {
    let classic = config.classic.lines.iter().chain(&config.classic.origin).count();
    (config.limits.unauthenticated + classic * config.classic.connections) as u64
}

/// Free space of the directory's disk.
///
/// # Errors
/// The system's error.
pub fn disk(config: &Config) -> io::Result<Disk> {
    let DiskSpace { free, reserve } = disk_space(&config.data, config.limits.text_reserve)?;
    Ok(Disk { free, reserve })
}

/// How far the clock is behind the newest entry that the last shutdown or upkeep noted. `None`: it
/// is not, or no entry is known.
#[must_use]
pub fn clock_behind(data: &Path, now: SystemTime) -> Option<Duration> {
    let newest = UNIX_EPOCH.checked_add(Duration::from_millis(heads_time(data)?))?;
    newest.duration_since(now).ok().filter(|behind| !behind.is_zero())
}
