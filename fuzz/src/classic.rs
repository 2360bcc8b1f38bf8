//! Classic connections and the origin bridge's messages: valid ones and mutations of them.

use data_encoding::BASE64;
use twinlock_core::Entropy;
use twinlock_core::classic::origin::{Bridge, MAX_MESSAGE};
use twinlock_core::classic::{ClassicScheme, Closed, Greeting, call};
use twinlock_core::keys::ClassicSecret;
use twinlock_core::limits::MAX_TEXT;
use twinlock_testing::Rng;

use crate::input::Input;

/// A client's first line is accepted only if it is valid, and names the key that it contains. A
/// line opens to its text once, in sequence and in its direction; any other line changes nothing.
pub(crate) fn classic(data: &[u8]) {
    let mut input = Input(data);
    let mut entropy = Rng::from_seed(u64::from(input.byte()));
    let line = input.part();
    if let Ok(hello) = Greeting::draw(&mut entropy).read_hello(line) {
        let (kid, nonce) = std::str::from_utf8(line).unwrap().split_once(' ').unwrap();
        assert!(hello.kid() == kid && (1..=32).contains(&kid.len()) && nonce.len() == 22);
    }
    let key = ClassicSecret::new(&[7; 32]);
    let greeting = Greeting::draw(&mut entropy);
    let (hello, mut client) =
        call("lamp", &key, greeting.line().trim_end().as_bytes(), &mut entropy).unwrap();
    let mut server = greeting.read_hello(hello.trim_end().as_bytes()).unwrap().lines(&key);
    let mut before = b"none yet".to_vec();
    for _ in 0..16 {
        if input.is_empty() {
            return;
        }
        assert!(server.open(input.part()).is_err(), "a line that was not sealed");
        assert!(server.open(&before).is_err(), "the line before once more");
        let mut text = String::from_utf8_lossy(input.part()).into_owned();
        let long = input.below(16);
        if long < 2 {
            text = "x".repeat(MAX_TEXT + usize::from(long));
        }
        let mut line = Vec::new();
        client.seal(&text, &mut entropy, &mut line);
        assert_eq!(line.pop(), Some(b'\n'));
        assert!(client.open(&line).is_err(), "a line that came back");
        let mut touched = line.clone();
        if input.change(&mut touched) {
            assert!(server.open(&touched).is_err(), "a line that was changed");
        }
        if text.len() > MAX_TEXT {
            assert_eq!(server.open(&line), Err(Closed::Text));
            return;
        }
        assert!(server.open(&line) == Ok(text));
        before = line;
        let mut answer = Vec::new();
        server.seal("ok 1 1 00", &mut entropy, &mut answer);
        answer.pop();
        assert!(server.open(&answer).is_err(), "an answer that came back");
        assert_eq!(client.open(&answer).as_deref(), Ok("ok 1 1 00"));
    }
}

/// Sixteen bytes that were drawn before.
struct Drawn([u8; 16]);

impl Entropy for Drawn {
    fn fill(&mut self, out: &mut [u8]) {
        out.copy_from_slice(&self.0);
    }
}

/// An opened text, sealed again, gives the same message to the last character. With a MAC, only
/// sealed messages open.
pub(crate) fn origin(data: &[u8]) {
    let mut input = Input(data);
    let form = [ClassicScheme::Origin, ClassicScheme::OriginHmac][usize::from(input.below(2))];
    let bridge = || Bridge::new(form, &ClassicSecret::new(&[7; 32])).unwrap();
    let (server, client) = (bridge(), bridge().reversed());
    let mut entropy = Rng::from_seed(u64::from(input.byte()));
    let text = String::from_utf8_lossy(input.part()).into_owned();
    let sealed = client.seal(&text, &mut entropy).into_bytes();
    assert!(server.open(&sealed) == Some(text));
    let mut touched = sealed;
    let changed = if input.flag() {
        // Changes the decoded bytes, so that the message is still base64.
        let mut bytes = BASE64.decode(&touched).unwrap();
        let changed = input.change(&mut bytes);
        touched = BASE64.encode(&bytes).into_bytes();
        changed
    } else {
        input.change(&mut touched)
    };
    for (message, own) in [(&touched[..], !changed), (input.rest(), false)] {
        let Some(text) = server.open(message) else {
            assert!(!own);
            continue;
        };
        assert!(own || form == ClassicScheme::Origin, "a forged MAC");
        assert!(message.len() <= MAX_MESSAGE);
        let iv = BASE64.decode(message).unwrap().first_chunk().copied().unwrap();
        assert!(client.seal(&text, &mut Drawn(iv)).as_bytes() == message);
    }
}
