//! The interface for scripts: names and forms of JSON fields, pipes, and quiet ends.

use std::io::Read as _;
use std::process::Stdio;

use crate::common::*;
use serde_json::Value;

/// The form of a document: its fields in order, each with a pattern of its value.
fn form(value: &Value) -> String {
    let hex = |text: &str| {
        text.len() >= 8 && text.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    };
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(text) if is_time(text) => "time".into(),
        Value::String(text) if hex(text) => format!("hex{}", text.len()),
        Value::String(_) => "text".into(),
        Value::Array(all) => format!("[{}]", all.iter().map(form).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name}:{}", form(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(" "))
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
fn is_time(text: &str) -> bool {
    let pattern = "0000-00-00T00:00:00.000Z";
    text.len() == pattern.len()
        && text.chars().zip(pattern.chars()).all(|(c, p)| match p {
            '0' => c.is_ascii_digit(),
            p => c == p,
        })
}

/// Field names of the first object, in the order of the text.
fn names(json: &str) -> Vec<String> {
    let mut names = Vec::new();
    let line = json.lines().next().unwrap();
    for (at, _) in line.match_indices("\":") {
        let start = line[..at].rfind('"').unwrap() + 1;
        names.push(line[start..at].to_owned());
    }
    names
}

#[test]
fn json__documents_have_documented_fields_on_one_line() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let ack = ada.run(&["send", "--json", "lobby", "hello"]).exits(0);
    assert_eq!(names(&ack.out), ["conversation", "n", "time", "id", "link"]);
    assert_eq!(form(&ack.json()[0]), "{conversation:text id:hex32 link:hex64 n:number time:time}");
    assert_eq!(ack.json()[0]["conversation"], "lobby");

    let entry = "{conversation:text device:hex8 from:text id:hex32 kind:text link:hex64 n:number \
                 text:text time:time}";
    let fields = ["conversation", "n", "time", "from", "device", "kind", "id", "text", "link"];
    let heard = bob.run(&["listen", "--since", "all", "--count", "1", "--json"]).exits(0);
    let read = bob.run(&["history", "lobby", "--json"]).exits(0);
    assert_eq!(heard.out, read.out);
    assert_eq!(names(&read.out), fields);
    assert_eq!(form(&read.json()[0]), entry);
    let read = &read.json()[0];
    assert_eq!(
        (&read["from"], &read["kind"], &read["n"]),
        (&"ada".into(), &"text".into(), &1.into())
    );
    for shared in ["conversation", "n", "time", "id", "link"] {
        assert_eq!(read[shared], ack.json()[0][shared], "{shared}");
    }
    let found = bob.run(&["history", "lobby", "--search", "hello", "--json"]).exits(0);
    assert_eq!(names(&found.out), fields);
    assert_eq!(found.json()[0]["link"], Value::Null);

    bob.run(&["send", "@ada", "psst"]).exits(0);
    let direct = ada.run(&["history", "@bob", "--json"]).exits(0).json();
    assert_eq!((&direct[0]["conversation"], &direct[0]["from"]), (&"@bob".into(), &"bob".into()));
    ada.run(&["room", "create", "ops", "--topic", "what runs"]).exits(0);
    ada.run(&["room", "topic", "ops", "what does not"]).exits(0);
    let words = ada.run(&["history", "ops", "--json"]).exits(0).json();
    assert_eq!((&words[0]["from"], &words[0]["device"]), (&Value::Null, &Value::Null));
    assert_eq!(words[0]["kind"], "system");

    let documents: &[(&[&str], &str)] = &[
        (
            &["rooms"],
            "{conversation:text head:number joined:bool members:number read:number topic:text \
             unread:number}",
        ),
        (&["room", "members", "ops"], "{user:text}"),
        (&["people"], "{online:bool role:text since:time suspended:bool user:text}"),
        (&["devices"], "{current:bool device:hex32 label:text online:bool seen:time since:time}"),
        (&["invite", "--user", "carl"], "{expires:time link:text role:text user:text words:text}"),
        (&["invite"], "{expires:time link:text role:text user:null words:text}"),
        (
            &["audit", "verify"],
            "{broken_at:null conversation:text entries:number ok:bool problem:null \
             receipts:number}",
        ),
        (
            &["status"],
            "{device:hex32 lock2:{age_seconds:number cipher:text epoch:number \
             frames_received:number frames_sent:number key_exchange:text \
             last_rekey_seconds:null rekeys:number session:hex32} outbox:{queued:number refused:number} pins:[hex64] profile:text \
             rekey:null role:text server:text server_key:hex64 server_software:text server_words:text \
             tls:{binding:text cipher:text issuer:text key_exchange:text peer_pin:hex64 \
             transport:text version:text} \
             user:text}",
        ),
    ];
    for (args, expected) in documents {
        let ran = ada.run(&[args, &["--json"][..]].concat()).exits(0);
        for document in ran.json() {
            assert_eq!(form(&document), *expected, "{args:?}");
        }
        assert!(!ran.json().is_empty(), "{args:?}");
    }
}

#[test]
fn stdout__closed_reader_ends_command_quietly() {
    let host = Host::start();
    let ada = host.owner();
    let lines: String = (0..3000).map(|n| format!("line {n} {}\n", "x".repeat(200))).collect();
    ada.run_with(&["send", "lobby"], &lines).exits(0);
    for args in [
        &["history", "lobby", "--limit", "3000"][..],
        &["history", "lobby", "--limit", "3000", "--json"],
        &["listen", "--since", "all"],
    ] {
        let mut command = ada.command(args);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 64];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let ended = child.wait().unwrap();
        assert_eq!(ended.code(), Some(0), "{args:?}: {said}");
        assert!(!said.contains("twinlock:") && !said.contains("panic"), "{said}");
    }
}

#[test]
fn stdout__has_data_and_stderr_has_messages() {
    let host = Host::start();
    let ada = host.owner();
    let invite = ada.run(&["invite"]).exits(0);
    assert_eq!(invite.out.lines().count(), 1);
    assert!(invite.out.starts_with("twinlock://127.0.0.1:"), "{invite:?}");
    assert!(invite.err.contains("until"), "{invite:?}");
    let quiet = ada.run(&["--quiet", "invite"]).exits(0);
    assert_eq!((quiet.out.lines().count(), quiet.err.as_str()), (1, ""));
    let sent = ada.run(&["send", "lobby", "hello"]).exits(0);
    assert_eq!((sent.out.as_str(), sent.err.as_str()), ("", ""));
    let verified = ada.run(&["audit", "verify"]).exits(0);
    assert!(verified.out.contains("lobby: 1 entries") && verified.err.contains("every link"));
    // Colours appear only on request.
    let read = ada.run(&["history", "lobby"]).exits(0);
    assert!(!read.out.contains('\u{1b}'), "{read:?}");
    let read = ada.run(&["--color", "always", "history", "lobby"]).exits(0);
    assert!(read.out.contains('\u{1b}'), "{read:?}");
}
