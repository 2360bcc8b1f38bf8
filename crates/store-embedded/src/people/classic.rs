//! Keys of classic connections and of the origin bridge. Their rows have a MAC, as credentials
//! have.

use rusqlite::{Connection, Row, params};
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::keys::RowKey;
use twinlock_store::equal_cost::{self, AFTER_NAMES};
use twinlock_store::row_mac::{ClassicKeyRow, MacRow as _};
use twinlock_store::{
    AddedClassicKey, Bound, Bounds, ListedClassicKey, StoreError, StoredClassicKey,
};

use crate::error::DbError;
use crate::people::bounded::bounded;
use crate::people::changes::{Change, ClassicKeyImage};
use crate::people::members::writer;
use crate::people::{WriteTransaction, credentials};
use crate::row::{first, get_name, get_optional_name, get_uint, int};

/// Columns that [`read_row`] reads.
pub(crate) const COLUMNS: &str =
    "k.name, k.user, k.conversation, k.form, k.salt, k.created_ms, k.state, k.mac, k.sealed";

/// Writes a row, and replaces one of the same name.
fn write(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    row: &ClassicKeyRow,
) -> Result<(), DbError> {
    transaction.apply(Change::ClassicKey(image(key, row)))
}

/// The row as the log keeps it.
pub(crate) fn image(key: &RowKey, row: &ClassicKeyRow) -> ClassicKeyImage {
    let StoredClassicKey { name, user, conversation, form, salt, sealed, created_ms } = &row.key;
    ClassicKeyImage {
        name: name.to_string(),
        user: user.to_string(),
        conversation: *conversation,
        form: form.number().into(),
        salt: salt.to_vec(),
        sealed: sealed.map(|sealed| sealed.to_vec()),
        created_ms: *created_ms,
        state: u32::from(row.revoked),
        mac: row.mac(key).to_vec(),
    }
}

pub(crate) fn read_row(row: &Row<'_>) -> Result<(ClassicKeyRow, [u8; 32]), DbError> {
    let form = ClassicScheme::from_number(row.get(3)?)
        .ok_or_else(|| StoreError::Damaged("a classic key is of no known form".into()))?;
    let revoked = ClassicKeyRow::is_revoked(row.get(6)?)?;
    let key = StoredClassicKey {
        name: get_name(row, 0)?,
        user: get_name(row, 1)?,
        conversation: get_uint(row, 2)?,
        form,
        salt: row.get(4)?,
        sealed: row.get(8)?,
        created_ms: get_uint(row, 5)?,
    };
    Ok((ClassicKeyRow { key, revoked }, row.get(7)?))
}

/// The row, if its MAC verifies.
fn accepted(row: &Row<'_>, key: &RowKey) -> Option<ClassicKeyRow> {
    ClassicKeyRow::accepted(read_row(row).map_err(StoreError::from), key)
}

/// The usable key of this name. Reads two rows and verifies two MACs, on a hit and on a miss.
pub(crate) fn one(
    conn: &Connection,
    key: &RowKey,
    name: &Name,
) -> Result<Option<StoredClassicKey>, DbError> {
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM classic_keys k WHERE k.name = ?1"))?;
    let found = first(&mut select, [name.as_str()], read_row)?;
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM classic_keys k WHERE k.name > ?1 LIMIT 1"
    ))?;
    let after = if found.is_some() { AFTER_NAMES } else { "" };
    let other = first(&mut select, [after], read_row)?;
    usable(conn, key, name, equal_cost::classic_key_row(found, other, key, name))
}

/// The usable key of this form. There is at most one, unless an old row was restored.
pub(crate) fn of_form(
    conn: &Connection,
    key: &RowKey,
    form: ClassicScheme,
) -> Result<Option<StoredClassicKey>, DbError> {
    for stored in unrevoked(conn, key, form)? {
        let name = stored.key.name.clone();
        if let Some(found) = usable(conn, key, &name, Some(stored))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// All keys of this form that are not revoked and whose MAC verifies, even if their user's row is
/// damaged.
fn unrevoked(
    conn: &Connection,
    key: &RowKey,
    form: ClassicScheme,
) -> Result<Vec<ClassicKeyRow>, DbError> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM classic_keys k INDEXED BY classic_form
         WHERE k.form = ?1 AND k.state = 0"
    ))?;
    let mut rows = select.query([form.number()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(accepted(row, key));
    }
    Ok(found)
}

