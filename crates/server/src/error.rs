//! Why a server did not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;
use twinlock_store::StoreError;
use twinlock_store_embedded::OpenError;
use twinlock_transport::tls::TlsFault;

use crate::identity::IdentityError;
use crate::private::Failed;

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot {doing} {}: {error}; {}", path.display(), data_hint(error))]
    Data {
        /// Verb for the message: read, write, make.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// [`crate::Config::websocket_path`] is not a path.
    #[error("{0:?} is not the path of a WebSocket, such as /twinlock")]
    WebsocketPath(String),
    /// The TLS key, the certificate or the setup is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The setup file does not contain an OPAQUE setup.
    #[error(
        "{} is not an OPAQUE setup; restore it from its backup (without it no credential of this record works)",
        .0.display()
    )]
    Setup(PathBuf),
    /// A record exists, but its setup is missing. A new setup would lock out every user.
    #[error(
        "{} is missing, but there is a record: restore it from its backup (without it no credential of this record works), or move the record away to start over",
        .0.display()
    )]
    SetupLost(PathBuf),
    /// A record existed before, and it is missing or empty.
    #[error(
        "{} is missing or empty, but {} shows that there was a record; nothing was changed. Restore the record from its backup. To create a new record under the same identity, move record*, files/, heads* and owner-invite out of {} and create an empty file `first-start` there; for a new server, name another directory with --data",
        missing.display(),
        trace.display(),
        data.display()
    )]
    RecordLost {
        /// The record's directory, or a file in it.
        missing: PathBuf,
        /// The data directory.
        data: PathBuf,
        /// The path that shows that there was a record.
        trace: PathBuf,
    },
    /// A record exists, but the generated TLS key that clients pin is missing.
    #[error(
        "{} is missing, and clients pin it; nothing was changed. Restore it from its backup. To start with a new key, which clients that pin the old one refuse, remove the line `tls-pin` from {}",
        key.display(),
        heads.display()
    )]
    TlsKeyLost {
        /// The key's file.
        key: PathBuf,
        /// The head file, which shows that there was such a key.
        heads: PathBuf,
    },
    /// Entries refer to files, but the directory of files is missing or empty.
    #[error(
        "{dir} is missing or empty, but the record has files; nothing was changed. Mount it or restore it from its backup. To start without the content of all files, create the directory {dir}/partial",
        dir = .0.display()
    )]
    FilesLost(PathBuf),
    /// The record cannot be opened.
    #[error(transparent)]
    Record(#[from] OpenError),
    /// An operation on the open record failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsFault),
    /// The server cannot listen on an address.
    #[error("cannot listen on {address}: {error}; {}", listen_hint(error, flag))]
    Listen {
        /// The setting that determines the port.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
    /// The owner invite could not be recorded.
    #[error("the owner's invite could not be recorded: is the disk full? The log has the reason")]
    OwnerInvite,
}

impl From<Failed> for StartError {
    fn from(Failed { doing, path, error }: Failed) -> Self {
        Self::Data { doing, path, error }
    }
}

fn data_hint(error: &io::Error) -> &'static str {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => "free space there, or name another directory with --data",
        _ => "name another directory with --data or mend its rights",
    }
}

fn listen_hint(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another program listens there ({flag} takes another port)")
        }
        io::ErrorKind::PermissionDenied => format!(
            "this user may not: ports below 1024 need CAP_NET_BIND_SERVICE ({flag} takes another port)"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address (--host takes another)".to_owned()
        }
        _ => format!("--host and {flag} take another address"),
    }
}
