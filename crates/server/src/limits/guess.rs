//! How often somebody may guess a password, and how often one address may try anything.
//!
//! A token is taken at HELLO, not after PROOF: CHALLENGE already tells the client whether its
//! guess was right, so a login that is not finished has to cost the same. It is given back on
//! success. Names that do not exist are counted like all others. Nobody is ever locked out: there
//! is always a next guess. Device logins do not touch their user's count.
//!
//! A name has a run of guesses, not a bucket that fills: whoever paces guesses to the rate at which
//! a bucket fills would never be slowed down. Only quiet makes a run shorter.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use twinlock_core::id::Name;

use super::Origin;

/// Guesses for one name at once.
const AT_ONCE: u32 = 5;
/// Then one after this long, doubling with each...
const FIRST: Duration = Duration::from_secs(30);
/// ...up to this. A quiet time of this length makes the run one shorter.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// The run at which the pause is the longest: it grows no further, so that a few quiet hours mend
/// any attack.
const LONGEST_RUN: u32 = AT_ONCE + 5;
/// Names and addresses kept, each; the one unused for longest goes first, about 100 bytes each.
const KEPT: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
/// Names at the end of the table that are looked through for one that is not being guessed: made-up
/// names must not push out the one they are made up for.
const LOOKED_THROUGH: usize = 16;

/// Counts by name and by address.
pub(crate) struct Guesses {
    users: Mutex<LruCache<Name, Run>>,
    origins: Mutex<LruCache<Origin, Bucket>>,
    per_minute: u32,
}

/// Guesses at one name.
#[derive(Debug, Clone, Copy)]
struct Run {
    length: u32,
    last: Instant,
}

/// Logins of one address.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    most: u32,
    /// Time to the next token.
    step: Duration,
    /// When the last token came.
    since: Instant,
}

/// Not now: come back after this many seconds, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait(pub(crate) u16);

impl Wait {
    fn until(at: Instant, now: Instant) -> Self {
        let seconds = at.saturating_duration_since(now).as_secs().saturating_add(1);
        Self(u16::try_from(seconds).unwrap_or(u16::MAX))
    }
}

/// What was counted for one login.
#[derive(Debug)]
#[must_use = "a success gives it back"]
pub(crate) struct Taken {
    /// With the time of the guess before.
    user: Option<(Name, Instant)>,
    origin: Option<Origin>,
}

impl Guesses {
    pub(crate) fn new(logins_per_minute: u32) -> Self {
        Self {
            users: Mutex::new(LruCache::new(KEPT)),
            origins: Mutex::new(LruCache::new(KEPT)),
            per_minute: logins_per_minute.max(1),
        }
    }

    /// Counts a login of the address, and a guess at the user if this is a login by password or a
    /// step 1 of its registration.
    pub(crate) fn take(
        &self,
        user: Option<&Name>,
        origin: Option<Origin>,
        now: Instant,
    ) -> Result<Taken, Wait> {
        if let Some(origin) = origin {
            let fresh = Bucket::new(self.per_minute, now);
            let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            origins.get_or_insert_mut(origin, || fresh).take(now)?;
        }
        let mut taken = Taken { user: None, origin };
        if let Some(user) = user {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            make_room(&mut users, user, now);
            let run = users.get_or_insert_mut(user.clone(), || Run { length: 0, last: now });
            let before = run.last;
            run.take(now)?;
            taken.user = Some((user.clone(), before));
        }
        Ok(taken)
    }

    /// The login succeeded: as if it had not been counted.
    pub(crate) fn give_back(&self, taken: Taken) {
        if let Some(origin) = taken.origin {
            let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bucket) = origins.get_mut(&origin) {
                bucket.tokens = (bucket.tokens + 1).min(bucket.most);
            }
        }
        if let Some((user, before)) = taken.user {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(run) = users.get_mut(&user) {
                run.length = run.length.saturating_sub(1);
                run.last = before;
            }
        }
    }
}