/// Whether entries under this key may be recorded in this conversation.
///
/// Reads only the key's row and does not verify its MAC: the sender has opened its connection with
/// the key.
pub(crate) fn may_append(
    conn: &Connection,
    name: &Name,
    user: &Name,
    conversation: ConversationId,
) -> Result<bool, DbError> {
    let mut select = conn.prepare_cached(
        "SELECT 1 FROM classic_keys
         WHERE name = ?1 AND user = ?2 AND conversation = ?3 AND state = 0",
    )?;
    Ok(select.exists(params![name.as_str(), user.as_str(), int(conversation)])?)
}

/// The key, if it is not revoked and its user's row verifies.
fn usable(
    conn: &Connection,
    key: &RowKey,
    name: &Name,
    found: Option<ClassicKeyRow>,
) -> Result<Option<StoredClassicKey>, DbError> {
    let user = equal_cost::user_of_classic_key(found.as_ref(), name);
    let person = credentials::person(conn, key, user).map_err(StoreError::from);
    Ok(equal_cost::usable_classic_key(found, person)?)
}

pub(crate) fn list(
    conn: &Connection,
    key: &RowKey,
    of: Option<&Name>,
    after: Option<&Name>,
    max: usize,
) -> Result<Vec<ListedClassicKey>, DbError> {
    let (index, whose) = match of {
        None => ("classic_usable", "?2 IS NULL"),
        Some(_) => ("classic_user", "k.user = ?2"),
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS}, c.name FROM classic_keys k INDEXED BY {index}
         LEFT JOIN conversations c ON c.id = k.conversation
         WHERE k.name > ?1 AND k.state = 0 AND {whose} ORDER BY k.name"
    ))?;
    let mut rows = select.query(params![after.map_or("", Name::as_str), of.map(Name::as_str)])?;
    let mut keys = Vec::new();
    // Damaged rows do not count, because a page that is not full means the end of the list.
    while keys.len() < max
        && let Some(row) = rows.next()?
    {
        if let Some(stored) = accepted(row, key) {
            keys.push(ListedClassicKey { key: stored.key, room: get_optional_name(row, 9)? });
        }
    }
    Ok(keys)
}

/// The row of this name for a write; `Some(None)` if its MAC does not verify.
fn named(
    conn: &Connection,
    key: &RowKey,
    name: &Name,
) -> Result<Option<Option<ClassicKeyRow>>, DbError> {
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM classic_keys k WHERE k.name = ?1"))?;
    let mut rows = select.query([name.as_str()])?;
    Ok(rows.next()?.map(|row| accepted(row, key)))
}

pub(crate) fn add(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    new: &StoredClassicKey,
    bounds: &Bounds,
) -> Result<AddedClassicKey, DbError> {
    let conn = transaction.conn;
    if let Some(old) = named(conn, key, &new.name)? {
        // The same user may reuse a name, so that readers of its entries need not learn another.
        let free = old.is_some_and(|old| old.revoked && old.key.user == new.user);
        if !free {
            return Ok(AddedClassicKey::NameTaken);
        }
    }
    // Messages of the bridge do not name their key.
    if new.form != ClassicScheme::Jwe && !unrevoked(conn, key, new.form)?.is_empty() {
        return Ok(AddedClassicKey::FormTaken);
    }
    if writer(conn, new.conversation, &new.user)?.is_err() {
        return Ok(AddedClassicKey::NotAMember);
    }
    let sql = "SELECT 1 FROM classic_keys INDEXED BY classic_user WHERE user = ?1 AND state = 0";
    bounded(conn, sql, [new.user.as_str()], Bound::ClassicKeys, bounds.classic_keys)?;
    write(transaction, key, &ClassicKeyRow { key: new.clone(), revoked: false })?;
    Ok(AddedClassicKey::Added)
}

/// Revokes all keys of a user.
pub(crate) fn revoke_all(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    user: &Name,
) -> Result<(), DbError> {
    let names = transaction
        .conn
        .prepare_cached(
            "SELECT name FROM classic_keys INDEXED BY classic_user
             WHERE user = ?1 AND state = 0 ORDER BY name",
        )?
        .query_map([user.as_str()], |row| get_name(row, 0))?
        .collect::<Result<Vec<_>, _>>()?;
    for name in names {
        revoke(transaction, key, &name)?;
    }
    Ok(())
}

pub(crate) fn revoke(
    transaction: &mut WriteTransaction<'_>,
    key: &RowKey,
    name: &Name,
) -> Result<bool, DbError> {
    let stored = named(transaction.conn, key, name)?.flatten();
    let Some(stored) = stored.filter(|stored| !stored.revoked) else { return Ok(false) };
    write(transaction, key, &ClassicKeyRow { revoked: true, ..stored })?;
    Ok(true)
}
