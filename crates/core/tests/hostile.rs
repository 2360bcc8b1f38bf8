//! Tests every decoder with malformed input: nothing panics, and accepted input is encoded back
//! unchanged.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use twinlock_core::Entropy;
use twinlock_core::classic::origin::Bridge;
use twinlock_core::classic::{ClassicScheme, Greeting, call};
use twinlock_core::credential::{Credential, Password};
use twinlock_core::frame::{CHALLENGE, CloseCode, Due, ErrorCode, HEADER, Header, KE3};
use twinlock_core::handshake::{AwaitChallenge, Enrolment, Hello, HelloFault, self_register};
use twinlock_core::id::{
    CredentialId, DeviceId, InviteId, MessageId, Name, Sender, ServerKey, TlsPin,
};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::keys::{ClassicSecret, DeviceSecret, InviteSecret};
use twinlock_core::opaque::{RECORD, RESPONSE, SETUP, ServerSetup};
use twinlock_core::proto;
use twinlock_core::text::{Untrusted, harmless_json};

struct Os;

impl Entropy for Os {
    fn fill(&mut self, out: &mut [u8]) {
        getrandom::fill(out).unwrap();
    }
}

struct ZeroEntropy;

impl Entropy for ZeroEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(0);
    }
}

/// A client's first line with a nonce of zeros.
const CLASSIC_HELLO: &[u8] = b"lamp AAAAAAAAAAAAAAAAAAAAAA";

/// The next line of a classic connection whose random draws are all zero; always the same.
fn classic_line() -> Vec<u8> {
    let greeting = Greeting::draw(&mut ZeroEntropy).line();
    let key = ClassicSecret::new(&[7; 32]);
    let (hello, mut lines) =
        call("lamp", &key, greeting.trim_end().as_bytes(), &mut ZeroEntropy).unwrap();
    assert_eq!(hello.trim_end().as_bytes(), CLASSIC_HELLO);
    let mut line = Vec::new();
    lines.seal("the line that is due", &mut ZeroEntropy, &mut line);
    line.pop();
    line
}

fn device() -> Credential {
    Credential::Device(DeviceId([1; 16]), DeviceSecret::new(&[2; 32]))
}

/// A valid input with a few bytes changed, cut or added; it gets further than random bytes.
fn mangled(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = good.len();
    let changes = vec((0..len, any::<u8>()), 0..4);
    let end = prop_oneof![4 => Just(len), 1 => 0..=len, 1 => len..len + 40];
    (Just(good), changes, end).prop_map(|(mut bytes, changes, end)| {
        for (at, to) in changes {
            bytes[at] = to;
        }
        bytes.resize(end, 0xa5);
        bytes
    })
}

fn hello() -> Vec<u8> {
    AwaitChallenge::start(device(), None, &mut Os).unwrap().1[HEADER..].to_vec()
}

fn link() -> String {
    let link = InviteLink {
        address: Address::new("chat.example.org", 8443).unwrap(),
        id: InviteId([1; 8]),
        secret: InviteSecret::new(&[2; 16]),
        server_key: ServerKey([3; 32]),
        tls_pin: Some(TlsPin([4; 32])),
        proxy: true,
    };
    link.to_link().to_string()
}

#[test]
fn generated_input__unmodified_samples_are_valid() {
    assert!(Hello::parse(&hello()).is_ok());
    assert!(InviteLink::parse(&link()).is_ok());
}

