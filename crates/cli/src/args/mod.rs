//! The command line: commands, options and the types of their values.

mod bench;
mod classic;
mod files;
mod serve;
mod values;
mod words;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use twinlock_core::id::Name;
use twinlock_core::invite::Address;

pub(crate) use bench::{Bench, Mode};
pub(crate) use classic::{Add as ClassicAdd, Classic, Format};
pub(crate) use files::{Get, Moving, Put};
pub(crate) use serve::{Binding, KeyType, LogLevel, Serve};
pub(crate) use values::{Point, Since, Target};
use values::{account, address, duration, label, name, text};
use words::target_and_text;
pub(crate) use words::{TargetAndText, parse};

use crate::exit::Failure;

/// The default port of a server.
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
    max_term_width = 80,
    after_help = "Examples:\n  \
                  twinlock serve        then, with the link that it prints:\n  \
                  twinlock join LINK\n  \
                  twinlock chat\n\n\
                  Exit codes: 0 recorded or done, 2 usage, 3 refused (who you are), 4 not trusted \
                  (who they are), 5 no connection, 6 queued, not recorded, 7 the server said no, \
                  8 a hash or link did not match, 9 timed out, 130 interrupted."
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
    /// Connect to this address instead of the profile's; it must be the same server
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "TWINLOCK_ADDRESS",
        hide_env_values = true,
        value_parser = address,
        help_heading = "Everywhere"
    )]
    pub(crate) address: Option<Address>,
    /// Connect to this host, a name or an IP address; keep the port
    // `serve` defines `--host` and `--port` as its listening address.
    #[arg(long, global = true, value_name = "HOST", help_heading = "Everywhere")]
    pub(crate) host: Option<String>,
    /// Connect to this port; keep the host
    #[arg(long, global = true, value_name = "N", help_heading = "Everywhere")]
    pub(crate) port: Option<u16>,
    /// Print only requested data and errors
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
    /// Log at DEBUG, including sealed frames
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) verbose: bool,
    /// Give up after this time, such as 10s or 2m
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, help_heading = "Everywhere")]
    pub(crate) timeout: Option<Duration>,
    /// Colours: auto (on a terminal, unless NO_COLOR is set or TERM is dumb), always or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) color: Color,
}

