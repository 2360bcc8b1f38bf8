//! Copies of sources without a reliable size: standard input, pipes, devices, `/proc`.
//!
//! The copies are in the profile's state. The size must be known before the file is offered, and
//! the content must still exist after a lost connection.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::error::TransferError;
use super::source::{LocalFile, SourceKind, kind, look};
use crate::disk::{self, DiskError};
use crate::home::Home;
use crate::profile::Profile;
use crate::uploads::SourceFile;

/// The directory, below the profile's state.
const DIR: &str = "spool";
/// Maximum age of a copy. An older one is of a killed command that was not repeated.
const OLDEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes per read.
const PART: usize = 256 * 1024;

/// The copies that one command makes. Clones share them: a thread copies, a task watches.
#[derive(Debug, Clone, Default)]
pub struct Copies {
    bytes: Arc<AtomicU64>,
    made: Arc<Mutex<MadeCopies>>,
}

#[derive(Debug, Default)]
struct MadeCopies {
    paths: Vec<PathBuf>,
    /// No further copy may be made.
    discarded: bool,
}

impl Copies {
    /// Bytes read from sources so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Removes the copies, complete or not, so that none of them is sent.
    pub fn discard(&self) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.discarded = true;
        for path in made.paths.drain(..) {
            // The sweep removes a copy that stays.
            let _left = fs::remove_file(path);
        }
    }

    /// Creates a copy under the lock, so that [`Self::discard`] misses none.
    fn create(&self, dir: &Path) -> io::Result<NamedTempFile> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.discarded {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let permissions = fs::Permissions::from_mode(0o600);
        let mut builder = tempfile::Builder::new();
        let file = builder.prefix("in-").permissions(permissions).tempfile_in(dir)?;
        made.paths.push(file.path().to_path_buf());
        Ok(file)
    }
}

/// Prepares the file, device or pipe at `path` for sending; follows symbolic links.
///
/// A source without a reliable size is read to its end and kept until it is sent. Blocks, also
/// while a pipe has no writer.
///
/// # Errors
/// [`TransferError::NotAFile`] for a directory or a socket, or another [`TransferError`].
pub fn gather(
    home: &Home,
    profile: &Profile,
    path: &Path,
    copies: &Copies,
) -> Result<LocalFile, TransferError> {
    match kind(path)? {
        SourceKind::Sized => return look(path),
        SourceKind::None(what) => {
            return Err(TransferError::NotAFile { path: path.to_path_buf(), what });
        }
        SourceKind::Unsized => {}
    }
    let absolute = std::path::absolute(path).map_err(DiskError::at(path))?;
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut input = File::open(&absolute).map_err(DiskError::at(path))?;
    let size = input.metadata().map_err(DiskError::at(path))?.len();
    let name = name.unwrap_or_default();
    let found = spool_from(home, profile, (&name, path), &mut input, copies)?;
    // An empty file, or a small one that is a hole, needs no copy.
    if let Ok(sized) = look(path)
        && sized.source.size == size
        && found.source.size == size
    {
        // The sweep removes a copy that stays.
        let _left = fs::remove_file(&found.source.path);
        return Ok(sized);
    }
    Ok(found)
}

/// Copies all of `input` into a file called `name`, kept until it is sent. Blocks.
///
/// # Errors
/// [`TransferError`]; nothing is kept then.
pub fn spool(
    home: &Home,
    profile: &Profile,
    name: &str,
    input: &mut impl Read,
    copies: &Copies,
) -> Result<LocalFile, TransferError> {
    spool_from(home, profile, (name, Path::new("standard input")), input, copies)
}

/// [`spool`]; `from` names the input in errors.
fn spool_from(
    home: &Home,
    profile: &Profile,
    (name, from): (&str, &Path),
    input: &mut impl Read,
    copies: &Copies,
) -> Result<LocalFile, TransferError> {
    let dir = home.make_state(profile.name())?.join(DIR);
    disk::make_private_dir(&dir)?;
    sweep(&dir)?;
    let mut file = copies.create(&dir).map_err(DiskError::at(&dir))?;
    let mut hasher = blake3::Hasher::new();
    let mut part = vec![0; PART];
    loop {
        let read = match input.read(&mut part) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(DiskError::at(from)(error).into()),
        };
        let bytes = part.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        copies.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        hasher.update(bytes);
        file.as_file_mut().write_all(bytes).map_err(DiskError::at(&dir))?;
    }
    let (file, path) = file.keep().map_err(|error| DiskError::at(&dir)(error.error))?;
    let found = file.metadata().map_err(DiskError::at(&path))?;
    Ok(LocalFile {
        name: name.to_owned(),
        path: String::new(),
        source: SourceFile::of(&path, &found),
        mode: 0,
        modified_ms: 0,
        hash: Some(*hasher.finalize().as_bytes()),
    })
}

/// Removes copies that are older than [`OLDEST`].
fn sweep(dir: &Path) -> Result<(), DiskError> {
    for entry in fs::read_dir(dir).map_err(DiskError::at(dir))? {
        let path = entry.map_err(DiskError::at(dir))?.path();
        let age = File::open(&path).and_then(|file| file.metadata()?.modified());
        if age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > OLDEST)) {
            // Another process may have removed it first.
            let _gone = fs::remove_file(&path);
        }
    }
    Ok(())
}
