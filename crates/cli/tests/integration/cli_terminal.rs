//! Terminal output of commands: prompts, join commands, QR codes, colours and line widths.

use crate::common::terminal::{ROWS, Terminal};
use crate::common::*;
use rustix::process::Signal;

#[test]
fn password_prompt__hides_input_and_ctrl_c_restores_terminal() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.stranger();
    let link = ada.invites();
    let mut join = Terminal::start(&bob.command(&["join", &link]));
    join.wait_for("Your name here");
    join.types("No Name!\r");
    join.wait("the question again", |lines| {
        lines.iter().filter(|line| line.starts_with("Your name here")).count() == 2
    });
    join.types("Bob\r");
    join.wait_for("A password for bob");
    // The question appears before the terminal's echo is off.
    while join.echoes() {
        std::thread::yield_now();
    }
    join.types("shrt\r");
    join.wait_for("at least 8");
    join.wait_last("A password for bob (at least 8 characters):");
    while join.echoes() {
        std::thread::yield_now();
    }
    join.types("open sesame now");
    join.types("\u{3}");
    join.ends(130);
    // Words that are not among the server words, which may be shown.
    assert!(!join.bytes().contains("shrt") && !join.bytes().contains("sesame"));
    assert!(!bob.profile_file().exists());

    let mut join = Terminal::start(&bob.command(&["join", "--user", "bob", &link]));
    for (question, answer) in [
        ("A password for bob (at least 8 characters):", "open sesame now\r"),
        ("The same again:", "open barley now\r"),
        ("A password for bob (at least 8 characters):", "open sesame now\r"),
        ("The same again:", "open sesame now\r"),
    ] {
        join.wait_last(question);
        while join.echoes() {
            std::thread::yield_now();
        }
        join.types(answer);
    }
    join.ends(0);
    join.wait_for("two passwords differ");
    join.wait_for("You are bob on");
    // The server words may end in "open".
    let shown = ["sesame", "barley"].map(|word| join.bytes().contains(word));
    assert_eq!(shown, [false; 2], "{:?}", join.bytes());
    bob.run(&["status"]).exits(0);
}

#[test]
fn terminal__dumb_or_no_color_gets_no_escape_sequences() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "hello"]).exits(0);
    let mut dumb = Terminal::start(ada.command(&["chat"]).env("TERM", "dumb"));
    dumb.wait_for("-- you are ada");
    dumb.types("from here\rexit\r");
    dumb.ends(0);
    assert!(!dumb.bytes().contains('\u{1b}'), "{:?}", dumb.bytes());
    assert_eq!(texts(&ada.reads("lobby")), ["hello", "from here"]);
    for (variable, value, coloured) in
        [("NO_COLOR", "1", false), ("NO_COLOR", "", true), ("TERM", "dumb", false)]
    {
        let mut history = Terminal::start(ada.command(&["history", "lobby"]).env(variable, value));
        history.ends(0);
        history.wait_for("ada: hello");
        assert_eq!(history.bytes().contains('\u{1b}'), coloured, "{variable}={value}");
    }
}

/// The last lines of the screen from the one that begins with `words`, joined as for copying: the
/// terminal has broken one long line.
fn last_command(lines: &[String], words: &str) -> String {
    let at = lines.iter().rposition(|line| line.starts_with(words)).unwrap_or(lines.len());
    lines[at..].concat()
}

fn is_last_command(lines: &[String]) -> bool {
    last_command(lines, "twinlock join 'twinlock://").ends_with('\'')
}

