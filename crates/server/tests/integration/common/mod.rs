//! A real server on a loopback socket, and a small client built from the crates below the SDK.

pub mod classic;
pub mod files;
pub mod log;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use twinlock_core::credential::{Credential, Password};
use twinlock_core::frame::{CHALLENGE, CloseCode, ErrorCode};
use twinlock_core::handshake::{AwaitChallenge, Enrolment};
use twinlock_core::id::{DeviceId, InviteId, Name, ServerKey, TlsPin};
use twinlock_core::keys::{DeviceSecret, InviteSecret};
use twinlock_core::proto::{
    self, RefusalReason, answer::Result as Answered, item::What, request::Op,
};
use twinlock_core::session::{Binding, BindingPolicy, SessionConfig, SessionEvent};
use twinlock_server::{Config, Server, StartError};
use twinlock_store_embedded::OpenError;
use twinlock_testing::StalledSocket;
pub use twinlock_testing::random;
use twinlock_transport::OsEntropy;
use twinlock_transport::connection::{Connection, ConnectionError, Wake};
use twinlock_transport::login::{LoginError, login};
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust, TlsFault, channel_binding};

pub const LOBBY: u64 = 1;

/// Timeout of every step: nothing takes longer unless it hangs.
pub const SOON: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

// ---- the server

/// A server and its directory.
pub struct Host {
    pub server: Server,
    pub dir: TempDir,
    owner: Option<([u8; 8], [u8; 16])>,
}

pub fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir.to_owned(), "127.0.0.1:0".parse().unwrap());
    config.drain = Duration::from_secs(5);
    config
}

impl Host {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change).await
    }

    pub async fn start_in(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(&dir.path().join("data"));
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        let owner = server.owner_invite().map(|link| (link.id.0, *link.secret.expose_secret()));
        Self { server, dir, owner }
    }

    /// Restarts in the same directory after an orderly shutdown.
    pub async fn restart(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { server, dir, .. } = self;
        soon("shutdown", server.shutdown()).await.unwrap();
        Self::start_in(dir, change).await
    }

    /// Restarts in the same directory after a crash.
    pub async fn crash(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { server, dir, .. } = self;
        let mut config = config(&dir.path().join("data"));
        change(&mut config);
        drop(server);
        // Its tasks end at their next await; the last of them releases the lock of the record.
        let start = async {
            loop {
                match Server::start(config.clone()).await {
                    Err(StartError::Record(OpenError::InUse(_))) => tokio::task::yield_now().await,
                    started => return started.unwrap(),
                }
            }
        };
        Self { server: soon("start", start).await, dir, owner: self.owner }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    pub fn key(&self) -> ServerKey {
        self.server.server_key()
    }

    pub fn owner_invite(&self) -> Invite {
        let (id, secret) = self.owner.unwrap();
        Invite { id, secret }
    }

    pub fn pin(&self) -> TlsPin {
        self.server.tls_pin()
    }

    pub async fn tls(&self) -> Io {
        tls(self.address(), self.pin()).await
    }

    pub async fn connect(&self, credential: Credential) -> Result<Client, NoConnection> {
        self.connect_with(credential, &random::<16>(), |_| ()).await
    }

    pub async fn connect_with(
        &self,
        credential: Credential,
        instance: &[u8],
        change: impl FnOnce(&mut SessionConfig),
    ) -> Result<Client, NoConnection> {
        Client::over(self.tls().await, credential, Some(self.key()), instance, change).await
    }

    /// Registers a new user with a device, by an invite.
    pub async fn join(&self, invite: &Invite, user: &str) -> Device {
        let mut client = self.connect(invite.credential()).await.unwrap();
        client.register(user, None).await.unwrap()
    }

    /// The owner, `ada`, and one of her sessions.
    pub async fn owner(&self) -> (Device, Client) {
        let device = self.join(&self.owner_invite(), "ada").await;
        let client = self.connect(device.credential()).await.unwrap();
        (device, client)
    }

    /// A member invited by `owner`, and a session.
    pub async fn member(&self, owner: &mut Client, user: &str) -> (Device, Client) {
        let invite = owner.invite(proto::Role::Member, "").await.unwrap();
        let device = self.join(&invite, user).await;
        let client = self.connect(device.credential()).await.unwrap();
        (device, client)
    }
}

/// A PROXY header, version 2, for this IPv4 client.
pub fn proxy_header(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client);
    header.extend([127, 0, 0, 1, 0x30, 0x39, 0x20, 0xfb]);
    header
}

