//! Acts of power, and their audit.

use rusqlite::{Connection, OptionalExtension, params};
use twinlock_core::id::{ConversationId, CredentialId, InviteId, Name, ServerKey};
use twinlock_core::keys::RowKey;
use twinlock_store::rights::{self, Right, Verdict};
use twinlock_store::row_mac::{CredentialRow, CredentialState};
use twinlock_store::{
    AUDIT, Act, ActEffects, Actor, Administered, PersonState, RevokedInvite, RoomKind, StoreError,
    StoredPerson, UserRole,
};

use crate::error::DbError;
use crate::people::changes::{Change, ConversationImage};
use crate::people::members::{enter, is_member, leave};
use crate::people::{WriteTransaction, accounts, classic, conversations, credentials, sources};
use crate::row::{get_name, get_uint};

/// Judges an act and performs it.
pub(crate) fn administer(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    server_key: &ServerKey,
    by: &Actor,
    act: &Act,
) -> Result<Administered, DbError> {
    let conn = transaction.conn;
    let actor = match by {
        Actor::Operator { .. } => None,
        Actor::Person { user, .. } => match credentials::person(conn, key, user)? {
            Some(actor) => Some(actor),
            None => return Ok(Administered::NotAllowed(None)),
        },
    };
    let person = credentials::person(conn, key, act.user())?;
    let Some(person) = person.filter(|person| person.state != PersonState::Removed) else {
        return Ok(Administered::NotFound);
    };
    let is_last_owner = !other_owner(conn, key, &person.user)?;
    match rights::judge(act, actor.as_ref(), &person, is_last_owner) {
        Verdict::Do => {}
        Verdict::Unchanged => return Ok(Administered::Unchanged),
        Verdict::NotAllowed(role) => return Ok(Administered::NotAllowed(role)),
        Verdict::LastOwner => return Ok(Administered::LastOwner),
    }
    if let Act::RevokeDevice { user, device } = act
        && !accounts::revoke_device(transaction, key, user, device)?
    {
        return Ok(Administered::NotFound);
    }
    let (audit, mut moved) = audit(transaction, server_key)?;
    transaction.notices.push((audit, rights::audit_line(by, act, &person)));
    let changed = match act {
        Act::SetRole { role, .. } => StoredPerson { role: *role, ..person },
        Act::Suspend { .. } => StoredPerson { state: PersonState::Suspended, ..person },
        Act::Restore { .. } => StoredPerson { state: PersonState::Active, ..person },
        Act::Remove { .. } => {
            StoredPerson { state: PersonState::Removed, password: false, ..person }
        }
        Act::RevokeDevice { .. } => {
            let audit = (!moved.is_empty()).then_some((audit, moved));
            return Ok(Administered::Done(ActEffects { left: Vec::new(), audit }));
        }
    };
    credentials::write_person(transaction, key, &changed)?;
    let (user, mut left) = (&changed.user, Vec::new());
    revoke_invites(transaction, key, &changed)?;
    if changed.state == PersonState::Removed {
        left = leave_rooms(transaction, user)?;
        revoke_credentials(transaction, key, user)?;
        classic::revoke_all(transaction, key, user)?;
        sources::forget(transaction.conn, user)?;
    }
    if !changed.is_active() {
        transaction.shut_out.push(user.clone());
    }
    let reads_audit = changed.role == UserRole::Owner && changed.state != PersonState::Removed;
    if reads_audit != is_member(transaction.conn, audit, user)? {
        match reads_audit {
            true => enter(transaction, user, audit)?,
            false => leave(transaction, user, audit)?,
        }
        moved.push(user.clone());
    }
    moved.sort_unstable();
    moved.dedup();
    let audit = (!moved.is_empty()).then_some((audit, moved));
    Ok(Administered::Done(ActEffects { left, audit }))
}

