//! Profiles: a user's identity on one server, and the keys it trusts.
//!
//! Each profile is one file, `profiles/NAME.toml`, mode 0600 because it holds the device secret.
//! Writes are atomic, and an existing profile is replaced only on request.
//!
//! The server key is the pin of PROTOCOL section 2. No function here changes it in an existing
//! profile: [`Profile::create`] and [`Profile::replace`] take a complete new profile. Every smaller
//! change applies to the file's current content. It fails if that names another server, user or
//! device than this process loaded.

mod model;
mod profile_file;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use twinlock_core::id::{BadName, DeviceId, Name, ServerKey, TlsPin};
use twinlock_core::invite::DEFAULT_PATH;
use twinlock_core::keys::DeviceSecret;
use twinlock_core::session::BindingPolicy;
use zeroize::Zeroizing;

use crate::disk::{self, Existing};
use crate::home::{DiskError, Home};
pub use model::{DEFAULT, MAX_LABEL, MAX_PINS, NewProfile, ProfileError, TlsTrust};
use profile_file::ProfileFile;

/// Maximum size of a profile file in bytes. Profiles are below 2 KiB; a larger file is something
/// else.
const MAX_FILE: u64 = 64 * 1024;
/// One loaded profile.
#[derive(Debug)]
pub struct Profile {
    name: Name,
    content: ProfileFile,
}

