//! Arguments of `status` and `audit`.

use clap::{Args, Subcommand};

use super::common::Json;

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Rekey the session, and show the epochs before and after
    #[arg(long)]
    pub(crate) rekey: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Re-read the record and check every link against the receipts this profile holds
    Verify(Json),
}
