//! Rows of `people.db` that were changed without the server.

use std::path::Path;

use crate::common::contract::*;
use crate::common::{copy, join, name, open};
use rusqlite::Connection;
use tempfile::TempDir;
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{CredentialId, DeviceId, InviteId};
use twinlock_store::{
    AddedClassicKey, ClassicKeyStore as _, InviteTerms, LOBBY, PreparedInvite, Registered,
    Registration, StoreError, StoredClassicKey, UserRole,
};

fn edit(dir: &Path, sql: &str) {
    let conn = Connection::open(dir.join("record/people.db")).unwrap();
    conn.execute_batch(sql).unwrap();
    conn.close().unwrap();
}

/// A copy of the record, one for each edit.
fn copy_of(dir: &Path) -> TempDir {
    let copied = tempfile::tempdir().unwrap();
    copy(dir, copied.path());
    copied
}

const OPEN: InviteId = InviteId([0xa0; 8]);
const USED: InviteId = InviteId([0xb0; 8]);

struct People {
    dir: TempDir,
    ada: DeviceId,
    bob: DeviceId,
    revoked: DeviceId,
}

async fn people() -> People {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (ada, bob) = (join(&*store, "ada").await, join(&*store, "bob").await);
    let revoked = join(&*store, "eve").await;
    assert!(store.revoke_device(&name("eve"), &revoked).await.unwrap());
    for (user, byte) in [("ada", 0xaa), ("bob", 0xbb)] {
        assert!(store.set_password(&name(user), &[byte; 192], 5).await.unwrap());
    }
    for id in [OPEN, USED] {
        let terms =
            InviteTerms { role: UserRole::Member, user: Some(name("carl")), expires_ms: 1000 };
        let new = PreparedInvite { id, record: vec![3; 192], terms, made_by: None, created_ms: 5 };
        assert!(store.add_invite(new).await.unwrap());
    }
    let carl = Registration { invite: USED, user: name("carl"), password: None, device: None };
    assert!(matches!(store.register(carl, 6).await, Ok(Registered::Done(_))));
    store.close().await.unwrap();
    People { dir, ada, bob, revoked }
}

#[tokio::test]
async fn row_mac__edited_or_swapped_credential_is_refused() {
    let people = people().await;
    let password = |user: &str| CredentialId::User(name(user));
    let (ada, bob) = (CredentialId::Device(people.ada), CredentialId::Device(people.bob));
    let revoked = CredentialId::Device(people.revoked);
    let (unused, used) = (CredentialId::Invite(OPEN), CredentialId::Invite(USED));
    let all = [&password("ada"), &password("bob"), &ada, &bob, &unused];

    // Unedited, exactly these are credentials.
    let copy = copy_of(people.dir.path());
    let store = open(copy.path());
    for id in all {
        assert!(store.credential(id, 10).await.unwrap().is_some(), "{id:?}");
    }
    for id in [&revoked, &used] {
        assert!(store.credential(id, 10).await.unwrap().is_none(), "{id:?}");
    }
    assert!(store.credential(&unused, 1000).await.unwrap().is_none());

    let set = |what: &str, id: &CredentialId| {
        let cid: String = id.cid().iter().map(|b| format!("{b:02x}")).collect();
        format!("UPDATE credentials SET {what} WHERE cid = x'{cid}';")
    };
    let take = |column: &str, from: &CredentialId, to: &CredentialId| {
        let cid: String = from.cid().iter().map(|b| format!("{b:02x}")).collect();
        let value = format!("(SELECT {column} FROM credentials WHERE cid = x'{cid}')");
        set(&format!("{column} = {value}"), to)
    };
    let (pa, pb) = (password("ada"), password("bob"));
    // 01 is a password; "ada" and "bob" in hex.
    let renamed = "UPDATE credentials SET cid = x'00616461' WHERE cid = x'01616461';
         UPDATE credentials SET cid = x'01616461' WHERE cid = x'01626f62';";
    let edits: Vec<(String, Vec<&CredentialId>)> = vec![
        // Bob's password for ada: the record alone, with its MAC, or the whole row.
        (take("record", &pb, &pa), vec![&pa]),
        (take("record", &pb, &pa) + &take("mac", &pb, &pa), vec![&pa]),
        (renamed.to_owned(), vec![&pa, &pb]),
        // Bob's device as ada's.
        (set("user = 'ada'", &bob), vec![&bob]),
        (take("record", &bob, &ada) + &take("mac", &bob, &ada), vec![&ada]),
        // A revoked or used credential becomes usable.
        (set("state = 0", &revoked), vec![&revoked]),
        (set("state = 0, used_by = NULL", &used), vec![&used]),
        (set("state = 7", &ada), vec![&ada]),
        // An invite gets a longer life, more permissions or other users.
        (set("expires_ms = 9999999999999", &unused), vec![&unused]),
        (set("role = 2", &unused), vec![&unused]),
        (set("role = 9", &unused), vec![&unused]),
        (set("user = NULL", &unused), vec![&unused]),
        (set("made_by = 'ada'", &unused), vec![&unused]),
        (set("mac = zeroblob(32)", &pa), vec![&pa]),
        (set("mac = x'00'", &pa), vec![&pa]),
        (set("label = 'x'", &ada), vec![&ada]),
        // A user's role counts for each of its credentials.
        ("UPDATE users SET role = 2 WHERE name = 'ada';".into(), vec![&pa, &ada]),
        (
            "UPDATE users SET mac = (SELECT mac FROM users WHERE name = 'bob') WHERE name = 'ada';"
                .into(),
            vec![&pa, &ada],
        ),
        ("UPDATE users SET created_ms = 0 WHERE name = 'bob';".into(), vec![&pb, &bob]),
    ];
    for (sql, gone) in edits {
        let copy = copy_of(people.dir.path());
        edit(copy.path(), &sql);
        let store = open(copy.path());
        for id in all.into_iter().chain([&revoked, &used]) {
            let expected = all.contains(&id) && !gone.contains(&id);
            let found = store.credential(id, 10).await.unwrap();
            assert_eq!(found.is_some(), expected, "{id:?} after {sql}");
        }
        if gone.contains(&&unused) {
            let carl =
                Registration { invite: OPEN, user: name("dan"), password: None, device: None };
            assert_eq!(store.register(carl, 10).await, Ok(Registered::InviteGone), "{sql}");
        }
    }
}

