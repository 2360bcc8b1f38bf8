//! How connections and servers end: revocation, replacement, quota, shutdown, crash, certificates.

use std::time::Duration;

use crate::common::*;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::answer::Result as Answered;
use twinlock_core::proto::{self, item::What, request::Op};
use twinlock_core::session::{Binding, BindingPolicy};
use twinlock_server::{Server, StartError};
use twinlock_testing::{Endpoint, TlsInterceptor};

fn revoke(device: &TestDevice) -> Op {
    Op::RevokeDevice(proto::RevokeDevice { device: copy(&device.id.0) })
}

#[tokio::test]
async fn device__own_revocation_closes_all_its_sessions() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    let (bobs, mut bob) = host.member(&mut ada, "bob").await;
    let mut second = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(ada.ask(revoke(&bobs)).await, Err(proto::RefusalReason::NotAllowed));
    ada.follow(LOBBY, 0).await.unwrap();
    ada.ask(revoke(&laptop)).await.map(done).unwrap();
    assert_eq!(ada.end().await.unwrap(), CloseCode::Revoked);
    assert_eq!(second.end().await.unwrap(), CloseCode::Revoked);
    assert!(host.connect(laptop.credential()).await.err().unwrap().is_refused());
    assert!(bob.append(LOBBY, "still here").await.is_ok());
}

#[tokio::test]
async fn session__newer_of_same_instance_replaces_older() {
    let host = TestServer::start().await;
    let (laptop, mut other) = host.owner().await;
    let run = b"run";
    let mut older = host.connect_with(laptop.credential(), run, |_| ()).await.unwrap();
    let mut newer = host.connect_with(laptop.credential(), run, |_| ()).await.unwrap();
    assert_eq!(older.end().await.unwrap(), CloseCode::Replaced);
    for session in [&mut newer, &mut other] {
        assert!(session.append(LOBBY, "still here").await.is_ok());
    }
}

#[tokio::test]
async fn session__seventeenth_of_device_is_refused() {
    let host = TestServer::start().await;
    let (laptop, first) = host.owner().await;
    let mut sessions = vec![first];
    for _ in 1..16 {
        sessions.push(host.connect(laptop.credential()).await.unwrap());
    }
    let mut last = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(last.end().await.unwrap(), CloseCode::Quota);
    sessions.pop().unwrap().bye().await;
    let mut last = host.connect(laptop.credential()).await.unwrap();
    assert!(last.append(LOBBY, "in again").await.is_ok());
    for session in &mut sessions {
        assert!(session.append(LOBBY, "undisturbed").await.is_ok());
    }
}

/// A stolen device opens as many sessions as it can, including unfinished logins.
#[tokio::test]
async fn session__stolen_device_does_not_block_other_logins() {
    let host = TestServer::start_with(|config| {
        config.limits.sessions_per_device = 2;
        config.limits.password_sessions_per_user = 1;
    })
    .await;
    let mut ada = host.connect(host.owner_invite().credential()).await.unwrap();
    let stolen = ada.register("ada", Some("correct horse battery")).await.unwrap();
    let mut oldest = host.connect(password("ada", "correct horse battery")).await.unwrap();
    let phone = oldest.register("", None).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..2 {
        let mut session = host.connect(stolen.credential()).await.unwrap();
        assert!(session.append(LOBBY, "mine").await.is_ok());
        taken.push(session);
    }
    let mut more = host.connect(stolen.credential()).await.unwrap();
    assert_eq!(more.end().await.unwrap(), CloseCode::Quota);
    // The owner's other device and the password still log in.
    let mut other = host.connect(phone.credential()).await.unwrap();
    assert!(other.append(LOBBY, "hers").await.is_ok());
    let mut newest = host.connect(password("ada", "correct horse battery")).await.unwrap();
    assert_eq!(oldest.end().await.unwrap(), CloseCode::Quota);
    newest.ask(revoke(&stolen)).await.map(done).unwrap();
    for mut session in taken {
        assert_eq!(session.end().await.unwrap(), CloseCode::Revoked);
    }
}

