//! Connection slots of a listener: a limit on its connections in all, and from one address.
//!
//! An unauthenticated connection keeps its slot only while no other connection needs it. When all
//! slots are taken, the newest connection evicts the oldest of the lowest [`Rank`]: idle
//! connections first, then those in the middle of a login. Idle connections therefore block no one.
//! (With a timeout alone, they could fill a listener for that long.)
//!
//! A flood can block its own address, or the whole listener if it comes from many addresses.
//! Against the latter the slots have a grace period: a younger slot is not evicted for the total
//! limit, so that some of the admitted connections complete their login.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::SourcePrefix;

/// Progress of a connection, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// It has not begun a login.
    Idle,
    /// It has begun a login.
    Login,
    /// It has begun the login of a device that exists.
    Device,
    /// It is not evicted: it has proven a key, or may enter the tarpit.
    Held,
}

/// A limit that was reached, named by its setting.
pub(crate) type LimitName = &'static str;

#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimiter(Arc<LimiterState>);

#[derive(Debug)]
struct LimiterState {
    max_slots: usize,
    max_per_source: usize,
    /// Names of the two limits.
    names: [LimitName; 2],
    /// Age from which on a slot may be evicted for the total limit.
    grace: Duration,
    taken: Mutex<TakenSlots>,
}

#[derive(Debug, Default)]
struct TakenSlots {
    /// Number of slots ever taken.
    next_number: u64,
    /// Slots by their number, and so by age.
    slots: BTreeMap<u64, Slot>,
}

#[derive(Debug)]
struct Slot {
    since: Instant,
    source: Option<SourcePrefix>,
    rank: Rank,
    evict: oneshot::Sender<LimitName>,
}

/// A slot, released when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    slots: Arc<LimiterState>,
    number: u64,
}

/// Notifies the holder of a slot that it was evicted.
pub(crate) struct Eviction(oneshot::Receiver<LimitName>);

impl Eviction {
    /// Resolves once the slot is evicted, with the limit that was reached. Never resolves if the
    /// slot is released or held. Must not be polled again after it has resolved.
    pub(crate) async fn wait(&mut self) -> LimitName {
        match (&mut self.0).await {
            Ok(limit) => limit,
            Err(_) => std::future::pending().await,
        }
    }
}

impl ConnectionLimiter {
    /// Creates the slots of a listener.
    ///
    /// `names`: the settings for `max_slots` and `max_per_source`. `grace`: the age from which on a
    /// slot may be evicted for the total limit.
    pub(crate) fn new(
        max_slots: usize,
        max_per_source: usize,
        names: [LimitName; 2],
        grace: Duration,
    ) -> Self {
        Self(Arc::new(LimiterState {
            max_slots,
            max_per_source,
            names,
            grace,
            taken: Mutex::default(),
        }))
    }

    /// Takes a slot.
    ///
    /// # Errors
    /// The limit, if all slots are taken, and each is held or too young.
    pub(crate) fn enter(&self, now: Instant) -> Result<(Permit, Eviction), LimitName> {
        let [limit, _] = self.0.names;
        let old = |slot: &Slot| now.saturating_duration_since(slot.since) >= self.0.grace;
        let mut taken = self.0.taken();
        if taken.slots.len() >= self.0.max_slots && !taken.evict(limit, old) {
            return Err(limit);
        }
        let number = taken.next_number;
        taken.next_number += 1;
        let (evict, eviction) = oneshot::channel();
        taken.slots.insert(number, Slot { since: now, source: None, rank: Rank::Idle, evict });
        Ok((Permit { slots: self.0.clone(), number }, Eviction(eviction)))
    }
}

impl Permit {
    /// Counts the slot for an address, once that is known. A repeated call changes nothing.
    ///
    /// # Errors
    /// The limit, if all slots of the address are taken and held, or if this slot was evicted.
    pub(crate) fn comes_from(&self, source: SourcePrefix) -> Result<(), LimitName> {
        let [all, limit] = self.slots.names;
        let mut taken = self.slots.taken();
        match taken.slots.get(&self.number) {
            None => return Err(all),
            Some(slot) if slot.source == Some(source) => return Ok(()),
            Some(_) => {}
        }
        let same_source = |slot: &Slot| slot.source == Some(source);
        let of_source = taken.slots.values().filter(|slot| same_source(slot)).count();
        if of_source >= self.slots.max_per_source && !taken.evict(limit, same_source) {
            return Err(limit);
        }
        if let Some(slot) = taken.slots.get_mut(&self.number) {
            slot.source = Some(source);
        }
        Ok(())
    }

    /// Raises the rank. Returns `false` if the slot was evicted already.
    pub(crate) fn rise(&self, rank: Rank) -> bool {
        match self.slots.taken().slots.get_mut(&self.number) {
            Some(slot) => {
                slot.rank = slot.rank.max(rank);
                true
            }
            None => false,
        }
    }
}

