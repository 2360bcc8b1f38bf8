//! Credentials of test users.

use twinlock_core::credential::{Credential, Password};
use twinlock_core::id::{DeviceId, InviteId, Name};
use twinlock_core::keys::{DeviceSecret, InviteSecret};

use crate::random;

/// A device of a test user. Unlike a real device's secret, this one can be copied.
#[derive(Debug, Clone, Copy)]
pub struct TestDevice {
    /// The id that the server assigned.
    pub id: DeviceId,
    /// The device's secret.
    pub secret: [u8; 32],
}

impl TestDevice {
    /// The credential to log in with.
    #[must_use]
    pub fn credential(&self) -> Credential {
        Credential::Device(self.id, DeviceSecret::new(&self.secret))
    }

    /// A device that no server knows.
    #[must_use]
    pub fn unknown() -> Self {
        Self { id: DeviceId(random()), secret: random() }
    }
}

/// An invite, without address and pins.
#[derive(Debug, Clone, Copy)]
pub struct TestInvite {
    /// The id that the server assigned.
    pub id: [u8; 8],
    /// The invite's secret.
    pub secret: [u8; 16],
}

impl TestInvite {
    /// The credential to log in with.
    #[must_use]
    pub fn credential(&self) -> Credential {
        Credential::Invite(InviteId(self.id), InviteSecret::new(&self.secret))
    }
}

/// The credential of a user with a password.
///
/// # Panics
/// If the name or the password is invalid.
#[must_use]
pub fn password(user: &str, password: &str) -> Credential {
    Credential::User(Name::new(user).unwrap(), Password::new(password).unwrap())
}
