//! The state of the connection to the server.

use std::time::{Duration, Instant};

use twinlock_core::session::Binding;

/// The state of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// The first attempt is under way.
    Connecting,
    /// A session exists.
    Connected {
        /// Whether TLS reaches the server.
        binding: Binding,
    },
    /// There is no connection; the client retries.
    Disconnected {
        /// The time of the next attempt.
        retry_at: Instant,
    },
}

/// What has changed when a session is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnection {
    /// There was an earlier session.
    pub is_restored: bool,
    /// The loss or the failed attempt before it was reported.
    pub was_reported_down: bool,
}

/// The connection, and whether it is the first one.
#[derive(Debug)]
pub struct ConnectionView {
    state: ConnectionState,
    had_session: bool,
    is_restored: bool,
}

impl Default for ConnectionView {
    fn default() -> Self {
        Self { state: ConnectionState::Connecting, had_session: false, is_restored: false }
    }
}

impl ConnectionView {
    /// Takes the report that a session is ready.
    pub fn connected(&mut self, binding: Binding) -> Reconnection {
        let was_reported_down = self.is_down();
        self.state = ConnectionState::Connected { binding };
        self.is_restored = self.had_session;
        self.had_session = true;
        Reconnection { is_restored: self.is_restored, was_reported_down }
    }

    /// Takes the report of a lost connection or a failed attempt. Returns whether it is the first
    /// report since the last session.
    pub fn disconnected(&mut self, retry: Duration, now: Instant) -> bool {
        let is_first = !self.is_down();
        self.state = ConnectionState::Disconnected { retry_at: now + retry };
        is_first
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.state
    }

    /// Whether the connection is known to be down. The first attempt does not count.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self.state, ConnectionState::Disconnected { .. })
    }

    /// Whether the session is not the first one, so that entries that arrive at its start were
    /// missed.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        self.is_restored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection__first_loss_and_restoration_are_reported_once() {
        let now = Instant::now();
        let retry = Duration::from_secs(2);
        let mut view = ConnectionView::default();
        assert!(!view.is_down());
        let first = view.connected(Binding::Bound);
        assert_eq!(first, Reconnection { is_restored: false, was_reported_down: false });
        assert!(view.disconnected(retry, now) && !view.disconnected(retry * 2, now));
        let retry_at = now + retry * 2;
        assert_eq!(view.state(), ConnectionState::Disconnected { retry_at });
        let again = view.connected(Binding::Cut);
        assert_eq!(again, Reconnection { is_restored: true, was_reported_down: true });
        assert!(view.is_restored() && !view.is_down());
        assert!(view.disconnected(retry, now));
    }

    #[test]
    fn connection__established_late_is_not_restored() {
        let mut view = ConnectionView::default();
        assert!(view.disconnected(Duration::ZERO, Instant::now()));
        let first = view.connected(Binding::Bound);
        assert_eq!(first, Reconnection { is_restored: false, was_reported_down: true });
    }
}
