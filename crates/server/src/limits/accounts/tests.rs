//! Unit tests of the accounts.

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
    let accounts = AccountTable::new(&limits, indexed());
    let began = accounts.began;
    let account = Account::new(accounts.rates, accounts.unindexed, began);
    (account, began)
}

fn indexed() -> Unindexed {
    Unindexed(Arc::new(|| 0))
}

/// Writes while it may, at most `max` bytes, without any time passing.
fn write_all(account: &Account, now: Instant, max: u64) -> u64 {
    let mut written = 0;
    while written < max && account.text_wait(now).is_none() {
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
    let accounts = AccountTable::new(&Limits::default(), seen);
    let now = accounts.began;
    let user = |name: &str| accounts.of(&name.parse().unwrap());
    // Everything is indexed: only the burst counts.
    assert_eq!(write_all(&user("ada"), now, 8 * MIB), 8 * MIB);
    unindexed.store(UNINDEXED + 1, Ordering::Relaxed);
    assert_eq!(user("ada").text_wait(now), Some(CHECK_INTERVAL));
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
        let accounts = AccountTable::new(&limits, accounts.unindexed.clone());
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
    let over = OverQuota { max: 100, retry_after: Duration::from_secs(HOUR - 60) };
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
