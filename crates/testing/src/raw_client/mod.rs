//! A client built from the crates below the SDK: it can violate what the SDK respects.

mod registration;
mod requests;
mod transfers;

use std::collections::{HashMap, VecDeque};

use prost::Message as _;
use tokio::time::timeout;
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::ServerKey;
use twinlock_core::proto::{
    self, RefusalReason, answer::Result as Answered, item::What, request::Op,
};
use twinlock_core::session::{Binding, BindingPolicy, SessionConfig, SessionEvent};
use twinlock_transport::connection::{Connection, ConnectionError, Wake};
use twinlock_transport::login::{LoginError, login};
use twinlock_transport::tls::channel_binding;

use crate::stalled_socket::Io;
use crate::{SOON, soon};

/// A failed login, or a connection that ended before READY.
#[derive(Debug)]
pub enum NoConnection {
    /// The handshake failed.
    Login(LoginError),
    /// The connection failed before READY.
    Connection(ConnectionError),
    /// The server sent CLOSE instead of READY.
    Closed(CloseCode),
}

impl NoConnection {
    /// Whether the client found out from the CHALLENGE that the credential does not work.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Login(LoginError::Refused(_)))
    }

    /// The code of the server's CLOSE.
    #[must_use]
    pub fn close(&self) -> Option<CloseCode> {
        if let Self::Closed(code) = self { Some(*code) } else { None }
    }
}

/// An authenticated connection after READY, and what it has received.
pub struct RawClient {
    /// The connection, for frames that no method here sends.
    pub connection: Connection<Io>,
    /// What the server's READY said.
    pub info: proto::ServerInfo,
    /// Whether TLS is intercepted, as the handshake found out.
    pub binding: Binding,
    /// Received file bytes: transfer, offset, data.
    pub bulk: VecDeque<(u32, u64, Vec<u8>)>,
    key: ServerKey,
    next: u64,
    items: VecDeque<What>,
    /// The server's acknowledged offset of each upload.
    acked: HashMap<u32, u64>,
    closed: Option<CloseCode>,
}

impl RawClient {
    /// Logs in over TLS and waits for READY, without a timeout. `change` applies to the session's
    /// configuration.
    ///
    /// # Errors
    /// If the login fails.
    pub async fn over(
        io: Io,
        credential: Credential,
        key: ServerKey,
        instance: &[u8],
        change: impl FnOnce(&mut SessionConfig),
    ) -> Result<Self, NoConnection> {
        let info = proto::ClientInfo {
            software: "tests".to_owned(),
            instance: instance.to_vec().into(),
            ..proto::ClientInfo::default()
        };
        let mut config = SessionConfig {
            binding: BindingPolicy::Warn,
            exporter: channel_binding(io.get_ref().1).ok(),
            info: info.encode_to_vec(),
            max_version: 1,
            timing: Default::default(),
        };
        change(&mut config);
        let connection = login(io, credential, Some(key), config).await;
        let connection = connection.map_err(NoConnection::Login)?;
        let mut client = Self {
            key: connection.session().server_key(),
            connection,
            info: proto::ServerInfo::default(),
            binding: Binding::Unknown,
            bulk: VecDeque::new(),
            next: 1,
            items: VecDeque::new(),
            acked: HashMap::new(),
            closed: None,
        };
        while !client.connection.session().is_open() {
            client.pump().await.map_err(NoConnection::Connection)?;
            if let Some(code) = client.closed {
                return Err(NoConnection::Closed(code));
            }
        }
        Ok(client)
    }

