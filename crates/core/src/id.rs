//! Typed names and identifiers of users, devices, invites, messages and servers.
//!
//! A value exists only in valid form, so that code behind the decoder does not check again.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::Entropy;

/// Longest user or room name, in bytes (section 2).
pub const MAX_NAME: usize = 32;

/// The name is not 1..32 of `[a-z0-9._-]`, or begins or ends with punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "a name is 1 to 32 of a-z, 0-9, '.', '_' and '-', and neither begins nor ends with one of the last three"
)]
pub struct BadName;

/// The name of a user or a room: 1..32 of `[a-z0-9._-]`, no leading or trailing punctuation.
///
/// The small alphabet makes a name safe to display and leaves only ASCII's own look-alikes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// Validates a name.
    ///
    /// # Errors
    /// [`BadName`] for anything else; nothing is folded or trimmed.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let inner = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = name.as_bytes();
        let good = bytes.len() <= MAX_NAME
            && bytes.iter().all(inner)
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge);
        if good { Ok(Self(name.into())) } else { Err(BadName) }
    }

    /// Validates a name received as bytes.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn from_bytes(name: &[u8]) -> Result<Self, BadName> {
        Self::new(std::str::from_utf8(name).map_err(|_| BadName)?)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = BadName;

    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::new(s)
    }
}

/// Declares a public identifier of `N` bytes, shown in lower-case hex.
macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            #[doc = concat!("Takes exactly ", stringify!($len), " bytes.")]
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            #[doc = concat!("Reads ", stringify!($len), " bytes of hex, as `Display` writes them.")]
            #[must_use]
            pub fn from_hex(hex: &str) -> Option<Self> {
                let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok()?;
                Self::from_slice(&bytes)
            }

            /// The bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

bytes_id!(
    /// A device's credential id, drawn by the server.
    DeviceId, 16
);
bytes_id!(
    /// An invite's credential id, drawn by the server.
    InviteId, 8
);
bytes_id!(
    /// A message's id, drawn by the client. A retry sends the same id.
    MessageId, 16
);
bytes_id!(
    /// The server's OPAQUE public key, which identifies the server (section 2).
    ServerKey, 32
);
bytes_id!(
    /// SHA-256 of a TLS certificate's SubjectPublicKeyInfo.
    TlsPin, 32
);
bytes_id!(
    /// The session's name in logs and status. Public.
    SessionId, 16
);
bytes_id!(
    /// The random bytes that blind an entry's body in its commitment (section 7).
    Salt, 16
);
bytes_id!(
    /// The running hash up to and including an entry (section 7).
    Link, 32
);
bytes_id!(
    /// `H("tl1 body" || salt || body)`, all that remains of an erased body (section 7).
    Commit, 32
);

impl MessageId {
    /// Draws a fresh id: 48 bits of milliseconds, then 80 random bits (section 7).
    ///
    /// The server keeps an index of all ids. With the time first, new ids are adjacent in the
    /// index, and an append touches pages that are already in memory. The time also shows the
    /// server and the readers when the message was written. For a message that waited offline, this
    /// is earlier than the recorded time.
    pub fn fresh(now_ms: u64, entropy: &mut (impl Entropy + ?Sized)) -> Self {
        let [_, _, time @ ..] = now_ms.to_be_bytes();
        let mut id = [0; 16];
        let (head, random) = id.split_at_mut(time.len());
        head.copy_from_slice(&time);
        entropy.fill(random);
        Self(id)
    }
}

/// A conversation's number on its server.
pub type ConversationId = u64;

/// The owner of a credential: the `kind || id` of section 2.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CredentialId {
    /// Kind 1: a user, with a password.
    User(Name),
    /// Kind 2: a device, with a random secret.
    Device(DeviceId),
    /// Kind 3: an invite, with a random secret.
    Invite(InviteId),
}

/// The kind is unknown, or the id has the wrong form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no credential has this kind and id")]
pub struct BadCredentialId;

impl CredentialId {
    /// Decodes kind and id as HELLO carries them.
    ///
    /// # Errors
    /// [`BadCredentialId`].
    pub fn parse(kind: u8, id: &[u8]) -> Result<Self, BadCredentialId> {
        match kind {
            1 => Name::from_bytes(id).ok().map(Self::User),
            2 => DeviceId::from_slice(id).map(Self::Device),
            3 => InviteId::from_slice(id).map(Self::Invite),
            _ => None,
        }
        .ok_or(BadCredentialId)
    }