pub async fn tls(address: SocketAddr, pin: TlsPin) -> Io {
    let tcp = soon("connect", TcpStream::connect(address)).await.unwrap();
    tls_over(tcp, pin).await.unwrap()
}

pub async fn tls_over(tcp: TcpStream, pin: TlsPin) -> Result<Io, TlsFault> {
    tcp.set_nodelay(true).unwrap();
    let tls = ClientTls::new(ServerTrust::Pins(vec![pin]), Alpn::Direct).unwrap();
    soon("TLS", tls.connect("localhost", StalledSocket::new(tcp))).await
}

pub type Io = TlsStream<StalledSocket>;

// ---- credentials

#[derive(Clone, Copy)]
pub struct Device {
    pub id: DeviceId,
    pub secret: [u8; 32],
}

impl Device {
    pub fn credential(&self) -> Credential {
        Credential::Device(self.id, DeviceSecret::new(&self.secret))
    }

    pub fn unknown() -> Self {
        Self { id: DeviceId(random()), secret: random() }
    }
}

#[derive(Clone, Copy)]
pub struct Invite {
    pub id: [u8; 8],
    pub secret: [u8; 16],
}

impl Invite {
    pub fn credential(&self) -> Credential {
        Credential::Invite(InviteId(self.id), InviteSecret::new(&self.secret))
    }
}

pub fn password(user: &str, password: &str) -> Credential {
    Credential::User(Name::new(user).unwrap(), Password::new(password).unwrap())
}

// ---- the client

/// A failed login, or a connection that ended before READY.
#[derive(Debug)]
pub enum NoConnection {
    Login(LoginError),
    Connection(#[expect(dead_code, reason = "shown where a test fails")] ConnectionError),
    Closed(CloseCode),
}

impl NoConnection {
    /// The client found out from the CHALLENGE that the credential does not work.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Login(LoginError::Refused(_)))
    }

    pub fn close(&self) -> Option<CloseCode> {
        if let Self::Closed(code) = self { Some(*code) } else { None }
    }
}

