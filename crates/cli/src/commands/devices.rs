//! `devices`: lists this user's devices, and revokes one, or one of another person.

use serde::Serialize;
use twinlock_client::ClientError;
use twinlock_client::directory::DeviceInfo;
use twinlock_core::id::{DeviceId, Name};

use crate::args::{DeviceAction, DevicesArgs, PasswordArgs};
use crate::ask;
use crate::clock::{local_time, rfc3339};
use crate::context::{Context, is_shut_out};
use crate::exit::{Exit, Failure};
use crate::output::Style;

/// Columns of a device's state: "seen", a date and a time.
const STATE: usize = 21;

#[derive(Debug, Serialize)]
struct DeviceJson<'a> {
    device: String,
    label: &'a str,
    since: String,
    seen: String,
    online: bool,
    current: bool,
}

pub(crate) async fn run(args: DevicesArgs, context: &Context) -> Result<(), Failure> {
    match args.action {
        Some(DeviceAction::Revoke { id, user: Some(user), .. }) => {
            return revoke_of(&user, &id, context).await;
        }
        Some(DeviceAction::Revoke { id, user: None, password }) => {
            return revoke(&id, &password, context).await;
        }
        None => {}
    }
    let client = context.ask_once()?;
    let devices = client.devices().await?;
    client.close().await;
    list(&devices, args.json, context)
}

/// Prints devices, of this user or another.
pub(super) fn list(devices: &[DeviceInfo], json: bool, context: &Context) -> Result<(), Failure> {
    for device in devices {
        let id = device.id.to_string();
        if json {
            context.out.json(&DeviceJson {
                device: id,
                label: device.label.expose_raw(),
                since: rfc3339(device.created_ms),
                seen: rfc3339(device.seen_ms),
                online: device.online,
                current: device.current,
            })?;
            continue;
        }
        let label = device.label.render_line();
        let state = |words: &str| format!("{words:STATE$}");
        let state = match (device.current, device.online) {
            (true, _) => context.out.style(Style::Good, &state("this device")),
            (false, true) => context.out.style(Style::Good, &state("online")),
            (false, false) => state(&format!("seen {}", local_time(device.seen_ms))),
        };
        // The label comes last: it is the only part that another person wrote.
        let label = context.out.wrap(&label, id.len() + 2 + STATE + 2, 4);
        context.out.line(&format!("{id}  {state}  {label}"))?;
    }
    Ok(())
}

/// Fewest digits of an id that identify a device; fewer are probably a typing error.
const FEWEST_DIGITS: usize = 4;

/// The beginning of a device's id.
fn digits(wanted: &str) -> Result<String, Failure> {
    if wanted.len() < FEWEST_DIGITS {
        return Err(Failure::usage(format!("at least {FEWEST_DIGITS} digits of the device's id")));
    }
    Ok(wanted.to_ascii_lowercase())
}

/// Revokes a device of another person.
async fn revoke_of(user: &Name, wanted: &str, context: &Context) -> Result<(), Failure> {
    let wanted = digits(wanted)?;
    if user == context.profile()?.user() {
        return Err(Failure::usage("--user is for another person; leave it out for your devices"));
    }
    let client = context.ask_once()?;
    let (id, _) = find(&client.devices_of(user).await?, &wanted, Some(user))?;
    client.revoke_device_of(user, &id).await?;
    client.close().await;
    context.out.say(&format!("device {id} of {user} is locked out"));
    Ok(())
}

async fn revoke(wanted: &str, password: &PasswordArgs, context: &Context) -> Result<(), Failure> {
    let wanted = digits(wanted)?;
    let profile = context.profile()?;
    let question = format!("Password of {}: ", profile.user());
    let ask = || ask::password(password.password_file.as_deref(), "TWINLOCK_PASSWORD", &question);
    let client = context.ask_once()?;
    let id = match client.devices().await {
        Ok(devices) => {
            let (id, current) = find(&devices, &wanted, None)?;
            if !current {
                client.prove_password(profile.user(), ask().await?).await?;
            }
            match client.revoke_device(&id).await {
                Ok(()) => client.close().await,
                // The server closes this very connection; its answer may not arrive.
                Err(ClientError::Ended(_)) if current => {}
                Err(error) => return Err(error.into()),
            }
            id
        }
        Err(error) if is_shut_out(&error) => {
            let mut session = context.open_by_password(&profile, ask().await?).await?;
            let (id, _) = find(&session.devices().await?, &wanted, None)?;
            session.revoke_device(&id).await?;
            id
        }
        Err(error) => return Err(error.into()),
    };
    context.out.say(&format!("device {id} is locked out"));
    Ok(())
}

/// The only device whose id begins with `wanted`, and whether it is this one. `user`: whose devices
/// they are, if not this user's.
fn find(
    devices: &[DeviceInfo],
    wanted: &str,
    user: Option<&Name>,
) -> Result<(DeviceId, bool), Failure> {
    let ids = devices.iter().map(|device| (device.id, device.current));
    let matches: Vec<_> = ids.filter(|(id, _)| id.to_string().starts_with(wanted)).collect();
    if let [found] = matches.as_slice() {
        return Ok(*found);
    }
    let (of, list) = match user {
        None => ("yours".to_owned(), "twinlock devices".to_owned()),
        Some(user) => (user.to_string(), format!("twinlock people devices {user}")),
    };
    let words = if matches.is_empty() {
        format!("no device of {of} begins with {wanted:?}")
    } else {
        format!("several devices of {of} begin with {wanted:?}")
    };
    Err(Failure::new(Exit::ServerSaidNo, format!("{words}; see `{list}`")))
}
