//! Arguments of `people`, `invite`, `invites`, `devices` and `passwd`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use twinlock_client::directory::Role;
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
        /// A device of another person
        #[arg(long, value_parser = lowercase_name)]
        user: Option<Name>,
        #[command(flatten)]
        password: PasswordArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PeopleArgs {
    #[command(subcommand)]
    pub(crate) action: Option<PeopleAction>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PeopleAction {
    /// Change a person's role
    Role {
        #[arg(value_parser = lowercase_name)]
        user: Name,
        role: PersonRole,
    },
    /// List a person's devices
    Devices {
        #[arg(value_parser = lowercase_name)]
        user: Name,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// End all sessions of a person, and let the person do nothing until `restore`
    Suspend {
        #[arg(value_parser = lowercase_name)]
        user: Name,
    },
    /// End a suspension
    Restore {
        #[arg(value_parser = lowercase_name)]
        user: Name,
    },
    /// Remove a person for good, or your own account; messages stay, and so does the name
    Remove {
        #[arg(value_parser = lowercase_name)]
        user: Name,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        password: PasswordArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InvitesArgs {
    #[command(subcommand)]
    pub(crate) action: Option<InvitesAction>,
    /// Also those that were used, revoked or have expired
    #[arg(long)]
    pub(crate) all: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InvitesAction {
    /// Make an unused invite worthless
    Revoke {
        /// Its id, or the first digits of it
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// Role of the user who registers with it
    #[arg(long, default_value = "member")]
    pub(crate) role: PersonRole,
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
pub(crate) enum PersonRole {
    Member,
    Admin,
    Owner,
}

impl From<PersonRole> for Role {
    fn from(role: PersonRole) -> Self {
        match role {
            PersonRole::Member => Self::Member,
            PersonRole::Admin => Self::Admin,
            PersonRole::Owner => Self::Owner,
        }
    }
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
