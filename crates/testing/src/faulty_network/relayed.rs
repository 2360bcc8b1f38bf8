//! One relayed connection.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Cut, ESTABLISHED, NetworkState, Silence};

/// Maximum number of delayed chunks in one direction.
const DELAYED: usize = 256;

pub(super) struct Relayed {
    /// Further handles of both sockets, the client's and the server's, for a cut.
    sockets: [std::net::TcpStream; 2],
    plan: Option<Cut>,
    /// Bytes in both directions that counted towards the plan.
    passed: AtomicU64,
    /// Signalled once [`ESTABLISHED`] bytes have passed.
    established: Notify,
    /// Whether bytes from this end are dropped without notice: the client, the server.
    silenced: [AtomicBool; 2],
    /// When the first end was silenced.
    silent_since: OnceLock<Instant>,
    /// When each end closed the connection.
    left: watch::Sender<[Option<Instant>; 2]>,
    cut: Notify,
    /// The connection was cut, or both ends have closed it.
    over: AtomicBool,
}

impl Relayed {
    pub(super) fn new(ends: [&TcpStream; 2], plan: Option<Cut>) -> Self {
        Self {
            sockets: ends.map(|end| end.as_fd().try_clone_to_owned().unwrap().into()),
            plan,
            passed: AtomicU64::new(0),
            established: Notify::new(),
            silenced: [false; 2].map(AtomicBool::new),
            silent_since: OnceLock::new(),
            left: watch::Sender::new([None; 2]),
            cut: Notify::new(),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn silence(&self, ends: [bool; 2]) {
        for (silenced, now) in self.silenced.iter().zip(ends) {
            silenced.fetch_or(now, Ordering::Relaxed);
        }
        self.silent_since.get_or_init(Instant::now);
    }

    pub(super) fn was_silenced(&self) -> bool {
        self.silent_since.get().is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Whether the connection is neither silent nor cut, and neither end has closed it.
    pub(super) fn is_healthy(&self) -> bool {
        !self.is_over() && !self.was_silenced() && *self.left.borrow() == [None; 2]
    }

    pub(super) fn silence_report(&self) -> Option<Silence> {
        let since = *self.silent_since.get()?;
        Some(Silence {
            ends: [0, 1].map(|end| self.silenced[end].load(Ordering::Relaxed)),
            left: self.left.borrow().map(|left| Some(left?.duration_since(since))),
        })
    }

    /// Cuts the connection. It counts as cut at once, before its task closes the sockets.
    pub(super) fn cut(&self, cuts: &AtomicUsize) {
        if self.over.swap(true, Ordering::Relaxed) {
            return;
        }
        cuts.fetch_add(1, Ordering::Relaxed);
        for socket in &self.sockets {
            let _closed = socket.shutdown(Shutdown::Both);
        }
        self.cut.notify_one();
    }

    /// Relays until both ends have closed the connection or it is cut.
    pub(super) async fn carry(&self, state: &NetworkState, client: TcpStream, server: TcpStream) {
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let up = self.one_way(state, 0, from_client, to_server);
        let down = self.one_way(state, 1, from_server, to_client);
        tokio::select! {
            _ = async { tokio::join!(up, down) } => {}
            () = self.time_out() => self.cut(&state.cuts),
            () = self.cut.notified() => {}
        }
        self.over.store(true, Ordering::Relaxed);
    }

    /// Resolves when the plan's time is over; never without one.
    async fn time_out(&self) {
        self.established.notified().await;
        sleep(self.plan.map_or(Duration::MAX, |plan| plan.time)).await;
    }

    /// Relays one direction until both ends have closed. If this end is silenced, its close is not
    /// relayed.
    async fn one_way(
        &self,
        state: &NetworkState,
        end: usize,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) {
        let lost = || {
            self.silenced[end].load(Ordering::Relaxed) || state.partitioned.load(Ordering::Relaxed)
        };
        let mut part = vec![0; 16 * 1024];
        let mut delayed: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let (mut last, mut open, mut writable) = (Instant::now(), true, true);
        while open || !delayed.is_empty() {
            let next = delayed.front().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = wait_until(next.unwrap_or(last)), if next.is_some() => {
                    let Some((_, part)) = delayed.pop_front() else { continue };
                    // The receiver may have closed. Continue reading, to notice when this end
                    // closes.
                    writable = writable && to.write_all(&part).await.is_ok();
                    if self.is_used_up() {
                        return self.cut(&state.cuts);
                    }
                }
                got = from.read(&mut part), if open && delayed.len() < DELAYED => {
                    let Ok(got @ 1..) = got else {
                        self.left.send_modify(|left| left[end] = Some(Instant::now()));
                        open = false;
                        continue;
                    };
                    if lost() {
                        // A stream with a gap is useless: from here on, drop everything.
                        self.silence([end == 0, end == 1]);
                        continue;
                    }
                    let passed = self.count(got);
                    state.bytes.fetch_add(passed as u64, Ordering::Relaxed);
                    let delay = state.delay.load(Ordering::Relaxed);
                    let delay = Duration::from_micros(delay + state.draw(delay + 1));
                    last = last.max(Instant::now() + delay);
                    delayed.push_back((last, part[..passed].to_vec()));
                }
            }
        }
        if lost() {
            let mut left = self.left.subscribe();
            let _both = left.wait_for(|left| left.iter().all(Option::is_some)).await;
        }
        let _gone = to.shutdown().await;
    }

    /// Counts bytes towards the plan. Returns how many of them pass.
    fn count(&self, got: usize) -> usize {
        let Some(plan) = self.plan else { return got };
        let before = self.passed.fetch_add(got as u64, Ordering::Relaxed);
        let left = plan.bytes.saturating_sub(before);
        let passed = got.min(usize::try_from(left).unwrap_or(usize::MAX));
        if before < ESTABLISHED && before + passed as u64 >= ESTABLISHED {
            self.established.notify_one();
        }
        passed
    }

    /// Whether more bytes arrived than the plan lets pass.
    fn is_used_up(&self) -> bool {
        self.plan.is_some_and(|plan| self.passed.load(Ordering::Relaxed) > plan.bytes)
    }
}

/// The runtime's timer rounds up to whole milliseconds, which would slow down an undelayed stream.
async fn wait_until(at: Instant) {
    if at > Instant::now() {
        sleep_until(at).await;
    }
}