#[tokio::test]
async fn shutdown__acks_received_appends_and_sends_reconnect_delay() {
    let mut host = TestServer::start_with(|config| config.come_back = Duration::from_secs(7)).await;
    let (laptop, mut ada) = host.owner().await;
    let mut idle = host.connect(laptop.credential()).await.unwrap();
    // A connection that sends nothing does not delay the shutdown.
    let silent = tokio::net::TcpStream::connect(host.address()).await.unwrap();
    let mut posted = Vec::new();
    for n in 0..500 {
        posted.push(ada.post(append(LOBBY, &format!("line {n}"))));
    }
    ack(ada.answer(posted.remove(0)).await);
    let began = std::time::Instant::now();
    let (ended, ()) = tokio::join!(ada.end(), host.stop());
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(ended.unwrap(), CloseCode::Shutdown);
    assert_eq!(idle.end().await.unwrap(), CloseCode::Shutdown);
    for client in [&ada, &idle] {
        let last = client.items().last();
        assert_eq!(last, Some(&What::GoingAway(proto::GoingAway { seconds: 7 })));
    }
    drop(silent);
    // Every append that was received is acknowledged, in order, and recorded.
    let acked: Vec<_> = ada
        .items()
        .filter_map(|item| match item {
            What::Answer(answer) => Some(answer),
            _ => None,
        })
        .collect();
    let ids: Vec<_> = acked.iter().map(|answer| answer.id).collect();
    assert_eq!(ids, posted[..acked.len()]);
    let host = host.restart(|_| ()).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(ada.conversations().await[0].head, 1 + acked.len() as u64);
}

#[tokio::test]
async fn shutdown__drops_queued_read_requests() {
    const POSTED: usize = 1000;
    let mut host = TestServer::start_with(|config| config.drain = Duration::from_secs(60)).await;
    let (_, mut ada) = host.owner().await;
    let text = "x".repeat(30_000);
    for _ in 0..30 {
        ada.append(LOBBY, &text).await.unwrap();
    }
    let read = proto::Read { conversation: LOBBY, after: 0, limit: 1000, links: true };
    let first = ada.post(Op::Read(read));
    for _ in 1..POSTED {
        ada.post(Op::Read(read));
    }
    ada.answer(first).await;
    let (ended, ()) = tokio::join!(ada.end(), host.stop());
    assert_eq!(ended.unwrap(), CloseCode::Shutdown);
    let answered = ada.items().filter(|item| matches!(item, What::Answer(_))).count();
    assert!(answered < POSTED / 2, "{answered} were answered");
}

#[tokio::test]
async fn shutdown__not_delayed_by_stalled_peer() {
    let mut host = TestServer::start_with(|config| config.drain = Duration::from_millis(500)).await;
    let (laptop, mut ada) = host.owner().await;
    let text = "x".repeat(32 * 1024);
    for _ in 0..400 {
        ada.append(LOBBY, &text).await.unwrap();
    }
    let mut stalled = host.connect(laptop.credential()).await.unwrap();
    stalled.post(Op::Follow(proto::Follow { conversation: LOBBY, after: 0 }));
    stalled.set_stalled(true);
    stalled.push_out().await.unwrap();
    let began = std::time::Instant::now();
    let (ended, ()) = tokio::join!(ada.end(), host.stop());
    assert_eq!(ended.unwrap(), CloseCode::Shutdown);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let host = host.restart(|_| ()).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(ada.conversations().await[0].head, 400);
}

#[tokio::test]
async fn restart__clean_or_crash_keeps_record_and_identity() {
    let mut host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    let invite = ada.invite(proto::Role::Member, "bob").await.unwrap();
    let ops = proto::CreateRoom { name: "ops".into(), topic: "machines".into() };
    let ops = ada.ask(Op::CreateRoom(ops)).await.map(conversation).unwrap();
    let (key, pin) = (host.key(), host.pin());
    for n in 1..=4u64 {
        ada.append(ops.id, &format!("line {n}")).await.unwrap();
        host = if n % 2 == 0 { host.restart(|_| ()).await } else { host.crash(|_| ()).await };
        assert!(host.server().owner_invite().is_none());
        assert_eq!((host.key(), host.pin()), (key, pin));
        ada = host.connect(laptop.credential()).await.unwrap();
        let page = ada.read(ops.id, 0).await.unwrap();
        assert_eq!(page.entries.len() as u64, n);
    }
    host.join(&invite, "bob").await;
}

#[tokio::test]
async fn start__second_server_on_same_directory_is_refused() {
    let host = TestServer::start().await;
    let second = Server::start(TestServer::config(&host.data())).await;
    assert!(matches!(second.err().unwrap(), StartError::Record(_)));
    host.owner().await;
}

#[tokio::test]
async fn owner_invite__reported_once_private_and_removed_after_use() {
    use std::os::unix::fs::PermissionsExt as _;
    use twinlock_core::invite::{Address, InviteLink};

    let public = |config: &mut twinlock_server::Config| {
        config.public = Some(Address::new("chat.example", 8443).unwrap());
    };
    let host = TestServer::start_with(public).await;
    let path = host.data().join("owner-invite");
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let link = InviteLink::parse(kept.trim()).unwrap();
    assert_eq!(link.address.to_string(), "chat.example:8443");
    assert_eq!((link.server_key, link.tls_pin), (host.key(), Some(host.pin())));
    let invite = host.owner_invite();

    // An unchanged invite is not reported again. With another public address, the same invite is.
    let host = host.restart(public).await;
    assert!(host.server().owner_invite().is_none());
    let moved = Address::new("other.example", 443).unwrap();
    let host = host.restart(|config| config.public = Some(moved)).await;
    assert_eq!(host.server().owner_invite().unwrap().id, link.id);

    host.join(&invite, "ada").await;
    assert!(!path.exists());
    let host = host.restart(public).await;
    assert!(host.server().owner_invite().is_none() && !path.exists());
}