impl Global {
    /// The address to use instead of `known`: `--address`, with `--host` and `--port` replacing
    /// their part of it. `None` if none of the three is given.
    ///
    /// # Errors
    /// The parts do not form an address.
    pub(crate) fn reach(&self, known: &Address) -> Result<Option<Address>, Failure> {
        if self.host.is_none() && self.port.is_none() {
            return Ok(self.address.clone());
        }
        let base = self.address.as_ref().unwrap_or(known);
        let host = self.host.as_deref().unwrap_or(base.host());
        let port = self.port.unwrap_or(base.port());
        Address::new(host, port).map(Some).map_err(|_| {
            Failure::usage(format!(
                "--host '{}' --port {port} is not an address",
                host.escape_debug()
            ))
            .hint("--host takes a name or an IP address, --port takes 1 to 65535")
        })
    }
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
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
        The first start creates identity, certificate and record, and prints one invite link for \
        the owner.\nSIGHUP reloads the certificate; SIGTERM shuts down in order.")]
    Serve(Box<Serve>),
    /// Use an invite link: register and enrol this device
    #[command(after_help = "Examples:\n  \
        twinlock join 'twinlock://chat.example.org:8443/#AQ...'\n  \
        twinlock join --no-password --user sensor-1 LINK")]
    Join(Join),
    /// Log in with the password on a new device
    #[command(after_help = "Example:\n  twinlock login ada@chat.example.org")]
    Login(Login),
    /// Chat, line by line
    #[command(
        after_help = "Examples:\n  twinlock chat\n  twinlock chat ops\n  twinlock chat @bob\n\n\
        Commands: /help /who /rooms /join /dm /history /put /get /status /quit; `exit` quits."
    )]
    Chat(Chat),
    /// Send a message, or each line of standard input
    #[command(
        override_usage = "twinlock send [OPTIONS] TARGET [--] [TEXT]",
        after_help = "Examples:\n  \
        twinlock send ops 'backup done'\n  \
        twinlock send --json ops -- \"$TEXT\"    for any TEXT\n  \
        make 2>&1 | twinlock send @ada\n\n\
        Options go before TARGET. --timeout is how long to wait without progress [default: 30 s]. \
        Exits with 0 when the server has everything on disk. A message that is not recorded in time \
        stays in the outbox (exit 6); the next `send`, `chat` or `listen` sends it. Blank input \
        lines are skipped."
    )]
    Send(Send),
    /// Print new entries
    #[command(after_help = "Examples:\n  \
        twinlock listen ops --json | jq .text\n  \
        twinlock listen --since all --count 10\n  \
        twinlock listen ops --exec ./handle    gets each entry as JSON on stdin\n\n\
        It resumes where the last `listen` of this profile ended, and reconnects.")]
    Listen(Listen),
    /// List, drop or resend the messages of the outbox
    #[command(
        subcommand,
        after_help = "Examples:\n  twinlock outbox list\n  twinlock outbox drop 019c3f\n  \
                      twinlock outbox retry"
    )]
    Outbox(Outbox),
    /// Read the record
    #[command(
        after_help = "Examples:\n  twinlock history ops --limit 20\n  twinlock history ops --since 2h\n  \
                      twinlock history ops --search 'disk full'"
    )]
    History(History),
    /// Send files
    #[command(
        override_usage = "twinlock put [OPTIONS] FILE... TARGET",
        after_help = "Examples:\n  \
        twinlock put report.pdf photo.jpg ops\n  \
        twinlock put -r logs/ @ada\n  \
        tar c src | twinlock put - --name src.tar ops\n\n\
        Exits with 0 when the server has all files on disk. After an interruption the same command \
        resumes; a file that has changed is sent from the start."
    )]
    Put(Put),
    /// Fetch files, by the numbers of their entries
    #[command(after_help = "Examples:\n  \
        twinlock get ops 12\n  \
        twinlock get ops 12 -o report.pdf\n  \
        twinlock get ops 12 -o - | tar t\n\n\
        A file gets its name when its hash is verified. Until then it is .NAME.part, from which \
        the same command resumes.")]
    Get(Get),
    /// List your rooms and conversations
    #[command(after_help = "Examples:\n  twinlock rooms\n  twinlock rooms --joinable --json")]
    Rooms(Rooms),
    /// Create, join, leave and describe rooms
    #[command(
        subcommand,
        after_help = "Examples:\n  twinlock room create ops --topic 'what runs, and what does not'\n  \
                      twinlock room members ops"
    )]
    Room(Room),
    /// List the server's users
    #[command(after_help = "Example:\n  twinlock people --json | jq -r .user")]
    People(Json),
    /// List your devices, or revoke one
    #[command(after_help = "Examples:\n  twinlock devices\n  twinlock devices revoke 3f9a")]
    Devices(Devices),
    /// Create an invite link
    #[command(
        after_help = "Examples:\n  twinlock invite\n  twinlock invite --user bob --expires 2h\n  \
                      twinlock invite --public chat.example.org"
    )]
    Invite(Invite),
    /// Create, list and revoke keys for devices and scripts in any language
    #[command(
        subcommand,
        after_help = "Examples:\n  twinlock classic add lamp --to ops > lamp.key\n  \
                      twinlock classic list\n  twinlock classic revoke lamp\n\n\
                      The server needs the listener: twinlock serve --classic-port 8444"
    )]
    Classic(Classic),
    /// Change your password
    #[command(after_help = "Example:\n  twinlock passwd")]
    Passwd(Passwd),
    /// Show the state of both locks
    #[command(after_help = "Examples:\n  \
        twinlock status --json | jq .tls.binding\n  \
        twinlock status --rekey\n\n\
        A client rekeys each session 10 minutes after the last rekey if there was traffic.\n\
        `rekey-after = 60` in the profile's file, above [device], sets 60 seconds; the range\n\
        is 15 to 600.")]
    Status(Status),
    /// Check the record
    #[command(subcommand, after_help = "Example:\n  twinlock audit verify")]
    Audit(Audit),
    /// Measure a server: messages, fan-out, idle connections, logins, files
    #[command(after_help = "Examples:\n  \
        twinlock bench\n  \
        twinlock bench ops --mode messages --lines 16 --window 64\n  \
        twinlock bench --mode idle --lines 10000 --users 625 --server-pid 4711\n  \
        twinlock bench --mode fanout,logins --seconds 10 --json\n\n\
        Modes: messages, fanout, idle, logins, files. Messages go into a new room (bench-...), are\n\
        acknowledged after fsync and stay in the record; so does the file. A record cannot\n\
        remove entries yet. The client uses no outbox and verifies no links, so that the\n\
        server is measured. Ctrl-C ends a measurement and prints its result so far.")]
    Bench(Bench),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  twinlock completions bash > ~/.local/share/bash-completion/completions/twinlock"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "Example:\n  twinlock man ~/.local/share/man/man1")]
    Man {
        /// The directory
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The invite link; `-` reads it from standard input
    pub(crate) link: String,
    /// Your user name; prompted for on a terminal
    #[arg(long, value_parser = name)]
    pub(crate) user: Option<Name>,
    /// Label of this device [default: this machine's name]
    #[arg(long, value_name = "LABEL", value_parser = label)]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) password: PasswordFile,
    /// Set no password: losing the last device loses the account
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) no_password: bool,
    /// Refuse to connect if TLS is intercepted
    #[arg(long)]
    pub(crate) require_binding: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// User and server
    #[arg(value_name = "USER@HOST[:PORT]", value_parser = account)]
    pub(crate) account: (Name, Address),
    #[command(flatten)]
    pub(crate) password: PasswordFile,
    /// Label of this device [default: this machine's name]
    #[arg(long, value_name = "LABEL", value_parser = label)]
    pub(crate) device: Option<String>,
    /// Trust only this certificate authority (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// A proxy terminates TLS in front of the server, as intended
    #[arg(long)]
    pub(crate) behind_proxy: bool,
    /// Refuse to connect if TLS is intercepted
    #[arg(long, conflicts_with = "behind_proxy")]
    pub(crate) require_binding: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PasswordFile {
    /// Read the password from this file, or `-` for standard input; a final line end is removed
    /// [env: TWINLOCK_PASSWORD holds the password itself]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// A room, or @ and a user
    #[arg(default_value = "lobby")]
    pub(crate) target: Target,
    /// No line editor: never move the cursor or redraw, for screen readers and logs
    #[arg(long)]
    pub(crate) plain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// A room, or @ and a user; then the message. Without TEXT, or with `-`, each line of standard
    /// input is one message. A TEXT that begins with `-` goes after `--`
    #[arg(required = true, trailing_var_arg = true, value_name = "TARGET [--] [TEXT]")]
    words: Vec<String>,
    /// Print each acknowledgement as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Send {
    /// Splits the arguments into target and text.
    pub(crate) fn take_words(&mut self) -> Result<TargetAndText, Failure> {
        target_and_text(std::mem::take(&mut self.words))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Rooms and @users [default: all your conversations]
    pub(crate) targets: Vec<Target>,
    /// Start at: all, new, or after entry N [default: where the last `listen` ended, else new]
    #[arg(long, value_name = "all|new|N")]
    pub(crate) since: Option<Since>,
    /// Exit after N entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Run CMD for each entry, given as JSON on stdin; an entry is done when CMD exits with 0.
    /// Resumes from a position of its own
    #[arg(long, value_name = "CMD", value_parser = text)]
    pub(crate) exec: Option<String>,
    /// After N failures of CMD move the entry to the dead-letter file and continue; 0: retry
    /// without limit
    #[arg(long, value_name = "N", default_value_t = 0, requires = "exec")]
    pub(crate) exec_tries: u32,
    /// Download incoming files into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) get: Option<PathBuf>,
    /// Exit when the entries that exist now are done
    #[arg(long)]
    pub(crate) until_now: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Outbox {
    /// List the messages that are queued, or refused by the server
    List(Json),
    /// Remove messages; a queued message may already have reached the server
    Drop {
        /// Message ids, or the first or last digits of an id
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Queue the refused messages again, and send all messages
    Retry,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// A room, or @ and a user
    pub(crate) target: Target,
    /// Print at most N entries
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: u64,
    /// Only entries before this one: a number, a time such as 09:30 or 2h, or `last`
    #[arg(long, value_name = "N|TIME|last")]
    pub(crate) before: Option<Point>,
    /// Only this entry and later ones
    #[arg(long, value_name = "N|TIME|last")]
    pub(crate) since: Option<Point>,
    /// Only entries with all these words, newest first; the last one may be the first three or
    /// more letters of a word
    #[arg(long, value_name = "TEXT", value_parser = text)]
    pub(crate) search: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rooms {
    /// The rooms you could join, instead
    #[arg(long)]
    pub(crate) joinable: bool,
    /// Print one JSON object a line
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
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show the topic of a room, or set it
    #[command(override_usage = "twinlock room topic [OPTIONS] ROOM [--] [TEXT]")]
    Topic(Topic),
}

impl Command {
    /// The room or person that the command is about, if any.
    pub(crate) fn subject(&self) -> Option<Target> {
        match self {
            Self::Send(Send { words, .. }) | Self::Room(Room::Topic(Topic { words })) => {
                words.first()?.parse().ok()
            }
            Self::Put(put) => put.files.last()?.to_str()?.parse().ok(),
            Self::History(history) => Some(history.target.clone()),
            Self::Get(get) => Some(get.target.clone()),
            Self::Room(
                Room::Create { name, .. }
                | Room::Join { name }
                | Room::Leave { name }
                | Room::Members { name, .. },
            ) => Some(name.clone()),
            _ => None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Topic {
    /// The room; then the new topic. A TEXT that begins with `-` goes after `--`
    #[arg(required = true, trailing_var_arg = true, value_name = "ROOM [--] [TEXT]")]
    words: Vec<String>,
}

impl Topic {
    /// Splits the arguments into room and new topic.
    pub(crate) fn take_words(self) -> Result<TargetAndText, Failure> {
        target_and_text(self.words)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Rekey the session, and show the epochs before and after
    #[arg(long)]
    pub(crate) rekey: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Devices {
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
