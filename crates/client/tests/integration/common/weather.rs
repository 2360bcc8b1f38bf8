//! A faulty network: a relay on the loopback interface that delays, cuts, silences and partitions.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// Maximum number of chunks in flight in one direction.
const ON_THE_WAY: usize = 256;

/// A random generator (SplitMix64). Its seed makes a failure reproducible.
#[derive(Clone)]
pub struct Chance(Arc<AtomicU64>);

impl Chance {
    /// Takes the seed from `TWINLOCK_SEED`, or else from the clock, and prints it.
    pub fn new() -> Self {
        let seed = std::env::var("TWINLOCK_SEED").map(|seed| seed.parse().unwrap());
        let seed: u64 = seed.unwrap_or_else(|_| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            u64::try_from(now.unwrap().as_nanos() & u128::from(u64::MAX)).unwrap()
        });
        eprintln!("TWINLOCK_SEED={seed}");
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// Returns a number in `from..to`.
    pub fn within(&self, from: u64, to: u64) -> u64 {
        let state = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        from + (z ^ (z >> 31)) % (to - from)
    }
}

/// A relayed connection.
struct Carried {
    /// Whether bytes from this end are dropped without notice: the client, the server.
    swallowed: [AtomicBool; 2],
    /// When the first end was silenced.
    silent: OnceLock<Instant>,
    /// When each end closed the connection.
    left: watch::Sender<[Option<Instant>; 2]>,
    cut: Notify,
    /// The connection was cut, or both ends have closed it.
    over: AtomicBool,
}

impl Carried {
    fn new() -> Self {
        Self {
            swallowed: [false; 2].map(AtomicBool::new),
            silent: OnceLock::new(),
            left: watch::Sender::new([None; 2]),
            cut: Notify::new(),
            over: AtomicBool::new(false),
        }
    }

    fn swallow(&self, ends: [bool; 2]) {
        for (swallowed, now) in self.swallowed.iter().zip(ends) {
            swallowed.fetch_or(now, Ordering::Relaxed);
        }
        self.silent.get_or_init(Instant::now);
    }

    /// Whether the connection is neither silent nor cut, and neither end has closed it.
    fn is_whole(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
            && self.silent.get().is_none()
            && *self.left.borrow() == [None; 2]
    }

    /// Cuts the connection. It counts as cut at once, before its task closes the sockets.
    fn cut(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.cut.notify_one();
    }
}

/// A connection that went silent.
#[derive(Debug)]
pub struct Silence {
    /// The ends whose bytes were dropped: the client, the server.
    #[expect(dead_code, reason = "shown where a test fails")]
    pub ends: [bool; 2],
    /// Time from the start of the silence until each end closed the connection.
    pub left: [Option<Duration>; 2],
}

/// The relay and its faults; clones share them.
#[derive(Clone)]
pub struct Weather {
    pub address: SocketAddr,
    chance: Chance,
    /// Minimum delay of each chunk, us. The maximum is twice that.
    delay: Arc<AtomicU64>,
    /// Whether all bytes are dropped without notice.
    parted: Arc<AtomicBool>,
    /// Whether new connections must wait.
    held: watch::Sender<bool>,
    /// All connections, except those that ended without a silence.
    all: Arc<Mutex<Vec<Arc<Carried>>>>,
    pub taken: Arc<AtomicUsize>,
    pub bytes: Arc<AtomicU64>,
}

