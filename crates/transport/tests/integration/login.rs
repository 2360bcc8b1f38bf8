//! The handshake over streams: what each side gets, and what it sends when the login fails.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::common::connected::*;
use crate::common::{fresh, meet, pinning};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, timeout};
use twinlock_core::Entropy;
use twinlock_core::frame::{ErrorCode, HEADER};
use twinlock_core::handshake::{AwaitChallenge, HelloFault};
use twinlock_core::id::ServerKey;
use twinlock_core::session::{Binding, BindingPolicy, SessionConfig};
use twinlock_transport::OsEntropy;
use twinlock_transport::connection::ConnectionError;
use twinlock_transport::login::{
    Acceptor, CHALLENGE_DEADLINE, HELLO_DEADLINE, LoginError, PROOF_DEADLINE, login,
};
use twinlock_transport::tls::{ServerTls, channel_binding};

fn is_end(error: &LoginError) -> bool {
    matches!(error, LoginError::Io(e) if e.kind() == ErrorKind::UnexpectedEof)
}

#[tokio::test]
async fn login__fragmented_handshake_opens_session_on_both_ends() {
    let (mut client, mut server) = connected(7).await;
    assert_eq!(client.session().id(), server.session().id());
    client.send_app(b"hello").unwrap();
    server.send_app(b"and to you").unwrap();
    let (at_client, at_server) = tokio::join!(next(&mut client), next(&mut server));
    assert_eq!(at_client.unwrap(), OwnedEvent::App(b"and to you".to_vec()));
    // The client's wait ended with its frame; its own bytes may not all have been sent.
    assert_eq!(at_server.unwrap(), OwnedEvent::App(b"hello".to_vec()));
}

#[tokio::test]
async fn login__tls_channel_binding_matches_on_both_ends() {
    let cert = fresh();
    let (server, client) =
        meet(&ServerTls::new(cert.clone()).unwrap(), &pinning(&cert), "localhost").await;
    let (server, client) = (server.unwrap(), client.unwrap());
    let bound = |exporter| SessionConfig {
        binding: BindingPolicy::Require,
        exporter: Some(exporter),
        ..config()
    };
    let at_server = bound(channel_binding(server.get_ref().1).unwrap());
    let at_client = bound(channel_binding(client.get_ref().1).unwrap());
    let host = HandshakeServer::new();
    let (server, client) = tokio::join!(
        host.accept_login(server, at_server),
        login(client, device(2), Some(host.key()), at_client)
    );
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    let (a, b) = tokio::join!(next(&mut client), next(&mut server));
    assert_eq!(
        (a.unwrap(), b.unwrap()),
        (OwnedEvent::Ready(Binding::Bound), OwnedEvent::Ready(Binding::Bound))
    );
    client.send_app(&[7; 60_000]).unwrap();
    let (_, got) = tokio::join!(flush(&mut client), next(&mut server));
    assert_eq!(got.unwrap(), OwnedEvent::App(vec![7; 60_000]));
}

#[tokio::test]
async fn login__refusing_client_sends_hello_only() {
    let host = HandshakeServer::new();
    // A wrong secret, and a server that is not the pinned one.
    let (known, shown) = (ServerKey([9; 32]), host.key());
    for (secret, pin) in [(3, shown), (2, known), (3, known)] {
        let (client, server) = duplex(4096);
        let client = CountingStream::new(client);
        let bytes = client.bytes.clone();
        let login = login(client, device(secret), Some(pin), config());
        let (greeted, refused) = tokio::join!(host.accept_login(server, config()), login);
        // Only a server that knows the credential proves that its key differs from the pinned one.
        match refused.err() {
            Some(LoginError::OtherServer { known: pinned, shown: key }) => {
                assert_eq!((secret, pinned, key), (2, known, shown));
            }
            Some(LoginError::Refused(_)) => assert_eq!(secret, 3),
            other => panic!("{other:?}"),
        }
        assert!(greeted.is_err_and(|e| is_end(&e)));
        assert_eq!(bytes.load(Ordering::Relaxed), HEADER + 4 + 16 + 1280);
    }
}

