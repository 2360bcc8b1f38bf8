//! Requests and answers on one connection: ids, outstanding requests, and the frames of both
//! directions.
//!
//! A program that converses uses [`crate::Client`]; this is below it, and for programs that measure
//! a server. The driver, the transfers and the registration each add what they do with answers and items.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message as _;
use twinlock_core::frame::CloseCode;
use twinlock_core::limits::MAX_BODY;
use twinlock_core::pack::pack;
use twinlock_core::proto::{self, answer::Result as Answered, item::What, request::Op};
use twinlock_core::session::{SendError, SessionEvent};
use twinlock_transport::connection::{Connection, Wake};

use crate::connector::{ClientStream, issuer};
use crate::error::{ClientError, Refusal, closed};
use crate::session_log;

/// Overhead of a request in a frame in bytes: tag and length.
const REQUEST_HEAD: usize = 6;

/// A connection that sends requests and receives answers and items. `R` names the recipient of an
/// answer.
pub struct RequestConnection<R> {
    connection: Connection<ClientStream>,
    next_id: u64,
    outstanding: HashMap<u64, R>,
    /// Requests for the next frame.
    frame: Vec<proto::Request>,
    frame_bytes: usize,
    /// Items of the last frame that are not taken yet.
    items: std::vec::IntoIter<proto::Item>,
    /// The error that ended the connection.
    failure: Option<ClientError>,
}

/// Something that arrived.
pub enum Received<R> {
    /// The answer to the request with this id.
    Answer {
        /// The request's id.
        id: u64,
        /// `None`: no such request is outstanding.
        recipient: Option<R>,
        /// What the server answers, or why it refuses.
        result: Result<Answered, Refusal>,
    },
    /// An item that is not an answer.
    Item(What),
    /// A part of a file.
    Bulk {
        /// The transfer's number on this connection.
        transfer: u32,
        /// Where the part begins in the file.
        offset: u64,
        /// The part.
        data: Vec<u8>,
    },
    /// Both directions are in this epoch.
    Rekeyed(u32),
    /// No more bytes wait to be written than requested.
    Room,
}

impl<R> RequestConnection<R> {
    /// Takes a connection on which no request is outstanding.
    pub fn new(connection: Connection<ClientStream>) -> Self {
        Self {
            connection,
            next_id: 1,
            outstanding: HashMap::new(),
            frame: Vec::new(),
            frame_bytes: 0,
            items: Vec::new().into_iter(),
            failure: None,
        }
    }

    /// The underlying connection.
    pub fn connection(&self) -> &Connection<ClientStream> {
        &self.connection
    }

    /// The underlying connection; to send requests past this type mixes up the ids.
    pub fn connection_mut(&mut self) -> &mut Connection<ClientStream> {
        &mut self.connection
    }

    /// Returns the underlying connection. Outstanding requests lose their answers.
    pub fn into_connection(self) -> Connection<ClientStream> {
        self.connection
    }

    /// Bytes that wait to be written.
    pub fn backlog(&self) -> usize {
        self.connection.backlog() + self.frame_bytes
    }

    /// Number of requests without an answer.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Removes the requests without an answer, and returns their recipients.
    pub fn take_outstanding(&mut self) -> impl Iterator<Item = R> + use<R> {
        std::mem::take(&mut self.outstanding).into_values()
    }

    /// Adds a request to the next frame; seals a full frame first. Returns the request's id.
    pub fn queue(&mut self, op: Op, recipient: R) -> Result<u64, ClientError> {
        let id = self.next_id;
        let request = proto::Request { id, op: Some(op) };
        let bytes = size(&request);
        if self.frame_bytes + bytes > MAX_BODY {
            self.flush()?;
        }
        self.outstanding.insert(id, recipient);
        self.next_id += 1;
        self.frame_bytes += bytes;
        self.frame.push(request);
        Ok(id)
    }

