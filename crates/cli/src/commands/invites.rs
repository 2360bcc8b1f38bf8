//! `invites`: lists the invites that this user may see, and revokes one.

use serde::Serialize;
use twinlock_client::ClientError;
use twinlock_client::directory::{InviteInfo, InviteState};
use twinlock_client::error::RefusalReason;
use twinlock_core::id::InviteId;

use crate::args::{InvitesAction, InvitesArgs};
use crate::clock::{local_time, now_ms, rfc3339};
use crate::context::Context;
use crate::conversation::role_word;
use crate::exit::{Exit, Failure};
use crate::output::Style;

#[derive(Debug, Serialize)]
struct InviteJson<'a> {
    invite: String,
    state: &'static str,
    role: &'static str,
    /// The only name that it is for.
    user: Option<&'a str>,
    made_by: Option<&'a str>,
    created: String,
    expires: String,
    used_by: Option<&'a str>,
}

pub(crate) async fn run(args: InvitesArgs, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let invites = client.invites().await?;
    match args.action {
        Some(InvitesAction::Revoke { id }) => {
            let id = find(&invites, &id)?;
            client.revoke_invite(&id).await.map_err(|error| match error {
                ClientError::Refused(no) if no.why == RefusalReason::AlreadyUsed => Failure::new(
                    Exit::ServerSaidNo,
                    format!(
                        "invite {id} was used before, or has expired: see `twinlock invites --all`"
                    ),
                ),
                error => error.into(),
            })?;
            context.out.say(&format!("invite {id} is revoked"));
        }
        None => {
            for invite in invites.iter().filter(|invite| args.all || word(invite) == UNUSED) {
                print(invite, args.json, context)?;
            }
        }
    }
    client.close().await;
    Ok(())
}

const UNUSED: &str = "unused";

/// The state of an invite by this machine's clock.
fn word(invite: &InviteInfo) -> &'static str {
    match invite.state {
        InviteState::Used => "used",
        InviteState::Revoked => "revoked",
        InviteState::Unused if invite.expires_ms <= now_ms() => "expired",
        InviteState::Unused => UNUSED,
    }
}

fn print(invite: &InviteInfo, json: bool, context: &Context) -> Result<(), Failure> {
    let some = |name: &'_ str| (!name.is_empty()).then(|| name.to_owned());
    let (user, made_by, used_by) =
        (some(&invite.user), some(&invite.made_by), some(&invite.used_by));
    if json {
        context.out.json(&InviteJson {
            invite: invite.id.to_string(),
            state: word(invite),
            role: role_word(invite.role),
            user: user.as_deref(),
            made_by: made_by.as_deref(),
            created: rfc3339(invite.created_ms),
            expires: rfc3339(invite.expires_ms),
            used_by: used_by.as_deref(),
        })?;
        return Ok(());
    }
    let state = match word(invite) {
        UNUSED => format!("until {}", local_time(invite.expires_ms)),
        word => word.to_owned(),
    };
    let state = match word(invite) {
        UNUSED => context.out.style(Style::Good, &format!("{state:STATE$}")),
        _ => format!("{state:STATE$}"),
    };
    let mut line = format!("{}  {state}  {}", invite.id, role_word(invite.role));
    for (word, name) in [("for", user), ("by", made_by), ("used by", used_by)] {
        if let Some(name) = name {
            line.push_str(&format!(", {word} {name}"));
        }
    }
    context.out.line(&line)?;
    Ok(())
}

/// Columns of an invite's state: "until", a date and a time.
const STATE: usize = 22;

/// The only invite whose id begins with `wanted`.
fn find(invites: &[InviteInfo], wanted: &str) -> Result<InviteId, Failure> {
    let wanted = wanted.to_ascii_lowercase();
    let matches = invites.iter().filter(|invite| invite.id.to_string().starts_with(&wanted));
    let matches: Vec<_> = matches.collect();
    match matches.as_slice() {
        [found] => Ok(found.id),
        [] => Err(Failure::new(
            Exit::ServerSaidNo,
            format!("no invite begins with {wanted:?}; see `twinlock invites`"),
        )),
        _ => Err(Failure::usage(format!("several invites begin with {wanted:?}"))),
    }
}
