//! One transfer connection: sends requests, receives answers and file bytes.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use prost::Message as _;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{
    self, RefusalReason, answer::Result as Answered, item::What, request::Op,
};
use twinlock_core::session::{SendError, SessionEvent};
use twinlock_transport::connection::{Connection, Wake};

use crate::connector::Stream;
use crate::error::{ClientError, Refusal, closed};
use crate::session_log;

/// Maximum number of items received during hashing; more cannot be answers to anything.
const KEPT: usize = 64;

/// An established connection.
pub(crate) struct Wire {
    line: Connection<Stream>,
    items: VecDeque<proto::Item>,
    /// Items received while something else was awaited.
    kept: VecDeque<Incoming>,
    next_id: u64,
    /// Downtime that the server announced.
    pub(crate) come_back: Option<Duration>,
    /// Whether a file, or a part of one, was transferred on this connection.
    pub(crate) moved: bool,
    dead: bool,
    /// The error that ended the connection.
    why: Option<ClientError>,
}

/// A received item.
#[derive(Debug)]
pub(crate) enum Incoming {
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

impl Wire {
    pub(crate) fn new(line: Connection<Stream>) -> Self {
        Self {
            line,
            items: VecDeque::new(),
            kept: VecDeque::new(),
            next_id: 1,
            come_back: None,
            moved: false,
            dead: false,
            why: None,
        }
    }

    /// Whether the connection has failed.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Bytes sealed and not yet written.
    pub(crate) fn backlog(&self) -> usize {
        self.line.backlog()
    }

    /// Sends a request; returns the id of its answer.
    pub(crate) fn ask(&mut self, op: Op) -> Result<u64, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let requests = vec![proto::Request { id, op: Some(op) }];
        self.send(&proto::ToServer { requests, ..Default::default() })?;
        Ok(id)
    }

    /// Acknowledges all bytes before `offset`.
    pub(crate) fn ack(&mut self, transfer: u32, offset: u64) -> Result<(), ClientError> {
        let file_acks = vec![proto::FileAck { transfer, offset }];
        self.send(&proto::ToServer { file_acks, ..Default::default() })
    }

    fn send(&mut self, message: &proto::ToServer) -> Result<(), ClientError> {
        let sent = self.line.send_app(&message.encode_to_vec());
        self.sent(sent)
    }

    /// Seals a part of a file.
    pub(crate) fn send_bulk(
        &mut self,
        transfer: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        let sent = self.line.session_mut().send_bulk(transfer, offset, data);
        self.sent(sent)
    }

    fn sent(&mut self, sent: Result<(), SendError>) -> Result<(), ClientError> {
        self.judge(sent.map_err(|error| ClientError::Lost(error.to_string())))
    }

    /// Sends a request and waits for the answer. Drops earlier items, whose transfers have ended.
    pub(crate) async fn answer(
        &mut self,
        op: Op,
    ) -> Result<Result<Answered, Refusal>, ClientError> {
        let asked = self.ask(op)?;
        loop {
            match self.next(None).await? {
                Incoming::Answer { id, result } if id == asked => return Ok(result),
                _ => {}
            }
        }
    }

    /// Serves the connection while `work` runs elsewhere; keeps received items for later.
    pub(crate) async fn during<T>(
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
            if matches!(incoming, Incoming::Bulk { .. }) || self.kept.len() >= KEPT {
                let odd = ClientError::Protocol("bytes of a file that was not requested");
                return self.judge(Err(odd));
            }
            self.kept.push_back(incoming);
        }
    }

    /// The next received item; with `room`, [`Incoming::Room`] when at most that many bytes wait to
    /// be written. Cancel-safe. After an error the connection is [dead](Self::is_dead).
    pub(crate) async fn next(&mut self, room: Option<usize>) -> Result<Incoming, ClientError> {
        match self.kept.pop_front() {
            Some(kept) => Ok(kept),
            None => self.receive(room).await,
        }
    }

    async fn receive(&mut self, room: Option<usize>) -> Result<Incoming, ClientError> {
        loop {
            while let Some(item) = self.items.pop_front() {
                if let Some(incoming) = self.take(item)? {
                    return Ok(incoming);
                }
            }
            let woken = self.line.wait(room).await;
            if self.judge(woken.map_err(ClientError::from))? == Wake::Room {
                return Ok(Incoming::Room);
            }
            let opened = self.line.open_frame();
            let outcome = match opened {
                Ok(SessionEvent::Bulk { transfer, offset, data }) => {
                    return Ok(Incoming::Bulk { transfer, offset, data: data.to_vec() });
                }
                Ok(SessionEvent::App(body)) => proto::ToClient::decode(body)
                    .map_err(|_| ClientError::Protocol("a frame that cannot be read"))
                    .map(|message| message.items),
                Ok(SessionEvent::Closed(code)) => Err(closed(code)),
                Ok(SessionEvent::Rekeyed(epoch)) => {
                    session_log::rekeyed(self.line.session(), epoch);
                    Ok(Vec::new())
                }
                Ok(_) => Ok(Vec::new()),
                Err(error) => Err(error.into()),
            };
            let items = self.judge(outcome)?;
            self.items.extend(items);
        }
    }

    fn judge<T>(&mut self, outcome: Result<T, ClientError>) -> Result<T, ClientError> {
        if let Err(error) = &outcome {
            self.dead = true;
            self.why.get_or_insert_with(|| error.clone());
        }
        outcome
    }

    fn take(&mut self, item: proto::Item) -> Result<Option<Incoming>, ClientError> {
        Ok(match item.what {
            Some(What::Answer(answer)) => {
                let result = match answer.result {
                    Some(Answered::Refusal(no)) => Err(Refusal::from(no)),
                    Some(answered) => Ok(answered),
                    None => {
                        let odd = ClientError::Protocol("an answer of a kind it was not asked for");
                        return self.judge(Err(odd));
                    }
                };
                Some(Incoming::Answer { id: answer.id, result })
            }
            Some(What::FileAck(ack)) => {
                Some(Incoming::Acked { transfer: ack.transfer, offset: ack.offset })
            }
            Some(What::FileAborted(no)) => {
                Some(Incoming::Aborted { transfer: no.transfer, why: no.why() })
            }
            Some(What::GoingAway(away)) => {
                self.come_back = Some(Duration::from_secs(u64::from(away.seconds)));
                None
            }
            _ => None,
        })
    }

    /// Returns the underlying connection, on which nothing may be outstanding.
    pub(crate) fn into_connection(self) -> Connection<Stream> {
        self.line
    }

    /// Closes the connection; after an error only sends what is still queued.
    pub(crate) async fn close(self) {
        session_log::end(self.line.session(), self.why.as_ref());
        if self.dead {
            self.line.finish().await;
        } else {
            self.line.close(CloseCode::Bye).await;
        }
    }
}
