//! The help texts of the command line, and its configuration by files and environment.

use std::process::Command;

use crate::common::*;

fn run(args: &[&str]) -> Ran {
    Running::start(twinlock().args(args)).ended(LONG)
}

fn serve(config: &std::path::Path, args: &[&str]) -> Command {
    let mut command = twinlock();
    command.arg("serve").arg("--config").arg(config).args(args);
    command
}

const COMMANDS: &[&str] = &[
    "serve",
    "join",
    "login",
    "chat",
    "send",
    "put",
    "get",
    "listen",
    "outbox",
    "outbox list",
    "outbox drop",
    "outbox retry",
    "history",
    "rooms",
    "room",
    "room create",
    "room join",
    "room leave",
    "room members",
    "room topic",
    "people",
    "people role",
    "people devices",
    "people suspend",
    "people restore",
    "people remove",
    "devices",
    "devices revoke",
    "invite",
    "invites",
    "invites revoke",
    "classic",
    "classic add",
    "classic list",
    "classic revoke",
    "passwd",
    "status",
    "doctor",
    "audit",
    "audit verify",
    "records",
    "records check",
    "bench",
    "completions",
    "man",
];

#[test]
fn help__every_command_fits_80_columns_with_example() {
    let main = run(&["--help"]).exits(0);
    for command in COMMANDS.iter().chain([&""]) {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("--help");
        let help = run(&args).exits(0).out;
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{command}: {line}");
        }
        if !command.contains(' ') {
            assert!(help.contains("Example"), "{command}: {help}");
            assert!(main.out.contains(command), "{command}");
        }
    }
    assert!(main.out.contains("130 interrupted"), "{main:?}");
    // Values of the environment may be private and are not shown.
    let shown =
        Running::start(twinlock().env("TWINLOCK_DATA", "/somewhere").args(["serve", "--help"]));
    let shown = shown.ended(LONG).exits(0).out;
    assert!(shown.contains("TWINLOCK_DATA") && !shown.contains("/somewhere"), "{shown}");
}

#[test]
fn help__mistyped_word_gets_a_suggestion() {
    for (typed, meant) in [
        (&["lisen"][..], "listen"),
        (&["send", "--jsn", "ops", "x"], "--json"),
        (&["room", "crate", "ops"], "create"),
        (&["serve", "--public-hots", "x"], "--public-host"),
        (&["invite", "--role", "admn"], "admin"),
    ] {
        let ran = run(typed).exits(2);
        assert!(ran.err.contains(meant), "{typed:?}: {ran:?}");
        assert!(ran.out.is_empty(), "{ran:?}");
    }
}

