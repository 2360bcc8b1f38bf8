//! File transfers of the test client, step by step.

use super::*;

/// Data of a BULK frame, bytes.
const FRAME: usize = 64 * 1024;
/// Limit on data ahead of the server's acknowledgement, bytes.
pub const WINDOW: u64 = 8 << 20;

pub fn hash(data: &[u8]) -> Bytes {
    copy(blake3::hash(data).as_bytes())
}

pub fn put(id: [u8; 16], name: &str, size: u64) -> proto::PutFile {
    let file = proto::FileMeta { name: name.to_owned(), size, ..proto::FileMeta::default() };
    proto::PutFile { conversation: LOBBY, message_id: copy(&id), file: Some(file) }
}

pub fn accepted(answered: Answered) -> proto::FileAccepted {
    if let Answered::FileAccepted(accepted) = answered { accepted } else { panic!("{answered:?}") }
}

pub fn coming(answered: Answered) -> proto::FileComing {
    if let Answered::FileComing(coming) = answered { coming } else { panic!("{answered:?}") }
}

pub fn get(n: u64) -> proto::GetFile {
    proto::GetFile { conversation: LOBBY, n, ..proto::GetFile::default() }
}

/// Path and size of the complete files in the server's directory.
pub fn blobs(host: &Host) -> Vec<(std::path::PathBuf, u64)> {
    let is_content = |path: &Path| !is_in(path, "partial") && !is_in(path, "unreferenced");
    walk(&host.dir.path().join("data/files")).into_iter().filter(|(p, _)| is_content(p)).collect()
}

/// Path and size of the partial uploads.
pub fn partials(host: &Host) -> Vec<(std::path::PathBuf, u64)> {
    walk(&host.dir.path().join("data/files"))
        .into_iter()
        .filter(|(p, _)| is_in(p, "partial"))
        .collect()
}

fn is_in(path: &Path, folder: &str) -> bool {
    path.components().any(|part| part.as_os_str() == folder)
}

fn walk(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
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
pub async fn half(client: &mut Client, id: [u8; 16], data: &[u8]) -> u64 {
    let accepted = client.offer(put(id, "half", data.len() as u64)).await.unwrap();
    let half = data.len() / 2;
    client.send_part(accepted.transfer, data, 0, half).await;
    let pick = |item: &What| match item {
        What::FileAck(ack) if ack.offset as usize > half / 2 => Some(ack.offset),
        _ => None,
    };
    client.pick("acknowledgement", pick).await
}

pub fn flip(path: &std::path::Path, at: usize) {
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

impl Client {
    pub async fn offer(
        &mut self,
        put: proto::PutFile,
    ) -> Result<proto::FileAccepted, RefusalReason> {
        self.ask(Op::PutFile(put)).await.map(accepted)
    }

    /// Sends a part of a file, within the window of unacknowledged data.
    pub async fn send_part(&mut self, transfer: u32, data: &[u8], from: usize, to: usize) {
        let mut acked = *self.taken.entry(transfer).or_insert(from as u64);
        let mut at = from;
        while at < to {
            while let Some(place) = self
                .items
                .iter()
                .position(|item| matches!(item, What::FileAck(ack) if ack.transfer == transfer))
            {
                let Some(What::FileAck(ack)) = self.items.remove(place) else { unreachable!() };
                assert!(ack.offset > acked && ack.offset <= at as u64, "{ack:?} at {at}");
                acked = ack.offset;
                self.taken.insert(transfer, acked);
            }
            let end = to.min(at + FRAME);
            if end as u64 - acked > WINDOW {
                soon("an acknowledgement", self.pump()).await.unwrap();
                continue;
            }
            self.line.session_mut().send_bulk(transfer, at as u64, &data[at..end]).unwrap();
            at = end;
            while self.line.backlog() > 128 * 1024 {
                if soon("room", self.line.wait(Some(128 * 1024))).await.unwrap() == Wake::Frame {
                    self.pump().await.unwrap();
                }
            }
        }
    }

    pub fn post_end(&mut self, transfer: u32, data: &[u8]) -> u64 {
        self.post(Op::EndFile(proto::EndFile { transfer, hash: hash(data) }))
    }

    pub async fn end_file(
        &mut self,
        transfer: u32,
        data: &[u8],
    ) -> Result<proto::Ack, RefusalReason> {
        self.ask(Op::EndFile(proto::EndFile { transfer, hash: hash(data) })).await.map(ack)
    }

    /// Offers a file and sends the missing bytes. Also returns how many that were.
    pub async fn upload(
        &mut self,
        id: [u8; 16],
        name: &str,
        data: &[u8],
    ) -> Result<(proto::Ack, usize), RefusalReason> {
        let answered = self.ask(Op::PutFile(put(id, name, data.len() as u64))).await?;
        let accepted = match answered {
            Answered::Ack(ack) => return Ok((ack, 0)),
            answered => accepted(answered),
        };
        let have = usize::try_from(accepted.offset).unwrap();
        let good = have > 0 && accepted.prefix_hash == hash(&data[..have]);
        let from = if good { have } else { 0 };
        self.send_part(accepted.transfer, data, from, data.len()).await;
        let ack = self.end_file(accepted.transfer, data).await?;
        Ok((ack, data.len() - from))
    }

    /// Receives the bytes of a download, and acknowledges each MiB.
    pub async fn receive(&mut self, coming: &proto::FileComing, data: &mut Vec<u8>) {
        assert_eq!(data.len() as u64, coming.offset);
        let mut acked = coming.offset;
        while (data.len() as u64) < coming.size {
            let at = self.bulk.iter().position(|(transfer, ..)| *transfer == coming.transfer);
            let Some((_, offset, some)) = at.and_then(|at| self.bulk.remove(at)) else {
                soon("bytes of a file", self.pump()).await.unwrap();
                continue;
            };
            assert_eq!(offset, data.len() as u64);
            data.extend_from_slice(&some);
            assert!(data.len() as u64 - acked <= WINDOW);
            if data.len() as u64 - acked >= 1 << 20 {
                acked = data.len() as u64;
                self.ack_file(coming.transfer, acked);
            }
        }
    }

    pub fn ack_file(&mut self, transfer: u32, offset: u64) {
        let file_acks = vec![proto::FileAck { transfer, offset }];
        let acks = proto::ToServer { file_acks, ..Default::default() };
        self.line.send_app(&acks.encode_to_vec()).unwrap();
    }

    /// Fetches a file and compares its hash; resumes from the end of `data` if that matches the
    /// file's prefix. Returns the offset of the resumption.
    pub async fn download(&mut self, n: u64, data: &mut Vec<u8>) -> Result<u64, RefusalReason> {
        let want = proto::GetFile {
            offset: data.len() as u64,
            prefix_hash: if data.is_empty() { Bytes::new() } else { hash(data) },
            ..get(n)
        };
        let coming = self.ask(Op::GetFile(want)).await.map(coming)?;
        data.truncate(usize::try_from(coming.offset).unwrap());
        self.receive(&coming, data).await;
        assert_eq!(hash(data), coming.hash, "the hash of file {n}");
        Ok(coming.offset)
    }

    /// Waits until the server aborts a transfer.
    pub async fn aborted(&mut self, transfer: u32) -> RefusalReason {
        let pick = |item: &What| match item {
            What::FileAborted(aborted) if aborted.transfer == transfer => Some(aborted.why()),
            _ => None,
        };
        self.pick("FileAborted", pick).await
    }
}
