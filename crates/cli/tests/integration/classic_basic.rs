//! `classic` and the two classic ports of `serve`, through the real binary.

use crate::common::Host;

#[test]
fn classic_key__is_shown_once_listed_and_revoked() {
    let host = Host::start_with(&["--classic-port", "0"]);
    let ada = host.owner();
    ada.run(&["room", "create", "ops"]).exits(0);
    let added = ada.run(&["classic", "add", "Lamp", "--to", "ops"]).exits(0);
    let key = added.out.trim_end().to_owned();
    assert!(key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit()), "{added:?}");
    assert!(added.err.contains("shown once") && !added.err.contains(&key), "{added:?}");
    let listed = ada.run(&["classic", "list", "--json"]).exits(0);
    let json = listed.json();
    assert_eq!(json.len(), 1);
    assert_eq!(
        ["name", "user", "conversation", "format"].map(|field| json[0][field].as_str().unwrap()),
        ["lamp", "ada", "ops", "jwe"]
    );
    let shown = ada.run(&["classic", "list"]).exits(0);
    assert!(shown.out.starts_with("lamp  to ops  jwe "), "{shown:?}");
    // The key appears nowhere else: not in a list, the log or the record.
    for text in [&listed.out, &shown.out, &host.log()] {
        assert!(!text.contains(&key));
    }
    let raw = data_encoding::HEXLOWER.decode(key.as_bytes()).unwrap();
    for file in std::fs::read_dir(host.data().join("record")).unwrap() {
        let file = file.unwrap().path();
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(32).any(|window| window == raw), "{file:?}");
        assert!(!bytes.windows(64).any(|window| window == key.as_bytes()), "{file:?}");
    }
    let again = ada.run(&["classic", "add", "lamp", "--to", "ops"]).exits(7);
    assert!(again.err.contains("taken") && again.out.is_empty(), "{again:?}");
    ada.run(&["classic", "revoke", "lamp"]).exits(0);
    let gone = ada.run(&["classic", "revoke", "lamp"]).exits(7);
    assert!(gone.err.contains("no key lamp"), "{gone:?}");
    assert!(ada.run(&["classic", "list", "--json"]).exits(0).out.is_empty());
}

#[test]
fn classic_key__json_output_has_key_format_and_address() {
    let host = Host::start_with(&["--classic-port", "0"]);
    let ada = host.owner();
    let added = ada.run(&["classic", "add", "lamp", "--to", "lobby", "--json"]).exits(0);
    let json = &added.json()[0];
    assert!(added.err.is_empty(), "{added:?}");
    assert_eq!(
        ["name", "conversation", "format", "host"].map(|field| json[field].as_str().unwrap()),
        ["lamp", "lobby", "jwe", "127.0.0.1"]
    );
    host.running().wait_lines(2);
    let said = host.running().out();
    assert!(
        said.contains(&format!("classic connections on 127.0.0.1:{}\n", json["port"])),
        "{said}"
    );
    assert_eq!(json["key"].as_str().unwrap().len(), 64);
    // The other listener is off, and `classic add` reports that.
    let plain = ["classic", "add", "old", "--to", "lobby", "--format", "origin"];
    let added = ada.run(&plain).exits(0);
    assert!(added.err.contains("--origin-port"), "{added:?}");
    let second =
        ada.run(&["classic", "add", "old2", "--to", "lobby", "--format", "origin"]).exits(7);
    assert!(second.err.contains("a key of the format origin already"), "{second:?}");
}

#[test]
fn classic_key__only_admin_in_the_room_can_add() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    bob.run(&["room", "create", "bobs"]).exits(0);
    let refused = bob.run(&["classic", "add", "x", "--to", "bobs"]).exits(7);
    assert!(refused.err.contains("needs the role admin or owner"), "{refused:?}");
    ada.run(&["classic", "add", "x", "--to", "bobs"]).exits(7);
    ada.run(&["classic", "add", "x", "--to", "@bob"]).exits(2);
    ada.run(&["classic", "add", "x", "--to", "lobby", "--format", "rot13"]).exits(2);
    ada.run(&["classic", "add", "no name", "--to", "lobby"]).exits(2);
    ada.run(&["classic", "add", "x"]).exits(2);
    assert!(ada.run(&["classic", "list", "--json"]).exits(0).out.is_empty());
}

