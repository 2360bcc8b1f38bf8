//! Abuse of registrations: a session that may register a credential cannot test another user's
//! password, and one invite makes one user.

use std::time::Duration;

use crate::common::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use twinlock_core::credential::Credential;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::handshake::Enrolment;
use twinlock_core::id::DeviceId;
use twinlock_core::proto::{self, RefusalReason, Role, answer::Result as Answered, request::Op};
use twinlock_transport::OsEntropy;

/// A request that gets an answer only if the session may evaluate these credentials.
fn evaluate(password: bool, device: bool) -> Op {
    let request = |wanted: bool, credential| {
        let (_, request) = Enrolment::start(&credential, &mut OsEntropy).unwrap();
        if wanted { copy(&request) } else { copy(&[]) }
    };
    Op::RegisterEvaluate(proto::RegisterEvaluate {
        password_request: request(password, self::password("ada", "correct horse")),
        device_request: request(device, TestDevice::unknown().credential()),
    })
}

fn finish() -> Op {
    Op::RegisterFinish(proto::RegisterFinish {
        password_record: copy(&[]),
        device_record: copy(&[2; 192]),
    })
}

/// The owner's session, and the session of a new invite for `user`, or for any name if empty.
async fn invited(host: &TestServer, user: &str) -> (RawClient, RawClient, TestInvite) {
    let (_, mut ada) = host.owner().await;
    let invite = ada.invite(Role::Member, user).await.unwrap();
    let session = host.connect(invite.credential()).await.unwrap();
    (ada, session, invite)
}

#[tokio::test]
async fn invite__for_one_name_registers_no_other() {
    let host = TestServer::start().await;
    let (_ada, mut session, _) = invited(&host, "bob").await;
    assert_eq!(session.info.invite.as_ref().unwrap().user, "bob");
    for name in ["eve", "ada", "bob2"] {
        assert_eq!(session.begin(name, true, true).await, Err(RefusalReason::NotAllowed), "{name}");
        assert_eq!(session.ask(evaluate(true, true)).await, Err(RefusalReason::NotAllowed));
    }
    assert_eq!(session.begin("Bob", true, true).await, Err(RefusalReason::NameBad));
    session.register("bob", None).await.unwrap();
}

#[tokio::test]
async fn registration__existing_name_is_refused_at_every_step() {
    let host = TestServer::start().await;
    let (mut ada, mut session, _) = invited(&host, "").await;
    assert_eq!(session.begin("ada", true, true).await, Err(RefusalReason::NameTaken));
    assert_eq!(session.ask(evaluate(true, true)).await, Err(RefusalReason::NotAllowed));
    // Taken between the start and step 1, and between step 1 and the commit.
    let ids = session.begin("bob", true, true).await.unwrap();
    let other = ada.invite(Role::Member, "").await.unwrap();
    host.join(&other, "bob").await;
    assert_eq!(session.ask(evaluate(true, true)).await, Err(RefusalReason::NameTaken));
    assert_eq!(session.ask(finish()).await, Err(RefusalReason::NotAllowed));

    session.begin("carol", false, true).await.unwrap();
    assert!(session.ask(evaluate(false, true)).await.is_ok());
    let other = ada.invite(Role::Member, "").await.unwrap();
    host.join(&other, "carol").await;
    let device =
        TestDevice { id: DeviceId(ids.device.as_ref().try_into().unwrap()), secret: random() };
    let record = a_record(device);
    let records =
        proto::RegisterFinish { password_record: copy(&[]), device_record: copy(&record) };
    assert_eq!(session.ask(Op::RegisterFinish(records)).await, Err(RefusalReason::NameTaken));
    // The invite remains valid for a free name.
    session.register("dave", None).await.unwrap();
}

/// A valid record, but of another server's setup.
fn a_record(device: TestDevice) -> [u8; 192] {
    let setup = twinlock_core::opaque::ServerSetup::generate(&mut OsEntropy);
    let credential = device.credential();
    twinlock_core::handshake::self_register(&setup, &credential, &mut OsEntropy).unwrap()
}

#[tokio::test]
async fn registration__repeated_or_misordered_steps_are_refused() {
    let host = TestServer::start().await;
    let (_ada, mut session, _) = invited(&host, "").await;
    assert_eq!(session.ask(evaluate(true, true)).await, Err(RefusalReason::NotAllowed));
    assert_eq!(session.ask(finish()).await, Err(RefusalReason::NotAllowed));
    session.begin("bob", false, true).await.unwrap();
    assert_eq!(session.ask(finish()).await, Err(RefusalReason::NotAllowed));
    session.begin("bob", false, true).await.unwrap();
    assert!(session.ask(evaluate(false, true)).await.is_ok());
    assert_eq!(session.ask(evaluate(false, true)).await, Err(RefusalReason::NotAllowed));
    // The second evaluation ended the registration.
    assert_eq!(session.ask(finish()).await, Err(RefusalReason::NotAllowed));
    // An evaluation must match exactly what was begun.
    session.begin("bob", false, true).await.unwrap();
    assert_eq!(session.ask(evaluate(true, true)).await, Err(RefusalReason::Malformed));
    session.begin("bob", true, true).await.unwrap();
    assert_eq!(session.ask(evaluate(false, true)).await, Err(RefusalReason::Malformed));
}

