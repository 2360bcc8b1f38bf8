//! Newtypes for secrets: wiped when dropped, never shown, read only through a conspicuous name.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::Name;
use crate::schedule;
use crate::wiped::{self, wiped};

/// Declares a secret of `N` bytes.
///
/// It has no `Clone`, `Copy`, `PartialEq` or `Display`; `Debug` shows only the type's name.
macro_rules! secret {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Zeroize, ZeroizeOnDrop)]
        pub struct $name(Box<[u8; $len]>);

        impl $name {
            #[doc = concat!("Takes over ", stringify!($len), " secret bytes; the caller wipes its own copy.")]
            #[must_use]
            pub fn new(bytes: &[u8; $len]) -> Self {
                Self(Box::new(*bytes))
            }

            /// The secret bytes.
            #[must_use]
            pub fn expose_secret(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

secret!(
    /// `ck` of one direction (section 5). Each frame advances it and overwrites the old key.
    ChainKey, 32
);
secret!(
    /// `rk`, which each rekey mixes into the next keys (section 6).
    RootKey, 32
);
secret!(
    /// A device's secret, 32 random bytes drawn by the client.
    DeviceSecret, 32
);
secret!(
    /// An invite's secret, 16 random bytes inside the invite link.
    InviteSecret, 16
);
secret!(
    /// The key of the row MACs of credentials, derived from the server's setup.
    RowKey, 32
);

secret!(
    /// The root of the keys of classic connections and of the origin bridge, derived from the
    /// server's setup.
    ClassicRoot, 32
);
secret!(
    /// The key that a client of a classic connection or of the origin bridge shares with the server
    /// (section 11).
    ClassicSecret, 32
);
secret!(
    /// `K_dir`: the key of one direction of one classic connection (section 11).
    LineKey, 64
);

impl ClassicRoot {
    /// `HMAC(root, "tl1 classic key" || len(name):u8 || name || salt)`: the key for a name and the
    /// salt in its row. The record stores only salts, so a stolen record contains no key.
    #[must_use]
    pub fn key(&self, name: &Name, salt: &[u8; 32]) -> ClassicSecret {
        wiped::<{ wiped::FRAME }, _>(|| {
            ClassicSecret::new(&self.derive(schedule::CLASSIC_KEY, name, salt))
        })
    }

    /// `key XOR HMAC(root, "tl1 classic import" || len(name):u8 || name || salt)`: an imported key
    /// in its stored form. Each row draws its own salt, so each pad is used once. The row MAC
    /// detects changes.
    #[must_use]
    pub fn seal_imported(&self, name: &Name, salt: &[u8; 32], key: &ClassicSecret) -> [u8; 32] {
        *self.pad(name, salt, key.expose_secret()).expose_secret()
    }

    /// Recovers the key that [`ClassicRoot::seal_imported`] sealed.
    #[must_use]
    pub fn open_imported(&self, name: &Name, salt: &[u8; 32], sealed: &[u8; 32]) -> ClassicSecret {
        self.pad(name, salt, sealed)
    }

    fn pad(&self, name: &Name, salt: &[u8; 32], bytes: &[u8; 32]) -> ClassicSecret {
        wiped::<{ wiped::FRAME }, _>(|| {
            let mut pad = self.derive(schedule::CLASSIC_IMPORT, name, salt);
            pad.iter_mut().zip(bytes).for_each(|(pad, byte)| *pad ^= byte);
            ClassicSecret::new(&pad)
        })
    }

    fn derive(&self, label: &[u8], name: &Name, salt: &[u8; 32]) -> zeroize::Zeroizing<[u8; 32]> {
        let name = name.as_str().as_bytes();
        let len = [name.len() as u8];
        schedule::hmac(self.expose_secret(), &[label, &len, name, salt])
    }
}

impl ChainKey {
    /// Returns `mk = HMAC(ck, 0x01)` and advances to `ck' = HMAC(ck, 0x02)`.
    pub(crate) fn step(&mut self) -> zeroize::Zeroizing<[u8; 32]> {
        let (mk, next) = self.peek();
        self.replace(&next);
        mk
    }

    /// Returns `(mk, ck')` without advancing: the opener advances only after the tag verifies.
    pub(crate) fn peek(&self) -> (zeroize::Zeroizing<[u8; 32]>, zeroize::Zeroizing<[u8; 32]>) {
        let ck = self.0.as_slice();
        (
            schedule::hmac(ck, &[&[schedule::STEP_MESSAGE]]),
            schedule::hmac(ck, &[&[schedule::STEP_CHAIN]]),
        )
    }

    pub(crate) fn replace(&mut self, next: &[u8; 32]) {
        self.0.copy_from_slice(next);
    }
}

impl RowKey {
    /// The MAC of a row: `HMAC(key, len(part) || part, ...)`. The lengths (u64) keep two different
    /// lists of parts from encoding to the same bytes.
    #[must_use]
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        *schedule::hmac(self.expose_secret(), &[&framed(parts)])
    }

    /// Whether `mac` is the MAC of the row, in constant time.
    #[must_use]
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        schedule::hmac_verify(self.expose_secret(), &[&framed(parts)], mac)
    }
}

fn framed(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}
