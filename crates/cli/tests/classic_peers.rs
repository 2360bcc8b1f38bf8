//! Classic lines and the origin bridge as others use them: the programs of `examples/`, with
//! libraries of Python and JavaScript, against the real binary. `scripts/peers.sh` gets those
//! libraries, and `scripts/test.sh` calls it; without them these tests fail and say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Host, Person, Ran, Running};

/// A thousand messages, each answered after its own commit.
const MANY: Duration = Duration::from_secs(180);

/// `target/peers`, which has to be there.
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

/// Node looks for libraries beside the program.
fn node(name: &str) -> Command {
    let program = peers().join(name);
    std::fs::copy(example(name), &program).unwrap();
    let mut command = Command::new("node");
    command.arg(program);
    command
}

/// The port that `serve` has said it took.
fn port(host: &Host, what: &str) -> String {
    host.running().wait_lines(3);
    let said = host.running().out();
    let line = said.lines().find_map(|line| line.strip_prefix(what)).expect("it said so");
    line.rsplit(':').next().unwrap().to_owned()
}

struct Stage {
    host: Host,
    ada: Person,
    /// What `classic add` said beside the key.
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

/// Each answer names the place of its line and the link that the record has there.
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
fn peers_in_two_languages_exchange_a_thousand_lines_each_way() {
    let Stage { host, ada, .. } = stage("lamp", "jwe");
    let port = port(&host, "classic lines on ");
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
    // Who and how, wherever it is shown.
    let log = host.log();
    let logged =
        log.lines().filter(|line| line.contains(r#"message from=ada:lamp kind="classic""#));
    assert_eq!(logged.count(), 2000);
    let shown = ada.run(&["history", "ops", "--limit", "1"]).exits(0).out;
    assert!(shown.contains("ada/lamp (classic): javascript 999 Grüße ☃"), "{shown}");
}

#[test]
fn peers_verify_tls_by_the_servers_certificate_and_are_closed_with_a_wrong_key() {
    let Stage { host, ada, .. } = stage("lamp", "jwe");
    let port = port(&host, "classic lines on ");
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
    assert_eq!(common::texts(&ada.reads("ops")), ["verified", "verified"]);
}

#[test]
fn peers_of_the_origin_get_an_answer_to_each_of_a_thousand_messages_beside_a_hundred_others() {
    let Stage { host, ada, .. } = stage("old", "origin");
    let port = port(&host, "origin bridge on ");
    // One process for the hundred: each of its threads is a client.
    let crowd = host.root().join("crowd.py");
    std::fs::write(&crowd, CROWD).unwrap();
    let mut others = python(&crowd);
    others.args(["127.0.0.1", &port, "old.key", "100"]).current_dir(host.root());
    let mut others = Running::start(&mut others);
    others.wait_lines(1);
    let (texts, input) = numbered("origin", 0, 1000);
    let arguments = ["127.0.0.1", &*port, "old.key"];
    let said = run(python(&example("origin_client.py")), &host, &arguments, &input, MANY).exits(0);
    assert_eq!(said.out.lines().count(), 1000);
    assert!(said.out.lines().all(|line| line.starts_with("Message received at 20")));
    // They went on all the while, and lost nothing.
    assert!(others.is_running());
    others.end_input();
    let counted = others.ended(MANY).exits(0).out;
    let counted: usize = counted.lines().last().unwrap().parse().unwrap();
    let entries = ada.reads("ops");
    let mine: Vec<_> = entries
        .iter()
        .filter(|entry| entry["text"].as_str().unwrap().starts_with("origin "))
        .collect();
    assert_eq!(mine.iter().map(|entry| entry["text"].as_str().unwrap()).collect::<Vec<_>>(), texts);
    assert!(entries.iter().all(|entry| entry["kind"] == "unprotected" && entry["device"] == "old"));
    assert!(counted >= 100 && entries.len() == 1000 + counted, "{counted} {}", entries.len());
}

/// Threads that send as the origin's client does until standard input ends; says when each of them
/// has had an answer, and how many answers they had.
const CROWD: &str = r#"
import base64, socket, ssl, sys, threading
from Crypto.Cipher import AES
from Crypto.Random import get_random_bytes
from Crypto.Util.Padding import pad, unpad

host, port, keyfile, clients = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
key = bytes.fromhex(open(keyfile).read().strip())
tls = ssl.create_default_context()
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
over, begun, counts = threading.Event(), threading.Barrier(clients + 1), [0] * clients

def client(me):
    line = tls.wrap_socket(socket.create_connection((host, port), 60))
    while not (counts[me] and over.is_set()):
        iv = get_random_bytes(16)
        text = pad(f"crowd {me} {counts[me]}".encode(), 16)
        line.sendall(base64.b64encode(iv + AES.new(key, AES.MODE_CBC, iv).encrypt(text)))
        answer = base64.b64decode(line.recv(4096))
        answer = unpad(AES.new(key, AES.MODE_CBC, answer[:16]).decrypt(answer[16:]), 16)
        assert answer.startswith(b"Message received at "), answer
        counts[me] += 1
        if counts[me] == 1:
            begun.wait()
        over.wait(0.1)

threads = [threading.Thread(target=client, args=(me,)) for me in range(clients)]
for thread in threads:
    thread.start()
begun.wait()
print("all are there", flush=True)
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(sum(counts))
"#;

#[test]
fn peers_use_the_form_with_a_mac_and_openssl_the_form_without() {
    let Stage { host, ada, .. } = stage("oldmac", "origin-hmac");
    add(&host, &ada, "old", "origin");
    let port = port(&host, "origin bridge on ");
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
    assert_eq!(common::texts(with_mac), texts);
    assert!(with_mac.iter().all(|entry| entry["device"] == "oldmac"));
    assert_eq!(common::texts(without), ["one", "Grüße ☃"]);
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

/// What stands between a line that begins with `--- head` and the next `---`.
fn shown<'s>(said: &'s str, head: &str) -> &'s str {
    let from = said.find(&format!("--- {head}")).unwrap_or_else(|| panic!("no {head} in {said}"));
    let (_, rest) = said[from..].split_once('\n').unwrap();
    rest.split_once("\n---").unwrap().0
}

#[test]
fn peers_run_what_classic_add_shows_as_it_stands() {
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
        assert!(common::texts(&entries).iter().all(|text| *text == "hello"), "{entries:?}");
        assert_eq!(entries.len(), if format == "origin" { 2 } else { 1 });
    }
}
