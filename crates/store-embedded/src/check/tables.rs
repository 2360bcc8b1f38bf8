//! Comparing the rows of two databases.

use std::cmp::Ordering;

use rusqlite::types::Value;
use rusqlite::{Connection, Rows};

use crate::error::DbError;

/// Rows to compare: a query that is ordered by its first columns, the key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
    /// Number of columns of the key.
    pub(super) key: usize,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// The second database lacks it.
    Missing,
    /// Only the second database has it.
    Added,
    /// Columns after the key differ.
    Changed,
}

/// Reports each row in which `second` differs from `first`, with its key.
pub(super) fn compare(
    first: &Connection,
    second: &Connection,
    table: &Table,
    mut differs: impl FnMut(Difference, &[Value]),
) -> Result<(), DbError> {
    let (mut of_first, mut of_second) = (first.prepare(table.sql)?, second.prepare(table.sql)?);
    let columns = of_first.column_count();
    let (mut of_first, mut of_second) = (of_first.query([])?, of_second.query([])?);
    let (mut a, mut b) = (next(&mut of_first, columns)?, next(&mut of_second, columns)?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => compare_keys(key(a, table), key(b, table)),
        };
        match order {
            Ordering::Less => {
                differs(Difference::Missing, key(a.as_deref().unwrap_or_default(), table));
                a = next(&mut of_first, columns)?;
            }
            Ordering::Greater => {
                differs(Difference::Added, key(b.as_deref().unwrap_or_default(), table));
                b = next(&mut of_second, columns)?;
            }
            Ordering::Equal => {
                if a != b {
                    differs(Difference::Changed, key(a.as_deref().unwrap_or_default(), table));
                }
                (a, b) = (next(&mut of_first, columns)?, next(&mut of_second, columns)?);
            }
        }
    }
}

fn key<'r>(row: &'r [Value], table: &Table) -> &'r [Value] {
    row.get(..table.key).unwrap_or(row)
}

fn next(rows: &mut Rows<'_>, columns: usize) -> rusqlite::Result<Option<Vec<Value>>> {
    let Some(row) = rows.next()? else { return Ok(None) };
    (0..columns).map(|column| row.get(column)).collect::<Result<_, _>>().map(Some)
}

/// In the order of SQLite. The columns of a key have one type, which the tables enforce.
fn compare_keys(a: &[Value], b: &[Value]) -> Ordering {
    let one = |(a, b): (&Value, &Value)| match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
        _ => Ordering::Equal,
    };
    a.iter().zip(b).map(one).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// A key for people.
pub(super) fn shown(key: &[Value]) -> String {
    let one = |value: &Value| match value {
        Value::Null => "nothing".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    key.iter().map(one).collect::<Vec<_>>().join(", ")
}
