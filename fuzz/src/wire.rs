//! Decoders of unauthenticated input: frame headers, codes, the PROXY header.

use std::net::{IpAddr, SocketAddr};

use tokio::time::{Duration, Instant};
use twinlock_core::frame::{CloseCode, Due, ErrorCode, FrameType, HEADER, Header};
use twinlock_core::limits::MAX_BULK;
use twinlock_transport::proxy::{MAX_BODY, ProxyError, read_header};

use crate::input::Input;
use crate::stream::block_on;

/// An accepted header is encoded back unchanged, announces no more than its type allows, and is
/// refused if its type is not due. Codes are encoded back unchanged.
pub(crate) fn frames(data: &[u8]) {
    let mut input = Input(data);
    while !input.is_empty() {
        let bytes: [u8; HEADER] = input.array();
        for due in [Due::Hello, Due::Challenge, Due::Proof, Due::FirstSealed, Due::Session] {
            let Ok(header) = Header::parse(bytes, due) else { continue };
            assert_eq!(header.to_bytes(), bytes);
            let (fits, most) = match header.frame {
                FrameType::Hello => (due == Due::Hello, (1 << 24) - 1),
                FrameType::Challenge => (due == Due::Challenge, 1408),
                FrameType::Proof => (due == Due::Proof, 64),
                FrameType::Error => (matches!(due, Due::Challenge | Due::FirstSealed), 3),
                FrameType::Sealed => (matches!(due, Due::FirstSealed | Due::Session), 65_568),
                FrameType::Bulk => (due == Due::Session, MAX_BULK + 28),
            };
            assert!(fits && (1..=most).contains(&header.len), "{header:?} at {due:?}");
        }
        let [a, b, c, _] = bytes;
        let code = ErrorCode::parse([a, b, c]);
        let frame = code.to_frame();
        assert_eq!(ErrorCode::parse(frame[HEADER..].try_into().unwrap()), code);
        let number = u16::from_be_bytes([a, b]);
        assert_eq!(CloseCode::from_number(number).number(), number);
    }
}

/// A header is read to its last byte and no further, is accepted only up to its limit, and gives
/// the address that it contains.
pub(crate) fn proxy(data: &[u8]) {
    let (whole, body) = header_of(data);
    let mut stream = whole.as_slice();
    let deadline = Instant::now() + Duration::from_secs(60);
    let result = block_on(read_header(&mut stream, deadline));
    let taken = whole.len() - stream.len();
    assert!(taken <= 16 + MAX_BODY, "{taken} bytes of a header");
    let Ok(source) = result else {
        assert!(!matches!(result, Err(ProxyError::Timeout)));
        return;
    };
    if whole.starts_with(b"PROXY ") {
        return line(&whole[..taken], source);
    }
    let length = usize::from(u16::from_be_bytes([whole[14], whole[15]]));
    assert_eq!(taken, 16 + length);
    let Some(source) = source else { return };
    assert_eq!(whole[12], 0x21, "only a proxied connection has another's address");
    // In IPv4 form if possible, so that one client has one limit.
    let body = body.unwrap_or(&whole[16..]);
    let expected: SocketAddr = match whole[13] {
        0x11 => {
            let ip: [u8; 4] = body[..4].try_into().unwrap();
            (ip, u16::from_be_bytes([body[8], body[9]])).into()
        }
        0x21 => {
            let ip: [u8; 16] = body[..16].try_into().unwrap();
            (ip, u16::from_be_bytes([body[32], body[33]])).into()
        }
        other => panic!("an address of family {other:#04x}"),
    };
    assert_eq!(source.ip(), expected.ip().to_canonical());
    assert_eq!(source.port(), expected.port());
    assert!(!matches!(source.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()));
}

/// A line of version 1 that was accepted: it ends where reading ended, and names the address.
fn line(line: &[u8], source: Option<SocketAddr>) {
    let line = std::str::from_utf8(line).unwrap();
    assert!(line.len() <= 107 && line.find("\r\n") == Some(line.len() - 2), "{line:?}");
    let words: Vec<_> = line.trim_end().split(' ').collect();
    let Some(source) = source else {
        assert_eq!(words[1], "UNKNOWN");
        return;
    };
    let [_, _, ip, _, port, _] = words[..] else { panic!("{line:?}") };
    assert_eq!(source.ip(), ip.parse::<IpAddr>().unwrap().to_canonical());
    assert_eq!(source.port().to_string(), port);
}

/// Half of the inputs are headers with a valid signature; command, family, length and body follow
/// it.
fn header_of(data: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    match data.split_first() {
        Some((first, rest)) if first & 1 == 1 => {
            let signature = b"\r\n\r\n\0\r\nQUIT\n";
            ([signature, rest].concat(), rest.get(4..))
        }
        Some((_, rest)) => (rest.to_vec(), None),
        None => (Vec::new(), None),
    }
}
