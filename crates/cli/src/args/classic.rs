//! Arguments of `classic`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use twinlock_core::id::Name;

use super::{Json, Target, name};

#[derive(Debug, Subcommand)]
pub(crate) enum Classic {
    /// Make a key, which is printed once, and show how to use it
    Add(Add),
    /// List the keys that can be used
    List(Json),
    /// Revoke a key, and end the lines under it
    Revoke {
        /// Its name
        #[arg(value_parser = name)]
        name: Name,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// What to call it: it is shown with everything that comes under it
    #[arg(value_parser = name)]
    pub(crate) name: Name,
    /// The one room that it may write to
    #[arg(long, value_name = "ROOM")]
    pub(crate) to: Target,
    /// jwe: JSON Web Encryption, a line each; origin, origin-hmac: the origin's own format, for
    /// clients that cannot be changed
    #[arg(long, default_value = "jwe")]
    pub(crate) format: Format,
    /// Take the 32-byte key that unchanged programs have built in from this file (raw, hex or base64) instead of
    /// making one; with --format origin or origin-hmac
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// As a JSON object, without examples
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Jwe,
    Origin,
    OriginHmac,
}