#[tokio::test]
async fn registration__ninth_begin_in_session_is_refused() {
    let host = TestServer::start().await;
    let (_ada, mut session, invite) = invited(&host, "").await;
    for n in 0..8 {
        assert!(session.begin(&format!("bob{n}"), false, true).await.is_ok());
    }
    assert_eq!(session.begin("bob", false, true).await, Err(RefusalReason::NotAllowed));
    assert_eq!(session.ask(evaluate(false, true)).await, Err(RefusalReason::NotAllowed));
    host.join(&invite, "bob").await;
}

#[tokio::test]
async fn registration__evaluation_counts_as_guess_at_name() {
    let host = TestServer::start().await;
    let (_ada, mut session, _) = invited(&host, "").await;
    for _ in 0..5 {
        session.begin("bob", true, true).await.unwrap();
        assert!(session.ask(evaluate(true, true)).await.is_ok());
    }
    session.begin("bob", true, true).await.unwrap();
    let id = session.post(evaluate(true, true));
    let Answered::Refusal(refusal) = session.answer(id).await else { panic!() };
    assert_eq!(refusal.why(), RefusalReason::Busy);
    assert!((1..=31).contains(&refusal.retry_seconds), "{refusal:?}");
    // A login with that name waits as well; another name does not.
    let hello = hello(&host, password("bob", "correct horse")).await;
    assert!(matches!(hello, Err(ErrorCode::Busy(1..=31))), "{hello:?}");
    session.begin("carol", true, true).await.unwrap();
    assert!(session.ask(evaluate(true, true)).await.is_ok());
}

/// Sends HELLO; succeeds on a CHALLENGE, which has a fixed length, and fails on an ERROR.
async fn hello(host: &TestServer, credential: Credential) -> Result<(), ErrorCode> {
    crate::common::hello(&mut host.tls().await, credential).await.map(drop)
}

#[tokio::test]
async fn invite__only_registers_and_device_cannot() {
    let host = TestServer::start().await;
    let (mut ada, mut session, _) = invited(&host, "").await;
    assert_eq!(ada.begin("bob", true, true).await, Err(RefusalReason::NotAllowed));
    assert_eq!(ada.ask(evaluate(true, true)).await, Err(RefusalReason::NotAllowed));
    assert_eq!(ada.ask(finish()).await, Err(RefusalReason::NotAllowed));

    for op in everything_but_registering() {
        assert_eq!(session.ask(op.clone()).await, Err(RefusalReason::NotAllowed), "{op:?}");
    }
    // An invite registers a user together with a device.
    assert_eq!(session.begin("bob", true, false).await, Err(RefusalReason::Malformed));
    assert_eq!(session.begin("bob", false, false).await, Err(RefusalReason::Malformed));
    assert_eq!(ada.read(LOBBY, 0).await.unwrap().head, 0);
}

fn everything_but_registering() -> Vec<Op> {
    let conversation = LOBBY;
    let name = || "ops".to_owned();
    vec![
        append(LOBBY, "hello"),
        Op::Follow(proto::Follow { conversation, after: 0 }),
        Op::Unfollow(proto::Unfollow { conversation }),
        Op::Read(proto::Read { conversation, ..proto::Read::default() }),
        Op::Mark(proto::Mark { conversation, n: 0 }),
        Op::Search(proto::Search { conversation, ..proto::Search::default() }),
        Op::ListConversations(proto::ListConversations::default()),
        Op::CreateRoom(proto::CreateRoom { name: name(), topic: String::new() }),
        Op::JoinRoom(proto::JoinRoom { name: name() }),
        Op::FindRoom(proto::FindRoom { name: name() }),
        Op::LeaveRoom(proto::LeaveRoom { conversation }),
        Op::ListMembers(proto::ListMembers { conversation, after: String::new() }),
        Op::SetTopic(proto::SetTopic { conversation, topic: String::new() }),
        Op::OpenDirect(proto::OpenDirect { user: "ada".to_owned() }),
        Op::ListPeople(proto::ListPeople { watch: true, after: String::new() }),
        Op::MakeInvite(proto::MakeInvite::default()),
        Op::ListDevices(proto::ListDevices {}),
        Op::RevokeDevice(proto::RevokeDevice { device: copy(&[0; 16]) }),
    ]
}

