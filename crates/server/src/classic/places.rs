//! The places of a listener: so many connections in all, so many of one address.
//!
//! Whoever has shown a key keeps the place to the end. Whoever has not keeps it only while it is
//! not wanted: the newest to come takes that of the one who has waited longest, so that nobody
//! fills a listener without a key. (A time limit instead would end honest devices that connect
//! first and have something to say later.)

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::limits::Origin;

#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_per_origin: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Places ever taken.
    ever: u64,
    /// By their number, so by age.
    seats: BTreeMap<u64, Seat>,
}

#[derive(Debug)]
struct Seat {
    origin: Option<Origin>,
    /// It is not to be vacated for others.
    stays: bool,
    /// Goes with the seat, which is how its holder hears of that.
    _hold: oneshot::Sender<()>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Inner>,
    number: u64,
}

/// Whether the place is wanted by somebody else.
pub(super) struct Wanted(oneshot::Receiver<()>);

impl Wanted {
    /// Returns once it is; never to whoever stays. Not to be asked again then.
    pub(super) async fn wait(&mut self) {
        let _gone = (&mut self.0).await;
    }
}

impl Places {
    pub(super) fn new(most: usize, most_per_origin: usize) -> Self {
        Self(Arc::new(Inner { most, most_per_origin, taken: Mutex::default() }))
    }

    /// A place, if there is one or one can be had.
    pub(super) fn enter(&self) -> Option<(Place, Wanted)> {
        let mut taken = self.0.taken();
        if taken.seats.len() >= self.0.most && !taken.vacate(|_| true) {
            return None;
        }
        let number = taken.ever;
        taken.ever += 1;
        let (hold, wanted) = oneshot::channel();
        taken.seats.insert(number, Seat { origin: None, stays: false, _hold: hold });
        Some((Place { places: self.0.clone(), number }, Wanted(wanted)))
    }
}

impl Place {
    /// Whose place it is, once that is known. `false`: there are too many from there, or the place
    /// was taken.
    pub(super) fn comes_from(&self, origin: Origin) -> bool {
        let mut taken = self.places.taken();
        if !taken.seats.contains_key(&self.number) {
            return false;
        }
        let from_there = |seat: &Seat| seat.origin == Some(origin);
        let here = taken.seats.values().filter(|seat| from_there(seat)).count();
        if here >= self.places.most_per_origin && !taken.vacate(from_there) {
            return false;
        }
        if let Some(seat) = taken.seats.get_mut(&self.number) {
            seat.origin = Some(origin);
        }
        true
    }

    /// It is not to be vacated any more: its holder has shown a key, or is to be kept waiting.
    /// `false`: that was too late.
    pub(super) fn stay(&self) -> bool {
        let mut taken = self.places.taken();
        match taken.seats.get_mut(&self.number) {
            Some(seat) => {
                seat.stays = true;
                true
            }
            None => false,
        }
    }
}

impl Inner {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Has the oldest of these who do not stay vacate its place, which is free at once.
    fn vacate(&mut self, of: impl Fn(&Seat) -> bool) -> bool {
        let oldest = self.seats.iter().find(|(_, seat)| !seat.stays && of(seat));
        let Some((&number, _)) = oldest else { return false };
        self.seats.remove(&number);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn origin(n: u8) -> Origin {
        Origin::of([192, 0, 2, n].into())
    }

    fn is_wanted(wanted: &mut Wanted) -> bool {
        wanted.wait().now_or_never().is_some()
    }

    #[test]
    fn who_has_shown_a_key_stays_and_the_oldest_other_makes_way() {
        let places = Places::new(3, 3);
        let (a, mut a_wanted) = places.enter().unwrap();
        let (b, mut b_wanted) = places.enter().unwrap();
        let (c, mut c_wanted) = places.enter().unwrap();
        assert!(a.stay() && !is_wanted(&mut a_wanted));
        let (d, mut d_wanted) = places.enter().unwrap();
        assert!(is_wanted(&mut b_wanted) && !b.stay());
        assert!(!is_wanted(&mut a_wanted) && !is_wanted(&mut c_wanted));
        // Who has made way takes nobody else's place along.
        drop(b);
        assert!(c.stay() && d.stay());
        assert!(places.enter().is_none() && !is_wanted(&mut d_wanted));
        drop(a);
        assert!(places.enter().is_some());
        drop((c, d));
        assert!(places.0.taken().seats.is_empty());
    }

    #[test]
    fn who_has_lost_a_place_takes_nobody_elses() {
        let places = Places::new(1, 1);
        let (lost, _wanted) = places.enter().unwrap();
        let (here, mut here_wanted) = places.enter().unwrap();
        assert!(here.comes_from(origin(1)));
        assert!(!lost.comes_from(origin(1)) && !is_wanted(&mut here_wanted));
    }

    #[test]
    fn an_address_takes_its_own_places_only() {
        let places = Places::new(5, 2);
        let enter = |from: Origin| {
            let (place, wanted) = places.enter()?;
            place.comes_from(from).then_some((place, wanted))
        };
        let (other, mut other_wanted) = enter(origin(2)).unwrap();
        let (a, mut a_wanted) = enter(origin(1)).unwrap();
        let (b, mut b_wanted) = enter(origin(1)).unwrap();
        let (c, _c_wanted) = enter(origin(1)).unwrap();
        assert!(is_wanted(&mut a_wanted) && !is_wanted(&mut b_wanted));
        assert!(b.stay() && c.stay() && enter(origin(1)).is_none());
        assert!(!is_wanted(&mut other_wanted) && other.stay());
        // Where no address counts, all are alike.
        assert!(places.enter().is_some());
        drop((a, b));
        assert!(enter(origin(1)).is_some());
    }
}
