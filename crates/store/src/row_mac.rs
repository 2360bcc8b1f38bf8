//! Rows of people, credentials and classic keys, each with a MAC.
//!
//! The MAC covers the whole meaning of a row, under a key that is not in the database. A row that
//! was edited or exchanged for another does not verify and counts as missing. The store logs it for
//! the operator, and the login gets the same answer as an unknown name. (An old row of the same
//! credential does verify when it is put back; SECURITY.md describes this.)

use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{CredentialId, DeviceId, Name};
use twinlock_core::keys::RowKey;

use crate::accounts::{InviteTerms, PersonState, StoredPerson, UserRole};
use crate::classic_keys::StoredClassicKey;
use crate::error::StoreError;

/// A row as a store has read it, and its MAC; an error if its values are invalid.
pub type ReadRow<R> = Result<(R, [u8; 32]), StoreError>;

/// A row whose meaning is covered by a MAC.
pub trait MacRow: Sized {
    /// The row's name in errors.
    fn described(&self) -> String;

    /// Runs `f` on the parts that the MAC covers. Stored MACs depend on every part and its order.
    fn with_mac_parts<T>(&self, f: impl FnOnce(&[&[u8]]) -> T) -> T;

    /// The MAC to store with the row.
    #[must_use]
    fn mac(&self, key: &RowKey) -> [u8; 32] {
        self.with_mac_parts(|parts| key.mac(parts))
    }

    /// Whether a stored MAC belongs to this row.
    #[must_use]
    fn has_mac(&self, key: &RowKey, mac: &[u8; 32]) -> bool {
        self.with_mac_parts(|parts| key.verify(parts, mac))
    }

    /// The row, if its MAC verifies.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it does not; the error of `row` if that could not be read.
    fn verified(row: ReadRow<Self>, key: &RowKey) -> Result<Self, StoreError> {
        let (row, mac) = row?;
        if row.has_mac(key, &mac) {
            Ok(row)
        } else {
            Err(StoreError::Damaged(format!("the MAC of {} does not verify", row.described())))
        }
    }
}

impl UserRole {
    /// The number of this role in rows.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Member => 0,
            Self::Admin => 1,
            Self::Owner => 2,
        }
    }

    /// The role of this number.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if there is none.
    pub fn from_number(number: u8) -> Result<Self, StoreError> {
        match number {
            0 => Ok(Self::Member),
            1 => Ok(Self::Admin),
            2 => Ok(Self::Owner),
            _ => Err(StoreError::Damaged("a row has no known role".into())),
        }
    }
}

impl PersonState {
    /// The number of this state in rows.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Active => 0,
            Self::Suspended => 1,
            Self::Removed => 2,
        }
    }

    /// The state of this number.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if there is none.
    pub fn from_number(number: u8) -> Result<Self, StoreError> {
        match number {
            0 => Ok(Self::Active),
            1 => Ok(Self::Suspended),
            2 => Ok(Self::Removed),
            _ => Err(StoreError::Damaged("a user is in no known state".into())),
        }
    }
}

impl MacRow for StoredPerson {
    fn described(&self) -> String {
        format!("user {}", self.user)
    }

    fn with_mac_parts<T>(&self, f: impl FnOnce(&[&[u8]]) -> T) -> T {
        // Rows from before there were states have no byte for it: they verify as active.
        let flags = [self.role.number(), u8::from(self.password), self.state.number()];
        let (active, _) = flags.split_at(2);
        f(&[
            b"user",
            self.user.as_str().as_bytes(),
            if self.is_active() { active } else { &flags },
            &self.created_ms.to_be_bytes(),
        ])
    }
}

/// The state of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialState {
    /// It can be used, unless it has expired.
    Usable = 0,
    /// It was revoked.
    Revoked = 1,
    /// An invite that has registered a user.
    Used = 2,
}

impl CredentialState {
    /// The number of this state in rows.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The state of this number.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if there is none.
    pub fn from_number(number: u8) -> Result<Self, StoreError> {
        match number {
            0 => Ok(Self::Usable),
            1 => Ok(Self::Revoked),
            2 => Ok(Self::Used),
            _ => Err(StoreError::Damaged("a credential is in no known state".into())),
        }
    }
}

