//! Look-ups that cost the same on a hit and on a miss.
//!
//! A store reads two rows for each look-up: the row of the wanted id, and another one that a miss
//! uses as a stand-in. It hands both to the functions here. They verify one MAC in every case and
//! return the same amount of data, so that the duration does not reveal whether the id exists.

use twinlock_core::id::{CredentialId, Name};
use twinlock_core::keys::RowKey;

use crate::accounts::{
    Holder, KNOWN_SOURCE_MS, LookedUp, PersonState, StoredCredential, StoredPerson, UserRole,
};
use crate::classic_keys::StoredClassicKey;
use crate::error::StoreError;
use crate::row_mac::{ClassicKeyRow, CredentialRow, CredentialState, MacRow, ReadRow};

/// Length of an OPAQUE record, bytes; only misses need it.
const RECORD: usize = 192;

/// First byte of a device's `cid`: stand-ins are devices, because there soon are many.
const DEVICE: u8 = 2;

/// Sorts after the `cid` of every credential.
pub const AFTER_CIDS: [u8; 1] = [255];

/// Sorts after every name.
pub const AFTER_NAMES: &str = "~";

/// Sorts after the tag of every source.
pub const AFTER_TAGS: [u8; 33] = [255; 33];

/// A name of usual length, for reads that should find nothing. If such a user exists, its row is
/// read and ignored.
fn stand_in_name() -> Name {
    #[allow(clippy::expect_used)]
    Name::new("nobody").expect("a constant")
}

/// The `cid` after which a miss reads its stand-in.
///
/// It is stable for an id and different between ids. A single stand-in would always be in the
/// processor's cache, and its timing would reveal a miss.
#[must_use]
pub fn stand_in_cid(key: &RowKey, id: &CredentialId) -> [u8; 32] {
    let mut stand_in = key.mac(&[b"stand-in", &id.cid()]);
    stand_in[0] = DEVICE;
    stand_in
}

/// The row of `id` and `true`, or a stand-in and `false`.
///
/// `found` is the row of `id`. `other` is the first row after [`stand_in_cid`] if there is no row
/// of `id`, and otherwise any read of the same cost ([`AFTER_CIDS`]).
#[must_use]
pub fn credential_row(
    found: Option<ReadRow<CredentialRow>>,
    other: Option<ReadRow<CredentialRow>>,
    key: &RowKey,
    id: &CredentialId,
) -> (CredentialRow, bool) {
    let stand_in = || {
        let row = CredentialRow::of_user(id, &stand_in_name(), &[0; RECORD], 0);
        CredentialRow { user: None, ..row }
    };
    if let Some(row) = found {
        let found = CredentialRow::accepted(row, key, id);
        let is_there = found.is_some();
        return (found.unwrap_or_else(stand_in), is_there);
    }
    let other = other.and_then(Result::ok);
    let (other, mac) = other.unwrap_or_else(|| (stand_in(), [0; 32]));
    let _never = other.has_mac(key, &mac);
    (other, false)
}

/// The user whose row the look-up of a credential reads next, even if that user does not matter.
#[must_use]
pub fn user_of(row: &CredentialRow) -> Name {
    row.user.as_ref().or(row.made_by.as_ref()).cloned().unwrap_or_else(stand_in_name)
}

/// The result of a look-up: of a row from [`credential_row`], and the [`person`] of its
/// [`user_of`].
///
/// # Errors
/// The error of `person`, unless its row was damaged.
pub fn look_up(
    id: &CredentialId,
    (row, is_there): (CredentialRow, bool),
    person: Result<Option<StoredPerson>, StoreError>,
    now_ms: u64,
) -> Result<LookedUp, StoreError> {
    let person = match person {
        Err(StoreError::Damaged(error)) => {
            tracing::error!(user = %user_of(&row), %error, "a user's row was changed: it cannot log in");
            None
        }
        person => person?,
    };
    let usable = is_there && row.state == CredentialState::Usable;
    let usable_by = |person: &StoredPerson| usable & person.is_active();
    let (holder, usable) = match (id, person) {
        (CredentialId::User(_), Some(person)) => {
            let usable = usable_by(&person);
            (Holder::User(person), usable)
        }
        (CredentialId::Device(device), Some(person)) => {
            let usable = usable_by(&person);
            (Holder::Device(person, *device), usable)
        }
        (CredentialId::Invite(_), _) => {
            (Holder::Invite(row.terms()), usable && now_ms < row.expires_ms)
        }
        (CredentialId::User(_) | CredentialId::Device(_), None) => {
            (Holder::Invite(row.terms()), false)
        }
    };
    Ok(LookedUp::new(StoredCredential { record: row.record, holder }, usable))
}

