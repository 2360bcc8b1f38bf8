//! Arguments of `doctor`.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The server: an address, or an invite link, which stays unused (`-` reads one from standard
    /// input) [default: the profile's server]
    #[arg(value_name = "ADDRESS|LINK")]
    pub(crate) server: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
