//! Directories of tests.

use std::path::Path;
use std::process::Command;

/// Copies what a directory contains, with modes and times, into another one, which may exist.
///
/// # Panics
/// If that fails.
pub fn copy_dir(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(done.unwrap().success(), "cp {} {}", from.display(), to.display());
}
