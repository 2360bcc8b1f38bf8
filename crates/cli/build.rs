//! The commit, for `--version` (without git, in a source archive, there is none), and the one thing
//! that has to happen before Rust's own start-up.

use std::process::Command;

fn main() {
    // It grows with each commit and each checkout, and with nothing else.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    match log.filter(|path| std::path::Path::new(path).exists()) {
        Some(path) => println!("cargo:rerun-if-changed={path}"),
        None => println!("cargo:rerun-if-changed=build.rs"),
    }
    let commit = git(&["rev-parse", "--short=10", "HEAD"])
        .map(|commit| format!(" ({commit})"))
        .unwrap_or_default();
    println!("cargo:rustc-env=TWINLOCK_COMMIT={commit}");
    println!("cargo:rerun-if-changed=c/closed_streams.c");
    // Whole, since nothing refers to it.
    cc::Build::new()
        .file("c/closed_streams.c")
        .link_lib_modifier("+whole-archive")
        .compile("closed_streams");
}

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok().filter(|out| out.status.success())?;
    String::from_utf8(out.stdout).ok().map(|text| text.trim().to_owned())
}
