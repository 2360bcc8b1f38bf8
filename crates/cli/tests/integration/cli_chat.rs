//! The chat as a user sees it: the line being edited stays intact, and every end restores the terminal.

use crate::common::terminal::{COLUMNS, ROWS, Terminal};
use crate::common::*;
use rustix::process::Signal;

/// A chat that shows its prompt and follows the lobby.
fn chat(person: &Person) -> Terminal {
    let terminal = Terminal::start(&person.command(&["chat"]));
    terminal.wait_last("lobby>");
    terminal
}

/// The lines without the leading time.
fn without_hours(lines: &[String]) -> Vec<&str> {
    let hour = |line: &&str| line.len() > 6 && line.as_bytes()[2] == b':';
    lines
        .iter()
        .map(|line| Some(line.as_str()).filter(hour).map_or(line.as_str(), |l| &l[6..]))
        .collect()
}

#[test]
fn chat__typed_text_survives_incoming_entries_in_any_script() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", "before"]).exits(0);
    let mut chat = chat(&bob);
    chat.wait_for("ada: before");
    for (nth, typed) in [
        "half a thought",
        "\u{4f60}\u{597d} caf\u{e9} e\u{301}",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{1f44d}",
    ]
    .iter()
    .enumerate()
    {
        chat.types(typed);
        chat.wait_last(&format!("lobby> {typed}"));
        let news = format!("news {nth}");
        ada.run(&["send", "lobby", &news]).exits(0);
        chat.wait_for(&news);
        chat.wait_last(&format!("lobby> {typed}"));
        chat.types("!\r");
        chat.wait_for(&format!("\u{2713} #{} {typed}!", 3 + 2 * nth));
    }
    // A line of several rows, with the cursor inside it.
    let long = "word ".repeat(40);
    chat.types(&long);
    chat.types("\u{1}");
    ada.run(&["send", "lobby", "above"]).exits(0);
    chat.wait_for("ada: above");
    chat.types("first \r");
    chat.wait_for("\u{2713} #9 first word");
    chat.types("exit\r");
    chat.ends(0);
    let all = ada.reads("lobby");
    let own: Vec<_> = all.iter().filter(|entry| entry["from"] == "bob").cloned().collect();
    let expected = [
        "half a thought!",
        "\u{4f60}\u{597d} caf\u{e9} e\u{301}!",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{1f44d}!",
        &format!("first {long}"),
    ];
    assert_eq!(texts(&own), expected);
}

#[test]
fn chat__typeahead_is_not_lost() {
    let host = Host::start();
    let ada = host.owner();
    for typed in ["one\rtwo\r/who\rthree\rexit\rnever\r", "half \u{4}\rexit\r\u{4}"] {
        let mut chat = chat(&ada);
        chat.types(typed);
        chat.ends(0);
    }
    // Before the editor owns the terminal.
    let mut chat = Terminal::start(&ada.command(&["chat"]));
    chat.types("four\rfive\rexit\r");
    chat.ends(0);
    assert_eq!(texts(&ada.reads("lobby")), ["one", "two", "three", "half ", "four", "five"]);
}

#[test]
fn chat__input_during_burst_is_kept_and_output_in_order() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", "begin"]).exits(0);
    let mut chat = chat(&bob);
    chat.wait_for("ada: begin");
    let mut many = ada.start(&["send", "lobby"]);
    // Each of these waits for its answer, while more arrives than is printed at a time.
    for round in 0..20 {
        let news: String = (0..20).map(|nth| format!("news {}\n", 20 * round + nth)).collect();
        many.write(&news);
        chat.types(&format!("mine {round}\r/who\r"));
    }
    many.end_input();
    many.ended(LONG).exits(0);
    chat.wait_printed(": news 399");
    chat.types("exit\r");
    chat.ends(0);
    // Its last output may still be in the terminal's buffer.
    let until = std::time::Instant::now() + LONG;
    let all_came = |bytes: &str| {
        ["\u{2713}", "-- online:"].iter().all(|words| bytes.matches(words).count() >= 20)
    };
    while !all_came(&chat.bytes()) && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
    let bytes = chat.bytes();
    let shown = bytes.match_indices(": news ").map(|(at, words)| {
        let rest = &bytes[at + words.len()..];
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<usize>().unwrap()
    });
    assert_eq!(shown.collect::<Vec<_>>(), (0..400).collect::<Vec<_>>());
    let ticks = bytes.matches("\u{2713}").count();
    assert_eq!((ticks, bytes.matches("-- online:").count()), (20, 20));
    let all = ada.reads("lobby");
    let own: Vec<_> = all.iter().filter(|entry| entry["from"] == "bob").cloned().collect();
    let mine: Vec<_> = (0..20).map(|round| format!("mine {round}")).collect();
    assert_eq!(texts(&own), mine);
}

