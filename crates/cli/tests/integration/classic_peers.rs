//! Classic connections and the origin bridge with independent clients: the programs of `examples/`,
//! with libraries of Python and JavaScript, against the real binary. `scripts/peers.sh` installs
//! those libraries, and `scripts/test.sh` calls it. Without them these tests fail with a message.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::common::device::{Device as _, Origin, Ports};
use crate::common::{Host, Person, Ran, Running};

/// Timeout for a thousand messages, each answered after a separate commit.
const MANY: Duration = Duration::from_secs(180);

/// `target/peers`, which has to exist.
fn peers() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let peers = target.join("peers");
    assert!(
        peers.join("locked").is_file(),
        "{} is not there: ./scripts/peers.sh gets it, and needs python3 and node",
        peers.display()
    );
    peers
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

fn python(program: &Path) -> Command {
    let mut command = Command::new(peers().join("venv/bin/python"));
    command.arg(program);
    command
}

/// Node looks for libraries next to the program.
fn node(name: &str) -> Command {
    let program = peers().join(name);
    std::fs::copy(example(name), &program).unwrap();
    let mut command = Command::new("node");
    command.arg(program);
    command
}

struct Stage {
    host: Host,
    ada: Person,
    /// The messages of `classic add`, without the key.
    said: String,
}

/// A server with both listeners, and a key in the file `NAME.key`.
fn stage(name: &str, format: &str) -> Stage {
    let host = Host::start_with(&["--classic-port", "0", "--origin-port", "0", "--log-messages"]);
    let ada = host.owner();
    ada.run(&["room", "create", "ops"]).exits(0);
    let said = add(&host, &ada, name, format);
    Stage { host, ada, said }
}

fn add(host: &Host, ada: &Person, name: &str, format: &str) -> String {
    let ran = ada.run(&["classic", "add", name, "--to", "ops", "--format", format]).exits(0);
    std::fs::write(host.root().join(format!("{name}.key")), ran.out).unwrap();
    ran.err
}

fn run(mut command: Command, host: &Host, arguments: &[&str], input: &str, limit: Duration) -> Ran {
    command.args(arguments).current_dir(host.root());
    let mut running = Running::start(&mut command);
    running.write(input);
    running.end_input();
    running.ended(limit)
}

fn numbered(who: &str, from: usize, to: usize) -> (Vec<String>, String) {
    let texts: Vec<String> = (from..to).map(|i| format!("{who} {i} Grüße ☃")).collect();
    let input = texts.iter().map(|text| format!("{text}\n")).collect();
    (texts, input)
}

/// Asserts that each answer has the number of its entry and the recorded link.
fn assert_answers(answers: &str, entries: &[serde_json::Value], texts: &[String], key: &str) {
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!((answers.len(), entries.len()), (texts.len(), texts.len()));
    for ((answer, entry), text) in answers.iter().zip(entries).zip(texts) {
        let words: Vec<&str> = answer.split(' ').collect();
        let [ok, _conversation, n, link] = words[..] else { panic!("{answer}") };
        assert_eq!((ok, n), ("ok", &*entry["n"].to_string()));
        assert_eq!(entry["link"], link);
        assert_eq!(entry["text"], **text);
        assert_eq!((&entry["from"], &entry["device"]), (&"ada".into(), &key.into()));
        assert_eq!(entry["kind"], "classic");
    }
}

