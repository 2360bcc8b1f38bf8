//! Turns at something that only a few may use at once, fair by user.
//!
//! Users who wait take turns, whatever the number of their requests and connections: one who asks
//! for a thousand things makes another wait for one of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use twinlock_core::id::Name;

/// A queue for each user, served in turn.
#[derive(Debug, Clone)]
pub(crate) struct Fair(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: HashMap<Name, VecDeque<oneshot::Sender<Turn>>>,
    /// Users with somebody in `waiting`, the next first.
    users: VecDeque<Name>,
}

/// A turn, over when dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Fair>);

impl Fair {
    /// So many turns at once, at least one.
    pub(crate) fn new(at_once: usize) -> Self {
        let (waiting, users) = Default::default();
        Self(Arc::new(Mutex::new(State { free: at_once.max(1), waiting, users })))
    }

    /// Waits for a turn of this user's. Cancel-safe: a turn that comes too late is the next one's.
    pub(crate) async fn turn(&self, user: &Name) -> Turn {
        let mine = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (sender, mine) = oneshot::channel();
            state.add(user, sender);
            mine
        };
        // A sender is dropped only with the queue itself, which is kept here.
        mine.await.unwrap_or(Turn(None))
    }

    fn pass_on(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                match state.next() {
                    Some(next) => next,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // It has gone. Dropping its turn here would come back to this function.
                Err(mut turn) => turn.0 = None,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, user: &Name, sender: oneshot::Sender<Turn>) {
        let queue = self.waiting.entry(user.clone()).or_default();
        if queue.is_empty() {
            self.users.push_back(user.clone());
        }
        // Those that have gone are forgotten here, so that a user's queue has no more of them than
        // it has sessions.
        queue.retain(|waiting| !waiting.is_closed());
        queue.push_back(sender);
    }

    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        loop {
            let user = self.users.pop_front()?;
            let Some(queue) = self.waiting.get_mut(&user) else { continue };
            let next = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&user);
            } else {
                self.users.push_back(user);
            }
            if next.is_some() {
                return next;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(fair) = self.0.take() {
            fair.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn name(name: &str) -> Name {
        Name::new(name).unwrap()
    }

    #[test]
    fn fair_queue_alternates_between_users() {
        let fair = Fair::new(1);
        let (ada, bob) = (name("ada"), name("bob"));
        let mut held = fair.turn(&ada).now_or_never();
        let mut waiting: Vec<_> = [&ada, &ada, &ada, &bob, &bob]
            .into_iter()
            .map(|user| (user.clone(), Box::pin(fair.turn(user))))
            .collect();
        // In their queues.
        assert!(waiting.iter_mut().all(|(_, turn)| turn.as_mut().now_or_never().is_none()));
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(held.take());
            let at = waiting.iter_mut().position(|(_, turn)| {
                held = turn.as_mut().now_or_never();
                held.is_some()
            });
            let at = at.unwrap();
            order.push(waiting.remove(at).0.to_string());
        }
        assert_eq!(order, ["ada", "bob", "ada", "bob", "ada"]);
        drop(held);
        let state = fair.lock();
        assert!(state.free == 1 && state.waiting.is_empty() && state.users.is_empty());
    }

    #[test]
    fn fair_queue_passes_over_requests_that_have_gone() {
        let fair = Fair::new(2);
        let ada = name("ada");
        let held = [fair.turn(&ada).now_or_never(), fair.turn(&ada).now_or_never()];
        assert!(held.iter().all(Option::is_some));
        let mut gone = Box::pin(fair.turn(&ada));
        let mut late = Box::pin(fair.turn(&ada));
        let bob = name("bob");
        let mut stays = Box::pin(fair.turn(&bob));
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(late.as_mut().now_or_never().is_none());
        assert!(stays.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        // This one has its turn and goes before it knows.
        drop(late);
        assert!(stays.as_mut().now_or_never().is_some());
        drop(stays);
        assert_eq!(fair.lock().free, 2);
    }
}