    /// The kind byte.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::User(_) => 1,
            Self::Device(_) => 2,
            Self::Invite(_) => 3,
        }
    }

    /// The id without its kind, 1..32 bytes.
    #[must_use]
    pub fn id(&self) -> &[u8] {
        match self {
            Self::User(name) => name.as_str().as_bytes(),
            Self::Device(id) => &id.0,
            Self::Invite(id) => &id.0,
        }
    }

    /// `cid = kind || id`, 2..33 bytes.
    #[must_use]
    pub fn cid(&self) -> Vec<u8> {
        let mut cid = Vec::with_capacity(1 + MAX_NAME);
        cid.push(self.kind());
        cid.extend_from_slice(self.id());
        cid
    }
}

/// The author of an entry, as section 7 encodes it.
///
/// The user id, then `/` and the first eight hex digits of the device id if a device sent the
/// entry, or `:` and the name of the classic key that sent it. Empty for the server itself. At most
/// 65 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sender {
    /// The server.
    Server,
    /// A user, and the first 4 bytes of the device id if a device sent the entry.
    User(Name, Option<[u8; 4]>),
    /// A user and the name of a key, over a classic connection or the origin bridge (section 11).
    Classic(Name, Name),
}

/// The bytes do not encode a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "a sender is a user name, perhaps with '/' and eight hex digits of a device, or ':' and a key"
)]
pub struct BadSender;

impl Sender {
    /// The sender for `user` on `device`.
    #[must_use]
    pub fn new(user: &Name, device: Option<&DeviceId>) -> Self {
        Self::User(user.clone(), device.and_then(|d| d.0.first_chunk().copied()))
    }

    /// Decodes the sender of an entry.
    ///
    /// # Errors
    /// [`BadSender`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BadSender> {
        if bytes.is_empty() {
            return Ok(Self::Server);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| BadSender)?;
        if let Some((user, key)) = text.split_once(':') {
            let name = |text| Name::new(text).map_err(|_| BadSender);
            return Ok(Self::Classic(name(user)?, name(key)?));
        }
        let (user, device) = match text.split_once('/') {
            None => (text, None),
            Some((user, hex)) => {
                let device = data_encoding::HEXLOWER.decode(hex.as_bytes());
                let device = device.ok().and_then(|d| <[u8; 4]>::try_from(d).ok());
                (user, Some(device.ok_or(BadSender)?))
            }
        };
        Ok(Self::User(Name::new(user).map_err(|_| BadSender)?, device))
    }

    /// The user; `None` for the server.
    #[must_use]
    pub fn user(&self) -> Option<&Name> {
        match self {
            Self::Server => None,
            Self::User(name, _) | Self::Classic(name, _) => Some(name),
        }
    }

    /// The device: eight hex digits, or the name of a classic key.
    #[must_use]
    pub fn device(&self) -> Option<String> {
        match self {
            Self::User(_, Some(device)) => Some(data_encoding::HEXLOWER.encode(device)),
            Self::Classic(_, key) => Some(key.to_string()),
            _ => None,
        }
    }
}

/// The encoding of section 7, which is also the stored form.
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => Ok(()),
            Self::User(name, None) => f.write_str(name.as_str()),
            Self::User(name, Some(_)) => {
                write!(f, "{name}/{}", self.device().unwrap_or_default())
            }
            Self::Classic(name, key) => write!(f, "{name}:{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name__invalid_alphabet_ends_or_length_is_rejected() {
        for good in ["a", "ada.lovelace-1815", "0", &"a".repeat(32)] {
            assert_eq!(Name::new(good).map(|n| n.to_string()), Ok(good.into()));
        }
        for bad in ["", ".a", "a-", "_", "Ada", "ä", "a b", "a/b", "a\n", &"a".repeat(33)] {
            assert_eq!(Name::new(bad), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn sender__round_trips_and_malformed_is_rejected() {
        let ada = Name::new("ada").unwrap();
        for sender in [
            Sender::Server,
            Sender::new(&ada, None),
            Sender::new(&ada, Some(&DeviceId([0xab; 16]))),
            Sender::Classic(ada.clone(), Name::new("lamp.kitchen-2").unwrap()),
        ] {
            assert_eq!(Sender::parse(sender.to_string().as_bytes()), Ok(sender));
        }
        for bad in [
            "ada/",
            "ada/abc",
            "ada/ABABABAB",
            "ada/abababab00",
            "/abababab",
            "Ada",
            "ada:",
            ":lamp",
            "ada:l:p",
            "ada/abababab:lamp",
        ] {
            assert_eq!(Sender::parse(bad.as_bytes()), Err(BadSender), "{bad}");
        }
    }

    #[test]
    fn credential_id__length_must_match_kind() {
        assert!(CredentialId::parse(2, &[0; 16]).is_ok());
        assert!(CredentialId::parse(3, &[0; 8]).is_ok());
        for (kind, len) in [(0, 8), (2, 15), (2, 17), (3, 7), (3, 16), (4, 8)] {
            assert_eq!(CredentialId::parse(kind, &vec![0; len]), Err(BadCredentialId));
        }
    }
}