#[tokio::test]
async fn login__server_error_code_reaches_client() {
    for code in [
        ErrorCode::Version(7),
        ErrorCode::Busy(900),
        ErrorCode::Refused,
        ErrorCode::Malformed,
        ErrorCode::Unknown(200),
    ] {
        let (client, server) = duplex(4096);
        let refuse = async {
            let mut acceptor = Acceptor::new(server);
            acceptor.read_hello().await.unwrap();
            acceptor.refuse(code).await;
        };
        let ((), refused) = tokio::join!(refuse, login(client, device(2), None, config()));
        match refused.err() {
            Some(LoginError::Server(got)) => assert_eq!(got, code),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn login__wrong_proof_is_answered_with_error_3() {
    let host = HandshakeServer::new();
    let (mut client, server) = duplex(4096);
    let forge = async {
        let (state, hello) = AwaitChallenge::start(device(2), None, &mut OsEntropy).unwrap();
        client.write_all(&hello).await.unwrap();
        let mut challenge = [0; HEADER + 1408];
        client.read_exact(&mut challenge).await.unwrap();
        let challenge = challenge[HEADER..].try_into().unwrap();
        let (_, mut proof) = state.handle_challenge(&challenge, &mut OsEntropy).unwrap();
        *proof.last_mut().unwrap() ^= 1;
        client.write_all(&proof).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        drop(client);
        answer
    };
    let (greeted, answer) = tokio::join!(host.accept_login(server, config()), forge);
    assert!(matches!(greeted.err(), Some(LoginError::Refused(_))));
    assert_eq!(answer, ErrorCode::Refused.to_frame());
}

#[tokio::test]
async fn login__error_after_proof_is_accepted_only_before_ready() {
    let host = HandshakeServer::new();
    let (client, server) = duplex(4096);
    let revoke = async {
        let mut acceptor = Acceptor::new(server);
        let hello = acceptor.read_hello().await.unwrap();
        let hello = twinlock_core::handshake::Hello::parse(&hello).unwrap();
        let (_, challenge) =
            hello.challenge(&host.setup, Some(&host.record), &mut OsEntropy).unwrap();
        acceptor.exchange(&challenge).await.unwrap();
        acceptor.refuse(ErrorCode::Refused).await;
    };
    let talk = async {
        let mut connection = login(client, device(2), Some(host.key()), config()).await.unwrap();
        let refused = next(&mut connection).await;
        assert!(
            matches!(refused, Err(ConnectionError::Refused(ErrorCode::Refused))),
            "{refused:?}"
        );
        connection.finish().await;
    };
    tokio::join!(revoke, talk);

    // After the server's READY, an ERROR is an invalid frame.
    let (client, server) = duplex(4096);
    let (mut client, server) = connected_over(client, server).await;
    let mut server = server.into_stream();
    server.write_all(&ErrorCode::Refused.to_frame()).await.unwrap();
    assert!(matches!(next(&mut client).await, Err(ConnectionError::Header(_))));
}

#[tokio::test]
async fn login__other_version_is_answered_with_own_version() {
    for len in [1usize, 3, 1300, 70_000] {
        let host = HandshakeServer::new();
        let (mut client, server) = duplex(64);
        let ask = async {
            let [_, a, b, c] = u32::try_from(len).unwrap().to_be_bytes();
            client.write_all(&[1, a, b, c, 2]).await.unwrap();
            let mut answer = [0; 7];
            client.read_exact(&mut answer).await.unwrap();
            drop(client);
            answer
        };
        let (greeted, answer) = tokio::join!(host.accept_login(server, config()), ask);
        assert!(matches!(greeted.err(), Some(LoginError::Hello(HelloFault::Answer(_)))));
        assert_eq!(&answer[..], ErrorCode::Version(1).to_frame());
    }
}

#[tokio::test]
async fn login__invalid_hello_gets_no_answer() {
    let host = HandshakeServer::new();
    for head in [
        &[1, 0, 5, 4, 1][..],
        &[1, 0, 5, 0x25, 1],
        &[1, 0, 0, 0],
        &[2, 0, 5, 0x80],
        &[0x10, 0, 1, 0x20],
        &[0, 0, 5, 5],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let (mut client, server) = duplex(4096);
        client.write_all(head).await.unwrap();
        let greeted = host.accept_login(server, config()).await.err();
        assert!(
            matches!(
                greeted,
                Some(LoginError::Header(_) | LoginError::Hello(HelloFault::Length(_)))
            ),
            "{head:?}: {greeted:?}"
        );
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"");
    }
}

#[tokio::test(start_paused = true)]
async fn login__each_step_times_out() {
    let host = HandshakeServer::new();
    let begun = Instant::now();
    let (mut client, server) = duplex(4096);
    // One byte per second does not complete a HELLO.
    let drip = async {
        for byte in [1u8, 0, 5, 20, 1, 0, 2, 16] {
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (greeted, ()) = tokio::join!(host.accept_login(server, config()), drip);
    assert!(matches!(greeted.err(), Some(LoginError::Timeout)));
    assert!(begun.elapsed() >= HELLO_DEADLINE);

    let begun = Instant::now();
    let (mut client, server) = duplex(4096);
    let (_, hello) = AwaitChallenge::start(device(2), None, &mut OsEntropy).unwrap();
    client.write_all(&hello).await.unwrap();
    let greeted = host.accept_login(server, config()).await;
    assert!(matches!(greeted.err(), Some(LoginError::Timeout)));
    assert_eq!(begun.elapsed().as_secs(), PROOF_DEADLINE.as_secs());

    let begun = Instant::now();
    let (client, _server) = duplex(4096);
    let refused = login(client, device(2), None, config()).await;
    assert!(matches!(refused.err(), Some(LoginError::Timeout)));
    assert_eq!(begun.elapsed().as_secs(), CHALLENGE_DEADLINE.as_secs());
}

/// What a stranger, or a thief with a valid secret, may send at each step.
///
/// Nothing panics, no wait exceeds its deadline, and the server sends at most one ERROR or CLOSE.
#[tokio::test(start_paused = true)]
async fn login__random_bytes_at_any_step_end_connection() {
    let host = HandshakeServer::new();
    for round in 0..300usize {
        let (mut client, server) = duplex(1 << 20);
        let mut junk = vec![0; round * 11];
        OsEntropy.fill(&mut junk);
        // A valid header before the junk passes the first check.
        let head = [[1, 0, 5, 20], [3, 0, 0, 64], [0x10, 0, 1, 0x20], [0x11, 0, 0, 40]];
        if round % 2 == 0 {
            junk.splice(0..0, head[round / 2 % 4]);
        }
        let step = round % 3;
        let attack = async {
            if step > 0 {
                let (state, hello) =
                    AwaitChallenge::start(device(2), None, &mut OsEntropy).unwrap();
                client.write_all(&hello).await.unwrap();
                let mut challenge = [0; HEADER + 1408];
                client.read_exact(&mut challenge).await.unwrap();
                if step > 1 {
                    let challenge = challenge[HEADER..].try_into().unwrap();
                    let (_, proof) = state.handle_challenge(&challenge, &mut OsEntropy).unwrap();
                    client.write_all(&proof).await.unwrap();
                }
            }
            let _closed = client.write_all(&junk).await;
            let mut answer = Vec::new();
            let _cut = client.read_to_end(&mut answer).await;
            answer
        };
        let serve = async {
            match host.accept_login(server, config()).await {
                Ok(mut connection) => {
                    let end = loop {
                        match next(&mut connection).await {
                            Ok(said) => assert_eq!(said, OwnedEvent::Nothing),
                            Err(error) => break error,
                        }
                    };
                    connection.finish().await;
                    format!("{end:?}")
                }
                Err(error) => format!("{error:?}"),
            }
        };
        let done = timeout(Duration::from_secs(120), async { tokio::join!(serve, attack) }).await;
        let (_end, answer) = done.unwrap_or_else(|_| panic!("round {round} hangs"));
        // At most READY and CLOSE.
        assert!(answer.len() <= 2 * (HEADER + 288), "{} bytes", answer.len());
    }
}