    /// Handles one frame.
    ///
    /// # Errors
    /// If the connection has failed.
    ///
    /// # Panics
    /// If the frame cannot be decoded.
    pub async fn pump(&mut self) -> Result<(), ConnectionError> {
        self.connection.wait(None).await?;
        match self.connection.open_frame()? {
            SessionEvent::App(body) => {
                let items = proto::ToClient::decode(body).unwrap().items;
                self.items.extend(items.into_iter().filter_map(|item| item.what));
            }
            SessionEvent::Ready { info, binding } => {
                self.info = proto::ServerInfo::decode(info).unwrap();
                self.binding = binding;
            }
            SessionEvent::Closed(code) => self.closed = Some(code),
            SessionEvent::Bulk { transfer, offset, data } => {
                self.bulk.push_back((transfer, offset, data.to_vec()));
            }
            SessionEvent::Nothing | SessionEvent::Rekeyed(_) => {}
        }
        Ok(())
    }

    /// Queues a request without waiting, and returns its id. Nothing is sent before the next wait.
    pub fn post(&mut self, op: Op) -> u64 {
        let first = self.next;
        self.post_all([op]);
        first
    }

    /// Queues requests in one frame, and returns their ids.
    ///
    /// # Panics
    /// If they do not fit into a frame.
    pub fn post_all(&mut self, ops: impl IntoIterator<Item = Op>) -> Vec<u64> {
        let requests: Vec<_> =
            (self.next..).zip(ops).map(|(id, op)| proto::Request { id, op: Some(op) }).collect();
        self.next += requests.len() as u64;
        let ids = requests.iter().map(|request| request.id).collect();
        let frame = proto::ToServer { requests, ..Default::default() };
        self.connection.send_app(&frame.encode_to_vec()).unwrap();
        ids
    }

    /// Waits for the first item that `pick` accepts; keeps the items before it.
    ///
    /// # Panics
    /// If the connection ends, or if no such item arrives; the message names `what`.
    pub async fn pick<T>(&mut self, what: &str, mut pick: impl FnMut(&What) -> Option<T>) -> T {
        let mut looked = 0;
        let found = async {
            loop {
                while let Some(item) = self.items.get(looked) {
                    if let Some(found) = pick(item) {
                        self.items.remove(looked);
                        return found;
                    }
                    looked += 1;
                }
                assert_eq!(self.closed, None, "waiting for {what}");
                self.pump().await.unwrap_or_else(|e| panic!("waiting for {what}: {e}"));
            }
        };
        timeout(SOON, found).await.unwrap_or_else(|_| panic!("no {what}"))
    }

    /// Waits for the answer to a request.
    ///
    /// # Panics
    /// If it does not arrive.
    pub async fn answer(&mut self, id: u64) -> Answered {
        let pick = |item: &What| match item {
            What::Answer(answer) if answer.id == id => answer.result.clone(),
            _ => None,
        };
        self.pick("answer", pick).await
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// Why the server refused it.
    ///
    /// # Panics
    /// If no answer arrives.
    pub async fn ask(&mut self, op: Op) -> Result<Answered, RefusalReason> {
        let id = self.post(op);
        match self.answer(id).await {
            Answered::Refusal(refusal) => Err(refusal.why()),
            answered => Ok(answered),
        }
    }

    /// Items that were received and not yet taken.
    pub fn items(&self) -> impl Iterator<Item = &What> {
        self.items.iter()
    }

    /// Stops reading from the socket, or starts again.
    pub fn set_stalled(&self, stalled: bool) {
        self.connection.stream().get_ref().0.set_stalled(stalled);
    }

    /// Flushes outgoing frames.
    ///
    /// # Errors
    /// If the connection has failed.
    pub async fn push_out(&mut self) -> Result<(), ConnectionError> {
        while self.connection.wait(Some(0)).await? == Wake::Frame {
            self.pump().await?;
        }
        Ok(())
    }

    /// Reads until the server closes the connection, and returns its code.
    ///
    /// # Errors
    /// If the connection ends without a code.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn end(&mut self) -> Result<CloseCode, ConnectionError> {
        let end = async {
            loop {
                if let Some(code) = self.closed {
                    return Ok(code);
                }
                self.pump().await?;
            }
        };
        soon("end of the connection", end).await
    }

    /// Sends CLOSE and flushes it.
    pub async fn bye(self) {
        self.connection.close(CloseCode::Bye).await;
    }
}
