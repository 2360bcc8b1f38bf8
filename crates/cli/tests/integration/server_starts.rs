//! Server starts: the first one, data directories that others control, addresses, console and log.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::common::data_dir::{full, logged, move_away, serve};
use crate::common::*;
use rusqlite::Connection;
use rustix::process::Signal;
use tempfile::TempDir;
use twinlock_store_embedded::{OpenError, RecordLock};

#[test]
fn start__first_start_resumes_after_crash_at_any_step() {
    // The files that exist at each step, in order.
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let running = serve(&data, &[]);
    running.wait_lines(1);
    running.killed();
    let steps = ["identity/opaque-setup", "identity/tls-key.pem", "identity/tls-cert.pem"];
    for there in 0..=steps.len() {
        let next = dir.path().join(format!("next-{there}"));
        fs::create_dir_all(next.join("identity")).unwrap();
        for dir in [next.clone(), next.join("identity")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::write(next.join("first-start"), "").unwrap();
        for file in &steps[..there] {
            fs::copy(data.join(file), next.join(file)).unwrap();
        }
        if there == steps.len() {
            fs::create_dir(next.join("record")).unwrap();
        }
        let running = serve(&next, &[]);
        running.wait_lines(1);
        assert!(!next.join("first-start").exists());
        assert!(fs::read_to_string(next.join("owner-invite")).unwrap().contains("twinlock://"));
        running.signal(Signal::TERM);
        running.ended(LONG).exits(0);
    }
}

#[test]
fn start__concurrent_first_starts_leave_one_server() {
    for _ in 0..10 {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        let starts = [(); 3].map(|()| serve(&data, &[]));
        let is_serving = |start: &&Running| start.wait_lines_for(1, LONG);
        let serving: Vec<_> = starts.iter().filter(is_serving).collect();
        assert_eq!(serving.len(), 1);
        serving[0].signal(Signal::TERM);
        let ended = starts.map(|start| start.ended(LONG));
        let refused: Vec<_> = ended.iter().filter(|ran| ran.code != Some(0)).collect();
        assert_eq!(refused.len(), 2);
        for ran in refused {
            assert!(ran.code == Some(2) && ran.err.contains("another server runs"), "{ran:?}");
        }
        assert!(!data.join("first-start").exists());
    }
}

#[test]
fn start__directory_writable_by_others_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let data = root.path().join("data");
    fs::create_dir(&data).unwrap();
    for wide in [0o777, 0o1777, 0o770, 0o722] {
        mode(&data, wide);
        let ran = serve(&data, &[]).ended(LONG).exits(2);
        assert!(ran.err.contains("chmod go-w"), "{wide:o}: {ran:?}");
        assert_eq!(fs::read_dir(&data).unwrap().count(), 0, "{wide:o}");
    }
    mode(&data, 0o755);
    // A user who can write to a parent directory can replace it.
    let above = root.path().join("above");
    fs::create_dir(&above).unwrap();
    mode(&above, 0o777);
    let ran = serve(&above.join("data"), &[]).ended(LONG).exits(2);
    assert!(ran.err.contains("no sticky bit"), "{ran:?}");
    mode(&above, 0o1777);
    for good in [above.join("data"), data] {
        let running = serve(&good, &[]);
        running.wait_lines(1);
        running.signal(Signal::TERM);
        running.ended(LONG).exits(0);
        // The same for the directories inside.
        for inner in ["identity", "files", "files/partial"] {
            let was = fs::metadata(good.join(inner)).unwrap().permissions();
            mode(&good.join(inner), 0o777);
            let ran = serve(&good, &[]).ended(LONG).exits(2);
            assert!(ran.err.contains("chmod go-w"), "{inner}: {ran:?}");
            fs::set_permissions(good.join(inner), was).unwrap();
        }
    }
    // A directory of another user.
    if rustix::process::geteuid().is_root() {
        let theirs = root.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        mode(&theirs, 0o700);
        std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
        let ran = serve(&theirs, &[]).ended(LONG).exits(2);
        assert!(ran.err.contains("uid 12345"), "{ran:?}");
    }
}