/// The row of `user`; both rows are [`MacRow::verified`]. `other` is any user if there is no
/// row of `user`, and otherwise any read of the same cost ([`AFTER_NAMES`]).
///
/// # Errors
/// The error of `found`.
pub fn person(
    found: Option<Result<StoredPerson, StoreError>>,
    other: Option<Result<StoredPerson, StoreError>>,
    key: &RowKey,
    user: &Name,
) -> Result<Option<StoredPerson>, StoreError> {
    if found.is_none() && other.is_none() {
        let user = user.clone();
        let stand_in = StoredPerson {
            user,
            role: UserRole::Member,
            password: false,
            created_ms: 0,
            state: PersonState::Active,
        };
        let _never = stand_in.has_mac(key, &[0; 32]);
    }
    found.transpose()
}

/// The row of the classic key `name`, if its MAC verifies. `other` is any key if there is no row of
/// `name`, and otherwise any read of the same cost ([`AFTER_NAMES`]).
#[must_use]
pub fn classic_key_row(
    found: Option<ReadRow<ClassicKeyRow>>,
    other: Option<ReadRow<ClassicKeyRow>>,
    key: &RowKey,
    name: &Name,
) -> Option<ClassicKeyRow> {
    if let Some(row) = found {
        return ClassicKeyRow::accepted(row, key);
    }
    let other = other.and_then(Result::ok);
    let (other, mac) = other.unwrap_or_else(|| (ClassicKeyRow::stand_in(name), [0; 32]));
    let _never = other.has_mac(key, &mac);
    None
}

/// The user whose row the look-up of a classic key reads next, even if that user does not matter.
#[must_use]
pub fn user_of_classic_key<'r>(row: Option<&'r ClassicKeyRow>, name: &'r Name) -> &'r Name {
    row.map_or(name, |row| &row.key.user)
}

/// The key of a verified row, if it is not revoked, and its user's row verifies and is active.
///
/// # Errors
/// The error of `person`, unless its row was damaged.
pub fn usable_classic_key(
    row: Option<ClassicKeyRow>,
    person: Result<Option<StoredPerson>, StoreError>,
) -> Result<Option<StoredClassicKey>, StoreError> {
    let person = match person {
        Err(StoreError::Damaged(error)) => {
            tracing::error!(%error, "a user's row was changed: its classic keys open nothing");
            None
        }
        person => person?,
    };
    let is_active = person.is_some_and(|person| person.is_active());
    Ok(row.filter(|row| !row.revoked && is_active).map(|row| row.key))
}

/// The primary key of a login source: a MAC over user and address prefix.
///
/// So a look-up for an unknown name searches for random bytes, as does one for an unknown source of
/// a known name.
#[must_use]
pub fn source_tag(key: &RowKey, user: &Name, source: &[u8]) -> [u8; 32] {
    key.mac(&[b"source", user.as_str().as_bytes(), source])
}

/// The tag after which a miss reads its stand-in: stable for a tag and different between tags, like
/// the row of a hit.
#[must_use]
pub fn stand_in_tag(key: &RowKey, tag: &[u8; 32]) -> [u8; 32] {
    key.mac(&[b"stand-in", tag])
}

/// Whether a source is known. `seen_ms`: the time in its row. `other_ms`: the time in the first row
/// after [`stand_in_tag`] if it has none, and otherwise any read of the same cost ([`AFTER_TAGS`]).
#[must_use]
pub fn is_known_source(seen_ms: Option<u64>, other_ms: Option<u64>, now_ms: u64) -> bool {
    let is_there = seen_ms.is_some();
    let seen_ms = seen_ms.or(other_ms).unwrap_or_default();
    is_there & (now_ms.saturating_sub(seen_ms) <= KNOWN_SOURCE_MS)
}

