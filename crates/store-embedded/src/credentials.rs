//! Credential and user rows, each with a MAC.
//!
//! The MAC covers the whole meaning of a row, under a key that is not in the database. A row that
//! was edited or exchanged for another does not verify and counts as missing. The store logs it for
//! the operator, and the login gets the same answer as an unknown name. (An old row of the same
//! credential does verify when it is put back; SECURITY.md describes this.)

use rusqlite::{Connection, OptionalExtension, Row, params};
use twinlock_core::id::{CredentialId, DeviceId, InviteId, Name};
use twinlock_core::keys::RowKey;

use crate::error::DbError;
use crate::row::{get_optional_name, get_uint, int, sound};
use twinlock_store::{Credential, Holder, InviteTerms, LookedUp, Person, Role, StoreError};

/// Length of an OPAQUE record, bytes; only misses need it.
const RECORD: usize = 192;

/// The state of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Usable = 0,
    Revoked = 1,
    Used = 2,
}

/// A row of `credentials`.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) cid: Vec<u8>,
    pub(crate) user: Option<Name>,
    pub(crate) record: Vec<u8>,
    pub(crate) label: String,
    pub(crate) created_ms: u64,
    pub(crate) seen_ms: u64,
    pub(crate) role: Role,
    pub(crate) expires_ms: u64,
    pub(crate) made_by: Option<Name>,
    pub(crate) state: State,
    pub(crate) used_by: Option<Name>,
}

/// First byte of a device's `cid`: stand-ins are devices, because there soon are many. [`BEYOND`]
/// sorts after every row.
const DEVICE: u8 = 2;
const BEYOND: [u8; 1] = [255];

/// Columns that [`read_row`] reads.
pub(crate) const COLUMNS: &str =
    "cid, user, record, label, created_ms, seen_ms, role, expires_ms, made_by, state, used_by, mac";

impl Stored {
    /// A user's credential: the password, or a device.
    pub(crate) fn of_user(id: &CredentialId, user: &Name, record: &[u8], now_ms: u64) -> Self {
        Self {
            cid: id.cid(),
            user: Some(user.clone()),
            record: record.to_vec(),
            label: String::new(),
            created_ms: now_ms,
            seen_ms: 0,
            role: Role::Member,
            expires_ms: 0,
            made_by: None,
            state: State::Usable,
            used_by: None,
        }
    }

    /// The row that a miss verifies, for the same cost as a hit.
    fn nobodys(id: &CredentialId) -> Self {
        Self { cid: id.cid(), user: None, ..Self::of_user(id, &nobody(), &[0; RECORD], 0) }
    }

    /// Runs `f` on the parts that the MAC covers.
    fn with_parts<T>(&self, f: impl FnOnce(&[&[u8]]) -> T) -> T {
        let name = |name: &Option<Name>| name.as_ref().map(Name::to_string).unwrap_or_default();
        let (user, made_by, used_by) = (name(&self.user), name(&self.made_by), name(&self.used_by));
        f(&[
            b"credential",
            &self.cid,
            user.as_bytes(),
            &self.record,
            self.label.as_bytes(),
            &self.created_ms.to_be_bytes(),
            &[role_to(self.role)],
            &self.expires_ms.to_be_bytes(),
            made_by.as_bytes(),
            &[self.state as u8],
            used_by.as_bytes(),
        ])
    }

    /// Writes the row, and replaces one with the same id.
    pub(crate) fn write(&self, conn: &Connection, key: &RowKey) -> Result<(), DbError> {
        let name = |name: &Option<Name>| name.as_ref().map(Name::to_string);
        let mac = self.with_parts(|parts| key.mac(parts));
        conn.prepare_cached(&format!(
            "INSERT OR REPLACE INTO credentials ({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
        ))?
        .execute(params![
            self.cid,
            name(&self.user),
            self.record,
            self.label,
            int(self.created_ms),
            int(self.seen_ms),
            role_to(self.role),
            int(self.expires_ms),
            name(&self.made_by),
            self.state as u8,
            name(&self.used_by),
            mac,
        ])?;
        Ok(())
    }
}

