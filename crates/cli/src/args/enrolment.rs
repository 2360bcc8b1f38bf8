//! Arguments of `join` and `login`.

use std::path::PathBuf;

use clap::Args;
use twinlock_client::target::lowercase_name;
use twinlock_core::id::Name;
use twinlock_core::invite::Address;

use super::common::PasswordArgs;
use super::values::{account, label};

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The invite link; `-` reads it from standard input
    pub(crate) link: String,
    /// Your user name; prompted for on a terminal
    #[arg(long, value_parser = lowercase_name)]
    pub(crate) user: Option<Name>,
    /// Label of this device [default: this machine's name]
    #[arg(long, value_name = "LABEL", value_parser = label)]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) password: PasswordArgs,
    /// Set no password: losing the last device loses the account
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) no_password: bool,
    /// Refuse to connect if TLS is intercepted
    #[arg(long)]
    pub(crate) require_binding: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// User and server
    #[arg(value_name = "USER@HOST[:PORT]", value_parser = account)]
    pub(crate) account: (Name, Address),
    #[command(flatten)]
    pub(crate) password: PasswordArgs,
    /// Label of this device [default: this machine's name]
    #[arg(long, value_name = "LABEL", value_parser = label)]
    pub(crate) device: Option<String>,
    /// Trust only this certificate authority (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// A proxy terminates TLS in front of the server: do not compare or warn
    #[arg(long)]
    pub(crate) behind_proxy: bool,
    /// Refuse to connect if TLS is intercepted
    #[arg(long, conflicts_with = "behind_proxy")]
    pub(crate) require_binding: bool,
}
