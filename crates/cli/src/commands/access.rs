//! Access to the server: `invite`, `devices`, `passwd`.

use std::io::IsTerminal as _;

use serde::Serialize;
use twinlock_client::ClientError;
use twinlock_client::enrol::ByPassword;
use twinlock_client::profile::TlsTrust;
use twinlock_core::id::DeviceId;
use twinlock_core::invite::{Address, InviteLink, server_words};
use twinlock_core::proto;
use twinlock_core::session::BindingPolicy;
use twinlock_core::text::Untrusted;

use crate::args::{DeviceAction, Devices, Invite, Passwd, PasswordFile, Role};
use crate::ask;
use crate::clock::{local_time, now_ms, rfc3339};
use crate::commands::serve::{join_command, local_only, qr};
use crate::context::{Context, address_of};
use crate::exit::{Exit, Failure};
use crate::output::{Gone, Style};

#[derive(Debug, Serialize)]
struct InviteJson<'a> {
    link: &'a str,
    role: &'static str,
    user: Option<&'a str>,
    expires: String,
    words: String,
}

pub(crate) async fn invite(args: Invite, context: &Context) -> Result<(), Failure> {
    // The link is printed once: check the output before the server creates the invite.
    context.out.check()?;
    let profile = context.profile()?;
    let connects = match &context.global.address {
        Some(address) => address.clone(),
        None => address_of(&profile)?,
    };
    let public = args.public.as_deref();
    let public = public.map(|text| public_address(text, connects.port())).transpose()?;
    let client = context.ask_once()?;
    let role = match args.role {
        Role::Member => proto::Role::Member,
        Role::Admin => proto::Role::Admin,
        Role::Owner => proto::Role::Owner,
    };
    let seconds = args.expires.map_or(0, |time| time.as_secs().max(1));
    // All fallible steps come first, because an invite without its link is useless.
    let told = client.facts().await?.up.info.public_address;
    // The server's own address needs no trust, because the link contains the server's key.
    let told = Address::parse(&told, None).ok();
    // Reload the profile: the connection may just have stored newer pins.
    let tls_pin = match context.profile()?.tls() {
        TlsTrust::Pins(pins) => pins.first().copied(),
        TlsTrust::Ca { .. } => None,
    };
    let asked_ms = now_ms().saturating_add(seconds.saturating_mul(1000));
    let invite = client.make_invite(role, args.user.as_ref(), seconds).await?;
    // The clocks may differ.
    if seconds > 0 && asked_ms.saturating_sub(invite.expires_ms) > CLOCKS_MS {
        let until = local_time(invite.expires_ms);
        context.out.warn(&format!("the server shortens the invite: it expires {until}"));
    }
    client.close().await;
    let link = InviteLink {
        address: public.or(told).unwrap_or(connects),
        id: invite.id,
        secret: invite.secret,
        server_key: *profile.server_key(),
        tls_pin,
        proxy: profile.binding() == BindingPolicy::Off,
    };
    let text = link.to_link();
    let words = server_words(profile.server_key());
    let local = local_only(&link.address, SERVER_OPTIONS, false);
    if args.json {
        local.iter().for_each(|words| context.out.say(words));
        let shown = context.out.json(&InviteJson {
            link: &text,
            role: super::people::role(role),
            user: args.user.as_ref().map(|user| user.as_str()),
            expires: rfc3339(invite.expires_ms),
            words,
        });
        return shown.map_err(unseen);
    }
    if args.qr
        && let Some(code) = qr(&text)
    {
        context.out.say_as_is(&code);
    }
    // After the QR code, which fills the screen.
    local.iter().for_each(|words| context.out.say(words));
    // A script reads the link from standard output. A person copies the whole command, so it is
    // printed last.
    let person = std::io::stdout().is_terminal();
    let use_it = if person { "Its reader runs:\n" } else { "Its reader runs: twinlock join LINK" };
    context.out.say(&format!(
        "\nThe link works once, until {}. It is a secret: hand it over where only its reader sees \
         it. Server words, to read to each other: {words}. {use_it}",
        local_time(invite.expires_ms),
    ));
    let line = if person { join_command(&text) } else { text };
    context.out.line(&line).map_err(unseen)
}

