//! Rows of the databases.

use std::fs;

use rusqlite::Connection;

use super::*;

/// Changes rows of a database, which must be found, and named with these words.
fn changed(dir: &Path, database: &str, sql: &str, words: &str) {
    let path = dir.join("record").join(database);
    let before = fs::read(&path).unwrap();
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "foreign_keys", false).unwrap();
    let rows = conn.execute(sql, []).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert!(rows > 0, "{sql} changes nothing");
    drop(conn);
    let report = check(dir);
    let finding = report.findings.first().map(ToString::to_string).unwrap_or_default();
    match words {
        "" => assert!(report.is_sound(), "{sql}: {report:#?}"),
        words => {
            assert!(finding.contains(words) && finding.contains(database), "{sql}: {report:#?}");
        }
    }
    fs::write(&path, before).unwrap();
}

#[test]
fn check__changed_row_of_people_db_is_found() {
    let dir = record(false);
    let changed = |sql: &str, words: &str| changed(dir.path(), "people.db", sql, words);
    let is = "is not as in the log";
    for (table, key) in [
        ("users", "name = 'ada'"),
        ("credentials", "cid = (SELECT min(cid) FROM credentials)"),
        ("conversations", "id = 1"),
        ("members", "user = 'ada' AND conversation = 1"),
        ("classic_keys", "name = (SELECT min(name) FROM classic_keys)"),
        ("files", "n = (SELECT min(n) FROM files)"),
    ] {
        changed(&format!("DELETE FROM {table} WHERE {key}"), &format!("{table}: the row"));
    }
    for (table, column) in [
        ("users", "role = role + 1"),
        ("users", "password = 1 - password"),
        ("users", "created_ms = created_ms + 1"),
        ("users", "mac = zeroblob(32)"),
        ("users", "state = 1 - state"),
        ("credentials", "user = 'x'"),
        ("credentials", "record = zeroblob(192)"),
        ("credentials", "label = label || 'x'"),
        ("credentials", "created_ms = created_ms + 1"),
        ("credentials", "role = role + 1"),
        ("credentials", "expires_ms = expires_ms + 1"),
        ("credentials", "made_by = 'x'"),
        ("credentials", "state = state + 1"),
        ("credentials", "used_by = 'x'"),
        ("credentials", "mac = zeroblob(32)"),
        ("conversations", "topic = topic || 'x'"),
        ("conversations", "server_key = zeroblob(32)"),
        ("conversations", "members = members + 1"),
        ("conversations", "created_ms = created_ms + 1"),
        ("conversations", "made_by = 'x'"),
        ("conversations", "kind = 1 - kind"),
        ("classic_keys", "user = 'x'"),
        ("classic_keys", "conversation = conversation + 1"),
        ("classic_keys", "form = form + 1"),
        ("classic_keys", "salt = zeroblob(32)"),
        ("classic_keys", "sealed = zeroblob(32)"),
        ("classic_keys", "created_ms = created_ms + 1"),
        ("classic_keys", "state = 1 - state"),
        ("classic_keys", "mac = zeroblob(32)"),
        ("files", "user = user + 1"),
        ("files", "hash = zeroblob(32)"),
        ("files", "size = size + 1"),
    ] {
        changed(&format!("UPDATE {table} SET {column}"), is);
    }
    changed("UPDATE users SET name = 'adam' WHERE name = 'ada'", "users: the row");
    changed("UPDATE conversations SET name = 'x' WHERE name = 'lobby'", is);
    changed("INSERT INTO members VALUES (1, 'x', 0)", "members: the row 1, x is not in the log");
    changed(
        "INSERT INTO users SELECT max(id) + 1, 'mallory', 2, 1, 0, mac, 0 FROM users",
        "mallory is not in the log",
    );
    changed("INSERT INTO files VALUES (1, 99999, 1, zeroblob(32), 1)", "files: the row 1, 99999");
    changed("UPDATE stored SET bytes = bytes + 1", "stored: the sum");
    changed("UPDATE stored SET files = files + 1", "stored: the sum");
    changed("INSERT INTO erasing (conversation, n) VALUES (1, 1)", "no erasure names it");
    changed("UPDATE position SET record = zeroblob(16)", "another record");
    changed("UPDATE position SET next_seq = next_seq + 1", "another time");
    changed("UPDATE position SET byte = byte + 1", "another time");
    // What the log does not have.
    changed("UPDATE members SET read = read + 1", "");
    changed("UPDATE credentials SET seen_ms = seen_ms + 1", "");
    changed("DELETE FROM sources", "");
}

