//! Arguments of `put` and `get`.

use std::path::PathBuf;

use clap::Args;
use twinlock_client::Target;

use super::values::{Point, rate};

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// Files, pipes or devices, or `-` for standard input; then the target: a room, or @ and a user
    // A single list, because an option between two lists would end the first.
    #[arg(required = true, num_args = 1.., value_name = "FILE... TARGET")]
    pub(crate) files: Vec<PathBuf>,
    /// Name of the file in the conversation [default: its own name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Send directories with their structure; symbolic links are skipped
    #[arg(long, short)]
    pub(crate) recursive: bool,
    #[command(flatten)]
    pub(crate) transfer: TransferArgs,
}

impl PutArgs {
    /// Removes the target from the end of the list.
    pub(crate) fn take_target(&mut self) -> Result<Target, String> {
        let last = self.files.pop().filter(|_| !self.files.is_empty());
        let last = last.ok_or("FILE and TARGET are required: what to send, and where")?;
        let text = last.to_string_lossy();
        text.parse()
            .map_err(|problem| format!("'{}' is not a TARGET: {problem}", text.escape_debug()))
    }
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// A room, or @ and a user
    pub(crate) target: Target,
    /// The files' entries: a number, `last`, or a time (the first file from then on)
    #[arg(required = true, value_name = "N|TIME|last")]
    pub(crate) entries: Vec<Point>,
    /// Destination: a directory, a file, or `-` for standard output [default: current directory]
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long)]
    pub(crate) force: bool,
    /// Keep the execute permission of a file from another user
    #[arg(long)]
    pub(crate) keep_mode: bool,
    #[command(flatten)]
    pub(crate) transfer: TransferArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TransferArgs {
    /// Limit the total rate in bytes a second, such as 500K or 2.5M (at least 16K)
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) limit: Option<u64>,
    /// Number of concurrent transfers
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=8)
    )]
    pub(crate) jobs: u8,
    /// Print events as JSON: start, progress, done, failed
    #[arg(long)]
    pub(crate) json: bool,
}
