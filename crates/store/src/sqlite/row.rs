//! Conversion of values from and to SQLite, and of its errors.

use rusqlite::types::{FromSqlError, Type};
use rusqlite::{ErrorCode, Row, ffi};
use twinlock_core::id::Name;

use crate::StoreError;

/// An integer for SQLite, whose maximum is 2^63 - 1. Only a peer can send a larger number; it
/// becomes the maximum, where nothing is recorded.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The reverse of [`int`]. Negative numbers are never written.
pub(super) fn uint(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// A count, as a LIMIT.
pub(super) fn limit(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The content of a row, if its MAC verifies.
///
/// # Errors
/// [`StoreError::Damaged`] if it does not; the error of `row` if that could not be read.
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
                // SQLite allocates the shared-memory file at once, so a full disk is the only
                // cause.
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
