//! Arguments of `classic`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use twinlock_client::target::{Target, lowercase_name};
use twinlock_core::id::Name;

use super::common::JsonArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum ClassicCommand {
    /// Create a key, print it once, and show how to use it
    Add(ClassicAddArgs),
    /// List the valid keys
    List(JsonArgs),
    /// Revoke a key, and close its connections
    Revoke {
        /// Name of the key
        #[arg(value_parser = lowercase_name)]
        name: Name,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ClassicAddArgs {
    /// Name of the key, shown with each entry that it writes
    #[arg(value_parser = lowercase_name)]
    pub(crate) name: Name,
    /// The only room that the key may write to
    #[arg(long, value_name = "ROOM")]
    pub(crate) to: Target,
    /// jwe: one JSON Web Encryption a line; origin, origin-hmac: the origin's format, for clients
    /// that cannot be changed
    #[arg(long, default_value = "jwe")]
    pub(crate) format: ClassicFormat,
    /// Import the 32-byte key of unchanged programs from this file (raw, hex or base64), with
    /// --format origin or origin-hmac
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Print a JSON object, without examples
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClassicFormat {
    Jwe,
    Origin,
    OriginHmac,
}