#[test]
fn start__symlinks_in_data_directory_are_not_followed() {
    let (mut host, ada) = full(true);
    let elsewhere = host.root().join("elsewhere");
    for file in [
        "server.log",
        "record.lock",
        "record.db",
        "record",
        "record/marker",
        "record/00000001.log",
        "record/people.db",
        "heads",
        "identity/opaque-setup",
        "identity/tls-key.pem",
        "identity/tls-cert.pem",
    ] {
        for content in [Some("kept"), None] {
            fs::remove_file(&elsewhere).ok();
            if let Some(content) = content {
                fs::write(&elsewhere, content).unwrap();
            }
            let kept = move_away(&host, file);
            symlink(&elsewhere, host.data().join(file)).unwrap();
            let ran = serve(&host.data(), &[]).ended(LONG).exits(2);
            assert!(ran.err.contains("symbolic link"), "{file}: {ran:?}");
            assert_eq!(fs::read_to_string(&elsewhere).ok().as_deref(), content, "{file}");
            fs::remove_file(host.data().join(file)).unwrap();
            fs::rename(kept, host.data().join(file)).unwrap();
        }
    }
    // A file that is written by rename replaces the symbolic link.
    fs::write(&elsewhere, "kept").unwrap();
    fs::write(host.data().join("heads.tmp"), "").unwrap();
    fs::remove_file(host.data().join("heads.tmp")).unwrap();
    symlink(&elsewhere, host.data().join("heads.tmp")).unwrap();
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 3);
    host.terminate().exits(0);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "kept");
    assert!(fs::symlink_metadata(host.data().join("heads")).unwrap().is_file());
}

#[test]
fn start__unusable_listen_address_error_names_reason() {
    let host = Host::start();
    let dir = tempfile::tempdir().unwrap();
    let taken = host.port().to_string();
    let say = |args: &[&str]| {
        let mut command = twinlock();
        command.arg("serve").arg("--data").arg(dir.path().join("data")).args(args);
        Running::start(&mut command).ended(LONG).exits(2).err
    };
    let err = say(&["--port", &taken]);
    assert!(err.contains("another program listens there") && err.contains("--port"), "{err}");
    let err = say(&["--port", "0", "--classic-port", &taken]);
    assert!(err.contains("--classic-port") && !err.contains("--port takes"), "{err}");
    let err = say(&["--port", "0", "--host", "192.0.2.1"]);
    assert!(
        err.contains("does not have that address") && !err.contains("another program"),
        "{err}"
    );
    // Root may bind any port.
    if !rustix::process::geteuid().is_root() {
        let err = say(&["--port", "1"]);
        assert!(err.contains("CAP_NET_BIND_SERVICE") && !err.contains("another program"), "{err}");
    }
}

#[test]
fn start__console_output_has_no_keys_but_log_has() {
    let dir = tempfile::tempdir().unwrap();
    let hex64 =
        |text: &str| text.split(|c: char| !c.is_ascii_hexdigit()).any(|word| word.len() >= 64);
    for (data, quiet) in [("a", &[][..]), ("b", &["--quiet"])] {
        let data = dir.path().join(data);
        let running = serve(&data, quiet);
        running.wait_lines(1);
        running.signal(Signal::TERM);
        let ran = running.ended(LONG).exits(0);
        let words = ran.err.split("twinlock://").next().unwrap();
        assert!(!hex64(words), "{ran:?}");
        if !quiet.is_empty() {
            assert_eq!(ran.err, "");
        }
        let log = fs::read_to_string(data.join("server.log")).unwrap();
        assert!(log.contains("listening") && hex64(&log), "{log}");
    }
}

#[test]
fn start__owner_invite_exists_before_first_connection() {
    let mut rounds = 0;
    for _ in 0..50 {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let mut command = twinlock();
        command.arg("serve").arg("--data").arg(&data);
        let mut running = Running::start(command.args(["--port", &address.port().to_string()]));
        while TcpStream::connect(address).is_err() && running.is_running() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let was_there = data.join("owner-invite").exists();
        // The port was free a moment ago, and may be another process's now.
        if running.wait_lines_for(1, LONG) {
            assert!(was_there);
            running.signal(Signal::TERM);
            running.ended(LONG).exits(0);
            rounds += 1;
        }
        if rounds == 5 {
            return;
        }
    }
    panic!("no port stayed free");
}

#[test]
fn start__public_host_without_port_gets_listening_port() {
    let dir = tempfile::tempdir().unwrap();
    for (n, (public, port)) in
        [("chat.example", None), ("chat.example:77", Some(77))].iter().enumerate()
    {
        let data = dir.path().join(n.to_string());
        let running = serve(&data, &["--public-host", public]);
        running.wait_lines(1);
        let out = running.out();
        let listens: std::net::SocketAddr =
            out.lines().next().unwrap().strip_prefix("listening on ").unwrap().parse().unwrap();
        let link = fs::read_to_string(data.join("owner-invite")).unwrap();
        let expected = format!("twinlock://chat.example:{}/", port.unwrap_or(listens.port()));
        assert!(link.starts_with(&expected), "{link} {listens}");
        running.signal(Signal::TERM);
        running.ended(LONG).exits(0);
    }
}