/// Reads a row in the order of [`COLUMNS`], and its MAC.
pub(crate) fn read_row(row: &Row<'_>) -> Result<(Stored, [u8; 32]), DbError> {
    let state = match row.get(9)? {
        0u8 => State::Usable,
        1 => State::Revoked,
        2 => State::Used,
        _ => return Err(StoreError::Damaged("a credential is in no known state".into()).into()),
    };
    let stored = Stored {
        cid: row.get(0)?,
        user: get_optional_name(row, 1)?,
        record: row.get(2)?,
        label: row.get(3)?,
        created_ms: get_uint(row, 4)?,
        seen_ms: get_uint(row, 5)?,
        role: role_from(row.get(6)?)?,
        expires_ms: get_uint(row, 7)?,
        made_by: get_optional_name(row, 8)?,
        state,
        used_by: get_optional_name(row, 10)?,
    };
    Ok((stored, row.get(11)?))
}

/// The row's credential, if its MAC verifies; otherwise logs an error for the operator.
pub(crate) fn verified(
    row: Result<(Stored, [u8; 32]), DbError>,
    key: &RowKey,
    id: &dyn std::fmt::Debug,
) -> Option<Stored> {
    sound(row, |stored, mac| stored.with_parts(|parts| key.verify(parts, mac)))
        .inspect_err(|error| {
            tracing::error!(?id, %error, "a credential's row was changed: it is not accepted");
        })
        .ok()
}

/// Reads one credential; a miss reads and computes as much as a hit.
pub(crate) fn load(
    conn: &Connection,
    key: &RowKey,
    id: &CredentialId,
) -> Result<Option<Stored>, DbError> {
    look(conn, key, id).map(|(stored, is_there)| is_there.then_some(stored))
}

/// The row and `true`, or a stand-in and `false`.
///
/// Hits and misses both query twice and find one row. If the id has no row, the stand-in is read
/// and its MAC is computed for nothing.
fn look(conn: &Connection, key: &RowKey, id: &CredentialId) -> Result<(Stored, bool), DbError> {
    let cid = id.cid();
    // Stable for an id and different between ids. A single stand-in would always be in the
    // processor's cache, and its timing would reveal a miss.
    let mut stand_in = key.mac(&[b"stand-in", &cid]);
    stand_in[0] = DEVICE;
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM credentials WHERE cid = ?1"))?;
    let found = select.query_and_then([&*cid], read_row)?.next();
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM credentials WHERE cid > ?1 LIMIT 1"))?;
    let after: &[u8] = if found.is_some() { &BEYOND } else { &stand_in };
    let other = select.query_and_then([after], read_row)?.next();
    if let Some(row) = found {
        let found = verified(row, key, id);
        let is_there = found.is_some();
        return Ok((found.unwrap_or_else(|| Stored::nobodys(id)), is_there));
    }
    let other = other.and_then(Result::ok);
    let (other, mac) = other.unwrap_or_else(|| (Stored::nobodys(id), [0; 32]));
    let _never = other.with_parts(|parts| key.verify(parts, &mac));
    Ok((other, false))
}

/// Looks up the credential of `id`. Reads two rows and verifies two MACs, on a hit and on a miss.
pub(crate) fn look_up(
    conn: &Connection,
    key: &RowKey,
    id: &CredentialId,
    now_ms: u64,
) -> Result<LookedUp, DbError> {
    let (stored, is_there) = look(conn, key, id)?;
    let whom = stored.user.as_ref().or(stored.made_by.as_ref());
    let user = whom.cloned().unwrap_or_else(nobody);
    let person = match person(conn, key, &user) {
        Err(DbError(StoreError::Damaged(error))) => {
            tracing::error!(%user, %error, "a user's row was changed: it cannot log in");
            None
        }
        person => person?,
    };
    let usable = is_there && stored.state == State::Usable;
    let (holder, usable) = match (id, person) {
        (CredentialId::User(_), Some(person)) => (Holder::User(person), usable),
        (CredentialId::Device(device), Some(person)) => (Holder::Device(person, *device), usable),
        (CredentialId::Invite(_), _) => {
            (Holder::Invite(stored.terms()), usable && now_ms < stored.expires_ms)
        }
        (CredentialId::User(_) | CredentialId::Device(_), None) => {
            (Holder::Invite(stored.terms()), false)
        }
    };
    Ok(LookedUp::new(Credential { record: stored.record, holder }, usable))
}

