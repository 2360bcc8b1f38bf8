//! Messages from standard input, with `send` and with `chat`.

use std::io::Write as _;
use std::net::TcpListener;

use crate::common::*;

/// Runs a command with bytes that may not be text.
fn run_with_bytes(person: &Person, args: &[&str], input: &[u8]) -> Ran {
    let mut running = person.start(args);
    let mut stdin = running.stdin.take().unwrap();
    // A command that stops reading still ends.
    let _stopped = stdin.write_all(input);
    drop(stdin);
    running.ended(LONG)
}

#[test]
fn stdin__each_line_is_one_message_for_any_line_ending() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\n\n  \ntwo\r\n\r\n  three \nlast").exits(0);
    assert_eq!(texts(&ada.reads("lobby")), ["one", "two", "  three ", "last"]);
    ada.run_with(&["send", "lobby", "-"], "dash\n").exits(0);
    ada.run_with(&["send", "lobby"], "").exits(0);
    assert_eq!(ada.reads("lobby").len(), 5);
    let acks = ada.run_with(&["send", "--json", "lobby"], "a\nb\nc\n").exits(0);
    let numbers: Vec<_> = acks.json().iter().map(|ack| ack["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [6, 7, 8]);
}

#[test]
fn stdin__invalid_line_stops_input_after_earlier_are_sent() {
    let host = Host::start();
    let ada = host.owner();
    let ran = run_with_bytes(&ada, &["send", "lobby"], b"one\ntwo\n\xff\xfe\nfour\n").exits(2);
    assert!(ran.err.contains("line 3 of the input is not UTF-8"), "{ran:?}");
    assert!(ran.err.contains("the lines before it were sent"), "{ran:?}");
    let longest = "x".repeat(32 * 1024);
    let input = format!("{longest}\n{longest}\r\nshort\n{longest}y\nnever\n");
    let ran = ada.run_with(&["send", "lobby"], &input).exits(2);
    assert!(ran.err.contains("line 4 of the input is longer"), "{ran:?}");
    let ran = run_with_bytes(&ada, &["chat"], b"from chat\n\xff\nnever\n").exits(2);
    assert!(ran.err.contains("line 2 of the input is not UTF-8"), "{ran:?}");
    let recorded = ada.reads("lobby");
    let expected = ["one", "two", &longest, &longest, "short", "from chat"];
    assert_eq!(texts(&recorded), expected);
}

#[test]
fn chat__pipe_prints_tick_per_line_and_ends_when_recorded() {
    let host = Host::start();
    let ada = host.owner();
    let ran = ada.run_with(&["chat"], "a\nb\n").exits(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("\u{2713} #1 a\n\u{2713} #2 b\n", ""));
    // `exit` ends it while its input is open; later lines are not sent.
    let mut chat = ada.start(&["chat"]);
    chat.write("c\nexit\nnever\n");
    let input = chat.stdin.take();
    let ran = chat.ended(LONG).exits(0);
    drop(input);
    assert_eq!(ran.out, "\u{2713} #3 c\n");
    assert_eq!(texts(&ada.reads("lobby")), ["a", "b", "c"]);
}

#[test]
fn chat__obeys_slash_commands() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["room", "create", "ops", "--topic", "what runs"]).exits(0);
    let said = bob
        .run_with(
            &["chat"],
            "/help\n/who\n/rooms\n/join ops\nin ops\n/dm ada psst\n/dm ada\nin private\n/status\n\
             /history 1\n//slash\n/quit\nnever\n",
        )
        .exits(0);
    for words in [
        "/history [N]",
        "-- online: bob",
        "-- in lobby: ada, bob",
        "ops  (join it with /join)  what runs",
        "-- you are talking in ops",
        "-- you are talking in @ada",
        "in ops",
        "[@ada] psst",
        "-- lock 1: TLS 1.3",
        "-- lock 2: session",
        "/slash",
    ] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    assert_eq!(texts(&ada.reads("@bob")), ["psst", "in private", "/slash"]);
    assert_eq!(texts(&ada.reads("ops")), ["bob joined", "in ops"]);
    assert!(ada.reads("lobby").is_empty());
}

#[test]
fn outbox__unsent_messages_are_reported_and_sent_later() {
    let mut host = Host::start();
    let ada = host.owner();
    host.kill();
    let ran = ada.run_with(&["chat", "--timeout", "500ms"], "later\n").exits(6);
    assert!(ran.err.contains("1 of your messages is queued"), "{ran:?}");
    let ran = ada.run_with(&["send", "--timeout", "500ms", "lobby"], "too\nand this\n").exits(6);
    assert!(ran.err.contains("2 messages are queued"), "{ran:?}");
    assert!(ran.out.is_empty(), "{ran:?}");
    host.restart();
    ada.run(&["send", "lobby", "now"]).exits(0);
    assert_eq!(texts(&ada.reads("lobby")), ["later", "too", "and this", "now"]);
    // The server does not answer at all.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let stuck = ada.by(silent.local_addr().unwrap());
    stuck.run(&["send", "--timeout", "500ms", "lobby", "stuck"]).exits(6);
    ada.run_with(&["chat"], "go on\n").exits(0);
    assert_eq!(texts(&ada.reads("lobby"))[4..], ["stuck", "go on"]);
}

#[test]
fn outbox__wait_notice_names_timeout_and_ctrl_c() {
    let mut host = Host::start();
    let ada = host.owner();
    host.kill();
    let send = ada.run(&["send", "--timeout", "2s", "lobby", "later"]).exits(6);
    let chat = ada.run_with(&["chat", "--timeout", "2s"], "later\nexit\n").exits(6);
    for ran in [send, chat] {
        for words in ["waiting at most 2 s", "1 message", "Ctrl-C", "stays in the outbox"] {
            assert!(ran.err.contains(words), "{words}: {ran:?}");
        }
    }
    // A server that does not answer is not known to be down.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let stuck = ada.by(silent.local_addr().unwrap());
    let ran = stuck.run(&["send", "--timeout", "5s", "lobby", "stuck"]).exits(6);
    assert!(ran.err.contains("waiting at most 5 s"), "{ran:?}");
    let help = ada.run(&["send", "--help"]).exits(0).out;
    assert!(help.contains("--timeout") && help.contains("30 s"), "{help}");
}

#[test]
fn outbox__sent_by_other_process_counts_as_sent() {
    let host = Host::start();
    let ada = host.owner();
    // This process of the profile sends the outbox; the others have no connection.
    let listen = ada.start(&["listen", "--since", "all"]);
    ada.run(&["send", "lobby", "up?"]).exits(0);
    listen.wait_lines(1);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = ada.by(closed);
    for round in 0..3 {
        let said = format!("round {round}\n");
        let ran = away.run_with(&["chat", "--timeout", "30s"], &said).exits(0);
        assert!(ran.out.contains(&format!("\u{2713} #{} {said}", 2 * round + 2)), "{ran:?}");
        away.run(&["send", "--timeout", "30s", "lobby", "sent"]).exits(0);
    }
    assert_eq!(ada.reads("lobby").len(), 7, "each is recorded once");
}
