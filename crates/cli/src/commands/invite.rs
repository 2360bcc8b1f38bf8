//! `invite`: creates an invite link.

use std::io::IsTerminal as _;

use serde::Serialize;
use twinlock_client::connector::profile_address;
use twinlock_client::directory::Role;
use twinlock_client::profile::TlsTrust;
use twinlock_core::invite::{Address, DEFAULT_PATH, InviteLink, server_words};
use twinlock_core::session::BindingPolicy;

use crate::args::InviteArgs;
use crate::clock::{local_time, now_ms, rfc3339};
use crate::context::Context;
use crate::conversation::role_word;
use crate::exit::Failure;
use crate::invite_text::{join_command, local_only, qr};
use crate::output::Gone;

/// Largest difference between the clocks of client and server that does not count as a shortened
/// invite, milliseconds.
const CLOCKS_MS: u64 = 10 * 60 * 1000;
/// The remedy for a link that works only on the server's machine.
const SERVER_OPTIONS: &str = "start the server with --host 0.0.0.0 --public-host ADDRESS, or name \
                              an address that it has with `twinlock invite --public ADDRESS`";

#[derive(Debug, Serialize)]
struct InviteJson<'a> {
    link: &'a str,
    role: &'static str,
    user: Option<&'a str>,
    expires: String,
    words: String,
}

pub(crate) async fn run(args: InviteArgs, context: &Context) -> Result<(), Failure> {
    // The link is printed once: check the output before the server creates the invite.
    context.out.check()?;
    let profile = context.profile()?;
    let connects = match &context.global.address {
        Some(address) => address.clone(),
        None => profile_address(&profile)?,
    };
    let public = args.public.as_deref();
    let public = public.map(|text| public_address(text, &connects)).transpose()?;
    let client = context.ask_once()?;
    let role = Role::from(args.role);
    let seconds = args.expires.map_or(0, |time| time.as_secs().max(1));
    // All fallible steps come first, because an invite without its link is useless.
    let told = client.facts().await?.up.server.public_address;
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
            role: role_word(role),
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

/// Parses `HOST[:PORT][/PATH]`, which is only written into a link. A missing part is that of the
/// address in use.
fn public_address(text: &str, connects: &Address) -> Result<Address, Failure> {
    let address = Address::parse(text, Some(connects.port()));
    let complete = |address: Address| match address.path() {
        DEFAULT_PATH => address.with_path(connects.path()),
        _ => Ok(address),
    };
    address.and_then(complete).map_err(|_| {
        Failure::usage(format!("--public '{}' is neither HOST nor HOST:PORT", text.escape_debug()))
    })
}
