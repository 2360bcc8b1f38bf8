//! Properties of the local disk that no session can show.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use twinlock_core::id::{MessageId, Name};
use twinlock_store::FileRef;

use super::contract::{Blobs, DiskRoom};
use super::hash_turns::HashTurns;
use super::*;

fn open(dir: &Path) -> LocalDisk {
    LocalDisk::open(dir.join("files"), Some(0)).unwrap()
}

fn id(name: &str, size: usize) -> UploadId {
    let user = Name::new("ada").unwrap();
    UploadId::new(&user, &MessageId([7; 16]), 1, name, size as u64)
}

fn file(data: &[u8]) -> FileRef {
    FileRef { hash: *blake3::hash(data).as_bytes(), size: data.len() as u64 }
}

async fn write(disk: &LocalDisk, id: &UploadId, data: &[u8]) -> Box<dyn OpenUpload> {
    let mut upload = disk.begin(id, &HashTurns::new()).await.unwrap();
    upload.write(true, data.to_vec()).await.unwrap();
    upload
}

fn count(dir: &Path) -> usize {
    let list = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    list.map(|e| if e.file_type().unwrap().is_dir() { count(&e.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn upload__crash_after_commit_is_idempotent_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = vec![3; 100_000];
    let content = file(&data);
    for round in 0..3 {
        let disk = open(dir.path());
        let mut upload = match round {
            0 => write(&disk, &id("x", data.len()), &data).await,
            _ => disk.begin(&id("x", data.len()), &HashTurns::new()).await.unwrap(),
        };
        assert_eq!(round > 0, upload.found() == (content.size, content.hash));
        upload.seal(&content.hash).await.unwrap();
        upload.publish(&content.hash).await.unwrap();
        // Both names are one file. The last round discards the upload.
        assert_eq!(count(dir.path()), 2);
        if round == 2 {
            upload.discard().await.unwrap();
        }
    }
    assert_eq!(count(dir.path()), 1);
    let blob = open(dir.path()).open(&content).await.unwrap();
    assert_eq!(blob.prefix_hash(content.size, None).await.unwrap(), content.hash);
}

#[tokio::test]
async fn content__repeated_upload_replaces_damaged_copy() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let data = vec![4; 1000];
    let content = file(&data);
    for name in ["one", "two"] {
        let mut upload = write(&disk, &id(name, data.len()), &data).await;
        upload.seal(&content.hash).await.unwrap();
        upload.publish(&content.hash).await.unwrap();
        upload.discard().await.unwrap();
        assert_eq!(count(dir.path()), 1, "{name}");
        let first = *content.hash.first().unwrap();
        assert_eq!(disk.hashes(first).await.unwrap(), [content.hash]);
        // Damaged: the next upload repairs it.
        let blob = disk.open(&content).await.unwrap();
        assert_eq!(blob.prefix_hash(1000, None).await.unwrap(), content.hash);
        fs::write(disk_path(dir.path(), &content.hash), vec![5; 1000]).unwrap();
    }
    disk.remove(&content.hash).await.unwrap();
    disk.remove(&content.hash).await.unwrap();
    assert!(matches!(disk.open(&content).await, Err(FilesError::Damaged(_))));
}

/// A second connection restarts an upload whose content is shared by now.
#[tokio::test]
async fn content__restarted_upload_never_writes_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = vec![6; 1000];
    let content = file(&data);
    let disk = open(dir.path());
    let mut upload = write(&disk, &id("bobs", data.len()), &data).await;
    upload.seal(&content.hash).await.unwrap();
    upload.publish(&content.hash).await.unwrap();
    upload.discard().await.unwrap();
    for restarted in [false, true] {
        let mut first = write(&disk, &id("x", data.len()), &data).await;
        first.seal(&content.hash).await.unwrap();
        first.publish(&content.hash).await.unwrap();
        let reopened = open(dir.path());
        let disk = if restarted { &reopened } else { &disk };
        let mut second = disk.begin(&id("x", data.len()), &HashTurns::new()).await.unwrap();
        assert_eq!(second.found(), (content.size, content.hash));
        second.write(true, vec![7; 10]).await.unwrap();
        second.write(false, vec![7; 990]).await.unwrap();
        let blob = disk.open(&content).await.unwrap();
        assert_eq!(blob.prefix_hash(content.size, None).await.unwrap(), content.hash);
        // The first connection has lost the upload, and does not take it back.
        assert!(restarted || matches!(first.publish(&content.hash).await, Err(FilesError::Taken)));
        second.seal(&file(&[7; 1000]).hash).await.unwrap();
        second.discard().await.unwrap();
    }
}

#[tokio::test]
async fn prefix_hash__cached_until_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let content = file(&data);
    let mut upload = write(&disk, &id("x", data.len()), &data).await;
    upload.seal(&content.hash).await.unwrap();
    upload.publish(&content.hash).await.unwrap();
    upload.discard().await.unwrap();
    let path = disk_path(dir.path(), &content.hash);
    let hash = async |length: usize| {
        disk.open(&content).await.unwrap().prefix_hash(length as u64, None).await.unwrap()
    };
    // In any order, and more of them than are kept.
    for length in [600_000, 0, 1_000_000, 1, 600_000, 599_999].into_iter().chain(1000..1100) {
        assert_eq!(hash(length).await, *blake3::hash(&data[..length]).as_bytes(), "{length}");
    }
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let mut changed = data.clone();
    changed[5] ^= 1;
    fs::write(&path, &changed).unwrap();
    let other = before + Duration::from_millis(1);
    // Only the time shows the change.
    for (time, is) in [(before, &data), (other, &changed)] {
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(hash(900_000).await, *blake3::hash(&is[..900_000]).as_bytes());
    }
}

