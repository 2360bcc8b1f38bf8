//! Password guessing by outsiders does not lock out the user.
//!
//! She can log in from an address that she has used, and from elsewhere. Her devices keep working
//! after she has proven the password inside their sessions.

use std::time::Duration;

use crate::common::*;
use twinlock_core::credential::Credential;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::proto::{self, RefusalReason, Role, answer::Result as Answered, request::Op};
use twinlock_core::step_up::StepUp;
use twinlock_server::Config;
use twinlock_transport::OsEntropy;

const RIGHT: &str = "correct horse";
const WRONG: &str = "wrong horse";

/// Loopback addresses, one for each source.
const HOME: u8 = 1;
const OUTSIDER: u8 = 2;
const HOTEL: u8 = 3;

async fn tls_from(host: &TestServer, source: u8) -> Io {
    soon("TLS", host.endpoint().tls_from([127, 0, 0, source].into())).await.unwrap()
}

/// One guess: HELLO, answered with CHALLENGE or BUSY.
async fn guess(host: &TestServer, user: &str, source: u8) -> Result<(), ErrorCode> {
    let mut io = tls_from(host, source).await;
    hello(&mut io, password(user, WRONG)).await.map(drop)
}

async fn log_in(host: &TestServer, source: u8, right: &str) -> Result<RawClient, NoConnection> {
    let io = tls_from(host, source).await;
    let login = RawClient::over(io, password("ada", right), host.key(), b"run", |_| ());
    soon("login", login).await
}

/// One machine acts as many addresses, so other tests cover the limits per address.
fn many_addresses(config: &mut Config) {
    config.limits.logins_per_minute = 1_000_000;
    config.limits.unauthenticated_per_address = 256;
}

/// A server whose owner `ada` has a password and a laptop, and the laptop's session.
async fn ada(change: impl FnOnce(&mut Config)) -> (TestServer, TestDevice, RawClient) {
    let host = TestServer::start_with(|config| {
        many_addresses(config);
        change(config);
    })
    .await;
    let mut session = host.connect(host.owner_invite().credential()).await.unwrap();
    let laptop = session.register("ada", Some(RIGHT)).await.unwrap();
    let mut line = host.connect(laptop.credential()).await.unwrap();
    // The source of the laptop's login is written before this append.
    line.append(LOBBY, "hello").await.unwrap();
    (host, laptop, line)
}

#[tokio::test]
async fn guess__one_attacker_does_not_block_owner() {
    let (host, ..) = ada(|_| ()).await;
    for name in ["ada", "nobody"] {
        let mut answers = Vec::new();
        for _ in 0..40 {
            answers.push(guess(&host, name, OUTSIDER).await);
        }
        assert!(answers[..5].iter().all(Result::is_ok), "{name}: {answers:?}");
        let busy = |answer: &Result<(), _>| matches!(answer, Err(ErrorCode::Busy(1..=31)));
        assert!(answers[5..].iter().all(busy), "{name}: {answers:?}");
    }
    log_in(&host, HOME, RIGHT).await.unwrap().bye().await;
    log_in(&host, HOTEL, RIGHT).await.unwrap().bye().await;
}

#[tokio::test]
async fn guess__many_addresses_are_limited_and_known_one_passes() {
    let (host, ..) = ada(|_| ()).await;
    for name in ["ada", "nobody"] {
        let mut got = 0;
        for source in 100..130 {
            while guess(&host, name, source).await.is_ok() {
                got += 1;
            }
        }
        assert_eq!(got, 20, "{name}");
        // No login has succeeded from there.
        let busy = guess(&host, name, HOTEL).await;
        assert!(matches!(busy, Err(ErrorCode::Busy(1..=451))), "{name}: {busy:?}");
    }
    log_in(&host, HOME, RIGHT).await.unwrap().bye().await;
    // The known address has a separate guess run.
    for _ in 0..5 {
        assert_eq!(guess(&host, "ada", HOME).await, Ok(()));
    }
    assert!(matches!(guess(&host, "ada", HOME).await, Err(ErrorCode::Busy(1..=31))));
    // Known sources survive a restart of the server.
    let host = host.restart(many_addresses).await;
    for source in 100..130 {
        while guess(&host, "ada", source).await.is_ok() {}
    }
    assert!(guess(&host, "ada", HOTEL).await.is_err());
    assert_eq!(guess(&host, "ada", HOME).await, Ok(()));
}

#[tokio::test]
async fn guess__device_logins_do_not_evict_known_address() {
    let (host, laptop, _line) = ada(|_| ()).await;
    log_in(&host, HOTEL, RIGHT).await.unwrap().bye().await;
    // The laptop is stolen, and the thief has many addresses.
    for source in 40..60 {
        let io = tls_from(&host, source).await;
        let thief = RawClient::over(io, laptop.credential(), host.key(), b"run", |_| ());
        let mut thief = soon("login", thief).await.unwrap();
        // The source of the thief's login is written before this append.
        thief.append(LOBBY, "hello").await.unwrap();
        thief.bye().await;
    }
    for source in 100..130 {
        while guess(&host, "ada", source).await.is_ok() {}
    }
    assert!(matches!(guess(&host, "ada", 59).await, Err(ErrorCode::Busy(1..=451))));
    for source in [HOME, HOTEL] {
        log_in(&host, source, RIGHT).await.unwrap().bye().await;
    }
}

