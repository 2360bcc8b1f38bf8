//! Types and parsers for option values, in the spellings that people use.

use std::time::Duration;

use twinlock_client::InboxStart;
use twinlock_client::profile::MAX_LABEL;
use twinlock_client::target::lowercase_name;
use twinlock_client::transfer::SLOWEST;
use twinlock_client::via::{Via, ViaError, parse};
use twinlock_core::id::Name;
use twinlock_core::invite::Address;

use crate::settings::DEFAULT_PORT;

/// A proxy's URL, or `none`.
pub(crate) fn via(text: &str) -> Result<Via, ViaError> {
    if text == "none" { Ok(Via::Direct) } else { parse(text, None).map(Via::Proxy) }
}

/// Where `listen` starts.
pub(crate) fn inbox_start(text: &str) -> Result<InboxStart, String> {
    match text {
        "all" => Ok(InboxStart::All),
        "new" => Ok(InboxStart::New),
        n => n.parse().map(InboxStart::After).map_err(|_| "all, new or a number".to_owned()),
    }
}

/// A position in a conversation, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// The entry of this number, from 1.
    Number(u64),
    /// The first entry at or after this time, ms since 1970 UTC.
    Time(u64),
    /// The newest entry.
    Last,
}

impl std::str::FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "last" {
            return Ok(Self::Last);
        }
        let number = text.strip_prefix('#').unwrap_or(text).parse().ok();
        number
            .filter(|n| *n > 0)
            .map(Self::Number)
            .or_else(|| time(text, &jiff::ZonedDateTime::now()).map(Self::Time))
            .ok_or_else(|| {
                "an entry's number, `last`, or a time such as 09:30, 2026-11-30, \
                 '2026-11-30 09:30', 2026-11-30T09:30:00Z, or 2h for two hours ago"
                    .to_owned()
            })
    }
}

/// A point in time, ms since 1970 UTC: a timestamp, a local date or time of day, or an age before
/// `now`.
fn time(text: &str, now: &jiff::ZonedDateTime) -> Option<u64> {
    use jiff::Timestamp;
    use jiff::civil::{Date, DateTime, Time};
    let local =
        |civil: DateTime| Some(civil.to_zoned_datetime(now.time_zone().clone()).ok()?.timestamp());
    let exact = || text.parse::<Timestamp>().ok();
    // A date without a time also parses as a date-time.
    let date_time = || local(text.parse::<DateTime>().ok()?);
    let date = || local(text.parse::<Date>().ok()?.into());
    let hour = || local(now.date().to_datetime(text.parse::<Time>().ok()?));
    let ago = || now.timestamp().checked_sub(duration(text).ok()?).ok();
    // A time of day before a duration: both may begin with digits, but only one has a colon.
    let time = exact().or_else(date_time).or_else(date).or_else(hour).or_else(ago)?;
    u64::try_from(time.as_millisecond()).ok()
}

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// Longest duration, in seconds: a hundred years. A longer one could overflow when it is added to
/// the current time.
const LONGEST: u64 = 100 * 365 * DAY;

pub(super) fn label(text: &str) -> Result<String, String> {
    let label = text.trim();
    if label.is_empty() || label.len() > MAX_LABEL || label.chars().any(char::is_control) {
        return Err(format!("1 to {MAX_LABEL} bytes without control characters"));
    }
    Ok(label.to_owned())
}

