//! The server's files on disk, and interrupted uploads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use twinlock_core::proto::item::What;

use super::*;

/// Path and size of the complete files in the server's directory.
pub fn blobs(host: &TestServer) -> Vec<(PathBuf, u64)> {
    let is_content = |path: &Path| !is_in(path, "partial") && !is_in(path, "unreferenced");
    walk(&host.data().join("files")).into_iter().filter(|(p, _)| is_content(p)).collect()
}

/// Path and size of the partial uploads.
pub fn partials(host: &TestServer) -> Vec<(PathBuf, u64)> {
    walk(&host.data().join("files")).into_iter().filter(|(p, _)| is_in(p, "partial")).collect()
}

fn is_in(path: &Path, folder: &str) -> bool {
    path.components().any(|part| part.as_os_str() == folder)
}

fn walk(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all.extend(walk(&entry.path()));
        } else {
            all.push((entry.path(), entry.metadata().unwrap().len()));
        }
    }
    all
}

/// Sends half of an upload; returns an offset that the server has certainly acknowledged.
pub async fn half(client: &mut RawClient, id: [u8; 16], data: &[u8]) -> u64 {
    let accepted = client.offer(put(id, "half", data.len() as u64)).await.unwrap();
    let half = data.len() / 2;
    client.send_part(accepted.transfer, data, 0, half).await;
    let pick = |item: &What| match item {
        What::FileAck(ack) if ack.offset as usize > half / 2 => Some(ack.offset),
        _ => None,
    };
    client.pick("acknowledgement", pick).await
}

pub fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Polls until a condition holds that no connection reports.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, wait).await;
}
