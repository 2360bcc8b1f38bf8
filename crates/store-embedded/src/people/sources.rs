//! Address prefixes of recent logins.
//!
//! The primary key is a MAC over user and prefix. So a look-up for an unknown name searches for
//! random bytes, as does one for an unknown source of a known name.
//!
//! None of this is in the log, so these functions write to the table directly.

use rusqlite::{Connection, OptionalExtension, params};
use twinlock_core::id::Name;
use twinlock_core::keys::RowKey;
use twinlock_store::equal_cost::{self, AFTER_TAGS, source_tag};
use twinlock_store::{KNOWN_DEVICE_SOURCES, KNOWN_SOURCE_MS, KNOWN_SOURCES, LoginMethod};

use crate::error::DbError;
use crate::row::{get_uint, int};

/// Time after which a login renews the stored time of a known source, ms.
const RENEW_MS: u64 = 60 * 60 * 1000;

/// Runs two queries and finds one row (if the table has any) on hits and misses alike; see
/// [`twinlock_store::equal_cost`].
pub(crate) fn is_known(
    conn: &Connection,
    key: &RowKey,
    user: &Name,
    source: &[u8],
    now_ms: u64,
) -> Result<bool, DbError> {
    let tag = source_tag(key, user, source);
    let stand_in = equal_cost::stand_in_tag(key, &tag);
    let seen = conn
        .prepare_cached("SELECT seen_ms FROM sources WHERE tag = ?1")?
        .query_row([tag], |row| get_uint(row, 0))
        .optional()?;
    let after: &[u8] = if seen.is_some() { &AFTER_TAGS } else { &stand_in };
    let other = conn
        .prepare_cached("SELECT seen_ms FROM sources WHERE tag > ?1 LIMIT 1")?
        .query_row([after], |row| get_uint(row, 0))
        .optional()?;
    Ok(equal_cost::is_known_source(seen, other, now_ms))
}

/// See [`twinlock_store::Accounts::note_source`].
pub(crate) fn note(
    conn: &Connection,
    key: &RowKey,
    user: &Name,
    source: &[u8],
    method: LoginMethod,
    now_ms: u64,
) -> Result<(), DbError> {
    conn.prepare_cached("DELETE FROM sources WHERE user = ?1 AND seen_ms < ?2")?
        .execute(params![user.as_str(), int(now_ms.saturating_sub(KNOWN_SOURCE_MS))])?;
    let written = conn
        .prepare_cached(
            "INSERT INTO sources (tag, user, seen_ms, by_device)
             SELECT ?1, name, ?3, ?4 FROM users WHERE name = ?2 AND (
                 NOT ?4 OR EXISTS (SELECT 1 FROM sources WHERE tag = ?1) OR
                 (SELECT count(*) < ?6 AND total(by_device) < ?7 FROM sources WHERE user = ?2)
             )
             ON CONFLICT (tag) DO UPDATE
             SET seen_ms = max(seen_ms, ?3), by_device = min(by_device, ?4)
             WHERE seen_ms + ?5 <= ?3 OR by_device > ?4",
        )?
        .execute(params![
            source_tag(key, user, source),
            user.as_str(),
            int(now_ms),
            method == LoginMethod::Device,
            int(RENEW_MS),
            KNOWN_SOURCES,
            KNOWN_DEVICE_SOURCES,
        ])?;
    if written > 0 {
        conn.prepare_cached(
            "DELETE FROM sources WHERE tag IN (SELECT tag FROM sources WHERE user = ?1
             ORDER BY by_device, seen_ms DESC LIMIT -1 OFFSET ?2)",
        )?
        .execute(params![user.as_str(), KNOWN_SOURCES])?;
    }
    Ok(())
}

/// Removes all sources of a user, and returns their number.
///
/// The contract waits for the disk. So the caller commits, and answers after
/// [`Checkpointer::checkpoint`](crate::database::Checkpointer::checkpoint).
pub(crate) fn forget(conn: &Connection, user: &Name) -> Result<u64, DbError> {
    let removed =
        conn.prepare_cached("DELETE FROM sources WHERE user = ?1")?.execute([user.as_str()])?;
    Ok(removed as u64)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::people::test_database;

    #[test]
    fn source__lookup_costs_the_same_for_known_and_unknown() {
        let conn = test_database::empty();
        let key = RowKey::new(&[7; 32]);
        let [ada, unknown] = ["ada", "nobody"].map(|name| Name::new(name).unwrap());
        conn.execute(
            "INSERT INTO users (name, role, password, created_ms, mac) VALUES ('ada', 0, 1, 1, x'')",
            [],
        )
        .unwrap();
        for n in 0..8u8 {
            conn.execute(
                "INSERT INTO sources (tag, user, seen_ms, by_device) VALUES (?1, 'ada', 1000, 1)",
                [source_tag(&key, &ada, &[n])],
            )
            .unwrap();
        }
        let selects = [
            "SELECT seen_ms FROM sources WHERE tag = ?1",
            "SELECT seen_ms FROM sources WHERE tag > ?1 LIMIT 1",
        ];
        for (user, source, known) in [(&ada, 3, true), (&ada, 9, false), (&unknown, 3, false)] {
            assert_eq!(is_known(&conn, &key, user, &[source], 1000).unwrap(), known);
            let runs = selects.map(|select| {
                conn.prepare_cached(select).unwrap().reset_status(StatementStatus::Run)
            });
            assert_eq!(runs, [1; 2], "{user} {source}");
        }
        // Another row key finds nothing.
        assert!(!is_known(&conn, &RowKey::new(&[8; 32]), &ada, &[3], 1000).unwrap());
    }
}
