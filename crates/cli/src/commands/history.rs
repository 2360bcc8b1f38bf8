//! `history`: reads the record, oldest first, with its links checked.

use twinlock_client::Client;
use twinlock_client::client::Entry;
use twinlock_core::id::ConversationId;

use crate::args::History;
use crate::entry::{EntryJson, get_it, human};
use crate::exit::Failure;
use crate::open::Context;

/// Entries asked for at once; the server gives as many as fit a frame.
const PAGE: u64 = 512;

pub(crate) async fn run(args: History, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let target = args.target.to_string();
    let conversation = client.target(&target).await?;
    let show = |entry: &Entry| -> Result<(), Failure> {
        if args.json {
            context.out.json(&EntryJson::new(&target, entry))?;
        } else {
            context.out.line(&human(&context.out, None, entry, &get_it(&target, entry)))?;
        }
        Ok(())
    };
    match &args.search {
        Some(text) => search(&client, conversation.id, text, &args, show).await?,
        None => {
            // Numbers below `before`, the last `limit` of them.
            let end = args.before.map_or(conversation.head, |n| (n - 1).min(conversation.head));
            let mut after = end.saturating_sub(args.limit);
            if end == 0 {
                // A record that was emptied is told from one that never had anything in it.
                client.read(conversation.id, 0, 1).await?;
            }
            while after < end {
                let want = u32::try_from((end - after).min(PAGE)).unwrap_or(u32::MAX);
                let page = client.read(conversation.id, after, want).await?;
                let Some(last) = page.entries.last() else { break };
                after = last.n;
                page.entries.iter().filter(|entry| entry.n <= end).try_for_each(&show)?;
            }
        }
    }
    client.close().await;
    Ok(())
}

async fn search(
    client: &Client,
    conversation: ConversationId,
    text: &str,
    args: &History,
    show: impl Fn(&Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut before = args.before.unwrap_or(0);
    let mut left = args.limit;
    while left > 0 {
        let want = u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX);
        let found = client.search(conversation, text, before, want).await?;
        let Some(last) = found.last() else { return Ok(()) };
        before = last.n;
        for entry in found.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            show(entry)?;
            left -= 1;
        }
        if before <= 1 {
            return Ok(());
        }
    }
    Ok(())
}
