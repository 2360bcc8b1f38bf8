//! `classic`: keys for devices and scripts in any language.

use std::path::Path;

use data_encoding::{
    BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE,
};
use serde::Serialize;
use twinlock_client::directory::{ClassicForm, ClassicKeyInfo};
use twinlock_client::error::{ClientError, RefusalReason};
use twinlock_client::model::NewClassicKey;
use twinlock_core::keys::ClassicSecret;
use zeroize::Zeroizing;

use crate::args::{ClassicAddArgs, ClassicCommand, ClassicFormat, JsonArgs};
use crate::ask::secret_file;
use crate::clock::{local_time, rfc3339};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::Gone;

/// Complete programs, which the tests run.
const LINES_PY: &str = include_str!("../../../../examples/classic_lines.py");
const ORIGIN_PY: &str = include_str!("../../../../examples/origin_client.py");
/// Sends a message in the plain form with a shell and openssl only; takes keys as arguments.
const ORIGIN_SH: &str = include_str!("../../../../examples/origin_client.sh");

pub(crate) async fn run(what: ClassicCommand, context: &Context) -> Result<(), Failure> {
    match what {
        ClassicCommand::Add(add) => self::add(add, context).await,
        ClassicCommand::List(json) => list(json, context).await,
        ClassicCommand::Revoke { name } => {
            let client = context.ask_once()?;
            client.revoke_classic_key(&name).await.map_err(|error| match refusal(&error) {
                Some(RefusalReason::NotFound) => Failure::new(
                    Exit::ServerSaidNo,
                    format!("you have no key {name}; see `twinlock classic list`"),
                ),
                _ => error.into(),
            })?;
            client.close().await;
            context.out.say(&format!("key {name} is revoked, and its connections are closed"));
            Ok(())
        }
    }
}

fn refusal(error: &ClientError) -> Option<RefusalReason> {
    if let ClientError::Refused(refusal) = error { Some(refusal.why) } else { None }
}

#[derive(Debug, Serialize)]
struct NewKeyJson<'a> {
    name: &'a str,
    conversation: &'a str,
    format: &'static str,
    /// `null` for an imported key.
    key: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
}

async fn add(args: ClassicAddArgs, context: &Context) -> Result<(), Failure> {
    // The key is printed once: check the output before the server creates it.
    context.out.check()?;
    let Some(room) = args.to.room() else {
        return Err(Failure::usage("a classic key writes to a room: use --to ROOM"));
    };
    let imported = match &args.key_file {
        Some(_) if args.format == ClassicFormat::Jwe => {
            return Err(Failure::usage(
                "--key-file goes with --format origin or origin-hmac: the key of a classic line is \
                 always made by the server",
            ));
        }
        Some(file) => Some(read_key(file).await?),
        None => None,
    };
    let profile = context.profile()?;
    let host = match &context.global.address {
        Some(address) => address.bare_host().to_owned(),
        None => profile.host().to_owned(),
    };
    let client = context.ask_once()?;
    let conversation = client.target(room.as_str()).await?.id;
    let form = match args.format {
        ClassicFormat::Jwe => ClassicForm::JweLines,
        ClassicFormat::Origin => ClassicForm::Origin,
        ClassicFormat::OriginHmac => ClassicForm::OriginHmac,
    };
    let added = match &imported {
        None => {
            let new = client.add_classic_key(&args.name, conversation, form).await;
            new.map(|NewClassicKey { key, port }| (Some(key), port))
        }
        Some(key) => {
            let port = client.import_classic_key(&args.name, conversation, form, key).await;
            port.map(|port| (None, port))
        }
    };
    let (key, port) = added.map_err(|error| match refusal(&error) {
        Some(RefusalReason::AlreadyUsed) => Failure::new(
            Exit::ServerSaidNo,
            format!("the server has a key of the format {} already", word(form)),
        )
        .hint(
            "a message of the origin's format does not name its key, so only one key of each format can exist; \
             `twinlock classic list` shows it, and `twinlock classic revoke` ends it",
        ),
        _ => error.into(),
    })?;
    client.close().await;
    let key = key.map(|key| Zeroizing::new(HEXLOWER.encode(key.expose_secret())));
    let unseen = |gone: Gone| {
        Failure::from(gone).hint(format!(
            "the key was made, and cannot be shown again: `twinlock classic revoke {}` ends it",
            args.name
        ))
    };
    if args.json {
        let shown = context.out.json(&NewKeyJson {
            name: args.name.as_str(),
            conversation: room.as_str(),
            format: word(form),
            key: key.as_ref().map(|key| key.as_str()),
            host: &host,
            port,
        });
        shown.map_err(unseen)?;
        if imported.is_some() {
            warn_of_shared(&args, context);
        }
        return Ok(());
    }
    match key {
        Some(key) => {
            context.out.line(&key).map_err(unseen)?;
            explain(&args, &host, port, context);
        }
        None => explain_imported(&args, &host, port, context),
    }
    Ok(())
}

