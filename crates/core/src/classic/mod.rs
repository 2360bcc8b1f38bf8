//! Classic connections and the origin bridge (section 11), for devices and scripts in any language.
//!
//! Each key only permits appends to one conversation.
//!
//! A classic connection carries one JWE per line inside TLS (`jwe` implements the only format).
//! Both ends draw a nonce and derive the connection's keys from both, so that a recorded line is
//! invalid on any other connection. `seq` in the plaintext prevents replay within one connection.
//! [`Greeting`] becomes [`ClassicHello`] becomes [`ClassicChannel`]; each step consumes the one
//! before it. The origin's own format, which has no integrity protection, is in [`origin`].
//!
//! Errors are returned to the caller, for its log; the peer learns nothing about them.

mod jwe;
pub mod origin;
#[cfg(test)]
pub(crate) use jwe::tests;

use data_encoding::BASE64URL_NOPAD;
use thiserror::Error;

use crate::Entropy;
use crate::id::{ConversationId, Link};
use crate::keys::{ClassicSecret, LineKey};
use crate::limits::MAX_TEXT;
use crate::schedule;
use crate::wiped::{self, wiped};

/// Longest line, bytes without its LF. A text of 32768 bytes takes 43900.
pub const MAX_LINE: usize = 49_152;

/// Longest first line of a client, bytes: a name of 32 bytes, a blank and 22 characters.
pub const MAX_HELLO: usize = 32 + 1 + NONCE_CHARS;

/// Lines that a client may send ahead of their answers.
pub const MAX_UNANSWERED: usize = 64;

/// Characters of a nonce in base64url.
const NONCE_CHARS: usize = 22;

/// Prefix of the server's first line.
const GREETING: &str = "TLC1 ";

/// The message format of a key. Each key has one form only, so that a message of one form never
/// passes as one of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClassicScheme {
    /// JWE lines.
    Jwe,
    /// The origin bridge, without integrity protection.
    Origin,
    /// The origin bridge with a MAC, which detects changes but not replays.
    OriginHmac,
}

impl ClassicScheme {
    /// The name on the command line and in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Jwe => "jwe",
            Self::Origin => "origin",
            Self::OriginHmac => "origin-hmac",
        }
    }

    /// The number in the protocol and the record; never reused for another form.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Jwe => 1,
            Self::Origin => 2,
            Self::OriginHmac => 3,
        }
    }

    /// The form with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Jwe, Self::Origin, Self::OriginHmac].into_iter().find(|form| form.number() == number)
    }
}

/// The reason why a connection ends. For the log of the end that detected it; nothing is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Closed {
    /// Not of the form of section 11.
    #[error("a line does not have the form of protocol section 11")]
    Form,
    /// The tag is wrong: another key, or the line was changed.
    #[error("a line is not authentic")]
    Tag,
    /// Authentic, but not the next line in sequence.
    #[error("a line is out of sequence")]
    Sequence,
    /// Authentic, but not a text of at most 32768 bytes.
    #[error("a line contains no text, or too much")]
    Text,
}

/// The server's end before the client has named its key.
#[derive(Debug)]
pub struct Greeting {
    sn: [u8; 16],
}

impl Greeting {
    /// Draws the server's nonce, 16 bytes.
    pub fn draw(entropy: &mut (impl Entropy + ?Sized)) -> Self {
        let mut sn = [0; 16];
        entropy.fill(&mut sn);
        Self { sn }
    }

    /// The server's first line: `"TLC1 " base64url(sn) LF`.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{GREETING}{}\n", BASE64URL_NOPAD.encode(&self.sn))
    }

    /// Parses the client's first line, without its LF: `kid " " base64url(cn)`.
    ///
    /// # Errors
    /// [`Closed::Form`].
    pub fn read_hello(self, line: &[u8]) -> Result<ClassicHello, Closed> {
        let line = std::str::from_utf8(line).map_err(|_| Closed::Form)?;
        let (kid, cn) = line.split_once(' ').ok_or(Closed::Form)?;
        let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if !(1..=32).contains(&kid.len()) || !kid.bytes().all(inner) {
            return Err(Closed::Form);
        }
        Ok(ClassicHello { sn: self.sn, cn: nonce(cn)?, kid: kid.to_owned() })
    }
}

