//! What a server runs in: its configuration, the clock, the stop signal and the throttle of its
//! log.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::Config;
use crate::limits::throttle::Throttle;

/// The environment of all parts of a server.
pub(crate) struct Env {
    pub(crate) config: Config,
    /// The main runtime, where sockets and sessions are.
    pub(crate) runtime: Handle,
    /// Limits the log lines that a peer can cause at will.
    pub(crate) throttle: Throttle,
    stop: watch::Sender<bool>,
}

impl Env {
    /// Must be called on the main runtime.
    pub(crate) fn new(config: Config) -> Self {
        let (throttle, stop) = (Throttle::default(), watch::Sender::new(false));
        Self { config, runtime: Handle::current(), throttle, stop }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Begins the shutdown: [`Env::stopping`] resolves from now on.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the server is shutting down. Cancel-safe.
    pub(crate) async fn stopping(&self) {
        // `self` holds the sender, so the channel cannot close first.
        let mut stop = self.stop.subscribe();
        let _stopping = stop.wait_for(|stop| *stop).await;
    }
}