/// The profile name to use: `asked`, else `TWINLOCK_PROFILE` of `env`, else [`DEFAULT`].
///
/// # Errors
/// [`ProfileError::BadName`].
pub fn choose(
    asked: Option<&str>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Name, ProfileError> {
    let name = match (asked, env("TWINLOCK_PROFILE")) {
        (Some(asked), _) => asked.to_owned(),
        (None, Some(name)) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => DEFAULT.to_owned(),
    };
    Name::new(&name).map_err(|BadName| ProfileError::BadName { got: name })
}

/// The names of all profiles, sorted. Ignores other files in the directory.
///
/// # Errors
/// [`DiskError`]; a missing directory gives an empty list.
pub fn list(home: &Home) -> Result<Vec<Name>, DiskError> {
    let dir = home.profiles();
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(DiskError::at(&dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let file = entry.map_err(DiskError::at(&dir))?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(".toml"));
        names.extend(name.and_then(|name| Name::new(name).ok()));
    }
    names.sort();
    Ok(names)
}

impl Profile {
    /// Reads a profile. If other users have access to the file, removes their permissions and logs
    /// a warning, because they may have the secret.
    ///
    /// # Errors
    /// [`ProfileError::Missing`], [`ProfileError::Malformed`] (also for an unknown key),
    /// [`ProfileError::Disk`].
    pub fn load(home: &Home, name: &Name) -> Result<Self, ProfileError> {
        let path = path(home, name);
        let file = match disk::open_to_read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ProfileError::Missing { name: name.clone() });
            }
            file => file.map_err(DiskError::at(&path))?,
        };
        if let Some(mode) = disk::close_to_others(&file, &path)? {
            tracing::warn!(
                path = %path.display(),
                "others could read the profile (mode {mode:03o}); its mode is now private; \
                 if they may have read it, revoke this device and enrol a new one"
            );
        }
        let text = read(file, &path)?;
        Ok(Self { name: name.clone(), content: profile_file::parse(&text, &path)? })
    }

    /// Writes a new profile. It is on disk when this returns.
    ///
    /// # Errors
    /// [`ProfileError::Exists`], [`ProfileError::Unfit`], [`ProfileError::Disk`].
    pub fn create(home: &Home, name: &Name, new: NewProfile) -> Result<Self, ProfileError> {
        let content = ProfileFile::new(new)?;
        write(home, name, &content, Existing::Keep)?;
        Ok(Self { name: name.clone(), content })
    }

    /// Writes a profile and replaces an existing one, even one of another server, user or device.
    ///
    /// If the server is the same, the minimum version does not decrease and `rekey-after` is kept.
    ///
    /// # Errors
    /// [`ProfileError::Unfit`], [`ProfileError::Disk`].
    pub fn replace(home: &Home, name: &Name, new: NewProfile) -> Result<Self, ProfileError> {
        let mut content = ProfileFile::new(new)?;
        let _lock = home.lock(name, LOCK)?;
        // An unreadable file may be replaced; it has no minimum version to keep.
        if let Ok(old) = Self::load(home, name)
            && old.content.server_key == content.server_key
        {
            content.min_version = content.min_version.max(old.content.min_version);
            content.rekey_after = old.content.rekey_after;
        }
        write(home, name, &content, Existing::Replace)?;
        Ok(Self { name: name.clone(), content })
    }

    /// Removes the file, because the enrolment that it was written for failed. Keeps the state.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn remove(self, home: &Home) -> Result<(), DiskError> {
        let path = path(home, &self.name);
        fs::remove_file(&path).map_err(DiskError::at(&path))
    }

    /// The profile's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The server's DNS name, or IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.content.host
    }

    /// The server's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.content.port
    }

    /// The path of the server's WebSocket.
    #[must_use]
    pub fn path(&self) -> &str {
        self.content.path.as_deref().unwrap_or(DEFAULT_PATH)
    }

    /// Host, port and path in the form of `login` and invite links: an IPv6 address is in brackets,
    /// and the default path is left out.
    #[must_use]
    pub fn address(&self) -> String {
        let (host, port) = (self.host(), self.port());
        let path = self.content.path.as_deref().unwrap_or_default();
        if host.contains(':') {
            format!("[{host}]:{port}{path}")
        } else {
            format!("{host}:{port}{path}")
        }
    }

    /// The key that the server must prove.
    #[must_use]
    pub fn server_key(&self) -> &ServerKey {
        &self.content.server_key
    }

    /// How the server's TLS certificate is verified.
    #[must_use]
    pub fn tls(&self) -> TlsTrust {
        self.content.trust()
    }

    /// The reaction to TLS interception.
    #[must_use]
    pub fn binding(&self) -> BindingPolicy {
        self.content.binding
    }

    /// The user's name.
    #[must_use]
    pub fn user(&self) -> &Name {
        &self.content.user
    }

    /// This device's credential id.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.content.device.id
    }

    /// This device's secret.
    #[must_use]
    pub fn secret(&self) -> &DeviceSecret {
        &self.content.device.secret
    }

    /// The user's label for this device.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.content.device.label
    }

    /// The lowest protocol version to use with this server.
    #[must_use]
    pub fn min_version(&self) -> u8 {
        self.content.min_version
    }

    /// `rekey-after` of the file: the client rekeys a session this long after the last rekey, if
    /// there was traffic. `None`: the protocol's 10 minutes.
    #[must_use]
    pub fn rekey_after(&self) -> Option<Duration> {
        self.content.rekey_after()
    }

    /// Time of creation, in ms since 1970 UTC.
    #[must_use]
    pub fn created_ms(&self) -> u64 {
        self.content.created_ms
    }

    /// Adopts the pins that the server sent inside the session, newest first, at most [`MAX_PINS`].
    /// Changes nothing if the profile trusts a CA or the server sent none.
    ///
    /// # Errors
    /// [`ProfileError`]; the profile is unchanged then.
    pub fn learn_pins(&mut self, home: &Home, pins: &[TlsPin]) -> Result<(), ProfileError> {
        let mut learned: Vec<TlsPin> = Vec::new();
        for pin in pins {
            if !learned.contains(pin) && learned.len() < MAX_PINS {
                learned.push(*pin);
            }
        }
        match self.tls() {
            TlsTrust::Pins(known) if !learned.is_empty() && known != learned => {
                self.change(home, |content| {
                    if matches!(content.trust(), TlsTrust::Pins(_)) {
                        content.set_trust(TlsTrust::Pins(learned));
                    }
                    Ok(())
                })
            }
            _ => Ok(()),
        }
    }

    /// Stores that `version` was used with this server, learned from READY only (PROTOCOL section
    /// 5). The minimum never decreases.
    ///
    /// # Errors
    /// [`ProfileError`]; the profile is unchanged then.
    pub fn raise_min_version(&mut self, home: &Home, version: u8) -> Result<(), ProfileError> {
        if version <= self.min_version() {
            return Ok(());
        }
        self.change(home, |content| {
            content.min_version = content.min_version.max(version);
            Ok(())
        })
    }

    /// Sets the reaction to TLS interception.
    ///
    /// # Errors
    /// [`ProfileError`]; the profile is unchanged then.
    pub fn set_binding(&mut self, home: &Home, binding: BindingPolicy) -> Result<(), ProfileError> {
        self.change(home, |content| {
            content.binding = binding;
            Ok(())
        })
    }

    /// Sets how the TLS certificate is verified.
    ///
    /// # Errors
    /// [`ProfileError`]; the profile is unchanged then.
    pub fn set_tls(&mut self, home: &Home, tls: TlsTrust) -> Result<(), ProfileError> {
        self.change(home, |content| {
            content.set_trust(tls);
            Ok(())
        })
    }

    /// Sets the server's address; the server key stays the same.
    ///
    /// # Errors
    /// [`ProfileError`]; the profile is unchanged then.
    pub fn set_address(&mut self, home: &Home, host: &str, port: u16) -> Result<(), ProfileError> {
        self.change(home, |content| {
            host.clone_into(&mut content.host);
            content.port = port;
            Ok(())
        })
    }

    /// Changes the file's current content under the lock, so that concurrent processes do not lose
    /// each other's changes.
    fn change(
        &mut self,
        home: &Home,
        change: impl FnOnce(&mut ProfileFile) -> Result<(), ProfileError>,
    ) -> Result<(), ProfileError> {
        let _lock = home.lock(&self.name, LOCK)?;
        let mut content = Self::load(home, &self.name)?.content;
        if content.server_key != self.content.server_key
            || content.user != self.content.user
            || content.device.id != self.content.device.id
        {
            return Err(ProfileError::Replaced { name: self.name.clone() });
        }
        change(&mut content)?;
        content.check()?;
        write(home, &self.name, &content, Existing::Replace)?;
        self.content = content;
        Ok(())
    }
}

