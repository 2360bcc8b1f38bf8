//! `join` and `login`: how this machine becomes somebody's device.

use std::io::Read as _;

use twinlock_client::enrol::{self, NewUser, Returning};
use twinlock_client::error::{ClientError, Refusal};
use twinlock_client::profile::{MAX_LABEL, Profile};
use twinlock_core::id::Name;
use twinlock_core::invite::{InviteLink, server_words};
use twinlock_core::proto::Why;
use zeroize::Zeroizing;

use crate::args::{Join, Login};
use crate::ask;
use crate::exit::Failure;
use crate::open::{Context, tls_warning, warn_about_tls};

/// Longest link that is read from standard input, bytes.
const LINK: u64 = 4096;

pub(crate) async fn join(join: Join, context: &Context) -> Result<(), Failure> {
    let home = context.home()?;
    let profile = context.profile_name()?;
    let text = if join.link == "-" { link_from_stdin()? } else { Zeroizing::new(join.link) };
    let mut link = InviteLink::parse(text.trim()).map_err(Failure::usage)?;
    if let Some(address) = &context.global.address {
        link.address = address.clone();
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
        let password = if join.no_password {
            None
        } else if join.password.password_file.is_none()
            && std::env::var_os("TWINLOCK_PASSWORD").is_none()
            && !ask::can_ask()
        {
            return Err(Failure::usage("there is no terminal to ask for a password").hint(
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
            Err(ClientError::Refused(Refusal { why: Why::NameTaken, .. }))
                if join.user.is_none() && terms.user.is_none() && ask::can_ask() =>
            {
                asked = Some(user);
            }
            joined => break joined.map_err(not_invited)?,
        }
    };
    said(&joined, context);
    Ok(())
}

/// Somebody else may use the invite at any moment.
fn not_invited(error: ClientError) -> Failure {
    match error {
        ClientError::LoginRefused => {
            Failure::from(error).hint("an invite works once and not for long; ask for a new one")
        }
        error => error.into(),
    }
}

pub(crate) async fn login(login: Login, context: &Context) -> Result<(), Failure> {
    let home = context.home()?;
    let profile = context.profile_name()?;
    let (user, address) = login.account;
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
    };
    let (profile, binding) = enrol::log_in(&home, &profile, returning).await?;
    warn_about_tls(&context.out, binding);
    said(&profile, context);
    context.out.say(
        "This server's key is known from now on. Read the words to its owner once, if you can.",
    );
    Ok(())
}

fn said(profile: &Profile, context: &Context) {
    context.out.say(&format!(
        "You are {} on {}. Server words: {}",
        profile.user(),
        profile.address(),
        server_words(profile.server_key()),
    ));
    let named = match profile.name().as_str() {
        twinlock_client::profile::DEFAULT => String::new(),
        name => format!(" --profile {name}"),
    };
    context.out.say(&format!("Say something: twinlock{named} chat"));
}

async fn ask_name(taken: Option<Name>) -> Result<Name, Failure> {
    if let Some(taken) = &taken {
        crate::output::words(&format!("The name {taken} is taken."));
    } else if !ask::can_ask() {
        return Err(Failure::usage("which name do you want? Say it with --user NAME"));
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
    std::io::stdin()
        .take(LINK)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("standard input: {error}")))?;
    Ok(text)
}

/// What this machine is called, for the list of devices.
fn this_machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut label: String = name.chars().filter(|c| !c.is_control()).collect();
    while label.len() > MAX_LABEL {
        label.pop();
    }
    if label.is_empty() { "device".to_owned() } else { label }
}
