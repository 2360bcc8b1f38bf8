//! File transfers against a real server: limits reported before the first byte, removal of upload
//! rows, and transfer connections next to other connections.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{LONG, Person, World, quick};
use tokio::sync::mpsc;
use tokio::time::timeout;
use twinlock_client::error::Fault;
use twinlock_client::model::Entry;
use twinlock_client::transfer::{
    Destination, DownloadRequest, DownloadTarget, JobId, LocalFile, TransferError, TransferEvent,
    TransferOptions, Transfers, look, name,
};
use twinlock_core::proto::RefusalReason;
use twinlock_testing::messages::LOBBY;

fn start(person: &Person, jobs: usize) -> (Transfers, mpsc::Receiver<TransferEvent>) {
    let moving = TransferOptions { connection: quick(), jobs, limit: None };
    Transfers::start(&person.home, person.profile(), person.state(), moving).unwrap()
}

fn file(dir: &Path, name: &str, content: &[u8]) -> LocalFile {
    fs::write(dir.join(name), content).unwrap();
    look(&dir.join(name)).unwrap()
}

/// The next event that ends a job.
async fn ended(events: &mut mpsc::Receiver<TransferEvent>) -> TransferEvent {
    loop {
        let event = timeout(LONG, events.recv()).await.unwrap().unwrap();
        if matches!(
            event,
            TransferEvent::Sent { .. } | TransferEvent::Got { .. } | TransferEvent::Failed { .. }
        ) {
            return event;
        }
    }
}

async fn put(person: &Person, files: Vec<LocalFile>) -> Vec<TransferEvent> {
    let (transfers, mut events) = start(person, 3);
    let jobs = transfers.put("lobby", files).await.unwrap();
    let mut all = Vec::new();
    for _ in jobs {
        all.push(ended(&mut events).await);
    }
    drop(events);
    timeout(LONG, transfers.close()).await.unwrap();
    all
}

fn why(event: &TransferEvent) -> (RefusalReason, Fault) {
    match event {
        TransferEvent::Failed { error, .. } => (error.refusal().unwrap().why, error.fault()),
        other => panic!("{other:?}"),
    }
}

async fn entries(person: &Person) -> Vec<Entry> {
    let (client, _events) = person.start(quick());
    let page = client.read(LOBBY, 0, 512).await.unwrap();
    client.close().await;
    page.entries
}

