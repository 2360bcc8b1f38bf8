//! Users, their devices and the invites that make them.

use rusqlite::{Connection, params};
use twinlock_core::id::{CredentialId, DeviceId, InviteId, Name};
use twinlock_core::keys::RowKey;
use twinlock_store::rights::{self, Right};
use twinlock_store::row_mac::{CredentialRow, CredentialState};
use twinlock_store::{
    Bound, Bounds, InviteState, LOBBY, ListedInvite, NewDevice, PersonState, PreparedInvite,
    Registered, Registration, StoreError, StoredDevice, StoredPerson, UserRole,
};

use crate::error::DbError;
use crate::people::bounded::bounded;
use crate::people::{WriteTransaction, administration, credentials, members};
use crate::row::{int, limit};

/// First byte of an invite's `cid`.
const INVITE: u8 = 3;

pub(crate) fn list(
    conn: &Connection,
    key: &RowKey,
    after: Option<&Name>,
    max: usize,
) -> Result<Vec<StoredPerson>, DbError> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {} FROM users WHERE name > ?1 AND state <> 2 ORDER BY name LIMIT ?2",
        credentials::PERSON
    ))?;
    let mut rows = select.query(params![after.map_or("", Name::as_str), limit(max)])?;
    let mut people = Vec::new();
    while let Some(row) = rows.next()? {
        people.push(credentials::get_person(row, key)?);
    }
    Ok(people)
}

pub(crate) fn devices(
    conn: &Connection,
    key: &RowKey,
    user: &Name,
) -> Result<Vec<StoredDevice>, DbError> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {} FROM credentials INDEXED BY devices
         WHERE user = ?1 AND state = 0 AND substr(cid, 1, 1) = x'02' ORDER BY created_ms, cid",
        credentials::COLUMNS
    ))?;
    let mut rows = select.query([user.as_str()])?;
    let mut devices = Vec::new();
    while let Some(row) = rows.next()? {
        let row = credentials::read_row(row).map_err(StoreError::from);
        let stored = CredentialRow::accepted(row, key, user);
        if let Some(stored) = stored.filter(|stored| stored.state == CredentialState::Usable)
            && let Some(id) = stored.device()
        {
            let CredentialRow { label, created_ms, seen_ms, .. } = stored;
            devices.push(StoredDevice { id, label, created_ms, seen_ms });
        }
    }
    Ok(devices)
}

pub(crate) fn add_invite(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    invite: &PreparedInvite,
    bounds: &Bounds,
) -> Result<bool, DbError> {
    if let Some(maker) = &invite.made_by {
        let person = credentials::person(transaction.conn, key, maker)?;
        let may = |person: StoredPerson| {
            person.is_active() && rights::may(person.role, Right::Invite, invite.terms.role)
        };
        if !person.is_some_and(may) {
            return Ok(false);
        }
        let sql = "SELECT 1 FROM credentials INDEXED BY invites_open
             WHERE made_by = ?1 AND state = 0 AND expires_ms > ?2";
        let of = params![maker.as_str(), int(transaction.now_ms)];
        bounded(transaction.conn, sql, of, Bound::Invites, bounds.invites)?;
    }
    let id = CredentialId::Invite(invite.id);
    new_id(transaction.conn, &id)?;
    let stored = CredentialRow {
        cid: id.cid(),
        user: invite.terms.user.clone(),
        record: invite.record.clone(),
        label: String::new(),
        created_ms: invite.created_ms,
        seen_ms: 0,
        role: invite.terms.role,
        expires_ms: invite.terms.expires_ms,
        made_by: invite.made_by.clone(),
        state: CredentialState::Usable,
        used_by: None,
    };
    credentials::write(transaction, key, &stored)?;
    Ok(true)
}

/// The invites that a user sees.
pub(crate) fn invites(
    conn: &Connection,
    key: &RowKey,
    user: &Name,
    after: Option<InviteId>,
    max: usize,
) -> Result<Vec<ListedInvite>, DbError> {
    let Some(person) = credentials::person(conn, key, user)? else { return Ok(Vec::new()) };
    // Otherwise the search for none would go through all of them.
    if !UserRole::ALL.iter().any(|role| rights::may(person.role, Right::Invite, *role)) {
        return Ok(Vec::new());
    }
    let after = after.map_or_else(|| vec![INVITE], |id| CredentialId::Invite(id).cid());
    let mut select = conn.prepare_cached(&format!(
        "SELECT {} FROM credentials WHERE cid > ?1 AND cid < ?2 ORDER BY cid",
        credentials::COLUMNS
    ))?;
    let mut rows = select.query(params![after, [INVITE + 1]])?;
    let mut invites = Vec::new();
    while invites.len() < max
        && let Some(row) = rows.next()?
    {
        let row = credentials::read_row(row).map_err(StoreError::from);
        let Some(row) = CredentialRow::accepted(row, key, &"an invite") else { continue };
        let Some(id) = row.cid.get(1..).and_then(InviteId::from_slice) else { continue };
        if !rights::sees_invite(&person, row.made_by.as_ref(), row.role) {
            continue;
        }
        let terms = row.terms();
        let state = match (row.state, row.used_by) {
            (CredentialState::Usable, _) => InviteState::Unused,
            (CredentialState::Used, Some(user)) => InviteState::Used(user),
            (CredentialState::Revoked | CredentialState::Used, _) => InviteState::Revoked,
        };
        let (made_by, created_ms) = (row.made_by, row.created_ms);
        invites.push(ListedInvite { id, terms, made_by, created_ms, state });
    }
    Ok(invites)
}

