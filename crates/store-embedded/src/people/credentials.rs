//! Credential and user rows. Their MACs and the look-ups of equal cost are those of the contract.

use rusqlite::{Connection, OptionalExtension, Row};
use twinlock_core::id::{CredentialId, InviteId, Name};
use twinlock_core::keys::RowKey;
use twinlock_store::equal_cost::{self, AFTER_CIDS, AFTER_NAMES};
use twinlock_store::row_mac::{CredentialRow, CredentialState, MacRow as _};
use twinlock_store::{LookedUp, PersonState, StoreError, StoredPerson, UserRole};

use crate::error::DbError;
use crate::people::WriteTransaction;
use crate::people::changes::{Change, CredentialImage, PersonImage};
use crate::row::{first, get_name, get_optional_name, get_uint};

/// Columns that [`read_row`] reads.
pub(crate) const COLUMNS: &str =
    "cid, user, record, label, created_ms, seen_ms, role, expires_ms, made_by, state, used_by, mac";

/// Writes a row, and replaces one with the same id. The time of the last login in `row` does not
/// count.
pub(crate) fn write(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    row: &CredentialRow,
) -> Result<(), DbError> {
    transaction.apply(Change::Credential(image(key, row)))
}

/// The row as the log keeps it.
pub(crate) fn image(key: &RowKey, row: &CredentialRow) -> CredentialImage {
    let name = |name: &Option<Name>| name.as_ref().map(Name::to_string);
    CredentialImage {
        cid: row.cid.clone(),
        user: name(&row.user),
        record: row.record.clone(),
        label: row.label.clone(),
        created_ms: row.created_ms,
        role: row.role.number().into(),
        expires_ms: row.expires_ms,
        made_by: name(&row.made_by),
        state: row.state.number().into(),
        used_by: name(&row.used_by),
        mac: row.mac(key).to_vec(),
    }
}

/// Reads a row in the order of [`COLUMNS`], and its MAC.
pub(crate) fn read_row(row: &Row<'_>) -> Result<(CredentialRow, [u8; 32]), DbError> {
    let credential = CredentialRow {
        cid: row.get(0)?,
        user: get_optional_name(row, 1)?,
        record: row.get(2)?,
        label: row.get(3)?,
        created_ms: get_uint(row, 4)?,
        seen_ms: get_uint(row, 5)?,
        role: UserRole::from_number(row.get(6)?)?,
        expires_ms: get_uint(row, 7)?,
        made_by: get_optional_name(row, 8)?,
        state: CredentialState::from_number(row.get(9)?)?,
        used_by: get_optional_name(row, 10)?,
    };
    Ok((credential, row.get(11)?))
}

/// Reads one credential; a miss reads and computes as much as a hit.
pub(crate) fn load(
    conn: &Connection,
    key: &RowKey,
    id: &CredentialId,
) -> Result<Option<CredentialRow>, DbError> {
    find(conn, key, id).map(|(row, is_there)| is_there.then_some(row))
}

/// The row and `true`, or a stand-in and `false`.
///
/// Hits and misses both query twice and find one row.
fn find(
    conn: &Connection,
    key: &RowKey,
    id: &CredentialId,
) -> Result<(CredentialRow, bool), DbError> {
    let cid = id.cid();
    let stand_in = equal_cost::stand_in_cid(key, id);
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM credentials WHERE cid = ?1"))?;
    let found = first(&mut select, [&*cid], read_row)?;
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM credentials WHERE cid > ?1 LIMIT 1"))?;
    let after: &[u8] = if found.is_some() { &AFTER_CIDS } else { &stand_in };
    let other = first(&mut select, [after], read_row)?;
    Ok(equal_cost::credential_row(found, other, key, id))
}

/// Looks up the credential of `id`. Reads two rows and verifies two MACs, on a hit and on a miss.
pub(crate) fn look_up(
    conn: &Connection,
    key: &RowKey,
    id: &CredentialId,
    now_ms: u64,
) -> Result<LookedUp, DbError> {
    let found = find(conn, key, id)?;
    let person = person(conn, key, &equal_cost::user_of(&found.0)).map_err(StoreError::from);
    Ok(equal_cost::look_up(id, found, person, now_ms)?)
}

/// An invite that can be used at `now_ms`.
pub(crate) fn open_invite(
    conn: &Connection,
    key: &RowKey,
    id: &InviteId,
    now_ms: u64,
) -> Result<Option<CredentialRow>, DbError> {
    let stored = load(conn, key, &CredentialId::Invite(*id))?;
    Ok(stored.filter(|s| s.state == CredentialState::Usable && now_ms < s.expires_ms))
}

// ---- people

/// Columns that [`get_person`] reads.
pub(crate) const PERSON: &str = "name, role, password, created_ms, mac, state";

/// Reads a user's row in the order of [`PERSON`].
///
/// # Errors
/// [`StoreError::Damaged`] if its MAC does not verify.
pub(crate) fn get_person(row: &Row<'_>, key: &RowKey) -> Result<StoredPerson, DbError> {
    let person = StoredPerson {
        user: get_name(row, 0)?,
        role: UserRole::from_number(row.get(1)?)?,
        password: row.get(2)?,
        created_ms: get_uint(row, 3)?,
        state: PersonState::from_number(row.get(5)?)?,
    };
    Ok(StoredPerson::verified(Ok((person, row.get(4)?)), key)?)
}