#[test]
fn start__shown_ipv6_address_is_accepted_by_login() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let running = serve(&data, &["--host", "::1"]);
    if !running.wait_lines_for(1, LONG) {
        // A machine without IPv6 reports that.
        let ran = running.ended(LONG).exits(2);
        assert!(ran.err.contains("::1"), "{ran:?}");
        return;
    }
    let out = running.out();
    let shown = out.trim().strip_prefix("listening on ").unwrap().to_owned();
    let ada = Person { home: dir.path().join("home"), address: None };
    let link = fs::read_to_string(data.join("owner-invite")).unwrap();
    let password = dir.path().join("password");
    fs::write(&password, "a long password\n").unwrap();
    let password = ["--password-file", password.to_str().unwrap()];
    let joined =
        ada.run(&[&["join", "--user", "ada", link.trim()], &password[..]].concat()).exits(0);
    assert!(joined.err.contains(&format!("You are ada on {shown}.")), "{joined:?}");
    let status = ada.run(&["status"]).exits(0);
    assert!(status.out.contains(&shown), "{status:?}");
    let bob = Person { home: dir.path().join("other"), address: None };
    for address in [shown.clone(), shown.replace("[::1]", "[::1%1]")] {
        let profile = if address == shown { "one" } else { "two" };
        let at = format!("ada@{address}");
        let args = [&["--profile", profile, "login", &at], &password[..]].concat();
        bob.run(&args).exits(0);
    }
    running.signal(Signal::TERM);
    running.ended(LONG).exits(0);
}

/// The start waits for a database that another program has locked.
#[test]
fn start__signal_ends_it_in_order() {
    let (mut host, ada) = full(false);
    let people = Connection::open(host.data().join("record/people.db")).unwrap();
    people.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    people.execute_batch("BEGIN EXCLUSIVE").unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let running = serve(&host.data(), &[]);
        let until = Instant::now() + LONG;
        while !matches!(RecordLock::take(&host.data().join("record")), Err(OpenError::InUse(_))) {
            assert!(Instant::now() < until, "it does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        running.signal(signal);
        let ran = running.ended(Duration::from_secs(5)).exits(0);
        assert!(ran.out.is_empty(), "{ran:?}");
    }
    drop(people);
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 3);
}

#[test]
fn data_path__uri_like_name_is_a_plain_path() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["file:x", "file:y?mode=memory", "file:///z", "a%20b#c"] {
        let mut command = twinlock();
        command.current_dir(dir.path()).args(["serve", "--port", "0", "--data", name]);
        let running = Running::start(&mut command);
        running.wait_lines(1);
        running.signal(Signal::TERM);
        running.ended(LONG).exits(0);
        let record = dir.path().join(name).join("record/people.db");
        assert!(fs::metadata(&record).unwrap().len() > 0, "{name}");
    }
    assert!(!dir.path().join("x").exists());
    // The client's state too.
    let host = Host::start();
    let link = host.owner_link();
    let mut command = twinlock();
    command.current_dir(dir.path()).env("TWINLOCK_HOME", "file:home?mode=memory");
    command.args(["join", "--no-password", "--user", "ada", &link]);
    Running::start(&mut command).ended(LONG).exits(0);
    let mut command = twinlock();
    command.current_dir(dir.path()).env("TWINLOCK_HOME", "file:home?mode=memory");
    Running::start(command.args(["send", "lobby", "hello"])).ended(LONG).exits(0);
    assert!(dir.path().join("file:home?mode=memory/state/default/state.db").exists());
}

#[test]
fn server_log__moved_file_is_reopened() {
    let host = Host::start();
    let log = host.data().join("server.log");
    let moved = host.root().join("moved.log");
    fs::rename(&log, &moved).unwrap();
    host.running().signal(Signal::HUP);
    let until = Instant::now() + LONG;
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains("certificate reloaded")) {
        assert!(Instant::now() < until, "SIGHUP does not open the log again");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!fs::read_to_string(&moved).unwrap().contains("certificate reloaded"));
    // Without a signal, the next log line reopens it.
    fs::rename(&log, &moved).unwrap();
    let ada = host.owner();
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains("logged in")) {
        assert!(Instant::now() < until, "a log that was moved stays so");
        ada.run(&["people"]).exits(0);
    }
}

