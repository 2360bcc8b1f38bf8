//! TLS interception: a real proxy, whose certificate its clients trust, terminates TLS and keeps
//! everything that it decrypts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::proxy::{Proxy, Watch, forms};
use crate::common::raw::Card;
use crate::common::*;
use data_encoding::HEXLOWER;
use twinlock_core::invite::InviteLink;

const MESSAGES: usize = 10_000;
const CUT: &str = "TLS is intercepted between";
/// What the proxy's certificate says.
const BY: &str = "(its certificate is issued by rcgen self signed cert)";

/// The decrypted TLS data, both directions of all connections.
#[derive(Default, Clone)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    fn watch(&self) -> impl Fn() -> Watch + Send + Sync + use<> {
        let seen = self.0.clone();
        move || {
            let seen = seen.clone();
            Box::new(move |part| seen.lock().unwrap().extend_from_slice(part))
        }
    }

    fn bytes(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn has(&self, what: &[u8]) -> bool {
        assert!(what.len() >= 4);
        let seen = self.0.lock().unwrap();
        seen.windows(what.len()).any(|window| window == what)
    }
}

fn device_secret(person: &Person) -> Vec<u8> {
    let text = person.profile_text();
    let line = text.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap();
    HEXLOWER.decode(line.trim_matches('"').as_bytes()).unwrap()
}

#[test]
fn tls_interception__proxy_cannot_read_messages_or_secrets() {
    const PASSWORD: &str = "nobody-in-between-reads-this";
    let host = Host::start_with(&["--host", "127.0.0.1"]);
    let ada = host.owner();
    let seen = Seen::default();
    let proxy = Proxy::start(&host, Card::of(&ada).server, seen.watch());
    let password_file = host.root().join("password");
    std::fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
    let password_file = password_file.to_str().unwrap();

    // A user joins through the proxy, with a password, by an invite link with the proxy's key.
    let link = proxy.forges(&ada.invites());
    let secret = *InviteLink::parse(&link).unwrap().secret.expose_secret();
    let bob = host.stranger();
    let joined =
        bob.run(&["join", "--user", "bob", "--password-file", password_file, &link]).exits(0);
    assert!(joined.err.contains(CUT), "{joined:?}");
    // And logs in through it on another device, trusting the proxy as a CA.
    let account = format!("bob@{}", proxy.address);
    let ca_file = proxy.ca_file.to_str().unwrap();
    let phone = host.stranger();
    let login = ["login", &account, "--password-file", password_file, "--ca", ca_file];
    let logged_in = phone.run(&login).exits(0);
    assert!(logged_in.err.contains(CUT), "{logged_in:?}");

    let [bob, phone] = [bob, phone].map(|person| proxy.is_trusted_by(&person, "warn"));
    let marker = "Kennwort-Zeile";
    let text = (0..MESSAGES).map(|n| format!("{marker} {n:05}\n")).collect::<String>();
    let count = MESSAGES.to_string();
    let listening = phone.start(&["listen", "lobby", "--since", "all", "--count", &count]);
    let sent = bob.run_with(&["send", "lobby"], &text).exits(0);
    let heard = listening.ended(LONG).exits(0);
    assert_eq!(heard.out.matches(marker).count(), MESSAGES);
    for said in [sent.err, heard.err] {
        assert!(said.contains(CUT), "{said}");
        assert!(said.contains("The inner lock held"), "{said}");
    }
    let status = bob.run(&["status", "--json"]).exits(0);
    assert_eq!(status.json()[0]["tls"]["binding"], "cut");
    assert_eq!(status.json()[0]["tls"]["issuer"], "rcgen self signed cert");
    let status = bob.run(&["status"]).exits(0);
    assert!(status.out.contains("INTERCEPTED") && status.out.contains(BY), "{status:?}");
    // So does a load generator, in each of its forms.
    let bench = ["bench", "--mode", "messages", "--lines", "1", "--seconds", "0.2"];
    let table = bob.run(&bench).exits(0);
    assert!(table.out.contains("INTERCEPTED") && table.out.contains(BY), "{table:?}");
    assert!(table.err.contains(CUT) && table.err.contains(BY), "{table:?}");
    let json = bob.run(&[&bench[..], &["--json"]].concat()).exits(0);
    assert_eq!(json.json()[0]["tls"]["binding"], "cut");
    assert_eq!(json.json()[0]["tls"]["issuer"], "rcgen self signed cert");
    assert_eq!(json.json()[0]["tls"]["transport"], "tls");
    let log = std::fs::read_to_string(bob.home.join("state/default/client.log")).unwrap();
    let cut = "TLS is intercepted between this client and the server";
    assert!(log.lines().any(|line| line.contains(" WARN ") && line.contains(cut)), "{log}");
    assert!(log.contains("binding=Cut") && !log.contains(marker), "{log}");
    // A client without the proxy reads the same, and gets no warning.
    let read = ada.run(&["history", "lobby", "--limit", "20000"]).exits(0);
    assert_eq!(read.out.matches(marker).count(), MESSAGES);
    assert_eq!(read.err, "");

    // The proxy saw everything: handshakes name the user of a password login.
    proxy.wait_ended(proxy.connections());
    assert!(proxy.connections() >= 5, "{}", proxy.connections());
    assert!(seen.bytes() > MESSAGES * 50);
    assert!(seen.has(b"\x01\x00\x01\x03bob"));
    let mut secrets = vec![marker.into(), b"Kennwort".to_vec()];
    secrets.extend(forms(PASSWORD.as_bytes()));
    secrets.extend(forms(&secret));
    secrets.extend(forms(&device_secret(&bob)));
    secrets.extend(forms(&device_secret(&phone)));
    for secret in secrets {
        assert!(!seen.has(&secret), "{:?}", String::from_utf8_lossy(&secret));
    }
}

