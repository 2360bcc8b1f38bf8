//! Newtypes for secrets: wiped when dropped, never shown, read only under a telling name.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::Name;
use crate::schedule;
use crate::wiped::{self, wiped};

/// Declares a secret of `N` bytes. No `Clone`, `Copy`, `PartialEq`, `Display`; `Debug` shows the
/// type's name only.
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

            /// The secret itself.
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
    /// `ck` of one direction (section 5). Moves forward with each frame; the old one is gone.
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
    /// An invite's secret, 16 random bytes inside the link.
    InviteSecret, 16
);
secret!(
    /// Key of the MACs of credential rows, derived from the server's setup.
    RowKey, 32
);

secret!(
    /// What the keys of classic lines and of the origin bridge are derived from; itself derived
    /// from the server's setup.
    ClassicRoot, 32
);
secret!(
    /// The key that a classic line or an origin's client shares with the server (section 11).
    ClassicKey, 32
);
secret!(
    /// `K_dir`: the key of one direction of one classic line (section 11).
    LineKey, 64
);

impl ClassicRoot {
    /// `HMAC(root, "tl1 classic key" || len(name):u8 || name || salt)`: the key of this name whose
    /// row holds this salt. The record keeps salts only, so a stolen record holds no key.
    #[must_use]
    pub fn key(&self, name: &Name, salt: &[u8; 32]) -> ClassicKey {
        wiped::<{ wiped::FRAME }, _>(|| {
            ClassicKey::new(&self.derive(schedule::CLASSIC_KEY, name, salt))
        })
    }

    /// `key XOR HMAC(root, "tl1 classic import" || len(name):u8 || name || salt)`: a key that the server did
    /// not make, as the record keeps it. The salt is drawn for this row, so the pad is used once; the
    /// row's MAC shows alteration.
    #[must_use]
    pub fn seal_imported(&self, name: &Name, salt: &[u8; 32], key: &ClassicKey) -> [u8; 32] {
        *self.pad(name, salt, key.expose_secret()).expose_secret()
    }

    /// The key that [`ClassicRoot::seal_imported`] sealed.
    #[must_use]
    pub fn open_imported(&self, name: &Name, salt: &[u8; 32], sealed: &[u8; 32]) -> ClassicKey {
        self.pad(name, salt, sealed)
    }

    fn pad(&self, name: &Name, salt: &[u8; 32], bytes: &[u8; 32]) -> ClassicKey {
        wiped::<{ wiped::FRAME }, _>(|| {
            let mut pad = self.derive(schedule::CLASSIC_IMPORT, name, salt);
            pad.iter_mut().zip(bytes).for_each(|(pad, byte)| *pad ^= byte);
            ClassicKey::new(&pad)
        })
    }

    fn derive(&self, label: &[u8], name: &Name, salt: &[u8; 32]) -> zeroize::Zeroizing<[u8; 32]> {
        let name = name.as_str().as_bytes();
        let len = [name.len() as u8];
        schedule::hmac(self.expose_secret(), &[label, &len, name, salt])
    }
}

impl ChainKey {
    /// `mk = HMAC(ck, 0x01)`, and moves to `ck' = HMAC(ck, 0x02)`.
    pub(crate) fn step(&mut self) -> zeroize::Zeroizing<[u8; 32]> {
        let (mk, next) = self.peek();
        self.replace(&next);
        mk
    }

    /// `(mk, ck')`, without moving: an opener moves only after the tag has passed.
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
    /// The MAC of a row: `HMAC(key, len(part) || part, ...)`. The lengths (u64) keep two lists of
    /// parts from making the same bytes.
    #[must_use]
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        *schedule::hmac(self.expose_secret(), &[&framed(parts)])
    }

    /// Whether `mac` is the row's, in constant time.
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