/// One user; a miss reads and computes as much as a hit, as with [`load`].
pub(crate) fn person(
    conn: &Connection,
    key: &RowKey,
    user: &Name,
) -> Result<Option<StoredPerson>, DbError> {
    let get = |row: &Row<'_>| get_person(row, key);
    let mut select = conn.prepare_cached(&format!("SELECT {PERSON} FROM users WHERE name = ?1"))?;
    let found = first(&mut select, [user.as_str()], get)?;
    let mut select =
        conn.prepare_cached(&format!("SELECT {PERSON} FROM users WHERE name > ?1 LIMIT 1"))?;
    let after = if found.is_some() { AFTER_NAMES } else { "" };
    let other = first(&mut select, [after], get)?;
    Ok(equal_cost::person(found, other, key, user)?)
}

/// Inserts or replaces a user's row. A new user gets the next number.
pub(crate) fn write_person(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    person: &StoredPerson,
) -> Result<(), DbError> {
    let id = match user_number(transaction.conn, &person.user)? {
        Some(id) => id,
        None => transaction
            .conn
            .prepare_cached("SELECT coalesce(max(id), 0) + 1 FROM users")?
            .query_row([], |row| get_uint(row, 0))?,
    };
    transaction.apply(Change::Person(PersonImage {
        id,
        name: person.user.to_string(),
        role: person.role.number().into(),
        password: person.password,
        created_ms: person.created_ms,
        mac: person.mac(key).to_vec(),
        state: person.state.number().into(),
    }))
}

/// The number of a user, by which entries, message ids and files refer to it. Numbers start at 1.
pub(crate) fn user_number(conn: &Connection, user: &Name) -> Result<Option<u64>, DbError> {
    let number = conn
        .prepare_cached("SELECT id FROM users WHERE name = ?1")?
        .query_row([user.as_str()], |row| get_uint(row, 0))
        .optional()?;
    Ok(number)
}

/// Whether a user is neither suspended nor removed. Does not verify the row's MAC.
pub(crate) fn is_active(conn: &Connection, user: &Name) -> Result<bool, DbError> {
    let mut select = conn.prepare_cached("SELECT 1 FROM users WHERE name = ?1 AND state = 0")?;
    Ok(select.exists([user.as_str()])?)
}

/// Whether a user exists who was not removed, active or suspended.
pub(crate) fn is_there(conn: &Connection, user: &Name) -> Result<bool, DbError> {
    let mut select = conn.prepare_cached("SELECT 1 FROM users WHERE name = ?1 AND state <> 2")?;
    Ok(select.exists([user.as_str()])?)
}

/// Whether a row has this name, even if its MAC does not verify.
pub(crate) fn is_taken(conn: &Connection, user: &Name) -> Result<bool, DbError> {
    Ok(user_number(conn, user)?.is_some())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::people::test_database::{self, NumberedHeads};
    use twinlock_core::id::DeviceId;

    const RECORD: usize = 192;

    #[test]
    fn credential__miss_costs_the_same_reads_as_a_hit() {
        let conn = test_database::empty();
        let heads = NumberedHeads::default();
        let mut transaction = WriteTransaction::new(&conn, &heads, 1);
        let transaction = &mut transaction;
        let key = RowKey::new(&[7; 32]);
        let ada = Name::new("ada").unwrap();
        let person = StoredPerson {
            user: ada.clone(),
            role: UserRole::Member,
            password: true,
            created_ms: 1,
            state: PersonState::Active,
        };
        write_person(transaction, &key, &person).unwrap();
        let device = |n| CredentialId::Device(DeviceId([n; 16]));
        let user = CredentialId::User(ada.clone());
        for id in [&user, &device(1), &device(2)] {
            write(transaction, &key, &CredentialRow::of_user(id, &ada, &[9; RECORD], 1)).unwrap();
        }
        let mut revoked = CredentialRow::of_user(&device(2), &ada, &[9; RECORD], 1);
        revoked.state = CredentialState::Revoked;
        write(transaction, &key, &revoked).unwrap();
        let invite = |n| CredentialId::Invite(InviteId([n; 8]));
        for (n, state, expires_ms) in [
            (1, CredentialState::Usable, 6),
            (2, CredentialState::Used, 6),
            (3, CredentialState::Usable, 5),
        ] {
            let made = CredentialRow::of_user(&invite(n), &ada, &[9; RECORD], 1);
            let made_by = Some(ada.clone());
            let row = CredentialRow { user: None, made_by, state, expires_ms, ..made };
            write(transaction, &key, &row).unwrap();
        }
        let selects = [
            format!("SELECT {COLUMNS} FROM credentials WHERE cid = ?1"),
            format!("SELECT {COLUMNS} FROM credentials WHERE cid > ?1 LIMIT 1"),
            format!("SELECT {PERSON} FROM users WHERE name = ?1"),
            format!("SELECT {PERSON} FROM users WHERE name > ?1 LIMIT 1"),
        ];
        let unknown = CredentialId::User(Name::new("bob").unwrap());
        for (id, exists) in [
            (user, true),
            (device(1), true),
            (device(2), false),
            (device(3), false),
            (unknown, false),
            (invite(1), true),
            (invite(2), false),
            (invite(3), false),
            (invite(4), false),
        ] {
            let (stored, _) = find(&conn, &key, &id).unwrap();
            assert_eq!(stored.record.len(), RECORD, "{id:?}");
            let reset = |select: &String| {
                conn.prepare_cached(select).unwrap().reset_status(StatementStatus::Run)
            };
            selects.iter().map(reset).for_each(drop);
            let looked = look_up(&conn, &key, &id, 5).unwrap();
            assert_eq!(looked.into_credential().is_some(), exists, "{id:?}");
            assert_eq!(selects.each_ref().map(reset), [1; 4], "{id:?}");
        }
    }
}
