//! Text and names that a script supplies are never taken for options.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::common::*;

/// Texts that are options, or look like some.
const DASHED: [&str; 9] =
    ["-h", "--help", "-q", "-v", "--json", "-V", "--timeout", "--timeout=1s", "-x"];

#[test]
fn options__option_like_text_needs_double_dash() {
    let host = Host::start();
    let ada = host.owner();
    for text in DASHED {
        let ran = ada.run(&["send", "lobby", text]).exits(2);
        assert!(ran.err.contains("`--`") && ran.out.is_empty(), "{text}: {ran:?}");
    }
    ada.run(&["send", "lobby", "--json", "hello"]).exits(2);
    ada.run(&["send", "lobby", "hello", "there"]).exits(2);
    assert!(ada.reads("lobby").is_empty());
    for text in DASHED {
        ada.run(&["send", "lobby", "--", text]).exits(0);
    }
    ada.run(&["send", "--", "lobby", "-h"]).exits(0);
    ada.run(&["send", "--json", "lobby", "--", "--"]).exits(0);
    ada.run_with(&["send", "lobby", "--", "-"], "not read\n").exits(0);
    ada.run_with(&["send", "lobby", "-"], "read\n").exits(0);
    let mut sent = DASHED.to_vec();
    sent.extend(["-h", "--", "-", "read"]);
    assert_eq!(texts(&ada.reads("lobby")), sent);
}

#[test]
fn options__values_may_start_with_dash_positionals_may_not() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "--", "-h stands here"]).exits(0);
    for (nth, text) in DASHED.iter().enumerate() {
        let room = format!("room-{nth}");
        ada.run(&["room", "create", &room, "--topic", text]).exits(0);
        assert_eq!(ada.run(&["room", "topic", &room]).exits(0).out.trim(), *text);
        let refused = ada.run(&["room", "topic", &room, text]).exits(2);
        assert!(refused.err.contains("`--`") && refused.out.is_empty(), "{text}: {refused:?}");
        ada.run(&["room", "topic", &room, "--", &format!("{text} again")]).exits(0);
        let topic = ada.run(&["room", "topic", &room]).exits(0).out;
        assert_eq!(topic.trim(), format!("{text} again"));
        // The value of an option, found or not: it never requests help.
        let found = ada.run(&["history", "lobby", "--json", "--search", text]);
        assert!(!found.out.contains("Usage"), "{text}: {found:?}");
        let refused = ada.run(&["invite", "--user", text]).exits(2);
        assert!(refused.out.is_empty(), "{text}: {refused:?}");
    }
    let file = ada.home.join("plain.txt");
    std::fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    ada.run(&["put", file, "lobby", "--name", "-h"]).exits(0);
    assert_eq!(ada.reads("lobby").last().unwrap()["file"]["name"], "-h");
    let label = ["--profile", "two", "join", "--no-password", "--user", "bob", "--device", "-q"];
    let link = ada.invites();
    ada.run(&[&label[..], &[link.as_str()]].concat()).exits(0);
    let devices = ada.run(&["--profile", "two", "devices", "--json"]).exits(0).json();
    assert_eq!(devices[0]["label"], "-q");
}

#[test]
fn options__help_must_be_the_last_argument() {
    let host = Host::start();
    let ada = host.owner();
    let file = ada.home.join("-h.txt");
    std::fs::write(&file, "x").unwrap();
    for args in [
        &["put", "-h", "lobby"][..],
        &["put", "-h.txt", "lobby"],
        &["put", "a.txt", "--help", "lobby"],
        &["room", "create", "-h", "--topic", "x"],
        &["classic", "add", "-h", "--to", "lobby"],
    ] {
        let ran = Running::start(ada.command(args).current_dir(&ada.home)).ended(LONG).exits(2);
        assert!(ran.err.contains("'--'") && ran.out.is_empty(), "{args:?}: {ran:?}");
    }
    let put = ["put", "--", "-h.txt", "lobby"];
    Running::start(ada.command(&put).current_dir(&ada.home)).ended(LONG).exits(0);
    for args in [&["put", "--help"][..], &["--help"], &["-V"], &["help", "put"], &["send", "-h"]] {
        assert!(!ada.run(args).exits(0).out.is_empty(), "{args:?}");
    }
}

