use std::time::Duration;

use super::pace::{MAX_WAIT, NAME_MAX_RUN, NAME_STEP};
use super::*;

const DAY: u64 = 24 * 60 * 60;

fn name(n: &str) -> Name {
    Name::new(n).unwrap()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn origin(n: u32) -> Option<SourcePrefix> {
    Some(SourcePrefix::of((0x0a00_0000 + n).to_be_bytes().into()))
}

/// A guess from an unknown source.
fn from(user: &Name, n: u32) -> Option<Guess<'_>> {
    Some(Guess { user, source: origin(n), known: false })
}

/// A guess where sources are not distinguished.
fn guess(user: &Name) -> Option<Guess<'_>> {
    Some(Guess { user, source: None, known: false })
}

/// Whether a guess is allowed; it is given back, like a right one.
fn may(guesses: &Guesses, guess: Option<Guess<'_>>, now: Instant) -> Result<(), Wait> {
    guesses.take(guess, None, now).map(|taken| guesses.give_back(taken))
}

/// Simulates a day of sources that retry every `pace` and guess as often as they may.
///
/// `look` runs after each round. Returns the number of guesses.
fn attack(
    guesses: &Guesses,
    user: &Name,
    sources: u32,
    pace: Duration,
    mut look: impl FnMut(Duration, Instant),
) -> u64 {
    let start = Instant::now();
    let (mut passed, mut got) = (Duration::ZERO, 0);
    while passed < seconds(DAY) {
        let now = start + passed;
        for n in 0..sources {
            // Which sources succeed varies from round to round.
            while guesses.take(from(user, 100 + n), None, now).is_ok() {
                got += 1;
            }
        }
        look(passed, now);
        passed += pace;
    }
    got
}

/// Guesses in a day of a client that retries every `pace` seconds, or after the required wait.
fn guesses_in_a_day(pace: Option<u64>) -> u64 {
    let guesses = Guesses::new(1_000_000);
    let (ada, start) = (name("ada"), Instant::now());
    let (mut now, mut allowed) = (start, 0);
    while now < start + seconds(DAY) {
        now += match guesses.take(guess(&ada), None, now) {
            Ok(_counted) => {
                allowed += 1;
                seconds(pace.unwrap_or(0))
            }
            Err(Wait(wait)) => seconds(pace.unwrap_or_else(|| u64::from(wait))),
        };
    }
    allowed
}

#[test]
fn guess__no_pace_exceeds_daily_maximum() {
    let impatient = guesses_in_a_day(None);
    assert!((96..=110).contains(&impatient), "{impatient}");
    for pace in [1, 29, 31, 59, 61, 151, 301, 601, 899, 901] {
        let paced = guesses_in_a_day(Some(pace));
        assert!(paced <= 110, "one every {pace} s: {paced}");
    }
}

#[test]
fn guess__wait_doubles_from_30_s_to_15_min() {
    let guesses = Guesses::new(1_000_000);
    let (ada, mut now) = (name("ada"), Instant::now());
    let mut waits = Vec::new();
    while waits.len() < 9 {
        if let Err(Wait(wait)) = guesses.take(guess(&ada), None, now) {
            waits.push(wait - 1);
            now += seconds(u64::from(wait) - 1);
        }
    }
    assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900, 900, 900]);
}

/// From one address: a retry every second, as in 468 tries in 8 minutes, or 100 HELLOs a day.
#[test]
fn guess__one_attacker_does_not_block_new_sources() {
    for pace in [seconds(1), seconds(864)] {
        let (guesses, ada) = (Guesses::new(1_000_000), name("ada"));
        let mut got = 0;
        let all = attack(&guesses, &ada, 1, pace, |passed, now| {
            // The user has a new address each time.
            let hers = 10_000 + u32::try_from(passed.as_secs()).unwrap();
            for _typed_wrong in 0..3 {
                assert_eq!(may(&guesses, from(&ada, hers), now), Ok(()), "after {passed:?}");
            }
            got += 1;
        });
        assert!(got >= 100 && all <= 110, "{got} looks, {all} guesses");
    }
}

#[test]
fn guess__attackers_do_not_block_known_source() {
    for sources in [1, 20, 1000] {
        let (guesses, ada) = (Guesses::new(1_000_000), name("ada"));
        let home = Some(Guess { user: &ada, source: origin(1), known: true });
        attack(&guesses, &ada, sources, seconds(300), |passed, now| {
            assert_eq!(may(&guesses, home, now), Ok(()), "{sources} sources, after {passed:?}");
        });
    }
}

#[test]
fn guess__many_sources_share_daily_maximum() {
    for sources in [2, 20, 1000] {
        let (guesses, ada) = (Guesses::new(1_000_000), name("ada"));
        let got = attack(&guesses, &ada, sources, seconds(60), |_, _| ());
        let max = u64::from(NAME_MAX_RUN) + DAY / NAME_STEP.as_secs();
        assert!(got <= max, "{sources} sources: {got} guesses, {max} at most");
    }
}

