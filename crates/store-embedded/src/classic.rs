//! Keys of classic connections and of the origin bridge. Their rows have a MAC, as credentials
//! have.

use rusqlite::{Connection, Row, params};
use twinlock_core::classic::Form;
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::keys::RowKey;

use crate::conversations::bounded;
use crate::credentials;
use crate::error::DbError;
use crate::recorder::Desk;
use crate::row::{get_name, get_optional_name, get_uint, int, sound};
use twinlock_store::{AddedClassicKey, Bound, Bounds, ClassicKey, ListedClassicKey, StoreError};

/// Columns that [`read_row`] reads.
const COLUMNS: &str =
    "k.name, k.user, k.conversation, k.form, k.salt, k.created_ms, k.state, k.mac, k.sealed";

/// A row, usable or revoked.
struct Stored {
    key: ClassicKey,
    revoked: bool,
}

impl Stored {
    /// Runs `f` on the parts that the MAC covers.
    fn with_parts<T>(&self, f: impl FnOnce(&[&[u8]]) -> T) -> T {
        let ClassicKey { name, user, conversation, form, salt, sealed, created_ms } = &self.key;
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

    /// Writes the row, and replaces one of the same name.
    fn write(&self, conn: &Connection, key: &RowKey) -> Result<(), DbError> {
        let ClassicKey { name, user, conversation, form, salt, sealed, created_ms } = &self.key;
        let mac = self.with_parts(|parts| key.mac(parts));
        conn.prepare_cached(
            "INSERT OR REPLACE INTO classic_keys
                (name, user, conversation, form, salt, created_ms, state, mac, sealed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            name.as_str(),
            user.as_str(),
            int(*conversation),
            form.number(),
            salt,
            int(*created_ms),
            u8::from(self.revoked),
            mac,
            sealed,
        ])?;
        Ok(())
    }
}

fn read_row(row: &Row<'_>) -> Result<(Stored, [u8; 32]), DbError> {
    let unknown = |what: &str| DbError(StoreError::Damaged(format!("a classic key is {what}")));
    let form = Form::from_number(row.get(3)?).ok_or_else(|| unknown("of no known form"))?;
    let revoked = match row.get(6)? {
        0u8 => false,
        1 => true,
        _ => return Err(unknown("in no known state")),
    };
    let key = ClassicKey {
        name: get_name(row, 0)?,
        user: get_name(row, 1)?,
        conversation: get_uint(row, 2)?,
        form,
        salt: row.get(4)?,
        sealed: row.get(8)?,
        created_ms: get_uint(row, 5)?,
    };
    Ok((Stored { key, revoked }, row.get(7)?))
}

/// The row, if its MAC verifies; otherwise logs an error for the operator.
fn verified(row: Result<(Stored, [u8; 32]), DbError>, key: &RowKey) -> Option<Stored> {
    sound(row, |stored, mac| stored.with_parts(|parts| key.verify(parts, mac)))
        .inspect_err(|error| {
            tracing::error!(%error, "a classic key's row was changed: it is not accepted");
        })
        .ok()
}

/// The usable key of this name. Reads two rows and verifies two MACs, on a hit and on a miss.
pub(crate) fn one(
    conn: &Connection,
    key: &RowKey,
    name: &Name,
) -> Result<Option<ClassicKey>, DbError> {
    let mut select =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM classic_keys k WHERE k.name = ?1"))?;
    let found = select.query_and_then([name.as_str()], read_row)?.next();
    // As for credentials: a hit and a miss both query twice and find one row.
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM classic_keys k WHERE k.name > ?1 LIMIT 1"
    ))?;
    let after = if found.is_some() { credentials::AFTER_NAMES } else { "" };
    let other = select.query_and_then([after], read_row)?.next();
    let found = match found {
        Some(row) => verified(row, key),
        None => {
            let other = other.and_then(Result::ok);
            let (other, mac) = other.unwrap_or_else(|| (nobodys(name), [0; 32]));
            let _never = other.with_parts(|parts| key.verify(parts, &mac));
            None
        }
    };
    usable(conn, key, name, found)
}