#[tokio::test]
async fn guess__crowd_address_is_not_a_known_source() {
    let (host, _, mut ada) = ada(|_| ()).await;
    // Most logins come from one address, and they are of five users.
    for n in 0..4 {
        let (_, line) = host.member(&mut ada, &format!("user{n}")).await;
        line.bye().await;
    }
    for source in 100..130 {
        while guess(&host, "ada", source).await.is_ok() {}
    }
    assert!(matches!(guess(&host, "ada", HOME).await, Err(ErrorCode::Busy(1..=451))));
}

// ---- step-up

fn begin(ke1: &[u8]) -> Op {
    Op::StepUpBegin(proto::StepUpBegin { ke1: copy(ke1) })
}

fn finish(ke3: &[u8]) -> Op {
    Op::StepUpFinish(proto::StepUpFinish { ke3: copy(ke3) })
}

fn challenge(answered: Answered) -> [u8; 320] {
    let Answered::StepUpChallenge(challenge) = answered else { panic!("{answered:?}") };
    challenge.ke2.as_ref().try_into().unwrap()
}

/// Proves a password inside this session; `None`: the client found that it is wrong.
async fn step_up(
    client: &mut RawClient,
    host: &TestServer,
    guess: &str,
) -> Option<Result<(), RefusalReason>> {
    prove_password(client, &host.key(), password("ada", guess)).await
}

fn revoke(device: &TestDevice) -> Op {
    Op::RevokeDevice(proto::RevokeDevice { device: copy(&device.id.0) })
}

/// Another device of ada, and its session.
async fn another_device(host: &TestServer) -> (TestDevice, RawClient) {
    let mut by_password = host.connect(password("ada", RIGHT)).await.unwrap();
    let phone = by_password.register("", None).await.unwrap();
    let line = host.connect(phone.credential()).await.unwrap();
    (phone, line)
}

#[tokio::test]
async fn step_up__revokes_and_changes_password_during_guessing() {
    let (host, _, mut line) = ada(|_| ()).await;
    let (phone, mut thief) = another_device(&host).await;
    // Now no login with this name succeeds, from any source.
    for source in (100..130).chain([HOME]) {
        while guess(&host, "ada", source).await.is_ok() {}
    }
    assert!(log_in(&host, HOME, RIGHT).await.is_err());

    // Without the password, a device may do neither.
    assert_eq!(line.ask(revoke(&phone)).await, Err(RefusalReason::NotAllowed));
    assert_eq!(line.begin("", true, false).await, Err(RefusalReason::NotAllowed));
    assert_eq!(step_up(&mut line, &host, RIGHT).await, Some(Ok(())));
    line.ask(revoke(&phone)).await.map(done).unwrap();
    assert_eq!(thief.end().await.unwrap(), CloseCode::Revoked);
    // A device still cannot enrol another one.
    assert_eq!(line.begin("", false, true).await, Err(RefusalReason::NotAllowed));
    assert_eq!(line.begin("", true, true).await, Err(RefusalReason::NotAllowed));
    line.begin("", true, false).await.unwrap();
    line.enrol(Some(password("ada", "battery staple")), None).await.unwrap();
    // The right ended with the old password; the session itself continues.
    assert_eq!(line.ask(revoke(&TestDevice::unknown())).await, Err(RefusalReason::LogInAgain));
    line.append(LOBBY, "still here").await.unwrap();
    let host = host.restart(many_addresses).await;
    assert!(log_in(&host, HOME, RIGHT).await.err().unwrap().is_refused());
    log_in(&host, HOME, "battery staple").await.unwrap().bye().await;
}

#[tokio::test]
async fn step_up__guesses_count_for_device_only() {
    let (host, _, mut line) = ada(|_| ()).await;
    let (_, mut phone) = another_device(&host).await;
    for _ in 0..5 {
        let sid = line.connection.session().id();
        let (_, ke1) = StepUp::start(password("ada", WRONG), &sid, &mut OsEntropy).unwrap();
        // The client would learn it from the challenge; a guess counts even if the client stays
        // silent.
        challenge(line.ask(begin(&ke1)).await.unwrap());
    }
    let id = line.post(begin(&[0; 96]));
    let Answered::Refusal(refusal) = line.answer(id).await else { panic!("a sixth guess") };
    assert_eq!(refusal.why(), RefusalReason::Busy);
    assert!((29..=31).contains(&refusal.retry_seconds), "{refusal:?}");
    // Another device, and a login with the password, are not slowed down.
    assert_eq!(step_up(&mut phone, &host, RIGHT).await, Some(Ok(())));
    log_in(&host, HOME, RIGHT).await.unwrap().bye().await;
}

