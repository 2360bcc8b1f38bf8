//! Detects addresses shared by many users: a TCP pass-through without a PROXY header, or a large
//! NAT.
//!
//! A shared address does not identify a user, so it is never a known source (`guess`). Only
//! successful logins count, so an outsider cannot influence the result.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use twinlock_core::id::Name;

use super::SourcePrefix;

/// Recent logins that are considered; about 60 bytes each.
const LOGINS: usize = 256;
/// Users behind an address from which on it counts as shared. A household has fewer.
const SHARED_USERS: usize = 5;

/// The most recent logins: source and user.
#[derive(Debug, Default)]
pub(crate) struct Crowd(Mutex<VecDeque<(SourcePrefix, Name)>>);

impl Crowd {
    /// Counts a login of `user` from `source`.
    pub(crate) fn note(&self, source: SourcePrefix, user: &Name) {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.len() == LOGINS {
            logins.pop_front();
        }
        logins.push_back((source, user.clone()));
    }

    /// Whether more than half of the recent logins came from `source`, from many users.
    pub(crate) fn hides_many(&self, source: SourcePrefix) -> bool {
        let logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = || logins.iter().filter(|(from, _)| *from == source);
        here().count() > logins.len() / 2
            && here().map(|(_, user)| user).collect::<HashSet<_>>().len() >= SHARED_USERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> Name {
        Name::new(&format!("user{n}")).unwrap()
    }

    fn source(n: u8) -> SourcePrefix {
        SourcePrefix::of([192, 0, 2, n].into())
    }

    #[test]
    fn crowd__needs_majority_of_logins_and_many_users() {
        let crowd = Crowd::default();
        assert!(!crowd.hides_many(source(1)));
        // A household: most logins, few users.
        for n in 0..1000 {
            crowd.note(source(1), &name(n % (SHARED_USERS - 1)));
        }
        assert!(!crowd.hides_many(source(1)));
        crowd.note(source(1), &name(SHARED_USERS));
        assert!(crowd.hides_many(source(1)));
        assert!(!crowd.hides_many(source(2)));
        // Many users, but not most logins.
        for n in 0..LOGINS / 2 {
            crowd.note(source(2), &name(n));
        }
        assert!(!crowd.hides_many(source(1)));
        assert!(!crowd.hides_many(source(2)));
        crowd.note(source(2), &name(0));
        assert!(crowd.hides_many(source(2)));
        assert_eq!(crowd.0.lock().unwrap().len(), LOGINS);
    }
}
