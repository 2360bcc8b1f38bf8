use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn tcp4() -> Vec<u8> {
    vec![192, 0, 2, 7, 198, 51, 100, 1, 0xc0, 0x01, 0x01, 0xbb]
}

fn tcp6(source: &str) -> Vec<u8> {
    let mut body = source.parse::<Ipv6Addr>().unwrap().octets().to_vec();
    body.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    body.extend([0xc0, 0x01, 0x01, 0xbb]);
    body
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

async fn parse(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyError>, usize) {
    let result = read_header(&mut bytes, soon()).await;
    (result, bytes.len())
}

async fn address(bytes: &[u8]) -> Option<SocketAddr> {
    parse(bytes).await.0.unwrap()
}

#[tokio::test]
async fn proxy_header__client_address_is_returned() {
    let v4: SocketAddr = "192.0.2.7:49153".parse().unwrap();
    assert_eq!(address(&header(PROXY, TCP4, &tcp4())).await, Some(v4));
    let v6: SocketAddr = "[2001:db8::7]:49153".parse().unwrap();
    assert_eq!(address(&header(PROXY, TCP6, &tcp6("2001:db8::7"))).await, Some(v6));
    assert_eq!(address(&header(PROXY, TCP6, &tcp6("::ffff:192.0.2.7"))).await, Some(v4));
}

#[tokio::test]
async fn proxy_header__local_unspec_or_unix_gives_no_address() {
    assert_eq!(address(&header(LOCAL, 0, &[])).await, None);
    assert_eq!(address(&header(LOCAL, TCP4, &tcp4())).await, None);
    assert_eq!(address(&header(LOCAL, 0xff, &[1, 2, 3])).await, None);
    assert_eq!(address(&header(PROXY, 0x00, &[])).await, None);
    assert_eq!(address(&header(PROXY, 0x31, &[0; 216])).await, None);
}

#[tokio::test]
async fn proxy_header__bytes_after_it_are_not_consumed() {
    let mut body = tcp4();
    body.extend([0x04, 0x00, 0x03, 1, 2, 3]);
    for mut bytes in [
        header(PROXY, TCP4, &tcp4()),
        header(PROXY, TCP4, &body),
        header(LOCAL, 0, &[]),
        header(PROXY, 0, &[9; MAX_BODY]),
    ] {
        bytes.extend(b"\x16\x03\x01 the client hello");
        let (result, left) = parse(&bytes).await;
        assert!(result.is_ok());
        assert_eq!(&bytes[bytes.len() - left..], b"\x16\x03\x01 the client hello");
    }
}

#[tokio::test]
async fn proxy_header__truncated_is_rejected() {
    for whole in [header(PROXY, TCP4, &tcp4()), header(PROXY, TCP6, &tcp6("::1"))] {
        for end in 0..whole.len() {
            match parse(&whole[..end]).await.0 {
                Err(ProxyError::Io(error)) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
                other => panic!("{end} bytes gave {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn proxy_header__length_out_of_range_is_rejected() {
    let body = vec![0; usize::from(u16::MAX)];
    for (family, need) in [(0x00, 0), (TCP4, 12), (TCP6, 36), (0x31, 216)] {
        for length in 0..=usize::from(u16::MAX) {
            let (result, left) = parse(&header(PROXY, family, &body[..length])).await;
            match result {
                Ok(_) => assert!((need..=536).contains(&length) && left == 0),
                Err(ProxyError::Length(told)) => {
                    assert!(!(need..=536).contains(&length));
                    assert_eq!(usize::from(told), length);
                }
                Err(other) => panic!("{length}: {other}"),
            }
            // A length that is too large is refused without reading the body.
            assert!(length <= 536 || left == length);
        }
    }
}

#[tokio::test]
async fn proxy_header__unknown_command_or_family_is_rejected() {
    for byte in 0..=u8::MAX {
        let (result, _) = parse(&header(byte, 0, &[])).await;
        match byte {
            LOCAL | PROXY => assert_eq!(result.unwrap(), None),
            _ => assert!(matches!(result, Err(ProxyError::Command(b)) if b == byte)),
        }
        let (result, _) = parse(&header(PROXY, byte, &[0; 216])).await;
        match byte {
            0x00 | 0x31 => assert_eq!(result.unwrap(), None),
            TCP4 | TCP6 => assert!(result.unwrap().is_some()),
            _ => assert!(matches!(result, Err(ProxyError::Family(b)) if b == byte)),
        }
    }
}

#[tokio::test]
async fn proxy_header__other_protocols_are_refused() {
    for other in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\0"]
    {
        assert!(matches!(parse(other).await.0, Err(ProxyError::NoHeader)));
    }
    for at in 0..SIGNATURE.len() {
        let mut bytes = header(PROXY, TCP4, &tcp4());
        bytes[at] ^= 0x20;
        assert!(matches!(parse(&bytes).await.0, Err(ProxyError::NoHeader)));
    }
}

#[tokio::test(start_paused = true)]
async fn proxy_header__slow_sender_times_out_at_deadline() {
    let (mut proxy, mut server) = tokio::io::duplex(1024);
    let trickle = tokio::spawn(async move {
        for byte in header(PROXY, TCP4, &tcp4()) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if proxy.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    let result = read_header(&mut server, started + Duration::from_secs(5)).await;
    assert!(matches!(result, Err(ProxyError::Timeout)));
    assert_eq!(started.elapsed().as_secs(), 5);
    drop(server);
    trickle.await.unwrap();
}

#[tokio::test]
async fn proxy_header__single_byte_writes_leave_rest_unread() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let proxy = tokio::spawn(async move {
        let mut proxy = tokio::net::TcpStream::connect(to).await.unwrap();
        proxy.set_nodelay(true).unwrap();
        for byte in header(PROXY, TCP4, &tcp4()) {
            proxy.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        proxy.write_all(b"hello").await.unwrap();
    });
    let (mut server, _) = listener.accept().await.unwrap();
    let client = read_header(&mut server, soon()).await.unwrap().unwrap();
    assert_eq!(client.ip(), IpAddr::from([192, 0, 2, 7]));
    let mut rest = String::new();
    server.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "hello");
    proxy.await.unwrap();
}