/// The client has named its key; nothing is proven yet.
#[derive(Debug)]
pub struct ClassicHello {
    sn: [u8; 16],
    cn: [u8; 16],
    kid: String,
}

impl ClassicHello {
    /// The key that the client claims. Not for a log: people type passwords anywhere.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The connection's two directions, for the server. Only the client's first sealed line proves
    /// that the client has the key.
    #[must_use]
    pub fn lines(self, psk: &ClassicSecret) -> ClassicChannel {
        let [c2s, s2c] =
            wiped::<{ wiped::FRAME }, _>(|| line_keys(psk, &self.sn, &self.cn, &self.kid));
        ClassicChannel { read: ChannelDirection::new(c2s), write: ChannelDirection::new(s2c) }
    }
}

/// Starts the client's end: takes the server's first line without its LF, returns its own with LF.
///
/// # Errors
/// [`Closed::Form`].
pub fn call(
    kid: &str,
    psk: &ClassicSecret,
    greeting: &[u8],
    entropy: &mut (impl Entropy + ?Sized),
) -> Result<(String, ClassicChannel), Closed> {
    let greeting = std::str::from_utf8(greeting).map_err(|_| Closed::Form)?;
    let sn = nonce(greeting.strip_prefix(GREETING).ok_or(Closed::Form)?)?;
    let mut cn = [0; 16];
    entropy.fill(&mut cn);
    let [c2s, s2c] = line_keys(psk, &sn, &cn, kid);
    let line = format!("{kid} {}\n", BASE64URL_NOPAD.encode(&cn));
    Ok((
        line,
        ClassicChannel { read: ChannelDirection::new(s2c), write: ChannelDirection::new(c2s) },
    ))
}

fn nonce(text: &str) -> Result<[u8; 16], Closed> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| Closed::Form)?;
    bytes.try_into().map_err(|_| Closed::Form)
}

/// `K_dir = HMAC-SHA-512(psk, "tlc1 " || dir || sn || cn || kid)`, for "c2s" and "s2c".
pub(crate) fn line_keys(
    psk: &ClassicSecret,
    sn: &[u8; 16],
    cn: &[u8; 16],
    kid: &str,
) -> [LineKey; 2] {
    ["c2s", "s2c"].map(|dir| {
        let parts = [schedule::CLASSIC_LINE, dir.as_bytes(), sn, cn, kid.as_bytes()];
        LineKey::new(&schedule::hmac_512(psk.expose_secret(), &parts))
    })
}

/// One direction: its key, and the next sequence number.
#[derive(Debug)]
struct ChannelDirection {
    key: LineKey,
    seq: u64,
}

impl ChannelDirection {
    fn new(key: LineKey) -> Self {
        Self { key, seq: 0 }
    }
}

/// Both directions of a classic connection, at either end.
#[derive(Debug)]
pub struct ClassicChannel {
    read: ChannelDirection,
    write: ChannelDirection,
}

impl ClassicChannel {
    /// Opens the next line, given without its LF.
    ///
    /// # Errors
    /// [`Closed`]; nothing has changed then, and the connection must end.
    pub fn open(&mut self, line: &[u8]) -> Result<String, Closed> {
        let plain = wiped::<{ wiped::FRAME }, _>(|| jwe::open(&self.read.key, line))?;
        let due = format!("{} ", self.read.seq);
        let text = plain.strip_prefix(due.as_bytes()).ok_or(Closed::Sequence)?;
        let text = std::str::from_utf8(text).map_err(|_| Closed::Text)?;
        if text.len() > MAX_TEXT {
            return Err(Closed::Text);
        }
        self.read.seq += 1;
        Ok(text.to_owned())
    }