#[tokio::test]
async fn password_session__manages_only_own_credentials_while_fresh() {
    let host = TestServer::start_with(|config| config.limits.fresh_password = Duration::MAX).await;
    let mut session = host.connect(host.owner_invite().credential()).await.unwrap();
    let laptop = session.register("ada", Some("correct horse")).await.unwrap();
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    let (bobs, _bob) = host.member(&mut ada, "bob").await;

    let mut by_password = host.connect(password("ada", "correct horse")).await.unwrap();
    for op in everything_but_registering() {
        match op {
            Op::ListDevices(_) => {
                let Ok(Answered::Devices(list)) = by_password.ask(op).await else { panic!() };
                let ids: Vec<_> = list.devices.iter().map(|d| (&*d.id, d.current)).collect();
                assert_eq!(ids, [(&laptop.id.0[..], false)]);
            }
            Op::RevokeDevice(_) => {
                let bobs = proto::RevokeDevice { device: copy(&bobs.id.0) };
                let refused = by_password.ask(Op::RevokeDevice(bobs)).await;
                assert_eq!(refused, Err(RefusalReason::NotFound));
            }
            op => assert_eq!(
                by_password.ask(op.clone()).await,
                Err(RefusalReason::NotAllowed),
                "{op:?}"
            ),
        }
    }
    // The session registers only for its own user, whatever name it gives, and one credential at a
    // time.
    assert_eq!(by_password.begin("bob", true, true).await, Err(RefusalReason::Malformed));
    by_password.begin("bob", true, false).await.unwrap();
    let other = host.connect(password("ada", "correct horse")).await.unwrap();
    by_password.enrol(Some(password("ada", "battery staple")), None).await.unwrap();
    assert!(hello(&host, password("bob", "battery staple")).await.is_ok());
    assert!(host.connect(password("bob", "battery staple")).await.is_err());
    // The user's other sessions with the old password end; sessions of devices continue.
    let mut other = other;
    assert_eq!(other.end().await.unwrap(), CloseCode::LogInAgain);
    assert!(ada.append(LOBBY, "still here").await.is_ok());

    // The sessions of a stolen laptop end at once.
    let revoke = proto::RevokeDevice { device: copy(&laptop.id.0) };
    by_password.ask(Op::RevokeDevice(revoke)).await.map(done).unwrap();
    assert_eq!(ada.end().await.unwrap(), CloseCode::Revoked);
    assert!(host.connect(laptop.credential()).await.err().unwrap().is_refused());

    let host = host.restart(|config| config.limits.fresh_password = Duration::ZERO).await;
    let mut late = host.connect(password("ada", "battery staple")).await.unwrap();
    assert_eq!(late.begin("", true, false).await, Err(RefusalReason::LogInAgain));
    let list = Op::ListDevices(proto::ListDevices {});
    assert_eq!(late.ask(list).await, Err(RefusalReason::LogInAgain));
}

#[tokio::test]
async fn invite__concurrent_use_creates_one_user() {
    let host = TestServer::start().await;
    let (mut ada, first, invite) = invited(&host, "").await;
    let mut sessions = vec![first];
    for _ in 0..5 {
        sessions.push(host.connect(invite.credential()).await.unwrap());
    }
    // All sessions get as far as the commit, then commit at once.
    let mut commits = Vec::new();
    for (n, session) in sessions.iter_mut().enumerate() {
        let ids = session.begin(&format!("bob{n}"), false, true).await.unwrap();
        let id = DeviceId(ids.device.as_ref().try_into().unwrap());
        let credential = TestDevice { id, secret: random() }.credential();
        let (enrolment, request) = Enrolment::start(&credential, &mut OsEntropy).unwrap();
        let evaluate =
            proto::RegisterEvaluate { password_request: copy(&[]), device_request: copy(&request) };
        let response = session.ask(Op::RegisterEvaluate(evaluate)).await.unwrap();
        let Answered::RegisterResponse(response) = response else { panic!() };
        let response = response.device_response.as_ref().try_into().unwrap();
        let record = enrolment.finish(response, &host.key(), &mut OsEntropy).unwrap();
        commits.push(proto::RegisterFinish {
            password_record: copy(&[]),
            device_record: copy(&record),
        });
    }
    let mut racing = Vec::new();
    for (mut session, commit) in sessions.into_iter().zip(commits) {
        racing.push(tokio::spawn(async move {
            let result = session.ask(Op::RegisterFinish(commit)).await;
            (session, result)
        }));
    }
    let mut winners = 0;
    for racer in racing {
        let (mut session, result) = racer.await.unwrap();
        match result {
            Ok(_) => winners += 1,
            Err(why) => assert_eq!(why, RefusalReason::AlreadyUsed),
        }
        assert_eq!(session.begin("late", false, true).await, Err(RefusalReason::AlreadyUsed));
    }
    assert_eq!(winners, 1);
    let people = Op::ListPeople(proto::ListPeople::default());
    let Ok(Answered::People(people)) = ada.ask(people).await else { panic!() };
    assert_eq!(people.people.len(), 2);
    assert!(host.connect(invite.credential()).await.err().unwrap().is_refused());
}

