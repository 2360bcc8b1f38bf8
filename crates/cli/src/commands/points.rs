//! Resolves a number, a time or `last` to an entry.

use twinlock_client::model::Entry;
use twinlock_client::record::Page;

use crate::args::Point;
use crate::exit::Failure;

/// Entries requested at once while searching for a file.
const PAGE: u32 = 512;

/// The number of the first entry at or after a point; one past the newest if there is none. `read`
/// returns entries after a number, up to a limit.
pub(super) async fn first_at(
    read: impl AsyncFn(u64, u32) -> Result<Page, Failure>,
    head: u64,
    point: Point,
) -> Result<u64, Failure> {
    match point {
        Point::Number(n) => Ok(n),
        Point::Last => Ok(head.max(1)),
        Point::Time(time_ms) => {
            // Binary search: times never decrease within a conversation.
            let (mut before, mut from) = (0, head.saturating_add(1));
            while before + 1 < from {
                let middle = before + (from - before) / 2;
                match read(middle - 1, 1).await?.entries.first() {
                    Some(entry) if entry.time_ms < time_ms => before = middle,
                    _ => from = middle,
                }
            }
            Ok(from)
        }
    }
}

/// The first file at or after a point; for `last`, the newest one.
pub(super) async fn file_at(
    read: impl AsyncFn(u64, u32) -> Result<Page, Failure>,
    head: u64,
    point: Point,
) -> Result<Option<u64>, Failure> {
    let is_file = |entry: &&Entry| entry.file.is_some();
    match point {
        Point::Number(n) => Ok(Some(n)),
        Point::Time(_) => {
            let mut after = first_at(&read, head, point).await?.saturating_sub(1);
            while after < head {
                let page = read(after, PAGE).await?;
                if let Some(found) = page.entries.iter().find(is_file) {
                    return Ok(Some(found.n));
                }
                let Some(last) = page.entries.last() else { break };
                after = last.n;
            }
            Ok(None)
        }
        Point::Last => {
            let mut end = head;
            while end > 0 {
                let after = end.saturating_sub(u64::from(PAGE));
                // The server may return fewer entries than requested.
                let (mut found, mut at) = (None, after);
                while at < end {
                    let want = u32::try_from(end - at).unwrap_or(PAGE);
                    let page = read(at, want).await?;
                    // An empty page below the head: the record is incomplete. Stop, or the requests
                    // for older pages would never end.
                    let Some(last) = page.entries.last() else { return Ok(None) };
                    at = last.n;
                    let newest = page.entries.iter().filter(|entry| entry.n <= end).rfind(is_file);
                    found = newest.map(|entry| entry.n).or(found);
                }
                if found.is_some() {
                    return Ok(found);
                }
                end = after;
            }
            Ok(None)
        }
    }
}