fn disk_path(dir: &Path, hash: &Hash) -> PathBuf {
    let name = data_encoding::HEXLOWER.encode(hash);
    dir.join("files").join(&name[..2]).join(name)
}

#[tokio::test]
async fn upload__seal_requires_exact_size_and_hash() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let mut upload = write(&disk, &id("x", 4), b"abc").await;
    for wrong in [file(b"abc").hash, file(b"abcd").hash] {
        assert!(matches!(upload.seal(&wrong).await, Err(FilesError::Hash)));
    }
    upload.write(false, b"d".to_vec()).await.unwrap();
    assert!(matches!(upload.seal(&[0; 32]).await, Err(FilesError::Hash)));
    upload.seal(&file(b"abcd").hash).await.unwrap();
}

#[tokio::test]
async fn upload__file_replaced_after_seal_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let mut upload = write(&disk, &id("x", 4), b"abcd").await;
    upload.seal(&file(b"abcd").hash).await.unwrap();
    let user = dir.path().join("files/partial/ada");
    let partial = fs::read_dir(&user).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&partial).unwrap();
    fs::write(&partial, b"efgh").unwrap();
    assert!(matches!(upload.publish(&file(b"abcd").hash).await, Err(FilesError::Taken)));
    assert!(matches!(disk.open(&file(b"abcd")).await, Err(FilesError::Damaged(_))));
}

#[tokio::test]
async fn upload__symlink_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    drop(write(&disk, &id("x", 4), b"abc").await);
    drop(disk);
    let user = dir.path().join("files/partial/ada");
    let partial = fs::read_dir(&user).unwrap().next().unwrap().unwrap().path();
    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&partial, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &partial).unwrap();
    let disk = open(dir.path());
    assert!(matches!(
        disk.begin(&id("x", 4), &HashTurns::new()).await.map(drop),
        Err(FilesError::Io { .. })
    ));
    assert_eq!(fs::read(&elsewhere).unwrap(), b"abc");
}