#[test]
fn check__changed_row_of_the_index_is_found() {
    let dir = record(false);
    let changed = |sql: &str, words: &str| changed(dir.path(), "index.db", sql, words);
    let last = "(SELECT max(seq) FROM runs)";
    changed(&format!("DELETE FROM runs WHERE seq = {last}"), "is missing");
    changed("DELETE FROM runs WHERE seq = (SELECT min(seq) FROM runs)", "is missing");
    for column in ["conversation", "first", "count", "segment", "offset", "length"] {
        let sql = format!("UPDATE runs SET {column} = {column} + 1000 WHERE seq = {last}");
        changed(&sql, "is not as in the log");
    }
    changed(&format!("UPDATE runs SET seq = seq + 1 WHERE seq = {last}"), "is missing");
    let insert =
        "INSERT INTO runs SELECT seq + 1, conversation, first + 1000, count, segment, offset,
                      length FROM runs WHERE seq =";
    changed(&format!("{insert} {last}"), "is not in the log");
    changed("INSERT INTO runs VALUES (-5, 1, 9999, 1, 1, 64, 1)", "runs: it has");
    changed("DELETE FROM heads WHERE conversation = 1", "heads: the row 1");
    for column in ["n = n - 1", "time_ms = time_ms + 1", "link = zeroblob(32)"] {
        changed(&format!("UPDATE heads SET {column} WHERE conversation = 1"), "heads: the row 1");
    }
    changed("INSERT INTO heads VALUES (99, 1, 1, zeroblob(32))", "heads: it has");
    // The last id of a block: 16 bytes, conversation, number.
    let last_id = |to: &str, words| {
        let all = format!("CAST(substr(ids, 1, length(ids) - 32){to} AS BLOB)");
        changed(&format!("UPDATE ids SET ids = {all} WHERE length(ids) > 32"), words);
    };
    last_id("", "ids: the message id is missing");
    last_id(" || zeroblob(16) || substr(ids, -16)", "ids: the message id is missing");
    for place in ["x'0000000000000001000000000000ffff'", "x'0000000000000009' || substr(ids, -8)"] {
        last_id(&format!(" || substr(ids, -32, 16) || {place}"), "ids: the message id is that");
    }
    changed("INSERT INTO ids VALUES (1, zeroblob(16), zeroblob(32))", "ids: it has");
    changed("DELETE FROM ids", "ids: the message id is missing");
    changed("UPDATE ids SET ids = zeroblob(5)", "it cannot be read");
    changed("UPDATE position SET record = zeroblob(16)", "another record");
    let words = "UPDATE position SET record = zeroblob(16)";
    self::changed(dir.path(), "words.db", words, "another record");
}

#[test]
fn check__lost_or_damaged_database_is_named() {
    for (database, is_lost) in [("people.db", true), ("index.db", false), ("words.db", false)] {
        let dir = record(false);
        let path = dir.path().join("record").join(database);
        let content = fs::read(&path).unwrap();
        // All pages of the second half, and the schema.
        for (at, end) in [(content.len() / 4096 / 2 * 4096, content.len()), (100, 600)] {
            let mut bytes = content.clone();
            bytes[at..end].fill(0x55);
            fs::write(&path, bytes).unwrap();
            let report = check(dir.path());
            let found: Vec<_> = report.findings.iter().map(|found| &found.path).collect();
            assert_eq!(found, [&path], "{at}");
        }
        fs::write(&path, "no database").unwrap();
        assert_eq!(found(dir.path()).path, path);
        fs::remove_file(&path).unwrap();
        let report = check(dir.path());
        assert_eq!(report.is_sound(), !is_lost, "{report:#?}");
    }
    // All of it can be replayed, so nothing else differs.
    let dir = record(true);
    assert!(dir.path().join("record/people.db-wal").exists());
    let wal = dir.path().join("record/index.db-wal");
    fs::write(&wal, vec![0x55; 5000]).unwrap();
    let report = check(dir.path());
    assert!(report.findings.iter().all(|found| found.path.ends_with("index.db")), "{report:#?}");
}

#[test]
fn check__databases_that_are_behind_are_sound() {
    // Those of the beginning, after the conversion: the log continues after their positions.
    let dir = tempfile::tempdir().unwrap();
    let early = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = fill(dir.path()).await;
        store.close().await.unwrap();
        drop(store);
        copy(dir.path(), early.path());
        let store = EmbeddedStore::open(&dir.path().join("record"), options()).unwrap();
        for i in 0..9 {
            store.append(vec![entry(&format!("later {i}"))]).await.unwrap();
        }
        let head = store.newest(1).await.unwrap()[0].n;
        store.erase(LOBBY, head - 1).await.unwrap().unwrap();
        store.close().await.unwrap();
    });
    for database in ["people.db", "index.db", "words.db"] {
        let to = dir.path().join("record").join(database);
        fs::copy(early.path().join("record").join(database), to).unwrap();
    }
    let report = check(dir.path());
    assert!(report.is_sound() && report.notes.is_empty(), "{report:#?}");
    changed(dir.path(), "people.db", "UPDATE users SET role = role + 1", "is not as in the log");
    changed(dir.path(), "index.db", "DELETE FROM ids", "is missing");
    // One that has everything beyond its position too.
    let sql = "UPDATE position SET next_seq = 1, segment = 1, byte = 64";
    changed(dir.path(), "index.db", sql, "is not in the log");
    changed(dir.path(), "people.db", sql, "is not in the log");
}