#[test]
fn chat__suspend_restores_terminal_and_resumes_input() {
    let host = Host::start();
    let ada = host.owner();
    let mut chat = Terminal::under_a_shell(&ada.command(&["chat"]));
    chat.wait_last("lobby>");
    chat.types("half a line");
    chat.wait_last("lobby> half a line");
    for key in [true, false] {
        if key {
            chat.types("\u{1a}")
        } else {
            chat.signal(Signal::TSTP)
        }
        chat.wait_stopped();
        ada.run(&["send", "lobby", "meanwhile"]).exits(0);
        chat.signal(Signal::CONT);
        chat.wait("what came", |lines| {
            let news = lines.iter().filter(|line| line.ends_with("ada: meanwhile")).count();
            news == 2 - usize::from(key) && lines.last().unwrap() == "lobby> half a line"
        });
        assert!(!chat.echoes());
    }
    chat.types(" and the rest\rexit\r");
    chat.ends(0);
    let all = ada.reads("lobby");
    assert_eq!(texts(&all), ["meanwhile", "meanwhile", "half a line and the rest"]);
}

/// If the chat is the only program of a window, no shell could resume it.
#[test]
fn chat__without_shell_is_not_suspended() {
    let host = Host::start();
    let ada = host.owner();
    let mut chat = chat(&ada);
    chat.signal(Signal::TSTP);
    chat.types("\u{1a}still here\r");
    chat.wait_for("\u{2713} #1 still here");
    chat.types("exit\r");
    chat.ends(0);
}

/// No key is read any more, but Ctrl-C still ends the wait.
#[test]
fn chat__wait_for_last_acks_can_be_interrupted() {
    let mut host = Host::start();
    let ada = host.owner();
    let mut chat = chat(&ada);
    chat.types("here\r");
    chat.wait_for("\u{2713} #1 here");
    host.kill();
    chat.wait_for("-- the connection was lost; trying again in");
    chat.types("unheard\rexit\r");
    while !chat.interrupts() {
        std::thread::yield_now();
    }
    chat.types("\u{3}");
    chat.ends(130);
}

#[test]
fn chat__unsupported_terminal_is_left_unchanged() {
    let host = Host::start();
    let ada = host.owner();
    for term in ["emacs", "cons25", "DUMB", ""] {
        let mut chat = Terminal::start(ada.command(&["chat"]).env("TERM", term));
        chat.wait_for("-- you are ada");
        chat.types("exit\r");
        chat.ends(0);
    }
}

#[test]
fn chat__paste_is_one_message_sent_on_enter() {
    let host = Host::start();
    let ada = host.owner();
    let mut chat = chat(&ada);
    chat.types("\u{1b}[200~first\rsecond\rthird\u{1b}[201~");
    chat.wait_for("third");
    assert!(ada.reads("lobby").is_empty());
    chat.types("\r");
    chat.wait_for("\u{2713} #1 first second third");
    chat.types("\u{4}");
    chat.ends(0);
    assert_eq!(texts(&ada.reads("lobby")), ["first\nsecond\nthird"]);
}

