//! Accounts: each user's rate and quota of text, and rate of changes.
//!
//! One account covers all sessions and classic keys of a user. It is in memory, so a restart
//! forgets it: a user may then write another day's quota.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use twinlock_core::id::Name;

use crate::config::Limits;

/// Bytes charged for an entry besides its body: about the size of its row and indexes.
pub(crate) const ENTRY: u64 = 256;
/// Hours of the rolling day.
const HOURS: usize = 24;
const HOUR: u64 = 60 * 60;
const NANOS: u128 = 1_000_000_000;
/// Unindexed bytes, which every search has to scan, above which the slow text rate applies. They
/// cost a search 5 to 20 ms.
const UNINDEXED: u64 = 1 << 20;
/// Burst of the slow rate, in seconds of the rate.
const SLOW_BURST: u64 = 4;
/// Maximum wait before the index is checked again.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Size of the record's unindexed part, bytes.
#[derive(Clone)]
pub(crate) struct Unindexed(pub(crate) Arc<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for Unindexed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", (self.0)())
    }
}

/// The accounts of all users who have written.
#[derive(Debug)]
pub(crate) struct AccountTable {
    rates: Rates,
    unindexed: Unindexed,
    began: Instant,
    by_user: Mutex<HashMap<Name, Arc<Account>>>,
}

#[derive(Debug, Clone, Copy)]
struct Rates {
    text: Rate,
    /// Rate of text while a large part of the record is unindexed.
    slow: Rate,
    changes: Rate,
    /// Bytes of text in a rolling day; 0: unlimited.
    day: u64,
}

/// An amount per time, and a burst. An amount of 0: unlimited.
#[derive(Debug, Clone, Copy)]
struct Rate {
    amount: u64,
    seconds: u64,
    burst: u64,
}

/// The account of one user.
#[derive(Debug)]
pub(crate) struct Account {
    rates: Rates,
    unindexed: Unindexed,
    began: Instant,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    text: RateBucket,
    slow: RateBucket,
    changes: RateBucket,
    hours: [u64; HOURS],
    /// The hour of the newest element of `hours`, since the accounts began.
    hour: u64,
}

/// Token bucket of a rate; a negative amount is a debt.
#[derive(Debug)]
struct RateBucket {
    left: i64,
    at: Instant,
}

/// The day's quota is exceeded; `retry_after` is the time until part of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverQuota {
    pub(crate) max: u64,
    pub(crate) retry_after: Duration,
}

impl AccountTable {
    pub(crate) fn new(limits: &Limits, unindexed: Unindexed) -> Self {
        // A bucket without any burst would always be empty.
        let burst = limits.text_burst.max(1);
        let text = Rate { amount: limits.text_rate, seconds: 1, burst };
        let slow = if text.amount == 0 { 0 } else { limits.text_rate_unindexed };
        let slow = Rate { amount: slow, seconds: 1, burst: slow.saturating_mul(SLOW_BURST) };
        let changes = u64::from(limits.changes_per_minute);
        let changes = Rate { amount: changes, seconds: 60, burst: changes };
        let rates = Rates { text, slow, changes, day: limits.text_per_day };
        Self { rates, unindexed, began: Instant::now(), by_user: Mutex::default() }
    }

    pub(crate) fn of(&self, user: &Name) -> Arc<Account> {
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = by_user.get(user) {
            return account.clone();
        }
        let account = Arc::new(Account::new(self.rates, self.unindexed.clone(), self.began));
        by_user.insert(user.clone(), account.clone());
        account
    }
}

impl Account {
    fn new(rates: Rates, unindexed: Unindexed, began: Instant) -> Self {
        let full = |rate: Rate| RateBucket { left: signed(rate.burst), at: began };
        let (text, slow, changes) = (full(rates.text), full(rates.slow), full(rates.changes));
        let books = Books { text, slow, changes, hours: [0; HOURS], hour: 0 };
        Self { rates, unindexed, began, books: Mutex::new(books) }
    }

