//! Arguments of `status`, `audit` and `records`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::common::JsonArgs;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Rekey the session, and show the epochs before and after
    #[arg(long)]
    pub(crate) rekey: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Re-read the record and check every link against the receipts this profile holds
    Verify(JsonArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RecordsCommand {
    /// Check the whole record of a server that is not running
    #[command(after_help = "Example:\n  twinlock records check /var/lib/twinlock\n\n\
        It reads every batch, entry, link and MAC of the record, and compares the databases beside\n\
        it. It changes nothing. Exits with 0 only if everything verifies, else with 8.")]
    Check(RecordsCheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RecordsCheckArgs {
    /// The server's data directory, as of `serve --data`
    #[arg(value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
