//! Rekey within a session (section 6): which end may start when, and where each direction switches.

use std::time::Instant;

use super::{Phase, Rekey, Session, SessionEvent, SessionFault};
use crate::Entropy;
use crate::handshake::Side;
use crate::rekey::{self, AwaitRekey2};
use crate::seal::{Chain, MessageType};

impl Session {
    /// Starts a rekey now if it is allowed, and returns whether it did.
    ///
    /// Allowed at the client, with the session open, no rekey in progress, and the last one long
    /// enough ago.
    pub fn start_rekey(&mut self, now: Instant, entropy: &mut dyn Entropy) -> bool {
        let pause_over =
            self.last_rekey.is_none_or(|last| now >= last + self.config.timing.rekey_pause);
        let allowed = self.side == Side::Client
            && self.phase == Phase::Open
            && matches!(self.rekey, Rekey::Idle)
            && pause_over;
        if allowed {
            let rekey = Box::new(AwaitRekey2::start(entropy));
            let _fits = self.queue(MessageType::Rekey1, rekey.body());
            self.rekey = Rekey::AwaitRekey2(rekey);
        }
        allowed
    }

    /// Makes [`Session::handle_timeout`] start a rekey as soon as it is allowed (client).
    ///
    /// The epoch need not have traffic. A rekey in progress satisfies the request.
    pub fn want_rekey(&mut self) {
        self.rekey_wanted = true;
    }

    pub(super) fn handle_rekey1<'a>(
        &mut self,
        body: &[u8],
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<SessionEvent<'a>, SessionFault> {
        let rekey1 = body.try_into().map_err(|_| SessionFault::Violation("length of REKEY1"))?;
        if self.side == Side::Client {
            return Err(SessionFault::Violation("REKEY1 from the server"));
        }
        if !matches!(self.rekey, Rekey::Idle) {
            return Err(SessionFault::Violation("REKEY1 during a rekey"));
        }
        let interval = self.config.timing.rekey_apart;
        if self.last_rekey.is_some_and(|last| now < last + interval) {
            return Err(SessionFault::Violation("REKEY1 too soon after the last rekey"));
        }
        let epoch = self.next_epoch()?;
        let (keys, rekey2) = rekey::answer(rekey1, epoch, &self.rk, entropy)
            .map_err(|_| SessionFault::Violation("keys of REKEY1"))?;
        let _fits = self.queue(MessageType::Rekey2, &rekey2);
        self.send = Chain::new(keys.ck_s2c, epoch);
        self.rk = keys.rk;
        self.rekey = Rekey::AwaitRekey3(keys.ck_c2s);
        // From here and not from REKEY3: the client's pause starts at REKEY2. However long REKEY3
        // takes, the client's next REKEY1 cannot arrive too soon.
        self.last_rekey = Some(now);
        Ok(SessionEvent::Nothing)
    }

    pub(super) fn handle_rekey2<'a>(
        &mut self,
        body: &[u8],
        now: Instant,
    ) -> Result<SessionEvent<'a>, SessionFault> {
        let rekey2 = body.try_into().map_err(|_| SessionFault::Violation("length of REKEY2"))?;
        let epoch = self.next_epoch()?;
        let Rekey::AwaitRekey2(pending) = std::mem::replace(&mut self.rekey, Rekey::Idle) else {
            return Err(SessionFault::Violation("REKEY2 without REKEY1"));
        };
        let keys = pending
            .finish(rekey2, epoch, &self.rk)
            .map_err(|_| SessionFault::Violation("keys of REKEY2"))?;
        let _fits = self.queue(MessageType::Rekey3, &[]);
        self.send = Chain::new(keys.ck_c2s, epoch);
        self.recv = Chain::new(keys.ck_s2c, epoch);
        self.rk = keys.rk;
        Ok(self.begin_epoch(epoch, now))
    }

    pub(super) fn handle_rekey3<'a>(
        &mut self,
        body: &[u8],
        now: Instant,
    ) -> Result<SessionEvent<'a>, SessionFault> {
        if !body.is_empty() {
            return Err(SessionFault::Violation("length of REKEY3"));
        }
        let epoch = self.next_epoch()?;
        match std::mem::replace(&mut self.rekey, Rekey::Idle) {
            Rekey::AwaitRekey3(ck_c2s) => {
                self.recv = Chain::new(ck_c2s, epoch);
                Ok(self.begin_epoch(epoch, now))
            }
            _ => Err(SessionFault::Violation("REKEY3 with no rekey under way")),
        }
    }

    /// The epoch after the receiving direction's, which switches last at both ends.
    fn next_epoch(&self) -> Result<u32, SessionFault> {
        self.recv.epoch().checked_add(1).ok_or(SessionFault::RekeyOverdue)
    }

    fn begin_epoch<'a>(&mut self, epoch: u32, now: Instant) -> SessionEvent<'a> {
        if self.side == Side::Client {
            self.last_rekey = Some(now);
        }
        self.epoch_began = now;
        self.epoch_traffic = false;
        self.traffic_since = None;
        self.rekey_wanted = false;
        self.rekeys += 1;
        SessionEvent::Rekeyed(epoch)
    }
}
