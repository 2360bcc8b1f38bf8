//! A malicious server with endless lists, invalid entries, and conversations that begin with
//! another link. The client reports them, shows the rest, and its memory stays bounded.

use crate::common::malicious_server::{MaliciousServer, Said};
use crate::common::*;
use twinlock_core::proto;
use twinlock_core::proto::answer::Result as Answered;
use twinlock_core::proto::item::What;

/// Largest memory of a client with a list at its limit, KiB; without the limit it was 1 GiB.
const LARGEST: u64 = 400_000;

/// Changes answers.
fn answers(
    change: impl Fn(&mut Answered) + Send + 'static,
) -> crate::common::malicious_server::Tampering {
    Box::new(move |said| {
        if let Said::Item(proto::Item { what: Some(What::Answer(answer)) }) = said
            && let Some(result) = &mut answer.result
        {
            change(result);
        }
    })
}

/// Runs a command; also returns its peak resident memory, KiB.
fn peak(person: &Person, args: &[&str]) -> (Ran, u64) {
    let running = person.start(args);
    let status = format!("/proc/{}/status", running.pid());
    let (done, told) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let mut most = 0;
        while let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            most = most.max(kib.unwrap_or(0));
            if told.recv_timeout(std::time::Duration::from_millis(20))
                != Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                break;
            }
        }
        most
    });
    let ran = running.ended(LONG);
    drop(done);
    (ran, watch.join().unwrap())
}

#[test]
fn list__endless_or_unordered_is_refused_in_bounded_memory() {
    let host = Host::start();
    let ada = host.owner();
    let malicious = MaliciousServer::start(&host, &ada);
    let victim = ada.by(malicious.address());
    for rising in [false, true] {
        let count = std::sync::atomic::AtomicU64::new(1);
        let next = move || match rising {
            true => count.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            false => 7,
        };
        malicious.install(answers(move |answer| match answer {
            Answered::Conversations(some) => {
                some.more = true;
                let kind = proto::conversation::Kind::Room.into();
                some.conversations = (0..500)
                    .map(|_| proto::Conversation {
                        id: next(),
                        kind,
                        name: "r".repeat(30),
                        ..Default::default()
                    })
                    .collect();
            }
            Answered::People(some) => {
                some.more = true;
                let person =
                    || proto::Person { user: format!("u{:020}", next()), ..Default::default() };
                some.people = (0..500).map(|_| person()).collect();
            }
            Answered::Members(some) => {
                some.more = true;
                some.users = (0..500).map(|_| format!("u{:020}", next())).collect();
            }
            Answered::ClassicKeys(some) => {
                some.more = true;
                let key =
                    || proto::ClassicKey { name: format!("k{:020}", next()), ..Default::default() };
                some.keys = (0..500).map(|_| key()).collect();
            }
            _ => {}
        }));
        for args in [
            &["rooms"][..],
            &["rooms", "--joinable", "--json"],
            &["people"],
            &["room", "members", "lobby"],
            &["classic", "list"],
            &["audit", "verify"],
            &["listen", "--count", "1"],
        ] {
            let (ran, most) = peak(&victim, args);
            assert_eq!(ran.code, Some(8), "{args:?}: {ran:?}");
            assert!(ran.err.contains("out of order or has no end"), "{args:?}: {ran:?}");
            assert!(most < LARGEST, "{args:?}: {most} kB");
        }
    }
}

#[test]
fn search__results_not_descending_are_refused() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "word 1\nword 2\nword 3\n").exits(0);
    let malicious = MaliciousServer::start(&host, &ada);
    malicious.install(answers(|answer| {
        if let Answered::Page(page) = answer {
            page.entries.iter_mut().for_each(|entry| entry.n = 3);
        }
    }));
    let search = ["history", "lobby", "--search", "word", "--limit", "100000"];
    let ran = ada.by(malicious.address()).run(&search).exits(8);
    assert!(ran.err.contains("search results"), "{ran:?}");
}

/// Changes entry 2 in pages and in follows.
fn entry_2(
    change: impl Fn(&mut proto::Entry) + Send + 'static,
) -> crate::common::malicious_server::Tampering {
    Box::new(move |said| {
        let Said::Item(item) = said else { return };
        let entries = match &mut item.what {
            Some(What::Answer(answer)) => match &mut answer.result {
                Some(Answered::Page(page)) => &mut page.entries,
                _ => return,
            },
            Some(What::Entries(entries)) => &mut entries.entries,
            _ => return,
        };
        entries.iter_mut().filter(|entry| entry.n == 2).for_each(&change);
    })
}

