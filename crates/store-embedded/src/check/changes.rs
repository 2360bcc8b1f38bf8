//! The MACs of the rows in the log's changes.

use rusqlite::{Connection, OptionalExtension, Row};
use twinlock_store::RowKey;
use twinlock_store::StoreError;
use twinlock_store::row_mac::{ClassicKeyRow, CredentialRow, MacRow as _};

use crate::error::DbError;
use crate::people::changes::Change;
use crate::people::{classic, credentials};

/// Verifies the row that a change has put into the database. A row without a MAC verifies.
///
/// # Errors
/// [`StoreError::Damaged`] if it does not verify.
pub(super) fn verify(conn: &Connection, change: &Change, key: &RowKey) -> Result<(), DbError> {
    match change {
        Change::Person(image) => {
            let sql = format!("SELECT {} FROM users WHERE id = ?1", credentials::PERSON);
            let id = crate::row::int(image.id);
            read(conn, &sql, id, |row| credentials::get_person(row, key).map(drop))
        }
        Change::Credential(image) => {
            let sql = format!("SELECT {} FROM credentials WHERE cid = ?1", credentials::COLUMNS);
            read(conn, &sql, &image.cid, |row| {
                let row = credentials::read_row(row).map_err(StoreError::from);
                Ok(CredentialRow::verified(row, key).map(drop)?)
            })
        }
        Change::ClassicKey(image) => {
            let sql = format!("SELECT {} FROM classic_keys k WHERE k.name = ?1", classic::COLUMNS);
            read(conn, &sql, &image.name, |row| {
                let row = classic::read_row(row).map_err(StoreError::from);
                Ok(ClassicKeyRow::verified(row, key).map(drop)?)
            })
        }
        Change::Conversation(_) | Change::Joined(_) | Change::Left(_) => Ok(()),
    }
}

fn read(
    conn: &Connection,
    sql: &str,
    of: impl rusqlite::ToSql,
    verify: impl FnOnce(&Row<'_>) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let mut select = conn.prepare_cached(sql)?;
    select.query_row([of], |row| Ok(verify(row))).optional()?.unwrap_or(Ok(()))
}

/// What a change is of, for findings.
pub(super) fn described(change: &Change) -> String {
    match change {
        Change::Person(image) => format!("user {}", image.name),
        Change::Credential(image) => {
            format!("a credential of {}", image.user.as_deref().unwrap_or("nobody"))
        }
        Change::Conversation(image) => format!("conversation {}", image.id),
        Change::Joined(image) => format!("member {} of {}", image.user, image.conversation),
        Change::Left(image) => format!("former member {} of {}", image.user, image.conversation),
        Change::ClassicKey(image) => format!("classic key {}", image.name),
    }
}
