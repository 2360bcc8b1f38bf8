//! The error of a database operation, which becomes a [`StoreError`] where it leaves this crate.

use rusqlite::types::FromSqlError;
use rusqlite::{ErrorCode, ffi};
use thiserror::Error;
use twinlock_store::StoreError;

/// A [`StoreError`] that SQLite's errors convert to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(transparent)]
pub(crate) struct DbError(#[from] pub(crate) StoreError);

impl From<DbError> for StoreError {
    fn from(error: DbError) -> Self {
        error.0
    }
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error;
        Self(match &error {
            Error::SqliteFailure(failure, _) => match (failure.code, failure.extended_code) {
                // SQLite allocates the shared-memory file at once, so a full disk is the only
                // cause.
                (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => StoreError::Full,
                (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => {
                    StoreError::Damaged(error.to_string())
                }
                _ => StoreError::Database(error.to_string()),
            },
            Error::FromSqlConversionFailure(..)
            | Error::InvalidColumnType(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..) => StoreError::Damaged(error.to_string()),
            _ => StoreError::Database(error.to_string()),
        })
    }
}

impl From<FromSqlError> for DbError {
    fn from(error: FromSqlError) -> Self {
        Self(StoreError::Damaged(error.to_string()))
    }
}
