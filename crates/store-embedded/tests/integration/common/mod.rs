//! Helpers that the tests share.

pub(crate) mod old_record;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use twinlock_core::chain::{self, Broken, EntryKind, Position};
use twinlock_core::id::{
    ConversationId, DeviceId, InviteId, Link, MessageId, Name, Sender, ServerKey,
};
use twinlock_store::{
    Appended, InviteTerms, NewDevice, NewEntry, PreparedInvite, ReadLimit, Receipt, Registered,
    Registration, RowKey, Store, UserRole,
};
use twinlock_store_embedded::{
    CheckKeys, EmbeddedStore, Expected, RecordReport, StoreOptions, check_record,
};

/// The traits of the contract, for their methods.
pub(crate) mod contract {
    pub(crate) use twinlock_store::{
        Accounts as _, Close as _, Directory as _, EntryLog as _, EntrySearch as _,
    };
}

pub(crate) const SERVER_KEY: ServerKey = ServerKey([0x5e; 32]);

pub(crate) const EVERYTHING: ReadLimit = ReadLimit { entries: 100_000, bytes: 1 << 30 };

/// Whether the full sizes of `make torture` apply.
pub(crate) fn full() -> bool {
    std::env::var_os("TWINLOCK_TORTURE").is_some_and(|size| size == "full")
}

/// The files of the record, by name.
pub(crate) fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(dir.join("record")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Copies the record to another directory.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("record")).unwrap();
    for file in files(from) {
        std::fs::copy(&file, to.join("record").join(file.file_name().unwrap())).unwrap();
    }
}

/// Removes a database and its companion files.
pub(crate) fn remove(dir: &Path, database: &str) {
    let files = files(dir);
    let is_of = |path: &&std::path::PathBuf| {
        path.file_name().unwrap().to_str().unwrap().starts_with(database)
    };
    let removed =
        files.iter().filter(is_of).map(|path| std::fs::remove_file(path).unwrap()).count();
    assert!(removed > 0, "{database} is not there");
}

pub(crate) fn options() -> StoreOptions {
    StoreOptions::new(SERVER_KEY, RowKey::new(&[0x4b; 32]))
}

pub(crate) fn open(dir: &Path) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(&dir.join("record"), options()).unwrap()
}

/// Checks the record offline.
pub(crate) fn check(dir: &Path) -> Option<RecordReport> {
    let keys = CheckKeys { row: &RowKey::new(&[0x4b; 32]), server: &SERVER_KEY };
    check_record(&dir.join("record"), keys, &Expected::default(), &mut |_| {}).unwrap()
}

pub(crate) fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

/// Ids that start with process and counter, as those of clients start with a time.
pub(crate) fn message_id() -> MessageId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; 16];
    let process = u64::from(std::process::id()) << 32;
    let id_64 = process | NEXT.fetch_add(1, Ordering::Relaxed);
    id[..8].copy_from_slice(&id_64.to_be_bytes());
    MessageId(id)
}

/// Registers a user with a new device.
pub(crate) async fn join(store: &dyn Store, user: &str) -> DeviceId {
    let id = InviteId(message_id().0[..8].try_into().unwrap());
    let terms = InviteTerms { role: UserRole::Member, user: None, expires_ms: u64::MAX >> 1 };
    let invite = PreparedInvite { id, record: vec![1; 192], terms, made_by: None, created_ms: 0 };
    assert!(store.add_invite(invite).await.unwrap());
    let device = DeviceId(message_id().0);
    let new = NewDevice { id: device, label: user.into(), record: vec![2; 192] };
    let new = Registration { invite: id, user: name(user), password: None, device: Some(new) };
    assert!(matches!(store.register(new, 1).await, Ok(Registered::Done(_))));
    device
}

pub(crate) fn entry(conversation: ConversationId, user: &str, body: &str) -> NewEntry {
    NewEntry {
        conversation,
        sender: Sender::new(&name(user), None),
        message_id: message_id(),
        kind: EntryKind::TEXT,
        body: Bytes::from(body.to_owned()),
    }
}

pub(crate) async fn say(store: &dyn Store, new: NewEntry) -> Receipt {
    match store.append(vec![new]).await.unwrap().as_slice() {
        [Appended::Recorded(receipt)] => receipt.clone(),
        other => panic!("{other:?}"),
    }
}

/// Every link of a conversation from its beginning, recomputed from the entries read.
pub(crate) async fn links(
    store: &dyn Store,
    conversation: ConversationId,
) -> Result<Vec<Link>, Broken> {
    let link_0 = chain::link_0(&SERVER_KEY, conversation);
    let mut position = Position::new(conversation, 0, link_0);
    let mut links = Vec::new();
    loop {
        let limit = ReadLimit { entries: 1000, bytes: 1 << 20 };
        let page = store.read(conversation, position.n(), limit).await.unwrap();
        if page.link_after != *position.link() {
            return Err(Broken::Link { conversation, n: position.n() });
        }
        if page.entries.is_empty() {
            return Ok(links);
        }
        for entry in &page.entries {
            links.push(entry.advance(&mut position, conversation)?);
        }
    }
}
