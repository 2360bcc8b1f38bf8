//! Classic connections over a real TLS socket, and hostile bytes on them: they have no effect.

use std::time::{Duration, Instant};

use crate::common::classic::*;
use crate::common::*;
use twinlock_core::proto::{ClassicForm, RefusalReason, Role};

struct Stage {
    host: TestServer,
    ada: RawClient,
    room: u64,
    lamp: [u8; 32],
}

/// The owner, a room, and a key for it.
async fn stage(change: impl FnOnce(&mut twinlock_server::Config)) -> Stage {
    let host = TestServer::start_with(|config| {
        both_ports(config);
        change(config);
    })
    .await;
    let (_, mut ada) = host.owner().await;
    let room = create(&mut ada, "ops").await;
    let lamp = add_key(&mut ada, "lamp", room, ClassicForm::JweLines).await.unwrap();
    Stage { host, ada, room, lamp }
}

async fn create(client: &mut RawClient, name: &str) -> u64 {
    use twinlock_core::proto::{CreateRoom, request::Op};
    let create = CreateRoom { name: name.to_owned(), topic: String::new() };
    conversation(client.ask(Op::CreateRoom(create)).await.unwrap()).id
}

#[tokio::test]
async fn classic__ack_has_number_and_link_in_order() {
    let Stage { host, mut ada, room, lamp } = stage(|_| ()).await;
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    // Far more than the read-ahead, in one piece: the rest is read as answers leave.
    let texts: Vec<String> = (0..500).map(|i| format!("{i} Grüße ☃ {}", "x".repeat(i))).collect();
    let all: Vec<u8> = texts.iter().flat_map(|text| caller.sealed(text)).collect();
    send(&mut caller.io, &all).await;
    for n in 1..=500 {
        let answer = caller.answer().await;
        let mut words = answer.split(' ');
        assert_eq!(words.next(), Some("ok"));
        assert_eq!(words.next(), Some(&*room.to_string()));
        assert_eq!(words.next(), Some(&*n.to_string()));
        let link = ada.read(room, n).await.unwrap().link_after;
        assert_eq!(words.next(), Some(&*data_encoding::HEXLOWER.encode(&link)));
        assert_eq!(words.next(), None);
    }
    let mut after = 0;
    while after < 500 {
        let some = recorded(&mut ada, room, after).await;
        for (kind, sender, text) in some {
            assert_eq!((kind, &*sender, &text), (4, "ada:lamp", &texts[after as usize]));
            after += 1;
        }
    }
    // The empty text is valid, and so is the longest.
    for text in ["", &"x".repeat(32768)] {
        assert!(caller.say(text).await.starts_with("ok "));
    }
}

#[tokio::test]
async fn classic__split_lines_and_lines_before_close_are_recorded() {
    let Stage { host, mut ada, room, lamp } = stage(|_| ()).await;
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    for byte in caller.sealed("byte by byte") {
        send(&mut caller.io, [byte]).await;
    }
    assert!(caller.answer().await.starts_with("ok "));
    let three: Vec<u8> = ["a", "b", "c"].iter().flat_map(|text| caller.sealed(text)).collect();
    send(&mut caller.io, &three).await;
    tokio::io::AsyncWriteExt::shutdown(&mut caller.io).await.unwrap();
    for _ in 0..3 {
        caller.answer().await;
    }
    assert_eq!(to_end(caller.io).await, b"");
    assert_eq!(recorded(&mut ada, room, 0).await.len(), 4);
}

