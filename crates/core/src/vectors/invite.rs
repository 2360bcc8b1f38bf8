//! `invite.json`: invite links, good and bad, and the server words.

use serde_json::Value;

use super::{Case, Counts, Tally};
use crate::id::{InviteId, ServerKey, TlsPin};
use crate::invite::{InviteLink, server_words};
use crate::schedule;

pub(super) fn run(file: &Value) -> Counts {
    let mut tally = Tally::default();
    for case in file.list("cases") {
        let (name, expected) = (case.text("name"), &case["expected"]);
        match (InviteLink::parse(case.text("link")), expected.text("outcome")) {
            (Ok(link), "accepted") => {
                assert_eq!(link.address.host(), expected.text("host"), "{name}");
                assert_eq!(u64::from(link.address.port()), expected.num("port"), "{name}");
                assert_eq!(link.address.path(), expected.text("path"), "{name}");
                let flags = u64::from(link.tls_pin.is_some()) | u64::from(link.proxy) << 1;
                assert_eq!(flags, expected.num("flags"), "{name}");
                assert_eq!(link.id, InviteId(expected.bytes("id")), "{name}");
                assert_eq!(link.secret.expose_secret(), &expected.bytes("secret"), "{name}");
                assert_eq!(link.server_key, ServerKey(expected.bytes("server_key")), "{name}");
                let pin = expected.has("tls_pin").then(|| TlsPin(expected.bytes("tls_pin")));
                assert_eq!(link.tls_pin, pin, "{name}");
                assert_eq!(*link.to_link(), case.text("link"), "{name}");
                tally.add("accepted");
            }
            (Err(_), "refused") => tally.add("refused"),
            (parsed, outcome) => panic!("{name}: {parsed:?}, not {outcome}"),
        }
    }
    let list = include_bytes!("../../data/bip39-english.txt");
    let words: Vec<&str> = std::str::from_utf8(list).unwrap().lines().collect();
    for case in file.list("fingerprints") {
        let said = server_words(&ServerKey(case.bytes("server_key")));
        assert_eq!(said, case.text("words"));
        let places: Vec<_> = said
            .split(' ')
            .map(|word| Value::from(words.iter().position(|w| *w == word).unwrap()))
            .collect();
        assert_eq!(places, case.list("indices"));
        tally.add("fingerprints");
    }
    assert_eq!(schedule::hash(&[list]), file.bytes("word_list_sha256"));
    tally.add_many("words", words.len());
    tally.done()
}
