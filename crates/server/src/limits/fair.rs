//! Turns at a resource that only a few may use at once, granted fairly among users.
//!
//! Waiting users take turns, whatever the number of their requests and connections: a user with a
//! thousand requests makes another wait for one of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use twinlock_core::id::Name;

/// Waiting requests, one queue for each user, served in turn.
#[derive(Debug, Clone)]
pub(crate) struct Fair(Arc<Mutex<FairState>>);

#[derive(Debug)]
struct FairState {
    free: usize,
    waiting: HashMap<Name, VecDeque<oneshot::Sender<FairTurn>>>,
    /// Users with requests in `waiting`, the next one first.
    users: VecDeque<Name>,
}

/// A turn, which ends when it is dropped.
#[derive(Debug)]
pub(crate) struct FairTurn(Option<Fair>);

impl Fair {
    /// Allows `at_once` turns at the same time, at least one.
    pub(crate) fn new(at_once: usize) -> Self {
        let (waiting, users) = Default::default();
        Self(Arc::new(Mutex::new(FairState { free: at_once.max(1), waiting, users })))
    }

    /// Waits for a turn of this user. Cancel-safe: a turn that arrives too late passes to the next
    /// request.
    pub(crate) async fn turn(&self, user: &Name) -> FairTurn {
        let mine = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return FairTurn(Some(self.clone()));
            }
            let (sender, mine) = oneshot::channel();
            state.add(user, sender);
            mine
        };
        // The sender is dropped only with the queue, which `self` keeps alive.
        mine.await.unwrap_or(FairTurn(None))
    }

    /// Runs `work` in a task on `runtime` when it is this user's turn.
    ///
    /// The turn lasts until `work` has ended, because `work` may be on a thread that cannot be
    /// stopped. Dropping this future before the turn drops `work`; afterwards it drops only the
    /// output.
    ///
    /// # Errors
    /// [`JoinError`] if `work` panics or the runtime stops.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        runtime: &Handle,
        user: &Name,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = self.turn(user).await;
        let task = async move {
            let output = work.await;
            drop(turn);
            output
        };
        runtime.spawn(task).await
    }

    /// Number of requests that wait for a turn.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let open = |queue: &VecDeque<oneshot::Sender<FairTurn>>| {
            queue.iter().filter(|waiting| !waiting.is_closed()).count()
        };
        self.lock().waiting.values().map(open).sum()
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
            match next.send(FairTurn(Some(self.clone()))) {
                Ok(()) => return,
                // The request is gone. Dropping its turn here would recurse into this function.
                Err(mut turn) => turn.0 = None,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, FairState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FairState {
    fn add(&mut self, user: &Name, sender: oneshot::Sender<FairTurn>) {
        let queue = self.waiting.entry(user.clone()).or_default();
        if queue.is_empty() {
            self.users.push_back(user.clone());
        }
        // Removes cancelled requests. Only at powers of two, so that a long queue is not scanned
        // for each request that joins it.
        if queue.len().is_power_of_two() {
            queue.retain(|waiting| !waiting.is_closed());
        }
        queue.push_back(sender);
    }

    fn next(&mut self) -> Option<oneshot::Sender<FairTurn>> {
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

impl Drop for FairTurn {
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
    fn fair_turns__alternate_between_users() {
        let fair = Fair::new(1);
        let (ada, bob) = (name("ada"), name("bob"));
        let mut held = fair.turn(&ada).now_or_never();
        let mut waiting: Vec<_> = [&ada, &ada, &ada, &bob, &bob]
            .into_iter()
            .map(|user| (user.clone(), Box::pin(fair.turn(user))))
            .collect();
        // All are queued.
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
    fn fair_turns__cancelled_requests_are_skipped() {
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
        // This one has its turn, and is dropped before it learns of it.
        drop(late);
        assert!(stays.as_mut().now_or_never().is_some());
        drop(stays);
        assert_eq!(fair.lock().free, 2);
    }

    #[tokio::test]
    async fn fair_turns__kept_until_work_of_dropped_caller_ends() {
        let fair = Fair::new(1);
        let (ada, bob) = (name("ada"), name("bob"));
        let runtime = Handle::current();
        let (begun, has_begun) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let mut first = Box::pin(fair.run(&runtime, &ada, async move {
            begun.send(()).unwrap();
            ended.await.unwrap();
        }));
        assert!((&mut first).now_or_never().is_none());
        has_begun.await.unwrap();
        drop(first);
        let mut next = Box::pin(fair.run(&runtime, &bob, async { 7 }));
        assert!((&mut next).now_or_never().is_none());
        assert_eq!(fair.waiting(), 1);
        assert_eq!(fair.lock().free, 0);
        end.send(()).unwrap();
        assert_eq!(next.await.unwrap(), 7);
        // Dropped before its turn: the work never starts.
        let held = fair.turn(&ada).await;
        let (begun, has_begun) = oneshot::channel();
        let late = async move { begun.send(()).unwrap() };
        let mut late = Box::pin(fair.run(&runtime, &bob, late));
        assert!((&mut late).now_or_never().is_none());
        drop(late);
        drop(held);
        assert!(has_begun.await.is_err());
        assert_eq!(fair.lock().free, 1);
    }

    #[test]
    fn fair_turns__cancelled_requests_do_not_accumulate() {
        let fair = Fair::new(1);
        let ada = name("ada");
        let _held = fair.turn(&ada).now_or_never();
        let mut stays = Box::pin(fair.turn(&ada));
        assert!(stays.as_mut().now_or_never().is_none());
        for _ in 0..1000 {
            assert!(fair.turn(&ada).now_or_never().is_none());
            assert!(fair.lock().waiting[&ada].len() <= 4);
        }
        assert_eq!(fair.waiting(), 1);
    }
}
