//! Proxies on the way out: HTTP CONNECT (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928, 1929).
//!
//! Both get the name of the server, so it is resolved at the proxy. The proxy is reached over plain
//! TCP; TLS runs through it to the other end.

use std::fmt;
use std::io;

use data_encoding::BASE64;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_socks::tcp::Socks5Stream;
use zeroize::Zeroizing;

/// Maximum length of the answer to CONNECT in bytes.
const MAX_ANSWER: usize = 8 * 1024;
/// Maximum number of fields of the answer.
const MAX_FIELDS: usize = 64;

/// How a proxy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// HTTP CONNECT.
    Http,
    /// SOCKS5, with the name of the server.
    Socks5,
}

impl fmt::Display for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Socks5 => "socks5",
        })
    }
}

/// A user name and password for a proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyLogin {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for ProxyLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyLogin").finish_non_exhaustive()
    }
}

/// Why a proxy opens no connection to the server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProxyFault {
    /// It wants a user name and password, or others than those it got.
    #[error("it wants a user name and password (it answered HTTP 407)")]
    WantsLogin {
        /// The names of the schemes that it accepts, such as `Basic` or `NTLM`.
        schemes: Vec<String>,
    },
    /// It wants a user name and password (SOCKS5).
    #[error("it wants a user name and password")]
    WantsSocksLogin,
    /// It refused the user name and password (SOCKS5).
    #[error("it refused the user name and password")]
    LoginRefused,
    /// It answered with another status.
    #[error("it answered HTTP {0}")]
    Status(u16),
    /// Its answer is not HTTP.
    #[error("its answer is not HTTP")]
    NotHttp,
    /// The header of its answer is longer than 8 KiB.
    #[error("its HTTP answer is too long")]
    TooLong,
    /// It sent bytes of the server before the server got any.
    #[error("it sent data before the connection began")]
    Early,
    /// Its answer is not SOCKS5, or names a failure.
    #[error("{0}")]
    Socks(String),
    /// The connection to it failed or ended.
    #[error("the connection to it failed: {}", crate::io_words(.0))]
    Io(#[from] io::Error),
}

/// Asks a proxy for a connection to a server, and returns the stream, which leads there. `host` is
/// a name or an address, an IPv6 address in brackets. Sets no timeout.
///
/// # Errors
/// [`ProxyFault`].
pub async fn tunnel<S>(
    io: S,
    protocol: ProxyProtocol,
    login: Option<&ProxyLogin>,
    (host, port): (&str, u16),
) -> Result<S, ProxyFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match protocol {
        ProxyProtocol::Http => connect(io, login, host, port).await,
        ProxyProtocol::Socks5 => socks(io, login, host, port).await,
    }
}

async fn connect<S>(
    mut io: S,
    login: Option<&ProxyLogin>,
    host: &str,
    port: u16,
) -> Result<S, ProxyFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    io.write_all(request(login, host, port).as_bytes()).await?;
    io.flush().await?;
    let mut answer = Vec::new();
    let end = loop {
        if let Some(end) = judge(&answer)? {
            break end;
        }
        if answer.len() >= MAX_ANSWER {
            return Err(ProxyFault::TooLong);
        }
        if (&mut io).take(MAX_ANSWER as u64).read_buf(&mut answer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };
    // TLS begins with the client.
    if answer.len() > end { Err(ProxyFault::Early) } else { Ok(io) }
}

fn request(login: Option<&ProxyLogin>, host: &str, port: u16) -> Zeroizing<String> {
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(ProxyLogin { user, password }) = login {
        let pair = Zeroizing::new(format!("{user}:{}", password.as_str()));
        request += "Proxy-Authorization: Basic ";
        request += Zeroizing::new(BASE64.encode(pair.as_bytes())).as_str();
        request += "\r\n";
    }
    request += "\r\n";
    Zeroizing::new(request)
}

