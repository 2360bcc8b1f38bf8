//! Rate limits of password guesses, and of logins from one address.
//!
//! A token is taken at HELLO, not after PROOF: CHALLENGE already shows the client whether its guess
//! was right, so an unfinished login must cost the same. Success returns the token. Names that do
//! not exist are counted like all others. Device logins do not affect their user's count.
//!
//! Guesses are counted by name and source, so that an outsider slows down only its own source. They
//! are also counted by name alone, over all sources that the user has not logged in from, so that
//! many sources do not add up. `docs/design/013-guessing.md` has the arithmetic.
//!
//! A source has a run of guesses, not a token bucket: guesses at the refill rate of a bucket are
//! never slowed down. Only quiet time makes a run shorter.

mod pace;
#[cfg(test)]
mod tests;

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lru::LruCache;
use twinlock_core::id::{DeviceId, Name};

use super::SourcePrefix;
use super::crowd::Crowd;
pub(crate) use pace::Wait;
use pace::{Guessed, LoginBucket, NameRun, Run};

/// Names, sources and addresses remembered, each; least recently used first to go, about 100 bytes
/// each.
const TABLE_SIZE: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
/// Devices remembered. An attacker cannot invent them: each has logged in.
const DEVICES: NonZeroUsize = NonZeroUsize::new(8_192).unwrap();
/// Least recently used elements of a full table that are examined for one to evict: generated names
/// must not evict the one that is being guessed.
const EVICTION_SCAN: usize = 16;

/// A source of guesses at a name; `None`: all connections without a known address.
type NameAndSource = (Name, Option<SourcePrefix>);

/// Counts by name and source, by name, by device and by address.
pub(crate) struct Guesses {
    sources: Mutex<LruCache<NameAndSource, Run>>,
    names: Mutex<LruCache<Name, NameRun>>,
    devices: Mutex<LruCache<DeviceId, Run>>,
    by_address: Mutex<LruCache<SourcePrefix, LoginBucket>>,
    per_minute: u32,
    /// Excludes shared addresses from the known sources.
    pub(crate) crowd: Crowd,
}

/// A guess at a user's password.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guess<'a> {
    /// The user whose password is guessed.
    pub(crate) user: &'a Name,
    /// Where the guess comes from.
    pub(crate) source: Option<SourcePrefix>,
    /// The user has logged in from there recently: the name's run neither stops nor counts the
    /// guess.
    pub(crate) known: bool,
}

/// The guesses and logins that were counted for one login.
#[derive(Debug)]
#[must_use = "a success gives it back"]
pub(crate) struct CountedLogin {
    guess: Option<CountedGuess>,
    address: Option<SourcePrefix>,
}

#[derive(Debug)]
struct CountedGuess {
    source: NameAndSource,
    /// The name's run was counted too.
    name: bool,
    /// The time of the previous guess.
    before: Instant,
}

/// A counted step-up guess of a device.
#[derive(Debug)]
#[must_use = "a success gives it back"]
pub(crate) struct CountedStepUp {
    device: DeviceId,
    before: Instant,
}

impl Guesses {
    pub(crate) fn new(logins_per_minute: u32) -> Self {
        Self {
            sources: Mutex::new(LruCache::new(TABLE_SIZE)),
            names: Mutex::new(LruCache::new(TABLE_SIZE)),
            devices: Mutex::new(LruCache::new(DEVICES)),
            by_address: Mutex::new(LruCache::new(TABLE_SIZE)),
            per_minute: logins_per_minute.max(1),
            crowd: Crowd::default(),
        }
    }

    /// Counts a login of the address, and a guess if this is a password login or step 1 of a
    /// password's registration.
    pub(crate) fn take(
        &self,
        guess: Option<Guess<'_>>,
        address: Option<SourcePrefix>,
        now: Instant,
    ) -> Result<CountedLogin, Wait> {
        if let Some(address) = address {
            let fresh = LoginBucket::new(self.per_minute, now);
            lock(&self.by_address).get_or_insert_mut(address, || fresh).take(now)?;
        }
        let guess = guess.map(|guess| self.count(guess, now)).transpose()?;
        Ok(CountedLogin { guess, address })
    }

    fn count(&self, guess: Guess<'_>, now: Instant) -> Result<CountedGuess, Wait> {
        let source = (guess.user.clone(), guess.source);
        let mut sources = lock(&self.sources);
        make_room(&mut sources, &source, now);
        let run = sources.get_or_insert_mut(source.clone(), || Run::new(now));
        run.check(now)?;
        let mut names = lock(&self.names);
        make_room(&mut names, guess.user, now);
        let name = names.get_or_insert_mut(guess.user.clone(), || NameRun::new(now));
        // The same work for a known source, on a copy.
        let mut copy = *name;
        let counted = if guess.known { &mut copy } else { name };
        let taken = counted.take(run.is_new(now), now);
        if !guess.known {
            taken?;
        }
        Ok(CountedGuess { source, name: !guess.known, before: run.count(now) })
    }

    /// Undoes the counts of a login that succeeded.
    pub(crate) fn give_back(&self, taken: CountedLogin) {
        if let Some(address) = taken.address
            && let Some(bucket) = lock(&self.by_address).get_mut(&address)
        {
            bucket.give_back();
        }
        let Some(CountedGuess { source, name, before }) = taken.guess else { return };
        if let Some(run) = lock(&self.sources).get_mut(&source) {
            run.give_back(before);
        }
        if name && let Some(name) = lock(&self.names).get_mut(&source.0) {
            name.give_back();
        }
    }

    /// Counts a guess of an authenticated device at its user's password. Names and addresses do not
    /// matter, so outsiders cannot slow it down.
    pub(crate) fn take_by_device(
        &self,
        device: &DeviceId,
        now: Instant,
    ) -> Result<CountedStepUp, Wait> {
        let mut devices = lock(&self.devices);
        make_room(&mut devices, device, now);
        let run = devices.get_or_insert_mut(*device, || Run::new(now));
        run.check(now)?;
        Ok(CountedStepUp { device: *device, before: run.count(now) })
    }

    /// Undoes the count of a step-up that succeeded.
    pub(crate) fn give_back_to_device(&self, taken: CountedStepUp) {
        if let Some(run) = lock(&self.devices).get_mut(&taken.device) {
            run.give_back(taken.before);
        }
    }
}

/// Evicts an element without recent guesses before an insert into a full table.
fn make_room<K: Hash + Eq, V: Guessed>(table: &mut LruCache<K, V>, key: &K, now: Instant) {
    if table.len() < table.cap().get() || table.contains(key) {
        return;
    }
    for _ in 0..EVICTION_SCAN {
        match table.pop_lru() {
            Some((guessed, run)) if run.is_guessed(now) => {
                table.put(guessed, run);
            }
            _ => return,
        }
    }
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