#[test]
fn chat__every_exit_restores_the_terminal() {
    let host = Host::start();
    let ada = host.owner();
    for (keys, code) in [("exit\r", 0), ("/quit\r", 0), ("\u{4}", 0), ("\u{3}", 130)] {
        let mut chat = chat(&ada);
        chat.types(keys);
        chat.ends(code);
    }
    // As early as possible: the first output follows the setup of the terminal.
    let mut early = Terminal::start(&ada.command(&["chat"]));
    early.wait_printed("--");
    early.signal(Signal::TERM);
    early.ends(130);
    for (signal, code) in [(Signal::TERM, 130), (Signal::INT, 130)] {
        let mut chat = chat(&ada);
        chat.types("half a line");
        chat.wait_last("lobby> half a line");
        chat.signal(signal);
        chat.ends(code);
        // The shell's output starts on a new line.
        assert_eq!(chat.lines().last().unwrap(), "lobby> half a line");
        assert!(chat.bytes().ends_with("\r\n"), "{:?}", chat.bytes());
    }
    // A fatal error while the editor waits for keys.
    let bob = host.member(&ada, "bob");
    let mut chat = chat(&bob);
    chat.types("half a line");
    chat.wait_last("lobby> half a line");
    let device = bob.run(&["devices", "--json"]).exits(0).json()[0]["device"].clone();
    bob.run(&["devices", "revoke", device.as_str().unwrap()]).exits(0);
    chat.ends(3);
    let why = |lines: &[String]| {
        lines.last().is_some_and(|last| last.starts_with("twinlock: ") && last.contains("revoked"))
    };
    chat.wait("why", why);
    assert!(chat.lines().contains(&"lobby> half a line".to_owned()), "{:#?}", chat.lines());
}

#[test]
fn chat__input_while_disconnected_is_acked_after_reconnect() {
    let mut host = Host::start();
    let ada = host.owner();
    let mut chat = chat(&ada);
    chat.types("here\r");
    chat.wait_for("\u{2713} #1 here");
    chat.types("half");
    host.kill();
    chat.wait_for("-- the connection was lost; trying again in");
    chat.wait_last("lobby> half");
    chat.types(" said\rand more\r/who\r");
    chat.wait_for("no connection to the server now");
    host.restart();
    chat.wait_for("-- connected again");
    chat.wait_for("\u{2713} #2 half said");
    chat.wait_for("\u{2713} #3 and more");
    let notices = chat.lines().iter().filter(|line| line.contains("trying again")).count();
    assert_eq!(notices, 1, "{:#?}", chat.lines());
    // A library's error text for a cut connection is in no message and in no log.
    let log = std::fs::read_to_string(ada.home.join("state/default/client.log")).unwrap();
    assert!(log.contains("connection lost") && !log.contains("http"), "{log}");
    assert!(!chat.lines().iter().any(|line| line.contains("rustls")), "{:#?}", chat.lines());
    chat.types("exit\r");
    chat.ends(0);
}

#[test]
fn terminal__padded_text_cannot_forge_a_users_line() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let forged = "12:00 eve: I agree";
    let evil = |columns: u16| {
        // The chat's line takes 11 columns before the text.
        let pad = " ".repeat(usize::from(columns) - 12);
        format!("x{pad}{forged}\u{2028}{forged}\n{forged}")
    };
    ada.run(&["send", "lobby", &evil(COLUMNS)]).exits(0);
    ada.run(&["room", "create", "ops", "--topic", &format!("{}{forged}", "y".repeat(62))]).exits(0);
    let mut chat = chat(&bob);
    chat.types("/rooms\r");
    chat.wait_for("join it with");
    chat.wait_last("lobby>");
    chat.resize(ROWS, 40);
    ada.run(&["send", "lobby", &evil(40)]).exits(0);
    let folded = |lines: &[String]| lines.iter().filter(|line| line.contains(forged)).count() >= 6;
    chat.wait("the text, folded", folded);
    let lines = chat.lines();
    assert!(lines.iter().all(|line| !line.starts_with(forged)), "{lines:#?}");
    assert!(without_hours(&lines).iter().all(|line| !line.starts_with("eve")), "{lines:#?}");
    chat.types("exit\r");
    chat.ends(0);
    let mut history = Terminal::start(&bob.command(&["history", "lobby"]));
    history.ends(0);
    history.wait_for(forged);
    let lines = history.lines();
    assert!(lines.iter().all(|line| !line.starts_with(forged)), "{lines:#?}");
}