/// The usable key of this form. There is at most one, unless an old row was restored.
pub(crate) fn of_form(
    conn: &Connection,
    key: &RowKey,
    form: Form,
) -> Result<Option<ClassicKey>, DbError> {
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
fn unrevoked(conn: &Connection, key: &RowKey, form: Form) -> Result<Vec<Stored>, DbError> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM classic_keys k INDEXED BY classic_form
         WHERE k.form = ?1 AND k.state = 0"
    ))?;
    let mut rows = select.query([form.number()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(verified(read_row(row), key));
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
    found: Option<Stored>,
) -> Result<Option<ClassicKey>, DbError> {
    let user = found.as_ref().map_or(name, |stored| &stored.key.user);
    let person = match credentials::person(conn, key, user) {
        Err(DbError(StoreError::Damaged(error))) => {
            tracing::error!(%error, "a user's row was changed: its classic keys open nothing");
            None
        }
        person => person?,
    };
    Ok(found.filter(|stored| !stored.revoked && person.is_some()).map(|stored| stored.key))
}

/// The row that a miss verifies, for the same cost as a hit.
fn nobodys(name: &Name) -> Stored {
    let key = ClassicKey {
        name: name.clone(),
        user: name.clone(),
        conversation: 0,
        form: Form::Jwe,
        salt: [0; 32],
        sealed: None,
        created_ms: 0,
    };
    Stored { key, revoked: true }
}

pub(crate) fn list(
    conn: &Connection,
    key: &RowKey,
    of: Option<&Name>,
    after: Option<&Name>,
    most: usize,
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
    while keys.len() < most
        && let Some(row) = rows.next()?
    {
        if let Some(stored) = verified(read_row(row), key) {
            keys.push(ListedClassicKey { key: stored.key, room: get_optional_name(row, 9)? });
        }
    }
    Ok(keys)
}

pub(crate) fn add(
    desk: &mut Desk<'_>,
    key: &RowKey,
    new: &ClassicKey,
    bounds: &Bounds,
) -> Result<AddedClassicKey, DbError> {
    let mut select = desk
        .conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM classic_keys k WHERE k.name = ?1"))?;
    let mut rows = select.query([new.name.as_str()])?;
    if let Some(row) = rows.next()? {
        // The same user may reuse a name, so that readers of its entries need not learn another.
        let free =
            verified(read_row(row), key).is_some_and(|old| old.revoked && old.key.user == new.user);
        if !free {
            return Ok(AddedClassicKey::NameTaken);
        }
    }
    // Messages of the bridge do not name their key.
    if new.form != Form::Jwe && !unrevoked(desk.conn, key, new.form)?.is_empty() {
        return Ok(AddedClassicKey::FormTaken);
    }
    let member = desk
        .conn
        .prepare_cached("SELECT 1 FROM members WHERE conversation = ?1 AND user = ?2")?
        .exists(params![int(new.conversation), new.user.as_str()])?;
    if !member {
        return Ok(AddedClassicKey::NotAMember);
    }
    let sql = "SELECT 1 FROM classic_keys INDEXED BY classic_user WHERE user = ?1 AND state = 0";
    bounded(desk.conn, sql, [new.user.as_str()], Bound::ClassicKeys, bounds.classic_keys)?;
    Stored { key: new.clone(), revoked: false }.write(desk.conn, key)?;
    Ok(AddedClassicKey::Added)
}

pub(crate) fn revoke(desk: &mut Desk<'_>, key: &RowKey, name: &Name) -> Result<bool, DbError> {
    let mut select = desk
        .conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM classic_keys k WHERE k.name = ?1"))?;
    let mut rows = select.query([name.as_str()])?;
    let stored = match rows.next()? {
        Some(row) => verified(read_row(row), key),
        None => None,
    };
    let Some(stored) = stored.filter(|stored| !stored.revoked) else { return Ok(false) };
    Stored { revoked: true, ..stored }.write(desk.conn, key)?;
    Ok(true)
}