    /// The keys of the reading and the writing direction, for tests that search memory for leaked
    /// keys.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn expose_keys(&self) -> [zeroize::Zeroizing<[u8; 64]>; 2] {
        [&self.read, &self.write]
            .map(|direction| zeroize::Zeroizing::new(*direction.key.expose_secret()))
    }

    /// Appends the next line, with its LF, to `out`. Draws 16 bytes. The caller limits texts to
    /// 32768 bytes.
    pub fn seal(&mut self, text: &str, entropy: &mut (impl Entropy + ?Sized), out: &mut Vec<u8>) {
        let mut iv = [0; 16];
        entropy.fill(&mut iv);
        let plain = format!("{} {text}", self.write.seq);
        self.write.seq += 1;
        wiped::<{ wiped::FRAME }, _>(|| jwe::seal(&self.write.key, &iv, plain.as_bytes(), out));
        out.push(b'\n');
    }
}

/// The text of an answer: `ok CONVERSATION N LINK`.
#[must_use]
pub fn answer(conversation: ConversationId, n: u64, link: &Link) -> String {
    format!("ok {conversation} {n} {link}")
}

#[cfg(test)]
mod laws {
    use super::*;
    use crate::id::Name;
    use crate::keys::ClassicRoot;
    use crate::test_entropy::Seeded;

    fn ends(psk: &ClassicSecret, entropy: &mut Seeded) -> (ClassicChannel, ClassicChannel) {
        let greeting = Greeting::draw(entropy);
        let (hello, client) =
            call("lamp", psk, greeting.line().trim_end().as_bytes(), entropy).unwrap();
        let hello = greeting.read_hello(hello.trim_end().as_bytes()).unwrap();
        assert_eq!(hello.kid(), "lamp");
        (hello.lines(psk), client)
    }

    fn sealed(from: &mut ClassicChannel, text: &str, entropy: &mut Seeded) -> Vec<u8> {
        let mut line = Vec::new();
        from.seal(text, entropy, &mut line);
        assert_eq!(line.pop(), Some(b'\n'));
        line
    }

    #[test]
    fn classic__message_is_bound_to_position_direction_connection() {
        let (psk, rng) = (ClassicSecret::new(&[7; 32]), &mut Seeded(0));
        let (mut server, mut client) = ends(&psk, rng);
        let (mut other, mut also) = ends(&psk, rng);
        let [a, b, c] = ["", "b", "Grüße ☃"].map(|text| sealed(&mut client, text, rng));
        assert_eq!(server.open(&b), Err(Closed::Sequence));
        assert_eq!(server.open(&a).as_deref(), Ok(""));
        assert_eq!(server.open(&a), Err(Closed::Sequence));
        assert_eq!(server.open(&c), Err(Closed::Sequence));
        // These attempts have not changed the state.
        assert_eq!(server.open(&b).as_deref(), Ok("b"));
        assert_eq!(server.open(&c).as_deref(), Ok("Grüße ☃"));
        // Invalid for its own sender, and on another connection.
        assert_eq!(client.open(&a), Err(Closed::Tag));
        assert_eq!(other.open(&a), Err(Closed::Tag));
        let answer = sealed(&mut server, "ok", rng);
        assert_eq!(also.open(&answer), Err(Closed::Tag));
        assert_eq!(client.open(&answer).as_deref(), Ok("ok"));
    }

    #[test]
    fn classic__other_key_or_name_is_rejected() {
        let rng = &mut Seeded(0);
        let (_, mut client) = ends(&ClassicSecret::new(&[7; 32]), rng);
        let line = sealed(&mut client, "x", rng);
        // The nonces of `ends`: the server's is drawn first.
        let (mut sn, mut cn) = ([0; 16], [0; 16]);
        let again = &mut Seeded(0);
        again.fill(&mut sn);
        again.fill(&mut cn);
        for (kid, psk) in [("lamp", [8; 32]), ("lamb", [7; 32])] {
            let hello = ClassicHello { sn, cn, kid: kid.to_owned() };
            assert_eq!(hello.lines(&ClassicSecret::new(&psk)).open(&line), Err(Closed::Tag));
        }
        let hello = ClassicHello { sn, cn, kid: "lamp".to_owned() };
        assert!(hello.lines(&ClassicSecret::new(&[7; 32])).open(&line).is_ok());
    }

