//! `listen`: resumes where it ended, and passes each entry to a command until that succeeds.

use std::time::{Duration, Instant};

use crate::common::*;
use rustix::process::Signal;

#[test]
fn listen__resumes_at_last_position_of_profile() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run_with(&["send", "lobby"], "1\n2\n3\n4\n5\n").exits(0);
    let hear = |args: &[&str]| {
        let ran = bob.run(&[&["listen", "--json"][..], args].concat()).exits(0).json();
        texts(&ran).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(hear(&["lobby", "--since", "all", "--count", "2"]), ["1", "2"]);
    assert_eq!(hear(&["lobby", "--count", "2"]), ["3", "4"]);
    assert_eq!(hear(&["--count", "1"]), ["5"]);
    // Reading entries again does not move the position back.
    assert_eq!(hear(&["lobby", "--since", "all", "--count", "1"]), ["1"]);
    assert_eq!(hear(&["lobby", "--since", "3", "--count", "1"]), ["4"]);
    ada.run(&["send", "lobby", "6"]).exits(0);
    assert_eq!(hear(&["lobby", "--count", "1"]), ["6"]);
}

#[test]
fn listen__since_new_keeps_position_without_entries() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", "before"]).exits(0);
    bob.run(&["listen", "lobby", "--since", "new", "--until-now"]).exits(0);
    ada.run(&["send", "lobby", "between"]).exits(0);
    let heard = bob.run(&["listen", "lobby", "--until-now", "--json"]).exits(0).json();
    assert_eq!(texts(&heard), ["between"]);
}

#[test]
fn listen__since_all_keeps_position_before_first_handled_entry() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    // There are no entries yet.
    bob.run(&["listen", "lobby", "--since", "all", "--until-now"]).exits(0);
    ada.run_with(&["send", "lobby"], "one\ntwo\n").exits(0);
    let heard = bob.run(&["listen", "lobby", "--until-now", "--json"]).exits(0).json();
    assert_eq!(texts(&heard), ["one", "two"]);
    // The first entry fails.
    for (person, since, left) in [(&ada, "all", &["one", "two"][..]), (&bob, "1", &["two"])] {
        let first = person.start(&["listen", "lobby", "--since", since, "--exec", "exit 7"]);
        first.wait_err("trying again");
        first.killed();
        let next = person.run(&["listen", "lobby", "--until-now", "--exec", "cat"]).exits(0);
        assert_eq!(texts(&next.json()), left);
    }
}

#[test]
fn listen__without_targets_keeps_position_once_list_is_known() {
    let mut host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "@bob", "before"]).exits(0);
    host.terminate();
    bob.run(&["listen", "--timeout", "1s"]).exits(5);
    host.restart();
    let first = bob.run(&["listen", "--until-now", "--json"]).exits(0).json();
    assert_eq!(texts(&first), [""; 0]);
    let carl = host.member(&ada, "carl");
    carl.run(&["send", "@bob", "after"]).exits(0);
    let next = bob.run(&["listen", "--until-now", "--json"]).exits(0).json();
    assert_eq!(texts(&next), ["after"]);
}

#[test]
fn listen__timeout_interrupts_exec_and_keeps_entry() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "one"]).exits(0);
    for command in ["false", "exec sleep 1000"] {
        let listen = ["listen", "lobby", "--since", "all", "--exec", command, "--timeout", "3s"];
        let ran = ada.run(&listen).exits(9);
        assert!(ran.err.contains("timed out"), "{ran:?}");
    }
    let left = ada.run(&["listen", "lobby", "--until-now", "--exec", "cat"]).exits(0);
    assert_eq!(texts(&left.json()), ["one"]);
}