/// Before a new name comes into a full table: lets one go that nobody is guessing.
fn make_room(users: &mut LruCache<Name, Run>, user: &Name, now: Instant) {
    if users.len() < KEPT.get() || users.contains(user) {
        return;
    }
    for _ in 0..LOOKED_THROUGH {
        match users.pop_lru() {
            Some((guessed, run)) if run.rested(now).length >= AT_ONCE => {
                users.put(guessed, run);
            }
            _ => return,
        }
    }
}

impl Run {
    /// As it is after the quiet since the last guess.
    fn rested(self, now: Instant) -> Self {
        let quiet = now.saturating_duration_since(self.last).as_secs() / LONGEST.as_secs();
        let quiet = u32::try_from(quiet).unwrap_or(u32::MAX);
        Self { length: self.length.saturating_sub(quiet), ..self }
    }

    fn take(&mut self, now: Instant) -> Result<(), Wait> {
        if let Some(doublings) = self.length.checked_sub(AT_ONCE) {
            let pause = (FIRST * 2_u32.saturating_pow(doublings)).min(LONGEST);
            if now < self.last + pause {
                return Err(Wait::until(self.last + pause, now));
            }
        }
        let rested = self.rested(now);
        *self = Self { length: (rested.length + 1).min(LONGEST_RUN), last: now };
        Ok(())
    }
}

impl Bucket {
    fn new(per_minute: u32, now: Instant) -> Self {
        let step = Duration::from_secs(60) / per_minute;
        Self { tokens: per_minute, most: per_minute, step, since: now }
    }

    fn take(&mut self, now: Instant) -> Result<(), Wait> {
        while self.tokens < self.most && now >= self.since + self.step {
            self.since += self.step;
            self.tokens += 1;
        }
        if self.tokens == self.most {
            self.since = now;
        }
        if self.tokens == 0 {
            return Err(Wait::until(self.since + self.step, now));
        }
        self.tokens -= 1;
        Ok(())
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

    /// Guesses that somebody gets in a day who asks every `pace` seconds, or when told to.
    fn guesses_in_a_day(pace: Option<u64>) -> u64 {
        let guesses = Guesses::new(1_000_000);
        let (ada, start) = (name("ada"), Instant::now());
        let (mut now, mut allowed) = (start, 0);
        while now < start + seconds(24 * 60 * 60) {
            now += match guesses.take(Some(&ada), None, now) {
                Ok(_counted) => {
                    allowed += 1;
                    seconds(pace.unwrap_or(0))
                }
                Err(Wait(wait)) => seconds(pace.unwrap_or_else(|| u64::from(wait))),
            };
        }
        allowed
    }

    #[test]
    fn no_pace_gets_more_guesses_than_impatience() {
        let impatient = guesses_in_a_day(None);
        assert!((96..=110).contains(&impatient), "{impatient}");
        for pace in [1, 29, 31, 59, 61, 151, 301, 601, 899, 901] {
            let paced = guesses_in_a_day(Some(pace));
            assert!(paced <= 110, "one every {pace} s: {paced}");
        }
    }

    #[test]
    fn pauses_double_from_half_a_minute_to_a_quarter_of_an_hour() {
        let guesses = Guesses::new(1_000_000);
        let (ada, mut now) = (name("ada"), Instant::now());
        let mut waits = Vec::new();
        while waits.len() < 9 {
            if let Err(Wait(wait)) = guesses.take(Some(&ada), None, now) {
                waits.push(wait - 1);
                now += seconds(u64::from(wait) - 1);
            }
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900, 900, 900]);
    }

    #[test]
    fn made_up_names_do_not_push_out_the_one_that_is_guessed() {
        let guesses = Guesses::new(1_000_000);
        let (ada, now) = (name("ada"), Instant::now());
        while guesses.take(Some(&ada), None, now).is_ok() {}
        for n in 0..70_000 {
            let made_up = name(&format!("u{n}"));
            guesses.take(Some(&made_up), None, now).map(drop).unwrap();
        }
        assert!(guesses.take(Some(&ada), None, now).is_err());
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
    fn quiet_hours_make_up_for_any_run() {
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
        assert_eq!(guesses.users.lock().unwrap().len(), KEPT.get());
    }
}
