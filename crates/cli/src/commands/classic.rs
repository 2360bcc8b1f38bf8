//! `classic`: keys for devices and scripts in any language.

use data_encoding::HEXLOWER;
use serde::Serialize;
use twinlock_client::ClientError;
use twinlock_client::client::NewClassicKey;
use twinlock_core::proto::{self, Why};
use zeroize::Zeroizing;

use crate::args::{Classic, ClassicAdd, Format, Json};
use crate::exit::{Exit, Failure};
use crate::open::Context;
use crate::output::{local_time, rfc3339};

/// Complete programs, which the tests run.
const LINES_PY: &str = include_str!("../../../../examples/classic_lines.py");
const ORIGIN_PY: &str = include_str!("../../../../examples/origin_client.py");
/// A message of the plain form with nothing but a shell and openssl, which takes keys as arguments.
const ORIGIN_SH: &str = include_str!("../../../../examples/origin_client.sh");

pub(crate) async fn run(what: Classic, context: &Context) -> Result<(), Failure> {
    match what {
        Classic::Add(add) => self::add(add, context).await,
        Classic::List(json) => list(json, context).await,
        Classic::Revoke { name } => {
            let client = context.ask_once()?;
            client.revoke_classic_key(&name).await.map_err(|error| match refusal(&error) {
                Some(Why::NotFound) => Failure::new(
                    Exit::ServerSaidNo,
                    format!("there is no key {name} of yours; see `twinlock classic list`"),
                ),
                _ => error.into(),
            })?;
            client.close().await;
            context.out.say(&format!("key {name} is revoked, and its lines have ended"));
            Ok(())
        }
    }
}

fn refusal(error: &ClientError) -> Option<Why> {
    if let ClientError::Refused(refusal) = error { Some(refusal.why) } else { None }
}

#[derive(Debug, Serialize)]
struct NewKeyJson<'a> {
    name: &'a str,
    conversation: &'a str,
    format: &'static str,
    key: &'a str,
    host: &'a str,
    port: Option<u16>,
}

async fn add(args: ClassicAdd, context: &Context) -> Result<(), Failure> {
    let Some(room) = args.to.room() else {
        return Err(Failure::usage("a classic key writes to a room; say --to ROOM"));
    };
    let profile = context.profile()?;
    let host = match &context.global.address {
        Some(address) => address.bare_host().to_owned(),
        None => profile.host().to_owned(),
    };
    let client = context.ask_once()?;
    let conversation = client.target(room.as_str()).await?.id;
    let form = match args.format {
        Format::Jwe => proto::ClassicForm::JweLines,
        Format::Origin => proto::ClassicForm::Origin,
        Format::OriginHmac => proto::ClassicForm::OriginHmac,
    };
    let added = client.add_classic_key(&args.name, conversation, form).await;
    let NewClassicKey { key, port } = added.map_err(|error| match refusal(&error) {
        Some(Why::AlreadyUsed) => Failure::new(
            Exit::ServerSaidNo,
            format!("the server has a key of the format {} already", word(form)),
        )
        .hint(
            "a message of the origin's format names no key, so there can be one of each; \
             `twinlock classic list` shows it, and `twinlock classic revoke` ends it",
        ),
        _ => error.into(),
    })?;
    client.close().await;
    let key = Zeroizing::new(HEXLOWER.encode(key.expose_secret()));
    if args.json {
        context.out.json(&NewKeyJson {
            name: args.name.as_str(),
            conversation: room.as_str(),
            format: word(form),
            key: &key,
            host: &host,
            port,
        })?;
        return Ok(());
    }
    context.out.line(&key)?;
    explain(&args, &host, port, context);
    Ok(())
}

/// What to do with the key: programs that are complete, with this server's address.
fn explain(args: &ClassicAdd, host: &str, port: Option<u16>, context: &Context) {
    let out = &context.out;
    let (name, flag) = match args.format {
        Format::Jwe => (&args.name, "--classic-port"),
        Format::Origin | Format::OriginHmac => (&args.name, "--origin-port"),
    };
    out.say(&format!(
        "This key is told once: keep it in a file {name}.key that only its device can read. It can \
         write to {}, and nothing else.",
        args.to
    ));
    let port = match port {
        Some(port) => port.to_string(),
        None => {
            out.warn(&format!(
                "The server does not listen for it now; its owner starts it with {flag} PORT."
            ));
            "PORT".to_owned()
        }
    };
    let python = |program: &str, file: &str, needs: &str, arguments: &str| {
        out.say(&format!("\n--- Python, {file} (pip install {needs})\n{program}---"));
        out.say(&format!("\n--- shell\necho 'hello' | python3 {file} {arguments}\n---"));
    };
    match args.format {
        Format::Jwe => {
            let arguments = format!("{host} {port} {name} {name}.key");
            python(LINES_PY, "classic_lines.py", "joserfc", &arguments);
        }
        Format::Origin => {
            let arguments = format!("{host} {port} {name}.key");
            python(ORIGIN_PY, "origin_client.py", "pycryptodome", &arguments);
            out.say(&format!(
                "\n--- shell without Python, origin_client.sh\n{ORIGIN_SH}---\n\n\
                 echo 'hello' | bash origin_client.sh {arguments}"
            ));
        }
        Format::OriginHmac => {
            let arguments = format!("{host} {port} {name}.key hmac");
            python(ORIGIN_PY, "origin_client.py", "pycryptodome", &arguments);
        }
    }
}

#[derive(Debug, Serialize)]
struct KeyJson<'a> {
    name: &'a str,
    user: &'a str,
    /// The room; null of a conversation that is none.
    conversation: Option<&'a str>,
    format: &'static str,
    since: String,
}

async fn list(args: Json, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let keys = client.classic_keys().await?;
    client.close().await;
    let width = |text: fn(&proto::ClassicKey) -> &str| {
        keys.iter().map(|key| text(key).len()).max().unwrap_or(0)
    };
    let (names, rooms) = (width(|key| &key.name), width(|key| &key.room));
    for key in &keys {
        let format = word(key.form());
        if args.json {
            context.out.json(&KeyJson {
                name: &key.name,
                user: &key.user,
                conversation: Some(key.room.as_str()).filter(|room| !room.is_empty()),
                format,
                since: rfc3339(key.created_ms),
            })?;
        } else {
            let (name, room, user) = (&key.name, &key.room, &key.user);
            let since = local_time(key.created_ms);
            context.out.line(&format!(
                "{name:names$}  to {room:rooms$}  {format:11}  of {user}, since {since}"
            ))?;
        }
    }
    if keys.is_empty() && !args.json {
        context.out.say("there is no classic key; `twinlock classic add` makes one");
    }
    Ok(())
}

fn word(form: proto::ClassicForm) -> &'static str {
    use twinlock_core::classic::Form;
    match form {
        proto::ClassicForm::JweLines => Form::Jwe.word(),
        proto::ClassicForm::Origin => Form::Origin.word(),
        proto::ClassicForm::OriginHmac => Form::OriginHmac.word(),
        proto::ClassicForm::FormNone => "unknown",
    }
}