#[tokio::test]
async fn row_mac__edited_role_is_reported_as_damaged() {
    let people = people().await;
    edit(people.dir.path(), "UPDATE users SET role = 2 WHERE name = 'bob';");
    let store = open(people.dir.path());
    assert!(matches!(store.person(&name("bob")).await, Err(StoreError::Damaged(_))));
    assert!(matches!(store.people(None, 10).await, Err(StoreError::Damaged(_))));
    assert!(store.person(&name("ada")).await.unwrap().is_some());
}

#[tokio::test]
async fn row_mac__edited_classic_key_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for user in ["ada", "bob"] {
        join(&*store, user).await;
    }
    let room = store.create_room(&name("ada"), &name("ops"), "").await.unwrap().unwrap().id;
    let key = |user: &str, called: &str, form, salt| StoredClassicKey {
        name: name(called),
        user: name(user),
        conversation: if user == "ada" { room } else { LOBBY },
        form,
        salt: [salt; 32],
        sealed: None,
        created_ms: 5,
    };
    let all = [
        key("ada", "lamp", ClassicScheme::Jwe, 1),
        key("bob", "pump", ClassicScheme::Jwe, 2),
        StoredClassicKey { sealed: Some([8; 32]), ..key("ada", "old", ClassicScheme::Origin, 3) },
        key("ada", "gone", ClassicScheme::Jwe, 4),
    ];
    for key in &all {
        assert_eq!(store.add_classic_key(key.clone()).await, Ok(AddedClassicKey::Added));
    }
    assert_eq!(store.revoke_classic_key(&name("gone")).await, Ok(true));
    store.close().await.unwrap();
    let of_pump = |column: &str| format!("(SELECT {column} FROM classic_keys WHERE name = 'pump')");
    let edits = [
        ("lamp", "conversation = 1".to_owned()),
        ("lamp", "user = 'bob'".to_owned()),
        ("lamp", format!("salt = {}", of_pump("salt"))),
        ("lamp", format!("salt = {}, mac = {}", of_pump("salt"), of_pump("mac"))),
        ("lamp", "form = 3".to_owned()),
        ("lamp", "form = 9".to_owned()),
        ("lamp", "state = 7".to_owned()),
        ("lamp", "created_ms = 0".to_owned()),
        ("lamp", "mac = zeroblob(32)".to_owned()),
        ("lamp", "name = 'lamb'".to_owned()),
        ("gone", "state = 0".to_owned()),
        ("old", "conversation = 1".to_owned()),
        ("old", "sealed = zeroblob(32)".to_owned()),
        ("old", "sealed = zeroblob(3)".to_owned()),
        ("old", "sealed = NULL".to_owned()),
        ("lamp", "sealed = zeroblob(32)".to_owned()),
    ];
    for (row, change) in edits {
        let copy = copy_of(dir.path());
        edit(copy.path(), &format!("UPDATE classic_keys SET {change} WHERE name = '{row}'"));
        let store = open(copy.path());
        for key in &all {
            let expected = key.name != name(row) && key.name != name("gone");
            let found = store.classic_key(&key.name).await.unwrap();
            assert_eq!(found.as_ref(), expected.then_some(key), "{row} {change}");
        }
        assert_eq!(store.classic_key(&name("lamb")).await, Ok(None), "{change}");
        let bridge = store.classic_key_of(ClassicScheme::Origin).await.unwrap();
        assert_eq!(bridge.is_some(), row != "old", "{change}");
        let listed = store.classic_keys(None, None, 10).await.unwrap().len();
        assert_eq!(listed, if row == "gone" { 3 } else { 2 }, "{row} {change}");
    }
    // A key whose user's row was edited opens nothing either.
    edit(dir.path(), "UPDATE users SET role = 2 WHERE name = 'bob'");
    let store = open(dir.path());
    assert_eq!(store.classic_key(&name("pump")).await, Ok(None));
    assert!(store.classic_key(&name("lamp")).await.unwrap().is_some());
}

