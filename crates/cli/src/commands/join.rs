//! `join`: registers a user by an invite link, and enrols this machine as its device.

use std::io::Read as _;

use twinlock_client::directory::Role;
use twinlock_client::enrol::{self, LoggedIn, NewUser};
use twinlock_client::error::{ClientError, Refusal, RefusalReason};
use twinlock_core::id::Name;
use twinlock_core::invite::InviteLink;
use zeroize::Zeroizing;

use crate::args::JoinArgs;
use crate::ask;
use crate::connection_text::{tls_warning, warn_about_tls};
use crate::context::Context;
use crate::enrolment::{announce, ask_profile, profile_option, taken_profile, this_machine};
use crate::exit::Failure;
use crate::input::stdin;
use crate::output::words;

/// Longest link that is read from standard input, bytes.
const LINK: u64 = 4096;

pub(crate) async fn run(join: JoinArgs, context: &Context) -> Result<(), Failure> {
    let home = context.home()?;
    let mut profile = context.profile_name()?;
    let taken = taken_profile(context, &home, &profile)?;
    let text = if join.link == "-" { link_from_stdin()? } else { Zeroizing::new(join.link) };
    let mut link = InviteLink::parse(text.trim()).map_err(Failure::usage)?;
    if let Some(address) = context.global.reach(&link.address)? {
        link.address = address;
    }
    let route = context.global.route();
    let terms = enrol::look(&link, join.require_binding, &route).await.map_err(not_invited)?;
    if join.require_binding && tls_warning(terms.binding, None).is_some() {
        return Err(ClientError::TlsCut { issuer: terms.issuer }.into());
    }
    warn_about_tls(&context.out, terms.binding, terms.issuer.as_deref());
    let label = join.device.unwrap_or_else(this_machine);
    let mut asked = None;
    let joined = loop {
        let user = match (&join.user, &terms.user, asked.take()) {
            (Some(user), _, None) => user.clone(),
            (None, Some(user), None) => user.clone(),
            (_, _, again) => ask_name(again).await?,
        };
        if let Some(taken) = &taken
            && profile == *taken.name()
        {
            profile = ask_profile(&home, taken, &user).await?;
        }
        let password = if join.no_password {
            None
        } else if join.password.password_file.is_none()
            && !ask::is_set("TWINLOCK_PASSWORD")
            && !ask::can_ask()
        {
            return Err(Failure::usage("no terminal to ask for a password").hint(
                "--password-file FILE reads it from a file; --no-password goes without one \
                 (a script, or a device that may be lost)",
            ));
        } else {
            Some(
                ask::new_password(
                    join.password.password_file.as_deref(),
                    "TWINLOCK_PASSWORD",
                    &format!("A password for {user} (at least 8 characters): "),
                )
                .await?,
            )
        };
        let new = NewUser {
            user: user.clone(),
            label: label.clone(),
            password,
            require_binding: join.require_binding,
            route: context.global.route(),
        };
        match enrol::join(&home, &profile, &link, new).await {
            Err(ClientError::Refused(Refusal { why: RefusalReason::NameTaken, .. }))
                if join.user.is_none() && terms.user.is_none() && ask::can_ask() =>
            {
                asked = Some(user);
            }
            joined => break joined.map_err(not_invited)?,
        }
    };
    let LoggedIn { profile: joined, binding, issuer } = joined;
    // TLS may be intercepted since the look at the invite.
    if binding != terms.binding {
        warn_about_tls(&context.out, binding, issuer.as_deref());
    }
    announce(&joined, context);
    if matches!(terms.role, Role::Owner | Role::Admin) {
        context
            .out
            .say(&format!("Invite others: twinlock{} invite", profile_option(joined.name())));
    }
    Ok(())
}

/// Adds a hint: another person may have used the invite at any moment.
fn not_invited(error: ClientError) -> Failure {
    match error {
        ClientError::LoginRefused => {
            Failure::from(error).hint("an invite works once and expires; ask for a new one")
        }
        error => error.into(),
    }
}

async fn ask_name(taken: Option<Name>) -> Result<Name, Failure> {
    if let Some(taken) = &taken {
        words(&format!("The name {taken} is taken."));
    } else if !ask::can_ask() {
        return Err(Failure::usage("a user name is required: --user NAME"));
    }
    let here = std::env::var("USER").ok().map(|user| user.to_ascii_lowercase());
    let here = here.filter(|user| taken.is_none() && Name::new(user).is_ok());
    loop {
        let answer = ask::ask("Your name here", here.as_deref()).await?;
        match Name::new(&answer.to_ascii_lowercase()) {
            Ok(name) => return Ok(name),
            Err(problem) => words(&problem.to_string()),
        }
    }
}

pub(super) fn link_from_stdin() -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(LINK as usize));
    stdin()?
        .take(LINK)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("standard input: {error}")))?;
    Ok(text)
}
