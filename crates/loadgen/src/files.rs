//! The upload and the download of a file, from memory to memory.
//!
//! The client generates the bytes and keeps nothing. The server does what it does for any file,
//! including its disk and both hashes.

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use twinlock_client::error::ClientError;
use twinlock_client::request_connection::{Received, RequestConnection};
use twinlock_core::Entropy as _;
use twinlock_core::proto::{
    self, RefusalReason, answer::Result as Answered, item::What, request::Op,
};
use twinlock_transport::OsEntropy;
use twinlock_transport::flow_control::{ACK_EACH, FRAME, FlowControl};

use crate::load::Load;
use crate::measure::{Gauge, ResourceSnapshot};
use crate::model::{LoadError, Measurement};

/// Bytes sealed and not yet written above which no more frames are sealed.
const BACKLOG: usize = 96 * 1024;

impl Load {
    /// Sends a file of `size` bytes and fetches it.
    pub(crate) async fn files(&mut self, size: u64) -> Result<Vec<Measurement>, LoadError> {
        let gauge = Gauge::new()?;
        let opened = self.open(1, None).await?.pop().ok_or(ClientError::Closed)?;
        let mut requests = RequestConnection::new(opened.connection);
        let before = ResourceSnapshot::now(self.server);
        let mut stop = self.stop.clone();
        let transfers = async {
            let n = put(&mut requests, self.room.id, size).await?;
            let sent = before.report("put", size, &gauge);
            let before = ResourceSnapshot::now(self.server);
            get(&mut requests, self.room.id, n, size).await?;
            Ok::<_, ClientError>(vec![sent, before.report("get", size, &gauge)])
        };
        let measured = tokio::select! {
            measured = transfers => measured.map_err(LoadError::from),
            () = stop.stopped() => Err(LoadError::Stopped),
        };
        requests.close().await;
        measured
    }
}

/// Sends a file; returns the number of its entry.
async fn put(
    requests: &mut RequestConnection<()>,
    conversation: u64,
    size: u64,
) -> Result<u64, ClientError> {
    let mut id = [0; 16];
    OsEntropy.fill(&mut id);
    let file = proto::FileMeta { name: "bench.bin".to_owned(), size, ..Default::default() };
    let message_id = Bytes::copy_from_slice(&id);
    let put = proto::PutFile { conversation, message_id, file: Some(file) };
    let Answered::FileAccepted(accepted) = requests.request(Op::PutFile(put)).await? else {
        return Err(ClientError::Protocol("an answer to another question"));
    };
    let transfer = accepted.transfer;
    // Random, so that the server does not store the same content already.
    let mut block = vec![0; FRAME];
    OsEntropy.fill(&mut block);
    let mut hasher = blake3::Hasher::new();
    let mut pace = FlowControl::new(0, accepted.ack_each, Instant::now().into_std());
    let acked = |received: Received<()>, pace: &mut FlowControl| match received {
        Received::Item(What::FileAck(ack)) if ack.transfer == transfer => {
            let known = pace.acknowledge(ack.offset, Instant::now().into_std());
            known.then_some(()).ok_or(ClientError::Protocol("it has more of a file than was sent"))
        }
        Received::Item(What::FileAborted(no)) if no.transfer == transfer => {
            Err(ClientError::Refused(no.why().into()))
        }
        _ => Ok(()),
    };
    while pace.sent() < size {
        let left = usize::try_from(size - pace.sent()).unwrap_or(FRAME).min(FRAME);
        let may = pace.may(left);
        if may && requests.backlog() < BACKLOG {
            // Receives first: a connection with room to write never waits, so it would never read.
            if let Some(received) = requests.receive(None).now_or_never() {
                acked(received?, &mut pace)?;
                continue;
            }
            let data = block.get(..left).unwrap_or_default();
            hasher.update(data);
            requests.send_bulk(transfer, pace.sent(), data)?;
            pace.send(left, Instant::now().into_std());
        } else {
            acked(requests.receive(may.then_some(BACKLOG - 1)).await?, &mut pace)?;
        }
    }
    let hash = Bytes::copy_from_slice(hasher.finalize().as_bytes());
    let asked = requests.ask(Op::EndFile(proto::EndFile { transfer, hash }), ())?;
    loop {
        match requests.receive(None).await? {
            Received::Answer { id, result: Ok(Answered::Ack(ack)), .. } if id == asked => {
                return Ok(ack.n);
            }
            Received::Answer { id, result: Err(no), .. } if id == asked => {
                return Err(ClientError::Refused(no));
            }
            received => acked(received, &mut pace)?,
        }
    }
}

/// Fetches a file, verifies its hash and discards it.
async fn get(
    requests: &mut RequestConnection<()>,
    conversation: u64,
    n: u64,
    size: u64,
) -> Result<(), ClientError> {
    let get = proto::GetFile { conversation, n, ack_each: ACK_EACH, ..Default::default() };
    let Answered::FileComing(coming) = requests.request(Op::GetFile(get)).await? else {
        return Err(ClientError::Protocol("an answer to another question"));
    };
    let transfer = coming.transfer;
    if coming.size != size || coming.offset != 0 {
        return Err(ClientError::Protocol("another file than was sent"));
    }
    let (mut hasher, mut got, mut acked) = (blake3::Hasher::new(), 0, 0);
    while got < size {
        match requests.receive(None).await? {
            Received::Bulk { transfer: of, offset, data } if of == transfer => {
                if offset != got {
                    return Err(ClientError::Protocol("file bytes out of order"));
                }
                hasher.update(&data);
                got += data.len() as u64;
                if got >= acked + u64::from(ACK_EACH) {
                    acked = got;
                    requests.ack(transfer, got)?;
                }
            }
            Received::Item(What::FileAborted(no)) if no.transfer == transfer => {
                return Err(ClientError::Refused(no.why().into()));
            }
            _ => {}
        }
    }
    if *hasher.finalize().as_bytes() == *coming.hash {
        Ok(())
    } else {
        Err(ClientError::Refused(RefusalReason::Hash.into()))
    }
}
