//! `classic.json` through the server's code: classic connections and the origin bridge's two forms.

use serde_json::Value;

use super::{Case, Counts, Script, Tally};
use crate::classic::origin::Bridge;
use crate::classic::{ClassicChannel, ClassicScheme, Greeting, answer, call, line_keys};
use crate::id::Link;
use crate::keys::ClassicSecret;
use crate::test_entropy::Zeros;

pub(super) fn run(file: &Value) -> Counts {
    let mut tally = Tally::expect(&["lines", "lines refused", "origin messages", "origin refused"]);
    keys(file);
    let (mut server, mut client) = ends(file);
    for case in file.list("lines") {
        let text = String::from_utf8(case.hex("text")).unwrap();
        let (from, to) = match case.text("direction") {
            "c2s" => (&mut client, &mut server),
            "s2c" => (&mut server, &mut client),
            other => panic!("direction {other}"),
        };
        let line = case.text("line");
        let mut sealed = Vec::new();
        from.seal(&text, &mut once(case), &mut sealed);
        // Twinlock sends only one of the two headers.
        if case.text("header") == r#"{"alg":"dir","enc":"A256CBC-HS512"}"# {
            assert_eq!(String::from_utf8(sealed).unwrap(), line);
        }
        assert_eq!(to.open(line.trim_end_matches('\n').as_bytes()), Ok(text), "{case}");
        tally.add("lines");
    }
    let first_answer = file.list("lines").iter().find(|case| case.text("direction") == "s2c");
    let link = Link(file.bytes("ack_link"));
    assert_eq!(first_answer.unwrap().hex("text"), answer(12, 345, &link).as_bytes());

    for case in file.list("bad_lines") {
        assert_eq!((case.text("expected"), case.text("direction")), ("close", "c2s"));
        let line = case.text("line").trim_end_matches('\n');
        let (mut server, mut client) = ends(file);
        for _ in 0..case.num("expected_seq") {
            let mut before = Vec::new();
            client.seal("before", &mut Zeros, &mut before);
            before.pop();
            server.open(&before).unwrap();
        }
        assert!(server.open(line.as_bytes()).is_err(), "{}", case.text("name"));
        tally.add("lines refused");
    }
    origin(&file["origin"], &mut tally);
    tally.done()
}

fn keys(file: &Value) {
    let psk = ClassicSecret::new(&file.bytes("psk"));
    let keys = line_keys(&psk, &file.bytes("sn"), &file.bytes("cn"), file.text("kid"));
    assert_eq!(
        keys.map(|key| *key.expose_secret()),
        [file.bytes("key_c2s"), file.bytes("key_s2c")]
    );
}

/// Both ends after the first lines.
fn ends(file: &Value) -> (ClassicChannel, ClassicChannel) {
    let psk = ClassicSecret::new(&file.bytes("psk"));
    let drawn = |name: &str| {
        let mut script = Script::default();
        script.push(name, file.hex(name));
        script
    };
    let greeting = Greeting::draw(&mut drawn("sn"));
    assert_eq!(greeting.line(), file.text("server_hello"));
    let server_hello = file.text("server_hello").trim_end().as_bytes();
    let (hello, client) = call(file.text("kid"), &psk, server_hello, &mut drawn("cn")).unwrap();
    assert_eq!(hello, file.text("client_hello"));
    let hello = greeting.read_hello(hello.trim_end().as_bytes()).unwrap();
    (hello.lines(&psk), client)
}

fn once(case: &Value) -> Script {
    let mut script = Script::default();
    script.push("iv", case.hex("iv"));
    script
}

fn origin(origin: &Value, tally: &mut Tally) {
    let shared = ClassicSecret::new(&origin.bytes("shared_key"));
    let server = |form| Bridge::new(form, &shared).unwrap();
    for case in origin.list("messages") {
        let text = String::from_utf8(case.hex("text")).unwrap();
        for (form, key) in
            [(ClassicScheme::Origin, "plain_form"), (ClassicScheme::OriginHmac, "mac_form")]
        {
            let (from, to) = match case.text("direction") {
                "c2s" => (server(form).reversed(), server(form)),
                _ => (server(form), server(form).reversed()),
            };
            assert_eq!(from.seal(&text, &mut once(case)), case.text(key));
            assert_eq!(to.open(case.text(key).as_bytes()), Some(text.clone()));
        }
        tally.add("origin messages");
    }
    for case in origin.list("bad") {
        assert_eq!(case.text("expected"), "close");
        let form = match case.text("form") {
            "plain" => ClassicScheme::Origin,
            "mac" => ClassicScheme::OriginHmac,
            form => panic!("form {form}"),
        };
        let line = case.text("line").trim_end_matches('\n');
        assert_eq!(server(form).open(line.as_bytes()), None, "{}", case.text("name"));
        tally.add("origin refused");
    }
}
