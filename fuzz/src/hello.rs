//! HELLO, registrations and stored setups, with generated group elements.

use std::sync::OnceLock;

use twinlock_core::credential::Credential;
use twinlock_core::frame::{CHALLENGE, ErrorCode, HEADER, KEM_EK, MAX_HELLO, MIN_HELLO};
use twinlock_core::handshake::{AwaitChallenge, Enrolment, Hello, HelloFault, self_register};
use twinlock_core::id::{CredentialId, DeviceId, InviteId};
use twinlock_core::keys::{DeviceSecret, InviteSecret};
use twinlock_core::opaque::{RECORD, REQUEST, RESPONSE, SETUP, ServerSetup};
use twinlock_testing::Rng;

use crate::input::Input;

/// A device that the host knows.
pub(crate) fn device(secret: u8) -> Credential {
    Credential::Device(DeviceId([7; 16]), DeviceSecret::new(&[secret; 32]))
}

fn invite() -> Credential {
    Credential::Invite(InviteId([5; 8]), InviteSecret::new(&[6; 16]))
}

/// A server, and the record of the device with secret 9.
pub(crate) fn host() -> &'static (ServerSetup, [u8; RECORD]) {
    static HOST: OnceLock<(ServerSetup, [u8; RECORD])> = OnceLock::new();
    HOST.get_or_init(|| {
        let entropy = &mut Rng::from_seed(1);
        let setup = ServerSetup::generate(entropy);
        let record = self_register(&setup, &device(9), entropy).unwrap();
        (setup, record)
    })
}

fn good() -> &'static [Vec<u8>; 2] {
    static GOOD: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    GOOD.get_or_init(|| {
        [device(9), invite()].map(|credential| {
            AwaitChallenge::start(credential, None, &mut Rng::from_seed(2)).unwrap().1[HEADER..]
                .to_vec()
        })
    })
}

/// A HELLO is checked by its version, then its length. A valid one names the credential that it
/// contains and gets a CHALLENGE, whether the credential is known or not.
pub(crate) fn hello(data: &[u8]) {
    let mut input = Input(data);
    let payload = match input.below(4) {
        0 => input.rest().to_vec(),
        1 => {
            // Flags, kind and id from the input, with valid keys.
            let (kind, id) = (input.byte(), input.part());
            let keys = &good()[0][MIN_HELLO - 1 - KEM_EK - 96 + 16..];
            [&[1, input.byte(), kind, id.len() as u8], id, keys].concat()
        }
        which => {
            let mut payload = good()[usize::from(which) - 2].clone();
            input.change(&mut payload);
            payload
        }
    };
    let hello = match Hello::parse(&payload) {
        Ok(hello) => hello,
        Err(HelloFault::Answer(ErrorCode::Version(ours))) => {
            assert!(ours == 1 && payload[0] != 1);
            return;
        }
        Err(HelloFault::Answer(code)) => {
            assert_eq!(code, ErrorCode::Malformed);
            assert!((MIN_HELLO..=MAX_HELLO).contains(&payload.len()) && payload[0] == 1);
            return;
        }
        Err(HelloFault::Length(len)) => {
            assert!(len == payload.len() && !(MIN_HELLO..=MAX_HELLO).contains(&len));
            return;
        }
    };
    let id = &payload[4..][..usize::from(payload[3])];
    assert_eq!(hello.credential().cid(), [&payload[2..3], id].concat());
    assert_eq!(&payload[..2], [1, 0]);
    if let CredentialId::User(name) = hello.credential() {
        assert_eq!(name.as_str().as_bytes(), id);
    }
    let (setup, record) = host();
    let entropy = &mut Rng::from_seed(3);
    let (_, hit) = hello.challenge(setup, Some(record), entropy).unwrap();
    let (_, miss) = Hello::parse(&payload).unwrap().challenge(setup, None, entropy).unwrap();
    assert_eq!((hit.len(), &hit[..HEADER]), (HEADER + CHALLENGE, &miss[..HEADER]));
    assert_eq!(hit.len(), miss.len());
}

/// An unchanged registration gives a record that a login fits. A changed one is refused at one of
/// the ends, or gives a record that no login fits.
pub(crate) fn enrolment(data: &[u8]) {
    let mut input = Input(data);
    let (setup, _) = host();
    let entropy = &mut Rng::from_seed(u64::from(input.byte()));
    let credential = if input.flag() { device(9) } else { invite() };
    let cid = credential.id().cid();
    let (enrolment, mut request) = Enrolment::start(&credential, entropy).unwrap();
    let asked_else: [u8; REQUEST] = request;
    let changed = input.change_array(&mut request);
    let Ok(response) = setup.evaluate(&cid, &request) else {
        assert!(changed, "a right request is refused");
        return;
    };
    let mut response: [u8; RESPONSE] = response;
    // The request may be another element, or one for another id. The server answers it, and the
    // client cannot detect that. The record that the client then uploads fits none of its logins.
    let answered_else = input.change_array(&mut response);
    let pin = setup.server_key();
    let record = enrolment.finish(&response, &pin, entropy);
    assert!(record.is_ok() || answered_else, "a right response is refused");
    assert!(!answered_else || response[32..] == pin.0 || record.is_err(), "not the pinned server");
    let Ok(record) = record else { return };
    ServerSetup::check_record(&record).unwrap();
    let fits = asked_else == request && !answered_else;
    assert_eq!(logs_in(setup, &record, credential), fits);
}

fn logs_in(setup: &ServerSetup, record: &[u8; RECORD], credential: Credential) -> bool {
    let entropy = &mut Rng::from_seed(4);
    let (client, hello) =
        AwaitChallenge::start(credential, Some(setup.server_key()), entropy).unwrap();
    let hello = Hello::parse(&hello[HEADER..]).unwrap();
    let (server, challenge) = hello.challenge(setup, Some(record), entropy).unwrap();
    let challenge = challenge[HEADER..].try_into().unwrap();
    let Ok((_, proof)) = client.handle_challenge(&challenge, entropy) else { return false };
    server.handle_proof(&proof[HEADER..].try_into().unwrap()).is_ok()
}

/// An accepted setup is encoded back unchanged. Any record can be used in a login, but only the
/// right one lets it succeed.
pub(crate) fn setup(data: &[u8]) {
    let mut input = Input(data);
    let (setup, record) = host();
    let mut kept: [u8; SETUP] = if input.flag() { input.array() } else { *setup.to_bytes() };
    input.change_array(&mut kept);
    if let Ok(other) = ServerSetup::from_bytes(&kept) {
        assert_eq!(*other.to_bytes(), kept);
        assert_eq!(other.server_key(), ServerSetup::from_bytes(&kept).unwrap().server_key());
    }
    let mut row: [u8; RECORD] = if input.flag() { input.array() } else { *record };
    let changed = input.change_array(&mut row);
    let _no_panic = ServerSetup::check_record(&row);
    assert_eq!(logs_in(setup, &row, device(9)), !changed && row == *record);
}
