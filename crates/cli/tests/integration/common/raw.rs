//! A raw client built from the crates below the SDK, with the device of a person who joined through
//! the real binary: it can violate what our clients respect. Also measures a server's process.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use twinlock_client::home::Home;
use twinlock_client::profile::{Profile, TlsTrust};
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::handshake::AwaitChallenge;
use twinlock_core::id::{DeviceId, Name, ServerKey};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::proto::{self, answer::Result as Answered, item::What, request::Op};
use twinlock_core::session::{BindingPolicy, SessionConfig, SessionEvent};
use twinlock_testing::StalledSocket;
pub use twinlock_testing::random;
use twinlock_transport::OsEntropy;
use twinlock_transport::connection::{Connection, ConnectionError};
use twinlock_transport::login::login;
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust, TlsFault, channel_binding};

use crate::common::{LONG, Person};

pub const LOBBY: u64 = 1;
pub const MIB: usize = 1 << 20;

/// Set by `make torture`: full sizes, and assertions that need a quiet machine.
pub fn full() -> bool {
    match std::env::var("TWINLOCK_TORTURE").as_deref() {
        Ok("full") => true,
        Ok(other) => panic!("TWINLOCK_TORTURE={other}: it is full or not set"),
        Err(_) => false,
    }
}

/// Resident memory of a process, bytes.
pub fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// CPU time of a process: of its threads with this name, and of all threads.
pub fn cpu(pid: u32, name: &str) -> [Duration; 2] {
    let mut used = [Duration::ZERO; 2];
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // A thread that has ended in between had used little.
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (comm, fields) = stat.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|n| n.parse::<u64>().unwrap()).sum();
        let time = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second());
        used[1] += time;
        if comm.ends_with(&format!("({name}")) {
            used[0] += time;
        }
    }
    used
}

/// A runtime whose threads take only idle CPU: real attackers have separate machines, and share
/// this one with the server only in the test.
pub fn elsewhere() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let yielding = || rustix::process::setpriority_process(None, 19).unwrap();
    runtime.worker_threads(2).on_thread_start(yielding).enable_all().build().unwrap()
}

/// A single-threaded runtime, for the legitimate client.
pub fn here() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The `n`th loopback address other than 127.0.0.1.
pub fn neighbour(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f01_0000 + n % 0x00fe_0000)
}

/// Connects from `from`.
pub async fn tcp_from(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(from, 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The server's address, TLS configuration and key, and a device of one of its users.
#[derive(Clone)]
pub struct Card {
    pub address: SocketAddr,
    pub tls: ClientTls,
    pub key: ServerKey,
    pub device: DeviceId,
    pub secret: [u8; 32],
}

impl Card {
    pub fn of(person: &Person) -> Self {
        let default = Name::new("default").unwrap();
        let profile = Profile::load(&Home::at(&person.home), &default).unwrap();
        let TlsTrust::Pins(pins) = profile.tls() else { panic!("no pins") };
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], profile.port())),
            tls: ClientTls::new(ServerTrust::Pins(pins), Alpn::Direct).unwrap(),
            key: *profile.server_key(),
            device: *profile.device(),
            secret: *profile.secret().expose_secret(),
        }
    }

    pub fn credential(&self) -> Credential {
        Credential::Device(self.device, DeviceSecret::new(&self.secret))
    }

    /// A HELLO of an unknown device; it costs the server the same.
    pub fn hello() -> Vec<u8> {
        let nobody = Credential::Device(DeviceId(random()), DeviceSecret::new(&random()));
        AwaitChallenge::start(nobody, None, &mut OsEntropy).unwrap().1
    }

    /// TLS over a connection from `from`.
    pub async fn tls_from(&self, from: Ipv4Addr) -> Result<Io, TlsFault> {
        let tcp = tcp_from(from, self.address).await?;
        self.tls.connect("127.0.0.1", StalledSocket::new(tcp)).await
    }

    /// Logs in and waits for READY.
    pub async fn connect(&self) -> Raw {
        timeout(LONG, self.log_in()).await.expect("a login")
    }

    /// The same; `None` if the server closes the connection before READY.
    pub async fn try_connect(&self) -> Option<Raw> {
        timeout(LONG, self.try_log_in()).await.expect("a login")
    }

    async fn log_in(&self) -> Raw {
        let io = self.tls_from(Ipv4Addr::LOCALHOST).await.unwrap();
        Raw::over(io, self.credential(), self.key).await
    }

    async fn try_log_in(&self) -> Option<Raw> {
        let io = self.tls_from(Ipv4Addr::LOCALHOST).await.ok()?;
        Raw::try_over(io, self.credential(), self.key).await.ok()
    }
}

