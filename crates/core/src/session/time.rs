//! Time within a session (sections 6 and 9): keep-alive, rekey due or overdue, maximum age.

use std::time::Instant;

use super::{Phase, Rekey, Session, SessionFault};
use crate::Entropy;
use crate::handshake::Side;
use crate::seal::MessageType;

impl Session {
    /// When to call [`Session::handle_timeout`] next. Ask again after every call.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.phase == Phase::Ended {
            return None;
        }
        [Some(self.keep_alive_due()), self.rekey_due(), self.overdue_at(), self.age_end()]
            .into_iter()
            .flatten()
            .min()
    }

    fn keep_alive_due(&self) -> Instant {
        let timing = &self.config.timing;
        match self.ping_sent {
            Some(sent) => sent + timing.ping_answer,
            None if self.following => self.last_byte + timing.ping_following,
            None => self.last_byte + timing.ping_idle,
        }
    }

    fn busier_frames(&self) -> u64 {
        self.send.frames().max(self.recv.frames())
    }

    /// When the client starts a rekey.
    fn rekey_due(&self) -> Option<Instant> {
        let timing = &self.config.timing;
        let allowed = self.side == Side::Client
            && self.phase == Phase::Open
            && matches!(self.rekey, Rekey::Idle);
        if !allowed {
            return None;
        }
        let due = if self.rekey_wanted || self.busier_frames() >= timing.rekey_after_frames {
            self.epoch_began
        } else if self.epoch_traffic {
            self.epoch_began + timing.rekey_after
        } else {
            return None;
        };
        Some(self.last_rekey.map_or(due, |last| due.max(last + timing.rekey_pause)))
    }

    /// When the server closes because a rekey is overdue.
    ///
    /// Time counts from the first traffic of an epoch, because only traffic makes a client start a
    /// rekey. The first message after an hour of silence, from either end, must not end the
    /// session.
    fn overdue_at(&self) -> Option<Instant> {
        let timing = &self.config.timing;
        if self.side == Side::Client {
            None
        } else if self.busier_frames() >= timing.rekey_overdue_frames {
            Some(self.epoch_began)
        } else {
            // Immediately if the first traffic has no time yet, so that `handle_timeout` notes it.
            let since = self.traffic_since.map(|since| since + timing.rekey_overdue);
            self.epoch_traffic.then_some(since.unwrap_or(self.epoch_began))
        }
    }

    fn age_end(&self) -> Option<Instant> {
        (self.side == Side::Server).then(|| self.began + self.config.timing.max_age)
    }

    /// Performs the due action: PING, rekey, or the end of the session.
    ///
    /// # Errors
    /// [`SessionFault`]: the session has ended; its CLOSE is outgoing.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<(), SessionFault> {
        if self.phase == Phase::Ended {
            return Ok(());
        }
        if self.epoch_traffic {
            self.traffic_since.get_or_insert(now);
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.age_end()) {
            self.fail(&SessionFault::TooOld);
            return Err(SessionFault::TooOld);
        }
        if due(self.overdue_at()) {
            self.fail(&SessionFault::RekeyOverdue);
            return Err(SessionFault::RekeyOverdue);
        }
        if due(Some(self.keep_alive_due())) {
            if self.ping_sent.is_some() {
                self.fail(&SessionFault::Silent);
                return Err(SessionFault::Silent);
            }
            self.ping_sent = Some(now);
            // Before READY, only READY and CLOSE may be sent; the silence still counts.
            if self.phase == Phase::Open {
                self.ping = self.ping.wrapping_add(1);
                let _fits = self.queue(MessageType::Ping, &self.ping.to_be_bytes());
            }
        }
        if due(self.rekey_due()) {
            self.start_rekey(now, entropy);
        }
        Ok(())
    }
}
