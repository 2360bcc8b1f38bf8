//! Arguments of `doctor`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The server: an address, or an invite link, which stays unused (`-` reads one from standard
    /// input) [default: the profile's server]
    #[arg(value_name = "ADDRESS|LINK")]
    pub(crate) server: Option<String>,
    /// Check a server's data directory on this machine instead; its owner runs this
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    pub(crate) data: Option<PathBuf>,
    /// With --data: the server's configuration file, for its ports and limits
    #[arg(long, value_name = "FILE", requires = "data")]
    pub(crate) config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