#[test]
fn serve__join_command_is_last_and_qr_code_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = twinlock();
    command.args(["serve", "--port", "0", "--data"]).arg(dir.path());
    let mut first = Terminal::start(&command);
    first.wait("the command", is_last_command);
    let link = std::fs::read_to_string(dir.path().join("owner-invite")).unwrap();
    let lines = first.lines();
    assert_eq!(
        last_command(&lines, "twinlock join"),
        format!("twinlock join '{}'", link.trim()),
        "{lines:#?}"
    );
    assert!(lines.len() <= usize::from(ROWS), "{lines:#?}");
    for words in
        ["works on this machine only", "--host 0.0.0.0", "--public-host", "this machine has "]
    {
        let text = lines.join(" ");
        assert!(text.contains(words), "{words}: {lines:#?}");
    }
    first.signal(Signal::TERM);
    first.ends(0);
    let bytes = first.bytes();
    assert!(!bytes.contains('\u{2588}'), "{bytes}");
    // An unchanged address: the invite is not shown again.
    let port = bytes.split("listening on 127.0.0.1:").nth(1).unwrap();
    let port = port.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    let mut command = twinlock();
    command.args(["serve", "--port", port, "--data"]).arg(dir.path());
    let mut second = Terminal::start(&command);
    second.wait_for("server words");
    second.signal(Signal::INT);
    second.ends(0);
    assert!(!second.bytes().contains("twinlock://"));
    // A name that others can reach, and the QR code.
    let mut command = twinlock();
    command.args(["serve", "--port", "0", "--qr", "--public-host", "chat.example.org", "--data"]);
    let mut third = Terminal::start(command.arg(dir.path()));
    third.wait("the command", is_last_command);
    assert!(third.bytes().contains('\u{2588}'), "{:?}", third.bytes());
    let bytes = third.bytes();
    assert!(!bytes.contains("This link works"), "{bytes:?}");
    // It listens on the loopback address, which only a proxy on this machine can reach.
    assert!(bytes.contains("The server listens on this machine only"), "{bytes:?}");
    third.signal(Signal::TERM);
    third.ends(0);
}

#[test]
fn invite__join_command_is_last_and_qr_code_on_request() {
    let host = Host::start();
    let ada = host.owner();
    let mut plain = Terminal::start(&ada.command(&["invite"]));
    plain.ends(0);
    plain.wait("the command", is_last_command);
    let text = plain.lines().join(" ");
    assert!(text.contains("works on this machine only") && text.contains("--public"), "{text}");
    assert!(!plain.bytes().contains('\u{2588}'), "{:?}", plain.bytes());
    let command = last_command(&plain.lines(), "twinlock join");
    let link = command.strip_prefix("twinlock join '").unwrap().strip_suffix('\'').unwrap();
    host.stranger().joins("bob", link);
    let args = ["invite", "--qr", "--public", "chat.example.org"];
    let mut code = Terminal::start(&ada.command(&args));
    code.ends(0);
    code.wait("the command", is_last_command);
    assert!(code.bytes().contains('\u{2588}'), "{:?}", code.bytes());
    assert!(!code.bytes().contains("this machine only"), "{:?}", code.bytes());
    assert!(code.lines().concat().contains(&format!("chat.example.org:{}/#", host.port())));
}

#[test]
fn terminal__error_text_is_folded_to_its_width() {
    let host = Host::start();
    let ada = host.owner();
    let mut status = ada.command(&["room", "topic", "no-such-room-anywhere"]);
    let mut narrow = Terminal::start(&status);
    narrow.ends(7);
    narrow.wait("the end", |lines| lines.last().is_some_and(|line| line.ends_with(')')));
    let lines = narrow.lines();
    assert!(lines.len() > 1, "{lines:#?}");
    // Folded between words and indented; a line broken by the terminal would continue in column 1.
    assert!(lines[1..].iter().all(|line| line.starts_with("  ")), "{lines:#?}");
    let ran = Running::start(&mut status).ended(LONG).exits(7);
    assert_eq!(ran.err.lines().count(), 1, "not on a terminal: {ran:?}");
}

#[test]
fn join__second_profile_is_named_after_the_user() {
    let host = Host::start();
    let ada = host.owner();
    let link = ada.invites();
    // Without a terminal: refused before the invite is used, and so without the server.
    let refused = ada.by(([127, 0, 0, 1], 1).into());
    let ran = refused.run(&["join", "--no-password", "--user", "bob", &link]).exits(2);
    assert!(
        ran.err.contains("'default' exists already: ada on") && ran.err.contains("--profile"),
        "{ran:?}"
    );
    let login = refused.run(&["login", "bob@127.0.0.1:1"]).exits(2);
    assert!(login.err.contains("--profile"), "{login:?}");

    let mut join =
        Terminal::start(&ada.command(&["join", "--no-password", "--user", "bob", &link]));
    join.wait_last("Name of the new profile [bob]:");
    assert!(join.lines().concat().contains("'default' exists already"), "{:#?}", join.lines());
    join.types("default\r");
    join.wait("the question again", |lines| {
        lines.iter().filter(|line| line.starts_with("Name of the new profile")).count() == 2
    });
    join.types("\r");
    join.ends(0);
    join.wait_for("twinlock --profile bob chat");
    let status = ada.run(&["--profile", "bob", "status", "--json"]).exits(0).json();
    assert_eq!(status[0]["user"], "bob");
    assert_eq!(ada.run(&["status", "--json"]).exits(0).json()[0]["user"], "ada");
}