fn unseen(gone: Gone) -> Failure {
    Failure::from(gone).hint("an invite was made and could not be shown; it expires unused")
}

/// Largest difference between the clocks of client and server that does not count as a shortened
/// invite, milliseconds.
const CLOCKS_MS: u64 = 10 * 60 * 1000;
/// The remedy for a link that works only on the server's machine.
const SERVER_OPTIONS: &str = "start the server with --host 0.0.0.0 --public-host ADDRESS, or name \
                              an address that it has with `twinlock invite --public ADDRESS`";

/// Parses HOST or HOST:PORT, which is only written into a link.
fn public_address(text: &str, port: u16) -> Result<Address, Failure> {
    Address::parse(text, Some(port)).map_err(|_| {
        Failure::usage(format!("--public '{}' is neither HOST nor HOST:PORT", text.escape_debug()))
    })
}

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

pub(crate) async fn devices(args: Devices, context: &Context) -> Result<(), Failure> {
    if let Some(DeviceAction::Revoke { id, password }) = args.action {
        return revoke(&id, &password, context).await;
    }
    let client = context.ask_once()?;
    let devices = client.devices().await?;
    client.close().await;
    for device in &devices {
        let id = DeviceId::from_slice(&device.id).map(|id| id.to_string()).unwrap_or_default();
        if args.json {
            context.out.json(&DeviceJson {
                device: id,
                label: &device.label,
                since: rfc3339(device.created_ms),
                seen: rfc3339(device.seen_ms),
                online: device.online,
                current: device.current,
            })?;
            continue;
        }
        let label = Untrusted::new(device.label.clone()).render_line();
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

async fn revoke(wanted: &str, password: &PasswordFile, context: &Context) -> Result<(), Failure> {
    let wanted = wanted.to_ascii_lowercase();
    if wanted.len() < FEWEST_DIGITS {
        return Err(Failure::usage(format!(
            "at least {FEWEST_DIGITS} digits of the device's id; see `twinlock devices`"
        )));
    }
    let profile = context.profile()?;
    let question = format!("Password of {}: ", profile.user());
    let ask = || ask::password(password.password_file.as_deref(), "TWINLOCK_PASSWORD", &question);
    let client = context.ask_once()?;
    let id = match client.devices().await {
        Ok(devices) => {
            let (id, current) = find(&devices, &wanted)?;
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
            let address = context.global.address.clone();
            let mut session = ByPassword::open(&profile, address, ask().await?).await?;
            let (id, _) = find(&session.devices().await?, &wanted)?;
            session.revoke_device(&id).await?;
            id
        }
        Err(error) => return Err(error.into()),
    };
    context.out.say(&format!("device {id} is locked out"));
    Ok(())
}

/// Whether this device cannot log in, now or at all; the password still can.
fn is_shut_out(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::LoginRefused | ClientError::Ended(_) | ClientError::TooManySessions
    )
}

/// The only device whose id begins with `wanted`, and whether it is this one.
fn find(devices: &[proto::Device], wanted: &str) -> Result<(DeviceId, bool), Failure> {
    let ids = devices.iter().filter_map(|d| Some((DeviceId::from_slice(&d.id)?, d.current)));
    let matches: Vec<_> = ids.filter(|(id, _)| id.to_string().starts_with(wanted)).collect();
    if let [found] = matches.as_slice() {
        return Ok(*found);
    }
    let words = if matches.is_empty() {
        format!("no device of yours begins with {wanted:?}")
    } else {
        format!("several devices of yours begin with {wanted:?}")
    };
    Err(Failure::new(Exit::ServerSaidNo, format!("{words}; see `twinlock devices`")))
}

pub(crate) async fn passwd(args: Passwd, context: &Context) -> Result<(), Failure> {
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
            let address = context.global.address.clone();
            let session = ByPassword::open(&profile, address, old).await?;
            session.set_password(&profile, new).await?;
        }
        Err(error) => return Err(error.into()),
    }
    context.out.say("the password is changed; devices stay enrolled");
    Ok(())
}