/// The length of the answer's header, once it is complete and agrees.
fn judge(answer: &[u8]) -> Result<Option<usize>, ProxyFault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let end = match response.parse(answer) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(ProxyFault::TooLong),
        Err(_) => return Err(ProxyFault::NotHttp),
    };
    match response.code.unwrap_or_default() {
        200..=299 => Ok(Some(end)),
        407 => Err(ProxyFault::WantsLogin { schemes: schemes(response.headers) }),
        status => Err(ProxyFault::Status(status)),
    }
}

/// The schemes of Proxy-Authenticate, one from each field: real proxies send a field for each.
fn schemes(fields: &[httparse::Header<'_>]) -> Vec<String> {
    let named = fields.iter().filter(|f| f.name.eq_ignore_ascii_case("proxy-authenticate"));
    let schemes = named.map(|field| {
        let scheme = field.value.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
        String::from_utf8_lossy(scheme.into_iter().next().unwrap_or_default()).into_owned()
    });
    schemes.filter(|scheme| !scheme.is_empty()).collect()
}

async fn socks<S>(io: S, login: Option<&ProxyLogin>, host: &str, port: u16) -> Result<S, ProxyFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = match login {
        None => Socks5Stream::connect_with_socket(io, (host, port)).await,
        Some(ProxyLogin { user, password }) => {
            Socks5Stream::connect_with_password_and_socket(io, (host, port), user, password).await
        }
    };
    stream.map(Socks5Stream::into_inner).map_err(|error| match error {
        tokio_socks::Error::Io(error) => error.into(),
        tokio_socks::Error::PasswordAuthFailure(_) => ProxyFault::LoginRefused,
        tokio_socks::Error::NoAcceptableAuthMethods => ProxyFault::WantsSocksLogin,
        other => ProxyFault::Socks(other.to_string().to_lowercase()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &[u8]) -> Result<(), ProxyFault> {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        tunnel(near, ProxyProtocol::Http, None, ("chat.example", 7443)).await.map(drop)
    }

    #[test]
    fn connect__request_names_the_server_and_the_login() {
        let plain = request(None, "[2001:db8::1]", 7443);
        let head = "CONNECT [2001:db8::1]:7443 HTTP/1.1\r\nHost: [2001:db8::1]:7443\r\n";
        assert_eq!(plain.as_str(), format!("{head}\r\n"));
        let password = Zeroizing::new("open sesame".to_owned());
        let login = ProxyLogin { user: "aladdin".to_owned(), password };
        assert_eq!(
            request(Some(&login), "[2001:db8::1]", 7443).as_str(),
            format!("{head}Proxy-Authorization: Basic YWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n")
        );
        assert!(!format!("{login:?}").contains("aladdin"));
    }

    #[tokio::test]
    async fn connect__answer_other_than_success_is_named() {
        answered(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await.unwrap();
        for (answer, words) in [
            (
                "HTTP/1.1 407 Auth\r\nProxy-Authenticate: NTLM\r\n\r\n",
                "it wants a user name and password (it answered HTTP 407)",
            ),
            ("HTTP/1.0 403 Forbidden\r\n\r\n", "it answered HTTP 403"),
            ("\x05\x00", "its answer is not HTTP"),
            ("HTTP/1.1 200 OK\r\n\r\n\x16\x03", "it sent data before the connection began"),
            ("HTTP/1.1 200", "the connection to it failed: the other end closed the connection"),
        ] {
            let fault = answered(answer.as_bytes()).await.unwrap_err();
            assert_eq!(fault.to_string(), words, "{answer}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(2 * MAX_ANSWER));
        assert!(matches!(answered(long.as_bytes()).await, Err(ProxyFault::TooLong)));
        let wants = "HTTP/1.1 407 Auth\r\nProxy-Authenticate: NTLM\r\n\
            proxy-authenticate: Basic realm=\"x\"\r\n\r\n";
        let fault = answered(wants.as_bytes()).await.unwrap_err();
        let ProxyFault::WantsLogin { schemes } = fault else { panic!("{fault}") };
        assert_eq!(schemes, ["NTLM", "Basic"]);
    }
}