impl Weather {
    /// Starts a relay to `to`.
    pub async fn before(to: SocketAddr, chance: &Chance) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            chance: chance.clone(),
            delay: Arc::default(),
            parted: Arc::default(),
            held: watch::Sender::new(false),
            all: Arc::default(),
            taken: Arc::default(),
            bytes: Arc::default(),
        };
        let all = this.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                all.taken.fetch_add(1, Ordering::Relaxed);
                let all = all.clone();
                tokio::spawn(async move {
                    if all.has_gone_while_held(&client).await {
                        return;
                    }
                    // Varies the order in which connections reach the server.
                    sleep(Duration::from_millis(all.chance.within(0, 30))).await;
                    // If the server is down, the client's connection is closed.
                    let Ok(server) = TcpStream::connect(to).await else { return };
                    all.carry(client, server).await;
                });
            }
        });
        this
    }

    pub fn set_delay(&self, delay: Duration) {
        self.delay.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Cuts every healthy connection, by a reset or a FIN. Returns whether there was one.
    pub fn cut(&self) -> bool {
        let whole = self.carried();
        whole.iter().for_each(|carried| carried.cut());
        !whole.is_empty()
    }

    /// Cuts one healthy connection at random. Returns whether there was one.
    pub fn cut_one(&self) -> bool {
        self.drawn(1).iter().map(|carried| carried.cut()).count() > 0
    }

    /// Silences `count` random connections: bytes from these ends (the client, the server) are
    /// dropped. Such a connection is never cut, because its ends must detect the silence.
    pub fn swallow(&self, ends: [bool; 2], count: usize) {
        self.drawn(count).iter().for_each(|carried| carried.swallow(ends));
    }

    /// Makes new connections wait, or releases them.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Starts or ends a partition: all bytes are dropped, and new connections wait. Connections
    /// that it silenced stay silent.
    pub fn part(&self, parted: bool) {
        self.parted.store(parted, Ordering::Relaxed);
        self.hold(parted);
        if parted {
            self.carried().iter().for_each(|carried| carried.swallow([true; 2]));
        }
    }

    /// Number of healthy connections.
    pub fn whole(&self) -> usize {
        self.carried().len()
    }

    /// Every connection that ever went silent.
    pub fn silences(&self) -> Vec<Silence> {
        let all = self.all.lock().unwrap();
        let silent = all.iter().filter_map(|carried| Some((carried, *carried.silent.get()?)));
        silent
            .map(|(carried, since)| Silence {
                ends: [0, 1].map(|end| carried.swallowed[end].load(Ordering::Relaxed)),
                left: carried.left.borrow().map(|left| Some(left?.duration_since(since))),
            })
            .collect()
    }

    /// The healthy connections.
    fn carried(&self) -> Vec<Arc<Carried>> {
        let mut all = self.all.lock().unwrap();
        all.retain(|one| one.silent.get().is_some() || !one.over.load(Ordering::Relaxed));
        all.iter().filter(|carried| carried.is_whole()).cloned().collect()
    }

    /// At most `count` healthy connections, chosen at random.
    fn drawn(&self, count: usize) -> Vec<Arc<Carried>> {
        let mut whole = self.carried();
        let mut drawn = Vec::new();
        while drawn.len() < count && !whole.is_empty() {
            drawn.push(whole.swap_remove(self.chance.within(0, whole.len() as u64) as usize));
        }
        drawn
    }

    /// Waits while new connections must wait. Returns whether the client gave up in that time: then
    /// the server never sees it, as in a real partition.
    async fn has_gone_while_held(&self, client: &TcpStream) -> bool {
        let mut held = self.held.subscribe();
        if !*held.borrow_and_update() {
            return false;
        }
        drop(held.wait_for(|held| !held).await);
        client.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed())
    }

    async fn carry(&self, client: TcpStream, server: TcpStream) {
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
        }
        let carried = Arc::new(Carried::new());
        self.all.lock().unwrap().push(carried.clone());
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let up = self.one_way(&carried, 0, from_client, to_server);
        let down = self.one_way(&carried, 1, from_server, to_client);
        tokio::select! {
            _ = async { tokio::join!(up, down) } => {}
            () = carried.cut.notified() => {}
        }
        carried.over.store(true, Ordering::Relaxed);
    }

    /// Relays one direction until both ends have closed. If this end is silenced, its close is not
    /// relayed.
    async fn one_way(
        &self,
        carried: &Carried,
        end: usize,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) {
        let (put, mut take) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
        let lost = || {
            carried.swallowed[end].load(Ordering::Relaxed) || self.parted.load(Ordering::Relaxed)
        };
        let read = async move {
            let mut part = vec![0; 16 * 1024];
            while let Ok(got @ 1..) = from.read(&mut part).await {
                if lost() {
                    // A stream with a gap is useless: from here on, drop everything.
                    carried.swallow([end == 0, end == 1]);
                    continue;
                }
                self.bytes.fetch_add(got as u64, Ordering::Relaxed);
                let delay = self.delay.load(Ordering::Relaxed);
                let delay = delay + self.chance.within(0, delay + 1);
                let at = Instant::now() + Duration::from_micros(delay);
                // The receiver may have closed. Continue reading, to notice when this end closes.
                let _left = put.send((at, part[..got].to_vec())).await;
            }
            carried.left.send_modify(|left| left[end] = Some(Instant::now()));
            if lost() {
                let mut left = carried.left.subscribe();
                let _both = left.wait_for(|left| left.iter().all(Option::is_some)).await;
            }
        };
        let write = async {
            let mut last = Instant::now();
            while let Some((at, part)) = take.recv().await {
                last = last.max(at);
                sleep_until(last).await;
                if to.write_all(&part).await.is_err() {
                    return;
                }
            }
            let _gone = to.shutdown().await;
        };
        tokio::join!(read, write);
    }
}
