//! Invite links and the eight server words (section 2).
//!
//! An invite link establishes first trust. It names the server by its OPAQUE key, so that no
//! attacker in between can impersonate the server, and it carries a one-time secret. It is itself a
//! secret.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::BASE64URL_NOPAD;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::id::{InviteId, ServerKey, TlsPin};
use crate::keys::InviteSecret;
use crate::schedule;

const SCHEME: &str = "twinlock://";
const VERSION: u8 = 1;
const FLAG_PIN: u8 = 1;
const FLAG_PROXY: u8 = 2;
/// Bytes of version, flags, id, secret and server key.
const BODY: usize = 1 + 1 + 8 + 16 + 32;
const CHECKSUM: usize = 4;

/// The path of the WebSocket in an address without one.
pub const DEFAULT_PATH: &str = "/twinlock";

/// Longest path, bytes.
const MAX_PATH: usize = 128;

/// A server's address in invite links and profiles: a host, a port and the path of its WebSocket.
///
/// The host is a DNS name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    host: Box<str>,
    port: u16,
    /// `None`: [`DEFAULT_PATH`].
    path: Option<Box<str>>,
}

impl Address {
    /// Validates a host, IPv6 in brackets or bare, and a port.
    ///
    /// # Errors
    /// [`BadLink::Form`] if the host is neither a name nor an address, or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, BadLink> {
        if port == 0 {
            return Err(BadLink::Form);
        }
        if is_v6(host) {
            return Ok(Self { host: format!("[{host}]").into(), port, path: None });
        }
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let good = match bracketed {
            Some(inner) => is_v6(inner),
            None => is_name(host) || host.parse::<Ipv4Addr>().is_ok(),
        };
        if good { Ok(Self { host: host.into(), port, path: None }) } else { Err(BadLink::Form) }
    }

    /// The same host and port with another path.
    ///
    /// # Errors
    /// [`BadLink::Form`] unless it has 1 to 128 bytes, and is `/` and a name, repeatedly. A name
    /// consists of letters, digits, `-`, `_`, `.` and `~`, and is neither `.` nor `..`.
    pub fn with_path(self, path: &str) -> Result<Self, BadLink> {
        if !is_path(path) {
            return Err(BadLink::Form);
        }
        Ok(Self { path: (path != DEFAULT_PATH).then(|| path.into()), ..self })
    }

    /// Another host and port with the same path.
    ///
    /// # Errors
    /// As [`Address::new`].
    pub fn moved(&self, host: &str, port: u16) -> Result<Self, BadLink> {
        Ok(Self { path: self.path.clone(), ..Self::new(host, port)? })
    }

    /// Parses `HOST:PORT` or `HOST:PORT/PATH`; a missing port becomes `default_port`, if given.
    ///
    /// Without a default port an address has one spelling: the default path is left out.
    ///
    /// # Errors
    /// [`BadLink::Form`].
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, BadLink> {
        let (authority, path) = match text.find('/') {
            Some(at) => text.split_at_checked(at).ok_or(BadLink::Form)?,
            None => return Self::parse_authority(text, default_port),
        };
        if default_port.is_none() && path == DEFAULT_PATH {
            return Err(BadLink::Form);
        }
        Self::parse_authority(authority, default_port)?.with_path(path)
    }

    fn parse_authority(text: &str, default_port: Option<u16>) -> Result<Self, BadLink> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                // A number has one spelling: no sign, no leading zeros.
                let digits = !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
                let port = port.parse().ok().filter(|_| digits).ok_or(BadLink::Form)?;
                (host, port)
            }
            _ => (text, default_port.ok_or(BadLink::Form)?),
        };
        Self::new(host, port)
    }

    /// The host, IPv6 in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host as resolvers and certificates use it, IPv6 without brackets.
    #[must_use]
    pub fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path of the WebSocket, which begins with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(DEFAULT_PATH)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.host, self.port, self.path.as_deref().unwrap_or_default())
    }
}

/// Characters that need no escape in a URL, and no segment that a proxy would resolve.
fn is_path(path: &str) -> bool {
    let name = |name: &str| {
        !matches!(name, "" | "." | "..")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b))
    };
    path.len() <= MAX_PATH && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(name))
}

