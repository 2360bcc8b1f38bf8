//! A faulty network: a relay on the loopback interface that delays, cuts, silences and partitions.

mod relayed;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::Rng;
use relayed::Relayed;

/// Bytes in both directions by which TLS and the session are nearly established.
pub const ESTABLISHED: u64 = 7_000;

/// Longest delay of a new connection in a network with a generator. It varies the order in which
/// connections reach the server.
const CONNECT_DELAY_MS: u64 = 30;

/// When to cut a connection: whichever limit comes first.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// After this many bytes in both directions together, at any point of a frame.
    pub bytes: u64,
    /// This long after [`ESTABLISHED`] bytes.
    pub time: Duration,
}

/// A connection that went silent.
#[derive(Debug)]
pub struct Silence {
    /// The ends whose bytes were dropped: the client, the server.
    pub ends: [bool; 2],
    /// Time from the start of the silence until each end closed the connection.
    pub left: [Option<Duration>; 2],
}

/// The relay and its faults; clones share them. Ends with the test's process.
#[derive(Clone)]
pub struct FaultyNetwork {
    /// Where clients connect to.
    pub address: SocketAddr,
    state: Arc<NetworkState>,
}

struct NetworkState {
    rng: Option<Mutex<Rng>>,
    /// Minimum delay of each chunk, us. The maximum is twice that.
    delay: AtomicU64,
    /// Whether all bytes are dropped without notice.
    partitioned: AtomicBool,
    /// Whether new connections must wait.
    paused: watch::Sender<bool>,
    /// All connections, except those that ended without a silence.
    all: Mutex<Vec<Arc<Relayed>>>,
    accepted: AtomicUsize,
    bytes: AtomicU64,
    cuts: AtomicUsize,
}

impl FaultyNetwork {
    /// Starts a relay to `to` that has no fault until a method below causes one.
    #[must_use]
    pub fn start(to: SocketAddr) -> Self {
        Self::launch(to, None, || None)
    }

    /// Starts a relay whose delays and choices of connections are random.
    #[must_use]
    pub fn random(to: SocketAddr, rng: Rng) -> Self {
        Self::launch(to, Some(rng), || None)
    }

    /// Starts a relay that asks `plan`, for each connection, when to cut it.
    #[must_use]
    pub fn cutting(to: SocketAddr, plan: impl FnMut() -> Option<Cut> + Send + 'static) -> Self {
        Self::launch(to, None, plan)
    }

    /// A thread with a runtime of its own serves tests with and without a runtime.
    fn launch(
        to: SocketAddr,
        rng: Option<Rng>,
        plan: impl FnMut() -> Option<Cut> + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(NetworkState {
                rng: rng.map(Mutex::new),
                delay: AtomicU64::new(0),
                partitioned: AtomicBool::new(false),
                paused: watch::Sender::new(false),
                all: Mutex::default(),
                accepted: AtomicUsize::new(0),
                bytes: AtomicU64::new(0),
                cuts: AtomicUsize::new(0),
            }),
        };
        let state = this.state.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(state.serve(listener, to, plan));
        });
        this
    }

    /// Sets the minimum delay of each chunk.
    pub fn set_delay(&self, delay: Duration) {
        self.state.delay.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Cuts every healthy connection. Returns whether there was one.
    pub fn cut(&self) -> bool {
        let healthy = self.state.healthy();
        healthy.iter().for_each(|one| one.cut(&self.state.cuts));
        !healthy.is_empty()
    }

    /// Cuts one healthy connection at random. Returns whether there was one.
    pub fn cut_one(&self) -> bool {
        self.state.choose(1).iter().map(|one| one.cut(&self.state.cuts)).count() > 0
    }

    /// Silences `count` random connections: bytes from these ends (the client, the server) are
    /// dropped. Such a connection is never cut, because its ends must detect the silence.
    pub fn silence(&self, ends: [bool; 2], count: usize) {
        self.state.choose(count).iter().for_each(|one| one.silence(ends));
    }

    /// Makes new connections wait, or releases them.
    pub fn pause(&self, paused: bool) {
        self.state.paused.send_replace(paused);
    }

    /// Starts or ends a partition: all bytes are dropped, and new connections wait. Connections
    /// that it silenced stay silent.
    pub fn partition(&self, partitioned: bool) {
        self.state.partitioned.store(partitioned, Ordering::Relaxed);
        self.pause(partitioned);
        if partitioned {
            self.state.healthy().iter().for_each(|one| one.silence([true; 2]));
        }
    }

    /// Number of healthy connections.
    #[must_use]
    pub fn healthy(&self) -> usize {
        self.state.healthy().len()
    }

    /// Number of connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::Relaxed)
    }

    /// Bytes relayed so far, in both directions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::Relaxed)
    }

    /// Number of connections that were cut while open.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Relaxed)
    }

    /// Blocks until this many bytes were relayed; `false` after `limit`.
    #[must_use]
    pub fn wait_bytes(&self, wanted: u64, limit: Duration) -> bool {
        let until = std::time::Instant::now() + limit;
        while self.bytes() < wanted {
            if std::time::Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Every connection that ever went silent.
    #[must_use]
    pub fn silences(&self) -> Vec<Silence> {
        self.state.all.lock().unwrap().iter().filter_map(|one| one.silence_report()).collect()
    }
}

impl NetworkState {
    async fn serve(
        self: Arc<Self>,
        listener: std::net::TcpListener,
        to: SocketAddr,
        mut plan: impl FnMut() -> Option<Cut>,
    ) {
        let listener = TcpListener::from_std(listener).unwrap();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            self.accepted.fetch_add(1, Ordering::Relaxed);
            let (state, cut) = (self.clone(), plan());
            tokio::spawn(async move {
                if state.left_while_paused(&client).await {
                    return;
                }
                if state.rng.is_some() {
                    sleep(Duration::from_millis(state.draw(CONNECT_DELAY_MS))).await;
                }
                // If the server is down, the client's connection is closed.
                let Ok(server) = TcpStream::connect(to).await else { return };
                let relayed = Arc::new(Relayed::new([&client, &server], cut));
                state.all.lock().unwrap().push(relayed.clone());
                relayed.carry(&state, client, server).await;
            });
        }
    }

    /// Waits while new connections must wait. Returns whether the client gave up in that time: then
    /// the server never sees it, as in a real partition.
    async fn left_while_paused(&self, client: &TcpStream) -> bool {
        let mut paused = self.paused.subscribe();
        if !*paused.borrow_and_update() {
            return false;
        }
        drop(paused.wait_for(|paused| !paused).await);
        client.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed())
    }

    /// A random number in `0..below`, or 0 in a network without a generator.
    fn draw(&self, below: u64) -> u64 {
        self.rng.as_ref().map_or(0, |rng| rng.lock().unwrap().within(0, below))
    }

    fn healthy(&self) -> Vec<Arc<Relayed>> {
        let mut all = self.all.lock().unwrap();
        all.retain(|one| one.was_silenced() || !one.is_over());
        all.iter().filter(|one| one.is_healthy()).cloned().collect()
    }

    /// At most `count` healthy connections, chosen at random.
    fn choose(&self, count: usize) -> Vec<Arc<Relayed>> {
        let mut healthy = self.healthy();
        let mut chosen = Vec::new();
        while chosen.len() < count && !healthy.is_empty() {
            chosen.push(healthy.swap_remove(self.draw(healthy.len() as u64) as usize));
        }
        chosen
    }
}