#[test]
fn hello__length_and_version_errors_match_section_4() {
    let good = hello();
    let mut answered = 0;
    for len in 1..1400 {
        for version in [0, 1, 2, 255] {
            let mut bytes = good.clone();
            bytes.resize(len, 0);
            bytes[0] = version;
            let fault = Hello::parse(&bytes).err();
            let expected = match version {
                1 if len == good.len() => None,
                1 if (1285..=1316).contains(&len) => Some(HelloFault::Answer(ErrorCode::Malformed)),
                1 => Some(HelloFault::Length(len)),
                _ => Some(HelloFault::Answer(ErrorCode::Version(1))),
            };
            assert_eq!(fault, expected, "version {version}, {len} bytes");
            answered += usize::from(matches!(expected, Some(HelloFault::Answer(_))));
        }
    }
    assert_eq!(answered, 3 * 1399 + 31);
    assert_eq!(Hello::parse(&[]).err(), Some(HelloFault::Length(0)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn frame__accepted_header_round_trips(bytes in any::<[u8; HEADER]>()) {
        for due in [Due::Hello, Due::Challenge, Due::Proof, Due::FirstSealed, Due::Session] {
            match Header::parse(bytes, due) {
                Ok(header) => prop_assert_eq!(header.to_bytes(), bytes),
                Err(bad) => prop_assert_eq!((bad.frame, bad.due), (bytes[0], due)),
            }
        }
    }

    #[test]
    fn frame__error_and_close_codes_round_trip(payload in any::<[u8; 3]>(), code in any::<u16>()) {
        let known = matches!(payload[0], 1..=4);
        let frame = ErrorCode::parse(payload).to_frame();
        prop_assert_eq!(frame[HEADER], payload[0]);
        if known && (payload[0] == 2 || payload[1..] == [0, 0]) {
            prop_assert_eq!(&frame[HEADER..], payload);
        }
        prop_assert_eq!(CloseCode::from_number(code).number(), code);
    }

    #[test]
    fn hello__modified_is_refused_or_keeps_credential_id(bytes in mangled(hello())) {
        if let Ok(parsed) = Hello::parse(&bytes) {
            let id = &bytes[4..][..usize::from(bytes[3])];
            let cid = [&bytes[2..3], id].concat();
            prop_assert_eq!(parsed.credential().cid(), cid);
            let setup = ServerSetup::generate(&mut Os);
            prop_assert!(parsed.challenge(&setup, None, &mut Os).is_ok());
        }
    }

    #[test]
    fn hello__random_bytes_are_refused(bytes in vec(any::<u8>(), 0..1400)) {
        prop_assert!(Hello::parse(&bytes).is_err());
    }

    #[test]
    fn invite_link__modified_is_refused_or_round_trips(bytes in mangled(link().into_bytes())) {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(parsed) = InviteLink::parse(&text) {
            assert_eq!(parsed.to_link().as_str(), text);
        }
    }

    #[test]
    fn invite_link__random_text_refused_and_address_round_trips(
        text in any::<String>(),
        host in "[a-z0-9.:\\[\\]%-]{0,12}",
        port in "[0-9+ -]{0,6}",
    ) {
        prop_assert!(InviteLink::parse(&text).is_err());
        let _any = Address::parse(&text, Some(1));
        let typed = format!("{host}:{port}");
        if let Ok(address) = Address::parse(&typed, None) {
            prop_assert_eq!(address.to_string(), typed);
        }
        if let Ok(address) = Address::parse(&host, Some(8443)) {
            prop_assert_eq!(Address::parse(&address.to_string(), None), Ok(address));
        }
    }

    #[test]
    fn id__accepted_senders_names_and_ids_round_trip(
        bytes in prop_oneof![vec(any::<u8>(), 0..70), "[a-z.:/0-9_-]{0,70}".prop_map(String::into_bytes)],
        kind in 0..6u8,
    ) {
        if let Ok(sender) = Sender::parse(&bytes) {
            assert_eq!(sender.to_string().as_bytes(), &bytes);
            prop_assert!(bytes.len() <= 65);
        }
        if let Ok(name) = Name::from_bytes(&bytes) {
            prop_assert_eq!(name.as_str().as_bytes(), &bytes);
        }
        if let Ok(id) = CredentialId::parse(kind, &bytes) {
            prop_assert_eq!(id.cid(), [&[kind][..], &bytes].concat());
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some(id) = MessageId::from_hex(&text) {
            prop_assert_eq!(id.to_string(), text.to_lowercase());
        }
    }

    #[test]
    fn classic__generated_message_is_rejected(
        junk in prop_oneof![vec(any::<u8>(), 0..200), "[A-Za-z0-9._=+/ -]{0,200}".prop_map(String::into_bytes)],
        line in mangled(classic_line()),
    ) {
        let key = ClassicSecret::new(&[7; 32]);
        let mut server = Greeting::draw(&mut ZeroEntropy).read_hello(CLASSIC_HELLO).unwrap().lines(&key);
        for bytes in [&junk, &line] {
            let _any = Greeting::draw(&mut Os).read_hello(bytes);
            let _any = call("lamp", &key, bytes, &mut Os);
            let opened = server.open(bytes);
            prop_assert!(opened.is_err() || *bytes == classic_line(), "{opened:?}");
            // Without a MAC, random whole blocks may open; with one, nothing does.
            let _any = Bridge::new(ClassicScheme::Origin, &key).unwrap().open(bytes);
            prop_assert_eq!(Bridge::new(ClassicScheme::OriginHmac, &key).unwrap().open(bytes), None);
        }
    }

    #[test]
    fn password__accepted_has_no_control_characters(text in any::<String>()) {
        if Password::new(&text).is_ok() {
            assert!(!text.contains(|c: char| c <= '\u{1f}' || c == '\u{7f}'));
        }
    }

    #[test]
    fn text__output_has_no_terminal_controls(
        text in vec(
            prop_oneof![
                any::<char>(),
                (0..0xa0u32).prop_map(|c| char::from_u32(c).unwrap()),
                (0x2000..0x2070u32).prop_map(|c| char::from_u32(c).unwrap()),
                // Invisible characters, and the characters that decide whether these are kept.
                proptest::sample::select(vec![
                    '\u{200c}', '\u{200d}', '\u{200b}', '\u{fe0f}', '\u{fe01}', '\u{e0100}', '\u{180b}',
                    '\u{180e}', '\u{1820}', '\u{628}', '\u{631}', '\u{64e}', '\u{915}', '\u{94d}',
                    '\u{17b4}', '\u{17d2}', '\u{845b}', '\u{1f468}', '\u{1f3fd}', '\u{1f3f4}',
                    '\u{e0067}', '\u{e0062}', '\u{e007f}', '\u{3164}', '\u{ad}',
                ]),
            ],
            0..60,
        ),
    ) {
        let text: String = text.into_iter().collect();
        let untrusted = Untrusted::new(text.as_str());
        let acts = |c: char| {
            c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c) || ('\u{200e}'..='\u{200f}').contains(&c)
                || matches!(c, '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{61c}')
        };
        let rendered = untrusted.render();
        prop_assert!(!rendered.chars().any(|c| acts(c) && c != '\n' && c != '\t'));
        prop_assert_eq!(&Untrusted::new(rendered.as_str()).render(), &rendered);
        prop_assert!(!untrusted.render_line().chars().any(acts));
        prop_assert!(!untrusted.escape().chars().any(acts));
        let json = serde_json::to_string(&text).unwrap();
        let harmless = harmless_json(&json);
        prop_assert!(!harmless.chars().any(acts));
        prop_assert_eq!(serde_json::from_str::<String>(&harmless).unwrap(), text);
    }

    #[test]
    fn text__escape_is_injective(a in "[\\\\u{}0-9a-f\n\"\u{1b}]{0,8}", b in "[\\\\u{}0-9a-f\n\"\u{1b}]{0,8}") {
        let escape = |text: &str| Untrusted::new(text).escape();
        prop_assert_eq!(escape(&a) == escape(&b), a == b);
    }
}

fn to_server() -> Vec<u8> {
    use proto::request::Op;
    let append =
        proto::Append { conversation: 1, message_id: vec![1; 16].into(), body: "hello".into() };
    let search = proto::Search { conversation: 9, text: "needle".into(), before: 3, limit: 4 };
    let requests = [Op::Append(append), Op::Search(search)];
    let requests = requests.into_iter().zip(1..);
    let requests = requests.map(|(op, id)| proto::Request { id, op: Some(op) }).collect();
    proto::ToServer { requests, ..Default::default() }.encode_to_vec()
}

fn to_client() -> Vec<u8> {
    use proto::item::What;
    let entry = proto::Entry { n: 7, body: "hello".into(), ..Default::default() };
    let entries = proto::Entries { conversation: 1, entries: vec![entry] };
    let presence = proto::Presence { user: "ada".into(), online: true };
    let items = [What::Entries(entries), What::Presence(presence)];
    let items = items.into_iter().map(|what| proto::Item { what: Some(what) }).collect();
    proto::ToClient { items }.encode_to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Re-encoding must preserve the message, not its bytes, because nothing hashes them.
    #[test]
    fn proto__generated_request_is_refused_or_round_trips(
        bytes in prop_oneof![mangled(to_server()), vec(any::<u8>(), 0..80)],
    ) {
        if let Ok(message) = proto::ToServer::decode(&bytes[..]) {
            prop_assert_eq!(proto::ToServer::decode(&message.encode_to_vec()[..]), Ok(message));
        }
    }

    #[test]
    fn proto__generated_answer_is_refused_or_round_trips(
        bytes in prop_oneof![mangled(to_client()), vec(any::<u8>(), 0..80)],
    ) {
        if let Ok(message) = proto::ToClient::decode(&bytes[..]) {
            prop_assert_eq!(proto::ToClient::decode(&message.encode_to_vec()[..]), Ok(message));
        }
        let _no_panic = (proto::ServerInfo::decode(&bytes[..]), proto::ClientInfo::decode(&bytes[..]));
    }
}

#[test]
fn proto__nested_groups_are_refused() {
    // Groups are the only way to nest without limit in a schema without recursion.
    assert!(proto::ToServer::decode(&vec![0x7b; 65_531][..]).is_err());
    assert!(proto::ToClient::decode(&vec![0x7b; 65_531][..]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn handshake__modified_challenge_and_random_proof_are_refused(change in 0..CHALLENGE, bit in 0..8u8, random in any::<bool>()) {
        let setup = ServerSetup::generate(&mut Os);
        let record = self_register(&setup, &device(), &mut Os).unwrap();
        let (client, hello) = AwaitChallenge::start(device(), None, &mut Os).unwrap();
        let hello = Hello::parse(&hello[HEADER..]).unwrap();
        let (server, frame) = hello.challenge(&setup, Some(&record), &mut Os).unwrap();
        let mut challenge: [u8; CHALLENGE] = frame[HEADER..].try_into().unwrap();
        if random {
            Os.fill(&mut challenge);
        } else {
            challenge[change] ^= 1 << bit;
        }
        prop_assert!(client.handle_challenge(&challenge, &mut Os).is_err());
        let mut proof = [0; KE3];
        Os.fill(&mut proof);
        prop_assert!(server.handle_proof(&proof).is_err());
    }

    #[test]
    fn handshake__random_record_or_modified_setup_does_not_panic(bytes in vec(any::<u8>(), RECORD), bit in any::<usize>()) {
        let setup = ServerSetup::generate(&mut Os);
        let mut record: [u8; RECORD] = bytes.try_into().unwrap();
        // The fake record, of the same length, replaces a stored record that does not decode.
        let hello = || Hello::parse(&hello()).unwrap();
        let (_, miss) = hello().challenge(&setup, None, &mut Os).unwrap();
        let (_, junk) = hello().challenge(&setup, Some(&record), &mut Os).unwrap();
        prop_assert_eq!(junk.len(), miss.len());
        record[..32].fill(0xff);
        prop_assert!(ServerSetup::check_record(&record).is_err());

        let mut kept = *setup.to_bytes();
        kept[bit / 8 % SETUP] ^= 1 << (bit % 8);
        if let Ok(other) = ServerSetup::from_bytes(&kept) {
            prop_assert_eq!(*other.to_bytes(), kept);
        }
    }

    #[test]
    fn enrolment__random_response_gives_no_record(bytes in vec(any::<u8>(), RESPONSE)) {
        let credential = device();
        let (enrolment, _) = Enrolment::start(&credential, &mut Os).unwrap();
        let response: [u8; RESPONSE] = bytes.try_into().unwrap();
        let pin = ServerSetup::generate(&mut Os).server_key();
        prop_assert!(enrolment.finish(&response, &pin, &mut Os).is_err());
    }
}
