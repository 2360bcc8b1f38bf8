//! `people`: all users of the server.

use serde::Serialize;
use twinlock_client::PersonInfo;
use twinlock_client::directory::Role;

use crate::args::JsonArgs;
use crate::clock::rfc3339;
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
}

pub(crate) async fn run(args: JsonArgs, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let people = client.people(false).await?;
    client.close().await;
    let width = people.iter().map(|person| person.user.len()).max().unwrap_or(0);
    for person in &people {
        if args.json {
            context.out.json(&PersonJson {
                user: &person.user,
                role: role_word(person.role),
                online: person.online,
                since: rfc3339(person.created_ms),
            })?;
        } else {
            context.out.line(&line(context, person, width))?;
        }
    }
    Ok(())
}

fn line(context: &Context, person: &PersonInfo, width: usize) -> String {
    let user = format!("{:width$}", person.user);
    let online = if person.online { context.out.style(Style::Good, "online") } else { "-".into() };
    let role = match person.role {
        Role::Admin | Role::Owner => format!("  {}", role_word(person.role)),
        _ => String::new(),
    };
    format!("{user}  {online}{role}")
}
