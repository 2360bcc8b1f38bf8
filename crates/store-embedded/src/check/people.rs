//! `people.db` against the log.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::types::Value;
use rusqlite_migration::Migrations;
use twinlock_core::id::ConversationId;

use super::findings::{Finding, Findings};
use super::tables::{Difference, Table, compare, shown};
use crate::database;
use crate::error::DbError;
use crate::open_error::OpenError;
use crate::people::{PEOPLE, files};
use crate::row::uint;
use crate::words::WORDS;

/// The columns that the log covers.
const TABLES: [Table; 5] = [
    Table {
        name: "users",
        sql: "SELECT id, name, role, password, created_ms, mac, state FROM users ORDER BY id",
        key: 2,
    },
    Table {
        name: "credentials",
        sql: "SELECT cid, user, record, label, created_ms, role, expires_ms, made_by, state,
                  used_by, mac
              FROM credentials ORDER BY cid",
        key: 1,
    },
    Table {
        name: "conversations",
        sql: "SELECT id, name, low, high, topic, server_key, members, created_ms, made_by, kind
              FROM conversations ORDER BY id",
        key: 1,
    },
    Table {
        name: "members",
        sql: "SELECT conversation, user FROM members ORDER BY conversation, user",
        key: 2,
    },
    Table {
        name: "classic_keys",
        sql: "SELECT name, user, conversation, form, salt, sealed, created_ms, state, mac
              FROM classic_keys ORDER BY name",
        key: 1,
    },
];
const FILES: Table = Table {
    name: "files",
    sql: "SELECT conversation, n, user, hash, size FROM files ORDER BY conversation, n",
    key: 2,
};
/// Users whose sum of files is not that of their rows.
const SUMS: &str = "SELECT user FROM (
        SELECT user, bytes, files FROM stored WHERE files <> 0 OR bytes <> 0
        UNION ALL SELECT user, -sum(max(size, 4096)), -count(*) FROM files GROUP BY user)
    GROUP BY user HAVING sum(bytes) <> 0 OR sum(files) <> 0 ORDER BY user";

/// An empty database with the tables of `people.db`. It has no name, and is in memory, apart from
/// what SQLite moves to a temporary file that it has removed already.
pub(super) fn temporary() -> Result<Connection, OpenError> {
    let fault =
        |problem: String| OpenError::Database { path: "a temporary database".into(), problem };
    let mut conn = Connection::open("").map_err(|error| fault(error.to_string()))?;
    let set = |conn: &Connection| -> rusqlite::Result<()> {
        conn.pragma_update(None, "foreign_keys", true)?;
        conn.pragma_update(None, "cache_size", -16 * 1024)?;
        conn.set_prepared_statement_cache_capacity(64);
        Ok(())
    };
    set(&conn).map_err(|error| fault(error.to_string()))?;
    let migrations = Migrations::from_slice(PEOPLE.schema);
    migrations.to_latest(&mut conn).map_err(|error| fault(error.to_string()))?;
    conn.execute_batch("BEGIN").map_err(|error| fault(error.to_string()))?;
    Ok(conn)
}

/// The database, until it is compared.
pub(super) struct PeopleCheck {
    path: PathBuf,
    conn: Connection,
    /// The sequence of the first record that is not applied.
    pub(super) next_seq: u64,
    compared: bool,
    /// References to files of entries that have no body in the log.
    unknown_files: HashSet<(ConversationId, u64)>,
}

impl PeopleCheck {
    pub(super) fn new(path: &Path, conn: Connection, next_seq: u64) -> Self {
        let unknown_files = HashSet::new();
        Self { path: path.to_path_buf(), conn, next_seq, compared: false, unknown_files }
    }

    /// Compares all rows, once the replay has reached the position: `next` is its next sequence.
    pub(super) fn reached(&mut self, next: u64, replayed: &Connection, findings: &mut Findings) {
        if self.compared || next < self.next_seq {
            return;
        }
        self.compared = true;
        if let Err(error) = self.compare(replayed, findings) {
            findings.add(Finding::new(&self.path, format!("it cannot be read: {error}")));
        }
    }

