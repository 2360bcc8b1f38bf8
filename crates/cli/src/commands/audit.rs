//! `audit verify`: reads the whole record again and checks every link.

use serde::Serialize;
use twinlock_client::audit::{self, Audited};

use crate::args::JsonArgs;
use crate::blocking::blocking;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style};

#[derive(Debug, Serialize)]
struct AuditJson {
    conversation: String,
    entries: u64,
    receipts: u64,
    ok: bool,
    /// The first entry that does not match its link or a receipt.
    broken_at: Option<u64>,
    problem: Option<String>,
}

pub(crate) async fn run(args: JsonArgs, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let conversations = client.conversations(false).await?;
    let mine: Vec<u64> = conversations.iter().map(|c| c.id).collect();
    let mut broken = 0;
    for conversation in conversations {
        let audited = audit::audit(&client, conversation).await?;
        broken += u32::from(audited.fault.is_some());
        show(&context.out, args.json, &audited)?;
    }
    let receipts = client.state().receipts();
    let missing = blocking(move || audit::unexplained(&receipts, &mine)).await?;
    client.close().await;
    for conversation in missing {
        broken += 1;
        show_missing(&context.out, args.json, conversation)?;
    }
    if broken > 0 {
        return Err(Failure::new(Exit::Mismatch, "the record was changed").hint(
            "keep this profile unchanged: its receipts are the evidence. Ask the server's owner \
             what happened, and compare with others",
        ));
    }
    context.out.say("every link matches");
    Ok(())
}

/// Reports a conversation that has receipts in this profile but that the server no longer shows,
/// and that this profile did not leave. Another device may have left it, or the server has removed
/// it.
fn show_missing(out: &Output, json: bool, conversation: u64) -> Result<(), Failure> {
    let name = format!("conversation {conversation}");
    let problem = "it cannot be read any more, and this profile did not leave it; if you left it \
                   from another device, join it again to check it";
    if json {
        out.json(&AuditJson {
            conversation: name,
            entries: 0,
            receipts: 0,
            ok: false,
            broken_at: None,
            problem: Some(problem.to_owned()),
        })?;
    } else {
        out.line(&format!("{name}: {} {problem}", out.style(Style::Bad, "MISSING")))?;
    }
    Ok(())
}

fn show(out: &Output, json: bool, audited: &Audited) -> Result<(), Failure> {
    let conversation = audited.conversation.target();
    let Audited { entries, receipts, fault, .. } = audited;
    if json {
        out.json(&AuditJson {
            conversation,
            entries: *entries,
            receipts: *receipts,
            ok: fault.is_none(),
            broken_at: audited.broken_at(),
            problem: fault.as_ref().map(ToString::to_string),
        })?;
    } else {
        let verdict = match fault {
            None => out.style(Style::Good, "ok"),
            Some(fault) => format!("{} {fault}", out.style(Style::Bad, "BROKEN")),
        };
        out.line(&format!(
            "{conversation}: {entries} entries, {receipts} receipts of yours: {verdict}"
        ))?;
    }
    Ok(())
}