#[cfg(test)]
mod tests {
    use twinlock_core::id::{DeviceId, InviteId};

    use super::*;

    fn key() -> RowKey {
        RowKey::new(&[7; 32])
    }

    fn device(n: u8) -> CredentialId {
        CredentialId::Device(DeviceId([n; 16]))
    }

    fn ada() -> StoredPerson {
        let user = Name::new("ada").unwrap();
        let (role, state) = (UserRole::Member, PersonState::Active);
        StoredPerson { user, role, password: true, created_ms: 1, state }
    }

    fn row(id: &CredentialId) -> (CredentialRow, [u8; 32]) {
        let row = CredentialRow::of_user(id, &ada().user, &[9; RECORD], 1);
        let mac = row.mac(&key());
        (row, mac)
    }

    #[test]
    fn look_up__only_a_verified_usable_row_is_a_hit() {
        let id = device(1);
        let revoked = CredentialRow { state: CredentialState::Revoked, ..row(&id).0 };
        let revoked_mac = revoked.mac(&key());
        let unreadable = || StoreError::Damaged("x".into());
        for (found, other, hit) in [
            (Some(Ok(row(&id))), None, true),
            (Some(Ok(row(&id))), Some(Ok(row(&device(2)))), true),
            // Another row's content, or another MAC.
            (Some(Ok((row(&id).0, [0; 32]))), None, false),
            (Some(Ok((row(&device(2)).0, row(&id).1))), None, false),
            (Some(Err(unreadable())), None, false),
            (Some(Ok((revoked, revoked_mac))), None, false),
            // The stand-in is never the answer, although its MAC verifies.
            (None, Some(Ok(row(&device(2)))), false),
            (None, Some(Err(unreadable())), false),
            (None, None, false),
        ] {
            let found = credential_row(found, other, &key(), &id);
            assert_eq!(found.0.record.len(), RECORD);
            let looked = look_up(&id, found, Ok(Some(ada())), 5).unwrap();
            // A miss carries as many bytes as a hit.
            assert_eq!(looked.credential.record.len(), RECORD);
            assert_eq!(looked.record::<RECORD>().is_some(), hit);
        }
    }

    #[test]
    fn look_up__missing_damaged_or_suspended_user_is_a_miss() {
        let id = device(1);
        let found = || credential_row(Some(Ok(row(&id))), None, &key(), &id);
        assert_eq!(user_of(&found().0), ada().user);
        let damaged = || Err(StoreError::Damaged("x".into()));
        assert!(look_up(&id, found(), Ok(None), 5).unwrap().into_credential().is_none());
        assert!(look_up(&id, found(), damaged(), 5).unwrap().into_credential().is_none());
        for state in [PersonState::Suspended, PersonState::Removed] {
            let person = Ok(Some(StoredPerson { state, ..ada() }));
            assert!(look_up(&id, found(), person, 5).unwrap().into_credential().is_none());
        }
        assert!(look_up(&id, found(), Err(StoreError::Closed), 5).is_err());
    }

    #[test]
    fn look_up__invite_expires_and_needs_no_user() {
        let id = CredentialId::Invite(InviteId([1; 8]));
        let row = CredentialRow { user: None, expires_ms: 6, ..row(&id).0 };
        for (now_ms, hit) in [(5, true), (6, false)] {
            let looked = look_up(&id, (row.clone(), true), Ok(None), now_ms).unwrap();
            assert_eq!(looked.into_credential().is_some(), hit);
        }
    }

    #[test]
    fn stand_in__differs_between_ids_and_is_a_device() {
        let [one, two] = [1, 2].map(|n| stand_in_cid(&key(), &device(n)));
        assert_ne!(one, two);
        assert_eq!((one[0], one), (device(1).cid()[0], stand_in_cid(&key(), &device(1))));
        assert!(AFTER_CIDS.as_slice() > one.as_slice());
        assert!(AFTER_TAGS.as_slice() > [255; 32].as_slice());
    }

    #[test]
    fn source__is_known_for_its_time_only() {
        assert!(is_known_source(Some(1), None, 1 + KNOWN_SOURCE_MS));
        assert!(!is_known_source(Some(1), None, 2 + KNOWN_SOURCE_MS));
        assert!(!is_known_source(None, Some(1), 1));
    }
}