/// Revokes an invite that the actor sees.
pub(crate) fn revoke_invite(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    server_key: &ServerKey,
    by: &Actor,
    id: &InviteId,
) -> Result<RevokedInvite, DbError> {
    let conn = transaction.conn;
    let invite = credentials::load(conn, key, &CredentialId::Invite(*id))?;
    let sees = |invite: &CredentialRow| -> Result<bool, DbError> {
        let Actor::Person { user, .. } = by else { return Ok(true) };
        let person = credentials::person(conn, key, user)?;
        let sees = |person| rights::sees_invite(person, invite.made_by.as_ref(), invite.role);
        Ok(person.as_ref().is_some_and(sees))
    };
    let Some(mut invite) = invite else { return Ok(RevokedInvite::NotFound) };
    if !sees(&invite)? {
        return Ok(RevokedInvite::NotFound);
    }
    match invite.state {
        CredentialState::Revoked => return Ok(RevokedInvite::Unchanged),
        CredentialState::Used => return Ok(RevokedInvite::Gone),
        CredentialState::Usable if transaction.now_ms >= invite.expires_ms => {
            return Ok(RevokedInvite::Gone);
        }
        CredentialState::Usable => invite.state = CredentialState::Revoked,
    }
    credentials::write(transaction, key, &invite)?;
    let (audit, entered) = audit(transaction, server_key)?;
    let line = rights::invite_line(by, id, invite.role, invite.made_by.as_ref());
    transaction.notices.push((audit, line));
    let audit = (!entered.is_empty()).then_some((audit, entered));
    Ok(RevokedInvite::Done(ActEffects { left: Vec::new(), audit }))
}

