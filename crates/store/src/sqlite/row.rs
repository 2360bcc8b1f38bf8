//! Between SQLite's values and ours, and what its errors mean.

use rusqlite::types::{FromSqlError, Type};
use rusqlite::{ErrorCode, Row, ffi};
use twinlock_core::id::Name;

use crate::StoreError;

/// A number for SQLite, whose integers end at 2^63 - 1. A larger one, which only a peer can have
/// made up, is as good as the largest: nothing is there.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// And back. Nothing negative is ever written.
pub(super) fn uint(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// A count, as a LIMIT.
pub(super) fn limit(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What a row holds, if its MAC verifies.
///
/// # Errors
/// [`StoreError::Damaged`] if not, or why the row could not be read.
pub(super) fn sound<T>(
    row: Result<(T, [u8; 32]), StoreError>,
    verifies: impl FnOnce(&T, &[u8; 32]) -> bool,
) -> Result<T, StoreError> {
    let (held, mac) = row?;
    if verifies(&held, &mac) {
        Ok(held)
    } else {
        Err(StoreError::Damaged("its MAC does not verify".into()))
    }
}

pub(super) fn get_uint(row: &Row<'_>, i: usize) -> rusqlite::Result<u64> {
    row.get(i).map(uint)
}

pub(super) fn get_name(row: &Row<'_>, i: usize) -> rusqlite::Result<Name> {
    let text = row.get_ref(i)?.as_str()?;
    Name::new(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(i, Type::Text, Box::new(e)))
}

pub(super) fn get_optional_name(row: &Row<'_>, i: usize) -> rusqlite::Result<Option<Name>> {
    match row.get_ref(i)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => get_name(row, i).map(Some),
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error;
        match &error {
            Error::SqliteFailure(failure, _) => match (failure.code, failure.extended_code) {
                // The shared-memory file is made to its size at once; it has no other reason.
                (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => Self::Full,
                (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => {
                    Self::Damaged(error.to_string())
                }
                _ => Self::Database(error.to_string()),
            },
            Error::FromSqlConversionFailure(..)
            | Error::InvalidColumnType(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..) => Self::Damaged(error.to_string()),
            _ => Self::Database(error.to_string()),
        }
    }
}

impl From<FromSqlError> for StoreError {
    fn from(error: FromSqlError) -> Self {
        Self::Damaged(error.to_string())
    }
}