/// The arithmetic of docs/design/013-guessing.md: beyond the 10 that any guess may use, each of the
/// first three guesses of a source occupies the run for 7.5 minutes.
#[test]
fn guess__few_sources_delay_new_address_for_limited_time() {
    for (sources, held) in [(1, 0), (3, 0), (10, 150), (20, 375)] {
        let (guesses, ada) = (Guesses::new(1_000_000), name("ada"));
        let mut last = Duration::ZERO;
        attack(&guesses, &ada, sources, seconds(60), |passed, now| {
            if let Err(Wait(wait)) = may(&guesses, from(&ada, 1), now) {
                assert!(u64::from(wait) <= NAME_STEP.as_secs() + 1, "{wait}");
                last = passed;
            }
        });
        assert!(last <= seconds(held * 60), "{sources} sources: until {last:?}");
    }
}

#[test]
fn guess__wait_is_at_most_15_min() {
    let (guesses, ada, now) = (Guesses::new(1_000_000), name("ada"), Instant::now());
    for n in 0..100 {
        while guesses.take(from(&ada, n), None, now).is_ok() {}
        if let Err(Wait(wait)) = guesses.take(from(&ada, n), None, now) {
            assert!(u64::from(wait) <= MAX_WAIT.as_secs() + 1, "{wait}");
        }
    }
}

#[test]
fn guess__known_source_has_separate_run() {
    let (guesses, ada, now) = (Guesses::new(1_000_000), name("ada"), Instant::now());
    let home = Some(Guess { user: &ada, source: origin(1), known: true });
    for _ in 0..5 {
        guesses.take(home, None, now).map(drop).unwrap();
    }
    assert!(guesses.take(home, None, now).is_err());
    // None of these count for other sources.
    let others = (100..200).filter(|n| guesses.take(from(&ada, *n), None, now).is_ok());
    assert_eq!(others.count(), NAME_MAX_RUN as usize);
}

#[test]
fn guess__devices_are_counted_separately() {
    let (guesses, ada, now) = (Guesses::new(1_000_000), name("ada"), Instant::now());
    while guesses.take(guess(&ada), None, now).is_ok() {}
    let (laptop, phone) = (DeviceId([1; 16]), DeviceId([2; 16]));
    for _ in 0..100 {
        let taken = guesses.take_by_device(&laptop, now).unwrap();
        guesses.give_back_to_device(taken);
    }
    for _ in 0..5 {
        guesses.take_by_device(&laptop, now).map(drop).unwrap();
    }
    assert_eq!(guesses.take_by_device(&laptop, now).map(drop), Err(Wait(31)));
    assert!(guesses.take_by_device(&phone, now).is_ok());
}

#[test]
fn guess__generated_names_do_not_evict_guessed_name() {
    let guesses = Guesses::new(1_000_000);
    let (ada, now) = (name("ada"), Instant::now());
    while guesses.take(guess(&ada), None, now).is_ok() {}
    for n in 0..70_000 {
        let made_up = name(&format!("u{n}"));
        guesses.take(guess(&made_up), None, now).map(drop).unwrap();
    }
    assert!(guesses.take(guess(&ada), None, now).is_err());
}

#[test]
fn guess__success_and_other_names_are_not_charged() {
    let guesses = Guesses::new(1_000_000);
    let (ada, bob, now) = (name("ada"), name("bob"), Instant::now());
    for _ in 0..100 {
        may(&guesses, guess(&ada), now).unwrap();
    }
    for _ in 0..5 {
        guesses.take(guess(&bob), None, now).map(drop).unwrap();
    }
    assert!(guesses.take(guess(&bob), None, now).is_err());
    assert!(guesses.take(guess(&ada), None, now).is_ok());
}

#[test]
fn guess__address_rate_limit_without_name_adds_no_run() {
    let guesses = Guesses::new(20);
    let now = Instant::now();
    let origin = Some(SourcePrefix::of([192, 0, 2, 1].into()));
    for _ in 0..20 {
        guesses.take(None, origin, now).map(drop).unwrap();
    }
    assert_eq!(guesses.take(None, origin, now).map(drop), Err(Wait(4)));
    assert!(guesses.take(None, origin, now + seconds(4)).is_ok());
    assert!(guesses.names.lock().unwrap().is_empty());
    assert!(guesses.sources.lock().unwrap().is_empty());
}

#[test]
fn guess__quiet_day_restores_full_burst() {
    let guesses = Guesses::new(1_000_000);
    let ada = name("ada");
    let now = Instant::now();
    while guesses.take(guess(&ada), None, now).is_ok() {}
    let later = now + seconds(DAY);
    for _ in 0..5 {
        guesses.take(guess(&ada), None, later).map(drop).unwrap();
    }
    assert!(guesses.take(guess(&ada), None, later).is_err());
}

#[test]
fn guess__table_sizes_are_bounded() {
    let guesses = Guesses::new(20);
    let now = Instant::now();
    for n in 0..70_000 {
        let user = name(&format!("u{n}"));
        guesses.take(from(&user, n), None, now).map(drop).unwrap();
    }
    assert_eq!(guesses.names.lock().unwrap().len(), TABLE_SIZE.get());
    assert_eq!(guesses.sources.lock().unwrap().len(), TABLE_SIZE.get());
}
