//! The command line: what can be said, and what it means.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use twinlock_client::profile::MAX_LABEL;
use twinlock_core::id::Name;
use twinlock_core::invite::Address;

/// The port that servers listen on where none is named.
pub(crate) const PORT: u16 = 8443;

/// A private line that people host themselves: server, terminal client and scripting tool.
///
/// Everything between client and server is locked twice: by TLS 1.3, and inside it by keys that
/// come from the account itself. The server keeps a durable, tamper-evident record and
/// acknowledges a message once it is on its disk.
#[derive(Debug, Parser)]
#[command(
    name = "twinlock",
    version = crate::VERSION,
    after_help = "Begin with `twinlock serve` on one machine, and `twinlock join LINK` with the link it prints.\n\
                  Exit codes: 0 done, 2 usage, 3 refused, 4 not trusted, 5 no connection, 6 queued,\n\
                  7 the server said no, 8 a hash or link did not match, 9 timed out, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Which profile to use [env: TWINLOCK_PROFILE] [default: default]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Everywhere")]
    pub(crate) profile: Option<String>,
    /// Connect there instead of where the profile says; it must be the same server
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "TWINLOCK_ADDRESS",
        value_parser = address,
        help_heading = "Everywhere"
    )]
    pub(crate) address: Option<Address>,
    /// Say nothing but what was asked for and what went wrong
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
    /// Write to the log what happens, and what is sent and received, sealed
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) verbose: bool,
    /// Give up after so long, such as 10s or 2m
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, help_heading = "Everywhere")]
    pub(crate) timeout: Option<Duration>,
    /// Colours
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        help_heading = "Everywhere"
    )]
    pub(crate) color: Color,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a server
    #[command(after_help = "Examples:\n  \
        twinlock serve                                   on this machine only\n  \
        twinlock serve --host 0.0.0.0 --public-host chat.example.org\n\n\
        The first start makes identity, certificate and record, and prints one invite for the \
        owner.\nSIGHUP reads the certificate anew; SIGTERM ends in order.")]
    Serve(Box<Serve>),
    /// Use an invite: register with this device
    #[command(after_help = "Examples:\n  \
        twinlock join 'twinlock://chat.example.org:8443/#AQ...'\n  \
        twinlock join --no-password --user sensor-1 LINK")]
    Join(Join),
    /// Log in with the password on a new device
    #[command(after_help = "Example:\n  twinlock login ada@chat.example.org")]
    Login(Login),
    /// Talk
    #[command(
        after_help = "Examples:\n  twinlock chat\n  twinlock chat ops\n  twinlock chat @bob\n\n\
        In it: /help /who /rooms /join /dm /history /status /quit; `exit` ends too."
    )]
    Chat(Chat),
    /// Send a message, or each line of standard input
    #[command(after_help = "Examples:\n  \
        twinlock send ops 'backup done'\n  \
        make 2>&1 | twinlock send @ada\n\n\
        Returns 0 once all of it is on the server's disk. What could not be recorded stays in the \
        outbox (exit 6)\nand goes out with the next command that connects. Blank lines are left out.")]
    Send(Send),
    /// Print what arrives
    #[command(after_help = "Examples:\n  \
        twinlock listen ops --json | jq .text\n  \
        twinlock listen --since all --count 10\n  \
        twinlock listen ops --exec ./handle    (each entry as JSON on its standard input)\n\n\
        It goes on where the last one of this profile ended.")]
    Listen(Listen),
    /// Read the record
    #[command(
        after_help = "Examples:\n  twinlock history ops --limit 20\n  twinlock history ops --search 'disk full'"
    )]
    History(History),
    /// List your rooms and conversations
    Rooms(Rooms),
    /// Make, join, leave and describe rooms
    #[command(subcommand)]
    Room(Room),
    /// List everybody on the server
    People(Json),
    /// List your devices, or revoke one
    Devices(Devices),
    /// Hand out access: make an invite link
    #[command(
        after_help = "Examples:\n  twinlock invite\n  twinlock invite --user bob --expires 2h"
    )]
    Invite(Invite),
    /// Change your password
    Passwd(Passwd),
    /// Show both locks as they stand
    Status(Json),
    /// Check the record
    #[command(subcommand)]
    Audit(Audit),
    /// Print a completion script for a shell
    Completions {
        /// For which
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// Where
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where identity and record live [default: $XDG_DATA_HOME/twinlock-server]
    #[arg(long, value_name = "DIR", env = "TWINLOCK_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// The address to listen on [default: 127.0.0.1]
    #[arg(long, env = "TWINLOCK_HOST")]
    pub(crate) host: Option<IpAddr>,
    /// The port; 0 takes a free one [default: 8443]
    #[arg(long, env = "TWINLOCK_PORT")]
    pub(crate) port: Option<u16>,
    /// Read settings from this TOML file; flags and environment go before it
    #[arg(long, value_name = "FILE", env = "TWINLOCK_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// What invite links name, if others reach this server under it
    #[arg(long, value_name = "NAME[:PORT]", env = "TWINLOCK_PUBLIC_HOST")]
    pub(crate) public_host: Option<String>,
    /// Your own certificate chain, PEM
    #[arg(long, value_name = "FILE", env = "TWINLOCK_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", env = "TWINLOCK_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Of the self-made certificate [default: ecdsa]
    #[arg(long, value_name = "TYPE", env = "TWINLOCK_TLS_KEY_TYPE")]
    pub(crate) tls_key_type: Option<KeyType>,
    /// What to do when TLS ends between a client and this server [default: warn]
    #[arg(long, value_name = "POLICY", env = "TWINLOCK_BINDING")]
    pub(crate) binding: Option<Binding>,
    /// A proxy ends TLS before this listener
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_BEHIND_PROXY")]
    pub(crate) behind_proxy: Option<bool>,
    /// With --behind-proxy: believe the PROXY protocol header (version 2) of this address
    #[arg(long = "proxy", value_name = "ADDRESS", env = "TWINLOCK_PROXY", value_delimiter = ',')]
    pub(crate) proxies: Vec<IpAddr>,
    /// Put each message's text into the log
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_LOG_MESSAGES")]
    pub(crate) log_messages: Option<bool>,
    /// How much to log: error, warn, info, debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "TWINLOCK_LOG_LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// Log lines as JSON
    #[arg(long, num_args = 0..=1, default_missing_value = "true", env = "TWINLOCK_LOG_JSON")]
    pub(crate) log_json: Option<bool>,
}

