//! Conversion of values from and to SQLite, and small helpers for statements.

use rusqlite::types::Type;
use rusqlite::{Connection, Params, Row, Statement};
use twinlock_core::id::Name;
use twinlock_store::StoreError;

use crate::error::DbError;

/// An integer for SQLite, whose maximum is 2^63 - 1. Only a peer can send a larger number; it
/// becomes the maximum, where nothing is recorded.
pub(crate) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The reverse of [`int`]. Negative numbers are never written.
pub(crate) fn uint(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// A count, as a LIMIT.
pub(crate) fn limit(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Reads the first row of a query, as the functions of [`twinlock_store::equal_cost`] take it.
pub(crate) fn first<T>(
    select: &mut Statement<'_>,
    of: impl Params,
    read: impl FnMut(&Row<'_>) -> Result<T, DbError>,
) -> rusqlite::Result<Option<Result<T, StoreError>>> {
    let first = select.query_and_then(of, read)?.next();
    Ok(first.map(|row| row.map_err(StoreError::from)))
}

pub(crate) fn get_uint(row: &Row<'_>, i: usize) -> rusqlite::Result<u64> {
    row.get(i).map(uint)
}

pub(crate) fn get_name(row: &Row<'_>, i: usize) -> rusqlite::Result<Name> {
    let text = row.get_ref(i)?.as_str()?;
    Name::new(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(i, Type::Text, Box::new(e)))
}

pub(crate) fn get_optional_name(row: &Row<'_>, i: usize) -> rusqlite::Result<Option<Name>> {
    match row.get_ref(i)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => get_name(row, i).map(Some),
    }
}

/// Runs a statement without parameters or result.
pub(crate) fn run_sql(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(|_| ())
}
