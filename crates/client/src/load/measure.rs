//! One measurement: its phases and its report.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::process::Process;
use super::{LAST_ANSWERS, LoadError, Stop};
use crate::error::ClientError;

/// Maximum warm-up; otherwise it takes as long as the measurement.
const WARM_UP: Duration = Duration::from_secs(1);
/// Maximum latency of the histogram in microseconds.
const LONGEST: u64 = 60_000_000;
/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// The result of a measurement.
#[derive(Debug, Clone)]
pub struct Report {
    /// `messages`, `fanout`, `idle`, `logins`, `put` or `get`.
    pub what: &'static str,
    /// Length of the window in which answers counted, in seconds.
    pub seconds: f64,
    /// What arrived in that time: acks, deliveries, logins, connections, or bytes of a file.
    pub count: u64,
    /// Everything that arrived, from the start of the warm-up to the last answer.
    pub total: u64,
    /// From sending to the ack or the delivery; for a login, until the session is ready.
    pub latency: Option<Latency>,
    /// The server's resource use in that time.
    pub server: Option<ServerCost>,
    /// CPU time of this process in that time.
    pub client_cpu: Option<Duration>,
}

impl Report {
    /// The count per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.count as f64 / self.seconds } else { 0.0 }
    }
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Maximum.
    pub max: u64,
}

/// The server's resource use during a measurement.
#[derive(Debug, Clone, Copy)]
pub struct ServerCost {
    /// CPU time.
    pub cpu: Duration,
    /// Resident memory before the first connection, in bytes.
    pub resident_before: u64,
    /// Resident memory at the end, in bytes.
    pub resident: u64,
}

/// State that the connections of a measurement share.
pub(super) struct Gauge {
    /// Whether answers count.
    counts: AtomicBool,
    /// Whether sending has ended.
    ends: AtomicBool,
    count: AtomicU64,
    total: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

impl Gauge {
    pub(super) fn new() -> Result<Arc<Self>, LoadError> {
        Ok(Arc::new(Self {
            counts: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            count: AtomicU64::new(0),
            total: AtomicU64::new(0),
            latency: Mutex::new(Histogram::new_with_bounds(1, LONGEST, DIGITS)?),
        }))
    }

    /// Adds answers that arrived together, with their latencies.
    pub(super) fn came(&self, count: u64, latencies: impl Iterator<Item = Duration>) {
        self.total.fetch_add(count, Relaxed);
        if !self.counts.load(Relaxed) {
            return;
        }
        self.count.fetch_add(count, Relaxed);
        let mut histogram = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        for latency in latencies {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST);
            histogram.saturating_record(micros.clamp(1, LONGEST));
        }
    }

    pub(super) fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    fn latency(&self) -> Option<Latency> {
        let histogram = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile| histogram.value_at_quantile(quantile);
        (!histogram.is_empty()).then(|| Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        })
    }
}

/// The resource use of the server and of this process at one time.
pub(super) struct Before {
    server: Option<Process>,
    server_cpu: Option<Duration>,
    resident: Option<u64>,
    own_cpu: Option<Duration>,
    at: Instant,
}

impl Before {
    pub(super) fn now(server: Option<Process>) -> Self {
        Self {
            server,
            server_cpu: server.and_then(Process::cpu),
            resident: server.and_then(Process::resident),
            own_cpu: Process::own().cpu(),
            at: Instant::now(),
        }
    }

    /// A new reading after all connections are open; keeps the memory from before them.
    pub(super) fn again(&self) -> Self {
        Self { resident: self.resident, ..Self::now(self.server) }
    }

    /// The report on the time since this reading.
    pub(super) fn report(&self, what: &'static str, count: u64, gauge: &Gauge) -> Report {
        let now = Self::now(self.server);
        let used = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
        let server =
            used(now.server_cpu, self.server_cpu).zip(self.resident.zip(now.resident)).map(
                |(cpu, (resident_before, resident))| ServerCost { cpu, resident_before, resident },
            );
        Report {
            what,
            seconds: (now.at - self.at).as_secs_f64(),
            count,
            total: gauge.total().max(count),
            latency: gauge.latency(),
            server,
            client_cpu: used(now.own_cpu, self.own_cpu),
        }
    }
}

/// The tasks of a measurement.
pub(super) type Lines = JoinSet<Result<(), ClientError>>;

/// Warms up, measures for `time`, and lets the connections end when everything is answered. If
/// stopped, it ends early with the results so far.
pub(super) async fn measure(
    what: &'static str,
    before: Before,
    time: Duration,
    gauge: &Gauge,
    mut lines: Lines,
    stop: &mut Stop,
) -> Result<Report, LoadError> {
    pause(time.min(WARM_UP), &mut lines, stop).await?;
    let before = before.again();
    gauge.counts.store(true, Relaxed);
    let paused = pause(time, &mut lines, stop).await;
    let report = before.report(what, gauge.count.load(Relaxed), gauge);
    gauge.counts.store(false, Relaxed);
    gauge.ends.store(true, Relaxed);
    paused?;
    let ended = async {
        while let Some(ended) = lines.join_next().await {
            ended.unwrap_or(Err(ClientError::Closed))?;
        }
        Ok::<_, LoadError>(())
    };
    timeout(LAST_ANSWERS, ended).await.map_err(|_| LoadError::NoAnswer)??;
    Ok(Report { total: gauge.total(), ..report })
}

/// Waits for `time` or until stopped; fails if a connection ends.
async fn pause(time: Duration, lines: &mut Lines, stop: &mut Stop) -> Result<(), LoadError> {
    tokio::select! {
        () = sleep(time) => Ok(()),
        () = stop.told() => Ok(()),
        Some(ended) = lines.join_next() => {
            let lost = || ClientError::Lost("the connection ended unexpectedly".to_owned());
            Err(ended.unwrap_or(Err(ClientError::Closed)).err().unwrap_or_else(lost).into())
        }
    }
}