impl LimiterState {
    fn taken(&self) -> MutexGuard<'_, TakenSlots> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TakenSlots {
    /// Evicts the oldest slot of the lowest rank among those that `of` accepts. It is free at once.
    fn evict(&mut self, limit: LimitName, of: impl Fn(&Slot) -> bool) -> bool {
        let evictable = self.slots.iter().filter(|(_, slot)| slot.rank < Rank::Held && of(slot));
        let Some((&number, _)) = evictable.min_by_key(|(number, slot)| (slot.rank, **number))
        else {
            return false;
        };
        if let Some(slot) = self.slots.remove(&number) {
            // The holder may no longer wait for it.
            slot.evict.send(limit).ok();
        }
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.slots.taken().slots.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const NAMES: [LimitName; 2] = ["all", "address"];

    fn source(n: u8) -> SourcePrefix {
        SourcePrefix::of([192, 0, 2, n].into())
    }

    fn evicted(eviction: &mut Eviction) -> Option<LimitName> {
        eviction.wait().now_or_never()
    }

    #[test]
    fn slots__full_evicts_oldest_of_lowest_rank() {
        let limiter = ConnectionLimiter::new(4, 4, NAMES, Duration::ZERO);
        let (held, mut held_out) = limiter.enter(Instant::now()).unwrap();
        let (device, mut device_out) = limiter.enter(Instant::now()).unwrap();
        let (login, mut login_out) = limiter.enter(Instant::now()).unwrap();
        let (_idle, mut idle_out) = limiter.enter(Instant::now()).unwrap();
        assert!(held.rise(Rank::Held) && device.rise(Rank::Device) && login.rise(Rank::Login));
        // A rank never falls.
        assert!(device.rise(Rank::Login));
        let mut newer = Vec::new();
        for out in [&mut idle_out, &mut login_out, &mut device_out] {
            let (newest, mut newest_out) = limiter.enter(Instant::now()).unwrap();
            assert!(newest.rise(Rank::Held));
            assert_eq!([evicted(out), evicted(&mut newest_out)], [Some("all"), None]);
            newer.push(newest);
        }
        assert!(!device.rise(Rank::Held));
        assert_eq!(limiter.enter(Instant::now()).map(drop), Err("all"));
        assert_eq!(evicted(&mut held_out), None);
        drop(held);
        assert!(limiter.enter(Instant::now()).is_ok());
    }

    #[test]
    fn slots__total_limit_evicts_only_after_grace_period() {
        let grace = Duration::from_secs(1);
        let limiter = ConnectionLimiter::new(2, 1, NAMES, grace);
        let now = Instant::now();
        let (a, mut a_out) = limiter.enter(now).unwrap();
        let (b, mut b_out) = limiter.enter(now + grace / 2).unwrap();
        assert_eq!(limiter.enter(now + grace / 2).map(drop), Err("all"));
        let (c, _c_out) = limiter.enter(now + grace).unwrap();
        assert_eq!([evicted(&mut a_out), evicted(&mut b_out)], [Some("all"), None]);
        drop((a, c));
        // The limit of an address has no grace period.
        let (d, _d_out) = limiter.enter(now + grace).unwrap();
        assert_eq!([b.comes_from(source(1)), d.comes_from(source(1))], [Ok(()); 2]);
        assert_eq!(evicted(&mut b_out), Some("address"));
    }

    #[test]
    fn slots__evicted_slot_evicts_no_other() {
        let limiter = ConnectionLimiter::new(1, 1, NAMES, Duration::ZERO);
        let (lost, _eviction) = limiter.enter(Instant::now()).unwrap();
        let (here, mut here_out) = limiter.enter(Instant::now()).unwrap();
        assert_eq!(here.comes_from(source(1)), Ok(()));
        assert_eq!(lost.comes_from(source(1)), Err("all"));
        drop(lost);
        assert_eq!(evicted(&mut here_out), None);
        drop(here);
        assert!(limiter.0.taken().slots.is_empty());
        // A released slot was not evicted.
        assert_eq!(evicted(&mut here_out), None);
    }

    #[test]
    fn slots__address_limit_affects_only_that_address() {
        let limiter = ConnectionLimiter::new(5, 2, NAMES, Duration::ZERO);
        let enter = |from: SourcePrefix| {
            let (permit, eviction) = limiter.enter(Instant::now())?;
            permit.comes_from(from).map(|()| (permit, eviction))
        };
        let (other, mut other_out) = enter(source(2)).unwrap();
        let (a, mut a_out) = enter(source(1)).unwrap();
        let (b, mut b_out) = enter(source(1)).unwrap();
        assert_eq!(a.comes_from(source(1)), Ok(()));
        assert_eq!(evicted(&mut a_out), None);
        let (c, _c_out) = enter(source(1)).unwrap();
        assert_eq!(evicted(&mut a_out), Some("address"));
        assert!(b.rise(Rank::Held) && c.rise(Rank::Held));
        assert_eq!(evicted(&mut b_out), None);
        assert_eq!(enter(source(1)).map(drop), Err("address"));
        assert!(evicted(&mut other_out).is_none() && other.rise(Rank::Held));
        // Without an address, only the total limit applies.
        assert!(limiter.enter(Instant::now()).is_ok());
        drop((a, b));
        assert!(enter(source(1)).is_ok());
    }
}
