//! One measurement: its phases and its report.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use twinlock_client::error::ClientError;

use crate::model::{LAST_ANSWERS, Latency, LoadError, Measurement, ServerCost, StopSignal};
use crate::process::Process;

/// Maximum warm-up; otherwise it takes as long as the measurement.
const WARM_UP: Duration = Duration::from_secs(1);
/// Maximum latency of the histogram in microseconds.
const MAX_LATENCY_MICROS: u64 = 60_000_000;
/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// State that the connections of a measurement share.
pub(crate) struct Gauge {
    /// Whether answers count.
    counts: AtomicBool,
    /// Whether sending has ended.
    ends: AtomicBool,
    count: AtomicU64,
    total: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

impl Gauge {
    pub(crate) fn new() -> Result<Arc<Self>, LoadError> {
        Ok(Arc::new(Self {
            counts: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            count: AtomicU64::new(0),
            total: AtomicU64::new(0),
            latency: Mutex::new(Histogram::new_with_bounds(1, MAX_LATENCY_MICROS, DIGITS)?),
        }))
    }

    /// Adds answers that arrived together, with their latencies.
    pub(crate) fn record_answers(&self, count: u64, latencies: impl Iterator<Item = Duration>) {
        self.total.fetch_add(count, Relaxed);
        if !self.counts.load(Relaxed) {
            return;
        }
        self.count.fetch_add(count, Relaxed);
        let mut histogram = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        for latency in latencies {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(MAX_LATENCY_MICROS);
            histogram.saturating_record(micros.clamp(1, MAX_LATENCY_MICROS));
        }
    }

    pub(crate) fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    pub(crate) fn total(&self) -> u64 {
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
pub(crate) struct ResourceSnapshot {
    server: Option<Process>,
    server_cpu: Option<Duration>,
    resident: Option<u64>,
    own_cpu: Option<Duration>,
    at: Instant,
}

impl ResourceSnapshot {
    pub(crate) fn now(server: Option<Process>) -> Self {
        Self {
            server,
            server_cpu: server.and_then(Process::cpu),
            resident: server.and_then(Process::resident),
            own_cpu: Process::own().cpu(),
            at: Instant::now(),
        }
    }

    /// A new reading after all connections are open; keeps the memory from before them.
    pub(crate) fn after_warm_up(&self) -> Self {
        Self { resident: self.resident, ..Self::now(self.server) }
    }

    /// The report on the time since this reading.
    pub(crate) fn report(&self, what: &'static str, count: u64, gauge: &Gauge) -> Measurement {
        let now = Self::now(self.server);
        let used = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
        let server =
            used(now.server_cpu, self.server_cpu).zip(self.resident.zip(now.resident)).map(
                |(cpu, (resident_before, resident))| ServerCost { cpu, resident_before, resident },
            );
        Measurement {
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
pub(crate) type ConnectionTasks = JoinSet<Result<(), ClientError>>;

/// Warms up, measures for `time`, and lets the connections end when everything is answered. If
/// stopped, it ends early with the results so far.
pub(crate) async fn measure(
    what: &'static str,
    before: ResourceSnapshot,
    time: Duration,
    gauge: &Gauge,
    mut tasks: ConnectionTasks,
    stop: &mut StopSignal,
) -> Result<Measurement, LoadError> {
    pause(time.min(WARM_UP), &mut tasks, stop).await?;
    let before = before.after_warm_up();
    gauge.counts.store(true, Relaxed);
    let paused = pause(time, &mut tasks, stop).await;
    let report = before.report(what, gauge.count.load(Relaxed), gauge);
    gauge.counts.store(false, Relaxed);
    gauge.ends.store(true, Relaxed);
    paused?;
    let ended = async {
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap_or(Err(ClientError::Closed))?;
        }
        Ok::<_, LoadError>(())
    };
    timeout(LAST_ANSWERS, ended).await.map_err(|_| LoadError::NoAnswer)??;
    Ok(Measurement { total: gauge.total(), ..report })
}

/// Waits for `time` or until stopped; fails if a connection ends.
async fn pause(
    time: Duration,
    tasks: &mut ConnectionTasks,
    stop: &mut StopSignal,
) -> Result<(), LoadError> {
    tokio::select! {
        () = sleep(time) => Ok(()),
        () = stop.stopped() => Ok(()),
        Some(ended) = tasks.join_next() => {
            let lost = || ClientError::Lost("the connection ended unexpectedly".to_owned());
            Err(ended.unwrap_or(Err(ClientError::Closed)).err().unwrap_or_else(lost).into())
        }
    }
}
