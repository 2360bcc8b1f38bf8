//! Arguments of `put` and `get`.

use std::path::PathBuf;

use clap::Args;

use super::values::{Point, Target, rate};

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// Files, pipes or devices, `-` being standard input; and last the target: a room, or @ and a user
    // A single list, because an option between two lists would end the first.
    #[arg(required = true, num_args = 1.., value_name = "FILE... TARGET")]
    pub(crate) files: Vec<PathBuf>,
    /// What it is called there [default: its own name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Send the files in directories too, and keep their structure; symbolic links are left out
    #[arg(long, short)]
    pub(crate) recursive: bool,
    #[command(flatten)]
    pub(crate) moving: Moving,
}

impl Put {
    /// Removes the target from the end of the list.
    pub(crate) fn take_target(&mut self) -> Result<Target, String> {
        let last = self.files.pop().filter(|_| !self.files.is_empty());
        let last = last.ok_or("FILE and TARGET are wanted: what to send, and where")?;
        let text = last.to_string_lossy();
        text.parse().map_err(|problem| format!("'{}' is no TARGET: {problem}", text.escape_debug()))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// A room, or @ and a user
    pub(crate) target: Target,
    /// The files' entries: a number, `last`, or a time, which is the first file from then on
    #[arg(required = true, value_name = "N|TIME|last")]
    pub(crate) entries: Vec<Point>,
    /// Where to put it: a directory, a file, or `-` for standard output [default: here]
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Keep the right to execute it though somebody else sent it
    #[arg(long)]
    pub(crate) keep_mode: bool,
    #[command(flatten)]
    pub(crate) moving: Moving,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Moving {
    /// At most so many bytes a second in all, such as 500K or 2.5M (16K at least)
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) limit: Option<u64>,
    /// How many at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=8)
    )]
    pub(crate) jobs: u8,
    /// Print what happens as JSON: start, progress, done, failed
    #[arg(long)]
    pub(crate) json: bool,
}