#[tokio::test]
async fn partial_upload__expires_only_when_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let kept = write(&disk, &id("kept", 10), b"abc").await;
    drop(write(&disk, &id("left", 10), b"abc").await);
    fs::write(dir.path().join("files/partial/ada/half.second"), b"").unwrap();
    assert_eq!(disk.expire(Duration::from_secs(3600)).await.unwrap(), 0);
    assert_eq!(disk.expire(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(count(dir.path()), 1);
    drop(kept);
    assert_eq!(disk.expire(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(count(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__one_of_concurrent_openers_can_write() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(open(dir.path()));
    drop(write(&disk, &id("x", 100), b"abc").await);
    let begin = || {
        let disk = disk.clone();
        tokio::spawn(async move { disk.begin(&id("x", 100), &HashTurns::new()).await.unwrap() })
    };
    let begun: Vec<_> = (0..16).map(|_| begin()).collect();
    let mut uploads = Vec::new();
    for upload in begun {
        let upload = upload.await.unwrap();
        assert_eq!(upload.found(), (3, file(b"abc").hash));
        uploads.push(upload);
    }
    let mut wrote = 0;
    for upload in &mut uploads {
        match upload.write(false, b"d".to_vec()).await {
            Ok(_) => wrote += 1,
            Err(error) => assert!(matches!(error, FilesError::Taken), "{error}"),
        }
    }
    assert_eq!(wrote, 1);
    drop(uploads);
    assert_eq!(
        disk.begin(&id("x", 100), &HashTurns::new()).await.unwrap().found(),
        (4, file(b"abcd").hash)
    );
}

#[tokio::test]
async fn partial_upload__reread_only_after_change() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let all: Vec<_> = (0..300).map(|n| id(&n.to_string(), 10)).collect();
    for id in &all {
        drop(write(&disk, id, b"abc").await);
    }
    // More than the number of files kept open.
    let path = |id: &UploadId| disk.0.partial(&id.user, &id.key);
    assert!(!all.iter().any(|id| partial::must_be_read(&disk.0, id)));
    for id in [&all[0], &all[299]] {
        fs::write(path(id), b"abd").unwrap();
        assert!(partial::must_be_read(&disk.0, id));
    }
    for (n, id) in all.iter().enumerate() {
        let is = if [0, 299].contains(&n) { b"abd" } else { b"abc" };
        let mut upload = disk.begin(id, &HashTurns::new()).await.unwrap();
        assert_eq!(upload.found(), (3, file(is).hash), "{n}");
        upload.write(false, b"e".to_vec()).await.unwrap();
    }
    assert!(partial::must_be_read(&open(dir.path()).0, &all[5]));
}

#[tokio::test]
async fn partial_upload__hashing_waits_for_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (left, new) = (id("left", 10), id("new", 10));
    let disk = open(dir.path());
    drop(write(&disk, &left, b"abc").await);
    let turns = HashTurns::new();
    let bob = turns.take(&Name::new("bob").unwrap()).await;
    let eve = turns.take(&Name::new("eve").unwrap()).await;
    // A remembered or new upload needs no turn.
    drop(disk.begin(&left, &turns).await.unwrap());
    drop(disk.begin(&new, &turns).await.unwrap());
    let disk = open(dir.path());
    let mut begun = Box::pin(disk.begin(&left, &turns));
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut begun).await;
    assert!(waits.is_err());
    drop(bob);
    assert_eq!(begun.await.unwrap().found(), (3, file(b"abc").hash));
    drop(eve);
}

#[test]
fn disk_room__reserves_bytes_and_inodes() {
    let mut disk = rustix::fs::statvfs(".").unwrap();
    (disk.f_frsize, disk.f_blocks, disk.f_bavail) = (4096, 1 << 20, 1000);
    for (all, free, files) in
        [(0, 0, u64::MAX), (1_000_000, 5000, 4000), (1_000_000, 999, 0), (2000, 30, 10)]
    {
        (disk.f_files, disk.f_favail) = (all, free);
        let (bytes, reserve) = (904 << 12, 96 << 12);
        assert_eq!(directory::room_of(&disk, Some(reserve)), DiskRoom { bytes, files, reserve });
    }
    // 5 % of 4 GiB are more than the free space.
    assert_eq!(directory::room_of(&disk, None).bytes, 0);
}
