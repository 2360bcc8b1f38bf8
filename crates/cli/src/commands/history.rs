//! `history`: reads the record, oldest first, and verifies its links.

use std::cell::Cell;

use twinlock_client::model::Entry;
use twinlock_client::{Client, ClientError};
use twinlock_core::id::ConversationId;

use crate::args::HistoryArgs;
use crate::context::Context;
use crate::entry::{EntryJson, get_it, numbered};
use crate::exit::Failure;
use crate::lookup::first_at;

/// Entries requested at once; the server returns as many as fit a frame.
const PAGE: u64 = 512;
const NOTHING_FOUND: &str = "nothing was found (the last word also matches as a prefix of a \
                             word from three letters on, a shorter one as a whole word)";
/// Number of unreadable entries after which reading stops.
const MOST_FAULTS: usize = 16;

pub(crate) async fn run(args: HistoryArgs, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let target = args.target.to_string();
    let conversation = client.target(&target).await?;
    let show = |entry: &Entry| -> Result<(), Failure> {
        if args.json {
            context.out.json(&EntryJson::new(&target, entry))?;
        } else {
            context.out.line(&numbered(&context.out, entry, &get_it(&target, entry)))?;
        }
        Ok(())
    };
    let read = async |after, limit| client.read(conversation.id, after, limit).await;
    let before = match args.before {
        Some(point) => Some(first_at(&read, conversation.head, point).await?),
        None => None,
    };
    let since = match args.since {
        Some(point) => first_at(&read, conversation.head, point).await?,
        None => 1,
    };
    match &args.search {
        Some(text) => {
            let range = (since, before.unwrap_or(0));
            let found = Cell::new(false);
            let show = |entry: &Entry| {
                found.set(true);
                show(entry)
            };
            let faults = search(&client, conversation.id, text, range, args.limit, show).await?;
            if !found.get() && faults.is_empty() {
                context.out.say(NOTHING_FOUND);
            }
            fails(context, faults)?;
        }
        None => {
            let mut faults = Vec::new();
            // The last `limit` numbers below `before`; with `since`, the first ones from there.
            let end = before.map_or(conversation.head, |n| (n - 1).min(conversation.head));
            let (mut after, end) = if args.since.is_some() {
                (
                    since.saturating_sub(1),
                    end.min(since.saturating_sub(1).saturating_add(args.limit)),
                )
            } else {
                (end.saturating_sub(args.limit), end)
            };
            if conversation.head == 0 {
                // Distinguishes an emptied record from one that was always empty.
                client.read(conversation.id, 0, 1).await?;
            }
            while after < end {
                let want = u32::try_from((end - after).min(PAGE)).unwrap_or(u32::MAX);
                let page = client.read_page(conversation.id, after, want).await?;
                if page.upto <= after {
                    let (conversation, n) = (conversation.id, after + 1);
                    return Err(ClientError::Missing { conversation, n }.into());
                }
                after = page.upto;
                page.entries.iter().filter(|entry| entry.n <= end).try_for_each(&show)?;
                faults.extend(page.faults);
                if faults.len() >= MOST_FAULTS {
                    break;
                }
            }
            fails(context, faults)?;
        }
    }
    client.close().await;
    Ok(())
}

/// Reports entries that cannot be shown; the command fails with the first of them.
fn fails(context: &Context, faults: Vec<ClientError>) -> Result<(), Failure> {
    let mut faults = faults.into_iter().map(Failure::from);
    let Some(first) = faults.next() else { return Ok(()) };
    faults.for_each(|fault| context.out.failure(&fault));
    Err(first)
}

/// Prints matches, newest first. `since` is the least number, `before` one past the greatest; 0 is
/// no bound.
async fn search(
    client: &Client,
    conversation: ConversationId,
    text: &str,
    (since, mut before): (u64, u64),
    mut left: u64,
    show: impl Fn(&Entry) -> Result<(), Failure>,
) -> Result<Vec<ClientError>, Failure> {
    let mut all_faults = Vec::new();
    if before == 1 {
        return Ok(all_faults);
    }
    while left > 0 && all_faults.len() < MOST_FAULTS {
        let want = u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX);
        let (found, faults) = client.search(conversation, text, before, want).await?;
        let bad = faults.iter().filter_map(|fault| match fault {
            ClientError::BadEntry { n, .. } => Some(*n),
            _ => None,
        });
        let Some(last) = found.iter().map(|entry| entry.n).chain(bad).min() else { break };
        before = last;
        all_faults.extend(faults);
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        for entry in found.iter().take(most).take_while(|entry| entry.n >= since) {
            show(entry)?;
            left -= 1;
        }
        if before <= since {
            break;
        }
    }
    Ok(all_faults)
}
