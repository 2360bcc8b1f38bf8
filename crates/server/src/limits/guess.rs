//! How often somebody may guess a password, and how often one address may try anything.
//!
//! A token is taken at HELLO, not after PROOF: CHALLENGE already tells the client whether its
//! guess was right, so a login that is not finished has to cost the same. It is given back on
//! success. Names that do not exist have the same buckets. Nobody is ever locked out: there is
//! always a next token. Device logins do not touch their user's bucket.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use twinlock_core::id::Name;

use super::Origin;

/// Guesses for one name at once.
const USER_BURST: u32 = 5;
/// Then one in this time, doubling with each that is used...
const USER_FIRST: Duration = Duration::from_secs(30);
/// ...up to this.
const USER_LONGEST: Duration = Duration::from_secs(15 * 60);
/// Buckets kept, in each of the two tables; the one unused for longest goes first. About 100
/// bytes each.
const BUCKETS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// Buckets of names and of addresses.
pub(crate) struct Guesses {
    users: Mutex<LruCache<Name, Bucket>>,
    origins: Mutex<LruCache<Origin, Bucket>>,
    per_minute: u32,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    most: u32,
    /// Time to the next token.
    step: Duration,
    first_step: Duration,
    longest_step: Duration,
    /// When the last token came.
    since: Instant,
    /// The burst is used up; until the bucket is full again, each token doubles the step.
    slow: bool,
}

/// No token: come back after this many seconds, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait(pub(crate) u16);

/// Tokens taken for one login.
#[derive(Debug)]
#[must_use = "a success gives the tokens back"]
pub(crate) struct Taken {
    user: Option<(Name, Duration)>,
    origin: Option<Origin>,
}

impl Guesses {
    pub(crate) fn new(logins_per_minute: u32) -> Self {
        Self {
            users: Mutex::new(LruCache::new(BUCKETS)),
            origins: Mutex::new(LruCache::new(BUCKETS)),
            per_minute: logins_per_minute.max(1),
        }
    }

    /// Takes a token of the address, and one of the user if this is a login by password or a
    /// step 1 of its registration.
    pub(crate) fn take(
        &self,
        user: Option<&Name>,
        origin: Option<Origin>,
        now: Instant,
    ) -> Result<Taken, Wait> {
        if let Some(origin) = origin {
            let step = Duration::from_secs(60) / self.per_minute;
            let fresh = Bucket::new(self.per_minute, step, step, now);
            let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            origins.get_or_insert_mut(origin, || fresh).take(now)?;
        }
        let mut taken = Taken { user: None, origin };
        if let Some(user) = user {
            let fresh = Bucket::new(USER_BURST, USER_FIRST, USER_LONGEST, now);
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let step = users.get_or_insert_mut(user.clone(), || fresh).take(now)?;
            taken.user = Some((user.clone(), step));
        }
        Ok(taken)
    }

    /// The login succeeded: as if it had not been counted.
    pub(crate) fn give_back(&self, taken: Taken) {
        if let Some(origin) = taken.origin {
            let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bucket) = origins.get_mut(&origin) {
                bucket.give_back(None);
            }
        }
        if let Some((user, step)) = taken.user {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bucket) = users.get_mut(&user) {
                bucket.give_back(Some(step));
            }
        }
    }
}

impl Bucket {
    fn new(most: u32, first_step: Duration, longest_step: Duration, now: Instant) -> Self {
        Self {
            tokens: most,
            most,
            step: first_step,
            first_step,
            longest_step,
            since: now,
            slow: false,
        }
    }

    /// Takes a token; returns the step before, for [`Bucket::give_back`].
    fn take(&mut self, now: Instant) -> Result<Duration, Wait> {
        while self.tokens < self.most && now >= self.since + self.step {
            self.since += self.step;
            self.tokens += 1;
        }
        if self.tokens == self.most {
            self.since = now;
            self.step = self.first_step;
            self.slow = false;
        }
        if self.tokens == 0 {
            let left = (self.since + self.step).saturating_duration_since(now);
            let seconds = left.as_secs().saturating_add(1);
            return Err(Wait(u16::try_from(seconds).unwrap_or(u16::MAX)));
        }
        let before = self.step;
        self.tokens -= 1;
        if self.tokens == 0 {
            if self.slow {
                self.step = (self.step * 2).min(self.longest_step);
            }
            self.slow = true;
        }
        Ok(before)
    }

    fn give_back(&mut self, step: Option<Duration>) {
        self.tokens = (self.tokens + 1).min(self.most);
        if let Some(step) = step {
            self.step = self.step.min(step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: &str) -> Name {
        Name::new(n).unwrap()
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn guesses_slow_down_and_never_stop() {
        let guesses = Guesses::new(1_000_000);
        let ada = name("ada");
        let mut now = Instant::now();
        let mut waits = Vec::new();
        let mut allowed = 0u32;
        for _ in 0..41 {
            match guesses.take(Some(&ada), None, now) {
                Ok(_counted) => allowed += 1,
                Err(Wait(wait)) => {
                    waits.push(wait);
                    now += seconds(u64::from(wait));
                }
            }
        }
        assert_eq!(allowed, 5 + u32::try_from(waits.len()).unwrap());
        assert!(waits.first().is_some_and(|w| (30..=31).contains(w)), "{waits:?}");
        assert!(waits.windows(2).all(|w| w[0] <= w[1] + 2), "{waits:?}");
        assert!(waits.last().is_some_and(|w| (895..=901).contains(w)), "{waits:?}");
    }

    #[test]
    fn a_success_costs_nothing_and_a_failure_of_another_name_neither() {
        let guesses = Guesses::new(1_000_000);
        let now = Instant::now();
        for _ in 0..100 {
            let taken = guesses.take(Some(&name("ada")), None, now).unwrap();
            guesses.give_back(taken);
        }
        for _ in 0..5 {
            guesses.take(Some(&name("bob")), None, now).map(drop).unwrap();
        }
        assert!(guesses.take(Some(&name("bob")), None, now).is_err());
        assert!(guesses.take(Some(&name("ada")), None, now).is_ok());
    }

    #[test]
    fn an_address_has_twenty_a_minute_and_devices_touch_no_name() {
        let guesses = Guesses::new(20);
        let now = Instant::now();
        let origin = Some(Origin::of([192, 0, 2, 1].into()));
        for _ in 0..20 {
            guesses.take(None, origin, now).map(drop).unwrap();
        }
        assert_eq!(guesses.take(None, origin, now).map(drop), Err(Wait(4)));
        assert!(guesses.take(None, origin, now + seconds(4)).is_ok());
        assert!(guesses.users.lock().unwrap().is_empty());
    }

    #[test]
    fn quiet_time_fills_the_bucket_again() {
        let guesses = Guesses::new(1_000_000);
        let ada = name("ada");
        let now = Instant::now();
        while guesses.take(Some(&ada), None, now).is_ok() {}
        let later = now + seconds(24 * 60 * 60);
        for _ in 0..5 {
            guesses.take(Some(&ada), None, later).map(drop).unwrap();
        }
        assert!(guesses.take(Some(&ada), None, later).is_err());
    }

    #[test]
    fn the_tables_are_bounded() {
        let guesses = Guesses::new(20);
        let now = Instant::now();
        for n in 0..70_000 {
            let user = name(&format!("u{n}"));
            guesses.take(Some(&user), None, now).map(drop).unwrap();
        }
        assert_eq!(guesses.users.lock().unwrap().len(), BUCKETS.get());
    }
}
