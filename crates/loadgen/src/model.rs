//! The plan of a measurement, its result, and the errors.

use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use twinlock_client::{ClientError, Route};
use twinlock_core::invite::Address;

/// Timeout for the answers that are outstanding at the end of a window.
pub(crate) const LAST_ANSWERS: Duration = Duration::from_secs(30);

/// The kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadMode {
    /// Connections that each keep a window of messages outstanding.
    Messages,
    /// One connection that sends, and connections that follow.
    Fanout,
    /// Idle connections.
    Idle,
    /// Logins, from the first packet to the server's READY, and the close.
    Logins,
    /// The upload of a file, then its download; from memory to memory on the client.
    Files,
}

impl LoadMode {
    /// The unit that it counts.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Messages => "acks",
            Self::Fanout => "deliveries",
            Self::Idle => "lines",
            Self::Logins => "logins",
            Self::Files => "bytes",
        }
    }
}

/// The amount of load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Connections; with [`LoadMode::Fanout`] followers, with [`LoadMode::Logins`] concurrent
    /// logins.
    pub connections: usize,
    /// Outstanding messages on each connection.
    pub window: usize,
    /// Size of a message's text in bytes.
    pub size: usize,
    /// Size of a file in bytes.
    pub file: u64,
    /// Length of the window in which answers count.
    pub time: Duration,
}

/// The users of the connections, and the process to observe.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Connect to this address instead of the profile's.
    pub address: Option<Address>,
    /// How connections reach the server.
    pub route: Route,
    /// Create this many users and spread the connections over them; 0: use the profile's device.
    pub users: usize,
    /// The server's process id, if it runs on this machine.
    pub server: Option<u32>,
}

/// Why a measurement failed.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The error of any client.
    #[error(transparent)]
    Client(ClientError),
    /// The device has as many sessions as the server allows.
    #[error("the server allows no more sessions for one device")]
    TooManySessions,
    /// The server allows fewer unacknowledged messages.
    #[error("the server accepts at most {max} unacknowledged messages on a connection")]
    Window {
        /// The server's limit.
        max: u32,
    },
    /// The server allows shorter texts only.
    #[error("the server accepts texts of at most {max} bytes")]
    Size {
        /// The server's limit.
        max: u32,
    },
    /// The server has not sent all answers after the window.
    #[error("the server has not answered for {} s", LAST_ANSWERS.as_secs())]
    NoAnswer,
    /// The resource use of a process cannot be read.
    #[error("what process {0} uses cannot be read from /proc (is it running on this machine?)")]
    NoProcess(u32),
    /// The run was stopped before the measurement started.
    #[error("stopped before the measurement started")]
    Stopped,
    /// A histogram could not be created.
    #[error("no histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
}

/// Stops a run early, with the results so far.
#[derive(Debug, Clone)]
pub struct StopSignal(watch::Receiver<bool>);

impl StopSignal {
    /// Stops the run when the sender of `signal` sends `true`.
    #[must_use]
    pub fn new(signal: watch::Receiver<bool>) -> Self {
        Self(signal)
    }

    /// Whether the run is stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn stopped(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            // The sender is gone, so nothing stops the run.
            std::future::pending::<()>().await;
        }
    }
}

/// The result of a measurement.
#[derive(Debug, Clone)]
pub struct Measurement {
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

impl Measurement {
    /// The count per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.count as f64 / self.seconds } else { 0.0 }
    }

    /// CPU time for one of [`Self::count`], in microseconds.
    #[must_use]
    pub fn micros_each(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.count.max(1) as f64
    }

    /// The server's memory for one of [`Self::count`], in bytes; meaningful for idle connections.
    #[must_use]
    pub fn bytes_each(&self) -> Option<u64> {
        let server = self.server?;
        server.resident.saturating_sub(server.resident_before).checked_div(self.count)
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

impl From<ClientError> for LoadError {
    fn from(error: ClientError) -> Self {
        if error == ClientError::TooManySessions {
            Self::TooManySessions
        } else {
            Self::Client(error)
        }
    }
}