pub(crate) fn register(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    registration: &Registration,
    now_ms: u64,
) -> Result<Registered, DbError> {
    let Registration { invite, user, password, device } = registration;
    let Some(mut invite) = credentials::open_invite(transaction.conn, key, invite, now_ms)? else {
        return Ok(Registered::InviteGone);
    };
    if invite.user.as_ref().is_some_and(|only| only != user) {
        return Ok(Registered::NotThisName);
    }
    if credentials::is_taken(transaction.conn, user)? {
        return Ok(Registered::NameTaken);
    }
    let person = StoredPerson {
        user: user.clone(),
        role: invite.role,
        password: password.is_some(),
        created_ms: now_ms,
        state: PersonState::Active,
    };
    credentials::write_person(transaction, key, &person)?;
    if let Some(record) = password {
        let id = CredentialId::User(user.clone());
        credentials::write(transaction, key, &CredentialRow::of_user(&id, user, record, now_ms))?;
    }
    if let Some(device) = device {
        enrol(transaction, key, user, device, now_ms)?;
    }
    members::enter(transaction, user, LOBBY)?;
    administration::enter_audit(transaction, &person)?;
    invite.state = CredentialState::Used;
    invite.used_by = Some(user.clone());
    credentials::write(transaction, key, &invite)?;
    Ok(Registered::Done(person))
}

fn enrol(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    user: &Name,
    device: &NewDevice,
    now_ms: u64,
) -> Result<(), DbError> {
    let id = CredentialId::Device(device.id);
    new_id(transaction.conn, &id)?;
    let stored = CredentialRow {
        label: device.label.clone(),
        ..CredentialRow::of_user(&id, user, &device.record, now_ms)
    };
    credentials::write(transaction, key, &stored)
}

/// Ids are random; an existing one is never overwritten.
fn new_id(conn: &Connection, id: &CredentialId) -> Result<(), DbError> {
    let exists =
        conn.prepare_cached("SELECT 1 FROM credentials WHERE cid = ?1")?.exists([id.cid()])?;
    if exists {
        return Err(StoreError::Database("a new credential has the id of another".into()).into());
    }
    Ok(())
}

pub(crate) fn add_device(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    user: &Name,
    device: &NewDevice,
    now_ms: u64,
    bounds: &Bounds,
) -> Result<bool, DbError> {
    let person = credentials::person(transaction.conn, key, user)?;
    if !person.is_some_and(|person| person.is_active()) {
        return Ok(false);
    }
    let sql = "SELECT 1 FROM credentials INDEXED BY devices
         WHERE user = ?1 AND state = 0 AND substr(cid, 1, 1) = x'02'";
    bounded(transaction.conn, sql, [user.as_str()], Bound::Devices, bounds.devices)?;
    enrol(transaction, key, user, device, now_ms)?;
    Ok(true)
}

pub(crate) fn set_password(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    user: &Name,
    record: &[u8],
    now_ms: u64,
) -> Result<bool, DbError> {
    let person = credentials::person(transaction.conn, key, user)?;
    let Some(person) = person.filter(StoredPerson::is_active) else { return Ok(false) };
    let id = CredentialId::User(user.clone());
    credentials::write(transaction, key, &CredentialRow::of_user(&id, user, record, now_ms))?;
    if !person.password {
        credentials::write_person(transaction, key, &StoredPerson { password: true, ..person })?;
    }
    Ok(true)
}

pub(crate) fn revoke_device(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    user: &Name,
    device: &DeviceId,
) -> Result<bool, DbError> {
    let stored = credentials::load(transaction.conn, key, &CredentialId::Device(*device))?;
    let Some(mut stored) = stored else { return Ok(false) };
    if stored.user.as_ref() != Some(user) || stored.state != CredentialState::Usable {
        return Ok(false);
    }
    stored.state = CredentialState::Revoked;
    credentials::write(transaction, key, &stored)?;
    Ok(true)
}

/// Notes a login of a device. Not in the log: it would keep all of them.
pub(crate) fn touch_device(
    conn: &Connection,
    device: &DeviceId,
    now_ms: u64,
) -> Result<(), DbError> {
    conn.prepare_cached("UPDATE credentials SET seen_ms = ?2 WHERE cid = ?1 AND seen_ms < ?2")?
        .execute(params![CredentialId::Device(*device).cid(), int(now_ms)])?;
    Ok(())
}
