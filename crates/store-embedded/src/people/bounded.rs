//! Limits for each user.

use rusqlite::{Connection, Params};
use twinlock_store::{Bound, StoreError};

use crate::error::DbError;
use crate::row::limit;

/// Fails if `sql` selects at least `max` rows; counts no further.
pub(crate) fn bounded(
    conn: &Connection,
    sql: &str,
    of: impl Params,
    bound: Bound,
    max: usize,
) -> Result<(), DbError> {
    let max_rows = limit(max);
    let count = format!("SELECT count(*) FROM ({sql} LIMIT {max_rows})");
    let exists: i64 = conn.prepare_cached(&count)?.query_row(of, |row| row.get(0))?;
    if exists >= max_rows { Err(StoreError::TooMany(bound, max).into()) } else { Ok(()) }
}
