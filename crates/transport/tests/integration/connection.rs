//! A session over a stream: no data is lost, no wait is unbounded, the last frame arrives.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::common::connected::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use twinlock_core::Entropy;
use twinlock_core::frame::CloseCode;
use twinlock_core::session::SessionFault;
use twinlock_transport::OsEntropy;
use twinlock_transport::connection::{ConnectionError, FRAME_DEADLINE, HIGH_WATER, Wake};

/// A body that contains its number, of varying length.
fn body(i: usize) -> Vec<u8> {
    let mut body = vec![i as u8; i * 37 % 3000 + 8];
    body[..8].copy_from_slice(&i.to_be_bytes());
    body
}

/// Completes after a random number of polls.
async fn a_while() {
    let mut n = [0];
    OsEntropy.fill(&mut n);
    for _ in 0..n[0] % 4 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn connection__cancelled_wait_loses_no_frames() {
    const FRAMES: usize = 400;
    let (mut client, mut server) = connected(100).await;
    let send = async {
        for i in 0..FRAMES {
            server.send_app(&body(i)).unwrap();
            // The sender's wait is cancelled as well.
            while server.backlog() > 5000 {
                tokio::select! {
                    biased;
                    () = a_while() => {}
                    woken = server.wait(Some(0)) => drop(woken.unwrap()),
                }
            }
        }
        flush(&mut server).await;
    };
    let receive = async {
        let (mut got, mut cancelled) = (0, 0);
        while got < FRAMES {
            tokio::select! {
                biased;
                () = a_while() => cancelled += 1,
                woken = client.wait(None) => {
                    assert_eq!(woken.unwrap(), Wake::Frame);
                    assert_eq!(open(&mut client).unwrap(), OwnedEvent::App(body(got)));
                    got += 1;
                }
            }
        }
        assert!(cancelled > FRAMES, "{cancelled} cancelled");
    };
    timeout(Duration::from_secs(60), async { tokio::join!(send, receive) }).await.unwrap();
}

#[tokio::test]
async fn connection__small_frames_are_coalesced_into_one_write() {
    let (client, server) = duplex(1 << 20);
    let client = CountingStream::new(client);
    let writes = client.writes.clone();
    let (mut client, mut server) = connected_over(client, server).await;
    let before = writes.load(Ordering::Relaxed);
    for i in 0..300 {
        client.send_app(&[i as u8; 20]).unwrap();
    }
    flush(&mut client).await;
    assert_eq!(writes.load(Ordering::Relaxed) - before, 1);
    for i in 0..300 {
        assert_eq!(next(&mut server).await.unwrap(), OwnedEvent::App(vec![i as u8; 20]));
    }
}

#[tokio::test(start_paused = true)]
async fn connection__incomplete_frame_times_out() {
    let (client, mut server) = connected(4096).await;
    let mut client = client.into_stream();
    let begun = Instant::now();
    client.write_all(&[0x10, 0, 1, 0x20, 7, 7]).await.unwrap();
    // One byte per second does not complete it.
    let drip = async {
        while client.write_all(&[7]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let end = tokio::select! {
        end = next(&mut server) => end,
        () = drip => panic!("the pipe stands"),
    };
    assert!(matches!(end, Err(ConnectionError::HalfFrame)), "{end:?}");
    assert_eq!(begun.elapsed().as_secs(), FRAME_DEADLINE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn connection__stalled_peer_times_out_after_30_s() {
    let (_client, mut server) = connected(4096).await;
    server.send_app(&[1; 10_000]).unwrap();
    let begun = Instant::now();
    let end = server.wait(Some(0)).await;
    assert!(matches!(end, Err(ConnectionError::Stalled)), "{end:?}");
    assert_eq!(begun.elapsed().as_secs(), 30);
    // Its last bytes find no room either; `finish` does not wait long for that.
    server.finish().await;
    assert!(begun.elapsed().as_secs() <= 40);
}

#[tokio::test(start_paused = true)]
async fn connection__slow_reading_peer_is_not_timed_out() {
    let (client, mut server) = connected(4096).await;
    let mut client = client.into_stream();
    server.session_mut().set_following(true);
    // The client has sent half a frame, and from then on the server reads nothing.
    client.write_all(&[0x10, 0, 1, 0x20, 7, 7]).await.unwrap();
    assert!(look(pin!(server.wait(None))).await.is_pending());
    let begun = Instant::now();
    for _ in 0..10 {
        server.send_app(&[1; 60_000]).unwrap();
    }
    assert!(server.backlog() > HIGH_WATER);
    let mut taken = vec![0; 4096];
    let take = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            client.read_exact(&mut taken).await.unwrap();
        }
    };
    // Silence and PINGs for 80 s: the client's answers would be queued behind all of that.
    let woken = tokio::select! {
        woken = server.wait(Some(HIGH_WATER)) => woken,
        () = take => panic!("never ends"),
    };
    assert_eq!(woken.unwrap(), Wake::Room);
    assert!(begun.elapsed() > Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn keep_alive__silent_peer_times_out_after_20_s() {
    let (_client, mut server) = connected(4096).await;
    server.session_mut().set_following(true);
    let begun = Instant::now();
    let end = server.wait(None).await;
    assert!(matches!(end, Err(ConnectionError::Fault(SessionFault::Silent))), "{end:?}");
    assert_eq!(begun.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn keep_alive__idle_connections_stay_open() {
    let (mut client, mut server) = connected(4096).await;
    let both = async { tokio::join!(quiet(&mut client), quiet(&mut server)) };
    assert!(timeout(Duration::from_secs(3600), both).await.is_err());
    assert!(client.session().is_open() && server.session().is_open());
}

/// Reads events that do not concern the caller, forever.
async fn quiet<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    connection: &mut twinlock_transport::connection::Connection<S>,
) {
    loop {
        match next(connection).await.unwrap() {
            OwnedEvent::Nothing | OwnedEvent::Rekeyed(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn connection__busy_still_enforces_session_timers() {
    // With a frame ready to be opened at every call.
    let (mut client, mut server) = connected(1 << 20).await;
    client.send_app(b"one").unwrap();
    client.send_app(b"two").unwrap();
    flush(&mut client).await;
    assert_eq!(server.wait(None).await.unwrap(), Wake::Frame);
    tokio::time::advance(Duration::from_secs(86_400)).await;
    let end = server.wait(None).await;
    assert!(matches!(end, Err(ConnectionError::Fault(SessionFault::TooOld))), "{end:?}");

    // With room to send at every call.
    let (mut client, server) = connected(1 << 20).await;
    assert_eq!(client.wait(Some(HIGH_WATER)).await.unwrap(), Wake::Room);
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(client.wait(Some(HIGH_WATER)).await.unwrap(), Wake::Room);
    let mut server = server;
    assert_eq!(next(&mut server).await.unwrap(), OwnedEvent::Nothing);
    assert!(server.backlog() > 0, "a PONG or a REKEY2 is the answer");
    // The client must also read what the peer sends, or it would consider the peer dead.
    flush(&mut server).await;
    tokio::time::advance(Duration::from_secs(600)).await;
    let woken = client.wait(Some(HIGH_WATER)).await;
    assert_eq!(woken.unwrap(), Wake::Frame);
}

#[tokio::test]
async fn connection__eof_without_close_is_reported_as_cut() {
    let (client, mut server) = connected(4096).await;
    drop(client);
    assert!(matches!(next(&mut server).await, Err(ConnectionError::Cut(None))));

    // In the middle of a frame as well.
    let (client, mut server) = connected(4096).await;
    let mut client = client.into_stream();
    client.write_all(&[0x10, 0]).await.unwrap();
    drop(client);
    assert!(matches!(next(&mut server).await, Err(ConnectionError::Cut(None))));
}

#[tokio::test]
async fn close__queued_frames_arrive_before_it() {
    let (mut client, mut server) = connected(100).await;
    for i in 0..50 {
        client.send_app(&body(i)).unwrap();
    }
    let read = async {
        for i in 0..50 {
            assert_eq!(next(&mut server).await.unwrap(), OwnedEvent::App(body(i)));
        }
        assert_eq!(next(&mut server).await.unwrap(), OwnedEvent::Closed(CloseCode::Bye));
        server.finish().await;
    };
    let both = async { tokio::join!(client.close(CloseCode::Bye), read) };
    timeout(Duration::from_secs(10), both).await.unwrap();
}

/// Over TCP, where closing a socket with unread bytes causes a reset that destroys the last frame.
#[tokio::test]
async fn close__reaches_peer_with_data_in_flight() {
    for _ in 0..5 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(connect, listener.accept());
        let (mut client, server) = connected_over(client.unwrap(), server.unwrap().0).await;
        for _ in 0..30 {
            client.send_app(&[3; 60_000]).unwrap();
        }
        let talk = async {
            // Bytes that the server has not read must not prevent its CLOSE from arriving.
            assert_eq!(next(&mut client).await.unwrap(), OwnedEvent::Closed(CloseCode::Quota));
            client.finish().await;
        };
        let both = async { tokio::join!(server.close(CloseCode::Quota), talk) };
        timeout(Duration::from_secs(10), both).await.unwrap();
    }
}

#[tokio::test]
async fn connection__invalid_frame_closes_without_close_frame() {
    for head in [[0x10, 0, 1, 0x20], [0x10, 0, 1, 0x21], [0x0e, 0, 0, 3], [0x42, 0, 0, 0]] {
        let (client, mut server) = connected(1 << 20).await;
        let mut client = client.into_stream();
        client.write_all(&[&head[..], &[0; 288]].concat()).await.unwrap();
        server.send_app(b"about to leave").unwrap();
        let end = next(&mut server).await;
        let expected = matches!(
            end,
            Err(ConnectionError::Header(_) | ConnectionError::Fault(SessionFault::Tampered))
        );
        assert!(expected, "{end:?}");
        let before = server.backlog();
        let refused = server.send_app(b"more");
        assert!(refused.is_err());
        assert_eq!(before, 0);
        let begun = std::time::Instant::now();
        server.finish().await;
        assert!(begun.elapsed() < Duration::from_millis(900), "nothing is waited for");
        // The APP frame may leave before the junk is read; no CLOSE follows it.
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert!(heard.is_empty() || heard.len() == 292, "{} bytes", heard.len());
    }
}

#[tokio::test]
async fn backpressure__full_backlog_stops_reads_until_peer_reads() {
    let (mut client, mut server) = connected(4096).await;
    while server.backlog() <= HIGH_WATER + 4096 {
        server.send_app(&[1; 30_000]).unwrap();
    }
    for i in 0..20 {
        client.send_app(&body(i)).unwrap();
    }
    let sealed = client.session().outgoing().to_vec();
    let (mut reader, mut writer) = tokio::io::split(client.into_stream());
    let mut write = pin!(writer.write_all(&sealed));
    for _ in 0..50 {
        assert!(look(write.as_mut()).await.is_pending());
        assert!(look(pin!(server.wait(None))).await.is_pending());
    }
    // Once the client reads, both directions move.
    let at_server = async {
        for i in 0..20 {
            assert_eq!(next(&mut server).await.unwrap(), OwnedEvent::App(body(i)));
        }
    };
    let mut sink = tokio::io::sink();
    let moving = async { tokio::join!(write, at_server) };
    tokio::select! {
        _ended = tokio::io::copy(&mut reader, &mut sink) => panic!("the connection is open"),
        done = timeout(Duration::from_secs(10), moving) => done.unwrap().0.unwrap(),
    }
}

#[tokio::test]
async fn connection__received_frames_are_read_after_reset() {
    const FRAMES: usize = 3;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (mut client, mut server) = connected_over(client.unwrap(), accepted.unwrap().0).await;
    for i in 0..FRAMES {
        server.send_app(&vec![i as u8; 16_000]).unwrap();
    }
    flush(&mut server).await;
    // A reset, as from a killed process with unread input.
    server.stream().set_zero_linger().unwrap();
    drop(server);
    client.send_app(b"nobody takes this").unwrap();
    for i in 0..FRAMES {
        let said = next(&mut client).await.unwrap();
        assert_eq!(said, OwnedEvent::App(vec![i as u8; 16_000]));
    }
    let ended = next(&mut client).await;
    assert!(matches!(ended, Err(ConnectionError::Cut(Some(_)))), "{ended:?}");
    client.finish().await;
}

/// A stream that can be read but, once `broken`, not written.
struct HalfBroken {
    inner: tokio::io::DuplexStream,
    broken: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl tokio::io::AsyncRead for HalfBroken {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        pin!(&mut self.inner).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for HalfBroken {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        if self.broken.load(Ordering::Relaxed) {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        pin!(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        pin!(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        pin!(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn connection__write_error_ends_it_within_2_s_despite_input() {
    let (client, server) = duplex(4096);
    let broken = std::sync::Arc::default();
    let client = HalfBroken { inner: client, broken: std::sync::Arc::clone(&broken) };
    let (mut client, mut server) = connected_over(client, server).await;
    broken.store(true, Ordering::Relaxed);
    client.send_app(b"nobody takes this").unwrap();
    tokio::time::pause();
    let began = Instant::now();
    let read = async {
        loop {
            if let Err(ended) = next(&mut client).await {
                return ended;
            }
        }
    };
    let talk = async {
        loop {
            server.send_app(b"and another").unwrap();
            flush(&mut server).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::select! {
        ended = read => ended,
        () = talk => unreachable!(),
    };
    assert!(matches!(ended, ConnectionError::Cut(Some(_))), "{ended}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // The same while nothing is read.
    client.send_app(b"x").unwrap();
    let ended = client.wait_without_reading().await;
    assert!(matches!(ended, ConnectionError::Cut(Some(_))), "{ended}");
}