    /// Time until the server may read more text from this user; `None`: now. A user with a small
    /// recent volume never waits for the index.
    pub(crate) fn text_wait(&self, now: Instant) -> Option<Duration> {
        let mut books = self.lock();
        if let Some(wait) = books.text.wait(self.rates.text, now) {
            return Some(wait);
        }
        if (self.unindexed.0)() <= UNINDEXED {
            return None;
        }
        books.slow.wait(self.rates.slow, now).map(|wait| wait.min(CHECK_INTERVAL))
    }

    /// Charges text that is about to be recorded.
    ///
    /// # Errors
    /// [`OverQuota`]; nothing is charged then.
    pub(crate) fn write(&self, bytes: u64, now: Instant) -> Result<(), OverQuota> {
        let mut books = self.lock();
        let max = self.rates.day;
        if max > 0 {
            let hour = now.saturating_duration_since(self.began).as_secs() / HOUR;
            books.advance_to(hour);
            let written = books.hours.iter().fold(0, |sum: u64, hour| sum.saturating_add(*hour));
            if written.saturating_add(bytes) > max {
                let end = self.began + Duration::from_secs((hour + 1).saturating_mul(HOUR));
                return Err(OverQuota { max, retry_after: end.saturating_duration_since(now) });
            }
            books.change_hour(|written| written.saturating_add(bytes));
        }
        books.text.take(self.rates.text, bytes, now);
        books.slow.take(self.rates.slow, bytes, now);
        books.slow.forgive(self.rates.slow);
        Ok(())
    }

    /// Returns a charge to the quota, for text that was not recorded. The rate keeps it, because
    /// the text was read.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.lock().change_hour(|written| written.saturating_sub(bytes));
    }

    /// Counts a change of a room.
    ///
    /// # Errors
    /// The time to wait; nothing is counted then.
    pub(crate) fn change(&self, now: Instant) -> Result<(), Duration> {
        let mut books = self.lock();
        match books.changes.wait(self.rates.changes, now) {
            Some(wait) => Err(wait),
            None => {
                books.changes.take(self.rates.changes, 1, now);
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Clears the hours that are a day old.
    fn advance_to(&mut self, hour: u64) {
        let passed = hour.saturating_sub(self.hour).min(HOURS as u64);
        for back in 0..passed {
            if let Some(slot) = self.hours.get_mut(slot(hour - back)) {
                *slot = 0;
            }
        }
        self.hour = self.hour.max(hour);
    }

    fn change_hour(&mut self, change: impl FnOnce(u64) -> u64) {
        if let Some(written) = self.hours.get_mut(slot(self.hour)) {
            *written = change(*written);
        }
    }
}

fn slot(hour: u64) -> usize {
    usize::try_from(hour % HOURS as u64).unwrap_or_default()
}

impl RateBucket {
    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        let (amount, seconds) = (u128::from(rate.amount), u128::from(rate.seconds));
        let more = passed * amount / (seconds * NANOS);
        if more == 0 {
            return;
        }
        let full = signed(rate.burst);
        let left = self.left.saturating_add(i64::try_from(more).unwrap_or(i64::MAX));
        // A fraction of a unit is kept for the next refill.
        let used = more * seconds * NANOS / amount;
        self.at = match u64::try_from(used) {
            Ok(used) if left < full => self.at + Duration::from_nanos(used),
            _ => now,
        };
        self.left = left.min(full);
    }

    fn wait(&mut self, rate: Rate, now: Instant) -> Option<Duration> {
        if rate.amount == 0 {
            return None;
        }
        self.refill(rate, now);
        if self.left > 0 {
            return None;
        }
        let missing = u128::from(self.left.unsigned_abs()) + 1;
        let nanos = missing * u128::from(rate.seconds) * NANOS / u128::from(rate.amount);
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let since = now.saturating_duration_since(self.at);
        Some(wait.saturating_sub(since).max(Duration::from_millis(1)))
    }

    /// Limits a debt to one burst.
    fn forgive(&mut self, rate: Rate) {
        self.left = self.left.max(-signed(rate.burst));
    }

    fn take(&mut self, rate: Rate, amount: u64, now: Instant) {
        if rate.amount > 0 {
            self.refill(rate, now);
            self.left = self.left.saturating_sub(signed(amount));
        }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