#[test]
fn classic_peer__python_and_node_exchange_1000_messages() {
    let Stage { host, ada, .. } = stage("lamp", "jwe");
    let port = host.printed_address("classic connections on ").port().to_string();
    let arguments = ["127.0.0.1", &port, "lamp", "lamp.key"];
    let (texts, input) = numbered("python", 0, 1000);
    let said = run(python(&example("classic_lines.py")), &host, &arguments, &input, MANY).exits(0);
    let entries = ada.reads("ops");
    assert_answers(&said.out, &entries, &texts, "lamp");
    let (texts, input) = numbered("javascript", 0, 1000);
    let said = run(node("classic_lines.mjs"), &host, &arguments, &input, MANY).exits(0);
    let entries = ada.reads("ops");
    assert_answers(&said.out, &entries[1000..], &texts, "lamp");
    ada.run(&["audit", "verify"]).exits(0);
    // Sender and form, in every display.
    let log = host.log();
    let logged =
        log.lines().filter(|line| line.contains(r#"message from=ada:lamp kind="classic""#));
    assert_eq!(logged.count(), 2000);
    let shown = ada.run(&["history", "ops", "--limit", "1"]).exits(0).out;
    assert!(shown.contains("ada/lamp (classic): javascript 999 Grüße ☃"), "{shown}");
}

#[test]
fn classic_peer__tls_is_verified_and_wrong_key_closes() {
    let Stage { host, ada, .. } = stage("lamp", "jwe");
    let port = host.printed_address("classic connections on ").port().to_string();
    std::fs::write(host.root().join("wrong.key"), "00".repeat(32)).unwrap();
    let ca = host.data().join("identity/tls-cert.pem");
    for program in [python(&example("classic_lines.py")), node("classic_lines.mjs")] {
        let command = |ca: &Path| {
            let mut command = Command::new(program.get_program());
            command.args(program.get_args()).env("TWINLOCK_CA", ca);
            command
        };
        let arguments = ["localhost", &port, "lamp", "lamp.key"];
        let said = run(command(&ca), &host, &arguments, "verified\n", MANY).exits(0);
        assert!(said.out.starts_with("ok "), "{said:?}");
        // Another server's certificate.
        let other = Host::start();
        let ca = other.data().join("identity/tls-cert.pem");
        assert_ne!(run(command(&ca), &host, &arguments, "no\n", MANY).code, Some(0));
        for (name, key) in [("lamp", "wrong.key"), ("nobody", "lamp.key")] {
            let arguments = ["127.0.0.1", &*port, name, key];
            let mut command = Command::new(program.get_program());
            command.args(program.get_args());
            let said = run(command, &host, &arguments, "no\n", MANY).exits(1);
            assert!(said.err.contains("closed the line"), "{said:?}");
        }
    }
    assert_eq!(crate::common::texts(&ada.reads("ops")), ["verified", "verified"]);
}

#[test]
fn classic_peer__origin_answers_each_message_of_101_clients() {
    const OTHERS: usize = 100;
    const EACH: usize = 1000;
    let host = Host::start_with(&["--classic-port", "0", "--origin-port", "0"]);
    let ada = host.owner();
    ada.run(&["room", "create", "ops"]).exits(0);
    add(&host, &ada, "old", "origin");
    let ports = Ports::of(&host);
    let key = std::fs::read_to_string(host.root().join("old.key")).unwrap();
    let key = data_encoding::HEXLOWER.decode(key.trim().as_bytes()).unwrap().try_into().unwrap();
    let began = Instant::now();
    // All connect before any continues; then each sends a thousand messages.
    let there = Barrier::new(OTHERS + 1);
    let said = std::thread::scope(|scope| {
        let other = |who| {
            let mut client = Origin::new(&ports, &key).unwrap();
            client.say(&format!("other {who} begins")).unwrap();
            there.wait();
            for n in 0..EACH {
                let answer = client.say(&format!("other {who} {n}")).unwrap();
                assert!(answer.starts_with("Message received at 20"), "{answer}");
            }
            Instant::now()
        };
        let others: Vec<_> = (0..OTHERS).map(|who| scope.spawn(move || other(who))).collect();
        let mut program = python(&example("origin_client.py"));
        program.args(["127.0.0.1", &ports.origin.port().to_string(), "old.key"]);
        let mut program = Running::start(program.current_dir(host.root()));
        program.write("origin begins\n");
        program.wait_lines(1);
        there.wait();
        program.write(&numbered("origin", 0, EACH).1);
        program.end_input();
        let said = program.ended(MANY).exits(0);
        let ended = Instant::now();
        let others: Vec<_> = others.into_iter().map(|other| other.join().unwrap()).collect();
        let last = others.iter().max().unwrap();
        eprintln!("{:?}; the others {:?}", ended - began, *last - began);
        said
    });
    assert_eq!(said.out.lines().count(), 1 + EACH);
    assert!(said.out.lines().all(|line| line.starts_with("Message received at 20")));
    // The messages of each client are complete, once and in order.
    let entries = ada.reads("ops");
    assert_eq!(entries.len(), (OTHERS + 1) * (1 + EACH));
    assert!(entries.iter().all(|entry| entry["kind"] == "unprotected" && entry["device"] == "old"));
    let mut by = HashMap::<_, Vec<_>>::new();
    for text in crate::common::texts(&entries) {
        let (who, what) =
            text.split_once(" Gr").map_or(text, |(text, _)| text).rsplit_once(' ').unwrap();
        by.entry(who).or_default().push(what);
    }
    assert_eq!(by.len(), OTHERS + 1);
    let expected: Vec<_> =
        std::iter::once("begins".to_owned()).chain((0..EACH).map(|n| n.to_string())).collect();
    assert!(by.values().all(|said| *said == expected));
}

#[test]
fn classic_peer__origin_hmac_and_openssl_are_recorded() {
    let Stage { host, ada, .. } = stage("oldmac", "origin-hmac");
    add(&host, &ada, "old", "origin");
    let port = host.printed_address("origin bridge on ").port().to_string();
    let (texts, input) = numbered("mac", 0, 100);
    let arguments = ["127.0.0.1", &*port, "oldmac.key", "hmac"];
    let said = run(python(&example("origin_client.py")), &host, &arguments, &input, MANY).exits(0);
    assert_eq!(said.out.matches("Message received at 20").count(), 100);
    let mut shell = Command::new("bash");
    shell.arg(example("origin_client.sh"));
    let arguments = ["127.0.0.1", &*port, "old.key"];
    let said = run(shell, &host, &arguments, "one\nGrüße ☃\n", MANY).exits(0);
    assert_eq!(said.out.matches("Message received at 20").count(), 2, "{said:?}");
    let entries = ada.reads("ops");
    let (with_mac, without) = entries.split_at(100);
    assert_eq!(crate::common::texts(with_mac), texts);
    assert!(with_mac.iter().all(|entry| entry["device"] == "oldmac"));
    assert_eq!(crate::common::texts(without), ["one", "Grüße ☃"]);
    assert!(without.iter().all(|entry| entry["device"] == "old" && entry["kind"] == "unprotected"));
    let log = host.log();
    for key in ["old", "oldmac"] {
        let logged = format!(r#"message from=ada:{key} kind="unprotected""#);
        assert!(log.contains(&logged), "{logged}");
    }
    let heard = ada.run(&["listen", "ops", "--since", "100", "--count", "1"]).exits(0).out;
    assert!(heard.contains("ada/old (unprotected): one"), "{heard}");
    let mut chat = ada.start(&["chat", "ops", "--plain"]);
    chat.write("/history\n");
    chat.end_input();
    let chat = chat.ended(MANY).exits(0).out;
    assert!(chat.contains("ada/old (unprotected): Grüße ☃"), "{chat}");
}

/// The text between a line that begins with `--- head` and the next `---`.
fn shown<'s>(said: &'s str, head: &str) -> &'s str {
    let from = said.find(&format!("--- {head}")).unwrap_or_else(|| panic!("no {head} in {said}"));
    let (_, rest) = said[from..].split_once('\n').unwrap();
    rest.split_once("\n---").unwrap().0
}

#[test]
fn classic_peer__commands_of_classic_add_run_unchanged() {
    for (name, format, file, head) in [
        ("lamp", "jwe", "classic_lines.py", "Python, classic_lines.py"),
        ("old", "origin", "origin_client.py", "Python, origin_client.py"),
        ("oldmac", "origin-hmac", "origin_client.py", "Python, origin_client.py"),
    ] {
        let Stage { host, ada, said } = stage(name, format);
        std::fs::write(host.root().join(file), shown(&said, head)).unwrap();
        let mut shell = Command::new("bash");
        let path = std::env::var("PATH").unwrap();
        let venv = peers().join("venv/bin");
        shell.env("PATH", format!("{}:{path}", venv.display()));
        shell.args(["-euo", "pipefail", "-c", shown(&said, "shell\n")]);
        run(shell, &host, &[], "", MANY).exits(0);
        if format == "origin" {
            std::fs::write(
                host.root().join("origin_client.sh"),
                shown(&said, "shell without Python, origin_client.sh"),
            )
            .unwrap();
            let command = said.lines().rev().find(|line| line.starts_with("echo")).unwrap();
            let mut shell = Command::new("bash");
            shell.args(["-euo", "pipefail", "-c", command]);
            run(shell, &host, &[], "", MANY).exits(0);
        }
        let entries = ada.reads("ops");
        assert!(crate::common::texts(&entries).iter().all(|text| *text == "hello"), "{entries:?}");
        assert_eq!(entries.len(), if format == "origin" { 2 } else { 1 });
    }
}
