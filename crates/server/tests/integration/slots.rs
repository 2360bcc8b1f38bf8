//! Connection slots and login attempts that remain for legitimate users of an exhausted address.

use crate::common::*;
use tokio::net::TcpStream;
use twinlock_core::credential::Credential;
use twinlock_core::frame::ErrorCode;

async fn tcp(host: &TestServer) -> TcpStream {
    TcpStream::connect(host.address()).await.unwrap()
}

/// Uses up all login attempts of this address.
async fn exhaust(host: &TestServer) {
    let exhausted = async {
        loop {
            match hello(&mut host.tls().await, TestDevice::unknown().credential()).await {
                Ok(_) => {}
                Err(ErrorCode::Busy(_)) => return,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    soon("an exhausted address", exhausted).await;
}

async fn is_busy(host: &TestServer, credential: Credential) -> bool {
    matches!(hello(&mut host.tls().await, credential).await, Err(ErrorCode::Busy(_)))
}

#[tokio::test]
async fn slots__idle_connections_are_evicted_for_login() {
    let host = TestServer::start().await;
    let (laptop, _ada) = host.owner().await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(tcp(&host).await);
    }
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    assert!(ada.append(LOBBY, "in").await.is_ok());
    // The server closed the oldest ones: eight slots, and the login had one of them.
    for mut oldest in idle.drain(..12) {
        assert_eq!(read_to_end(&mut oldest).await, b"");
    }
    for newest in &idle[1..] {
        let waiting = newest.try_read(&mut [0; 1]).unwrap_err();
        assert_eq!(waiting.kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[tokio::test]
async fn slots__unfinished_logins_are_evicted_for_later_login() {
    let host = TestServer::start().await;
    let (laptop, _ada) = host.owner().await;
    let mut unfinished = Vec::new();
    for _ in 0..8 {
        let mut io = host.tls().await;
        hello(&mut io, TestDevice::unknown().credential()).await.unwrap();
        unfinished.push(io);
    }
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    assert!(ada.append(LOBBY, "in").await.is_ok());
}

#[tokio::test]
async fn login__known_device_passes_at_exhausted_address() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    let phone = {
        let invite = ada.invite(twinlock_core::proto::Role::Member, "bob").await.unwrap();
        host.join(&invite, "bob").await
    };
    let mut bob = host.connect(phone.credential()).await.unwrap();
    let revoke = twinlock_core::proto::RevokeDevice { device: copy(&phone.id.0) };
    bob.ask(twinlock_core::proto::request::Op::RevokeDevice(revoke)).await.map(done).unwrap();
    let invite = ada.invite(twinlock_core::proto::Role::Member, "").await.unwrap();
    exhaust(&host).await;
    for _ in 0..3 {
        let mut ada = host.connect(laptop.credential()).await.unwrap();
        assert!(ada.append(LOBBY, "in").await.is_ok());
    }
    // All other credentials wait, whether they exist or not.
    for credential in [
        invite.credential(),
        TestInvite { id: random(), secret: random() }.credential(),
        password("ada", "wrong horse battery"),
        password("nobody", "wrong horse battery"),
        phone.credential(),
        TestDevice::unknown().credential(),
    ] {
        let id = credential.id();
        assert!(is_busy(&host, credential).await, "{id:?}");
    }
}

/// Members know each other's device ids. Unfinished logins with an id do not block its owner.
#[tokio::test]
async fn login__known_device_passes_while_others_use_its_id() {
    let host = TestServer::start().await;
    let (laptop, _ada) = host.owner().await;
    let wrong = TestDevice { secret: random(), ..laptop };
    for _ in 0..19 {
        assert!(!is_busy(&host, wrong.credential()).await);
    }
    host.connect(laptop.credential()).await.unwrap();
    // Beyond the device's limit they count for the address.
    let mut counted = 0;
    while !is_busy(&host, wrong.credential()).await {
        counted += 1;
        assert!(counted < 60);
    }
    assert!(counted >= 20, "{counted}");
}