#[tokio::test]
async fn row_mac__damaged_classic_key_hides_no_other_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for user in ["ada", "bob"] {
        join(&*store, user).await;
    }
    let key = |user: &str, called: &str, form| StoredClassicKey {
        name: name(called),
        user: name(user),
        conversation: LOBBY,
        form,
        salt: [1; 32],
        sealed: None,
        created_ms: 5,
    };
    for called in ["a", "b", "c", "d"] {
        let new = key("ada", called, ClassicScheme::Jwe);
        assert_eq!(store.add_classic_key(new).await, Ok(AddedClassicKey::Added));
    }
    // For the bridge: a revoked key whose row is put back, and a newer key.
    let old = key("bob", "old", ClassicScheme::Origin);
    assert_eq!(store.add_classic_key(old.clone()).await, Ok(AddedClassicKey::Added));
    store.close().await.unwrap();
    edit(dir.path(), "CREATE TABLE kept AS SELECT * FROM classic_keys WHERE name = 'old'");
    let store = open(dir.path());
    assert_eq!(store.revoke_classic_key(&old.name).await, Ok(true));
    let newer = key("ada", "olds", ClassicScheme::Origin);
    assert_eq!(store.add_classic_key(newer.clone()).await, Ok(AddedClassicKey::Added));
    store.close().await.unwrap();
    edit(dir.path(), "INSERT OR REPLACE INTO classic_keys SELECT * FROM kept");
    edit(dir.path(), "UPDATE classic_keys SET created_ms = 6 WHERE name = 'b'");
    edit(dir.path(), "UPDATE users SET role = 2 WHERE name = 'bob'");
    let store = open(dir.path());
    // Damaged rows must not shorten a page: a short page would be taken for the last.
    let page = async |after: Option<&str>| {
        let listed = store.classic_keys(None, after.map(name).as_ref(), 2).await.unwrap();
        listed.iter().map(|listed| listed.key.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None).await, ["a", "c"]);
    assert_eq!(page(Some("c")).await, ["d", "old"]);
    // A key of a user whose row is damaged opens nothing, and does not hide another key.
    assert_eq!(store.classic_key_of(ClassicScheme::Origin).await, Ok(Some(newer.clone())));
    assert_eq!(store.revoke_classic_key(&newer.name).await, Ok(true));
    assert_eq!(store.classic_key_of(ClassicScheme::Origin).await, Ok(None));
    // But each form has one key, even if that key opens nothing.
    let third = key("ada", "third", ClassicScheme::Origin);
    assert_eq!(store.add_classic_key(third).await, Ok(AddedClassicKey::FormTaken));
}

#[tokio::test]
async fn row_mac__another_row_key_opens_no_credential() {
    let people = people().await;
    let options = twinlock_store_embedded::StoreOptions::new(
        crate::common::SERVER_KEY,
        twinlock_store::RowKey::new(&[0; 32]),
    );
    let path = people.dir.path().join("record");
    let store = twinlock_store_embedded::EmbeddedStore::open(&path, options).unwrap();
    for id in [CredentialId::User(name("ada")), CredentialId::Device(people.ada)] {
        assert_eq!(store.credential(&id, 10).await, Ok(None));
    }
}