#[test]
fn listen__first_run_shows_only_new_entries_with_conversation() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", "before"]).exits(0);
    for room in ["ops", "dev"] {
        ada.run(&["room", "create", room]).exits(0);
        bob.run(&["room", "join", room]).exits(0);
    }
    // The test cannot see when it starts; entries from before are not printed.
    let first = bob.start(&["listen", "--count", "1"]);
    while ada.run(&["send", "lobby", "now?"]).code == Some(0)
        && !first.wait_lines_for(1, Duration::from_secs(2))
    {}
    let first = first.ended(LONG).exits(0);
    assert!(first.out.contains("lobby ada: now?") && !first.out.contains("before"), "{first:?}");
    ada.run(&["send", "ops", "to ops"]).exits(0);
    ada.run(&["send", "@bob", "to bob"]).exits(0);
    ada.run(&["send", "lobby", "after"]).exits(0);
    let all = bob.run(&["listen", "--count", "3", "--json"]).exits(0).json();
    let mut heard: Vec<_> = all
        .iter()
        .filter(|entry| entry["kind"] == "text")
        .map(|e| format!("{} {}", e["conversation"].as_str().unwrap(), e["text"].as_str().unwrap()))
        .collect();
    heard.sort_unstable();
    assert_eq!(heard, ["@ada to bob", "lobby after", "ops to ops"]);
    ada.run(&["send", "dev", "deaf"]).exits(0);
    ada.run(&["send", "ops", "again"]).exits(0);
    let several = bob.run(&["listen", "ops", "lobby", "--count", "1"]).exits(0);
    assert!(several.out.contains(" ops ada: again"), "{several:?}");
    let one = bob.run(&["listen", "dev", "--count", "1"]).exits(0);
    assert!(one.out.contains(" ada: deaf") && !one.out.contains("dev"), "{one:?}");
}

#[test]
fn exec__entry_is_retried_until_exit_code_0() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    let log = host.root().join("handled");
    // Accepts `two` only at the second attempt.
    let script = format!(
        "read -r line; echo \"$line\" >>{log}; case $line in *two*) [ $(grep -c two {log}) = 2 ];; esac",
        log = log.display()
    );
    let ran =
        ada.run(&["listen", "lobby", "--since", "all", "--count", "3", "--exec", &script]).exits(0);
    assert!(ran.err.contains("exit status: 1 for entry 2 of lobby; trying again"), "{ran:?}");
    assert_eq!(ran.out, "");
    let handled = json_lines(&std::fs::read_to_string(&log).unwrap());
    assert_eq!(texts(&handled), ["one", "two", "two", "three"]);
    assert_eq!(handled[0]["conversation"], "lobby");
}

#[test]
fn exec__unfinished_entry_is_repeated_after_kill() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    let script = "read -r line; echo \"$line\"; case $line in *two*) exit 7;; esac";
    let first = ada.start(&["listen", "lobby", "--since", "all", "--exec", script]);
    first.wait_err("for entry 2 of lobby");
    let first = first.killed();
    assert_eq!(texts(&first.json())[..2], ["one", "two"]);
    let second = ada.run(&["listen", "lobby", "--count", "2", "--exec", "cat"]).exits(0);
    assert_eq!(texts(&second.json()), ["two", "three"]);
    // A command that ignores its input handles the entry as well.
    ada.run(&["send", "lobby", &"x".repeat(32 * 1024)]).exits(0);
    ada.run(&["listen", "lobby", "--count", "1", "--exec", "true"]).exits(0);
    ada.run(&["send", "lobby", "last"]).exits(0);
    let last = ada.run(&["listen", "lobby", "--count", "1", "--exec", "cat"]).exits(0);
    assert_eq!(texts(&last.json()), ["last"]);
}

