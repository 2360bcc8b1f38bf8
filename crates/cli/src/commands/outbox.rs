//! `outbox`: messages that the server has not recorded.

use std::collections::HashSet;

use serde::Serialize;
use twinlock_client::error::{Refusal, RefusalReason};
use twinlock_client::outbox::Pending;
use twinlock_client::state::StateError;
use twinlock_core::id::MessageId;
use twinlock_core::text::Untrusted;

use crate::args::{JsonArgs, OutboxCommand};
use crate::blocking::blocking;
use crate::clock::{local_time, rfc3339};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::outbox_delivery::Delivery;
use crate::output::Style;

/// Fewest digits of an id that identify a message; fewer are probably a typing error.
const FEWEST_DIGITS: usize = 4;

#[derive(Debug, Serialize)]
struct MessageJson<'a> {
    id: String,
    state: &'static str,
    conversation: &'a str,
    time: String,
    text: String,
    /// Why the server refused it; null if it is queued.
    reason: Option<String>,
}

/// A message, and why the server refused it if it did.
struct OutboxMessage {
    message: Pending,
    why: Option<RefusalReason>,
}

pub(crate) async fn run(what: OutboxCommand, context: &Context) -> Result<(), Failure> {
    match what {
        OutboxCommand::List(json) => list(json, context).await,
        OutboxCommand::Drop { ids } => discard(&ids, context).await,
        OutboxCommand::Retry => retry(context).await,
    }
}

/// All messages, the queued ones first.
async fn messages(context: &Context) -> Result<Vec<OutboxMessage>, Failure> {
    let outbox = context.state()?.outbox();
    blocking(move || {
        let queued = outbox.pending(usize::MAX)?.into_iter();
        let refused = outbox.refused(usize::MAX)?.into_iter();
        let queued = queued.map(|message| OutboxMessage { message, why: None });
        let refused = refused.map(|no| OutboxMessage { message: no.message, why: Some(no.why) });
        Ok::<_, StateError>(queued.chain(refused).collect())
    })
    .await
}

async fn list(args: JsonArgs, context: &Context) -> Result<(), Failure> {
    let messages = messages(context).await?;
    for OutboxMessage { message, why } in &messages {
        let id = message.message_id.to_string();
        let text = Untrusted::from_bytes(&message.body);
        let state = if why.is_some() { "refused" } else { "queued" };
        let reason = why.map(|why| Refusal::from(why).to_string());
        if args.json {
            context.out.json(&MessageJson {
                id,
                state,
                conversation: &message.target,
                time: rfc3339(message.enqueued_ms),
                text: text.expose_raw().to_owned(),
                reason,
            })?;
            continue;
        }
        let (time, target) = (local_time(message.enqueued_ms), &message.target);
        let style = if why.is_some() { Style::Bad } else { Style::Dim };
        let head = format!("{id}  {state:7}  {time}  {target}: ");
        let reason = reason.map(|reason| format!("  ({reason})")).unwrap_or_default();
        let words = text.render_line() + &reason;
        let words = context.out.wrap(&words, head.len(), 4);
        let state = context.out.style(style, &format!("{state:7}"));
        context.out.line(&format!("{id}  {state}  {time}  {target}: {words}"))?;
    }
    if messages.is_empty() {
        context.out.say("the outbox is empty");
    }
    Ok(())
}

async fn discard(ids: &[String], context: &Context) -> Result<(), Failure> {
    let messages = messages(context).await?;
    let mut dropped: HashSet<MessageId> = HashSet::new();
    for wanted in ids {
        let wanted = wanted.to_ascii_lowercase();
        if wanted.len() < FEWEST_DIGITS {
            return Err(Failure::usage(format!(
                "at least {FEWEST_DIGITS} digits of the message's id; see `twinlock outbox list`"
            )));
        }
        let is_it = |id: &MessageId| {
            let id = id.to_string();
            id.starts_with(&wanted) || id.ends_with(&wanted)
        };
        let mut matching = messages.iter().map(|each| each.message.message_id).filter(is_it);
        let (first, second) = (matching.next(), matching.next());
        match (first, second) {
            (Some(id), None) => _ = dropped.insert(id),
            (None, _) | (_, Some(_)) => {
                let many = if first.is_some() { "several messages have" } else { "no message has" };
                return Err(Failure::new(
                    Exit::Usage,
                    format!("{many} an id with {wanted:?}; see `twinlock outbox list`"),
                ));
            }
        }
    }
    let outbox = context.state()?.outbox();
    let count = dropped.len();
    blocking(move || dropped.iter().try_for_each(|id| outbox.discard(id).map(|_| ()))).await?;
    let words = if count == 1 {
        "1 message is dropped".to_owned()
    } else {
        format!("{count} messages are dropped")
    };
    context.out.say(&words);
    Ok(())
}

async fn retry(context: &Context) -> Result<(), Failure> {
    let mut delivery = Delivery::open(context, String::new(), None)?;
    let queued = delivery.resend().await?;
    delivery.settle(None).await?;
    context.out.say(&match queued {
        0 => "the outbox is empty".to_owned(),
        1 => "1 message is recorded".to_owned(),
        queued => format!("{queued} messages are recorded"),
    });
    Ok(())
}
