//! `handshake.json`: registrations, logins from both sides, and what each side refuses.

use std::time::Instant;

use serde_json::Value;

use super::{Case, Counts, Script, Tally};
use crate::credential::{Credential, Password};
use crate::frame::{CHALLENGE, Due, ErrorCode, HEADER, Header, KEM_CT};
use crate::handshake::{
    AwaitChallenge, AwaitProof, Enrolment, Established, Hello, HelloFault, check_hello,
};
use crate::id::{DeviceId, InviteId, Name, ServerKey};
use crate::keys::{DeviceSecret, InviteSecret};
use crate::legacy_crypto::opaque::{ClientEnrolment, ServerSetup};
use crate::limits::{Timing, VERSION};
use crate::schedule;
use crate::session::{Binding, BindingPolicy, Session, SessionConfig, SessionEvent};

pub(super) fn run(file: &Value) -> Counts {
    let setup = setup(&file["setup"]);
    let mut tally = Tally::default();
    for case in file.list("cases") {
        if case["expected"].text("outcome") == "accepted" {
            registration(&setup, case);
            tally.add("registrations");
        } else {
            // The refused cases log in with the device's registration, or with none.
            let kept = &case["registration"];
            assert!(kept.is_null() || *kept == file.list("cases")[1]["registration"]);
        }
        let (client, server, mut script) = until_challenge(&setup, case);
        let challenge: [u8; CHALLENGE] = case.hex("challenge_frame")[HEADER..].try_into().unwrap();
        let expected = &case["expected"];
        match (client.handle_challenge(&challenge, &mut script), expected.text("outcome")) {
            (Err(_), "client refuses") => {
                assert_eq!(expected.text("client_sends"), "");
                tally.add("client refuses");
            }
            (Ok((client, proof)), "accepted") => {
                assert_eq!(proof, expected.hex("proof_frame"));
                assert_eq!(&proof[HEADER..], expected.hex("ke3"));
                let server = server.handle_proof(&expected.bytes("ke3")).unwrap();
                keys(case, &challenge, &client, &server);
                ready(case, client, server);
                tally.add("accepted");
            }
            (_, outcome) => panic!("{}: not {outcome}", case.text("name")),
        }
        script.done();
    }
    bad_hellos(file, &mut tally);
    bad_headers(file, &mut tally);

    let device = file.list("cases").iter().find(|c| c.text("name") == "device").unwrap();
    let (_, server, _) = until_challenge(&setup, device);
    let proof = file["bad_proof"].hex("proof_frame")[HEADER..].try_into().unwrap();
    assert!(server.handle_proof(&proof).is_err());
    let expected = &file["bad_proof"]["expected"];
    assert_eq!(ErrorCode::Refused.to_frame(), expected.hex("frame"));
    tally.add("bad PROOF");
    tally.done()
}

fn setup(case: &Value) -> ServerSetup {
    let mut script = Script::of(&case["draws"]);
    let made = ServerSetup::generate(&mut script);
    script.done();
    let kept = ServerSetup::from_bytes(&case.bytes("opaque_ke_server_setup")).unwrap();
    assert_eq!(made.to_bytes(), kept.to_bytes());
    assert_eq!(kept.server_key().as_bytes(), &case.bytes("public_key"));
    kept
}

fn credential(case: &Value) -> Credential {
    let id = case.hex("id");
    let credential = match case.num("kind") {
        1 => Credential::User(
            Name::from_bytes(&id).unwrap(),
            Password::new(case.text("secret_text")).unwrap(),
        ),
        2 => Credential::Device(
            DeviceId::from_slice(&id).unwrap(),
            DeviceSecret::new(&case.bytes("secret")),
        ),
        3 => Credential::Invite(
            InviteId::from_slice(&id).unwrap(),
            InviteSecret::new(&case.bytes("secret")),
        ),
        kind => panic!("kind {kind}"),
    };
    assert_eq!(credential.id().cid(), case.hex("cid"));
    assert_eq!(*credential.password_input(), case.hex("password_input"));
    credential
}

/// The record through the public functions, and the export key through the underlying ones.
fn registration(setup: &ServerSetup, case: &Value) {
    let registration = &case["registration"];
    let credential = credential(case);
    let cid = case.hex("cid");

    let mut script = Script::of(&registration["draws"]);
    let (enrolment, request) = Enrolment::start(&credential, &mut script).unwrap();
    assert_eq!(request, registration.bytes("request"));
    let response = setup.evaluate(&cid, &request).unwrap();
    assert_eq!(response, registration.bytes("response"));
    let record = enrolment.finish(&response, &setup.server_key(), &mut script).unwrap();
    assert_eq!(record, registration.bytes("record"));
    assert_eq!(ServerSetup::check_record(&record), Ok(()));
    script.done();

    let mut script = Script::of(&registration["draws"]);
    let input = credential.password_input();
    let (enrolment, _) = ClientEnrolment::start(&input, &mut script).unwrap();
    let stretching = credential.stretching();
    let finished = enrolment.finish(&input, &response, &cid, stretching, &mut script).unwrap();
    assert_eq!(finished.export_key, registration.hex("export_key"));
    assert_eq!(finished.server_key, setup.server_key());
}

