//! Rate-limit state machines, without a clock: runs of guesses and a token bucket.

use std::time::{Duration, Instant};

/// Guesses at a name that one source may make without a pause.
pub(super) const FREE_GUESSES: u32 = 5;
/// The first pause after them; each further guess doubles it.
const FIRST: Duration = Duration::from_secs(30);
/// The longest pause. A quiet time of this length makes the run one shorter.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(15 * 60);
/// The maximum run, at which the pause is longest. A few quiet hours therefore undo any attack.
const MAX_RUN: u32 = FREE_GUESSES + 5;

/// Guesses of a source at a name within [`DAY`] that count as its first ones.
pub(super) const DAILY_FREE: u32 = 3;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Maximum length of a name's run: guesses of all unknown sources together.
pub(super) const NAME_MAX_RUN: u32 = 20;
/// Part of a name's run that is reserved for the first guesses of a source. Without it, three
/// sources at their own limits would take every guess that becomes free.
const RESERVED: u32 = 10;
/// Time after which a name's run becomes one shorter, so 192 guesses a day. One source has at most
/// 96 a day once its pauses are longest, so one source alone does not fill the run.
pub(super) const NAME_STEP: Duration = Duration::from_secs(7 * 60 + 30);

/// Refused for now: retry after this many seconds, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait(pub(crate) u16);

impl Wait {
    fn until(at: Instant, now: Instant) -> Self {
        let seconds = at.saturating_duration_since(now).as_secs().saturating_add(1);
        Self(u16::try_from(seconds).unwrap_or(u16::MAX))
    }
}

/// Guesses of one source at one name, or of one device at its user's password.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    length: u32,
    last: Instant,
    /// Guesses since `day`.
    today: u32,
    day: Instant,
}

impl Run {
    pub(super) fn new(now: Instant) -> Self {
        Self { length: 0, last: now, today: 0, day: now }
    }

    /// The run after the quiet time since its last guess.
    fn after_quiet_time(self, now: Instant) -> Self {
        let quiet = now.saturating_duration_since(self.last).as_secs() / MAX_WAIT.as_secs();
        let quiet = u32::try_from(quiet).unwrap_or(u32::MAX);
        Self { length: self.length.saturating_sub(quiet), ..self }
    }

    /// Whether a guess is allowed now.
    pub(super) fn check(&self, now: Instant) -> Result<(), Wait> {
        let Some(doublings) = self.length.checked_sub(FREE_GUESSES) else { return Ok(()) };
        let pause = (FIRST * 2_u32.saturating_pow(doublings)).min(MAX_WAIT);
        if now < self.last + pause { Err(Wait::until(self.last + pause, now)) } else { Ok(()) }
    }

    /// Whether this source has made few guesses at this name today.
    pub(super) fn is_new(&self, now: Instant) -> bool {
        self.today < DAILY_FREE || now >= self.day + DAY
    }

    /// Counts a guess, and returns the time of the previous one.
    pub(super) fn count(&mut self, now: Instant) -> Instant {
        let before = self.last;
        let after_quiet_time = self.after_quiet_time(now);
        let (today, day) = if now >= self.day + DAY { (0, now) } else { (self.today, self.day) };
        let length = (after_quiet_time.length + 1).min(MAX_RUN);
        *self = Self { length, last: now, today: today.saturating_add(1), day };
        before
    }

    /// Undoes the count of the last guess, which was right.
    pub(super) fn give_back(&mut self, before: Instant) {
        self.length = self.length.saturating_sub(1);
        self.today = self.today.saturating_sub(1);
        self.last = before;
    }
}

/// Guesses of all unknown sources at one name.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameRun {
    length: u32,
    /// When the run last became shorter, or began.
    since: Instant,
}

impl NameRun {
    pub(super) fn new(now: Instant) -> Self {
        Self { length: 0, since: now }
    }

    fn drained(self, now: Instant) -> Self {
        let steps = now.saturating_duration_since(self.since).as_secs() / NAME_STEP.as_secs();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        match self.length.checked_sub(steps) {
            None | Some(0) => Self::new(now),
            Some(length) => Self { length, since: self.since + NAME_STEP * steps },
        }
    }

    /// Counts a guess; `is_new`: it is one of the first of its source.
    pub(super) fn take(&mut self, is_new: bool, now: Instant) -> Result<(), Wait> {
        *self = self.drained(now);
        let max = if is_new { NAME_MAX_RUN } else { NAME_MAX_RUN - RESERVED };
        match self.length.checked_sub(max) {
            None => {
                self.length += 1;
                Ok(())
            }
            Some(beyond) => {
                let free = self.since + NAME_STEP * (beyond + 1);
                Err(Wait::until(free.min(now + MAX_WAIT), now))
            }
        }
    }

    pub(super) fn give_back(&mut self) {
        self.length = self.length.saturating_sub(1);
    }
}

/// Elements that a full table does not evict.
pub(super) trait Guessed {
    /// Whether there were guesses recently.
    fn is_guessed(&self, now: Instant) -> bool;
}

impl Guessed for Run {
    fn is_guessed(&self, now: Instant) -> bool {
        self.after_quiet_time(now).length >= FREE_GUESSES
    }
}

impl Guessed for NameRun {
    fn is_guessed(&self, now: Instant) -> bool {
        self.drained(now).length >= FREE_GUESSES
    }
}

/// Token bucket for the logins of one address.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoginBucket {
    tokens: u32,
    max: u32,
    /// Time until the next token.
    step: Duration,
    /// Time of the last token.
    since: Instant,
}

impl LoginBucket {
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        let step = Duration::from_secs(60) / per_minute;
        Self { tokens: per_minute, max: per_minute, step, since: now }
    }

    pub(super) fn take(&mut self, now: Instant) -> Result<(), Wait> {
        while self.tokens < self.max && now >= self.since + self.step {
            self.since += self.step;
            self.tokens += 1;
        }
        if self.tokens == self.max {
            self.since = now;
        }
        if self.tokens == 0 {
            return Err(Wait::until(self.since + self.step, now));
        }
        self.tokens -= 1;
        Ok(())
    }

    pub(super) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1).min(self.max);
    }
}
