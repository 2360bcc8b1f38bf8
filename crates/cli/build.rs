//! The commit, for `--version`; without git (a source archive) there is none.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=../../.git/HEAD");
    println!("cargo:rerun-if-changed=../../.git/index");
    let git = Command::new("git").args(["rev-parse", "--short=10", "HEAD"]).output();
    let commit = git
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok())
        .map(|commit| format!(" ({})", commit.trim()))
        .unwrap_or_default();
    println!("cargo:rustc-env=TWINLOCK_COMMIT={commit}");
}
