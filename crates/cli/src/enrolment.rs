//! What `join` and `login` share: the name of the new profile, the device's label, the first words.

use twinlock_client::connector::profile_address;
use twinlock_client::home::Home;
use twinlock_client::profile::{DEFAULT, MAX_LABEL, Profile, ProfileError};
use twinlock_core::id::Name;
use twinlock_core::invite::server_words;

use crate::ask;
use crate::context::Context;
use crate::exit::Failure;
use crate::output::words;

/// The existing profile of this name, if the user can be asked for another name. Checked first,
/// before the invite is sent to a server and a password is stretched.
pub(crate) fn taken_profile(
    context: &Context,
    home: &Home,
    name: &Name,
) -> Result<Option<Profile>, Failure> {
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
    let at = profile_address(known).map(|at| format!(" on {at}")).unwrap_or_default();
    Failure::usage(format!("a profile '{name}' exists already: {user}{at}"))
        .hint("--profile NAME makes a second one; later commands take it too")
}

/// Asks for the name of the new profile; the user's name is the default.
pub(crate) async fn ask_profile(
    home: &Home,
    taken: &Profile,
    user: &Name,
) -> Result<Name, Failure> {
    words(&format!("{}.", exists(taken).message));
    loop {
        let free =
            |name: &Name| matches!(Profile::load(home, name), Err(ProfileError::Missing { .. }));
        let default = free(user).then(|| user.as_str());
        let answer = ask::ask("Name of the new profile", default).await?;
        match Name::new(&answer.to_ascii_lowercase()) {
            Ok(name) if free(&name) => return Ok(name),
            Ok(name) => words(&format!("A profile '{name}' exists already.")),
            Err(problem) => words(&problem.to_string()),
        }
    }
}

/// Tells the user about the new profile, and how to start.
pub(crate) fn announce(profile: &Profile, context: &Context) {
    let at = profile_address(profile).map(|at| format!(" on {at}")).unwrap_or_default();
    let server_words = server_words(profile.server_key());
    context.out.say(&format!("You are {}{at}. Server words: {server_words}", profile.user()));
    context.out.say(&format!("Start a chat: twinlock{} chat", profile_option(profile.name())));
}

/// The option that selects a profile, if it is not the default one.
pub(crate) fn profile_option(profile: &Name) -> String {
    match profile.as_str() {
        DEFAULT => String::new(),
        name => format!(" --profile {name}"),
    }
}

/// This machine's name, for the list of devices.
pub(crate) fn this_machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut label: String = name.chars().filter(|c| !c.is_control()).collect();
    while label.len() > MAX_LABEL {
        label.pop();
    }
    if label.is_empty() { "device".to_owned() } else { label }
}
