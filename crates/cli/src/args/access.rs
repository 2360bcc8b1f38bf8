//! Arguments of `invite`, `devices` and `passwd`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use twinlock_client::target::lowercase_name;
use twinlock_core::id::Name;

use super::common::PasswordArgs;
use super::values::duration;

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    #[command(subcommand)]
    pub(crate) action: Option<DeviceAction>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceAction {
    /// Lock a device out at once; another than this one wants your password
    Revoke {
        /// Its id, or the first digits of it
        id: String,
        #[command(flatten)]
        password: PasswordArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// Role of the user who registers with it
    #[arg(long, default_value = "member")]
    pub(crate) role: InviteRole,
    /// How long it is good [default: 48h]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) expires: Option<Duration>,
    /// The only name it is for
    #[arg(long, value_parser = lowercase_name)]
    pub(crate) user: Option<Name>,
    /// The address in the link, without connecting there [default: the server's --public-host, else
    /// where this profile connects]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) public: Option<String>,
    /// Show the link as a QR code too; it is taller than 24 lines
    #[arg(long)]
    pub(crate) qr: bool,
    /// As a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum InviteRole {
    Member,
    Admin,
    Owner,
}

#[derive(Debug, Args)]
pub(crate) struct PasswdArgs {
    /// Read the present password from this file [env: TWINLOCK_PASSWORD]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Read the new password from this file [env: TWINLOCK_NEW_PASSWORD]
    #[arg(long, value_name = "FILE")]
    pub(crate) new_password_file: Option<PathBuf>,
}
