//! Checks that the parts of the data directory belong together and none was lost.
//!
//! A first start creates every part; a later start creates none. An empty record in place of a lost
//! one would end every credential, and the sweep would remove every file. The first start writes
//! `first-start` before anything else and removes it once the record exists, so an interrupted
//! first start differs from a loss.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use twinlock_store::Store;
use twinlock_store_embedded::convert;

use super::heads::Heads;
use crate::config::Config;
use crate::error::StartError;
use crate::private::{self, Failed, failed};

/// The record's directory.
pub(crate) const RECORD: &str = "record";
/// The record of versions up to 0.1, or the file that refuses them.
pub(crate) const OLD_RECORD: &str = "record.db";
const MARK: &str = "first-start";
/// Files of the identity, in the order of their creation.
const IDENTITY: [&str; 3] =
    ["identity/opaque-setup", "identity/tls-key.pem", "identity/tls-cert.pem"];

/// Kind of start, by the state of the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartKind {
    /// The record does not exist yet, or the first start was interrupted.
    First,
    /// A record exists.
    Later,
}

/// Inspects the data directory and marks the beginning of a first start. Changes nothing else.
pub(super) fn inspect(
    data: &Path,
    config: &Config,
    heads: &Heads,
) -> Result<StartKind, StartError> {
    let marked = private::is_there(&data.join(MARK))?;
    let record = data.join(RECORD);
    let marker = record.join("marker");
    if convert::is_due(&data.join(OLD_RECORD), &record)? || private::is_there(&marker)? {
        check_identity(data, config, heads, marked)?;
        return Ok(if marked { StartKind::First } else { StartKind::Later });
    }
    if let Some(trace) = trace(data, marked)? {
        let missing = if listed(&record)?.is_empty() { record } else { marker };
        return Err(StartError::RecordLost { missing, trace, data: data.to_owned() });
    }
    if !marked {
        private::write(&data.join(MARK), b"")?;
    }
    Ok(StartKind::First)
}

/// Completes a first start: from here on a missing record is a lost one.
pub(super) fn complete_first_start(data: &Path) -> Result<(), Failed> {
    private::remove(&data.join(MARK))
}

/// Fails if the record refers to files and none exists, as when their disk is not mounted.
pub(super) async fn check_files(data: &Path, store: &dyn Store) -> Result<(), StartError> {
    let dir = data.join("files");
    if is_empty(&dir)? && !store.file_hashes(None, 1).await?.is_empty() {
        return Err(StartError::FilesLost(dir));
    }
    Ok(())
}

fn check_identity(
    data: &Path,
    config: &Config,
    heads: &Heads,
    marked: bool,
) -> Result<(), StartError> {
    let [setup, key, cert] = IDENTITY.map(|file| data.join(file));
    if !private::is_there(&setup)? {
        return Err(StartError::SetupLost(setup));
    }
    let self_made = config.own_files.is_none() && heads.tls_pin.is_some() && !marked;
    if self_made && !private::is_there(&key)? && !private::is_there(&cert)? {
        return Err(StartError::TlsKeyLost { key, heads: data.join(super::heads::FILE) });
    }
    Ok(())
}

/// Finds evidence of a lost record. During an incomplete first start, the files that it creates
/// before the record are not evidence.
fn trace(data: &Path, marked: bool) -> Result<Option<PathBuf>, Failed> {
    let segments = listed(&data.join(RECORD))?;
    if let Some(path) = segments.into_iter().find(|path| path.extension() == Some("log".as_ref())) {
        return Ok(Some(path));
    }
    let old = [OLD_RECORD, "record.db-wal", "record.db.before-log"];
    let others = [super::heads::FILE, super::heads::MISSING, "owner-invite"];
    for file in old.into_iter().chain(others) {
        let path = data.join(file);
        // A file that a start creates may be empty.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.len() > 0) {
            return Ok(Some(path));
        }
    }
    let files = data.join("files");
    for dir in listed(&files)? {
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let has_content = match name {
            "partial" => listed(&dir)?.iter().any(|user| !is_empty(user).unwrap_or(true)),
            // The first two hex digits of hashes.
            _ if name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit()) => !is_empty(&dir)?,
            // Not the server's, such as `lost+found` of a file system that is mounted here.
            _ => false,
        };
        if has_content {
            return Ok(Some(files));
        }
    }
    for file in IDENTITY.map(|file| data.join(file)) {
        if !marked && private::is_there(&file)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn is_empty(dir: &Path) -> Result<bool, Failed> {
    Ok(listed(dir)?.is_empty())
}

/// The paths in a directory; empty if it does not exist.
fn listed(dir: &Path) -> Result<Vec<PathBuf>, Failed> {
    let list = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        list => list.map_err(failed("read", dir))?,
    };
    list.map(|entry| entry.map(|entry| entry.path()).map_err(failed("read", dir))).collect()
}
