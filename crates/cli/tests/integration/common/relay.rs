//! A TCP relay on the loopback address that cuts its connections.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes in both directions by which TLS and the session are nearly established.
pub const UP: u64 = 7_000;

/// When to cut a connection: whichever limit comes first.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// After this many bytes in both directions together, at any point of a frame.
    pub bytes: u64,
    /// This long after [`UP`] bytes.
    pub time: Duration,
}

/// A relay; it ends with the test's process.
pub struct Relay {
    pub address: SocketAddr,
    cuts: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
    carried: Arc<AtomicU64>,
    up: Arc<Mutex<Vec<Weak<Carried>>>>,
}

impl Relay {
    /// Forwards connections to `to`; `plan` decides when each is cut.
    pub fn start(to: SocketAddr, mut plan: impl FnMut() -> Option<Cut> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicUsize::new(0));
        let taken = Arc::new(AtomicUsize::new(0));
        let carried = Arc::new(AtomicU64::new(0));
        let up = Arc::new(Mutex::new(Vec::new()));
        let relay = Self {
            up: Arc::clone(&up),
            address,
            cuts: Arc::clone(&cuts),
            taken: Arc::clone(&taken),
            carried: Arc::clone(&carried),
        };
        thread::spawn(move || {
            for client in listener.incoming() {
                taken.fetch_add(1, Ordering::Relaxed);
                // Without a server, drop the connection.
                let Ok(server) = TcpStream::connect(to) else { continue };
                let counts = (Arc::clone(&cuts), Arc::clone(&carried));
                let carried = Carried::start(client.unwrap(), server, plan(), counts);
                let mut up = up.lock().unwrap();
                up.retain(|one| one.strong_count() > 0);
                up.push(carried);
            }
        });
        relay
    }

    /// Cuts every open connection.
    pub fn cut(&self) {
        for carried in self.up.lock().unwrap().iter().filter_map(Weak::upgrade) {
            carried.end(true);
        }
    }

    /// The number of connections that were cut while open.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }

    /// Bytes forwarded, in both directions.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// The number of accepted connections.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Waits until this many bytes were forwarded; `false` after `limit`.
    pub fn wait_carried(&self, wanted: u64, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.carried() < wanted {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

struct Carried {
    ends: [TcpStream; 2],
    cut: Option<Cut>,
    passed: AtomicU64,
    over: Mutex<bool>,
    ended: Condvar,
    cuts: Arc<AtomicUsize>,
    /// Of all connections.
    carried: Arc<AtomicU64>,
}

impl Carried {
    fn start(
        client: TcpStream,
        server: TcpStream,
        cut: Option<Cut>,
        (cuts, bytes): (Arc<AtomicUsize>, Arc<AtomicU64>),
    ) -> Weak<Self> {
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
        }
        let carried = Arc::new(Self {
            carried: bytes,
            ends: [client, server],
            cut,
            passed: AtomicU64::new(0),
            over: Mutex::new(false),
            ended: Condvar::new(),
            cuts,
        });
        for from in [0, 1] {
            let carried = Arc::clone(&carried);
            thread::spawn(move || carried.carry(from));
        }
        Arc::downgrade(&carried)
    }

    /// Cuts the connection after this time.
    fn watch(&self, time: Duration) {
        let over = self.over.lock().unwrap();
        drop(self.ended.wait_timeout_while(over, time, |over| !*over).unwrap());
        self.end(true);
    }

    fn carry(self: &Arc<Self>, from: usize) {
        let (mut read, mut write) = (&self.ends[from], &self.ends[1 - from]);
        let mut part = vec![0; 16 * 1024];
        while let Ok(got @ 1..) = read.read(&mut part) {
            let before = self.passed.fetch_add(got as u64, Ordering::Relaxed);
            let most = self.cut.map_or(u64::MAX, |cut| cut.bytes).saturating_sub(before);
            let passed = got.min(usize::try_from(most).unwrap_or(usize::MAX));
            if let Some(Cut { time, .. }) = self.cut
                && before < UP
                && before + passed as u64 >= UP
            {
                let carried = Arc::clone(self);
                thread::spawn(move || carried.watch(time));
            }
            self.carried.fetch_add(passed as u64, Ordering::Relaxed);
            if write.write_all(&part[..passed]).is_err() {
                break;
            }
            if passed < got {
                return self.end(true);
            }
        }
        // One end is closed; the other may still send, but only for a short time.
        let _gone = write.shutdown(Shutdown::Write);
        let over = self.over.lock().unwrap();
        let linger = Duration::from_secs(2);
        drop(self.ended.wait_timeout_while(over, linger, |over| !*over).unwrap());
        self.end(false);
    }

    fn end(&self, cut: bool) {
        let mut over = self.over.lock().unwrap();
        if *over {
            return;
        }
        *over = true;
        for end in &self.ends {
            let _gone = end.shutdown(Shutdown::Both);
        }
        self.ended.notify_all();
        if cut {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        }
    }
}