#[test]
fn classic_listener__is_off_by_default_and_bridge_warns() {
    let mut host = Host::start();
    host.terminate().exits(0);
    host.set_args(&["--classic-port", "0", "--origin-port", "0"]);
    host.restart();
    host.running().wait_lines(3);
    let said = host.running().out();
    assert!(said.contains("\nclassic connections on 127.0.0.1:"), "{said}");
    assert!(said.contains("\norigin bridge on 127.0.0.1:"), "{said}");
    host.running().wait_err("Its entries are marked as unprotected");
    let ran = host.terminate().exits(0);
    assert!(ran.err.contains("can repeat") && ran.err.contains("alter"), "{ran:?}");
    // From the configuration file as well; the classic listener alone prints no warning.
    let file = host.root().join("twinlock.toml");
    std::fs::write(&file, "classic-port = 0\n[limits]\nclassic-connections = 7\n").unwrap();
    host.set_args(&["--config", file.to_str().unwrap()]);
    host.restart();
    host.running().wait_lines(2);
    assert!(host.running().out().contains("\nclassic connections on 127.0.0.1:"));
    let ran = host.terminate().exits(0);
    assert!(!ran.out.contains("origin") && !ran.err.contains("unprotected"), "{ran:?}");
    host.set_args(&[]);
    host.restart();
    assert_eq!(host.terminate().exits(0).out.lines().count(), 1);
}

#[test]
fn classic_key__import_raw_hex_base64_stores_no_clear_key() {
    let host = Host::start_with(&["--origin-port", "0"]);
    let ada = host.owner();
    let key: [u8; 32] = std::array::from_fn(|n| (n as u8).wrapping_mul(37) ^ 0xa5);
    let hex = data_encoding::HEXLOWER.encode(&key);
    let base64 = data_encoding::BASE64.encode(&key);
    let file = host.root().join("built-in.key");
    let path = file.to_str().unwrap();
    let add = |format: &str, content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        let key_file = ["--format", format, "--key-file", path];
        ada.run(&[&["classic", "add", "old", "--to", "lobby"][..], &key_file].concat())
    };
    let forms = [
        key.to_vec(),
        format!("{hex}\n").into_bytes(),
        hex.to_uppercase().into_bytes(),
        format!(" {base64}\r\n").into_bytes(),
        data_encoding::BASE64URL_NOPAD.encode(&key).into_bytes(),
    ];
    for content in forms {
        let added = add("origin", &content).exits(0);
        assert!(added.out.is_empty() && added.err.contains("A shared key"), "{added:?}");
        for secret in [&hex, &base64] {
            assert!(!added.err.contains(secret) && !host.log().contains(secret));
        }
        for file in std::fs::read_dir(host.data().join("record")).unwrap() {
            let file = file.unwrap().path();
            let bytes = std::fs::read(&file).unwrap();
            assert!(!bytes.windows(32).any(|window| window == key), "{file:?}");
        }
        ada.run(&["classic", "revoke", "old"]).exits(0);
    }
    for (format, content) in [
        ("origin", &key[..31]),
        ("origin", b"".as_slice()),
        ("origin", &hex.as_bytes()[..63]),
        ("origin", [0; 2000].as_slice()),
        ("jwe", &key[..]),
    ] {
        let refused = add(format, content).exits(2);
        assert!(refused.err.contains("--key-file"), "{refused:?}");
    }
    std::fs::remove_file(&file).unwrap();
    let missing = ["--format", "origin", "--key-file", path];
    ada.run(&[&["classic", "add", "old", "--to", "lobby"][..], &missing].concat()).exits(2);
    assert!(ada.run(&["classic", "list", "--json"]).exits(0).out.is_empty());
}