#[tokio::test]
async fn start__record_without_setup_is_refused() {
    let mut host = TestServer::start().await;
    host.stop().await;
    std::fs::remove_dir_all(host.data().join("identity")).unwrap();
    for _ in 0..2 {
        let start = Server::start(TestServer::config(&host.data())).await;
        assert!(matches!(start.err().unwrap(), StartError::SetupLost(_)));
    }
}

#[tokio::test]
async fn reload__valid_certificate_is_served_and_invalid_ignored() {
    let temp = tempfile::tempdir().unwrap();
    let own = twinlock_server::identity::OwnFiles {
        cert: temp.path().join("own.crt"),
        key: temp.path().join("own.key"),
    };
    let write = |cert: &str, key: &str| {
        std::fs::write(&own.cert, cert).unwrap();
        std::fs::write(&own.key, key).unwrap();
    };
    let [first, second] = [(); 2].map(|()| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    });
    write(&first.0, &first.1);
    let host = TestServer::start_with(|config| config.own_files = Some(own.clone())).await;
    let (laptop, mut ada) = host.owner().await;
    let pin = host.pin();

    for (cert, key) in [("rubbish", &*second.1), (&*second.0, "rubbish"), (&*second.0, &*first.1)] {
        write(cert, key);
        host.server().reload().unwrap_err();
        assert_eq!(host.pin(), pin);
        assert!(host.connect(laptop.credential()).await.is_ok());
    }
    write(&second.0, &second.1);
    host.server().reload().unwrap();
    assert_ne!(host.pin(), pin);
    assert!(ada.append(LOBBY, "still the old line").await.is_ok());
    let newer = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(
        (newer.info.tls_pins[0].as_ref(), newer.binding),
        (&host.pin().0[..], Binding::Bound)
    );
}

#[tokio::test]
async fn channel_binding__interception_warned_or_refused_by_policy() {
    let host = TestServer::start().await;
    let (laptop, _ada) = host.owner().await;
    let through = intercepted(&host).await;
    let mut client = through.connect(laptop.credential()).await.unwrap();
    assert_eq!(client.binding, Binding::Cut);
    assert!(client.append(LOBBY, "lock 2 holds").await.is_ok());

    let host = host.restart(|config| config.binding = BindingPolicy::Require).await;
    let through = intercepted(&host).await;
    let direct = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(direct.binding, Binding::Bound);
    for policy in [BindingPolicy::Warn, BindingPolicy::Off] {
        let change = |config: &mut twinlock_core::session::SessionConfig| config.binding = policy;
        let client = through.connect_with(laptop.credential(), b"", change).await;
        let code = match client {
            Ok(mut client) => client.end().await.unwrap(),
            Err(no_line) => no_line.close().unwrap(),
        };
        assert_eq!(code, CloseCode::Binding);
    }
    // A client that sends no channel binding is refused too.
    let silent = host.connect_with(laptop.credential(), b"", |c| c.binding = BindingPolicy::Off);
    let mut silent = silent.await.unwrap();
    assert_eq!(silent.end().await.unwrap(), CloseCode::Binding);
}

/// The server as its clients know it, behind a proxy that intercepts TLS.
async fn intercepted(host: &TestServer) -> Endpoint {
    let proxy = TlsInterceptor::start(host.endpoint(), || Box::new(|_| ())).await;
    Endpoint::pinned(proxy.address, vec![proxy.pin], host.key())
}

#[tokio::test]
async fn session__closed_at_maximum_age_and_when_idle() {
    let host = TestServer::start_with(|config| {
        config.timing.max_age = Duration::from_millis(600);
        config.timing.ping_idle = Duration::from_millis(100);
        config.timing.ping_answer = Duration::from_millis(200);
    })
    .await;
    let (laptop, mut ada) = host.owner().await;
    assert_eq!(ada.end().await.unwrap(), CloseCode::LogInAgain);
    // This one stops reading and writing after the login.
    let mut silent = host.connect(laptop.credential()).await.unwrap();
    host.until_sessions(0).await;
    let end = silent.end().await;
    assert!(matches!(end, Ok(CloseCode::Idle) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn device__list_shows_current_and_online() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    let Ok(Answered::Devices(list)) = ada.ask(Op::ListDevices(proto::ListDevices {})).await else {
        panic!()
    };
    let device = &list.devices[0];
    assert_eq!((&*device.id, &*device.label), (&laptop.id.0[..], "laptop"));
    assert!(device.current && device.online && device.seen_ms >= device.created_ms);
}