#[tokio::test]
async fn step_up__wrong_password_or_invalid_bytes_are_refused() {
    let (host, laptop, mut line) = ada(|_| ()).await;
    let (phone, _line) = another_device(&host).await;
    assert_eq!(step_up(&mut line, &host, WRONG).await, None);
    assert_eq!(line.ask(finish(&[7; 64])).await, Err(RefusalReason::WrongPassword));
    // Each step once, and in order.
    assert_eq!(line.ask(finish(&[7; 64])).await, Err(RefusalReason::NotAllowed));
    assert_eq!(line.ask(begin(&[1; 95])).await, Err(RefusalReason::Malformed));
    assert_eq!(line.ask(begin(&[0xff; 96])).await, Err(RefusalReason::Malformed));
    assert_eq!(line.ask(finish(&[7; 64])).await, Err(RefusalReason::NotAllowed));
    assert_eq!(line.ask(revoke(&phone)).await, Err(RefusalReason::NotAllowed));
    // A device can always revoke itself.
    let _answer = line.post(revoke(&laptop));
    assert_eq!(line.end().await.unwrap(), CloseCode::Revoked);
}

#[tokio::test]
async fn step_up__bound_to_its_session() {
    let (host, laptop, mut line) = ada(|_| ()).await;
    let (phone, _line) = another_device(&host).await;
    let mut thief = host.connect(laptop.credential()).await.unwrap();
    let sid = line.connection.session().id();
    let (state, ke1) = StepUp::start(password("ada", RIGHT), &sid, &mut OsEntropy).unwrap();
    // An answer in the thief's session proves nothing in ours.
    let theirs = challenge(thief.ask(begin(&ke1)).await.unwrap());
    let (carried, _) = StepUp::start(password("ada", RIGHT), &sid, &mut OsEntropy).unwrap();
    assert!(carried.finish(&theirs, &host.key(), &mut OsEntropy).is_err());
    let ours = challenge(line.ask(begin(&ke1)).await.unwrap());
    let ke3 = state.finish(&ours, &host.key(), &mut OsEntropy).unwrap();
    assert_eq!(thief.ask(finish(&ke3)).await, Err(RefusalReason::WrongPassword));
    assert_eq!(line.ask(finish(&ke3)).await.map(done), Ok(()));
    // The right belongs to this session, not to the device.
    assert_eq!(thief.ask(revoke(&phone)).await, Err(RefusalReason::NotAllowed));
    line.ask(revoke(&phone)).await.map(done).unwrap();
}

#[tokio::test]
async fn step_up__ends_at_timeout_and_on_password_change() {
    let (host, _, mut line) = ada(|_| ()).await;
    let (phone, mut other) = another_device(&host).await;
    assert_eq!(step_up(&mut line, &host, RIGHT).await, Some(Ok(())));
    line.begin("", true, false).await.unwrap();
    // Another session changes the password.
    assert_eq!(step_up(&mut other, &host, RIGHT).await, Some(Ok(())));
    other.begin("", true, false).await.unwrap();
    other.enrol(Some(password("ada", "battery staple")), None).await.unwrap();
    let change = line.enrol(Some(password("ada", "a thief's")), None).await;
    assert_eq!(change, Err(RefusalReason::LogInAgain));
    assert_eq!(line.ask(revoke(&phone)).await, Err(RefusalReason::LogInAgain));

    let host = host.restart(|config| config.limits.fresh_password = Duration::ZERO).await;
    let mut late = host.connect(phone.credential()).await.unwrap();
    assert_eq!(step_up(&mut late, &host, "battery staple").await, Some(Ok(())));
    assert_eq!(late.begin("", true, false).await, Err(RefusalReason::LogInAgain));
    assert_eq!(late.ask(revoke(&TestDevice::unknown())).await, Err(RefusalReason::LogInAgain));
}

#[tokio::test]
async fn step_up__needs_device_session_and_user_password() {
    let (host, _, mut ada) = ada(|_| ()).await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let sid = bob.connection.session().id();
    let credential = || -> Credential { password("bob", RIGHT) };
    let (state, ke1) = StepUp::start(credential(), &sid, &mut OsEntropy).unwrap();
    // A user without a password gets the same answer as at a login.
    let ke2 = challenge(bob.ask(begin(&ke1)).await.unwrap());
    assert!(state.finish(&ke2, &host.key(), &mut OsEntropy).is_err());
    assert_eq!(bob.ask(finish(&[7; 64])).await, Err(RefusalReason::WrongPassword));

    let invite = ada.invite(Role::Member, "").await.unwrap();
    let mut invited = host.connect(invite.credential()).await.unwrap();
    let mut by_password = log_in(&host, HOME, RIGHT).await.unwrap();
    for client in [&mut invited, &mut by_password] {
        assert_eq!(client.ask(begin(&ke1)).await, Err(RefusalReason::NotAllowed));
        assert_eq!(client.ask(finish(&[7; 64])).await, Err(RefusalReason::NotAllowed));
    }
}
