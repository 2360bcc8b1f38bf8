//! RFC 9807's test vectors for ristretto255.
//!
//! They leave the client identity unset or set both identities, which Twinlock never does. They
//! therefore run on the suite itself and not on the functions above it, which `handshake.json`
//! covers.

use serde_json::Value;

use super::*;
use crate::vectors::{Case, Script, Tally};

pub(crate) fn run(file: &Value) -> Vec<(&'static str, usize)> {
    let mut tally = Tally::default();
    for case in file.as_array().unwrap() {
        let config = &case["config"];
        let names = ["Group", "Hash", "KDF", "KSF", "MAC", "Name"].map(|key| config.text(key));
        let ours = ["ristretto255", "SHA512", "HKDF-SHA512", "Identity", "HMAC-SHA512", "3DH"];
        assert_eq!(names, ours);
        match config.text("Fake") {
            "False" => {
                real(case);
                tally.add("real");
            }
            "True" => {
                fake(case);
                tally.add("fake");
            }
            other => panic!("Fake: {other}"),
        }
    }
    tally.done()
}

/// A scalar as 64 drawn bytes that reduce to it.
fn wide(inputs: &Value, key: &str) -> Vec<u8> {
    let mut bytes = inputs.hex(key);
    bytes.resize(64, 0);
    bytes
}

fn script(draws: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Script {
    let mut script = Script::default();
    for (name, bytes) in draws {
        script.push(name, bytes);
    }
    script
}

/// Builds a setup in which `fake_key` is the public key of the fake record.
fn setup(inputs: &Value, fake_key: &[u8]) -> opaque_ke::ServerSetup<Suite> {
    let parts = [&inputs.hex("oprf_seed"), &inputs.hex("server_private_key"), fake_key];
    let setup = opaque_ke::ServerSetup::deserialize(&parts.concat()).unwrap();
    assert_eq!(setup.keypair().public().serialize()[..], inputs.hex("server_public_key"));
    setup
}

struct Identities(Option<Vec<u8>>, Option<Vec<u8>>);

impl Identities {
    fn of(inputs: &Value) -> Self {
        let identity = |key| inputs.has(key).then(|| inputs.hex(key));
        Self(identity("client_identity"), identity("server_identity"))
    }

    fn lend(&self) -> Identifiers<'_> {
        Identifiers { client: self.0.as_deref(), server: self.1.as_deref() }
    }
}

fn server_draws(inputs: &Value, masking_key: Vec<u8>) -> Script {
    script([
        ("fake masking key", masking_key),
        ("masking nonce", inputs.hex("masking_nonce")),
        ("server key share seed", inputs.hex("server_keyshare_seed")),
        ("server nonce", inputs.hex("server_nonce")),
    ])
}

fn real(case: &Value) {
    let (inputs, inner, outputs) = (&case["inputs"], &case["intermediates"], &case["outputs"]);
    let ids = Identities::of(inputs);
    let context = case["config"].hex("Context");
    let id = inputs.hex("credential_identifier");
    let password = inputs.hex("password");
    let server = setup(inputs, &inputs.hex("server_public_key"));
    let stretching = Stretching::RandomSecret;

    // Registration.
    let mut draws = script([
        ("blind", wide(inputs, "blind_registration")),
        ("envelope nonce", inputs.hex("envelope_nonce")),
    ]);
    let client =
        ClientRegistration::<Suite>::start(&mut RngAdapter(&mut draws), &password).unwrap();
    assert_eq!(client.message.serialize()[..], outputs.hex("registration_request"));
    let response = ServerRegistration::start(&server, client.message, &id).unwrap().message;
    assert_eq!(response.serialize()[..], outputs.hex("registration_response"));
    let parameters = ClientRegistrationFinishParameters::new(ids.lend(), Some(&stretching));
    let registered =
        client.state.finish(&mut RngAdapter(&mut draws), &password, response, parameters).unwrap();
    assert_eq!(registered.message.serialize()[..], outputs.hex("registration_upload"));
    assert_eq!(registered.export_key[..], outputs.hex("export_key"));
    let [key, masking, envelope] = ["client_public_key", "masking_key", "envelope"];
    let upload = [inner.hex(key), inner.hex(masking), inner.hex(envelope)].concat();
    assert_eq!(outputs.hex("registration_upload"), upload);
    draws.done();

    // Login.
    let mut draws = script([
        ("blind", wide(inputs, "blind_login")),
        ("client key share seed", inputs.hex("client_keyshare_seed")),
        ("client nonce", inputs.hex("client_nonce")),
    ]);
    let client = ClientLogin::<Suite>::start(&mut RngAdapter(&mut draws), &password).unwrap();
    assert_eq!(client.message.serialize()[..], outputs.hex("KE1"));
    draws.done();

    let mut draws = server_draws(inputs, vec![0; 64]);
    let parameters = || ServerLoginParameters { context: Some(&context), identifiers: ids.lend() };
    let record = ServerRegistration::deserialize(&upload).unwrap();
    let rng = &mut RngAdapter(&mut draws);
    let ke1 = client.message.clone();
    let started = ServerLogin::start(rng, &server, Some(record), ke1, &id, parameters()).unwrap();
    assert_eq!(started.message.serialize()[..], outputs.hex("KE2"));
    draws.done();

    let mut draws = Script::default();
    let finish = ClientLoginFinishParameters::new(Some(&context), ids.lend(), Some(&stretching));
    let rng = &mut RngAdapter(&mut draws);
    let finished = client.state.finish(rng, &password, started.message, finish).unwrap();
    assert_eq!(finished.message.serialize()[..], outputs.hex("KE3"));
    assert_eq!(finished.session_key[..], outputs.hex("session_key"));
    assert_eq!(finished.export_key[..], outputs.hex("export_key"));
    let server = started.state.finish(finished.message, parameters()).unwrap();
    assert_eq!(server.session_key[..], outputs.hex("session_key"));
}

fn fake(case: &Value) {
    let inputs = &case["inputs"];
    let ids = Identities::of(inputs);
    let context = case["config"].hex("Context");
    let server = setup(inputs, &inputs.hex("client_public_key"));
    let mut draws = server_draws(inputs, inputs.hex("masking_key"));
    let ke1 = CredentialRequest::deserialize(&inputs.hex("KE1")).unwrap();
    let parameters = ServerLoginParameters { context: Some(&context), identifiers: ids.lend() };
    let id = inputs.hex("credential_identifier");
    let started =
        ServerLogin::start(&mut RngAdapter(&mut draws), &server, None, ke1, &id, parameters)
            .unwrap();
    assert_eq!(started.message.serialize()[..], case["outputs"].hex("KE2"));
    draws.done();
}