#[test]
fn chat__ctrl_c_clears_text_and_exits_when_empty() {
    let host = Host::start();
    let ada = host.owner();
    let mut chat = chat(&ada);
    chat.types("half a thought");
    chat.wait_last("lobby> half a thought");
    chat.types("\u{3}");
    chat.wait_last("lobby>");
    chat.types("whole\r");
    chat.wait_for("\u{2713} #1 whole");
    chat.wait_last("lobby>");
    // A line that was emptied again counts as empty.
    chat.types("x\u{7f}");
    chat.types("\u{3}");
    chat.ends(130);
    assert_eq!(texts(&ada.reads("lobby")), ["whole"]);
}

#[test]
fn chat__other_rooms_are_counted_and_names_completed() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["room", "create", "ops"]).exits(0);
    bob.run(&["room", "join", "ops"]).exits(0);
    ada.run(&["send", "ops", "before"]).exits(0);
    let mut chat = chat(&bob);
    chat.wait_for("-- you are bob");
    // Followed once Tab completes the room's name.
    let completes = |chat: &mut Terminal, typed: &str, line: &str| {
        let until = std::time::Instant::now() + LONG;
        while chat.lines().last().is_none_or(|last| last != line) {
            assert!(std::time::Instant::now() < until, "{line}: {:#?}", chat.lines());
            chat.types("\u{15}");
            chat.wait_last("lobby>");
            chat.types(&format!("{typed}\t"));
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    completes(&mut chat, "see #op", "lobby> see #ops");
    ada.run_with(&["send", "ops"], "one\ntwo\n").exits(0);
    chat.wait_for("-- 2 new in ops");
    chat.wait_last("lobby> see #ops");
    // A user who joined later is completed once they have connected.
    host.member(&ada, "carlotta").run(&["people"]).exits(0);
    completes(&mut chat, "/dm car", "lobby> /dm carlotta");
    chat.types("\u{15}/join ops\r");
    // The backlog of a room that was only counted before.
    for words in ["ada: before", "ada: one", "ada: two"] {
        chat.wait_for(words);
    }
    chat.wait_last("ops>");
    ada.run(&["send", "ops", "three"]).exits(0);
    chat.wait_for("ada: three");
    chat.types("/dm ada\r");
    chat.wait_last("@ada>");
    ada.run(&["send", "@bob", "psst"]).exits(0);
    chat.wait_for("ada: psst");
    chat.types("/join lobby\r/dm ada\r");
    // Shown again, now from the record.
    chat.wait("the backlog", |lines| {
        lines.iter().filter(|line| line.ends_with("ada: psst")).count() == 2
    });
    chat.types("exit\r");
    chat.ends(0);
    let rooms = bob.run(&["rooms", "--json"]).exits(0).json();
    for room in &rooms {
        assert_eq!(room["unread"], 0, "what chat showed is read: {rooms:?}");
    }
}

#[test]
fn read_marker__starts_at_head_and_moves_only_on_terminal() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\ntwo\n").exits(0);
    let bob = host.member(&ada, "bob");
    let unread = || {
        let rooms = bob.run(&["rooms", "--json"]).exits(0).json();
        rooms.iter().find(|room| room["conversation"] == "lobby").unwrap()["unread"].clone()
    };
    assert_eq!(unread(), 0, "a new member has read what was there");
    ada.run(&["send", "lobby", "three"]).exits(0);
    bob.run(&["listen", "lobby", "--since", "all", "--count", "3"]).exits(0);
    bob.run(&["send", "lobby", "mine"]).exits(0);
    assert_eq!(unread(), 1, "a script has read nothing, and one's own entries are not unread");
    let listen = ["listen", "lobby", "--since", "all", "--until-now"];
    let mut shown = Terminal::start(&bob.command(&listen));
    shown.wait_for("three");
    shown.ends(0);
    let until = std::time::Instant::now() + LONG;
    while unread() != 0 {
        assert!(std::time::Instant::now() < until, "what a person saw is read");
    }
}

#[test]
fn chat__plain_mode_sends_no_escape_sequences() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "before"]).exits(0);
    let args = ["--color", "never", "chat", "--plain"];
    let mut chat = Terminal::start(&ada.command(&args));
    chat.wait_for("ada: before");
    chat.types("from here\rexit\r");
    chat.wait_for("\u{2713} #2 from here");
    chat.ends(0);
    assert!(!chat.bytes().contains('\u{1b}'), "{:?}", chat.bytes());
}
