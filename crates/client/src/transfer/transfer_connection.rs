//! One transfer connection: requests, answers and file bytes.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use twinlock_core::proto::{RefusalReason, answer::Result as Answered, item::What, request::Op};
use twinlock_transport::connection::Connection;

use crate::connector::ClientStream;
use crate::error::{ClientError, Refusal};
use crate::request_connection::{Received, RequestConnection};

/// Maximum number of items received during hashing; more cannot be answers to anything.
const MAX_KEPT: usize = 64;

/// An established connection.
pub(super) struct TransferConnection {
    requests: RequestConnection<()>,
    /// Items received while something else was awaited.
    kept: VecDeque<TransferItem>,
    /// Downtime that the server announced.
    pub(super) retry_after: Option<Duration>,
    /// Whether a file, or a part of one, was transferred on this connection.
    pub(super) moved: bool,
}

/// A received item.
#[derive(Debug)]
pub(super) enum TransferItem {
    Answer {
        id: u64,
        result: Result<Answered, Refusal>,
    },
    Acked {
        transfer: u32,
        offset: u64,
    },
    Aborted {
        transfer: u32,
        why: RefusalReason,
    },
    Bulk {
        transfer: u32,
        offset: u64,
        data: Vec<u8>,
    },
    /// No more bytes wait to be written than requested.
    Room,
}

impl TransferConnection {
    pub(super) fn new(connection: Connection<ClientStream>) -> Self {
        Self {
            requests: RequestConnection::new(connection),
            kept: VecDeque::new(),
            retry_after: None,
            moved: false,
        }
    }

    /// Whether the connection has failed.
    pub(super) fn is_dead(&self) -> bool {
        self.requests.is_dead()
    }

    /// Bytes sealed and not yet written.
    pub(super) fn backlog(&self) -> usize {
        self.requests.backlog()
    }

    /// Sends a request; returns the id of its answer.
    pub(super) fn ask(&mut self, op: Op) -> Result<u64, ClientError> {
        self.requests.ask(op, ())
    }

    /// Acknowledges all bytes before `offset`.
    pub(super) fn ack(&mut self, transfer: u32, offset: u64) -> Result<(), ClientError> {
        self.requests.ack(transfer, offset)
    }

    /// Seals a part of a file.
    pub(super) fn send_bulk(
        &mut self,
        transfer: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        self.requests.send_bulk(transfer, offset, data)
    }

    /// Sends a request and waits for the answer. Drops earlier items, whose transfers have ended.
    pub(super) async fn answer(
        &mut self,
        op: Op,
    ) -> Result<Result<Answered, Refusal>, ClientError> {
        let asked = self.ask(op)?;
        loop {
            match self.next(None).await? {
                TransferItem::Answer { id, result } if id == asked => return Ok(result),
                _ => {}
            }
        }
    }

    /// Serves the connection while `work` runs elsewhere; keeps received items for later.
    pub(super) async fn during<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, ClientError> {
        let mut work = pin!(work);
        loop {
            let incoming = tokio::select! {
                done = &mut work => return Ok(done),
                incoming = self.receive(None) => incoming?,
            };
            // No download is running, and hardly any request is outstanding.
            if matches!(incoming, TransferItem::Bulk { .. }) || self.kept.len() >= MAX_KEPT {
                let odd = ClientError::Protocol("bytes of a file that was not requested");
                return self.requests.judge(Err(odd));
            }
            self.kept.push_back(incoming);
        }
    }

    /// The next received item; with `room`, [`TransferItem::Room`] when at most that many bytes wait to
    /// be written. Cancel-safe. After an error the connection is [dead](Self::is_dead).
    pub(super) async fn next(&mut self, room: Option<usize>) -> Result<TransferItem, ClientError> {
        match self.kept.pop_front() {
            Some(kept) => Ok(kept),
            None => self.receive(room).await,
        }
    }

    async fn receive(&mut self, room: Option<usize>) -> Result<TransferItem, ClientError> {
        loop {
            return Ok(match self.requests.receive(room).await? {
                Received::Answer { id, result, .. } => TransferItem::Answer { id, result },
                Received::Bulk { transfer, offset, data } => {
                    TransferItem::Bulk { transfer, offset, data }
                }
                Received::Room => TransferItem::Room,
                Received::Item(What::FileAck(ack)) => {
                    TransferItem::Acked { transfer: ack.transfer, offset: ack.offset }
                }
                Received::Item(What::FileAborted(no)) => {
                    TransferItem::Aborted { transfer: no.transfer, why: no.why() }
                }
                Received::Item(What::GoingAway(away)) => {
                    self.retry_after = Some(Duration::from_secs(u64::from(away.seconds)));
                    continue;
                }
                Received::Item(_) | Received::Rekeyed(_) => continue,
            });
        }
    }

    /// Closes the connection; after an error only sends what is still queued.
    pub(super) async fn close(self) {
        self.requests.close().await;
    }
}
