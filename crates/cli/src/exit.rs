//! How a command ends: one mapping from errors to exit codes and messages.

use std::fmt;
use std::process::ExitCode;

use twinlock_client::error::{ClientError, Fault, RefusalReason};
use twinlock_client::home::{DiskError, HomeError};
use twinlock_client::profile::ProfileError;
use twinlock_client::state::StateError;
use twinlock_client::transfer::TransferError;

use twinlock_client::Target;

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Success, also if the reader of our output is gone.
    Done = 0,
    /// The command line, a file or this machine is at fault.
    Usage = 2,
    /// The server refuses the client's credential.
    Refused = 3,
    /// The server's identity is not trusted, or TLS is intercepted where that is not allowed.
    NotTrusted = 4,
    /// No connection.
    NoConnection = 5,
    /// In the outbox, not recorded.
    Queued = 6,
    /// The server refuses the request.
    ServerSaidNo = 7,
    /// A hash or link does not match.
    Mismatch = 8,
    /// Timed out.
    TimedOut = 9,
    /// Interrupted by Ctrl-C or a signal.
    Interrupted = 130,
}

/// The rule for file names; users and rooms have another one.
const FILE_NAME: &str = "the server does not accept the file's name: 1 to 255 bytes without '/', \
                         newlines and other control characters, and neither '.' nor '..'";

impl Exit {
    /// The worse of two codes that one command ends with: the higher one, except that evidence
    /// against the record or the server's identity is worse than anything else.
    pub(crate) fn worse(self, other: Self) -> Self {
        let rank = |exit: Self| match exit {
            Self::NotTrusted => 21,
            Self::Mismatch => 20,
            exit => exit as u8 % 20,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What happened. Empty if it was already printed.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// Whether the server refused it because of the room or person that was named.
    is_of_target: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), hint: None, is_of_target: false }
    }

    /// The server refuses the request.
    pub(crate) fn refused(message: impl fmt::Display, why: RefusalReason) -> Self {
        let of_target = [
            RefusalReason::NotFound,
            RefusalReason::NotAllowed,
            RefusalReason::ReadOnly,
            RefusalReason::NameTaken,
            RefusalReason::NameBad,
        ];
        Self { is_of_target: of_target.contains(&why), ..Self::new(Exit::ServerSaidNo, message) }
    }

    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A failure that was already printed.
    pub(crate) fn said(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    pub(crate) fn interrupted() -> Self {
        Self::said(Exit::Interrupted)
    }

    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Names the room or person in a refusal about one, unless the message already does.
    pub(crate) fn about(mut self, subject: &Target) -> Self {
        let subject = subject.to_string();
        let is_part = |c: char| c.is_alphanumeric() || "@._-".contains(c);
        let stands_there = self.message.split(|c| !is_part(c)).any(|word| word == subject);
        if self.is_of_target && !stands_there {
            self.message = format!("{subject}: {}", self.message);
        }
        self
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

pub(crate) fn exit_of(fault: Fault) -> Exit {
    match fault {
        Fault::Local => Exit::Usage,
        Fault::Credentials => Exit::Refused,
        Fault::ServerIdentity => Exit::NotTrusted,
        Fault::Network => Exit::NoConnection,
        Fault::Request => Exit::ServerSaidNo,
        Fault::Record => Exit::Mismatch,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = exit_of(error.fault());
        let failure = Self::new(exit, &error);
        match error {
            ClientError::Tampered(_)
            | ClientError::Truncated { .. }
            | ClientError::State(StateError::Conflict { .. } | StateError::AckChanged { .. }) => {
                failure.hint(
                    "this server's record differs from the one this client has seen. Ask its owner \
                     what happened (a backup put back?), and compare with others: \
                     `twinlock audit verify`",
                )
            }
            ClientError::TlsCut { .. } => failure.hint(
                "use a network without it. If you know this proxy and accept that it sees names, \
                 sizes and times, leave out --require-binding, or set binding = \"warn\" in the \
                 profile (a server with `--binding require` refuses it all the same)",
            ),
            ClientError::Unreachable { .. } => {
                failure.hint("is the server running, and is the address right?")
            }
            ClientError::Refused(no) if exit == Exit::ServerSaidNo => {
                Self::refused(failure.message, no.why)
            }
            _ => failure,
        }
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        let exit = exit_of(error.fault());
        match error {
            TransferError::Client(ClientError::Refused(no)) if no.why == RefusalReason::Storage => {
                Self::new(exit, ClientError::Refused(no))
                    .hint("once it has free space, the same command resumes it")
            }
            TransferError::Client(ClientError::Refused(no)) if no.why == RefusalReason::NameBad => {
                Self::new(exit, FILE_NAME).hint("`put --name NAME` records the file as NAME")
            }
            TransferError::Client(error) => error.into(),
            // The same as for any other output.
            TransferError::Gone => Self::said(Exit::Done),
            TransferError::Exists(_) => {
                Self::new(exit, &error).hint("--force overwrites it, and -o names another path")
            }
            TransferError::Disk(error) if error.is_full() => Self::new(exit, &error)
                .hint("free space there or choose another directory; the same command resumes"),
            error => Self::new(exit, &error),
        }
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<HomeError> for Failure {
    fn from(error: HomeError) -> Self {
        Self::usage(error)
    }
}