#[test]
fn entry__invalid_is_reported_and_others_are_shown() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run_with(&["send", "lobby"], "word 1\nword 2\nword 3\n").exits(0);
    // Ada knows the links of these entries, bob none.
    for person in [&ada, &bob] {
        let malicious = MaliciousServer::start(&host, person);
        let victim = person.by(malicious.address());
        let lies: [crate::common::malicious_server::Tampering; 4] = [
            entry_2(|entry| entry.time_ms = u64::MAX),
            entry_2(|entry| entry.time_ms = 1 << 60),
            entry_2(|entry| entry.kind = 300),
            entry_2(|entry| entry.message_id = vec![1].into()),
        ];
        for lie in lies {
            malicious.install(lie);
            let history = victim.run(&["history", "lobby"]).exits(8);
            assert!(history.err.contains("entry 2 of conversation"), "{history:?}");
            assert!(
                history.out.contains("word 1") && !history.out.contains("word 2"),
                "{history:?}"
            );
            assert!(history.out.contains("word 3"), "{history:?}");
            let found = victim.run(&["history", "lobby", "--search", "word", "--json"]).exits(8);
            assert_eq!(texts(&found.json()), ["word 3", "word 1"]);
            assert!(found.err.contains("entry 2 of conversation"), "{found:?}");
            let listen = ["listen", "lobby", "--since", "all", "--count", "3"];
            let heard = victim.run(&listen).exits(8);
            assert!(heard.out.contains("word 1"), "{heard:?}");
            assert!(heard.err.contains("entry 2 of conversation"), "{heard:?}");
            let audit = victim.run(&["audit", "verify"]).exits(8);
            assert!(audit.out.contains("entry 2"), "{audit:?}");
            malicious.reset();
            assert_eq!(texts(&victim.reads("lobby")).len(), 3, "nothing false is remembered");
        }
    }
}

#[test]
fn ack__impossible_time_is_refused() {
    let host = Host::start();
    let ada = host.owner();
    let malicious = MaliciousServer::start(&host, &ada);
    malicious.install(answers(|answer| {
        if let Answered::Ack(ack) = answer {
            ack.time_ms = u64::MAX;
        }
    }));
    let ran = ada.by(malicious.address()).run(&["send", "lobby", "x"]);
    assert_eq!(ran.code, Some(8), "{ran:?}");
}

#[test]
fn history__truncated_before_head_is_an_error() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run_with(&["send", "lobby"], "1\n2\n3\n").exits(0);
    let malicious = MaliciousServer::start(&host, &bob);
    malicious.install(answers(|answer| {
        if let Answered::Page(page) = answer {
            page.entries.retain(|entry| entry.n < 2);
        }
    }));
    let ran = bob.by(malicious.address()).run(&["history", "lobby", "--json"]).exits(8);
    assert_eq!(texts(&ran.json()), ["1"]);
    assert!(ran.err.contains("entry 2"), "{ran:?}");
}

#[test]
fn link__first_is_checked_by_every_read_from_start() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let path = host.root().join("f");
    std::fs::write(&path, "content").unwrap();
    ada.run(&["put", path.to_str().unwrap(), "lobby"]).exits(0);
    let malicious = MaliciousServer::start(&host, &bob);
    let victim = bob.by(malicious.address());
    // A record of one entry with valid links, except the first one.
    malicious.install(answers(|answer| match answer {
        Answered::Page(page) if page.after == 0 => page.link_after = vec![7; 32].into(),
        Answered::Following(following) if following.after == 0 => {
            following.link_after = vec![7; 32].into();
        }
        Answered::Conversation(one) => one.head_link = vec![9; 32].into(),
        _ => {}
    }));
    let out = host.root().join("out");
    let out = out.to_str().unwrap();
    for args in [
        &["history", "lobby"][..],
        &["listen", "lobby", "--since", "all", "--count", "1"],
        &["listen", "--since", "all", "--count", "1", "--exec", "cat"],
        &["get", "lobby", "1", "-o", out],
        &["audit", "verify"],
    ] {
        let ran = victim.run(args);
        assert_eq!(ran.code, Some(8), "{args:?}: {ran:?}");
        assert!(!ran.out.contains("sent a file"), "{args:?}: {ran:?}");
    }
    malicious.reset();
    assert_eq!(victim.run(&["history", "lobby"]).exits(0).out.lines().count(), 1);
}