    /// Seals the queued requests.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.frame_bytes = 0;
        for requests in pack(std::mem::take(&mut self.frame), 0, size) {
            self.send(&proto::ToServer { requests, ..Default::default() })?;
        }
        Ok(())
    }

    /// Seals a request; returns its id.
    pub fn ask(&mut self, op: Op, recipient: R) -> Result<u64, ClientError> {
        let id = self.queue(op, recipient)?;
        self.flush()?;
        Ok(id)
    }

    /// Acknowledges all bytes of a file before `offset`.
    pub fn ack(&mut self, transfer: u32, offset: u64) -> Result<(), ClientError> {
        let file_acks = vec![proto::FileAck { transfer, offset }];
        self.send(&proto::ToServer { file_acks, ..Default::default() })
    }

    /// Seals a part of a file.
    pub fn send_bulk(
        &mut self,
        transfer: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        let sent = self.connection.session_mut().send_bulk(transfer, offset, data);
        self.sent(sent)
    }

    fn send(&mut self, frame: &proto::ToServer) -> Result<(), ClientError> {
        let sent = self.connection.send_app(&frame.encode_to_vec());
        self.sent(sent)
    }

    fn sent(&mut self, sent: Result<(), SendError>) -> Result<(), ClientError> {
        self.judge(sent.map_err(|error| ClientError::Lost(error.to_string())))
    }

    /// Whether the connection has failed.
    pub fn is_dead(&self) -> bool {
        self.failure.is_some()
    }

    /// Marks the connection as failed if this is an error.
    pub fn judge<T>(&mut self, outcome: Result<T, ClientError>) -> Result<T, ClientError> {
        if let Err(error) = &outcome {
            self.failure.get_or_insert_with(|| error.clone());
        }
        outcome
    }

    /// Closes the connection; after an error only sends what is still queued.
    pub async fn close(self) {
        session_log::end(self.connection.session(), self.failure.as_ref());
        match self.failure {
            Some(_) => self.connection.finish().await,
            None => self.connection.close(CloseCode::Bye).await,
        }
    }

    /// Waits for the next item; with `room`, also for at most that many bytes to be outgoing.
    /// Cancel-safe. After an error the connection is [dead](Self::is_dead).
    pub async fn receive(&mut self, room: Option<usize>) -> Result<Received<R>, ClientError> {
        let received = self.wait(room).await;
        self.judge(received)
    }

    async fn wait(&mut self, room: Option<usize>) -> Result<Received<R>, ClientError> {
        loop {
            if let Some(received) = self.take_item()? {
                return Ok(received);
            }
            if self.connection.wait(room).await? == Wake::Room {
                return Ok(Received::Room);
            }
            if let Some(received) = self.open_frame()? {
                return Ok(received);
            }
        }
    }

    /// The next item, if a whole frame with it is here.
    pub fn try_receive(&mut self) -> Result<Option<Received<R>>, ClientError> {
        let received = self.take();
        self.judge(received)
    }

    fn take(&mut self) -> Result<Option<Received<R>>, ClientError> {
        loop {
            if let Some(received) = self.take_item()? {
                return Ok(Some(received));
            }
            let has_frame = self.connection.has_frame();
            if !has_frame.map_err(|error| ClientError::Lost(error.to_string()))? {
                return Ok(None);
            }
            if let Some(received) = self.open_frame()? {
                return Ok(Some(received));
            }
        }
    }

    /// Opens a frame, whose items are taken next.
    fn open_frame(&mut self) -> Result<Option<Received<R>>, ClientError> {
        match self.connection.open_frame()? {
            SessionEvent::App(body) => {
                // One copy; the texts of entries share it.
                let frame = proto::ToClient::decode(Bytes::copy_from_slice(body));
                let unreadable = |_| ClientError::Protocol("a frame that cannot be read");
                self.items = frame.map_err(unreadable)?.items.into_iter();
                Ok(None)
            }
            SessionEvent::Bulk { transfer, offset, data } => {
                Ok(Some(Received::Bulk { transfer, offset, data: data.to_vec() }))
            }
            SessionEvent::Rekeyed(epoch) => {
                session_log::rekeyed(self.connection.session(), epoch);
                Ok(Some(Received::Rekeyed(epoch)))
            }
            SessionEvent::Closed(code) => {
                Err(closed(code).with_issuer(|| issuer(self.connection.stream())))
            }
            SessionEvent::Ready { .. } | SessionEvent::Nothing => Ok(None),
        }
    }

    fn take_item(&mut self) -> Result<Option<Received<R>>, ClientError> {
        // `None` is an item of a later protocol version.
        let Some(what) = self.items.find_map(|item| item.what) else { return Ok(None) };
        let What::Answer(proto::Answer { id, result }) = what else {
            return Ok(Some(Received::Item(what)));
        };
        let result = match result {
            Some(Answered::Refusal(no)) => Err(Refusal::from(no)),
            Some(answered) => Ok(answered),
            None => return Err(ClientError::Protocol("an answer of a kind it was not asked for")),
        };
        Ok(Some(Received::Answer { id, recipient: self.outstanding.remove(&id), result }))
    }
}

impl RequestConnection<()> {
    /// Sends a request and waits for the answer. Drops everything else that arrives.
    ///
    /// # Errors
    /// [`ClientError`]; only [`ClientError::Refused`] leaves the connection usable.
    pub async fn request(&mut self, op: Op) -> Result<Answered, ClientError> {
        let asked = self.ask(op, ())?;
        loop {
            match self.receive(None).await? {
                Received::Answer { id, result, .. } if id == asked => {
                    return result.map_err(ClientError::Refused);
                }
                _ => {}
            }
        }
    }
}

/// Size of a request in a frame, in bytes.
fn size(request: &proto::Request) -> usize {
    request.encoded_len() + REQUEST_HEAD
}