#[test]
fn help__version_commit_completions_and_man_pages_exist() {
    let version = run(&["--version"]).exits(0).out;
    let git = Command::new("git").args(["rev-parse", "HEAD"]).output().unwrap();
    let (name, commit) = version.trim().split_once(" (").unwrap_or((version.trim(), ""));
    assert_eq!(name, concat!("twinlock ", env!("CARGO_PKG_VERSION")));
    if git.status.success() {
        let hex = commit.strip_suffix(')').expect("a commit in brackets");
        assert!(hex.len() >= 10 && hex.chars().all(|c| c.is_ascii_hexdigit()), "{version}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).exits(0).out;
        assert!(script.contains("twinlock") && script.contains("history"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    run(&["man", dir.path().to_str().unwrap()]).exits(0);
    for page in ["twinlock.1", "twinlock-send.1", "twinlock-room-create.1"] {
        let page = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(page.contains(".TH"), "{page}");
    }
}

#[test]
fn config__error_names_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("twinlock.toml");
    let data = dir.path().join("data");
    for (text, line, words) in [
        ("port = 0\n\nprot = 1\n", 3, "prot"),
        ("port = \"many\"\n", 1, "port"),
        ("[limits]\nunauthenticated = 3\nsesions = 1\n", 3, "sesions"),
        ("[limit]\n", 1, "limit"),
        ("host = \"127.0.0.1\"\nport =\n", 2, ""),
        ("log-level = \"loud\"\n", 1, "loud"),
    ] {
        std::fs::write(&file, text).unwrap();
        let ran = Running::start(serve(&file, &["--data"]).arg(&data)).ended(LONG).exits(2);
        let place = format!("{}:{line}: ", file.display());
        assert!(ran.err.contains(&place) && ran.err.contains(words), "{text:?}: {ran:?}");
        assert!(!data.exists(), "nothing is made before the configuration is read");
    }
    let missing = dir.path().join("missing.toml");
    let ran = Running::start(&mut serve(&missing, &[])).ended(LONG).exits(2);
    assert!(ran.err.contains("missing.toml"), "{ran:?}");
}

#[test]
fn config__precedence_is_flag_env_file_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("twinlock.toml");
    let data = dir.path().join("data");
    let toml = format!(
        "data = {data:?}\nport = 0\npublic-host = \"file.example:1\"\nlog-level = \"error\"\n\
         host = \"127.0.0.3\"\n"
    );
    std::fs::write(&file, toml).unwrap();
    let invited = |mut command: Command| {
        let running = Running::start(&mut command);
        running.wait_lines(1);
        let address = running.out();
        running.signal(rustix::process::Signal::TERM);
        let ran = running.ended(LONG).exits(0);
        let link = std::fs::read_to_string(data.join("owner-invite")).unwrap();
        (address.trim().to_owned(), link, ran)
    };
    let env = |mut command: Command| {
        command.env("TWINLOCK_PUBLIC_HOST", "env.example:2").env("TWINLOCK_HOST", "127.0.0.2");
        command
    };
    let (address, link, ran) = invited(serve(&file, &[]));
    assert!(address.starts_with("listening on 127.0.0.3:"), "{address}");
    assert!(link.starts_with("twinlock://file.example:1/#"), "{link}");
    assert!(!ran.err.contains("INFO"), "{ran:?}");
    std::fs::remove_dir_all(&data).unwrap();

    let (address, link, _) = invited(env(serve(&file, &[])));
    assert!(address.starts_with("listening on 127.0.0.2:"), "{address}");
    assert!(link.starts_with("twinlock://env.example:2/#"), "{link}");
    std::fs::remove_dir_all(&data).unwrap();

    let flags = ["--public-host", "flag.example:3", "--host", "127.0.0.4", "--log-level", "info"];
    let (address, link, ran) = invited(env(serve(&file, &flags)));
    assert!(address.starts_with("listening on 127.0.0.4:"), "{address}");
    assert!(link.starts_with("twinlock://flag.example:3/#"), "{link}");
    assert!(ran.err.contains("INFO"), "{ran:?}");
}

#[test]
fn owner_invite__is_printed_on_first_start_only() {
    let mut host = Host::start();
    let link = host.owner_link();
    host.running().wait_err("until it is used");
    let first = host.terminate().exits(0);
    assert!(first.err.contains(&format!("twinlock join '{link}'")), "{first:?}");
    // A QR code is printed only on a terminal.
    assert!(!first.err.contains('\u{2588}'), "{first:?}");
    assert_eq!(first.out.lines().count(), 1, "{first:?}");
    host.restart();
    host.running().wait_err("server words");
    let second = host.terminate().exits(0);
    assert!(!second.err.contains("twinlock://") && !second.err.contains("owner"), "{second:?}");
    assert_eq!(host.owner_link(), link);
}

#[test]
fn profile__flag_overrides_environment() {
    let host = Host::start();
    let ada = host.owner();
    let link = ada.invites();
    ada.run(&["--profile", "work", "join", "--no-password", "--user", "bob", &link]).exits(0);
    let user = |command: &mut Command| {
        let ran = Running::start(command).ended(LONG).exits(0);
        ran.json()[0]["user"].as_str().unwrap().to_owned()
    };
    let status = ["status", "--json"];
    assert_eq!(user(&mut ada.command(&status)), "ada");
    assert_eq!(user(ada.command(&status).env("TWINLOCK_PROFILE", "work")), "bob");
    let flag = ["--profile", "default", "status", "--json"];
    assert_eq!(user(ada.command(&flag).env("TWINLOCK_PROFILE", "work")), "ada");
}
