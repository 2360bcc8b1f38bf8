//! The command line as a whole: every command with its help.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use twinlock_client::Target;

use super::access::{DevicesArgs, InviteArgs, InvitesArgs, PasswdArgs, PeopleArgs};
use super::bench::BenchArgs;
use super::classic::ClassicCommand;
use super::common::GlobalArgs;
use super::doctor::DoctorArgs;
use super::enrolment::{JoinArgs, LoginArgs};
use super::files::{GetArgs, PutArgs};
use super::messages::{ChatArgs, HistoryArgs, ListenArgs, OutboxCommand, SendArgs};
use super::rooms::{RoomCommand, RoomsArgs, TopicArgs};
use super::status::{AuditCommand, RecordsCommand, StatusArgs};
use crate::settings::ServeArgs;

/// Version and commit.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("TWINLOCK_COMMIT"));

/// A private line that people host themselves: server, terminal client and scripting tool.
///
/// Everything between client and server is locked twice: by TLS 1.3, and inside it by keys that
/// come from the account itself. The server keeps a durable, tamper-evident record and
/// acknowledges a message once it is on its disk.
#[derive(Debug, Parser)]
#[command(
    name = "twinlock",
    version = VERSION,
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
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Run a server
    #[command(after_help = "Examples:\n  \
        twinlock serve                                   on this machine only\n  \
        twinlock serve --host 0.0.0.0 --public-host chat.example.org\n\n\
        The first start creates identity, certificate and record, and prints one invite link for \
        the owner.\nSIGHUP reloads the certificate; SIGTERM shuts down in order.")]
    Serve(Box<ServeArgs>),
    /// Use an invite link: register and enrol this device
    #[command(after_help = "Examples:\n  \
        twinlock join 'twinlock://chat.example.org:8443/#AQ...'\n  \
        twinlock join --no-password --user sensor-1 LINK")]
    Join(JoinArgs),
    /// Log in with the password on a new device
    #[command(after_help = "Example:\n  twinlock login ada@chat.example.org")]
    Login(LoginArgs),
    /// Chat, line by line
    #[command(
        after_help = "Examples:\n  twinlock chat\n  twinlock chat ops\n  twinlock chat @bob\n\n\
        Commands: /help /who /rooms /join /dm /history /put /get /status /quit; `exit` quits."
    )]
    Chat(ChatArgs),
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
    Send(SendArgs),
    /// Print new entries
    #[command(after_help = "Examples:\n  \
        twinlock listen ops --json | jq .text\n  \
        twinlock listen --since all --count 10\n  \
        twinlock listen ops --exec ./handle    gets each entry as JSON on stdin\n\n\
        It resumes where the last `listen` of this profile ended, and reconnects.")]
    Listen(ListenArgs),
    /// List, drop or resend the messages of the outbox
    #[command(
        subcommand,
        after_help = "Examples:\n  twinlock outbox list\n  twinlock outbox drop 019c3f\n  \
                      twinlock outbox retry"
    )]
    Outbox(OutboxCommand),
    /// Read the record
    #[command(
        after_help = "Examples:\n  twinlock history ops --limit 20\n  twinlock history ops --since 2h\n  \
                      twinlock history ops --search 'disk full'"
    )]
    History(HistoryArgs),
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
    Put(PutArgs),
    /// Fetch files, by the numbers of their entries
    #[command(after_help = "Examples:\n  \
        twinlock get ops 12\n  \
        twinlock get ops 12 -o report.pdf\n  \
        twinlock get ops 12 -o - | tar t\n\n\
        A file gets its name when its hash is verified. Until then it is .NAME.part, from which \
        the same command resumes.")]
    Get(GetArgs),
    /// List your rooms and conversations
    #[command(after_help = "Examples:\n  twinlock rooms\n  twinlock rooms --joinable --json")]
    Rooms(RoomsArgs),
    /// Create, join, leave and describe rooms
    #[command(
        subcommand,
        after_help = "Examples:\n  twinlock room create ops --topic 'what runs, and what does not'\n  \
                      twinlock room members ops"
    )]
    Room(RoomCommand),
    /// List the server's users, change roles, suspend and remove people
    #[command(after_help = "Examples:\n  twinlock people --json | jq -r .user\n  \
                      twinlock people role bob admin\n  twinlock people suspend bob\n  \
                      twinlock people devices bob\n  \
                      twinlock people remove bob\n\nEach change is an entry in the room `audit`, which \
                      owners read:\n  twinlock history audit")]
    People(PeopleArgs),
    /// List your devices, or revoke one
    #[command(after_help = "Examples:\n  twinlock devices\n  twinlock devices revoke 3f9a\n  \
                      twinlock devices revoke --user bob 81c0")]
    Devices(DevicesArgs),
    /// Create an invite link
    #[command(
        after_help = "Examples:\n  twinlock invite\n  twinlock invite --user bob --expires 2h\n  \
                      twinlock invite --public chat.example.org"
    )]
    Invite(InviteArgs),
    /// List invites, or revoke one
    #[command(after_help = "Examples:\n  twinlock invites\n  twinlock invites --all --json\n  \
                      twinlock invites revoke 3f9a")]
    Invites(InvitesArgs),
    /// Create, list and revoke keys for devices and scripts in any language
    #[command(
        subcommand,
        after_help = "Examples:\n  twinlock classic add lamp --to ops > lamp.key\n  \
                      twinlock classic list\n  twinlock classic revoke lamp\n\n\
                      The server needs the listener: twinlock serve --classic-port 8444"
    )]
    Classic(ClassicCommand),
    /// Change your password
    #[command(after_help = "Example:\n  twinlock passwd")]
    Passwd(PasswdArgs),
    /// Show the state of both locks
    #[command(after_help = "Examples:\n  \
        twinlock status --json | jq .tls.binding\n  \
        twinlock status --rekey\n\n\
        A client rekeys each session 10 minutes after the last rekey if there was traffic.\n\
        `rekey-after = 60` in the profile's file, above [device], sets 60 seconds; the range\n\
        is 15 to 600.")]
    Status(StatusArgs),
    /// Find out why a client does not connect, or check a server's directory
    #[command(after_help = "Examples:\n  \
        twinlock doctor                         the server of the profile\n  \
        twinlock doctor chat.example.org:8443\n  \
        twinlock doctor 'twinlock://chat.example.org:8443/#AQ...'\n  \
        twinlock doctor --data /var/lib/twinlock\n\n\
        It tries each step of a connection: name, TCP, proxy, TLS, certificate, ALPN, each\n\
        transport, the handshake of the session, the clocks. For an ADDRESS the handshake\n\
        uses one of the 20 guesses a minute that the server allows this machine's address;\n\
        with a profile or a LINK it is a login, which uses none. Exits with 0 if all works,\n\
        else with the code of the first failure.")]
    Doctor(DoctorArgs),
    /// Check the record
    #[command(subcommand, after_help = "Example:\n  twinlock audit verify")]
    Audit(AuditCommand),
    /// Check the files of a server's record
    #[command(subcommand, after_help = "Example:\n  twinlock records check /var/lib/twinlock")]
    Records(RecordsCommand),
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
    Bench(BenchArgs),
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

impl CliCommand {
    /// The room or person that the command is about, if any.
    pub(crate) fn subject(&self) -> Option<Target> {
        match self {
            Self::Send(SendArgs { words, .. })
            | Self::Room(RoomCommand::Topic(TopicArgs { words })) => words.first()?.parse().ok(),
            Self::Put(put) => put.files.last()?.to_str()?.parse().ok(),
            Self::History(history) => Some(history.target.clone()),
            Self::Get(get) => Some(get.target.clone()),
            Self::Room(
                RoomCommand::Create { name, .. }
                | RoomCommand::Join { name }
                | RoomCommand::Leave { name }
                | RoomCommand::Members { name, .. },
            ) => Some(name.clone()),
            _ => None,
        }
    }
}