/// Reads 32 bytes: raw, as 64 hex digits, or in base64 with or without padding.
async fn read_key(file: &Path) -> Result<ClassicSecret, Failure> {
    let failed = |what: String| Failure::usage(format!("--key-file {}: {what}", file.display()));
    // Longer than every encoding, but bounded for a device or a large file.
    const MOST: u64 = 1024;
    let bytes = secret_file(file, MOST).await?.map_err(|error| failed(error.to_string()))?;
    let text = Zeroizing::new(bytes.trim_ascii().to_vec());
    let decoded = [&HEXLOWER_PERMISSIVE, &BASE64, &BASE64_NOPAD, &BASE64URL, &BASE64URL_NOPAD]
        .into_iter()
        .find_map(|encoding| encoding.decode(&text).ok().map(Zeroizing::new))
        .filter(|decoded| decoded.len() == 32);
    let key = decoded.as_deref().unwrap_or(&*bytes);
    let key = <[u8; 32]>::try_from(key.as_slice()).map(Zeroizing::new).map_err(|_| {
        failed("it does not contain a key: 32 bytes, raw, as 64 hex digits or in base64".into())
    })?;
    Ok(ClassicSecret::new(&key))
}

/// Explains what a key shared by programs means, and where they connect.
fn explain_imported(args: &ClassicAddArgs, host: &str, port: Option<u16>, context: &Context) {
    let out = &context.out;
    let name = &args.name;
    out.say(&format!(
        "Programs with this key can write to {}, at {host}, as {name}.",
        match port {
            Some(port) => format!("{} through port {port}", args.to),
            None => args.to.to_string(),
        }
    ));
    if port.is_none() {
        out.warn(
            "The server does not accept them now; its owner starts it with --origin-port PORT.",
        );
    }
    warn_of_shared(args, context);
}

fn warn_of_shared(args: &ClassicAddArgs, context: &Context) {
    let name = &args.name;
    context.out.warn(&format!(
        "A shared key: each program that has it built in can write as {name} and read what the \
         others sent wherever TLS ended in between, and so can everybody who has a copy of such a \
         program. Revoking the key ends all of them at once. Its strength is that of how it was \
         made; a key from examples or old sources is known. Prefer a key of its own for each device: \
         `twinlock classic add NAME --to {}`.",
        args.to
    ));
}

/// Explains the use of the key with complete programs that contain this server's address.
fn explain(args: &ClassicAddArgs, host: &str, port: Option<u16>, context: &Context) {
    let out = &context.out;
    let (name, flag) = match args.format {
        ClassicFormat::Jwe => (&args.name, "--classic-port"),
        ClassicFormat::Origin | ClassicFormat::OriginHmac => (&args.name, "--origin-port"),
    };
    out.say(&format!(
        "This key is shown once: keep it in a file {name}.key that only its device can read. It can \
         write to {}, and nothing else.",
        args.to
    ));
    let port = match port {
        Some(port) => port.to_string(),
        None => {
            out.warn(&format!(
                "The server does not accept it now; its owner starts it with {flag} PORT."
            ));
            "PORT".to_owned()
        }
    };
    let python = |program: &str, file: &str, needs: &str, arguments: &str| {
        out.say(&format!("\n--- Python, {file} (pip install {needs})\n{program}---"));
        out.say(&format!("\n--- shell\necho 'hello' | python3 {file} {arguments}\n---"));
    };
    match args.format {
        ClassicFormat::Jwe => {
            let arguments = format!("{host} {port} {name} {name}.key");
            python(LINES_PY, "classic_lines.py", "joserfc", &arguments);
        }
        ClassicFormat::Origin => {
            let arguments = format!("{host} {port} {name}.key");
            python(ORIGIN_PY, "origin_client.py", "pycryptodome", &arguments);
            out.say(&format!(
                "\n--- shell without Python, origin_client.sh\n{ORIGIN_SH}---\n\n\
                 echo 'hello' | bash origin_client.sh {arguments}"
            ));
        }
        ClassicFormat::OriginHmac => {
            let arguments = format!("{host} {port} {name}.key hmac");
            python(ORIGIN_PY, "origin_client.py", "pycryptodome", &arguments);
        }
    }
}

#[derive(Debug, Serialize)]
struct KeyJson<'a> {
    name: &'a str,
    user: &'a str,
    /// The room; null if the conversation is not a room.
    conversation: Option<&'a str>,
    format: &'static str,
    since: String,
}

async fn list(args: JsonArgs, context: &Context) -> Result<(), Failure> {
    let client = context.ask_once()?;
    let keys = client.classic_keys().await?;
    client.close().await;
    let width = |text: fn(&ClassicKeyInfo) -> &str| {
        keys.iter().map(|key| text(key).len()).max().unwrap_or(0)
    };
    let (names, rooms) = (width(|key| &key.name), width(|key| &key.room));
    for key in &keys {
        let format = word(key.form);
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
        context.out.say("no classic key exists; `twinlock classic add` creates one");
    }
    Ok(())
}

fn word(form: ClassicForm) -> &'static str {
    use twinlock_core::classic::ClassicScheme;
    match form {
        ClassicForm::JweLines => ClassicScheme::Jwe.word(),
        ClassicForm::Origin => ClassicScheme::Origin.word(),
        ClassicForm::OriginHmac => ClassicScheme::OriginHmac.word(),
        ClassicForm::FormNone => "unknown",
    }
}