/// The bytes that a hostile peer sends after a valid kid line, by the name of the case.
fn hostile(caller: &mut Caller, what: &str) -> Vec<u8> {
    if what == "a text too long" {
        return caller.sealed(&"x".repeat(32_769));
    }
    let good = caller.sealed("evil");
    let text = String::from_utf8(good.clone()).unwrap();
    let header = |json: &str| {
        let header = data_encoding::BASE64URL_NOPAD.encode(json.as_bytes());
        let (_, rest) = text.split_once('.').unwrap();
        format!("{header}.{rest}").into_bytes()
    };
    match what {
        "a tag that is changed" => {
            let mut line = good;
            let at = line.len() - 10;
            line[at] = if line[at] == b'A' { b'B' } else { b'A' };
            line
        }
        "the second line first" => caller.sealed("evil"),
        "another header" => header(r#"{"alg":"dir","enc":"A128CBC-HS256"}"#),
        "a header with a blank" => header(r#"{"alg": "dir","enc":"A256CBC-HS512"}"#),
        "a header that compresses" => header(r#"{"alg":"dir","enc":"A256CBC-HS512","zip":"DEF"}"#),
        "a header without algorithm" => header(r#"{"alg":"none"}"#),
        "a CR" => [&good[..good.len() - 1], b"\r\n"].concat(),
        "an empty line" => b"\n".to_vec(),
        "noise" => (0..100).map(|i| (i * 37 + 1) as u8).chain([b'\n']).collect(),
        "a line too long" => vec![b'A'; 49_153],
        "a line too long with its end" => [&vec![b'A'; 49_153][..], b"\n"].concat(),
        "bytes of our own protocol" => vec![1, 0, 5, 36, 1, 0, 2, 16],
        "half of what TLS begins with" => vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        "a request of the web" => b"POST / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn classic__invalid_line_closes_silently_unrecorded() {
    // Each of these is closed for its content, long before any timeout.
    let Stage { host, mut ada, room, lamp } = stage(|_| ()).await;
    for what in [
        "a tag that is changed",
        "the second line first",
        "another header",
        "a header with a blank",
        "a header that compresses",
        "a header without algorithm",
        "a CR",
        "an empty line",
        "noise",
        "a line too long",
        "a line too long with its end",
        "a text too long",
        "a request of the web",
    ] {
        let mut caller = Caller::new(&host, "lamp", &lamp).await;
        let bytes = hostile(&mut caller, what);
        send(&mut caller.io, &bytes).await;
        assert_eq!(to_end(caller.io).await, b"", "{what}");
    }
    assert_eq!(recorded(&mut ada, room, 0).await, []);
    // The same in place of the kid line.
    let no_kids =
        [&b"\n"[..], b"lamp\n", b"LAMP AAAAAAAAAAAAAAAAAAAAAA\n", &[b'a'; 56], &[0xff; 56]];
    for line in no_kids {
        let mut io = try_lines(&host).await.unwrap();
        read_line(&mut io).await;
        send(&mut io, line).await;
        assert_eq!(to_end(io).await, b"");
    }
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    assert!(caller.say("undisturbed").await.starts_with("ok "));
}

#[tokio::test]
async fn classic__foreign_protocol_bytes_time_out_unrecorded() {
    let limit = Duration::from_millis(200);
    let half = |config: &mut twinlock_server::Config| config.classic.half_line = limit;
    let Stage { host, mut ada, room, lamp } = stage(half).await;
    for what in ["bytes of our own protocol", "half of what TLS begins with"] {
        let mut caller = Caller::new(&host, "lamp", &lamp).await;
        let bytes = hostile(&mut caller, what);
        send(&mut caller.io, &bytes).await;
        assert_eq!(to_end(caller.io).await, b"", "{what}");
    }
    assert_eq!(recorded(&mut ada, room, 0).await, []);
    let greeting = |config: &mut twinlock_server::Config| config.classic.greeting = limit;
    let Stage { host, .. } = stage(greeting).await;
    for kid in [&[1, 0, 5, 36, 1, 0, 2, 16][..], b"lamp AAAAAAAAAAAAAAAAAAAAAA"] {
        let mut io = try_lines(&host).await.unwrap();
        read_line(&mut io).await;
        send(&mut io, kid).await;
        assert_eq!(to_end(io).await, b"");
    }
}

#[tokio::test]
async fn classic__replay_and_reflection_are_rejected() {
    let Stage { host, mut ada, room, lamp } = stage(|_| ()).await;
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    let line = caller.sealed("once");
    send(&mut caller.io, &line).await;
    let answer = read_line(&mut caller.io).await;
    // The same message again, on the same connection.
    send(&mut caller.io, &line).await;
    assert_eq!(to_end(caller.io).await, b"");
    // A replay of the whole connection, byte for byte: the server's nonce differs.
    for again in [line.clone(), answer.into_bytes()] {
        let mut io = try_lines(&host).await.unwrap();
        read_line(&mut io).await;
        send(&mut io, [caller.hello.as_bytes(), &again].concat()).await;
        assert_eq!(to_end(io).await, b"");
    }
    // The server's own answer, reflected.
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    let first = caller.sealed("twice");
    send(&mut caller.io, &first).await;
    let reflected = read_line(&mut caller.io).await;
    send(&mut caller.io, reflected).await;
    assert_eq!(to_end(caller.io).await, b"");
    let texts: Vec<_> = recorded(&mut ada, room, 0).await.into_iter().map(|e| e.2).collect();
    assert_eq!(texts, ["once", "twice"]);
}

#[tokio::test]
async fn classic__unknown_name_fails_like_wrong_key() {
    let Stage { host, mut ada, room, lamp } = stage(|_| ()).await;
    let gone = add_key(&mut ada, "gone", room, ClassicForm::JweLines).await.unwrap();
    revoke_key(&mut ada, "gone").await.unwrap();
    let bridge = add_key(&mut ada, "bridge", room, ClassicForm::OriginHmac).await.unwrap();
    let wrong = [7; 32];
    for (kid, key) in [
        ("lamp", &wrong),
        ("unknown", &wrong),
        ("unknown", &lamp),
        // The protocol allows this name, but no key has it.
        ("-", &lamp),
        ("nobody", &wrong),
        ("gone", &gone),
        // A key has only one form.
        ("bridge", &bridge),
    ] {
        let mut caller = Caller::new(&host, kid, key).await;
        // All of them wait for a message, as a valid one does.
        let early = tokio::time::timeout(Duration::from_millis(100), read_line(&mut caller.io));
        assert!(early.await.is_err(), "{kid} was closed before its first line");
        let line = caller.sealed("let me in");
        send(&mut caller.io, line).await;
        assert_eq!(to_end(caller.io).await, b"", "{kid}");
    }
    assert_eq!(recorded(&mut ada, room, 0).await, []);
}

#[tokio::test]
async fn classic__idle_and_partial_line_time_out() {
    // Only one limit at a time is short; the others exceed every wait in this test. So the short
    // one ends the connection, and steps that must succeed need not be fast.
    let limit = Duration::from_millis(300);
    let Stage { host, .. } = stage(|config| config.classic.greeting = limit).await;
    // No kid line, or half of one.
    for sent in [&b""[..], b"lam"] {
        let began = Instant::now();
        let mut io = try_lines(&host).await.unwrap();
        read_line(&mut io).await;
        send(&mut io, sent).await;
        assert_eq!(to_end(io).await, b"");
        assert!(began.elapsed() >= limit);
    }
    let Stage { host, lamp, .. } = stage(|config| config.classic.half_line = limit).await;
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    caller.say("first").await;
    let line = caller.sealed("second");
    let half = Instant::now();
    send(&mut caller.io, &line[..40]).await;
    assert_eq!(to_end(caller.io).await, b"");
    assert!(half.elapsed() >= limit);
    // Silence after messages, and before any.
    let limit = Duration::from_secs(2);
    let Stage { host, lamp, .. } = stage(|config| config.classic.silence = limit).await;
    for first in [false, true] {
        let began = Instant::now();
        let mut caller = Caller::new(&host, "lamp", &lamp).await;
        if first {
            caller.say("first").await;
        }
        assert_eq!(to_end(caller.io).await, b"");
        assert!(began.elapsed() >= limit);
    }
}

#[tokio::test]
async fn classic__revocation_closes_only_connections_of_its_key() {
    let Stage { host, mut ada, room, lamp } = stage(|_| ()).await;
    let pump = add_key(&mut ada, "pump", room, ClassicForm::JweLines).await.unwrap();
    let mut one = Caller::new(&host, "lamp", &lamp).await;
    let mut two = Caller::new(&host, "lamp", &lamp).await;
    let mut other = Caller::new(&host, "pump", &pump).await;
    one.say("x").await;
    other.say("x").await;
    revoke_key(&mut ada, "lamp").await.unwrap();
    assert_eq!(to_end(one.io).await, b"");
    // A connection that has not sent a message ends too, but like that of an unknown key.
    let line = two.sealed("too late");
    send(&mut two.io, line).await;
    assert_eq!(to_end(two.io).await, b"");
    assert!(other.say("still here").await.starts_with("ok "));
    // A key made again under the name is a different one.
    let again = add_key(&mut ada, "lamp", room, ClassicForm::JweLines).await.unwrap();
    assert_ne!(again, lamp);
    let mut old = Caller::new(&host, "lamp", &lamp).await;
    let line = old.sealed("old key");
    send(&mut old.io, line).await;
    assert_eq!(to_end(old.io).await, b"");
    assert!(Caller::new(&host, "lamp", &again).await.say("new key").await.starts_with("ok "));
}

#[tokio::test]
async fn classic_key__admin_manages_all_and_member_none() {
    let Stage { host, mut ada, room, .. } = stage(|_| ()).await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let jwe = ClassicForm::JweLines;
    assert_eq!(add_key(&mut bob, "bobs", LOBBY, jwe).await, Err(RefusalReason::NotAllowed));
    let invite = ada.invite(Role::Admin, "eve").await.unwrap();
    let eve = host.join(&invite, "eve").await;
    let mut eve = host.connect(eve.credential()).await.unwrap();
    for (name, conversation, form, expected) in [
        ("Bad Name", LOBBY, jwe, RefusalReason::NameBad),
        ("x", room, jwe, RefusalReason::NotFound),
        ("x", 4711, jwe, RefusalReason::NotFound),
        ("x", LOBBY, ClassicForm::FormNone, RefusalReason::Malformed),
        ("lamp", LOBBY, jwe, RefusalReason::NameTaken),
    ] {
        assert_eq!(add_key(&mut eve, name, conversation, form).await, Err(expected), "{name}");
    }
    add_key(&mut eve, "eves", LOBBY, jwe).await.unwrap();
    add_key(&mut eve, "plain", LOBBY, ClassicForm::Origin).await.unwrap();
    let again = add_key(&mut ada, "plain2", LOBBY, ClassicForm::Origin).await;
    assert_eq!(again, Err(RefusalReason::AlreadyUsed));
    let names = |keys: Vec<(String, String, String)>| {
        keys.into_iter()
            .map(|(name, user, room)| format!("{name} {user} {room}"))
            .collect::<Vec<_>>()
    };
    let all = ["eves eve lobby", "lamp ada ops", "plain eve lobby"];
    assert_eq!(names(list_keys(&mut ada).await), all);
    assert_eq!(names(list_keys(&mut eve).await), all);
    assert!(list_keys(&mut bob).await.is_empty());
    // Bob cannot distinguish a key that he may not see from one that does not exist.
    assert_eq!(revoke_key(&mut bob, "lamp").await, Err(RefusalReason::NotFound));
    assert_eq!(revoke_key(&mut bob, "nothing").await, Err(RefusalReason::NotFound));
    assert_eq!(revoke_key(&mut eve, "lamp").await, Ok(()));
    assert_eq!(revoke_key(&mut eve, "lamp").await, Err(RefusalReason::NotFound));
}

#[tokio::test]
async fn classic__refused_after_user_leaves_room() {
    let Stage { host, mut ada, room, lamp } = stage(|_| ()).await;
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    caller.say("in it").await;
    use twinlock_core::proto::{LeaveRoom, request::Op};
    ada.ask(Op::LeaveRoom(LeaveRoom { conversation: room })).await.map(done).unwrap();
    let line = caller.sealed("out of it");
    send(&mut caller.io, line).await;
    assert_eq!(to_end(caller.io).await, b"");
    ada.room("ops").await.unwrap();
    let texts: Vec<_> = recorded(&mut ada, room, 0).await.into_iter().map(|e| e.2).collect();
    assert!(texts.contains(&"in it".to_owned()) && !texts.contains(&"out of it".to_owned()));
    assert!(Caller::new(&host, "lamp", &lamp).await.say("back").await.starts_with("ok "));
}

#[tokio::test]
async fn classic__connections_limited_in_total_and_per_address() {
    for (all, address) in [(100, 3), (3, 100)] {
        let few = |config: &mut twinlock_server::Config| {
            config.classic.connections = all;
            config.classic.connections_per_address = address;
        };
        let Stage { host, mut ada, lamp, .. } = stage(few).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut caller = Caller::new(&host, "lamp", &lamp).await;
            caller.say("mine").await;
            held.push(caller);
        }
        assert!(try_lines(&host).await.is_none(), "{all} {address}");
        // The other listener and other connections are not affected.
        assert!(try_bridge(&host).await.is_some());
        assert!(ada.append(LOBBY, "undisturbed").await.is_ok());
        held.pop();
        let again = async {
            while try_lines(&host).await.is_none() {
                tokio::task::yield_now().await;
            }
        };
        soon("a place", again).await;
    }
}

#[tokio::test]
async fn classic__unauthenticated_is_evicted_and_authenticated_stays() {
    let few = |config: &mut twinlock_server::Config| config.classic.connections = 3;
    let Stage { host, lamp, .. } = stage(few).await;
    let mut known = Caller::new(&host, "lamp", &lamp).await;
    known.say("here").await;
    // One that has not sent its kid line, one that has, and one that has not started TLS.
    let mut silent = try_lines(&host).await.unwrap();
    read_line(&mut silent).await;
    let named = Caller::new(&host, "lamp", &lamp).await;
    let address = host.server().classic_addr().unwrap();
    let mut bare = tokio::net::TcpStream::connect(address).await.unwrap();
    assert_eq!(to_end(silent).await, b"");
    let mut later = Caller::new(&host, "lamp", &lamp).await;
    assert_eq!(to_end(named.io).await, b"");
    later.say("in its place").await;
    let mut last = Caller::new(&host, "lamp", &lamp).await;
    assert_eq!(read_to_end(&mut bare).await, b"");
    last.say("and this one").await;
    // All have authenticated messages, so a further connection is refused.
    assert!(try_lines(&host).await.is_none());
    for caller in [&mut known, &mut later, &mut last] {
        assert!(caller.say("still here").await.starts_with("ok "));
    }
}

#[tokio::test]
async fn classic__proxy_header_address_is_used_for_limits() {
    let Stage { host, mut ada, lamp, .. } = stage(|_| ()).await;
    let old = add_key(&mut ada, "old", LOBBY, ClassicForm::Origin).await.unwrap();
    let few = |config: &mut twinlock_server::Config| {
        both_ports(config);
        config.proxies = vec!["127.0.0.1".parse().unwrap()];
        config.classic.connections_per_address = 1;
    };
    let host = host.restart(few).await;
    let old = bridge(twinlock_core::classic::ClassicScheme::Origin, &old);
    let lines = host.server().classic_addr().unwrap();
    let origin = host.server().origin_addr().unwrap();
    let mut held = Vec::new();
    for client in 1..=3 {
        // Each client has one slot on either port, and no more.
        let mut caller =
            Caller::over(proxied(&host, lines, [192, 0, 2, client]).await.unwrap(), "lamp", &lamp)
                .await;
        caller.say("through the proxy").await;
        let mut io = proxied(&host, origin, [192, 0, 2, client]).await.unwrap();
        send(
            &mut io,
            format!("{}\n", old.seal("through the proxy", &mut twinlock_transport::OsEntropy)),
        )
        .await;
        assert!(!read_line(&mut io).await.is_empty());
        for port in [lines, origin] {
            assert!(proxied(&host, port, [192, 0, 2, client]).await.is_none(), "{client}");
        }
        held.push((caller.io, io));
    }
    // The server closes a connection without the PROXY header.
    for port in [lines, origin] {
        let mut bare = tokio::net::TcpStream::connect(port).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut bare, &[0x16; 64]).await.unwrap();
        assert_eq!(read_to_end(&mut bare).await, b"");
    }
}

#[tokio::test]
async fn classic__recorded_lines_are_acked_before_shutdown() {
    let Stage { mut host, lamp, .. } = stage(|_| ()).await;
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    caller.say("first").await;
    let idle = Caller::new(&host, "lamp", &lamp).await;
    let some: Vec<u8> = (0..64).flat_map(|i| caller.sealed(&i.to_string())).collect();
    send(&mut caller.io, &some).await;
    let ((), answers) = tokio::join!(host.stop(), async {
        let mut answers = 1;
        while !read_line(&mut caller.io).await.is_empty() {
            answers += 1;
        }
        answers
    });
    assert_eq!(to_end(idle.io).await, b"");
    let again = host.restart(both_ports).await;
    let mut caller = Caller::new(&again, "lamp", &lamp).await;
    let next = caller.say("after").await;
    let n: usize = next.split(' ').nth(2).unwrap().parse().unwrap();
    assert_eq!(n, answers + 1, "{next}");
}

#[tokio::test]
async fn classic__text_counts_towards_user_rate_and_quota() {
    let Stage { host, mut ada, room, lamp } = stage(|config| {
        config.limits.text_rate = 64 * 1024;
        config.limits.text_burst = 32 * 1024;
        config.limits.text_per_day = 200_000;
    })
    .await;
    let mut caller = Caller::new(&host, "lamp", &lamp).await;
    let text = "x".repeat(16 * 1024);
    let began = Instant::now();
    for _ in 0..5 {
        assert!(caller.say(&text).await.starts_with("ok "));
        ada.append(room, &text).await.unwrap();
    }
    // 162.5 KiB at 64 KiB a second, minus the burst and the last debt.
    assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
    // Two more texts leave less than a whole text of the day's quota.
    ada.append(room, &text).await.unwrap();
    ada.append(room, &text).await.unwrap();
    let last = caller.sealed(&text);
    send(&mut caller.io, &last).await;
    assert_eq!(to_end(caller.io).await, b"");
    assert_eq!(ada.read(room, 0).await.unwrap().head, 12);
    assert_eq!(ada.append(room, &text).await.map(|ack| ack.n), Err(RefusalReason::Storage));
}
