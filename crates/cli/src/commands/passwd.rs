//! `passwd`: changes this user's password.

use crate::args::PasswdArgs;
use crate::ask;
use crate::context::{Context, is_shut_out};
use crate::exit::Failure;

pub(crate) async fn run(args: PasswdArgs, context: &Context) -> Result<(), Failure> {
    let profile = context.profile()?;
    let user = profile.user();
    let old = ask::password(
        args.password_file.as_deref(),
        "TWINLOCK_PASSWORD",
        &format!("Present password of {user}: "),
    )
    .await?;
    let new = ask::new_password(
        args.new_password_file.as_deref(),
        "TWINLOCK_NEW_PASSWORD",
        "New password: ",
    )
    .await?;
    let client = context.ask_once()?;
    // Send a request: a session over the limit only ends at its first one.
    match client.devices().await {
        Ok(_) => {
            client.prove_password(user, old).await?;
            client.set_password(user, new).await?;
            client.close().await;
        }
        Err(error) if is_shut_out(&error) => {
            let session = context.open_by_password(&profile, old).await?;
            session.set_password(&profile, new).await?;
        }
        Err(error) => return Err(error.into()),
    }
    context.out.say("the password is changed; devices stay enrolled");
    Ok(())
}