fn get(entry: &Entry, dir: &Path) -> DownloadRequest {
    let file = entry.file.clone().unwrap();
    let name = name::harmless(file.name.expose_raw()).into();
    let (dir, below) = (PathBuf::from(dir), Vec::new());
    let place = Destination { dir, below, name, force: false, keep_mode: false };
    DownloadRequest {
        conversation: LOBBY,
        n: entry.n,
        file,
        own: true,
        into: DownloadTarget::File(place),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer__over_limit_is_refused_early_and_fitting_is_sent() {
    let world = World::new(|config| {
        config.limits.file = 100_000;
        config.limits.files_per_user = 150_000;
    })
    .await;
    let ada = world.owner("ada").await;
    let dir = tempfile::tempdir().unwrap();
    let large = file(dir.path(), "large", &vec![1; 100_001]);
    let (transfers, mut events) = start(&ada, 1);
    transfers.put("lobby", vec![large]).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let event = timeout(LONG, events.recv()).await.unwrap().unwrap();
        let last = matches!(event, TransferEvent::Failed { .. });
        seen.push(event);
        if last {
            break;
        }
    }
    assert_eq!(why(seen.last().unwrap()), (RefusalReason::TooLarge, Fault::Request));
    assert!(!seen.iter().any(|event| matches!(event, TransferEvent::Began { .. })), "{seen:?}");
    assert_eq!(ada.state().uploads().count().unwrap(), 0, "it would be refused again");
    drop((transfers, events));

    let sent = put(&ada, vec![file(dir.path(), "fits", &vec![2; 100_000])]).await;
    assert!(matches!(sent[0], TransferEvent::Sent { .. }), "{sent:?}");
    let over = put(&ada, vec![file(dir.path(), "over", &vec![3; 60_000])]).await;
    assert_eq!(why(&over[0]), (RefusalReason::Quota, Fault::Request));
    let sent = put(&ada, vec![file(dir.path(), "small", &vec![4; 40_000])]).await;
    assert!(matches!(sent[0], TransferEvent::Sent { .. }), "{sent:?}");
    assert_eq!(entries(&ada).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer__many_files_arrive_once_beside_an_open_session() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..200_usize)
        .map(|at| file(dir.path(), &format!("f{at}"), &vec![at as u8; at * 97]))
        .collect();
    let (client, _talk) = ada.start(quick());
    let sent = put(&ada, files).await;
    let mut numbers: Vec<_> = sent
        .iter()
        .map(|event| match event {
            TransferEvent::Sent { ack, .. } => ack.n,
            other => panic!("{other:?}"),
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=200).collect::<Vec<_>>());
    assert_eq!(ada.state().uploads().count().unwrap(), 0, "what arrived is not on its way");
    // Each ack is a receipt, as for any message.
    assert_eq!(ada.state().receipts().all_for(LOBBY).unwrap().len(), 200);
    // The client's own connection was not used.
    let page = client.read(LOBBY, 0, 512).await.unwrap();
    assert_eq!(page.head, 200);
    client.close().await;

    let into = tempfile::tempdir().unwrap();
    let (transfers, mut events) = start(&ada, 3);
    let all = entries(&ada).await;
    let jobs: Vec<JobId> =
        all.iter().map(|entry| transfers.get(get(entry, into.path())).unwrap()).collect();
    for _ in jobs {
        let event = ended(&mut events).await;
        assert!(matches!(event, TransferEvent::Got { .. }), "{event:?}");
    }
    for at in 0..200_usize {
        let got = fs::read(into.path().join(format!("f{at}"))).unwrap();
        assert!(got == vec![at as u8; at * 97], "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer__uploads_wait_until_server_is_reachable() {
    let mut world = World::new(|config| config.come_back = std::time::Duration::ZERO).await;
    let ada = world.owner("ada").await;
    let dir = tempfile::tempdir().unwrap();
    world.stop().await;
    let (transfers, mut events) = start(&ada, 2);
    let files = vec![file(dir.path(), "a", b"a"), file(dir.path(), "b", &vec![7; 3_000_000])];
    transfers.put("lobby", files).await.unwrap();
    let down = timeout(LONG, events.recv()).await.unwrap().unwrap();
    assert!(matches!(down, TransferEvent::Down { .. }), "{down:?}");
    assert_eq!(ada.state().uploads().count().unwrap(), 2, "the intent is on disk");
    world.start().await;
    for _ in 0..2 {
        let event = ended(&mut events).await;
        assert!(matches!(event, TransferEvent::Sent { .. }), "{event:?}");
    }
    drop(events);
    transfers.close().await;
    assert_eq!(entries(&ada).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer__wrong_size_or_hash_in_entry_leaves_no_file() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let dir = tempfile::tempdir().unwrap();
    put(&ada, vec![file(dir.path(), "f", b"content")]).await;
    let entry = entries(&ada).await.remove(0);
    let into = tempfile::tempdir().unwrap();
    let (transfers, mut events) = start(&ada, 1);
    let mut size = get(&entry, into.path());
    size.file.size += 1;
    let mut hash = get(&entry, into.path());
    hash.file.hash[0] ^= 1;
    for lie in [size, hash] {
        transfers.get(lie).unwrap();
        match ended(&mut events).await {
            TransferEvent::Failed { error, .. } => {
                assert_eq!((&error, error.fault()), (&TransferError::OtherFile, Fault::Record));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0, "nothing is left");
    }
    // The connection still works, and the correct reference succeeds on it.
    transfers.get(get(&entry, into.path())).unwrap();
    let event = ended(&mut events).await;
    assert!(matches!(event, TransferEvent::Got { .. }), "{event:?}");
}
