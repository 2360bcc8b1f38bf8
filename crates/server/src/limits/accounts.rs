//! Accounts: each user's rate and quota of text, and rate of changes.
//!
//! One account covers all sessions and classic keys of a user. It is in memory, so a restart
//! forgets it: a user may then write another day's quota.

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
const LOOK: Duration = Duration::from_millis(50);

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
pub(crate) struct Accounts {
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

/// The day's quota is exceeded; `again` is the time until part of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverQuota {
    pub(crate) most: u64,
    pub(crate) again: Duration,
}

impl Accounts {
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
        books.slow.wait(self.rates.slow, now).map(|wait| wait.min(LOOK))
    }

    /// Charges text that is about to be recorded.
    ///
    /// # Errors
    /// [`OverQuota`]; nothing is charged then.
    pub(crate) fn write(&self, bytes: u64, now: Instant) -> Result<(), OverQuota> {
        let mut books = self.lock();
        let most = self.rates.day;
        if most > 0 {
            let hour = now.saturating_duration_since(self.began).as_secs() / HOUR;
            books.turn_to(hour);
            let written = books.hours.iter().fold(0, |sum: u64, hour| sum.saturating_add(*hour));
            if written.saturating_add(bytes) > most {
                let end = self.began + Duration::from_secs((hour + 1).saturating_mul(HOUR));
                return Err(OverQuota { most, again: end.saturating_duration_since(now) });
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
    fn turn_to(&mut self, hour: u64) {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn account(text_rate: u64, text_per_day: u64, changes_per_minute: u32) -> (Account, Instant) {
        let limits = Limits {
            text_rate,
            text_burst: 8 * text_rate,
            text_per_day,
            changes_per_minute,
            ..Limits::default()
        };
        let accounts = Accounts::new(&limits, indexed());
        let began = accounts.began;
        let account = Account::new(accounts.rates, accounts.unindexed, began);
        (account, began)
    }

    fn indexed() -> Unindexed {
        Unindexed(Arc::new(|| 0))
    }

    /// Writes while it may, at most `most` bytes, without any time passing.
    fn write_all(account: &Account, now: Instant, most: u64) -> u64 {
        let mut written = 0;
        while written < most && account.text_wait(now).is_none() {
            account.write(1 << 10, now).unwrap();
            written += 1 << 10;
        }
        written
    }

    #[test]
    fn text__unindexed_backlog_delays_only_above_burst() {
        let unindexed = Arc::new(AtomicU64::new(0));
        let seen = unindexed.clone();
        let seen = Unindexed(Arc::new(move || seen.load(Ordering::Relaxed)));
        let accounts = Accounts::new(&Limits::default(), seen);
        let now = accounts.began;
        let user = |name: &str| accounts.of(&name.parse().unwrap());
        // Everything is indexed: only the burst counts.
        assert_eq!(write_all(&user("ada"), now, 8 * MIB), 8 * MIB);
        unindexed.store(UNINDEXED + 1, Ordering::Relaxed);
        assert_eq!(user("ada").text_wait(now), Some(LOOK));
        assert_eq!(write_all(&user("bob"), now, 8 * MIB), MIB);
        // Whatever the debt, it is paid after at most 4 s, and the burst is full after 8 s.
        let (nothing, burst) = (now + Duration::from_secs(4), now + Duration::from_secs(8));
        assert!(user("ada").text_wait(nothing).is_some());
        assert_eq!(write_all(&user("ada"), burst, 8 * MIB), MIB);
        // An up-to-date index delays no user.
        unindexed.store(UNINDEXED, Ordering::Relaxed);
        assert_eq!(user("bob").text_wait(now), None);
        // Without a rate there is no delay either.
        unindexed.store(u64::MAX, Ordering::Relaxed);
        for limits in [
            Limits { text_rate: 0, ..Limits::default() },
            Limits { text_rate_unindexed: 0, ..Limits::default() },
        ] {
            let accounts = Accounts::new(&limits, accounts.unindexed.clone());
            let account = accounts.of(&"ada".parse().unwrap());
            assert_eq!(write_all(&account, now, 16 * MIB), 16 * MIB);
        }
    }

    #[test]
    fn text__rate_limit_allows_burst_then_steady_rate() {
        let (account, began) = account(MIB, 0, 0);
        // A client that waits exactly as long as required.
        let (mut now, mut written) = (began, 0_u64);
        while now < began + Duration::from_secs(100) {
            match account.text_wait(now) {
                Some(wait) => now += wait,
                None => {
                    account.write(100_000, now).unwrap();
                    written += 100_000;
                }
            }
        }
        let expected = 108 * MIB;
        assert!(written.abs_diff(expected) <= 200_000, "{written} of {expected}");
        // A pause restores no more than the burst.
        now += Duration::from_secs(1000);
        let mut burst = 0;
        while account.text_wait(now).is_none() {
            account.write(MIB, now).unwrap();
            burst += MIB;
        }
        assert_eq!(burst, 8 * MIB);
        // The wait covers a debt.
        account.write(10 * MIB, now).unwrap();
        let wait = account.text_wait(now).unwrap();
        assert!(wait >= Duration::from_secs(10) && wait < Duration::from_secs(11), "{wait:?}");
    }

    #[test]
    fn text__quota_covers_rolling_day() {
        let (account, began) = account(0, 100, 0);
        let at = |hours: u64| began + Duration::from_secs(hours * HOUR + 60);
        account.write(60, at(0)).unwrap();
        account.write(40, at(5)).unwrap();
        let over = OverQuota { most: 100, again: Duration::from_secs(HOUR - 60) };
        assert_eq!(account.write(1, at(5)), Err(over));
        assert_eq!(account.write(1, at(23)), Err(over));
        // The first hour is a day old.
        account.write(60, at(24)).unwrap();
        assert_eq!(account.write(1, at(28)), Err(over));
        account.write(40, at(29)).unwrap();
        assert!(account.write(1, at(29)).is_err());
        account.give_back(10);
        account.write(10, at(29)).unwrap();
        assert!(account.write(1, at(29)).is_err());
        // Much later, the whole quota is free.
        account.write(100, at(1000)).unwrap();
        assert!(account.write(1, at(1000)).is_err());
    }

    #[test]
    fn text__zero_limits_disable_rate_and_quota() {
        let (account, now) = account(0, 0, 0);
        for _ in 0..100 {
            account.write(1 << 40, now).unwrap();
            assert_eq!(account.text_wait(now), None);
            assert_eq!(account.change(now), Ok(()));
        }
    }

    #[test]
    fn changes__rate_limit_returns_retry_delay() {
        let (account, began) = account(0, 0, 30);
        for _ in 0..30 {
            account.change(began).unwrap();
        }
        let wait = account.change(began).unwrap_err();
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");
        account.change(began + wait).unwrap();
        account.change(began + wait).unwrap_err();
    }
}