/// The key of a self-made certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyType {
    Ecdsa,
    Rsa2048,
}

/// What to do about TLS that ends in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Binding {
    Require,
    Warn,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The invite link; `-` reads it from standard input
    pub(crate) link: String,
    /// The name you want; asked for on a terminal
    #[arg(long, value_parser = name)]
    pub(crate) user: Option<Name>,
    /// What to call this device [default: this machine's name]
    #[arg(long, value_name = "LABEL", value_parser = label)]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) password: PasswordFile,
    /// Go without a password: who loses the last device loses the account
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) no_password: bool,
    /// Stop when TLS ends between you and the server
    #[arg(long)]
    pub(crate) require_binding: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Who and where
    #[arg(value_name = "USER@HOST[:PORT]", value_parser = account)]
    pub(crate) account: (Name, Address),
    #[command(flatten)]
    pub(crate) password: PasswordFile,
    /// What to call this device [default: this machine's name]
    #[arg(long, value_name = "LABEL", value_parser = label)]
    pub(crate) device: Option<String>,
    /// Trust this certificate authority (PEM) and no other key
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// A proxy ends TLS before the server, and that is intended
    #[arg(long)]
    pub(crate) behind_proxy: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PasswordFile {
    /// Read the password from this file (its last line end is not part of it)
    /// [env: TWINLOCK_PASSWORD holds the password itself]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// A room, or @ and a user
    #[arg(default_value = "lobby")]
    pub(crate) target: Target,
    /// Line by line instead of the full screen (the only mode for now)
    #[arg(long)]
    pub(crate) plain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// A room, or @ and a user
    pub(crate) target: Target,
    /// The message; without it, each line of standard input is one
    pub(crate) text: Option<String>,
    /// Print each acknowledgement as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Rooms and @users; none: everything you are in
    pub(crate) targets: Vec<Target>,
    /// Where to begin: all, new, or after entry N [default: where the last one ended, else new]
    #[arg(long, value_name = "all|new|N")]
    pub(crate) since: Option<Since>,
    /// End after so many entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Run this for each entry, which is handled once the command ends with 0
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// A room, or @ and a user
    pub(crate) target: Target,
    /// How many entries at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: u64,
    /// Only entries with numbers below
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) before: Option<u64>,
    /// Only entries that contain all these words, newest first
    #[arg(long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rooms {
    /// The rooms you could join, instead
    #[arg(long)]
    pub(crate) joinable: bool,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Room {
    /// Make a room that everybody on the server can join
    Create {
        /// Its name
        name: Target,
        /// What it is about
        #[arg(long, default_value = "")]
        topic: String,
    },
    /// Join a room
    Join {
        /// Its name
        name: Target,
    },
    /// Leave a room
    Leave {
        /// Its name
        name: Target,
    },
    /// List who is in a room
    Members {
        /// Its name
        name: Target,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show what a room is about, or say it anew
    Topic {
        /// Its name
        name: Target,
        /// The new topic
        text: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Json {
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Devices {
    #[command(subcommand)]
    pub(crate) action: Option<DeviceAction>,
    /// One JSON object a line
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
        password: PasswordFile,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// What whoever uses it may do
    #[arg(long, default_value = "member")]
    pub(crate) role: Role,
    /// How long it is good [default: 48h]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) expires: Option<Duration>,
    /// The only name it is for
    #[arg(long, value_parser = name)]
    pub(crate) user: Option<Name>,
    /// As a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    Member,
    Admin,
    Owner,
}

#[derive(Debug, Args)]
pub(crate) struct Passwd {
    /// Read the present password from this file [env: TWINLOCK_PASSWORD]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Read the new password from this file [env: TWINLOCK_NEW_PASSWORD]
    #[arg(long, value_name = "FILE")]
    pub(crate) new_password_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Re-read the record and check every link against the receipts this profile holds
    Verify(Json),
}

/// A room's name, or `@` and a user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Room(Name),
    User(Name),
}

impl Target {
    /// The room, for commands that want one.
    pub(crate) fn room(&self) -> Option<&Name> {
        match self {
            Self::Room(name) => Some(name),
            Self::User(_) => None,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Room(name) => write!(f, "{name}"),
            Self::User(name) => write!(f, "@{name}"),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some(user) => name(user).map(Self::User),
            None => name(text.strip_prefix('#').unwrap_or(text)).map(Self::Room),
        }
    }
}

/// Where `listen` begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    All,
    New,
    After(u64),
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "new" => Ok(Self::New),
            n => n.parse().map(Self::After).map_err(|_| "all, new or a number".to_owned()),
        }
    }
}