#[test]
fn tls_interception__require_binding_sends_nothing_via_proxy() {
    let mut host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let seen = Seen::default();
    let proxy = Proxy::start(&host, Card::of(&ada).server, seen.watch());

    // Required by the client.
    let strict = proxy.is_trusted_by(&bob, "require");
    let limit = Duration::from_secs(20);
    let file = host.root().join("file");
    std::fs::write(&file, "secret").unwrap();
    let commands = [
        &["send", "lobby", "secret"][..],
        &["history", "lobby"],
        &["status"],
        &["devices"],
        &["put", file.to_str().unwrap(), "lobby"],
        &["outbox", "retry"],
        &["bench", "--mode", "messages", "--seconds", "0.2"],
    ];
    for args in commands {
        let ran = strict.start(args).ended(limit).exits(4);
        assert!(ran.err.contains(CUT) && ran.err.contains(BY), "{ran:?}");
    }
    proxy.wait_ended(commands.len());
    assert_eq!(proxy.connections(), commands.len());
    let log = std::fs::read_to_string(strict.home.join("state/default/client.log")).unwrap();
    let refused =
        |line: &str| line.contains(" WARN ") && line.contains("no session") && line.contains(BY);
    assert!(log.lines().filter(|line| refused(line)).count() >= 3, "{log}");
    assert!(!log.contains("session begun"), "{log}");
    // Nothing was recorded; the message stays in the outbox.
    assert_eq!(ada.reads("lobby").len(), 0);
    // A `join` that requires it leaves no profile, and the invite stays valid.
    let link = ada.invites();
    let carol = host.stranger();
    let join = |link: &str, code| {
        let args = ["join", "--no-password", "--require-binding", "--user", "carol", link];
        carol.run(&args).exits(code)
    };
    let refused = join(&proxy.forges(&link), 4);
    assert!(refused.err.contains(CUT) && refused.err.contains(BY), "{refused:?}");
    assert!(!carol.profile_file().exists());
    join(&link, 0);
    assert!(carol.profile_text().contains("binding = \"require\""));
    carol.run(&["send", "lobby", "straight"]).exits(0);
    // So does a login, which leaves no device either.
    let password_file = host.root().join("password");
    std::fs::write(&password_file, "nobody-in-between-reads-this\n").unwrap();
    let password_file = password_file.to_str().unwrap();
    let dave = host.stranger();
    let join = ["join", "--user", "dave", "--password-file", password_file, &ada.invites()];
    dave.run(&join).exits(0);
    let (account, phone) = (format!("dave@{}", proxy.address), host.stranger());
    let ca_file = proxy.ca_file.to_str().unwrap();
    let login = ["login", &account, "--password-file", password_file, "--ca", ca_file];
    let refused = phone.run(&[&login[..], &["--require-binding"]].concat()).exits(4);
    assert!(refused.err.contains(CUT) && refused.err.contains(BY), "{refused:?}");
    assert!(!phone.profile_file().exists());
    assert_eq!(dave.run(&["devices", "--json"]).exits(0).json().len(), 1);
    let strict = proxy.is_trusted_by(&dave, "require");
    let passwd = ["passwd", "--password-file", password_file, "--new-password-file", password_file];
    let refused = strict.start(&passwd).ended(limit).exits(4);
    assert!(refused.err.contains(CUT) && refused.err.contains(BY), "{refused:?}");

    // Required by the server, for a client that would accept it.
    host.terminate().exits(0);
    host.set_args(&["--binding", "require"]);
    host.restart();
    let easy = proxy.is_trusted_by(&bob, "warn");
    for args in [&["send", "lobby", "secret"][..], &["history", "lobby"]] {
        let ran = easy.start(args).ended(limit).exits(4);
        assert!(ran.err.contains(CUT) && ran.err.contains(BY), "{ran:?}");
    }
    assert_eq!(texts(&ada.reads("lobby")), ["straight"]);
    assert!(!seen.has(b"secret"));
}