    fn compare(&mut self, replayed: &Connection, findings: &mut Findings) -> Result<(), DbError> {
        for table in &TABLES {
            compare(replayed, &self.conn, table, |difference, key| {
                findings.add(self.finding(table, difference, key));
            })?;
        }
        let mut unknown = HashSet::new();
        compare(replayed, &self.conn, &FILES, |difference, key| match (difference, key) {
            (Difference::Added, [Value::Integer(conversation), Value::Integer(n)]) => {
                unknown.insert((uint(*conversation), uint(*n)));
            }
            _ => findings.add(self.finding(&FILES, difference, key)),
        })?;
        self.unknown_files = unknown;
        let mut select = self.conn.prepare(SUMS)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let user: i64 = row.get(0)?;
            let problem = format!("stored: the sum of user {user} is not that of its files");
            findings.add(Finding::new(&self.path, problem));
        }
        Ok(())
    }

    fn finding(&self, table: &Table, difference: Difference, key: &[Value]) -> Finding {
        let difference = match difference {
            Difference::Missing => "is missing: the log has it",
            Difference::Added => "is not in the log",
            Difference::Changed => "is not as in the log",
        };
        let problem = format!("{}: the row {} {difference}", table.name, shown(key));
        Finding::new(&self.path, problem)
    }

    /// Whether an erasure was begun and is not complete.
    pub(super) fn is_erasing(&self, conversation: ConversationId, n: u64) -> bool {
        files::is_erasing(&self.conn, conversation, n).unwrap_or(false)
    }

    /// At the end of the log. `has_no_body`: whether the log has this entry without its body.
    pub(super) fn finish(
        &self,
        replayed: &Connection,
        has_no_body: impl Fn(ConversationId, u64) -> bool,
        findings: &mut Findings,
        notes: &mut Vec<String>,
    ) {
        if !self.compared {
            let name = PEOPLE.file;
            notes.push(format!("{name} was not compared: the log was not read up to its position"));
            return;
        }
        let mut unknown: Vec<_> = self.unknown_files.iter().copied().collect();
        unknown.sort_unstable();
        // The log is the only other place of a reference, and it is in the body.
        for (conversation, n) in unknown {
            if !has_no_body(conversation, n) {
                let problem = format!("files: the row {conversation}, {n} is not in the log");
                findings.add(Finding::new(&self.path, problem));
            }
        }
        for (conversation, n) in files::erasing(&self.conn).unwrap_or_default() {
            if !files::is_erasing(replayed, conversation, n).unwrap_or(false) {
                let problem = "it is noted as being erased, and no erasure names it";
                findings.add(Finding::new(&self.path, problem).entry(conversation, n));
            }
        }
    }
}

/// Opens one of the databases, and checks its pages and its position. `None`: it cannot be compared,
/// and why was found or noted.
pub(super) fn open(
    kind: &database::DatabaseKind,
    directory: &Path,
    record: &[u8; 16],
    findings: &mut Findings,
) -> Result<Option<(Connection, u64)>, OpenError> {
    let path = directory.join(kind.file);
    let wrong = |problem: String| Ok::<_, OpenError>(Err(Finding::new(&path, problem)));
    let checked = || -> Result<Result<(Connection, u64), Finding>, OpenError> {
        let conn = match database::examine(kind, directory) {
            Err(OpenError::Database { problem, .. }) => return wrong(problem),
            conn => conn?,
        };
        let check = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        match check {
            Ok(ok) if ok == "ok" => {}
            Ok(problem) => return wrong(format!("its pages contradict each other: {problem}")),
            Err(error) => return wrong(error.to_string()),
        }
        let at = match database::position(&conn) {
            Ok(Some(at)) => at,
            Ok(None) => return Ok(Ok((conn, 1))),
            Err(error) => return wrong(error.to_string()),
        };
        // The index of words has a sequence, and no place in the log.
        let is_place = kind.file == WORDS.file
            || crate::log::is_boundary(directory, at.position, at.next_seq).unwrap_or(false);
        let fits = at.record_id == *record && is_place;
        if !fits {
            return wrong("it belongs to another record, or to another time of this one".into());
        }
        Ok(Ok((conn, at.next_seq)))
    };
    match checked()? {
        Ok(opened) => Ok(Some(opened)),
        Err(finding) => {
            findings.add(finding);
            Ok(None)
        }
    }
}