/// Whether an owner other than `user` is active.
fn other_owner(conn: &Connection, key: &RowKey, user: &Name) -> Result<bool, DbError> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {} FROM users INDEXED BY owners
         WHERE role = 2 AND state = 0 AND name <> ?1 ORDER BY name",
        credentials::PERSON
    ))?;
    let mut rows = select.query([user.as_str()])?;
    while let Some(row) = rows.next()? {
        match credentials::get_person(row, key) {
            Ok(_) => return Ok(true),
            // An owner whose row was changed cannot log in.
            Err(DbError(StoreError::Damaged(_))) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The audit, if it exists.
fn existing_audit(conn: &Connection) -> Result<Option<ConversationId>, DbError> {
    let id = conn
        .prepare_cached("SELECT id FROM conversations WHERE kind = 3")?
        .query_row([], |row| get_uint(row, 0))
        .optional()?;
    Ok(id)
}

/// The audit, and the users who have entered it now because it is new.
fn audit(
    transaction: &mut WriteTransaction<'_>,
    server_key: &ServerKey,
) -> Result<(ConversationId, Vec<Name>), DbError> {
    let conn = transaction.conn;
    if let Some(id) = existing_audit(conn)? {
        return Ok((id, Vec::new()));
    }
    let id = conversations::next_id(conn)?;
    transaction.apply(Change::Conversation(ConversationImage {
        id,
        name: Some(audit_name(conn)?),
        low: None,
        high: None,
        topic: String::new(),
        server_key: server_key.0.to_vec(),
        created_ms: transaction.now_ms,
        made_by: None,
        kind: RoomKind::Audit.number().into(),
    }))?;
    let owners = conn
        .prepare_cached("SELECT name FROM users WHERE role = 2 AND state <> 2 ORDER BY name")?
        .query_map([], |row| get_name(row, 0))?
        .collect::<Result<Vec<_>, _>>()?;
    for owner in &owners {
        enter(transaction, owner, id)?;
    }
    Ok((id, owners))
}

/// A free name for the audit. Older versions let a room have it.
fn audit_name(conn: &Connection) -> Result<String, DbError> {
    let mut number = 1;
    loop {
        let name = if number == 1 { AUDIT.to_owned() } else { format!("{AUDIT}-{number}") };
        let free = Name::new(&name).map_err(|_| StoreError::Database("no name is free".into()))?;
        if conversations::room_id(conn, &free)?.is_none() {
            return Ok(name);
        }
        number += 1;
    }
}

/// Lets a new owner read the audit, if there is one.
pub(crate) fn enter_audit(
    transaction: &mut WriteTransaction<'_>,
    person: &StoredPerson,
) -> Result<(), DbError> {
    match existing_audit(transaction.conn)? {
        Some(audit) if person.role == UserRole::Owner => enter(transaction, &person.user, audit),
        _ => Ok(()),
    }
}

/// Revokes the unused invites that a user made and could not make now.
fn revoke_invites(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    maker: &StoredPerson,
) -> Result<(), DbError> {
    let ids = transaction
        .conn
        .prepare_cached(
            "SELECT cid FROM credentials INDEXED BY invites_open WHERE made_by = ?1 AND state = 0",
        )?
        .query_map([maker.user.as_str()], |row| row.get(0))?
        .collect::<Result<Vec<Vec<u8>>, _>>()?;
    for cid in ids {
        let Some(id) = InviteId::from_slice(cid.get(1..).unwrap_or_default()) else { continue };
        let invite = credentials::load(transaction.conn, key, &CredentialId::Invite(id))?;
        let Some(mut invite) = invite else { continue };
        if !(maker.is_active() && rights::may(maker.role, Right::Invite, invite.role)) {
            invite.state = CredentialState::Revoked;
            credentials::write(transaction, key, &invite)?;
        }
    }
    Ok(())
}

/// Revokes the password and all devices of a user.
fn revoke_credentials(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    user: &Name,
) -> Result<(), DbError> {
    let devices = accounts::devices(transaction.conn, key, user)?;
    let ids = devices.into_iter().map(|device| CredentialId::Device(device.id));
    for id in ids.chain([CredentialId::User(user.clone())]) {
        let Some(mut row) = credentials::load(transaction.conn, key, &id)? else { continue };
        if row.state == CredentialState::Usable {
            row.state = CredentialState::Revoked;
            credentials::write(transaction, key, &row)?;
        }
    }
    Ok(())
}

/// Leaves all rooms but the audit, with a notice in each. Returns them.
fn leave_rooms(
    transaction: &mut WriteTransaction<'_>,
    user: &Name,
) -> Result<Vec<ConversationId>, DbError> {
    let rooms = transaction
        .conn
        .prepare_cached(
            "SELECT c.id FROM members m JOIN conversations c ON c.id = m.conversation
             WHERE m.user = ?1 AND c.name IS NOT NULL AND c.kind <> 3 ORDER BY c.id",
        )?
        .query_map(params![user.as_str()], |row| get_uint(row, 0))?
        .collect::<Result<Vec<_>, _>>()?;
    for room in &rooms {
        leave(transaction, user, *room)?;
        transaction.notices.push((*room, format!("{user} was removed")));
    }
    Ok(rooms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::people::test_database::{self, NumberedHeads};

    #[test]
    fn audit__has_another_name_if_a_room_has_its_own() {
        let conn = test_database::empty();
        let heads = NumberedHeads::default();
        let mut transaction = WriteTransaction::new(&conn, &heads, 1);
        // As an older version made it.
        let image = |id, name: &str| {
            Change::Conversation(ConversationImage {
                id,
                name: Some(name.to_owned()),
                server_key: vec![1; 32],
                ..ConversationImage::default()
            })
        };
        transaction.apply(image(1, "lobby")).unwrap();
        transaction.apply(image(2, "audit")).unwrap();
        transaction.apply(image(3, "audit-2")).unwrap();
        let (id, entered) = audit(&mut transaction, &ServerKey([1; 32])).unwrap();
        assert_eq!((id, entered), (4, vec![]));
        assert_eq!(audit(&mut transaction, &ServerKey([1; 32])).unwrap().0, 4);
        let name: String = conn
            .query_row("SELECT name FROM conversations WHERE id = 4", [], |row| row.get(0))
            .unwrap();
        assert_eq!(name, "audit-3");
    }
}
