//! Standard streams that are closed, opened in the wrong direction, full, or no longer read.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use crate::common::*;

#[test]
fn stdin__closed_is_an_error_not_empty_input() {
    let host = Host::start();
    let ada = host.owner();
    for how in ["<&-", "0>unread"] {
        for args in [
            &["send", "lobby"][..],
            &["send", "lobby", "-"],
            &["put", "-", "--name", "x", "lobby"],
            &["put", "/dev/stdin", "lobby"],
            &["chat"],
            &["login", "ada@127.0.0.1:1", "--password-file", "-"],
            &["--profile", "new", "join", "-"],
        ] {
            let ran = ada.run_in_shell(args, how).exits(2);
            assert!(ran.err.contains("standard input: it is closed"), "{args:?} {how}: {ran:?}");
        }
    }
    assert_eq!(ada.reads("lobby").len(), 0);
    ada.run_in_shell(&["send", "lobby"], "</dev/null").exits(0);
}

#[test]
fn stdout__closed_stops_command_before_it_acts() {
    let host = Host::start_with(&["--classic-port", "0"]);
    let ada = host.owner();
    fs::write(ada.home.join("file"), "content").unwrap();
    for how in [">&-", "1</dev/null"] {
        for args in [
            &["send", "--json", "lobby", "x"][..],
            &["put", "--json", "file", "lobby"],
            &["invite"],
            &["classic", "add", "lamp", "--to", "lobby"],
        ] {
            let ran = ada.run_in_shell(args, how).exits(2);
            assert!(ran.err.contains("standard output"), "{args:?} {how}: {ran:?}");
        }
    }
    assert_eq!(ada.reads("lobby").len(), 0);
    assert_eq!(ada.run(&["classic", "list", "--json"]).exits(0).out, "");
    assert_eq!(ada.run(&["outbox", "list", "--json"]).exits(0).out, "");
    // A command without data to print does not need it.
    ada.run_in_shell(&["send", "lobby", "x"], ">&-").exits(0);
}

#[test]
fn stdout__full_is_reported_after_work_is_done() {
    let host = Host::start();
    let ada = host.owner();
    fs::write(ada.home.join("file"), "content").unwrap();
    for args in [&["send", "--json", "lobby", "x"][..], &["put", "--json", "file", "lobby"]] {
        let ran = ada.run_in_shell(args, ">/dev/full").exits(2);
        assert!(ran.err.contains("the command has done its work"), "{args:?}: {ran:?}");
    }
    assert_eq!(ada.reads("lobby").len(), 2);
}

#[test]
fn stdout__closed_reader_does_not_stop_transfers() {
    let host = Host::start();
    let ada = host.owner();
    fs::write(ada.home.join("a"), "one").unwrap();
    fs::write(ada.home.join("b"), "two").unwrap();
    for how in ["| head -1", "| true"] {
        ada.run_in_shell(&["put", "--json", "a", "b", "lobby"], how).exits(0);
        let got = ada.home.join("got");
        fs::create_dir(&got).unwrap();
        ada.run_in_shell(&["get", "--json", "lobby", "1", "2", "-o", "got"], how).exits(0);
        for (name, content) in [("a", "one"), ("b", "two")] {
            assert_eq!(fs::read_to_string(got.join(name)).unwrap(), content);
        }
        fs::remove_dir_all(got).unwrap();
    }
    assert_eq!(ada.reads("lobby").len(), 4);
}

#[test]
fn chat_script__ends_at_first_failing_line() {
    let host = Host::start();
    let ada = host.owner();
    let lines = [
        ("/dm nobody", "there is no @nobody"),
        ("/join nosuch", "nosuch"),
        ("/put", "/put is not used like this"),
        ("/get x", "/get is not used like this"),
        ("/get 999", "there is no entry 999"),
        ("/put missing", "missing: No such file"),
        ("/dm nobody a text", "not recorded: [@nobody] a text"),
        ("/nonsense", "unknown command /nonsense; /help lists the commands"),
    ];
    for (n, (line, words)) in lines.iter().enumerate() {
        let ran = ada.run_with(&["chat"], &format!("before {n}\n{line}\nprivate text\n"));
        assert!(ran.code.is_some_and(|code| code > 0), "{line}: {ran:?}");
        for words in [words, "no line after it was sent"] {
            assert!(ran.err.contains(words) || ran.out.contains(words), "{words}: {ran:?}");
        }
    }
    let expected: Vec<_> = (0..lines.len()).map(|n| format!("before {n}")).collect();
    assert_eq!(texts(&ada.reads("lobby")), expected);
    // A failure in the last line sets the exit code too.
    ada.run_with(&["chat"], "/put missing\n").exits(2);
    ada.run_with(&["chat", "@nosuch"], "a text\n").exits(7);
    let queued = ada.run(&["outbox", "list", "--json"]).exits(0).json();
    assert!(queued.iter().all(|message| message["state"] == "refused"), "{queued:?}");
}

#[test]
fn chat_script__without_server_ends_after_timeout() {
    let mut host = Host::start();
    let ada = host.owner();
    host.terminate();
    fs::write(ada.home.join("file"), "content").unwrap();
    let put = format!("/put {}", ada.home.join("file").display());
    for line in ["/dm bob hi", &put] {
        let ran = ada.run_with(&["chat", "--timeout", "2s"], &format!("{line}\nprivate\n"));
        let ran = ran.exits(6);
        assert!(ran.err.contains("no line after it was sent"), "{line}: {ran:?}");
    }
    let queued = ada.run(&["outbox", "list", "--json"]).exits(0).out;
    assert!(queued.contains("hi") && !queued.contains("private"), "{queued}");
}

#[test]
fn chat_script__failing_output_writes_do_not_stop_sending() {
    let host = Host::start();
    let ada = host.owner();
    let closed = ada.run_in_shell(&["chat"], ">&- <<< closed").exits(2);
    assert!(closed.err.contains("standard output"), "{closed:?}");
    fs::write(ada.home.join("script"), "one\ntwo\n").unwrap();
    let full = ada.run_in_shell(&["chat"], ">/dev/full <script").exits(2);
    assert!(full.err.contains("the command has done its work"), "{full:?}");
    let mut chat = ada.command(&["chat"]);
    let reader = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut chat = reader.unwrap();
    let mut input = chat.stdin.take().unwrap();
    input.write_all(b"three\n").unwrap();
    // After its tick, the reader is gone.
    let mut tick = [0];
    chat.stdout.take().unwrap().read_exact(&mut tick).unwrap();
    input.write_all(b"four\n").unwrap();
    drop(input);
    assert!(chat.wait().unwrap().success());
    assert_eq!(texts(&ada.reads("lobby")), ["one", "two", "three", "four"]);
}

#[test]
fn help__unwritable_output_is_an_error() {
    let host = Host::start();
    let ada = host.owner();
    for args in [&["--help"][..], &["--version"], &["send", "-h"], &["help", "send"]] {
        for how in [">/dev/full", ">&-"] {
            let ran = ada.run_in_shell(args, how).exits(2);
            assert!(ran.err.contains("standard output"), "{args:?} {how}: {ran:?}");
        }
        ada.run_in_shell(args, "| true").exits(0);
        assert!(!ada.run(args).exits(0).out.is_empty());
    }
}