/// The refusal of a request that has to be refused.
pub async fn refused(client: &mut Client, op: Op) -> proto::Refusal {
    let id = client.post(op);
    match client.answer(id).await {
        Answered::Refusal(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// The reason, limit and figure of a refusal.
pub fn told(refusal: &proto::Refusal) -> (RefusalReason, proto::Limit, u64) {
    (refusal.why(), refusal.limit(), refusal.most)
}

pub struct Client {
    pub line: Connection<Io>,
    pub info: proto::ServerInfo,
    pub binding: Binding,
    key: ServerKey,
    next: u64,
    items: VecDeque<What>,
    /// Received file bytes: transfer, offset, data.
    pub bulk: VecDeque<(u32, u64, Vec<u8>)>,
    /// The server's acknowledged offset for each upload.
    taken: HashMap<u32, u64>,
    closed: Option<CloseCode>,
}

impl Client {
    pub async fn over(
        io: Io,
        credential: Credential,
        pin: Option<ServerKey>,
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
        let line = soon("login", login(io, credential, pin, config)).await;
        let line = line.map_err(NoConnection::Login)?;
        let mut client = Self {
            key: line.session().server_key(),
            line,
            info: proto::ServerInfo::default(),
            binding: Binding::Unknown,
            next: 1,
            items: VecDeque::new(),
            bulk: VecDeque::new(),
            taken: HashMap::new(),
            closed: None,
        };
        while !client.line.session().is_open() {
            soon("READY", client.pump()).await.map_err(NoConnection::Connection)?;
            if let Some(code) = client.closed {
                return Err(NoConnection::Closed(code));
            }
        }
        Ok(client)
    }

    /// Handles one frame.
    pub async fn pump(&mut self) -> Result<(), ConnectionError> {
        self.line.wait(None).await?;
        match self.line.open_frame()? {
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

    /// Queues a request without waiting. Nothing is sent before the next wait.
    pub fn post(&mut self, op: Op) -> u64 {
        let id = self.next;
        self.next += 1;
        let requests = vec![proto::Request { id, op: Some(op) }];
        self.line
            .send_app(&proto::ToServer { requests, ..Default::default() }.encode_to_vec())
            .unwrap();
        id
    }

    /// Queues requests in one frame.
    pub fn post_all(&mut self, ops: impl IntoIterator<Item = Op>) -> Vec<u64> {
        let first = self.next;
        let ids = first..;
        let requests: Vec<_> =
            ids.zip(ops).map(|(id, op)| proto::Request { id, op: Some(op) }).collect();
        self.next += requests.len() as u64;
        let ids = requests.iter().map(|request| request.id).collect();
        self.line
            .send_app(&proto::ToServer { requests, ..Default::default() }.encode_to_vec())
            .unwrap();
        ids
    }

    /// Waits for the first item that `pick` accepts; keeps the items before it.
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

    pub async fn answer(&mut self, id: u64) -> Answered {
        let pick = |item: &What| match item {
            What::Answer(answer) if answer.id == id => answer.result.clone(),
            _ => None,
        };
        self.pick("answer", pick).await
    }

    pub async fn ask(&mut self, op: Op) -> Result<Answered, RefusalReason> {
        let id = self.post(op);
        match self.answer(id).await {
            Answered::Refusal(refusal) => Err(refusal.why()),
            answered => Ok(answered),
        }
    }

    /// Stops reading from the socket, or starts again.
    pub fn set_stalled(&self, stalled: bool) {
        self.line.stream().get_ref().0.set_stalled(stalled);
    }

    /// Flushes outgoing frames.
    pub async fn push_out(&mut self) -> Result<(), ConnectionError> {
        while self.line.wait(Some(0)).await? == Wake::Frame {
            self.pump().await?;
        }
        Ok(())
    }

    /// Items that were received and not yet taken.
    pub fn items(&self) -> impl Iterator<Item = &What> {
        self.items.iter()
    }

    /// Reads until the server closes the connection; returns its code, or the error.
    pub async fn end(&mut self) -> Result<CloseCode, ConnectionError> {
        let end = async {
            loop {
                if let Some(code) = self.closed {
                    return Ok(code);
                }
                self.pump().await?;
            }
        };
        soon("end of the line", end).await
    }

    /// Sends CLOSE and flushes it.
    pub async fn bye(self) {
        self.line.close(CloseCode::Bye).await;
    }

    // ---- requests of users

    pub async fn append(
        &mut self,
        conversation: u64,
        text: &str,
    ) -> Result<proto::Ack, RefusalReason> {
        self.ask(append(conversation, text)).await.map(ack)
    }

    pub async fn follow(
        &mut self,
        conversation: u64,
        after: u64,
    ) -> Result<proto::Following, RefusalReason> {
        let op = Op::Follow(proto::Follow { conversation, after });
        match self.ask(op).await? {
            Answered::Following(following) => Ok(following),
            other => panic!("{other:?}"),
        }
    }

    /// Followed entries of this conversation, until there are `n`.
    pub async fn entries(&mut self, conversation: u64, n: usize) -> Vec<proto::Entry> {
        let mut all = Vec::new();
        while all.len() < n {
            let pick = |item: &What| match item {
                What::Entries(e) if e.conversation == conversation => Some(e.entries.clone()),
                _ => None,
            };
            all.extend(self.pick("entries", pick).await);
        }
        all
    }

    pub async fn read(
        &mut self,
        conversation: u64,
        after: u64,
    ) -> Result<proto::Page, RefusalReason> {
        let op = Op::Read(proto::Read { conversation, after, ..proto::Read::default() });
        self.ask(op).await.map(page)
    }

    pub async fn conversations(&mut self) -> Vec<proto::Conversation> {
        let op = Op::ListConversations(proto::ListConversations::default());
        match self.ask(op).await {
            Ok(Answered::Conversations(list)) => list.conversations,
            other => panic!("{other:?}"),
        }
    }

    pub async fn room(&mut self, name: &str) -> Result<proto::Conversation, RefusalReason> {
        let name = name.to_owned();
        self.ask(Op::JoinRoom(proto::JoinRoom { name })).await.map(conversation)
    }

    pub async fn invite(&mut self, role: proto::Role, user: &str) -> Result<Invite, RefusalReason> {
        let invite = proto::MakeInvite { role: role.into(), user: user.to_owned(), seconds: 0 };
        match self.ask(Op::MakeInvite(invite)).await? {
            Answered::Invite(invite) => Ok(Invite {
                id: invite.id.as_ref().try_into().unwrap(),
                secret: invite.secret.as_ref().try_into().unwrap(),
            }),
            other => panic!("{other:?}"),
        }
    }

    /// Registers a user with a device, and with a password if one is given.
    pub async fn register(
        &mut self,
        user: &str,
        password: Option<&str>,
    ) -> Result<Device, RefusalReason> {
        let ids = self.begin(user, password.is_some(), true).await?;
        let device =
            Device { id: ids.device.as_ref().try_into().map(DeviceId).unwrap(), secret: random() };
        let password = password.map(|p| self::password(user, p));
        self.enrol(password, Some(device)).await.map(|()| device)
    }

    pub async fn begin(
        &mut self,
        user: &str,
        password: bool,
        device: bool,
    ) -> Result<proto::RegisterIds, RefusalReason> {
        let begin = proto::RegisterBegin {
            user: user.to_owned(),
            password,
            device,
            device_label: "laptop".to_owned(),
        };
        match self.ask(Op::RegisterBegin(begin)).await? {
            Answered::RegisterIds(ids) => {
                assert_eq!(ids.server_key, self.key.0.as_slice());
                Ok(ids)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Steps 1 to 3 of a registration that was begun.
    pub async fn enrol(
        &mut self,
        password: Option<Credential>,
        device: Option<Device>,
    ) -> Result<(), RefusalReason> {
        let start = |credential| Enrolment::start(credential, &mut OsEntropy).unwrap();
        let password = password.map(start);
        let device = device.map(|device| start(device.credential()));
        let request = |begun: &Option<(Enrolment<Credential>, [u8; 32])>| {
            begun.as_ref().map(|(_, request)| copy(request)).unwrap_or_default()
        };
        let evaluate = proto::RegisterEvaluate {
            password_request: request(&password),
            device_request: request(&device),
        };
        let response = self.ask(Op::RegisterEvaluate(evaluate)).await?;
        let Answered::RegisterResponse(response) = response else { panic!("{response:?}") };
        let key = self.key;
        let finish = |begun: Option<(Enrolment<Credential>, [u8; 32])>, response: Bytes| {
            let Some((enrolment, _)) = begun else { return Bytes::new() };
            let response = response.as_ref().try_into().unwrap();
            copy(&enrolment.finish(response, &key, &mut OsEntropy).unwrap())
        };
        let records = proto::RegisterFinish {
            password_record: finish(password, response.password_response),
            device_record: finish(device, response.device_response),
        };
        self.ask(Op::RegisterFinish(records)).await.map(done)
    }
}

// ---- requests and answers

pub fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

pub fn append(conversation: u64, text: &str) -> Op {
    append_as(random(), conversation, text)
}

pub fn append_as(id: [u8; 16], conversation: u64, text: &str) -> Op {
    Op::Append(proto::Append { conversation, message_id: copy(&id), body: copy(text.as_bytes()) })
}

pub fn ack(answered: Answered) -> proto::Ack {
    if let Answered::Ack(ack) = answered { ack } else { panic!("{answered:?}") }
}

pub fn page(answered: Answered) -> proto::Page {
    if let Answered::Page(page) = answered { page } else { panic!("{answered:?}") }
}

pub fn conversation(answered: Answered) -> proto::Conversation {
    if let Answered::Conversation(c) = answered { c } else { panic!("{answered:?}") }
}

pub fn done(answered: Answered) {
    assert!(matches!(answered, Answered::Done(_)), "{answered:?}");
}

pub fn texts(entries: &[proto::Entry]) -> Vec<String> {
    entries.iter().map(|e| String::from_utf8(e.body.to_vec()).unwrap()).collect()
}

// ---- raw handshakes

/// Sends HELLO and waits for CHALLENGE, or the ERROR instead.
pub async fn hello(
    io: &mut Io,
    credential: Credential,
) -> Result<(AwaitChallenge, Box<[u8; CHALLENGE]>), ErrorCode> {
    let (state, hello) = AwaitChallenge::start(credential, None, &mut OsEntropy).unwrap();
    io.write_all(&hello).await.unwrap();
    io.flush().await.unwrap();
    let mut header = [0; 4];
    soon("CHALLENGE", io.read_exact(&mut header)).await.unwrap();
    if header == [0x0e, 0, 0, 3] {
        return Err(error(io).await);
    }
    assert_eq!(header, [0x02, 0, 5, 128]);
    let mut challenge = Box::new([0; CHALLENGE]);
    io.read_exact(challenge.as_mut_slice()).await.unwrap();
    Ok((state, challenge))
}

/// The rest of an ERROR.
pub async fn error(io: &mut Io) -> ErrorCode {
    let mut payload = [0; 3];
    soon("ERROR", io.read_exact(&mut payload)).await.unwrap();
    ErrorCode::parse(payload)
}

/// Everything until the server ends the stream; a reset also ends it.
pub async fn rest(io: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let _reset = soon("end of the stream", io.read_to_end(&mut all)).await;
    all
}

/// Resident memory of this process, bytes.
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