/// A name, folded: people write their names with capitals.
fn name(text: &str) -> Result<Name, String> {
    Name::new(&text.to_ascii_lowercase()).map_err(|error| error.to_string())
}

fn label(text: &str) -> Result<String, String> {
    let label = text.trim();
    if label.is_empty() || label.len() > MAX_LABEL || label.chars().any(char::is_control) {
        return Err(format!("1 to {MAX_LABEL} bytes without control characters"));
    }
    Ok(label.to_owned())
}

fn address(text: &str) -> Result<Address, String> {
    Address::parse(text, Some(PORT)).map_err(|_| "HOST or HOST:PORT".to_owned())
}

fn account(text: &str) -> Result<(Name, Address), String> {
    let (user, server) = text.split_once('@').ok_or("USER@HOST[:PORT]")?;
    Ok((name(user)?, address(server)?))
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
    let friendly = || text.parse::<jiff::SignedDuration>().ok();
    seconds
        .or_else(|| Duration::try_from(friendly()?).ok())
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "a time such as 90s, 10m, 48h or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_target_is_a_room_or_a_user_in_any_usual_spelling() {
        let parse = |text: &str| text.parse::<Target>().map(|t| t.to_string());
        assert_eq!(parse("ops").as_deref(), Ok("ops"));
        assert_eq!(parse("#Ops").as_deref(), Ok("ops"));
        assert_eq!(parse("@Ada").as_deref(), Ok("@ada"));
        for bad in ["", "@", "#", "a b", "@@a", "ä"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_written_as_people_do() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("48h"), Ok(Duration::from_secs(48 * 3600)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for bad in ["", "0", "-5s", "soon", "0s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_account_takes_the_default_port() {
        let (user, address) = account("Ada@example.org").unwrap();
        assert_eq!((user.as_str(), address.to_string()), ("ada", "example.org:8443".to_owned()));
        assert_eq!(account("ada@[::1]:9").unwrap().1.to_string(), "[::1]:9");
        assert!(account("example.org").is_err());
    }
}
