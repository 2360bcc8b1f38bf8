//! What comes by standard input, kept in the profile's state: its size has to be known before it is
//! offered, and it has to be there still when a line is lost.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::error::TransferError;
use super::source::Found;
use crate::disk::{self, DiskError};
use crate::home::Home;
use crate::profile::Profile;
use crate::uploads::Source;

/// Where, below the profile's state.
const DIR: &str = "spool";
/// What is older is of a command that was killed and never asked for again.
const OLDEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes read at once.
const PART: usize = 256 * 1024;

/// Keeps all that `input` gives as a file called `name`, until it is sent. Blocks.
///
/// # Errors
/// [`TransferError`]; nothing is kept then.
pub fn spool(
    home: &Home,
    profile: &Profile,
    name: &str,
    input: &mut impl Read,
) -> Result<Found, TransferError> {
    let dir = home.make_state(profile.name())?.join(DIR);
    disk::make_private_dir(&dir)?;
    sweep(&dir)?;
    let mut file = tempfile::Builder::new()
        .prefix("in-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(&dir)
        .map_err(DiskError::at(&dir))?;
    let mut hasher = blake3::Hasher::new();
    let mut part = vec![0; PART];
    loop {
        let read = match input.read(&mut part) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(DiskError::at(Path::new("standard input"))(error).into()),
        };
        let bytes = part.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        file.as_file_mut().write_all(bytes).map_err(DiskError::at(&dir))?;
    }
    let (file, path) = file.keep().map_err(|error| DiskError::at(&dir)(error.error))?;
    let found = file.metadata().map_err(DiskError::at(&path))?;
    Ok(Found {
        name: name.to_owned(),
        source: Source::of(&path, &found),
        mode: 0,
        modified_ms: 0,
        hash: Some(*hasher.finalize().as_bytes()),
    })
}

/// Removes what nobody has asked for in a long time.
fn sweep(dir: &Path) -> Result<(), DiskError> {
    for entry in fs::read_dir(dir).map_err(DiskError::at(dir))? {
        let path = entry.map_err(DiskError::at(dir))?.path();
        let age = File::open(&path).and_then(|file| file.metadata()?.modified());
        if age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > OLDEST)) {
            // Another process may have been quicker.
            let _gone = fs::remove_file(&path);
        }
    }
    Ok(())
}
