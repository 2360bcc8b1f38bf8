//! `listen --exec`: runs a command for each entry, and keeps those that it cannot handle.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use twinlock_client::home::Lock;
use twinlock_client::model::Entry;

use crate::ask::SECRET_VARIABLES;
use crate::blocking::blocking;
use crate::context::Context;
use crate::entry::EntryJson;
use crate::exit::Failure;
use crate::output::json;

/// The position of `--exec`. It is separate, because a printed entry is not a handled one.
pub(super) const EXECUTED: &str = "exec";
/// Back-off after a failed `--exec`: the first and the longest delay.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The command of `--exec`.
pub(super) struct ExecCommand<'a> {
    pub(super) context: &'a Context,
    /// For the shell.
    pub(super) command: &'a str,
    /// Failures after which an entry becomes a dead letter; 0: never.
    pub(super) tries: u32,
}

impl ExecCommand<'_> {
    /// Runs the command with the entry as JSON on standard input until it exits with 0, or has
    /// failed `--exec-tries` times; then the entry becomes a dead letter.
    pub(super) async fn run(
        &self,
        name: &str,
        entry: &Entry,
        saved: Option<&Path>,
    ) -> Result<(), Failure> {
        let document = json(&EntryJson::new(name, entry).saved(saved)) + "\n";
        let mut pause = RETRY.0;
        let mut tries = 0;
        loop {
            let failed = |error| Failure::usage(format!("--exec could not be run: {error}"));
            let mut child = Command::new("sh");
            SECRET_VARIABLES.iter().for_each(|name| _ = child.env_remove(name));
            let child = child.args(["-c", self.command]).stdin(Stdio::piped());
            let alone = !has_terminal();
            if alone {
                child.process_group(0);
            }
            let mut child = child.spawn().map_err(failed)?;
            let mut group = TerminateOnDrop::of(&child, alone);
            if let Some(mut stdin) = child.stdin.take() {
                // A command may exit without reading it.
                let _unread = stdin.write_all(document.as_bytes()).await;
            }
            let status = child.wait().await.map_err(failed)?;
            group.pid = None;
            if status.success() {
                return Ok(());
            }
            tries += 1;
            let head = format!("--exec ended with {status} for entry {} of {name}", entry.n);
            if tries == self.tries {
                let file = self.add_dead_letter(document).await?;
                let (words, file) = (if tries == 1 { "try" } else { "tries" }, file.display());
                let words = format!("{head} after {tries} {words}; the entry is now in {file}");
                self.context.out.warn(&words);
                return Ok(());
            }
            let seconds = pause.as_secs();
            self.context.out.warn(&format!("{head}; trying again in {seconds} s"));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Appends an entry to this profile's dead letters and returns their path.
    async fn add_dead_letter(&self, document: String) -> Result<PathBuf, Failure> {
        let (home, profile) = (self.context.home()?, self.context.profile_name()?);
        blocking(move || home.add_dead_letter(&profile, document.as_bytes())).await
    }
}

/// Whether this process has a controlling terminal. A command in another process group could not
/// read from it, and Ctrl-Z would not stop it.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Sends SIGTERM to a command that is running when this is dropped: the next `listen` starts with
/// the same entry.
struct TerminateOnDrop {
    pid: Option<Pid>,
    /// The signal goes to the whole process group.
    group: bool,
}

impl TerminateOnDrop {
    fn of(child: &Child, group: bool) -> Self {
        Self { pid: child.id().and_then(|id| Pid::from_raw(id.cast_signed())), group }
    }
}

impl Drop for TerminateOnDrop {
    fn drop(&mut self) {
        let kill = if self.group { kill_process_group } else { kill_process };
        if let Some(pid) = self.pid {
            let _gone = kill(pid, Signal::TERM);
        }
    }
}

/// Allows one `--exec` per profile: two would share a position, and each would skip entries that
/// the other is still executing.
pub(super) fn only_one(context: &Context) -> Result<Lock, Failure> {
    let (home, profile) = (context.home()?, context.profile()?);
    home.try_lock(profile.name(), EXECUTED)?.ok_or_else(|| {
        Failure::usage("another `listen --exec` of this profile is running")
            .hint("a second one needs another profile: --profile NAME")
    })
}
