//! The PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).
//!
//! A load balancer sends its header before the first TLS byte, with the client's address. It is
//! only for listeners that accept connections from configured proxies alone, because the sender of
//! a header can claim any address. The available libraries leave reading to the caller. Here
//! reading is the point: no byte beyond the header is taken from the stream, and no length above
//! 536 is accepted. Version 1 is a line of text (`text`), version 2 is binary.

mod text;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

/// First bytes of every header of version 2; no TLS record begins like this.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Most bytes after the fixed 16: the longest addresses (216) and 320 bytes of extensions. Proxies
/// that send more (client certificates) are not supported.
pub const MAX_BODY: usize = 536;

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// The reason why a connection from a proxy is refused.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// The line of version 1 is longer than 107 bytes or malformed.
    #[error("the PROXY header of version 1 is malformed")]
    Line,
    /// The stream begins with something else.
    #[error("the connection does not start with a PROXY protocol header")]
    NoHeader,
    /// Version and command are not those of version 2.
    #[error("the PROXY header has the unknown version and command {0:#04x}")]
    Command(u8),
    /// Neither TCP, nor a stream socket, nor unspecified.
    #[error("the PROXY header is for the address family and transport {0:#04x}")]
    Family(u8),
    /// The header announces more bytes than [`MAX_BODY`], or fewer than the addresses need.
    #[error("the PROXY header announces {0} bytes")]
    Length(u16),
    /// The header was not complete at the deadline.
    #[error("the PROXY header did not arrive in time")]
    Timeout,
    /// The stream ended or failed inside the header.
    #[error("the connection ended inside the PROXY header: {}", crate::io_words(.0))]
    Io(#[from] io::Error),
}

/// Reads one header and leaves the stream at the first byte after it.
///
/// Skips extensions (TLVs) unread. `None` if the proxy connects for itself (health check) or does
/// not name the client. IPv4-mapped IPv6 addresses are returned as IPv4, so that one client has one
/// limit.
///
/// # Errors
/// [`ProxyError`]; the caller must then close the connection.
pub async fn read_header<S>(
    stream: &mut S,
    deadline: Instant,
) -> Result<Option<SocketAddr>, ProxyError>
where
    S: AsyncRead + Unpin,
{
    timeout_at(deadline, read(stream)).await.map_err(|_| ProxyError::Timeout)?
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, ProxyError> {
    let mut signature = [0; SIGNATURE.len()];
    stream.read_exact(&mut signature).await?;
    if signature.starts_with(text::START) {
        return text::read(signature, stream).await;
    }
    if signature != SIGNATURE {
        return Err(ProxyError::NoHeader);
    }
    let [command, family, high, low] = {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        fixed
    };
    if command != LOCAL && command != PROXY {
        return Err(ProxyError::Command(command));
    }
    let length = u16::from_be_bytes([high, low]);
    let mut space = [0; MAX_BODY];
    let body = space.get_mut(..usize::from(length)).ok_or(ProxyError::Length(length))?;
    stream.read_exact(body).await?;
    if command == LOCAL {
        return Ok(None);
    }
    source(family, body).map_err(|fault| match fault {
        AddressFault::Family => ProxyError::Family(family),
        AddressFault::Short => ProxyError::Length(length),
    })
}

enum AddressFault {
    Family,
    Short,
}

/// The source address of a body: source, destination, source port, destination port.
fn source(family: u8, body: &[u8]) -> Result<Option<SocketAddr>, AddressFault> {
    const UNSPECIFIED: u8 = 0x00;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    const UNIX_STREAM: u8 = 0x31;
    const UNIX_BODY: usize = 216;
    match family {
        UNSPECIFIED => Ok(None),
        TCP4 => {
            let &[a, b, c, d, _, _, _, _, high, low, _, _] =
                body.first_chunk::<12>().ok_or(AddressFault::Short)?;
            let port = u16::from_be_bytes([high, low]);
            Ok(Some((Ipv4Addr::new(a, b, c, d), port).into()))
        }
        TCP6 => {
            let (ip, rest) = body.split_first_chunk::<16>().ok_or(AddressFault::Short)?;
            let (_, ports) = rest.split_first_chunk::<16>().ok_or(AddressFault::Short)?;
            let &[high, low, _, _] = ports.first_chunk::<4>().ok_or(AddressFault::Short)?;
            let ip = Ipv6Addr::from(*ip).to_canonical();
            Ok(Some((ip, u16::from_be_bytes([high, low])).into()))
        }
        UNIX_STREAM if body.len() >= UNIX_BODY => Ok(None),
        UNIX_STREAM => Err(AddressFault::Short),
        _ => Err(AddressFault::Family),
    }
}

#[cfg(test)]
mod tests;