#[test]
fn exec__ends_with_its_listen() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "one"]).exits(0);
    let file = ada.home.join("pid");
    let command = format!("sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait", file.display());
    let listen = ["listen", "lobby", "--since", "all", "--exec", &command];
    let is_alive = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    };
    for by_timeout in [true, false] {
        let args =
            if by_timeout { [&listen[..], &["--timeout", "6s"]].concat() } else { listen.to_vec() };
        let running = ada.start(&args);
        let until = Instant::now() + LONG;
        while !file.exists() {
            assert!(Instant::now() < until, "the command does not run");
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = std::fs::read_to_string(&file).unwrap();
        if !by_timeout {
            running.signal(Signal::TERM);
        }
        running.ended(LONG).exits(if by_timeout { 9 } else { 130 });
        while is_alive(pid.trim()) {
            assert!(Instant::now() < until, "the command lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn exec__inherits_no_password() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "one"]).exits(0);
    let mut command =
        ada.command(&["listen", "lobby", "--since", "all", "--count", "1", "--exec", "env"]);
    // The rest of the environment is the machine's and may hold any other word.
    let secrets =
        [("TWINLOCK_PASSWORD", "one-of-7d3f21"), ("TWINLOCK_NEW_PASSWORD", "two-of-7d3f21")];
    command.envs(secrets);
    let ran = Running::start(&mut command).ended(LONG).exits(0);
    assert!(ran.out.contains("TWINLOCK_HOME="), "{ran:?}");
    assert!(!ran.out.contains("of-7d3f21"), "{ran:?}");
    for (name, _) in secrets {
        assert!(!ran.out.contains(name), "{ran:?}");
    }
}

#[test]
fn exec__failed_tries_move_entry_to_dead_letters() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    let log = host.root().join("handled");
    let script = format!(
        "read -r line; echo \"$line\" >>{}; case $line in *two*) exit 3;; esac",
        log.display()
    );
    let listen = ["listen", "lobby", "--since", "all", "--count", "3", "--exec", &script];
    let ran = ada.run(&[&listen[..], &["--exec-tries", "2"]].concat()).exits(0);
    let letters = ada.home.join("state/default/dead-letters.jsonl");
    assert!(ran.err.contains("after 2 tries; the entry is now in"), "{ran:?}");
    assert!(ran.err.contains(letters.to_str().unwrap()), "{ran:?}");
    let handled = json_lines(&std::fs::read_to_string(&log).unwrap());
    assert_eq!(texts(&handled), ["one", "two", "two", "three"]);
    let dead = json_lines(&std::fs::read_to_string(&letters).unwrap());
    assert_eq!(dead, [handled[1].clone()]);
    assert_eq!(std::fs::metadata(&letters).unwrap().permissions().mode() & 0o777, 0o600);
    // Another one is appended after a torn line. An entry that cannot become a dead letter stays
    // unhandled.
    ada.run_with(&["send", "lobby"], "two again\nfour\n").exits(0);
    let mut torn = std::fs::OpenOptions::new().append(true).open(&letters).unwrap();
    std::io::Write::write_all(&mut torn, b"{\"cut").unwrap();
    let more = ["listen", "lobby", "--exec", &script, "--exec-tries", "1", "--count"];
    ada.run(&[&more[..], &["2"]].concat()).exits(0);
    let dead = std::fs::read_to_string(&letters).unwrap();
    let (cut, whole): (Vec<_>, Vec<_>) = dead.lines().partition(|line| *line == "{\"cut");
    assert_eq!(cut.len(), 1, "{dead}");
    assert_eq!(texts(&json_lines(&whole.join("\n"))), ["two", "two again"]);
    std::fs::remove_file(&letters).unwrap();
    std::os::unix::fs::symlink(host.root().join("elsewhere"), &letters).unwrap();
    ada.run(&["send", "lobby", "two more"]).exits(0);
    ada.run(&[&more[..], &["1"]].concat()).exits(2);
    assert!(!host.root().join("elsewhere").exists());
    std::fs::remove_file(&letters).unwrap();
    let last = ada.run(&["listen", "lobby", "--exec", "cat", "--count", "1"]).exits(0).json();
    assert_eq!(texts(&last), ["two more"]);
    ada.run(&["listen", "lobby", "--exec-tries", "2"]).exits(2);
}

#[test]
fn listen__ends_when_reader_closes() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "one"]).exits(0);
    let mut command = ada.command(&["listen", "lobby", "--since", "all"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let out = child.stdout.take().unwrap();
    assert!(lines(out).next().unwrap().contains("one"));
    // Its end of the pipe is closed now, and no more entries come.
    let until = std::time::Instant::now() + LONG;
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break Some(ended);
        }
        if std::time::Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(ended.expect("it lives on").code(), Some(0));
}

#[test]
fn listen__without_server_exits_5() {
    let mut host = Host::start();
    let ada = host.owner();
    ada.run(&["listen", "lobby", "--timeout", "1s"]).exits(9);
    host.terminate();
    let ran = ada.run(&["listen", "lobby", "--timeout", "1s"]).exits(5);
    assert!(ran.err.contains("no connection to"), "{ran:?}");
}

