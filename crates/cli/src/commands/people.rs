//! `people`: lists the users of the server, and manages them.

use serde::Serialize;
use twinlock_client::directory::Role;
use twinlock_client::{Client, PersonInfo};
use twinlock_core::id::Name;

use crate::args::{PasswordArgs, PeopleAction, PeopleArgs};
use crate::ask;
use crate::clock::rfc3339;
use crate::commands::devices;
use crate::context::Context;
use crate::conversation::role_word;
use crate::exit::Failure;
use crate::output::Style;

#[derive(Debug, Serialize)]
struct PersonJson<'a> {
    user: &'a str,
    role: &'static str,
    online: bool,
    since: String,
    suspended: bool,
}

pub(crate) async fn run(args: PeopleArgs, context: &Context) -> Result<(), Failure> {
    if let Some(PeopleAction::Remove { user, yes, password }) = &args.action {
        return remove(user, *yes, password, context).await;
    }
    let client = context.ask_once()?;
    match args.action {
        None => list(&client, args.json, context).await?,
        Some(PeopleAction::Role { user, role }) => {
            let role = role.into();
            client.set_role(&user, role).await?;
            context.out.say(&format!("the role of {user} is {}", role_word(role)));
        }
        Some(PeopleAction::Devices { user, json }) => {
            devices::list(&client.devices_of(&user).await?, json, context)?;
        }
        Some(PeopleAction::Suspend { user }) => {
            client.suspend_person(&user).await?;
            context.out.say(&format!(
                "{user} is suspended: all sessions have ended, and `twinlock people restore {user}` \
                 ends it"
            ));
        }
        Some(PeopleAction::Restore { user }) => {
            client.restore_person(&user).await?;
            context.out.say(&format!("{user} can log in"));
        }
        // Handled above: it may need a password before the connection.
        Some(PeopleAction::Remove { .. }) => {}
    }
    client.close().await;
    Ok(())
}

async fn list(client: &Client, json: bool, context: &Context) -> Result<(), Failure> {
    let people = client.people(false).await?;
    let width = people.iter().map(|person| person.user.len()).max().unwrap_or(0);
    for person in &people {
        if json {
            context.out.json(&PersonJson {
                user: &person.user,
                role: role_word(person.role),
                online: person.online,
                since: rfc3339(person.created_ms),
                suspended: person.suspended,
            })?;
        } else {
            context.out.line(&line(context, person, width))?;
        }
    }
    Ok(())
}

fn line(context: &Context, person: &PersonInfo, width: usize) -> String {
    let user = format!("{:width$}", person.user);
    let state = match (person.suspended, person.online) {
        (true, _) => context.out.style(Style::Warning, "suspended"),
        (false, true) => context.out.style(Style::Good, "online"),
        (false, false) => "-".into(),
    };
    let role = match person.role {
        Role::Admin | Role::Owner => format!("  {}", role_word(person.role)),
        _ => String::new(),
    };
    format!("{user}  {state}{role}")
}

/// Removes a person, or this profile's own account.
async fn remove(
    user: &Name,
    yes: bool,
    password: &PasswordArgs,
    context: &Context,
) -> Result<(), Failure> {
    let profile = context.profile()?;
    let is_self = user == profile.user();
    if !yes {
        confirm(user, is_self).await?;
    }
    let client = context.ask_once()?;
    if is_self && client.facts().await?.up.server.password {
        let question = format!("Password of {user}: ");
        let file = password.password_file.as_deref();
        let password = ask::password(file, "TWINLOCK_PASSWORD", &question).await?;
        client.prove_password(user, password).await?;
    }
    client.remove_person(user).await?;
    client.close().await;
    context.out.say(&match is_self {
        true => format!("your account {user} is removed, and this profile is of no use any more"),
        false => format!("{user} is removed: sessions, devices, keys and invites have ended"),
    });
    Ok(())
}

/// Wants the name typed on a terminal, because a removal cannot be undone.
async fn confirm(user: &Name, is_self: bool) -> Result<(), Failure> {
    if !ask::can_ask() {
        return Err(Failure::usage(format!(
            "removing {user} cannot be undone; without a terminal, --yes has to be given"
        )));
    }
    let whose = if is_self { "your own account" } else { "the account" };
    let question = format!("Remove {whose} {user} for good? Type the name to go on");
    if ask::ask(&question, None).await? == user.as_str() {
        Ok(())
    } else {
        Err(Failure::usage("not removed"))
    }
}