/// Text that is not empty: a script's empty variable is neither a command nor a search term.
pub(super) fn text(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

pub(crate) fn address(text: &str) -> Result<Address, String> {
    Address::parse(text, Some(DEFAULT_PORT)).map_err(|_| "HOST[:PORT][/PATH]".to_owned())
}

pub(super) fn account(text: &str) -> Result<(Name, Address), String> {
    let (user, server) = text.split_once('@').ok_or("USER@HOST[:PORT]")?;
    let user = lowercase_name(user).map_err(|error| error.to_string())?;
    Ok((user, address(server)?))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
    let days = || text.strip_suffix('d')?.parse::<u64>().ok()?.checked_mul(DAY);
    let friendly = || text.parse::<jiff::SignedDuration>().ok();
    seconds
        .or_else(|| days().map(Duration::from_secs))
        .or_else(|| Duration::try_from(friendly()?).ok())
        .filter(|time| !time.is_zero() && time.as_secs() <= LONGEST)
        .ok_or_else(|| "a time such as 90s, 10m, 48h or 7d".to_owned())
}

/// Seconds, with an optional fraction.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<f64>().ok();
    // A measurement cannot outlast a session.
    seconds
        .filter(|seconds| (0.01..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "seconds such as 0.5 or 10, a day at most".to_owned())
}

/// Bytes: a number, with an optional fraction, and K, M or G for powers of 1024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let bytes = scaled(text).filter(|bytes| (1.0..=1e15).contains(bytes));
    bytes.map(|bytes| bytes as u64).ok_or_else(|| "bytes such as 500K, 64M or 1G".to_owned())
}

fn scaled(text: &str) -> Option<f64> {
    let text = text.strip_suffix(['b', 'B']).unwrap_or(text);
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1024.0),
        Some((at, 'm' | 'M')) => (text.get(..at), 1024.0 * 1024.0),
        Some((at, 'g' | 'G')) => (text.get(..at), 1024.0 * 1024.0 * 1024.0),
        _ => (Some(text), 1.0),
    };
    let number: f64 = number?.parse().ok()?;
    Some(number * unit)
}

/// Bytes a second: a number, with an optional fraction, and K, M or G for powers of 1024.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let words = || format!("bytes a second such as 500K, 2.5M or 1G, {} at least", "16K");
    let bytes = scaled(text).ok_or_else(words)?;
    // Neither close to zero nor faster than any connection.
    if !(SLOWEST as f64..=1e15).contains(&bytes) {
        return Err(words());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn args__clap_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn args__duration_has_units_and_range() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("48h"), Ok(Duration::from_secs(48 * 3600)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * DAY)));
        let longest = format!("{LONGEST}");
        assert!(std::time::Instant::now().checked_add(duration(&longest).unwrap()).is_some());
        for bad in ["", "0", "-5s", "soon", "0s", "0d", "18446744073709551615", "99999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn args__point_is_number_time_or_last() {
        let point = |text: &str| text.parse::<Point>();
        assert_eq!(point("12"), Ok(Point::Number(12)));
        assert_eq!(point("#12"), Ok(Point::Number(12)));
        assert_eq!(point("last"), Ok(Point::Last));
        let exact = Ok(Point::Time(1_795_622_400_000));
        assert_eq!(point("2026-11-25T16:00:00Z"), exact);
        assert_eq!(point("2026-11-25T17:00:00+01:00"), exact);
        let now = "2026-11-25T16:00:00[UTC]".parse::<jiff::ZonedDateTime>().unwrap();
        let hours = |text: &str| (1_795_622_400_000 - time(text, &now).unwrap()) / 3_600_000;
        assert_eq!(hours("2026-11-25 10:00"), 6);
        assert_eq!((hours("2026-11-25"), hours("09:00"), hours("2h"), hours("1d")), (16, 7, 2, 24));
        for bad in ["", "0", "-1", "#", "soon", "25:00", "2026-13-01", "-2h"] {
            assert!(point(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn args__rate_has_units_and_minimum() {
        for (text, bytes) in [
            ("16384", 16_384),
            ("16K", 16_384),
            ("500k", 512_000),
            ("2.5M", 2_621_440),
            ("1GB", 1 << 30),
        ] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for bad in ["", "K", "0", "15K", "-1M", "nan", "inf", "1e300", "1T", "fast"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn args__sizes_and_seconds_have_units() {
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("1.5k"), Ok(1536));
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("10s"), Ok(Duration::from_secs(10)));
        for bad in ["", "0", "-1", "nan", "inf", "1e300", "long"] {
            assert!(bytes(bad).is_err() && seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn args__account_port_has_a_default() {
        let (user, address) = account("Ada@example.org").unwrap();
        assert_eq!((user.as_str(), address.to_string()), ("ada", "example.org:8443".to_owned()));
        assert_eq!(account("ada@[::1]:9").unwrap().1.to_string(), "[::1]:9");
        assert!(account("example.org").is_err());
    }
}
