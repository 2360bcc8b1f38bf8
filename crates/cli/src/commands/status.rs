//! `status`: the state of both locks, with `--rekey` after a rekey.

use serde::Serialize;
use twinlock_client::model::{Facts, Rekeyed};
use twinlock_client::profile::{Profile, TlsTrust};
use twinlock_client::{Client, ClientError};
use twinlock_core::invite::server_words;
use twinlock_core::session::Binding;

use crate::args::StatusArgs;
use crate::blocking::blocking;
use crate::connection_text::{binding_word, session_words, tls_verdict};
use crate::context::Context;
use crate::conversation::role_word;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::progress_timeout::within;

/// The status in JSON. Fields that need the server are null without it.
#[derive(Debug, Serialize)]
struct StatusJson {
    profile: String,
    user: String,
    role: Option<&'static str>,
    device: String,
    server: String,
    server_software: Option<String>,
    server_key: String,
    server_words: String,
    /// TLS keys that the profile accepts; null if a CA authenticates the server.
    pins: Option<Vec<String>>,
    tls: Option<TlsJson>,
    lock2: Option<LockJson>,
    /// Null without `--rekey`.
    rekey: Option<RekeyJson>,
    outbox: OutboxJson,
}

#[derive(Debug, Serialize)]
struct TlsJson {
    version: Option<String>,
    key_exchange: Option<String>,
    cipher: Option<String>,
    peer_pin: Option<String>,
    binding: &'static str,
    /// Who issued the certificate, as it says; null without TLS.
    issuer: Option<String>,
    /// `tls`, `websocket` or `plain`.
    transport: String,
}

#[derive(Debug, Serialize)]
struct LockJson {
    session: String,
    cipher: &'static str,
    key_exchange: &'static str,
    epoch: u32,
    frames_sent: u64,
    frames_received: u64,
    rekeys: u32,
    /// Null before the first.
    last_rekey_seconds: Option<u64>,
    age_seconds: u64,
}

#[derive(Debug, Serialize)]
struct RekeyJson {
    epoch_before: u32,
    epoch_after: u32,
}

#[derive(Debug, Serialize)]
struct OutboxJson {
    queued: u64,
    refused: u64,
}

/// Lock 2 has no choice of algorithms in this version.
const CIPHER: &str = "AES-256-CBC + HMAC-SHA-256";
const KEY_EXCHANGE: &str = "OPAQUE (ristretto255) + ML-KEM-768";
/// A room to ask for; it need not exist.
const LOBBY: &str = "lobby";
/// The count of refused messages stops here.
const REFUSED: usize = 10_000;

pub(crate) async fn run(args: StatusArgs, context: &Context) -> Result<(), Failure> {
    let profile = context.profile()?;
    let client = context.ask_once()?;
    let facts = async {
        let rekeyed = if args.rekey { Some(rekey(&client).await?) } else { None };
        Ok::<_, ClientError>((client.facts().await?, rekeyed))
    };
    let facts = match context.global.timeout {
        None => facts.await.map_err(Failure::from),
        Some(limit) => match within(limit, facts).await {
            Some(facts) => facts.map_err(Failure::from),
            None => Err(Failure::new(Exit::TimedOut, "timed out: the server does not answer")),
        },
    };
    let outbox = client.state().outbox();
    let (queued, refused) = blocking(move || {
        let refused = outbox.refused(REFUSED)?.len() as u64;
        Ok::<_, twinlock_client::state::StateError>((outbox.pending_count()?, refused))
    })
    .await?;
    client.close().await;
    let mut status = known(&profile, context, OutboxJson { queued, refused })?;
    let (shown, failure) = match facts {
        Ok((facts, rekeyed)) => {
            status.rekey = rekeyed.map(|Rekeyed { before, after }| RekeyJson {
                epoch_before: before,
                epoch_after: after,
            });
            let shown = (facts.up.binding, Some(session_words(&facts)));
            add(&mut status, facts);
            (shown, None)
        }
        // The local part is shown without the server too.
        Err(failure) => ((Binding::Unknown, None), Some(failure)),
    };
    if args.json {
        context.out.json(&status)?;
    } else {
        show(&context.out, &status, shown)?;
    }
    failure.map_or(Ok(()), Err)
}

