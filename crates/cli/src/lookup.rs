//! Looks up entries: by number, by time, the newest, the next file.

use twinlock_client::model::{Entry, FileEntry};
use twinlock_client::record::Page;
use twinlock_client::{Client, ClientError};
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{ConversationId, Name, Sender};

use crate::args::Point;
use crate::exit::{Exit, Failure};

/// Entries requested at once while searching for a file.
const PAGE: u32 = 512;

/// The number of the first entry at or after a point; one past the newest if there is none. `read`
/// returns entries after a number, up to a limit.
pub(crate) async fn first_at(
    read: impl AsyncFn(u64, u32) -> Result<Page, ClientError>,
    head: u64,
    point: Point,
) -> Result<u64, ClientError> {
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
pub(crate) async fn file_at(
    read: impl AsyncFn(u64, u32) -> Result<Page, ClientError>,
    head: u64,
    point: Point,
) -> Result<Option<u64>, ClientError> {
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

/// Entry `n`, which has to be a file; `target` is its conversation on the command line.
pub(crate) async fn file_entry(
    client: &Client,
    conversation: ConversationId,
    n: u64,
    target: &str,
) -> Result<Entry, Failure> {
    let none = || {
        Failure::new(Exit::ServerSaidNo, format!("there is no entry {n} in {target}"))
            .hint("`twinlock history` shows what there is")
    };
    let page = client.until_answered(|| client.read(conversation, n - 1, 1)).await;
    let page = match page.map_err(Failure::from) {
        // The conversation ends before `n`.
        Err(failure) if failure.exit == Exit::ServerSaidNo => return Err(none()),
        page => page?,
    };
    let entry = page.entries.into_iter().next().filter(|entry| entry.n == n).ok_or_else(none)?;
    match (&entry.file, entry.kind) {
        (Some(FileEntry { .. }), _) => Ok(entry),
        (None, EntryKind::FILE) => {
            Err(Failure::new(Exit::ServerSaidNo, format!("the file of entry {n} was erased")))
        }
        (None, kind) => {
            let word = kind.word();
            Err(Failure::usage(format!("entry {n} of {target} is not a file (it is {word})")))
        }
    }
}

/// Whether this user sent the entry.
pub(crate) fn is_own(entry: &Entry, user: &Name) -> bool {
    entry.sender.as_ref().and_then(Sender::user) == Some(user)
}