/// The row of a password, a device or an invite.
#[derive(Debug, Clone)]
pub struct CredentialRow {
    /// [`CredentialId::cid`].
    pub cid: Vec<u8>,
    /// The user; for an invite, the only name that it can register.
    pub user: Option<Name>,
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
    /// The user's name for a device.
    pub label: String,
    /// Time of creation, ms since 1970 UTC.
    pub created_ms: u64,
    /// Approximate time of the last login, ms since 1970 UTC. The MAC does not cover it.
    pub seen_ms: u64,
    /// Role of the user that an invite registers.
    pub role: UserRole,
    /// Expiry of an invite, ms since 1970 UTC.
    pub expires_ms: u64,
    /// The user who created an invite.
    pub made_by: Option<Name>,
    /// Whether it can be used.
    pub state: CredentialState,
    /// The user that an invite has registered.
    pub used_by: Option<Name>,
}

impl CredentialRow {
    /// A user's credential: the password, or a device.
    #[must_use]
    pub fn of_user(id: &CredentialId, user: &Name, record: &[u8], now_ms: u64) -> Self {
        Self {
            cid: id.cid(),
            user: Some(user.clone()),
            record: record.to_vec(),
            label: String::new(),
            created_ms: now_ms,
            seen_ms: 0,
            role: UserRole::Member,
            expires_ms: 0,
            made_by: None,
            state: CredentialState::Usable,
            used_by: None,
        }
    }

    /// What an invite's row permits.
    #[must_use]
    pub fn terms(&self) -> InviteTerms {
        InviteTerms { role: self.role, user: self.user.clone(), expires_ms: self.expires_ms }
    }

    /// The id of a device's row.
    #[must_use]
    pub fn device(&self) -> Option<DeviceId> {
        DeviceId::from_slice(self.cid.get(1..)?)
    }

    /// The row, if its MAC verifies; otherwise logs an error for the operator.
    #[must_use]
    pub fn accepted(row: ReadRow<Self>, key: &RowKey, id: &dyn std::fmt::Debug) -> Option<Self> {
        Self::verified(row, key)
            .inspect_err(|error| {
                tracing::error!(?id, %error, "a credential's row was changed: it is not accepted");
            })
            .ok()
    }
}

impl MacRow for CredentialRow {
    fn described(&self) -> String {
        "a credential".to_owned()
    }

    fn with_mac_parts<T>(&self, f: impl FnOnce(&[&[u8]]) -> T) -> T {
        let name = |name: &Option<Name>| name.as_ref().map(Name::to_string).unwrap_or_default();
        let (user, made_by, used_by) = (name(&self.user), name(&self.made_by), name(&self.used_by));
        f(&[
            b"credential",
            &self.cid,
            user.as_bytes(),
            &self.record,
            self.label.as_bytes(),
            &self.created_ms.to_be_bytes(),
            &[self.role.number()],
            &self.expires_ms.to_be_bytes(),
            made_by.as_bytes(),
            &[self.state.number()],
            used_by.as_bytes(),
        ])
    }
}

/// The row of a classic key.
#[derive(Debug, Clone)]
pub struct ClassicKeyRow {
    /// The key.
    pub key: StoredClassicKey,
    /// It was revoked.
    pub revoked: bool,
}

impl ClassicKeyRow {
    /// The row that a miss verifies, for the same cost as a hit.
    pub(crate) fn stand_in(name: &Name) -> Self {
        let key = StoredClassicKey {
            name: name.clone(),
            user: name.clone(),
            conversation: 0,
            form: ClassicScheme::Jwe,
            salt: [0; 32],
            sealed: None,
            created_ms: 0,
        };
        Self { key, revoked: true }
    }

    /// The row, if its MAC verifies; otherwise logs an error for the operator.
    #[must_use]
    pub fn accepted(row: ReadRow<Self>, key: &RowKey) -> Option<Self> {
        Self::verified(row, key)
            .inspect_err(|error| {
                tracing::error!(%error, "a classic key's row was changed: it is not accepted");
            })
            .ok()
    }

    /// Whether a row's state number means that the key was revoked.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if there is no such state.
    pub fn is_revoked(state: u8) -> Result<bool, StoreError> {
        match state {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StoreError::Damaged("a classic key is in no known state".into())),
        }
    }
}

impl MacRow for ClassicKeyRow {
    fn described(&self) -> String {
        format!("classic key {}", self.key.name)
    }

    fn with_mac_parts<T>(&self, f: impl FnOnce(&[&[u8]]) -> T) -> T {
        let StoredClassicKey { name, user, conversation, form, salt, sealed, created_ms } =
            &self.key;
        let (conversation, created_ms) = (conversation.to_be_bytes(), created_ms.to_be_bytes());
        let form_and_state = [form.number(), u8::from(self.revoked)];
        let mut parts: Vec<&[u8]> = vec![
            b"classic key",
            name.as_str().as_bytes(),
            user.as_str().as_bytes(),
            &conversation,
            &form_and_state,
            salt,
            &created_ms,
        ];
        parts.extend(sealed.as_ref().map(<[u8; 32]>::as_slice));
        f(&parts)
    }
}

