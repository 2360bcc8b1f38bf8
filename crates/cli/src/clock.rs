//! The current time, and how times are written.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Milliseconds since 1970 UTC.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// RFC 3339 UTC with milliseconds.
pub(crate) fn rfc3339(time_ms: u64) -> String {
    timestamp(time_ms).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Local time for people: the time of day, and the date if it is not today.
pub(crate) fn local_time(time_ms: u64) -> String {
    let zone = TimeZone::system();
    let time = timestamp(time_ms).to_zoned_datetime(zone.clone());
    let today = Timestamp::now().to_zoned_datetime(zone).date();
    let form = if time.date() == today { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    time.strftime(form).to_string()
}

fn timestamp(time_ms: u64) -> Timestamp {
    let ms = i64::try_from(time_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp__is_utc_with_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_622_400_007), "2026-11-25T16:00:00.007Z");
        assert!(rfc3339(u64::MAX).starts_with("9999-"));
    }
}