/// Every variable that the program reads as a setting.
const VARIABLES: [&str; 24] = [
    "TWINLOCK_ADDRESS",
    "TWINLOCK_BEHIND_PROXY",
    "TWINLOCK_BINDING",
    "TWINLOCK_CLASSIC_PORT",
    "TWINLOCK_CONFIG",
    "TWINLOCK_DATA",
    "TWINLOCK_FORWARDED_FROM",
    "TWINLOCK_HOST",
    "TWINLOCK_INDEX",
    "TWINLOCK_LOG_JSON",
    "TWINLOCK_LOG_LEVEL",
    "TWINLOCK_LOG_MESSAGES",
    "TWINLOCK_ORIGIN_PORT",
    "TWINLOCK_PLAIN_HOST",
    "TWINLOCK_PLAIN_PORT",
    "TWINLOCK_PORT",
    "TWINLOCK_PROFILE",
    "TWINLOCK_PROXY",
    "TWINLOCK_PUBLIC_HOST",
    "TWINLOCK_TLS_CERT",
    "TWINLOCK_TLS_KEY",
    "TWINLOCK_TLS_KEY_TYPE",
    "TWINLOCK_TRANSPORT",
    "TWINLOCK_WEBSOCKET_PATH",
];

#[test]
fn options__empty_environment_variable_is_unset() {
    let dir = tempfile::tempdir().unwrap();
    let empty = |command: &mut std::process::Command| {
        for name in VARIABLES {
            command.env(name, "");
        }
        command.env("TWINLOCK_PASSWORD", "").env("TWINLOCK_NEW_PASSWORD", "");
    };
    let mut serve = twinlock();
    serve.args(["serve", "--port", "0"]).env("HOME", dir.path());
    empty(&mut serve);
    let server = Running::start(&mut serve);
    server.wait_lines(1);
    let data = dir.path().join(".local/share/twinlock-server");
    let link = std::fs::read_to_string(data.join("owner-invite")).unwrap();
    let join = |args: &[&str]| {
        let mut join = twinlock();
        join.args(["join", "--user", "ada"]).args(args).arg(link.trim()).env("HOME", dir.path());
        empty(&mut join);
        // An empty value does not set the directory of the profiles either.
        join.env("TWINLOCK_HOME", "");
        Running::start(&mut join).ended(LONG)
    };
    let unasked = join(&[]).exits(2);
    assert!(unasked.err.contains("no terminal to ask for a password"), "{unasked:?}");
    join(&["--no-password"]).exits(0);
    assert!(dir.path().join(".config/twinlock/profiles/default.toml").is_file());
    server.signal(rustix::process::Signal::TERM);
    server.ended(LONG).exits(0);
    // The list is complete: help names the variables of every command.
    for command in ["serve", "send", "join", "login", "passwd", "devices"] {
        let help = Running::start(twinlock().args([command, "--help"])).ended(LONG).exits(0).out;
        for word in help.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
            let known = VARIABLES.contains(&word) || word.ends_with("_PASSWORD");
            assert!(known || !word.starts_with("TWINLOCK_"), "{word} is not tested");
        }
    }
}

#[test]
fn options__empty_value_is_refused_and_handles_no_entry() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "one"]).exits(0);
    for args in [
        &["listen", "lobby", "--since", "all", "--exec", ""][..],
        &["listen", "lobby", "--since", "all", "--exec", "  "],
        &["listen", "lobby", "--since", "all", "--get", ""],
        &["history", "lobby", "--search", ""],
    ] {
        let ran = ada.run(&[&["--timeout", "20s"], args].concat()).exits(2);
        assert!(ran.err.contains("empty") || ran.err.contains("value"), "{args:?}: {ran:?}");
    }
    // No entry counts as handled.
    let got = ada.run(&["listen", "lobby", "--since", "all", "--count", "1", "--exec", "cat"]);
    assert!(got.exits(0).out.contains("\"one\""));
}

/// Root has no process limit, so the test then runs the command as another user.
#[test]
fn threads__start_failure_is_reported() {
    // Above it there is no directory that the other user may not enter.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("twinlock");
    fs::copy(twinlock().get_program(), &program).unwrap();
    let root = rustix::process::geteuid().is_root();
    for args in ["status", "serve --port 0 --data data"] {
        let mut command = Command::new(if root { "setpriv" } else { "env" });
        if root {
            command.args(["--reuid=64999", "--regid=64999", "--clear-groups"]);
        }
        command.args(["bash", "-c", &format!("ulimit -u 1; exec \"$0\" {args}")]).arg(&program);
        command.env("TWINLOCK_HOME", dir.path().join("home")).current_dir(dir.path());
        let ran = Running::start(&mut command).ended(LONG).exits(2);
        assert!(ran.err.contains("threads cannot be started"), "{args}: {ran:?}");
    }
}
