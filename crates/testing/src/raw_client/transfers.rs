//! File transfers, in steps or at once.

use bytes::Bytes;
use prost::Message as _;
use twinlock_core::proto::{
    self, RefusalReason, answer::Result as Answered, item::What, request::Op,
};
use twinlock_transport::connection::Wake;

use super::RawClient;
use crate::messages::{accepted, ack, coming, get, hash, put};
use crate::soon;

/// Data of a BULK frame, bytes.
const FRAME: usize = 64 * 1024;
/// Limit on data ahead of the server's acknowledgement, bytes.
const WINDOW: u64 = 8 << 20;

impl RawClient {
    /// Offers a file.
    ///
    /// # Errors
    /// Why the server refused it.
    pub async fn offer(
        &mut self,
        put: proto::PutFile,
    ) -> Result<proto::FileAccepted, RefusalReason> {
        self.ask(Op::PutFile(put)).await.map(accepted)
    }

    /// Sends a part of a file, within the window of unacknowledged data.
    ///
    /// # Panics
    /// If the connection fails, or if the server acknowledges what was not sent.
    pub async fn send_part(&mut self, transfer: u32, data: &[u8], from: usize, to: usize) {
        let mut acked = *self.acked.entry(transfer).or_insert(from as u64);
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
                self.acked.insert(transfer, acked);
            }
            let end = to.min(at + FRAME);
            if end as u64 - acked > WINDOW {
                soon("an acknowledgement", self.pump()).await.unwrap();
                continue;
            }
            self.connection.session_mut().send_bulk(transfer, at as u64, &data[at..end]).unwrap();
            at = end;
            while self.connection.backlog() > 128 * 1024 {
                if soon("room", self.connection.wait(Some(128 * 1024))).await.unwrap()
                    == Wake::Frame
                {
                    self.pump().await.unwrap();
                }
            }
        }
    }

    /// Queues the end of an upload, and returns the id of the request.
    pub fn post_end(&mut self, transfer: u32, data: &[u8]) -> u64 {
        self.post(Op::EndFile(proto::EndFile { transfer, hash: hash(data) }))
    }

    /// Ends an upload, and waits until it is recorded.
    ///
    /// # Errors
    /// Why the server refused it.
    pub async fn end_file(
        &mut self,
        transfer: u32,
        data: &[u8],
    ) -> Result<proto::Ack, RefusalReason> {
        self.ask(Op::EndFile(proto::EndFile { transfer, hash: hash(data) })).await.map(ack)
    }

    /// Offers a file and sends the missing bytes. Also returns how many that were.
    ///
    /// # Errors
    /// Why the server refused it.
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
    ///
    /// # Panics
    /// If they do not arrive in order.
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

    /// Acknowledges received file bytes.
    ///
    /// # Panics
    /// If the connection takes no more frames.
    pub fn ack_file(&mut self, transfer: u32, offset: u64) {
        let file_acks = vec![proto::FileAck { transfer, offset }];
        let acks = proto::ToServer { file_acks, ..Default::default() };
        self.connection.send_app(&acks.encode_to_vec()).unwrap();
    }

    /// Fetches a file and compares its hash; resumes from the end of `data` if that matches the
    /// file's prefix. Returns the offset of the resumption.
    ///
    /// # Errors
    /// Why the server refused it.
    ///
    /// # Panics
    /// If the file's bytes have another hash.
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
    ///
    /// # Panics
    /// If it does not.
    pub async fn aborted(&mut self, transfer: u32) -> RefusalReason {
        let pick = |item: &What| match item {
            What::FileAborted(aborted) if aborted.transfer == transfer => Some(aborted.why()),
            _ => None,
        };
        self.pick("FileAborted", pick).await
    }
}