/// Rekeys the session. The answer to a request shows that the server has the new keys too.
async fn rekey(client: &Client) -> Result<Rekeyed, ClientError> {
    let rekeyed = client.rekey().await?;
    match client.target(LOBBY).await {
        Ok(_) | Err(ClientError::Refused(_) | ClientError::NoTarget(_)) => Ok(rekeyed),
        Err(error) => Err(error),
    }
}

/// Fills in the local part.
fn known(profile: &Profile, context: &Context, outbox: OutboxJson) -> Result<StatusJson, Failure> {
    let server = match &context.global.address {
        Some(address) => address.to_string(),
        None => profile.address(),
    };
    Ok(StatusJson {
        profile: profile.name().to_string(),
        user: profile.user().to_string(),
        role: None,
        device: profile.device().to_string(),
        server: server.to_string(),
        server_software: None,
        server_key: profile.server_key().to_string(),
        server_words: server_words(profile.server_key()),
        pins: match profile.tls() {
            TlsTrust::Pins(pins) => Some(pins.iter().map(ToString::to_string).collect()),
            TlsTrust::Ca { .. } => None,
        },
        tls: None,
        lock2: None,
        rekey: None,
        outbox,
    })
}

/// Adds the facts of the session and of the server.
fn add(status: &mut StatusJson, facts: Facts) {
    let Facts { up, session, id, age, since_rekey, .. } = facts;
    status.role = Some(role_word(up.server.role));
    status.server_software = Some(up.server.software.render_line());
    status.tls = Some(TlsJson {
        version: up.tls.version,
        key_exchange: up.tls.group,
        cipher: up.tls.suite,
        peer_pin: up.tls.peer_pin.map(|pin| pin.to_string()),
        binding: binding_word(up.binding),
        issuer: up.tls.issuer,
        transport: up.transport.to_string(),
    });
    status.lock2 = Some(LockJson {
        session: id.to_string(),
        cipher: CIPHER,
        key_exchange: KEY_EXCHANGE,
        epoch: session.epoch.0,
        frames_sent: session.frames.0,
        frames_received: session.frames.1,
        rekeys: session.rekeys,
        last_rekey_seconds: since_rekey.map(|since| since.as_secs()),
        age_seconds: age.as_secs(),
    });
}

fn show(
    out: &Output,
    status: &StatusJson,
    (binding, session): (Binding, Option<String>),
) -> Result<(), Failure> {
    let StatusJson {
        profile, user, device, server, server_words, tls, lock2, rekey, outbox, ..
    } = status;
    let or_unknown = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
    let role = status.role.map(|role| format!(" ({role})")).unwrap_or_default();
    let software = status.server_software.as_ref();
    let software = software.map(|software| format!(", {software}")).unwrap_or_default();
    out.line(&format!("profile  {profile}"))?;
    out.line(&format!("you      {user}{role}, device {device}"))?;
    out.line(&format!("server   {server}{software}"))?;
    out.line(&format!("words    {server_words}"))?;
    match &status.pins {
        Some(pins) => {
            for (nth, pin) in pins.iter().enumerate() {
                out.line(&format!("{} {pin}", if nth == 0 { "pins    " } else { "        " }))?;
            }
        }
        None => out.line("pins     none: a certificate authority authenticates the server")?,
    }
    if let Some(tls) = tls {
        let verdict = tls_verdict(out, binding, tls.issuer.as_deref());
        if tls.version.is_none() && tls.peer_pin.is_none() {
            out.line(&format!("lock 1   none, transport {}", tls.transport))?;
        } else {
            out.line(&format!(
                "lock 1   {}, {}, {}, transport {}",
                or_unknown(&tls.version),
                or_unknown(&tls.key_exchange),
                or_unknown(&tls.cipher),
                tls.transport
            ))?;
        }
        out.line(&format!("         TLS {verdict}"))?;
        if let Some(pin) = &tls.peer_pin {
            out.line(&format!("         pin {pin}"))?;
        }
    }
    if let (Some(lock2), Some(session)) = (lock2, session) {
        out.line(&format!("lock 2   {}, {}", lock2.cipher, lock2.key_exchange))?;
        out.line(&format!("         {session}"))?;
    }
    if let Some(RekeyJson { epoch_before, epoch_after }) = rekey {
        out.line(&format!(
            "rekey    epoch {epoch_before} before, epoch {epoch_after} now; the server answers in it"
        ))?;
    }
    out.line(&format!("outbox   {} queued, {} refused", outbox.queued, outbox.refused))?;
    Ok(())
}
