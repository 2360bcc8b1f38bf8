//! Arguments of `status` and `audit`.

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