/// The lock for changes of a profile's file.
const LOCK: &str = "profile";

fn path(home: &Home, name: &Name) -> PathBuf {
    home.profiles().join(format!("{name}.toml"))
}

fn read(file: File, path: &Path) -> Result<Zeroizing<String>, ProfileError> {
    // Full capacity at once: a growing buffer leaves copies of the secret in memory.
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
    match file.take(MAX_FILE + 1).read_to_string(&mut text) {
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(malformed(path, "this is not UTF-8"))
        }
        Err(error) => Err(DiskError::at(path)(error).into()),
        Ok(read) if read as u64 > MAX_FILE => Err(malformed(path, "this is too long")),
        Ok(_) => Ok(text),
    }
}

fn malformed(path: &Path, problem: &str) -> ProfileError {
    ProfileError::Malformed { path: path.to_path_buf(), line: 1, problem: problem.to_owned() }
}

fn write(
    home: &Home,
    name: &Name,
    content: &ProfileFile,
    existing: Existing,
) -> Result<(), ProfileError> {
    home.make_profiles()?;
    let text = profile_file::print(content)?;
    disk::write_whole(&path(home, name), text.as_bytes(), existing).map_err(|error| {
        match error.kind {
            ErrorKind::AlreadyExists => ProfileError::Exists { name: name.clone() },
            _ => error.into(),
        }
    })
}
