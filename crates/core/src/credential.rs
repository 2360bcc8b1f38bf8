//! Credentials as the client holds them (section 2): the input that OPAQUE takes as the password.

use std::fmt;

use thiserror::Error;
use unicode_normalization::UnicodeNormalization as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::id::{CredentialId, DeviceId, InviteId, Name};
use crate::keys::{DeviceSecret, InviteSecret};
use crate::legacy_crypto::opaque::Stretching;
use crate::schedule;

/// Shortest and longest password after NFC, bytes of UTF-8.
pub const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=1024;

/// A password ready for use: in Unicode normal form C and of an allowed length.
pub struct Password(Zeroizing<String>);

/// The reason why a password is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadPassword {
    /// Fewer than 8 bytes.
    #[error("a password must have at least 8 bytes")]
    Short,
    /// More than 1024 bytes.
    #[error("a password can have at most 1024 bytes")]
    Long,
    /// U+0000..U+001F or U+007F.
    #[error("a password cannot contain control characters (does the file contain a line end?)")]
    Control,
}

impl Password {
    /// Normalises to NFC, so that a password typed on another system yields the same bytes. Nothing
    /// is trimmed.
    ///
    /// # Errors
    /// [`BadPassword`].
    pub fn new(typed: &str) -> Result<Self, BadPassword> {
        // NFC shrinks text to a third at the least, so longer input stays too long: skip the work.
        if typed.len() > 4 * PASSWORD_BYTES.end() {
            return Err(BadPassword::Long);
        }
        // Allocated once, so that growth leaves no unwiped copy.
        let mut nfc = Zeroizing::new(String::with_capacity(4 * typed.len() + 16));
        nfc.extend(typed.nfc());
        if nfc.chars().any(|c| c <= '\u{1f}' || c == '\u{7f}') {
            Err(BadPassword::Control)
        } else if nfc.len() < *PASSWORD_BYTES.start() {
            Err(BadPassword::Short)
        } else if nfc.len() > *PASSWORD_BYTES.end() {
            Err(BadPassword::Long)
        } else {
            Ok(Self(nfc))
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A credential to log in with: its owner and its secret.
#[derive(Debug)]
pub enum Credential {
    /// A user by password.
    User(Name, Password),
    /// A device by its secret.
    Device(DeviceId, DeviceSecret),
    /// An invite by its secret.
    Invite(InviteId, InviteSecret),
}

impl Credential {
    /// The kind and id.
    #[must_use]
    pub fn id(&self) -> CredentialId {
        match self {
            Self::User(name, _) => CredentialId::User(name.clone()),
            Self::Device(id, _) => CredentialId::Device(*id),
            Self::Invite(id, _) => CredentialId::Invite(*id),
        }
    }

    /// `"tl1 pw" || kind:u8 || len(id):u8 || id || secret`.
    pub(crate) fn password_input(&self) -> Zeroizing<Vec<u8>> {
        let id = self.id();
        let secret: &[u8] = match self {
            Self::User(_, password) => password.0.as_bytes(),
            Self::Device(_, secret) => secret.expose_secret(),
            Self::Invite(_, secret) => secret.expose_secret(),
        };
        let head = [id.kind(), id.id().len() as u8];
        let mut input = Zeroizing::new(Vec::with_capacity(
            schedule::PASSWORD.len() + head.len() + id.id().len() + secret.len(),
        ));
        for part in [schedule::PASSWORD, &head, id.id(), secret] {
            input.extend_from_slice(part);
        }
        input
    }

    pub(crate) fn stretching(&self) -> Stretching {
        match self {
            Self::User(..) => Stretching::Password,
            Self::Device(..) | Self::Invite(..) => Stretching::RandomSecret,
        }
    }
}

/// Draws the secret of a new device, 32 bytes.
#[must_use]
pub fn draw_device_secret(entropy: &mut dyn crate::Entropy) -> DeviceSecret {
    let mut bytes = [0; 32];
    entropy.fill(&mut bytes);
    let secret = DeviceSecret::new(&bytes);
    bytes.zeroize();
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password__composed_and_decomposed_forms_are_equal() {
        let composed = Password::new("Zo\u{eb} z\u{e4}hlt").unwrap();
        let decomposed = Password::new("Zoe\u{308} za\u{308}hlt").unwrap();
        assert_eq!(composed.0, decomposed.0);
    }

    #[test]
    fn password__spaces_kept_and_controls_or_bad_length_refused() {
        assert_eq!(Password::new(" 123456 ").unwrap().0.as_str(), " 123456 ");
        assert_eq!(Password::new("1234567").err(), Some(BadPassword::Short));
        assert_eq!(Password::new("12345678\n").err(), Some(BadPassword::Control));
        assert_eq!(Password::new("1234567\u{7f}").err(), Some(BadPassword::Control));
        assert_eq!(Password::new(&"a".repeat(1025)).err(), Some(BadPassword::Long));
        assert!(Password::new(&"a".repeat(1024)).is_ok());
    }

    #[test]
    fn credential__debug_shows_no_secret() {
        let name = Name::new("ada").unwrap();
        let user = Credential::User(name, Password::new("correct horse").unwrap());
        let device = Credential::Device(DeviceId([1; 16]), DeviceSecret::new(&[0x41; 32]));
        let invite = Credential::Invite(InviteId([2; 8]), InviteSecret::new(&[0x42; 16]));
        assert_eq!(format!("{user:?}"), "User(Name(\"ada\"), Password(..))");
        assert_eq!(
            format!("{device:?}"),
            "Device(DeviceId(01010101010101010101010101010101), DeviceSecret(..))"
        );
        assert_eq!(format!("{invite:?}"), "Invite(InviteId(0202020202020202), InviteSecret(..))");
    }
}
