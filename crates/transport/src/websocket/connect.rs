//! The HTTP request before a WebSocket, on the client.
//!
//! httparse is hyper's parser. hyper's own client would bring a pool of tasks and channels for one
//! request and no body.

use std::io;
use std::time::SystemTime;

use data_encoding::BASE64;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use twinlock_core::Entropy as _;

use super::{MAX_FIELDS, MAX_HTTP_HEADER, WebSocket, accept_value, lists};
use crate::OsEntropy;

/// Bytes of one read.
const READ: usize = 1024;

/// Why the peer does not become a WebSocket.
#[derive(Debug, Error)]
pub enum UpgradeFault {
    /// It answered with another status.
    #[error("it answered HTTP {0}")]
    Status(u16),
    /// It answered with a status that redirects to another place.
    #[error("it answered HTTP {0}, a redirect: perhaps a login page of the network")]
    Redirect(u16),
    /// Its answer is not HTTP.
    #[error("its answer is not HTTP")]
    NotHttp,
    /// The header of its answer is longer than 8 KiB.
    #[error("its HTTP answer is too long")]
    TooLong,
    /// It agreed to something other than this WebSocket.
    #[error("its HTTP answer does not accept the WebSocket")]
    NotAccepted,
    /// The connection failed or ended.
    #[error("the connection failed during the HTTP upgrade: {}", crate::io_words(.0))]
    Io(#[from] io::Error),
}

/// Asks for a WebSocket. Sets no timeout.
///
/// `authority` is the value of the Host field, `path` begins with `/`. Both must be free of spaces
/// and control characters.
///
/// # Errors
/// [`UpgradeFault`].
pub async fn connect<S>(
    mut io: S,
    authority: &str,
    path: &str,
) -> Result<WebSocket<S>, UpgradeFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (key, mut answer, end) = exchange(&mut io, authority, path).await?;
    judge(answer.get(..end).unwrap_or_default(), &key)?;
    Ok(WebSocket::client(io, answer.split_off(end)).await)
}

/// An answer to an HTTP request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// The time in its Date field.
    pub date: Option<SystemTime>,
}

/// Sends the request for a WebSocket and returns the answer, without using the connection further.
/// Sets no timeout. For the arguments see [`connect`].
///
/// # Errors
/// [`UpgradeFault`] if the answer is not HTTP, or is 101 without being a WebSocket.
pub async fn ask<S>(mut io: S, authority: &str, path: &str) -> Result<HttpAnswer, UpgradeFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (key, answer, end) = exchange(&mut io, authority, path).await?;
    let header = answer.get(..end).unwrap_or_default();
    let answer = HttpAnswer::parse(header).ok_or(UpgradeFault::NotHttp)?;
    if answer.status == 101 {
        judge(header, &key)?;
    }
    Ok(answer)
}

impl HttpAnswer {
    /// Parses an answer, of which a part may be missing. `None` if it is not HTTP.
    #[must_use]
    pub fn parse(answer: &[u8]) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let _partial = response.parse(answer).ok()?;
        let status = response.code?;
        let date = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("date"));
        let date = date.and_then(|date| std::str::from_utf8(date.value).ok());
        Some(Self { status, date: date.and_then(|date| httpdate::parse_http_date(date).ok()) })
    }
}

/// Sends the request and reads the header of the answer. Returns the key, and what was read with
/// the length of the header.
async fn exchange<S>(
    io: &mut S,
    authority: &str,
    path: &str,
) -> Result<(String, Vec<u8>, usize), UpgradeFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut nonce = [0; 16];
    OsEntropy.fill(&mut nonce);
    let key = BASE64.encode(&nonce);
    io.write_all(request(authority, path, &key).as_bytes()).await?;
    io.flush().await?;
    let mut answer = Vec::new();
    loop {
        if let Some(end) = header_end(&answer)? {
            return Ok((key, answer, end));
        }
        if answer.len() >= MAX_HTTP_HEADER {
            return Err(UpgradeFault::TooLong);
        }
        answer.reserve(READ);
        if (&mut *io).take(READ as u64).read_buf(&mut answer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// The request. Some proxies refuse a request without User-Agent.
fn request(authority: &str, path: &str, key: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\n\
         Host: {authority}\r\n\
         User-Agent: twinlock\r\n\
         Connection: Upgrade\r\n\
         Upgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n"
    )
}

/// The length of the header, once it is complete.
fn header_end(answer: &[u8]) -> Result<Option<usize>, UpgradeFault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(answer) {
        Ok(httparse::Status::Complete(end)) => Ok(Some(end)),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(UpgradeFault::TooLong),
        Err(_) => Err(UpgradeFault::NotHttp),
    }
}

/// Checks a complete header (RFC 6455, section 4.1).
fn judge(header: &[u8], key: &str) -> Result<(), UpgradeFault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    response.parse(header).map_err(|_| UpgradeFault::NotHttp)?;
    let status = response.code.ok_or(UpgradeFault::NotHttp)?;
    match status {
        101 => {}
        300..=399 => return Err(UpgradeFault::Redirect(status)),
        _ => return Err(UpgradeFault::Status(status)),
    }
    let values = |name: &'static str| {
        let named = response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    };
    let accepted = values("upgrade").all(|value| value.eq_ignore_ascii_case(b"websocket"))
        && values("upgrade").count() == 1
        && values("connection").any(|value| lists(value, "upgrade"))
        && values("sec-websocket-accept").eq([accept_value(key.as_bytes()).as_bytes()])
        // None was offered.
        && values("sec-websocket-extensions").next().is_none()
        && values("sec-websocket-protocol").next().is_none();
    if accepted { Ok(()) } else { Err(UpgradeFault::NotAccepted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of docs/protocol.md, section 12.
    #[test]
    fn websocket__request_has_the_specified_bytes() {
        let made = request("chat.example:8443", "/twinlock", "AAECAwQFBgcICQoLDA0ODw==");
        let expected = "GET /twinlock HTTP/1.1\r\nHost: chat.example:8443\r\n\
            User-Agent: twinlock\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n";
        assert_eq!(made, expected);
    }

    async fn answered(answer: &[u8]) -> Result<(), UpgradeFault> {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        connect(near, "chat.example", "/twinlock").await.map(drop)
    }

    #[tokio::test]
    async fn websocket__answer_other_than_101_is_named() {
        for (answer, words) in [
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "it answered HTTP 403"),
            ("HTTP/1.0 200 OK\r\nA: b\r\n\r\n", "it answered HTTP 200"),
            (
                "HTTP/1.1 302 Found\r\n\r\n",
                "it answered HTTP 302, a redirect: perhaps a login page of the network",
            ),
            ("SSH-2.0-x\r\n", "its answer is not HTTP"),
            (
                "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
                "its HTTP answer does not accept the WebSocket",
            ),
            (
                "HTTP/1.1 101",
                "the connection failed during the HTTP upgrade: the other end closed the connection",
            ),
        ] {
            let fault = answered(answer.as_bytes()).await.unwrap_err();
            assert_eq!(fault.to_string(), words, "{answer}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(2 * MAX_HTTP_HEADER));
        assert!(matches!(answered(long.as_bytes()).await, Err(UpgradeFault::TooLong)));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        assert!(matches!(answered(many.as_bytes()).await, Err(UpgradeFault::TooLong)));
    }
}
