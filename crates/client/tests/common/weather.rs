//! A network in bad weather: a relay on the loopback that delays, cuts, swallows and parts.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

/// Parts of a stream on their way at once.
const ON_THE_WAY: usize = 256;

/// A small generator (SplitMix64) whose seed a failing test can be run again with.
#[derive(Clone)]
pub struct Chance(Arc<AtomicU64>);

impl Chance {
    /// From `TWINLOCK_SEED`, else from the clock. Prints the seed.
    pub fn new() -> Self {
        let seed = std::env::var("TWINLOCK_SEED").map(|seed| seed.parse().unwrap());
        let seed: u64 = seed.unwrap_or_else(|_| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            u64::try_from(now.unwrap().as_nanos() & u128::from(u64::MAX)).unwrap()
        });
        eprintln!("TWINLOCK_SEED={seed}");
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// One of `from..to`.
    pub fn within(&self, from: u64, to: u64) -> u64 {
        let state = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        from + (z ^ (z >> 31)) % (to - from)
    }
}

/// A connection that is carried.
struct Carried {
    /// What comes from here no longer arrives, and nobody is told: from the client, the server.
    swallowed: [AtomicBool; 2],
    cut: Notify,
}

/// How the weather is.
#[derive(Clone)]
pub struct Weather {
    pub address: SocketAddr,
    chance: Chance,
    /// A part of a stream takes at least that long, and up to twice that.
    delay: Arc<AtomicU64>,
    /// Nothing passes, and nobody is told.
    parted: Arc<AtomicBool>,
    up: Arc<Mutex<Vec<Arc<Carried>>>>,
    pub taken: Arc<AtomicUsize>,
    pub bytes: Arc<AtomicU64>,
}

impl Weather {
    /// Carries connections to `to`.
    pub async fn before(to: SocketAddr, chance: &Chance) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            chance: chance.clone(),
            delay: Arc::default(),
            parted: Arc::default(),
            up: Arc::default(),
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
                    // Whoever came first is not always served first.
                    sleep(Duration::from_millis(all.chance.within(0, 30))).await;
                    // Without a server there is nothing to carry to.
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

    /// Every connection is cut, by a reset or an end.
    pub fn cut(&self) {
        self.up().iter().for_each(|carried| carried.cut.notify_one());
    }

    /// One connection, drawn, is cut.
    pub fn cut_one(&self) {
        let up = self.up();
        if !up.is_empty() {
            up[self.chance.within(0, up.len() as u64) as usize].cut.notify_one();
        }
    }

    /// What comes from these ends (the client, the server) of the connections that are up no
    /// longer arrives.
    pub fn swallow(&self, ends: [bool; 2]) {
        for carried in self.up() {
            for (swallowed, now) in carried.swallowed.iter().zip(ends) {
                swallowed.fetch_or(now, Ordering::Relaxed);
            }
        }
    }

    /// Nothing passes from now on, or what comes passes again. What was swallowed stays so.
    pub fn part(&self, parted: bool) {
        self.parted.store(parted, Ordering::Relaxed);
    }

    fn up(&self) -> Vec<Arc<Carried>> {
        let mut up = self.up.lock().unwrap();
        // Held by its own task as well, for as long as that lives.
        up.retain(|carried| Arc::strong_count(carried) > 1);
        up.clone()
    }

    async fn carry(&self, client: TcpStream, server: TcpStream) {
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
        }
        let swallowed = [AtomicBool::new(false), AtomicBool::new(false)];
        let carried = Arc::new(Carried { swallowed, cut: Notify::new() });
        self.up.lock().unwrap().push(carried.clone());
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let up = self.one_way(&carried, 0, from_client, to_server);
        let down = self.one_way(&carried, 1, from_server, to_client);
        tokio::select! {
            _ = async { tokio::join!(up, down) } => {}
            () = carried.cut.notified() => {}
        }
    }

    /// Until both ends have gone; an end that is swallowed is never told of the other's.
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
                    // A stream with a hole in it is none: nothing of it arrives any more.
                    carried.swallowed[end].store(true, Ordering::Relaxed);
                    continue;
                }
                self.bytes.fetch_add(got as u64, Ordering::Relaxed);
                let delay = self.delay.load(Ordering::Relaxed);
                let delay = delay + self.chance.within(0, delay + 1);
                let at = Instant::now() + Duration::from_micros(delay);
                if put.send((at, part[..got].to_vec())).await.is_err() {
                    break;
                }
            }
            if lost() {
                std::future::pending::<()>().await;
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
