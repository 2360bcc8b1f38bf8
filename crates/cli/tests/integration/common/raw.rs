//! Raw clients with the device of a person who joined through the real binary: they can violate what
//! our clients respect. Also measures a server's process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use twinlock_client::home::Home;
use twinlock_client::profile::{Profile, TlsTrust};
use twinlock_core::handshake::AwaitChallenge;
use twinlock_core::id::Name;
use twinlock_core::session::{BindingPolicy, SessionConfig};
pub use twinlock_testing::endpoint::{Io, neighbour, proxy_header, tcp_from};
pub use twinlock_testing::messages::{LOBBY, accepted, ack, append, copy, hash};
pub use twinlock_testing::process::resident;
pub use twinlock_testing::{Endpoint, RawClient, TestDevice, random};
use twinlock_transport::OsEntropy;

use crate::common::{LONG, Person};

pub const MIB: usize = 1 << 20;

/// Set by `make torture`: full sizes, and assertions that need a quiet machine.
pub fn full() -> bool {
    match std::env::var("TWINLOCK_TORTURE").as_deref() {
        Ok("full") => true,
        Ok(other) => panic!("TWINLOCK_TORTURE={other}: it is full or not set"),
        Err(_) => false,
    }
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

/// A server, and a device of one of its users.
#[derive(Clone)]
pub struct Card {
    pub server: Endpoint,
    pub device: TestDevice,
}

impl Card {
    pub fn of(person: &Person) -> Self {
        let default = Name::new("default").unwrap();
        Self::of_profile(&Profile::load(&Home::at(&person.home), &default).unwrap())
    }

    pub fn of_profile(profile: &Profile) -> Self {
        let TlsTrust::Pins(pins) = profile.tls() else { panic!("no pins") };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, profile.port()));
        let secret = *profile.secret().expose_secret();
        Self {
            server: Endpoint::pinned(address, pins, *profile.server_key()),
            device: TestDevice { id: *profile.device(), secret },
        }
    }

    /// A HELLO of an unknown device; it costs the server the same.
    pub fn hello() -> Vec<u8> {
        let unknown = TestDevice::unknown().credential();
        AwaitChallenge::start(unknown, None, &mut OsEntropy).unwrap().1
    }

    /// Logs in and waits for READY.
    pub async fn connect(&self) -> RawClient {
        self.login().await.unwrap()
    }

    /// The same; `None` if the server closes the connection before READY.
    pub async fn try_connect(&self) -> Option<RawClient> {
        self.login().await.ok()
    }

    async fn login(&self) -> Result<RawClient, String> {
        let instance = random::<16>();
        timeout(LONG, self.try_connect_from(None, &instance)).await.expect("a login")
    }

    /// Logs in as this instance and waits for READY. `from`: another address of this machine.
    ///
    /// # Errors
    /// Why READY did not arrive.
    pub async fn try_connect_from(
        &self,
        from: Option<Ipv4Addr>,
        instance: &[u8],
    ) -> Result<RawClient, String> {
        let Self { server, device } = self;
        let tcp = match from {
            Some(from) => tcp_from(from, server.address).await,
            None => TcpStream::connect(server.address).await,
        };
        let io = server.tls_over(tcp.map_err(|error| error.to_string())?).await;
        let io = io.map_err(|error| error.to_string())?;
        let require = |config: &mut SessionConfig| config.binding = BindingPolicy::Require;
        let client = RawClient::over(io, device.credential(), server.key, instance, require).await;
        client.map_err(|error| format!("{error:?}"))
    }
}

/// Writes all bytes; `false` if the peer has closed the connection.
pub async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    io.write_all(bytes).await.is_ok() && io.flush().await.is_ok()
}