#[tokio::test]
async fn invite__sessions_count_towards_limit() {
    let host = TestServer::start_with(|config| config.limits.sessions_per_device = 2).await;
    let invite = host.owner_invite();
    let _first = host.connect(invite.credential()).await.unwrap();
    let _second = host.connect(invite.credential()).await.unwrap();
    let mut third = host.connect(invite.credential()).await.unwrap();
    assert_eq!(third.end().await.unwrap(), CloseCode::Quota);
}

#[tokio::test]
async fn login__known_and_unknown_ids_get_same_answers() {
    let host = TestServer::start().await;
    let mut session = host.connect(host.owner_invite().credential()).await.unwrap();
    let laptop = session.register("ada", Some("correct horse")).await.unwrap();
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    let used = host.owner_invite();
    let mut by_password = host.connect(password("ada", "correct horse")).await.unwrap();
    let phone = by_password.register("", None).await.unwrap();
    let revoke = proto::RevokeDevice { device: copy(&phone.id.0) };
    by_password.ask(Op::RevokeDevice(revoke)).await.map(done).unwrap();
    let expired = proto::MakeInvite { seconds: 1, ..proto::MakeInvite::default() };
    let Ok(Answered::Invite(expired)) = ada.ask(Op::MakeInvite(expired)).await else { panic!() };
    let expired = TestInvite {
        id: expired.id.as_ref().try_into().unwrap(),
        secret: expired.secret.as_ref().try_into().unwrap(),
    };
    tokio::time::sleep(Duration::from_millis(1100)).await;

    // With the correct secret, if there is one: a used, revoked or expired credential is refused.
    for credential in [used.credential(), phone.credential(), expired.credential()] {
        let id = credential.id();
        assert!(host.connect(credential).await.err().unwrap().is_refused(), "{id:?}");
    }
    let wrong = TestInvite { secret: random(), ..used };
    let ids = [
        ("known", password("ada", "wrong horse")),
        ("unknown", password("nobody", "wrong horse")),
        ("device", TestDevice { secret: random(), ..laptop }.credential()),
        ("unknown device", TestDevice::unknown().credential()),
        ("used invite", wrong.credential()),
    ];
    for (what, credential) in ids {
        assert_eq!(hello(&host, credential).await, Ok(()), "{what}");
    }
    for credential in [password("ada", "correct horse"), password("nobody", "correct horse")] {
        assert_eq!(wrong_proof(&host, credential).await, ErrorCode::Refused);
    }
}

/// A login whose PROOF is wrong.
async fn wrong_proof(host: &TestServer, credential: Credential) -> ErrorCode {
    let mut io = host.tls().await;
    crate::common::hello(&mut io, credential).await.unwrap();
    let proof = [&[3, 0, 0, 64], &random::<64>()[..]].concat();
    io.write_all(&proof).await.unwrap();
    let mut header = [0; 4];
    io.read_exact(&mut header).await.unwrap();
    assert_eq!(header, [0x0e, 0, 0, 3]);
    let code = error(&mut io).await;
    assert_eq!(read_to_end(&mut io).await, b"");
    code
}

#[tokio::test]
async fn login__guess_limit_spares_devices_and_open_sessions() {
    let host = TestServer::start_with(|config| config.limits.logins_per_minute = 1000).await;
    let (laptop, mut ada) = host.owner().await;
    // For existing and unknown names, with and without a PROOF.
    for name in ["ada", "nobody"] {
        for _ in 0..5 {
            assert_eq!(hello(&host, password(name, "wrong horse")).await, Ok(()));
        }
        let busy = hello(&host, password(name, "wrong horse")).await;
        assert!(matches!(busy, Err(ErrorCode::Busy(29..=31))), "{name}: {busy:?}");
    }
    assert!(ada.append(LOBBY, "undisturbed").await.is_ok());
    assert!(host.connect(laptop.credential()).await.is_ok());
}

#[tokio::test]
async fn login__failures_are_rate_limited_per_address() {
    let host = TestServer::start_with(|config| config.limits.logins_per_minute = 6).await;
    let (laptop, _ada) = host.owner().await;
    for _ in 0..10 {
        host.connect(laptop.credential()).await.unwrap().bye().await;
    }
    for _ in 0..6 {
        assert_eq!(hello(&host, TestDevice::unknown().credential()).await, Ok(()));
    }
    let busy = hello(&host, TestDevice::unknown().credential()).await;
    assert!(matches!(busy, Err(ErrorCode::Busy(9..=11))), "{busy:?}");
}