#[cfg(test)]
mod tests {
    use twinlock_core::id::InviteId;

    use super::*;

    fn invite() -> CredentialRow {
        CredentialRow {
            cid: CredentialId::Invite(InviteId([1; 8])).cid(),
            user: Some(Name::new("carl").unwrap()),
            record: vec![2; 192],
            label: "label".into(),
            created_ms: 3,
            seen_ms: 4,
            role: UserRole::Admin,
            expires_ms: 5,
            made_by: Some(Name::new("ada").unwrap()),
            state: CredentialState::Used,
            used_by: Some(Name::new("carl").unwrap()),
        }
    }

    fn classic_key(sealed: Option<[u8; 32]>) -> ClassicKeyRow {
        let [name, user] = ["alarm", "ada"].map(|name| Name::new(name).unwrap());
        let (form, salt) = (ClassicScheme::Jwe, [6; 32]);
        let key =
            StoredClassicKey { name, user, conversation: 7, form, salt, sealed, created_ms: 8 };
        ClassicKeyRow { key, revoked: true }
    }

    /// Stored MACs must verify with every later version. The values were computed apart from this
    /// code, with HMAC-SHA-256 over the lengths (u64) and parts.
    #[test]
    fn row_mac__stored_values_do_not_change() {
        let key = RowKey::new(&[9; 32]);
        let user = Name::new("ada").unwrap();
        let person = StoredPerson {
            user,
            role: UserRole::Owner,
            password: true,
            created_ms: 10,
            state: PersonState::Active,
        };
        let mac = |mac: [u8; 32]| mac.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let macs = [
            person.mac(&key),
            invite().mac(&key),
            classic_key(None).mac(&key),
            classic_key(Some([11; 32])).mac(&key),
        ];
        let expected = [
            "7decec0fdc6fe4aa4278d38c1673fec1e55d2a2a3e996b44d5a0ff218bc0311a",
            "af508670500410b85c538460502f5a2f0706f5c556044a017d97efe1f08139f9",
            "a597d263625546a139a726950262d49593eaa624a3947df9e10c5f4ae874415f",
            "e4de5b2f9d423f6360d44dfa0e95d0ae6b532cd5384e939bd01390facca19425",
        ];
        assert_eq!(macs.map(mac), expected);
    }

    #[test]
    fn row_mac__state_of_a_person_is_covered() {
        let key = RowKey::new(&[9; 32]);
        let user = Name::new("ada").unwrap();
        let of = |state| StoredPerson {
            user: user.clone(),
            role: UserRole::Owner,
            password: true,
            created_ms: 10,
            state,
        };
        let states = [PersonState::Active, PersonState::Suspended, PersonState::Removed];
        for state in states {
            for other in states {
                assert_eq!(of(other).has_mac(&key, &of(state).mac(&key)), state == other);
            }
            assert_eq!(PersonState::from_number(state.number()), Ok(state));
        }
        assert!(PersonState::from_number(3).is_err());
    }

    #[test]
    fn row_mac__every_field_but_the_last_login_is_covered() {
        let key = RowKey::new(&[9; 32]);
        let mac = invite().mac(&key);
        assert!(CredentialRow::verified(Ok((invite(), mac)), &key).is_ok());
        assert!(CredentialRow { seen_ms: 0, ..invite() }.has_mac(&key, &mac));
        let other = || Name::new("eve").ok();
        for changed in [
            CredentialRow { cid: vec![3], ..invite() },
            CredentialRow { user: other(), ..invite() },
            CredentialRow { record: vec![0; 192], ..invite() },
            CredentialRow { label: String::new(), ..invite() },
            CredentialRow { created_ms: 0, ..invite() },
            CredentialRow { role: UserRole::Owner, ..invite() },
            CredentialRow { expires_ms: 0, ..invite() },
            CredentialRow { made_by: other(), ..invite() },
            CredentialRow { state: CredentialState::Usable, ..invite() },
            CredentialRow { used_by: other(), ..invite() },
        ] {
            assert!(CredentialRow::verified(Ok((changed, mac)), &key).is_err());
        }
        assert!(!invite().has_mac(&RowKey::new(&[8; 32]), &mac));
    }
}