fn is_name(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

/// A decoded invite link.
pub struct InviteLink {
    /// The server's address.
    pub address: Address,
    /// The invite's id.
    pub id: InviteId,
    /// The invite's one-time secret.
    pub secret: InviteSecret,
    /// The server's key.
    pub server_key: ServerKey,
    /// The TLS key to accept; `None`: a certificate authority vouches for it.
    pub tls_pin: Option<TlsPin>,
    /// A proxy in front of the server terminates TLS.
    pub proxy: bool,
}

/// An IPv6 address, which may have a scope as in `fe80::1%eth0`.
fn is_v6(host: &str) -> bool {
    let (address, scope) = host.split_once('%').unwrap_or((host, "0"));
    // Linux limits the name of an interface to 15 bytes.
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=15).contains(&scope.len())
        && scope.chars().all(good)
        && address.parse::<Ipv6Addr>().is_ok()
}

/// The reason why an invite link is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadLink {
    /// Not of the form `twinlock://host:port/path#...`.
    #[error("not an invite link; one looks like twinlock://host:port/#...")]
    Form,
    /// Not base64url, or truncated.
    #[error("the invite link is damaged or truncated; copy all of it")]
    Encoding,
    /// Too long or too short for its flags.
    #[error("the invite link is incomplete; copy all of it")]
    Length,
    /// The checksum does not match.
    #[error("the invite link contains a typo: its checksum does not match")]
    Checksum,
    /// Created by a later version.
    #[error("the invite link is of version {0}, this program knows version 1; update it")]
    Version(u8),
    /// Unknown flags, set by a later version.
    #[error("the invite link requires a feature that this program does not know; update it")]
    Flags,
}

impl InviteLink {
    /// Parses an invite link; the caller trims surrounding white space.
    ///
    /// # Errors
    /// [`BadLink`].
    pub fn parse(link: &str) -> Result<Self, BadLink> {
        let rest = link.strip_prefix(SCHEME).ok_or(BadLink::Form)?;
        let (address, payload) = rest.split_once('#').ok_or(BadLink::Form)?;
        let address = match address.strip_suffix('/') {
            Some(authority) => Address::parse_authority(authority, None)?,
            None if address.contains('/') => Address::parse(address, None)?,
            None => return Err(BadLink::Form),
        };
        if payload.is_empty() {
            return Err(BadLink::Form);
        }
        let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| BadLink::Encoding)?;
        let payload = Zeroizing::new(payload);
        Self::decode(address, &payload)
    }

    fn decode(address: Address, payload: &[u8]) -> Result<Self, BadLink> {
        let (body, checksum) = payload.split_last_chunk::<CHECKSUM>().ok_or(BadLink::Length)?;
        let (&[version, flags], rest) = body.split_first_chunk().ok_or(BadLink::Length)?;
        if version != VERSION {
            return Err(BadLink::Version(version));
        }
        let pinned = flags & FLAG_PIN != 0;
        if body.len() != BODY + if pinned { 32 } else { 0 } {
            return Err(BadLink::Length);
        }
        if schedule::hash(&[body]).first_chunk() != Some(checksum) {
            return Err(BadLink::Checksum);
        }
        if flags & !(FLAG_PIN | FLAG_PROXY) != 0 {
            return Err(BadLink::Flags);
        }
        let (id, rest) = rest.split_first_chunk().ok_or(BadLink::Length)?;
        let (secret, rest) = rest.split_first_chunk().ok_or(BadLink::Length)?;
        let (server_key, rest) = rest.split_first_chunk().ok_or(BadLink::Length)?;
        Ok(Self {
            address,
            id: InviteId(*id),
            secret: InviteSecret::new(secret),
            server_key: ServerKey(*server_key),
            tls_pin: TlsPin::from_slice(rest),
            proxy: flags & FLAG_PROXY != 0,
        })
    }

    /// The invite link as text.
    ///
    /// It is a secret: show it to the person who requested it, write it to a file of mode 0600,
    /// never log it.
    #[must_use]
    pub fn to_link(&self) -> Zeroizing<String> {
        let flags = if self.tls_pin.is_some() { FLAG_PIN } else { 0 }
            | if self.proxy { FLAG_PROXY } else { 0 };
        let pin = self.tls_pin.as_ref().map_or(&[][..], |pin| &pin.0);
        let body = Zeroizing::new(
            [
                &[VERSION, flags][..],
                &self.id.0,
                self.secret.expose_secret(),
                &self.server_key.0,
                pin,
            ]
            .concat(),
        );
        let [a, b, c, d, ..] = schedule::hash(&[&body]);
        let payload = Zeroizing::new([&body[..], &[a, b, c, d]].concat());
        let slash = if self.address.path.is_none() { "/" } else { "" };
        let head = format!("{SCHEME}{}{slash}#", self.address);
        // Allocated once, so that growth leaves no unwiped copy; with room for a line end.
        let len = head.len() + BASE64URL_NOPAD.encode_len(payload.len());
        let mut link = Zeroizing::new(String::with_capacity(len + 1));
        link.push_str(&head);
        BASE64URL_NOPAD.encode_append(&payload, &mut link);
        link
    }
}

