//! How many connections may be not yet logged in, in all and from one address.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Origin;

/// Counts places; a [`Place`] is held until login or end.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_per_origin: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_origin: HashMap<Origin, usize>,
}

/// A place at the gate, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Inner>,
    origin: Option<Origin>,
}

impl Gate {
    pub(crate) fn new(most: usize, most_per_origin: usize) -> Self {
        Self(Arc::new(Inner { most, most_per_origin, taken: Mutex::default() }))
    }

    /// A place, if there is one.
    pub(crate) fn enter(&self) -> Option<Place> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.0.most {
            return None;
        }
        taken.all += 1;
        Some(Place { gate: self.0.clone(), origin: None })
    }
}

impl Place {
    /// Whose place it is, once that is known. `false`: there are too many from there.
    pub(crate) fn comes_from(&mut self, origin: Origin) -> bool {
        let mut taken = self.gate.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = taken.by_origin.entry(origin).or_default();
        if *here >= self.gate.most_per_origin {
            return false;
        }
        *here += 1;
        self.origin = Some(origin);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.gate.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(origin) = self.origin
            && let Some(here) = taken.by_origin.get_mut(&origin)
        {
            *here = here.saturating_sub(1);
            if *here == 0 {
                taken.by_origin.remove(&origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_few_in_all_and_fewer_for_one_address_and_come_back() {
        let origin = |n: u8| Some(Origin::of([192, 0, 2, n].into()));
        let gate = Gate::new(5, 2);
        let enter = |from: Option<Origin>| {
            let mut place = gate.enter()?;
            from.is_none_or(|origin| place.comes_from(origin)).then_some(place)
        };
        let a = enter(origin(1));
        let b = enter(origin(1));
        assert!(a.is_some() && b.is_some());
        assert!(enter(origin(1)).is_none());
        let rest = [enter(origin(2)), enter(None), enter(None)];
        assert!(rest.iter().all(Option::is_some));
        assert!(enter(origin(3)).is_none());
        drop(a);
        assert!(enter(origin(1)).is_some());
        drop((b, rest));
        let taken = gate.0.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.by_origin.is_empty());
    }
}