impl Stored {
    pub(crate) fn terms(&self) -> InviteTerms {
        InviteTerms { role: self.role, user: self.user.clone(), expires_ms: self.expires_ms }
    }

    /// The id of a device's row.
    pub(crate) fn device(&self) -> Option<DeviceId> {
        DeviceId::from_slice(self.cid.get(1..)?)
    }
}

/// An invite that can be used at `now_ms`.
pub(crate) fn open_invite(
    conn: &Connection,
    key: &RowKey,
    id: &InviteId,
    now_ms: u64,
) -> Result<Option<Stored>, DbError> {
    let stored = load(conn, key, &CredentialId::Invite(*id))?;
    Ok(stored.filter(|s| s.state == State::Usable && now_ms < s.expires_ms))
}

/// A name of usual length, for reads that should find nothing. If such a user exists, its row is
/// read and ignored.
fn nobody() -> Name {
    #[allow(clippy::expect_used)]
    Name::new("nobody").expect("a constant")
}

// ---- people

/// Sorts after every name.
pub(crate) const AFTER_NAMES: &str = "~";

/// Columns that [`get_person`] reads.
pub(crate) const PERSON: &str = "name, role, password, created_ms, mac";

fn person_parts<T>(person: &Person, f: impl FnOnce(&[&[u8]]) -> T) -> T {
    f(&[
        b"user",
        person.user.as_str().as_bytes(),
        &[role_to(person.role), u8::from(person.password)],
        &person.created_ms.to_be_bytes(),
    ])
}

/// Reads a user's row in the order of [`PERSON`].
///
/// # Errors
/// [`StoreError::Damaged`] if its MAC does not verify.
pub(crate) fn get_person(row: &Row<'_>, key: &RowKey) -> Result<Person, DbError> {
    let person = Person {
        user: crate::row::get_name(row, 0)?,
        role: role_from(row.get(1)?)?,
        password: row.get(2)?,
        created_ms: get_uint(row, 3)?,
    };
    let mac: [u8; 32] = row.get(4)?;
    if person_parts(&person, |parts| key.verify(parts, &mac)) {
        Ok(person)
    } else {
        Err(StoreError::Damaged(format!("the MAC of user {} does not verify", person.user)).into())
    }
}

/// One user; a miss reads and computes as much as a hit, as with [`load`].
pub(crate) fn person(
    conn: &Connection,
    key: &RowKey,
    user: &Name,
) -> Result<Option<Person>, DbError> {
    let mut select = conn.prepare_cached(&format!("SELECT {PERSON} FROM users WHERE name = ?1"))?;
    let get = |row: &Row<'_>| get_person(row, key);
    let found = select.query_and_then([user.as_str()], get)?.next();
    let mut select =
        conn.prepare_cached(&format!("SELECT {PERSON} FROM users WHERE name > ?1 LIMIT 1"))?;
    let after = if found.is_some() { AFTER_NAMES } else { "" };
    let other = select.query_and_then([after], get)?.next();
    if found.is_none() && other.is_none() {
        let user = user.clone();
        let nobody = Person { user, role: Role::Member, password: false, created_ms: 0 };
        let _never = person_parts(&nobody, |parts| key.verify(parts, &[0; 32]));
    }
    found.transpose()
}

