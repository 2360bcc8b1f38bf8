//! The handshake with somebody in the middle, and each end with somebody who made it all up.

use twinlock_core::frame::{CHALLENGE, Due, HEADER, Header, KE3};
use twinlock_core::handshake::{AwaitChallenge, Established, Hello};
use twinlock_core::id::ServerKey;
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::session::{BindingPolicy, Config};
use twinlock_link::login::{Greeter, LoginError, login as log_in, parse_hello};

use crate::hello::{device, host};
use crate::input::{Input, Seeded};
use crate::stream::{Pieces, block_on};

/// Both ends of a device's login, client first.
pub(crate) fn established(seed: u64) -> [Established; 2] {
    let (setup, record) = host();
    let entropy = &mut Seeded(seed);
    let pin = Some(setup.server_key());
    let (client, hello) = AwaitChallenge::start(device(9), pin, entropy).unwrap();
    let hello = Hello::parse(&hello[HEADER..]).unwrap();
    let (server, challenge) = hello.challenge(setup, Some(record), entropy).unwrap();
    let challenge = challenge[HEADER..].try_into().unwrap();
    let (client, proof) = client.handle_challenge(&challenge, entropy).unwrap();
    let server = server.handle_proof(&proof[HEADER..].try_into().unwrap()).unwrap();
    [client, server]
}

/// What a session is set up with here.
pub(crate) fn config() -> Config {
    Config {
        binding: BindingPolicy::Warn,
        exporter: Some([5; 32]),
        info: b"info".to_vec(),
        max_version: VERSION,
        timing: Timing::default(),
    }
}

/// An end is established if and only if everything it saw is what the other end said, the secret
/// is the record's and the server the pinned one; and two that are established agree.
pub(crate) fn login(data: &[u8]) {
    let mut input = Input(data);
    let (setup, record) = host();
    let entropy = &mut Seeded(u64::from(input.byte()));
    let (known, knows, pinned) = (!input.flag(), !input.flag(), !input.flag());
    let pin = if pinned { setup.server_key() } else { ServerKey([8; 32]) };
    let secret = if knows { 9 } else { 10 };
    let (client, hello) = AwaitChallenge::start(device(secret), Some(pin), entropy).unwrap();

    let mut hello = hello[HEADER..].to_vec();
    let mut touched = input.change(&mut hello);
    let Ok(hello) = Hello::parse(&hello) else {
        assert!(touched, "a right HELLO is refused");
        return;
    };
    let (server, frame) = hello.challenge(setup, known.then_some(record), entropy).unwrap();
    let header = Header::parse(*frame.first_chunk().unwrap(), Due::Challenge).unwrap();
    assert_eq!(frame.len(), HEADER + header.len);

    let mut challenge: [u8; CHALLENGE] = frame[HEADER..].try_into().unwrap();
    touched |= input.change_array(&mut challenge);
    let right = known && knows && pinned && !touched;
    let client = client.handle_challenge(&challenge, entropy);
    assert_eq!(client.is_ok(), right);
    let mut proof: [u8; KE3] = match &client {
        Ok((_, frame)) => {
            let header = Header::parse(*frame.first_chunk().unwrap(), Due::Proof).unwrap();
            assert_eq!(frame.len(), HEADER + header.len);
            frame[HEADER..].try_into().unwrap()
        }
        Err(_) => input.array(),
    };
    let meant = proof;
    input.change_array(&mut proof);
    let server = server.handle_proof(&proof);
    assert_eq!(server.is_ok(), right && proof == meant);
    if let (Ok((client, _)), Ok(server)) = (client, server) {
        assert_eq!(client.session_id(), server.session_id());
        assert_eq!(client.server_key(), setup.server_key());
        assert_eq!(server.credential(), &device(9).id());
    }
}

/// Bytes that somebody made up, to each end of a stream: the server reads one HELLO and no byte
/// beyond its length, the client never believes that it is logged in.
pub(crate) fn greeting(data: &[u8]) {
    let mut input = Input(data);
    let (to_client, piece) = (input.flag(), usize::from(input.byte()));
    let mut bytes = input.rest().to_vec();
    if to_client {
        // A whole CHALLENGE, so that there is something to judge.
        if bytes.starts_with(&[2, 0, 5, 128]) {
            bytes.resize(bytes.len().max(HEADER + CHALLENGE), 0x5a);
        }
        let pin = Some(host().0.server_key());
        let line = block_on(log_in(Pieces::new(bytes, piece), device(9), pin, config()));
        match line.map(drop) {
            Ok(()) => panic!("logged in to nobody"),
            Err(error) => assert!(!matches!(error, LoginError::Timeout | LoginError::Hello(_))),
        }
    } else {
        let payload = block_on(Greeter::new(Pieces::new(bytes.clone(), piece)).read_hello());
        if let Ok(payload) = payload {
            let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
            assert_eq!((bytes[0], bytes[1]), (1, 0));
            assert_eq!(payload, &bytes[HEADER..HEADER + len]);
            let _no_panic = parse_hello(&payload);
        }
    }
}
