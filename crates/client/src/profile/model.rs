//! The content of a new profile, and the errors.

use std::path::PathBuf;

use thiserror::Error;
use twinlock_core::id::{BadName, DeviceId, Name, ServerKey, TlsPin};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::session::BindingPolicy;

use crate::home::DiskError;

/// The profile that is used if none is named.
pub const DEFAULT: &str = "default";
/// Maximum number of TLS pins: the current certificate key, the next one, and some to spare.
pub const MAX_PINS: usize = 8;
/// Maximum length of a device label in bytes.
pub const MAX_LABEL: usize = 64;

/// Errors of profiles.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The string is not a valid profile name.
    #[error("'{}' is not a profile name: {}", got.escape_debug(), BadName)]
    BadName {
        /// The given string.
        got: String,
    },
    /// No profile has this name.
    #[error("no profile '{name}' exists: `twinlock join` or `twinlock login` creates one")]
    Missing {
        /// The profile's name.
        name: Name,
    },
    /// A profile of this name exists, and replacing it was not requested.
    #[error("profile '{name}' exists already: choose another name with --profile")]
    Exists {
        /// The profile's name.
        name: Name,
    },
    /// The file is not a valid profile.
    #[error("{}:{line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The problem.
        problem: String,
    },
    /// A value of a new profile is not allowed.
    #[error("invalid profile: {0}")]
    Unfit(&'static str),
    /// Another process has put another server, user or device into the profile.
    #[error("profile '{name}' was replaced by another program: start again")]
    Replaced {
        /// The profile's name.
        name: Name,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// How the server's TLS certificate is verified (PROTOCOL section 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsTrust {
    /// By the hash of its public key, which must be one of these: 1 to [`MAX_PINS`], newest first.
    Pins(Vec<TlsPin>),
    /// By a CA of the system or of this PEM file.
    Ca {
        /// An absolute path; `None`: only the system's CAs.
        file: Option<PathBuf>,
    },
}

/// The content of a new profile.
#[derive(Debug)]
pub struct NewProfile {
    /// DNS name or IP address without brackets, 1 to 253 bytes of ASCII.
    pub host: String,
    /// The server's port, not 0.
    pub port: u16,
    /// The path of the server's WebSocket.
    pub path: String,
    /// The key that identifies the server.
    pub server_key: ServerKey,
    /// How the server's TLS certificate is verified.
    pub tls: TlsTrust,
    /// Reaction to TLS interception; [`BindingPolicy::Warn`] unless the user chooses otherwise.
    pub binding: BindingPolicy,
    /// The user's name.
    pub user: Name,
    /// This device's credential id.
    pub device: DeviceId,
    /// This device's secret.
    pub secret: DeviceSecret,
    /// The user's label for this device, at most [`MAX_LABEL`] bytes.
    pub label: String,
    /// The highest protocol version used with this server so far, at least 1.
    pub min_version: u8,
    /// Time of creation, in ms since 1970 UTC.
    pub created_ms: u64,
}