impl fmt::Debug for InviteLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteLink({}, {}, ..)", self.address, self.id)
    }
}

/// The BIP 39 English list: 2048 words, one per line.
static WORD_LIST: &str = include_str!("../data/bip39-english.txt");

/// The eight server words, which people read to each other to compare server keys.
///
/// The first 88 bits of `H("tl1 words" || server_key)` as eight indices into the BIP 39 English
/// list.
#[must_use]
pub fn server_words(key: &ServerKey) -> String {
    let hash = schedule::hash(&[schedule::WORDS, &key.0]);
    let bit = |i: usize| hash.get(i / 8).is_some_and(|byte| byte >> (7 - i % 8) & 1 == 1);
    let words: Vec<&str> = (0..8)
        .map(|w| (0..11).fold(0, |place, b| place << 1 | usize::from(bit(11 * w + b))))
        .map(|place| WORD_LIST.lines().nth(place).unwrap_or_default())
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address__missing_port_uses_default_and_malformed_is_refused() {
        let parse = |text| Address::parse(text, Some(8443)).map(|a| a.to_string());
        assert_eq!(parse("example.org").as_deref(), Ok("example.org:8443"));
        assert_eq!(parse("example.org:1").as_deref(), Ok("example.org:1"));
        assert_eq!(parse("::1").as_deref(), Ok("[::1]:8443"));
        assert_eq!(parse("[::1]:99").as_deref(), Ok("[::1]:99"));
        assert_eq!(parse("fe80::1%2").as_deref(), Ok("[fe80::1%2]:8443"));
        assert_eq!(parse("[fe80::1%br-0.5]:99").as_deref(), Ok("[fe80::1%br-0.5]:99"));
        for bad in ["::1%", "::1%/b", "::1%0123456789abcdef", "1.2.3.4%2", "a%2"] {
            assert_eq!(parse(bad), Err(BadLink::Form), "{bad}");
        }
        for bad in ["", ":1", "a b", "a:", "a:+1", "[::1", "a/", "-a", "a..b", "a:65536", "a:01"] {
            assert_eq!(parse(bad), Err(BadLink::Form), "{bad}");
        }
    }

    #[test]
    fn address__path_is_plain_and_default_is_left_out() {
        let strict = |text| Address::parse(text, None).map(|a| a.to_string());
        assert_eq!(strict("a:1/b/c-d.e_f~1").as_deref(), Ok("a:1/b/c-d.e_f~1"));
        assert_eq!(strict("[::1]:1/b").as_deref(), Ok("[::1]:1/b"));
        assert_eq!(Address::parse("a:1", None).unwrap().path(), "/twinlock");
        assert_eq!(strict("a:1/twinlock"), Err(BadLink::Form));
        let lenient = |text| Address::parse(text, Some(8443)).map(|a| a.to_string());
        assert_eq!(lenient("a/twinlock").as_deref(), Ok("a:8443"));
        assert_eq!(lenient("a/b").as_deref(), Ok("a:8443/b"));
        assert_eq!(lenient("a:1/twinlock/b").as_deref(), Ok("a:1/twinlock/b"));
        let long = format!("a:1/{}", "x".repeat(MAX_PATH));
        for bad in [
            "a:1/",
            "a:1//",
            "a:1/b/",
            "a:1/b?c",
            "a:1/b#c",
            "a:1/../b",
            "a:1/.",
            "a:1/%41",
            "a:1/b c",
            "a:1/\u{e9}",
            "/b",
            long.as_str(),
        ] {
            assert_eq!(strict(bad), Err(BadLink::Form), "{bad}");
        }
        let address = Address::parse("a:1/b", None).unwrap();
        assert_eq!(address.moved("c", 2).unwrap().to_string(), "c:2/b");
    }

    #[test]
    fn invite_link__debug_shows_no_secret() {
        let link = InviteLink {
            address: Address::new("example.org", 1).unwrap(),
            id: InviteId([1; 8]),
            secret: InviteSecret::new(&[0x41; 16]),
            server_key: ServerKey([2; 32]),
            tls_pin: None,
            proxy: false,
        };
        assert_eq!(format!("{link:?}"), "InviteLink(example.org:1, 0101010101010101, ..)");
    }
}
