//! What an idle connection keeps in memory.
use std::future::Future as _;

use tokio::io::{DuplexStream, duplex};
use twinlock_core::credential::Credential;
use twinlock_core::handshake::self_register;
use twinlock_core::id::DeviceId;
use twinlock_core::keys::DeviceSecret;
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::opaque::ServerSetup;
use twinlock_core::session::{BindingPolicy, SessionConfig};

use super::*;
use crate::login::{Acceptor, login, parse_hello};

async fn connected() -> (Connection<DuplexStream>, Connection<DuplexStream>) {
    let device = || Credential::Device(DeviceId([1; 16]), DeviceSecret::new(&[2; 32]));
    let config = || SessionConfig {
        binding: BindingPolicy::Off,
        exporter: None,
        info: Vec::new(),
        max_version: VERSION,
        timing: Timing::default(),
    };
    let (client, server) = duplex(1 << 20);
    let greet = async {
        let setup = ServerSetup::generate(&mut OsEntropy);
        let record = self_register(&setup, &device(), &mut OsEntropy).unwrap();
        let mut greeter = Acceptor::new(server);
        let hello = parse_hello(&greeter.read_hello().await.unwrap()).unwrap();
        let (state, challenge) = hello.challenge(&setup, Some(&record), &mut OsEntropy).unwrap();
        let proof = greeter.exchange(&challenge).await.unwrap();
        greeter.into_connection(state.handle_proof(&proof).unwrap(), config())
    };
    let (mut server, client) = tokio::join!(greet, login(client, device(), None, config()));
    let mut client = client.unwrap();
    for connection in [&mut client, &mut server] {
        connection.wait(Some(0)).await.unwrap();
    }
    for connection in [&mut client, &mut server] {
        connection.wait(None).await.unwrap();
        connection.open_frame().unwrap();
    }
    (client, server)
}

async fn rest(connection: &mut Connection<DuplexStream>) {
    let mut wait = pin!(connection.wait(None));
    poll_fn(|cx| {
        assert!(wait.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn connection__idle_frees_input_buffer_and_is_below_1_kib() {
    let (mut client, mut server) = connected().await;
    for _ in 0..10 {
        client.send_app(&[1; 60_000]).unwrap();
    }
    client.wait(Some(0)).await.unwrap();
    for _ in 0..10 {
        server.wait(None).await.unwrap();
        assert!(matches!(server.open_frame().unwrap(), SessionEvent::App(_)));
    }
    for connection in [&mut client, &mut server] {
        rest(connection).await;
        assert_eq!(connection.input.bytes.capacity(), 0);
        assert_eq!(connection.frame_began, None);
    }
    // A server has tens of thousands of connections.
    assert!(
        size_of::<Connection<DuplexStream>>() < 1024,
        "{} bytes",
        size_of::<Connection<DuplexStream>>()
    );
}

#[test]
fn connection__input_compaction_keeps_pending_bytes() {
    let mut input = ReadBuffer { bytes: (0..100).collect(), start: 0 };
    assert_eq!(input.header(), Some([0, 1, 2, 3]));
    input.consume(90);
    input.compact();
    assert_eq!((input.pending(), input.start), (&(90..100).collect::<Vec<_>>()[..], 0));
    input.consume(100);
    assert_eq!((input.pending(), input.header()), (&[][..], None));
    input.compact();
    assert_eq!(input.bytes.capacity(), 0);
}

#[tokio::test(start_paused = true)]
async fn connection__bye_lets_the_peer_end_first() {
    let (client, mut server) = connected().await;
    let began = tokio::time::Instant::now();
    let leaving = tokio::spawn(client.close(CloseCode::Bye));
    server.wait(None).await.unwrap();
    assert!(matches!(server.open_frame(), Ok(SessionEvent::Closed(CloseCode::Bye))));
    // A proxy that passes no half-closed connection would now drop the answer.
    let mut byte = [0];
    let mut read = pin!(server.io.read(&mut byte));
    poll_fn(|cx| {
        assert!(read.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    server.finish().await;
    leaving.await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn connection__bye_without_an_answer_ends_after_a_second() {
    let (client, mut server) = connected().await;
    let began = tokio::time::Instant::now();
    client.close(CloseCode::Bye).await;
    assert_eq!(began.elapsed(), LINGER);
    // CLOSE, and then the end.
    server.wait(None).await.unwrap();
    assert!(matches!(server.open_frame(), Ok(SessionEvent::Closed(CloseCode::Bye))));
    assert_eq!(server.io.read(&mut [0]).await.unwrap(), 0);
}