/// Inserts or replaces a user's row.
pub(crate) fn write_person(
    conn: &Connection,
    key: &RowKey,
    person: &Person,
) -> Result<(), DbError> {
    let mac = person_parts(person, |parts| key.mac(parts));
    conn.prepare_cached(&format!(
        "INSERT INTO users ({PERSON}) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (name) DO UPDATE SET role = ?2, password = ?3, created_ms = ?4, mac = ?5"
    ))?
    .execute(params![
        person.user.as_str(),
        role_to(person.role),
        person.password,
        int(person.created_ms),
        mac
    ])?;
    Ok(())
}

/// Whether a row has this name, even if its MAC does not verify.
pub(crate) fn is_taken(conn: &Connection, user: &Name) -> Result<bool, DbError> {
    let there = conn
        .prepare_cached("SELECT 1 FROM users WHERE name = ?1")?
        .query_row([user.as_str()], |_| Ok(()))
        .optional()?;
    Ok(there.is_some())
}

fn role_to(role: Role) -> u8 {
    match role {
        Role::Member => 0,
        Role::Admin => 1,
        Role::Owner => 2,
    }
}

fn role_from(role: u8) -> Result<Role, DbError> {
    match role {
        0 => Ok(Role::Member),
        1 => Ok(Role::Admin),
        2 => Ok(Role::Owner),
        _ => Err(StoreError::Damaged("a row has no known role".into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn credential__miss_costs_the_same_reads_as_a_hit() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(include_str!("../migrations/0001_record.sql")).unwrap();
        let key = RowKey::new(&[7; 32]);
        let ada = Name::new("ada").unwrap();
        let person =
            Person { user: ada.clone(), role: Role::Member, password: true, created_ms: 1 };
        write_person(&conn, &key, &person).unwrap();
        let device = |n| CredentialId::Device(DeviceId([n; 16]));
        let user = CredentialId::User(ada.clone());
        for id in [&user, &device(1), &device(2)] {
            Stored::of_user(id, &ada, &[9; RECORD], 1).write(&conn, &key).unwrap();
        }
        let mut revoked = Stored::of_user(&device(2), &ada, &[9; RECORD], 1);
        revoked.state = State::Revoked;
        revoked.write(&conn, &key).unwrap();
        let invite = |n| CredentialId::Invite(InviteId([n; 8]));
        for (n, state, expires_ms) in
            [(1, State::Usable, 6), (2, State::Used, 6), (3, State::Usable, 5)]
        {
            let made = Stored::of_user(&invite(n), &ada, &[9; RECORD], 1);
            let made_by = Some(ada.clone());
            Stored { user: None, made_by, state, expires_ms, ..made }.write(&conn, &key).unwrap();
        }
        let selects = [
            format!("SELECT {COLUMNS} FROM credentials WHERE cid = ?1"),
            format!("SELECT {COLUMNS} FROM credentials WHERE cid > ?1 LIMIT 1"),
            format!("SELECT {PERSON} FROM users WHERE name = ?1"),
            format!("SELECT {PERSON} FROM users WHERE name > ?1 LIMIT 1"),
        ];
        let nobody = CredentialId::User(Name::new("bob").unwrap());
        for (id, there) in [
            (user, true),
            (device(1), true),
            (device(2), false),
            (device(3), false),
            (nobody, false),
            (invite(1), true),
            (invite(2), false),
            (invite(3), false),
            (invite(4), false),
        ] {
            let (stored, _) = look(&conn, &key, &id).unwrap();
            assert_eq!(stored.record.len(), RECORD, "{id:?}");
            let reset = |select: &String| {
                conn.prepare_cached(select).unwrap().reset_status(StatementStatus::Run)
            };
            selects.iter().map(reset).for_each(drop);
            let looked = look_up(&conn, &key, &id, 5).unwrap();
            assert_eq!(looked.into_credential().is_some(), there, "{id:?}");
            assert_eq!(selects.each_ref().map(reset), [1; 4], "{id:?}");
        }
    }
}