#[test]
fn start__clock_behind_newest_entry_is_warned() {
    let (mut host, ada) = full(false);
    host.restart();
    let newest = ada.reads("lobby").pop().unwrap();
    host.terminate().exits(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    for (ahead, warned) in [(3_600_000, true), (30_000, false)] {
        let time = u64::try_from(now + ahead).unwrap().to_be_bytes();
        logged(&host.data(), &newest).change(|entry| entry[..time.len()].copy_from_slice(&time));
        host.restart();
        let said = host.running().err();
        assert_eq!(said.contains("the clock is behind the newest entry"), warned, "{said}");
        host.terminate().exits(0);
    }
}

/// Passes a path of each wrong kind to every argument that takes a path.
#[test]
fn path_arguments__wrong_kind_does_not_panic() {
    let host = Host::start();
    let ada = host.owner();
    let file = host.root().join("file.txt");
    fs::write(&file, "content").unwrap();
    ada.run(&["put", file.to_str().unwrap(), "lobby"]).exits(0);
    let root = TempDir::new().unwrap();
    let wrong = wrong_paths(root.path());
    let link = ada.invites();
    let stranger = host.stranger();
    let cases: &[&[&str]] = &[
        &["serve", "--port", "0", "--data", "PATH"],
        &["serve", "--port", "0", "--data", "PATH/below"],
        &["serve", "--port", "0", "--data", "FRESH", "--config", "PATH"],
        &["serve", "--port", "0", "--data", "FRESH", "--tls-cert", "PATH", "--tls-key", "PATH"],
        &["put", "PATH", "lobby"],
        &["get", "lobby", "1", "-o", "PATH/below/x"],
        &["listen", "lobby", "--get", "PATH", "--timeout", "1"],
        &["man", "PATH"],
        &["passwd", "--password-file", "PATH", "--new-password-file", "PATH"],
        &["join", "--user", "x", "--password-file", "PATH", &link],
        &["login", "x@127.0.0.1:1", "--ca", "PATH", "--timeout", "1"],
    ];
    let (mut panics, mut ran_of) = (Vec::new(), 0);
    for case in cases {
        for (kind, path) in &wrong {
            // Below the path "" is the root directory.
            if *kind == "nothing" && case.iter().any(|arg| arg.starts_with("PATH/")) {
                continue;
            }
            let fresh = root.path().join(format!("fresh-{ran_of}"));
            let args: Vec<_> = case
                .iter()
                .map(|arg| arg.replace("PATH", path).replace("FRESH", fresh.to_str().unwrap()))
                .collect();
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let person = if case[0] == "join" || case[0] == "login" { &stranger } else { &ada };
            let running = person.start(&args);
            // A valid path for this case starts a server.
            if running
                .wait_lines_for(1, Duration::from_millis(if case[0] == "serve" { 400 } else { 0 }))
            {
                running.signal(Signal::TERM);
            }
            let ran = running.ended(LONG);
            ran_of += 1;
            if ran.code == Some(101) || ran.code.is_none() || ran.err.contains("panicked") {
                panics.push(format!("{kind} {args:?}: {ran:?}"));
            }
            if case[0] == "serve" && !case.contains(&"FRESH") && *kind != "a directory" {
                assert_eq!(ran.code, Some(2), "{kind} {args:?}: {ran:?}");
                assert!(!ran.err.trim().is_empty());
            }
        }
    }
    assert_eq!(ran_of, cases.len() * wrong.len() - 2);
    assert!(panics.is_empty(), "{}", panics.join("\n"));
    // The client's own directory.
    for (kind, path) in wrong.iter().filter(|(kind, _)| !["a directory", "nothing"].contains(kind))
    {
        let person = Person { home: PathBuf::from(path), address: None };
        for args in [
            &["status"][..],
            &["send", "lobby", "x"],
            &["join", "--no-password", "--user", "x", &link],
        ] {
            let ran = person.run(args);
            assert!(
                ran.code.is_some_and(|code| code != 101 && code != 0),
                "{kind} {args:?}: {ran:?}"
            );
        }
    }
}

fn wrong_paths(root: &Path) -> Vec<(&'static str, String)> {
    let at = |name: &str| root.join(name);
    fs::write(at("file"), "x").unwrap();
    fs::create_dir(at("dir")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    let long = "x".repeat(300);
    [
        ("a file", "file"),
        ("a directory", "dir"),
        ("a link to nothing", "dangling"),
        ("a link to itself", "loop"),
        ("below a file", "file/below"),
        ("below a link to nothing", "dangling/below"),
        ("a name that is too long", &long),
    ]
    .into_iter()
    .map(|(kind, name)| (kind, at(name).to_str().unwrap().to_owned()))
    .chain([("nothing", String::new()), ("a device", "/dev/null".to_owned())])
    .collect()
}