#[test]
fn profile__read_only_disk_allows_reads_only() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "nowhere", "refused"]).exits(7);
    ada.run(&["send", "lobby", "one"]).exits(0);
    let refused = ada.run(&["outbox", "list", "--json"]).exits(0).json();
    let refused = refused[0]["id"].as_str().unwrap();
    let home = ada.home.to_str().unwrap();
    // Root can write despite the mode, but not on a disk that is mounted read-only.
    let script = if rustix::process::geteuid().is_root() {
        "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && exec \"$@\""
    } else {
        "chmod -R a-w \"$0\"; \"$@\"; code=$?; chmod -R u+w \"$0\"; exit $code"
    };
    let run = |args: &[&str]| {
        let command = ada.command(args);
        let mut inside = std::process::Command::new("unshare");
        if rustix::process::geteuid().is_root() {
            inside.args(["-m", "sh", "-c", script, home]);
        } else {
            inside = std::process::Command::new("sh");
            inside.args(["-c", script, home]);
        }
        inside.arg(command.get_program()).args(command.get_args());
        inside.env("TWINLOCK_HOME", home);
        Running::start(&mut inside).ended(LONG)
    };
    for args in [&["history", "lobby"][..], &["listen", "lobby", "--since", "all", "--count", "1"]]
    {
        let ran = run(args).exits(0);
        assert!(ran.out.contains("one"), "{ran:?}");
        assert!(ran.err.contains("read-only disk"), "{ran:?}");
    }
    run(&["rooms"]).exits(0);
    let sent = run(&["send", "lobby", "two"]).exits(2);
    assert!(sent.err.contains("nothing can be sent"), "{sent:?}");
    for args in [&["drop", refused][..], &["retry"]] {
        let ran = run(&[&["outbox"], args].concat()).exits(2);
        assert!(ran.err.contains("nothing can be sent or dropped"), "{ran:?}");
    }
    assert_eq!(ada.run(&["outbox", "list", "--json"]).exits(0).json().len(), 1);
    let exec = ["listen", "lobby", "--since", "all", "--count", "1", "--exec", "cat"];
    let ran = run(&exec).exits(2);
    assert!(ran.err.contains("has to keep its position"), "{ran:?}");
    assert_eq!(ran.out, "");
    assert_eq!(ada.reads("lobby").len(), 1);
}

#[test]
fn listen__closed_output_is_an_error_and_loses_no_entry() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "zero"]).exits(0);
    ada.run(&["listen", "lobby", "--since", "all", "--count", "1"]).exits(0);
    ada.run(&["send", "lobby", "one"]).exits(0);
    let path = host.root().join("f");
    std::fs::write(&path, "content").unwrap();
    ada.run(&["put", path.to_str().unwrap(), "lobby"]).exits(0);
    let closed = |args: &[&str], how: &str| ada.run_in_shell(args, how);
    let listen = ["listen", "lobby", "--count", "1"];
    for how in [">&-", "1</dev/null", ">/dev/full"] {
        for args in [
            &listen[..],
            &["history", "lobby"],
            &["history", "lobby", "--json"],
            &["rooms"],
            &["get", "lobby", "3", "-o", "-"],
        ] {
            let ran = closed(args, how);
            assert_eq!(ran.code, Some(2), "{args:?} {how}: {ran:?}");
        }
    }
    // Output to /dev/null is discarded on purpose, in any open mode.
    closed(&["history", "lobby"], "1<>/dev/null").exits(0);
    let heard = ada.run(&listen).exits(0);
    assert!(heard.out.contains("one"), "{heard:?}");
}

#[test]
fn listen__new_room_starts_at_join() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", "zero"]).exits(0);
    let dir = tempfile::tempdir().unwrap();
    let handled = dir.path().join("handled");
    let command = format!("cat >> {}", handled.display());
    let (listen, exec) = (["listen", "--until-now"], ["listen", "--until-now", "--exec", &command]);
    ada.run(&listen).exits(0);
    ada.run(&exec).exits(0);
    bob.run(&["room", "create", "ops"]).exits(0);
    bob.run(&["send", "ops", "before"]).exits(0);
    ada.run(&["room", "join", "ops"]).exits(0);
    bob.run(&["send", "ops", "after"]).exits(0);
    let heard = ada.run(&listen).exits(0);
    assert!(heard.out.contains("after") && !heard.out.contains("before"), "{heard:?}");
    ada.run(&exec).exits(0);
    let handled = std::fs::read_to_string(&handled).unwrap();
    assert!(handled.contains("after") && !handled.contains("before"), "{handled}");
    assert!(!ada.run(&listen).exits(0).out.contains("after"));
}