fn until_challenge(setup: &ServerSetup, case: &Value) -> (AwaitChallenge, AwaitProof, Script) {
    let mut script = Script::of(&case["draws"]);
    let pin = ServerKey(case.bytes("pin"));
    let (client, frame) = AwaitChallenge::start(credential(case), Some(pin), &mut script).unwrap();
    let hello = case.hex("hello");
    assert_eq!(frame, case.hex("hello_frame"));
    assert_eq!(&frame[HEADER..], hello);
    assert!(hello.ends_with(&[case.hex("ek"), case.hex("ke1")].concat()));

    let server = Hello::parse(&hello).unwrap();
    assert_eq!(server.credential().cid(), case.hex("cid"));
    let record = case.has("record").then(|| case.bytes("record"));
    let (server, frame) = server.challenge(setup, record.as_ref(), &mut script).unwrap();
    assert_eq!(frame, case.hex("challenge_frame"));
    assert_eq!(&frame[HEADER..][..KEM_CT], case.hex("ct"));
    assert_eq!(&frame[HEADER..][KEM_CT..], case.hex("ke2"));
    (client, server, script)
}

fn keys(case: &Value, challenge: &[u8], client: &Established, server: &Established) {
    let expected = &case["expected"];
    let th = schedule::hash(&[b"tl1 th", &case.hex("hello"), challenge, &expected.hex("ke3")]);
    assert_eq!(th, expected.bytes("th"));
    let ikm = [expected.hex("opaque_session_key"), case.hex("ss")].concat();
    assert_eq!(*schedule::extract(&th, &ikm), expected.bytes("root"));
    for end in [client, server] {
        assert_eq!(end.ck_c2s.expose_secret(), &expected.bytes("ck_c2s"));
        assert_eq!(end.ck_s2c.expose_secret(), &expected.bytes("ck_s2c"));
        assert_eq!(end.rk.expose_secret(), &expected.bytes("rk"));
        assert_eq!(end.session_id().as_bytes(), &expected.bytes("sid"));
        assert_eq!(end.server_key().as_bytes(), &expected.bytes("server_public_key"));
        assert_eq!(end.credential().cid(), case.hex("cid"));
    }
}

fn ready(case: &Value, client: Established, server: Established) {
    let now = Instant::now();
    let config = |info: &str| SessionConfig {
        binding: BindingPolicy::Require,
        exporter: Some(case.bytes("tls_exporter")),
        info: case.hex(info),
        max_version: VERSION,
        timing: Timing::default(),
    };
    let mut client = Session::new(client, config("client_info"), now);
    let mut server = Session::new(server, config("server_info"), now);
    read_ready(case, &client, &mut server, "client");
    read_ready(case, &server, &mut client, "server");
}

/// `to` reads the READY of `from`; `whose` is "client" or "server".
fn read_ready(case: &Value, from: &Session, to: &mut Session, whose: &str) {
    let expected = &case["expected"];
    let frame = from.outgoing().to_vec();
    assert_eq!(frame, expected.hex(&format!("{whose}_ready_frame")));
    let info = case.hex(&format!("{whose}_info"));
    assert!(expected.hex(&format!("{whose}_ready_body")).ends_with(&info));
    let header = Header::parse(*frame.first_chunk().unwrap(), to.due()).unwrap();
    let mut payload = frame[HEADER..].to_vec();
    let event = to.handle_frame(header, &mut payload, Instant::now(), &mut Script::default());
    assert_eq!(event, Ok(SessionEvent::Ready { info: &info, binding: Binding::Bound }));
}

fn bad_hellos(file: &Value, tally: &mut Tally) {
    for case in file.list("bad_hellos") {
        let expected = &case["expected"];
        match Hello::parse(&case.hex("hello")) {
            Err(HelloFault::Answer(code)) => {
                assert_eq!(code.to_frame(), expected.hex("frame"), "{}", case.text("name"));
            }
            other => panic!("{}: {:?}", case.text("name"), other.err()),
        }
        tally.add("bad HELLO");
    }
}

/// The server refuses a HELLO of invalid length only after it has read the version. Any other
/// version gets ERROR 1 (section 4), so the header alone does not decide. Nothing is sent in either
/// order.
fn bad_headers(file: &Value, tally: &mut Tally) {
    for case in file.list("bad_first_headers") {
        assert_eq!(case.text("expected"), "close");
        if let Ok(header) = Header::parse(case.bytes("header"), Due::Hello) {
            assert_eq!(check_hello(VERSION, header.len), Err(HelloFault::Length(header.len)));
            let other = Err(HelloFault::Answer(ErrorCode::Version(VERSION)));
            assert_eq!(check_hello(VERSION + 1, header.len), other);
        }
        tally.add("bad header");
    }
}
