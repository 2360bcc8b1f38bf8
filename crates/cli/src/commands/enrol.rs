//! `join` and `login`: enrol this machine as a user's device.

use std::io::Read as _;

use twinlock_client::enrol::{self, NewUser, Returning};
use twinlock_client::error::{ClientError, Refusal};
use twinlock_client::home::Home;
use twinlock_client::profile::{DEFAULT, MAX_LABEL, Profile, ProfileError};
use twinlock_core::id::Name;
use twinlock_core::invite::{InviteLink, server_words};
use twinlock_core::proto::{RefusalReason, Role};
use zeroize::Zeroizing;

use crate::args::{Join, Login};
use crate::ask;
use crate::connection_text::{tls_warning, warn_about_tls};
use crate::context::{Context, address_of};
use crate::exit::Failure;
use crate::input::stdin;

/// Longest link that is read from standard input, bytes.
const LINK: u64 = 4096;

pub(crate) async fn join(join: Join, context: &Context) -> Result<(), Failure> {
    let home = context.home()?;
    let mut profile = context.profile_name()?;
    let taken = taken_profile(context, &home, &profile)?;
    let text = if join.link == "-" { link_from_stdin()? } else { Zeroizing::new(join.link) };
    let mut link = InviteLink::parse(text.trim()).map_err(Failure::usage)?;
    if let Some(address) = context.global.reach(&link.address)? {
        link.address = address;
    }
    let terms = enrol::look(&link).await.map_err(not_invited)?;
    if join.require_binding && tls_warning(terms.binding).is_some() {
        return Err(ClientError::TlsCut.into());
    }
    warn_about_tls(&context.out, terms.binding);
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
    said(&joined, context);
    if matches!(terms.role, Role::Owner | Role::Admin) {
        context.out.say(&format!("Invite others: twinlock{} invite", named(joined.name())));
    }
    Ok(())
}

/// The existing profile of this name, if the user can be asked for another name. Checked first,
/// before the invite is sent to a server and a password is stretched.
fn taken_profile(context: &Context, home: &Home, name: &Name) -> Result<Option<Profile>, Failure> {
    let known = match Profile::load(home, name) {
        Err(ProfileError::Missing { .. }) => return Ok(None),
        known => known?,
    };
    if context.global.profile.is_none() && name.as_str() == DEFAULT && ask::can_ask() {
        return Ok(Some(known));
    }
    Err(exists(&known))
}

fn exists(known: &Profile) -> Failure {
    let (name, user) = (known.name(), known.user());
    let at = address_of(known).map(|at| format!(" on {at}")).unwrap_or_default();
    Failure::usage(format!("a profile '{name}' exists already: {user}{at}"))
        .hint("--profile NAME makes a second one; later commands take it too")
}

/// Asks for the name of the new profile; the user's name is the default.
async fn ask_profile(home: &Home, taken: &Profile, user: &Name) -> Result<Name, Failure> {
    crate::output::words(&format!("{}.", exists(taken).message));
    loop {
        let free =
            |name: &Name| matches!(Profile::load(home, name), Err(ProfileError::Missing { .. }));
        let default = free(user).then(|| user.as_str());
        let answer = ask::ask("Name of the new profile", default).await?;
        match Name::new(&answer.to_ascii_lowercase()) {
            Ok(name) if free(&name) => return Ok(name),
            Ok(name) => crate::output::words(&format!("A profile '{name}' exists already.")),
            Err(problem) => crate::output::words(&problem.to_string()),
        }
    }
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

pub(crate) async fn login(login: Login, context: &Context) -> Result<(), Failure> {
    let home = context.home()?;
    let mut profile = context.profile_name()?;
    let (user, named) = login.account;
    let address = context.global.reach(&named)?.unwrap_or(named);
    // `log_in` replaces the profile of the same user on the same host.
    let again = |known: &Profile| *known.user() == user && known.host() == address.bare_host();
    if !Profile::load(&home, &profile).is_ok_and(|known| again(&known))
        && let Some(taken) = taken_profile(context, &home, &profile)?
    {
        profile = ask_profile(&home, &taken, &user).await?;
    }
    let password = ask::password(
        login.password.password_file.as_deref(),
        "TWINLOCK_PASSWORD",
        &format!("Password of {user}: "),
    )
    .await?;
    let returning = Returning {
        address,
        user,
        password,
        label: login.device.unwrap_or_else(this_machine),
        ca_file: login.ca.map(std::path::absolute).transpose().map_err(Failure::usage)?,
        behind_proxy: login.behind_proxy,
        require_binding: login.require_binding,
    };
    let (profile, binding) = enrol::log_in(&home, &profile, returning).await?;
    warn_about_tls(&context.out, binding);
    said(&profile, context);
    context.out.say(
        "This profile now pins the server's key. Compare the words with its owner once, if you can.",
    );
    Ok(())
}

fn said(profile: &Profile, context: &Context) {
    let at = address_of(profile).map(|at| format!(" on {at}")).unwrap_or_default();
    let words = server_words(profile.server_key());
    context.out.say(&format!("You are {}{at}. Server words: {words}", profile.user()));
    context.out.say(&format!("Start a chat: twinlock{} chat", named(profile.name())));
}

/// The option that selects a profile, if it is not the default one.
fn named(profile: &Name) -> String {
    match profile.as_str() {
        DEFAULT => String::new(),
        name => format!(" --profile {name}"),
    }
}

async fn ask_name(taken: Option<Name>) -> Result<Name, Failure> {
    if let Some(taken) = &taken {
        crate::output::words(&format!("The name {taken} is taken."));
    } else if !ask::can_ask() {
        return Err(Failure::usage("a user name is required: --user NAME"));
    }
    let here = std::env::var("USER").ok().map(|user| user.to_ascii_lowercase());
    let here = here.filter(|user| taken.is_none() && Name::new(user).is_ok());
    loop {
        let answer = ask::ask("Your name here", here.as_deref()).await?;
        match Name::new(&answer.to_ascii_lowercase()) {
            Ok(name) => return Ok(name),
            Err(problem) => crate::output::words(&problem.to_string()),
        }
    }
}

fn link_from_stdin() -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(LINK as usize));
    stdin()?
        .take(LINK)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("standard input: {error}")))?;
    Ok(text)
}

/// This machine's name, for the list of devices.
fn this_machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut label: String = name.chars().filter(|c| !c.is_control()).collect();
    while label.len() > MAX_LABEL {
        label.pop();
    }
    if label.is_empty() { "device".to_owned() } else { label }
}