pub type Io = TlsStream<StalledSocket>;

/// An authenticated connection.
pub struct Raw {
    pub line: Connection<Io>,
    next: u64,
}

impl Raw {
    pub async fn over(io: Io, credential: Credential, key: ServerKey) -> Self {
        Self::try_over(io, credential, key).await.unwrap()
    }

    /// # Errors
    /// Why READY did not arrive.
    pub async fn try_over(
        io: Io,
        credential: Credential,
        key: ServerKey,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let info = proto::ClientInfo {
            instance: Bytes::copy_from_slice(&random::<16>()),
            ..proto::ClientInfo::default()
        };
        let config = SessionConfig {
            binding: BindingPolicy::Require,
            exporter: channel_binding(io.get_ref().1).ok(),
            info: info.encode_to_vec(),
            max_version: 1,
            timing: Default::default(),
        };
        let mut line = login(io, credential, Some(key), config).await?;
        loop {
            line.wait(None).await?;
            match line.open_frame()? {
                SessionEvent::Ready { .. } => return Ok(Self { line, next: 1 }),
                SessionEvent::Closed(code) => return Err(format!("{code:?}").into()),
                _ => {}
            }
        }
    }

    /// Stops reading from the socket, or starts again.
    pub fn set_stalled(&self, stalled: bool) {
        self.line.stream().get_ref().0.set_stalled(stalled);
    }

    /// Seals a frame of requests; returns the id of the first.
    pub fn post(&mut self, ops: impl IntoIterator<Item = Op>) -> u64 {
        let first = self.next;
        let requests: Vec<_> =
            (first..).zip(ops).map(|(id, op)| proto::Request { id, op: Some(op) }).collect();
        self.next += requests.len() as u64;
        let frame = proto::ToServer { requests, ..Default::default() };
        self.line.send_app(&frame.encode_to_vec()).unwrap();
        first
    }

    /// The items of the next frame that has some; `None` once the connection has ended.
    pub async fn items(&mut self) -> Option<Vec<What>> {
        loop {
            match self.line.wait(None).await {
                Ok(_) => {}
                Err(ConnectionError::Cut(_)) => return None,
                Err(error) => panic!("{error}"),
            }
            match self.line.open_frame().unwrap() {
                SessionEvent::App(body) => {
                    let items = proto::ToClient::decode(body).unwrap().items;
                    return Some(items.into_iter().filter_map(|item| item.what).collect());
                }
                SessionEvent::Closed(code) => {
                    assert_ne!(code, CloseCode::Protocol);
                    return None;
                }
                _ => {}
            }
        }
    }

    /// The answer to a request.
    pub async fn answer(&mut self, id: u64) -> Answered {
        let answer = async {
            loop {
                for item in self.items().await.expect("the line stands") {
                    if let What::Answer(answer) = item
                        && answer.id == id
                    {
                        return answer.result.unwrap();
                    }
                }
            }
        };
        timeout(LONG, answer).await.expect("an answer")
    }

    pub async fn ask(&mut self, op: Op) -> Answered {
        let id = self.post([op]);
        self.answer(id).await
    }

    /// Sends a text, which has to be recorded.
    pub async fn says(&mut self, text: &str) -> proto::Ack {
        match self.ask(append(LOBBY, text)).await {
            Answered::Ack(ack) => ack,
            other => panic!("{other:?}"),
        }
    }
}

pub fn append(conversation: u64, text: &str) -> Op {
    Op::Append(proto::Append {
        conversation,
        message_id: Bytes::copy_from_slice(&random::<16>()),
        body: Bytes::copy_from_slice(text.as_bytes()),
    })
}

/// Writes all bytes; `false` if the peer has closed the connection.
pub async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    io.write_all(bytes).await.is_ok() && io.flush().await.is_ok()
}
