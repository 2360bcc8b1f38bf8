//! Version 1 of the PROXY protocol: one line of text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{ProxyError, SIGNATURE};

/// First bytes of every line.
pub(super) const START: &[u8] = b"PROXY ";

/// Longest line with its end, bytes (section 2.1 of the specification).
const LONGEST: usize = 107;

/// Reads the rest of a line whose first bytes have been read, and returns the client's address.
///
/// The shortest valid line is longer than `first`, so no byte after the line is taken.
pub(super) async fn read<S: AsyncRead + Unpin>(
    first: [u8; SIGNATURE.len()],
    stream: &mut S,
) -> Result<Option<SocketAddr>, ProxyError> {
    let mut line = Vec::with_capacity(LONGEST);
    line.extend_from_slice(&first);
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST {
            return Err(ProxyError::Line);
        }
        line.push(stream.read_u8().await?);
    }
    let line = line.strip_suffix(b"\r\n").and_then(|line| str::from_utf8(line).ok());
    line.and_then(parse).ok_or(ProxyError::Line)
}

/// The address of a line without its end; `None` for an invalid line.
fn parse(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    if next() != Some("PROXY") {
        return None;
    }
    let family = next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (source, destination) = (next()?, next()?);
    let (from, _to) = (port(next()?)?, port(next()?)?);
    if words.next().is_some() {
        return None;
    }
    let ip: IpAddr = match family {
        "TCP4" => {
            destination.parse::<Ipv4Addr>().ok()?;
            source.parse::<Ipv4Addr>().ok()?.into()
        }
        "TCP6" => {
            destination.parse::<Ipv6Addr>().ok()?;
            source.parse::<Ipv6Addr>().ok()?.to_canonical()
        }
        _ => return None,
    };
    Some(Some((ip, from).into()))
}

/// A decimal number without a sign or a leading zero.
fn port(word: &str) -> Option<u16> {
    let plain =
        word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, Instant};

    use super::*;
    use crate::proxy::read_header;

    async fn header(bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyError>, Vec<u8>) {
        let mut stream = bytes;
        let read = read_header(&mut stream, Instant::now() + Duration::from_secs(10)).await;
        (read, stream.to_vec())
    }

    #[tokio::test]
    async fn proxy_line__client_address_is_returned_and_rest_left() {
        for (line, address) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 49153 443", Some("192.0.2.7:49153")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 49153 443", Some("[2001:db8::7]:49153")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 443", Some("192.0.2.7:1")),
            ("PROXY UNKNOWN", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535", None),
        ] {
            let (read, rest) = header(format!("{line}\r\n\x16\x03\x01").as_bytes()).await;
            assert_eq!(read.unwrap(), address.map(|a| a.parse().unwrap()), "{line}");
            assert_eq!(rest, b"\x16\x03\x01", "{line}");
        }
    }

    #[tokio::test]
    async fn proxy_line__malformed_or_long_is_rejected() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST));
        for line in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 49153\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 49153 443 1\r\n",
            "PROXY TCP4 192.0.2.7  198.51.100.1 49153 443\r\n",
            "PROXY TCP4 2001:db8::7 198.51.100.1 49153 443\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 49153 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +9153 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.07 198.51.100.1 49153 443\r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 49153 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 49153 443\n\r\n",
            "PROXY \r\n                    \r\n",
            long.as_str(),
        ] {
            let (read, _) = header(line.as_bytes()).await;
            assert!(matches!(read, Err(ProxyError::Line)), "{line:?}: {read:?}");
        }
        let (read, _) = header(b"PROXY TCP4 192.0.2.7").await;
        assert!(matches!(read, Err(ProxyError::Io(_))), "{read:?}");
    }
}