    #[test]
    fn classic__changed_truncated_or_extended_message_is_rejected() {
        let rng = &mut Seeded(0);
        let (mut server, mut client) = ends(&ClassicSecret::new(&[7; 32]), rng);
        let line = sealed(&mut client, "sixteen bytes ..", rng);
        for i in 0..line.len() {
            for byte in [b'A', b'.', b'=', b'+', b' ', b'\r', 0, 0xff, line[i] ^ 1] {
                let mut changed = line.clone();
                changed[i] = byte;
                assert!(changed == line || server.open(&changed).is_err(), "{i} {byte}");
            }
            assert!(server.open(&line[..i]).is_err(), "cut at {i}");
        }
        for more in [&b"."[..], b"=", b"\r", b"A", b"AA"] {
            assert!(server.open(&[&line[..], more].concat()).is_err(), "{more:?}");
        }
        assert!(server.open(&line).is_ok());
    }

    #[test]
    fn classic__text_over_maximum_length_is_rejected() {
        let rng = &mut Seeded(0);
        let (mut server, mut client) = ends(&ClassicSecret::new(&[7; 32]), rng);
        let longest = "x".repeat(MAX_TEXT);
        let line = sealed(&mut client, &longest, rng);
        assert!(line.len() <= MAX_LINE);
        assert_eq!(server.open(&line), Ok(longest));
        let line = sealed(&mut client, &"x".repeat(MAX_TEXT + 1), rng);
        assert_eq!(server.open(&line), Err(Closed::Text));
    }

    #[test]
    fn classic__malformed_first_message_is_rejected() {
        let cn = BASE64URL_NOPAD.encode(&[2; 16]);
        let read_hello =
            |line: &str| Greeting::draw(&mut Seeded(0)).read_hello(line.as_bytes()).map(drop);
        for good in ["a", "-", "lamp.kitchen-2", &"a".repeat(32)] {
            assert_eq!(read_hello(&format!("{good} {cn}")), Ok(()), "{good}");
        }
        for bad in [
            String::new(),
            "lamp".into(),
            format!(" {cn}"),
            format!("Lamp {cn}"),
            format!("lamp  {cn}"),
            format!("lamp {cn}\r"),
            format!("lamp {cn}="),
            format!("lamp {cn}A"),
            format!("lamp {}", &cn[1..]),
            // Bits beyond the sixteenth byte.
            format!("lamp {}h", &cn[..21]),
            format!("lämp {cn}"),
            format!("{} {cn}", "a".repeat(33)),
        ] {
            assert_eq!(read_hello(&bad), Err(Closed::Form), "{bad}");
        }
    }

    #[test]
    fn classic__key_depends_on_root_name_and_salt() {
        let root = |byte| ClassicRoot::new(&[byte; 32]);
        let key = |root: &ClassicRoot, name: &str, salt: u8| {
            *root.key(&Name::new(name).unwrap(), &[salt; 32]).expose_secret()
        };
        let lamp = key(&root(1), "lamp", 1);
        assert_eq!(lamp, key(&root(1), "lamp", 1));
        for other in [key(&root(2), "lamp", 1), key(&root(1), "lamb", 1), key(&root(1), "lamp", 2)]
        {
            assert_ne!(lamp, other);
        }
    }

    #[test]
    fn classic__imported_key_is_bound_to_root_name_and_salt() {
        let (root, name) = (ClassicRoot::new(&[1; 32]), Name::new("old").unwrap());
        let key = ClassicSecret::new(&[9; 32]);
        let sealed = root.seal_imported(&name, &[3; 32], &key);
        assert_ne!(sealed, [9; 32]);
        assert_eq!(root.open_imported(&name, &[3; 32], &sealed).expose_secret(), &[9; 32]);
        // The pad differs from a key that the server creates.
        let zero = ClassicSecret::new(&[0; 32]);
        let pad = root.seal_imported(&name, &[3; 32], &zero);
        assert_ne!(&pad, root.key(&name, &[3; 32]).expose_secret());
        for other in [
            ClassicRoot::new(&[2; 32]).open_imported(&name, &[3; 32], &sealed),
            root.open_imported(&Name::new("older").unwrap(), &[3; 32], &sealed),
            root.open_imported(&name, &[4; 32], &sealed),
        ] {
            assert_ne!(other.expose_secret(), &[9; 32]);
        }
    }
}
