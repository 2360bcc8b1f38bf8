//! `login`: enrols this machine as a device of a user who has a password.

use twinlock_client::enrol::{self, LoggedIn, Returning};
use twinlock_client::profile::Profile;

use crate::args::LoginArgs;
use crate::ask;
use crate::connection_text::warn_about_tls;
use crate::context::Context;
use crate::enrolment::{announce, ask_profile, taken_profile, this_machine};
use crate::exit::Failure;

pub(crate) async fn run(login: LoginArgs, context: &Context) -> Result<(), Failure> {
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
        route: context.global.route(),
    };
    let LoggedIn { profile, binding, issuer } = enrol::log_in(&home, &profile, returning).await?;
    warn_about_tls(&context.out, binding, issuer.as_deref());
    announce(&profile, context);
    context.out.say(
        "This profile now pins the server's key. Compare the words with its owner once, if you can.",
    );
    Ok(())
}
