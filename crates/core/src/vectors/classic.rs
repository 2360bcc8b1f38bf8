//! `classic.json`. This version speaks neither classic lines nor the origin bridge (section 11).
//! What the origin's two forms are made of is here already (CBC, HKDF, HMAC), so those vectors run
//! on it. The JWE lines need HMAC-SHA-512 and a parser that do not exist yet: they are counted,
//! so that this file has to be looked at again when classic lines are built.

use data_encoding::BASE64;
use serde_json::Value;

use super::{Case, Counts, Tally};
use crate::schedule;
use crate::seal::{cbc_decrypt, cbc_encrypt};

pub(super) fn run(file: &Value) -> Counts {
    let mut tally = Tally::default();
    let origin = &file["origin"];
    let shared: [u8; 32] = origin.bytes("shared_key");
    for case in origin.list("messages") {
        let keys = mac_keys(&shared, case.text("direction"));
        assert_eq!(keys, [case.bytes("mac_ek"), case.bytes("mac_ak")]);
        let (text, iv) = (case.hex("text"), case.bytes("iv"));
        let plain = case.text("plain_form");
        assert_eq!(BASE64.encode(&sealed(&shared, &iv, &text)), plain);
        assert_eq!(open_plain(&shared, plain), Some(text.clone()));
        let mut sealed = sealed(&keys[0], &iv, &text);
        sealed.extend_from_slice(schedule::hmac(&keys[1], &[&sealed]).as_slice());
        assert_eq!(BASE64.encode(&sealed), case.text("mac_form"));
        assert_eq!(open_mac(&keys, case.text("mac_form")), Some(text));
        tally.add("origin messages");
    }
    for case in origin.list("bad") {
        assert_eq!(case.text("expected"), "close");
        let opened = match case.text("form") {
            "plain" => open_plain(&shared, case.text("line")),
            "mac" => open_mac(&mac_keys(&shared, "c2s"), case.text("line")),
            form => panic!("form {form}"),
        };
        assert_eq!(opened, None, "{}", case.text("name"));
        tally.add("origin refused");
    }
    let waiting = file.list("lines").len() + file.list("bad_lines").len();
    tally.add_many("JWE lines, not spoken yet", waiting);
    tally.done()
}

/// `key || mac_key = Expand(Extract("tl1 origin", shared), "tl1 origin " || dir)`.
fn mac_keys(shared: &[u8; 32], dir: &str) -> [[u8; 32]; 2] {
    let prk = schedule::extract(b"tl1 origin", shared);
    let keys = schedule::expand::<64>(&prk, &[b"tl1 origin ", dir.as_bytes()]);
    let (key, mac_key) = keys.split_first_chunk().unwrap();
    [*key, mac_key.try_into().unwrap()]
}

/// `IV || AES-256-CBC(PKCS#7(text))`.
fn sealed(key: &[u8; 32], iv: &[u8; 16], text: &[u8]) -> Vec<u8> {
    let mut c = text.to_vec();
    c.resize(text.len() / 16 * 16 + 16, 0);
    cbc_encrypt(key, iv, &mut c, text.len());
    [&iv[..], &c].concat()
}

fn open(key: &[u8; 32], bytes: &[u8]) -> Option<Vec<u8>> {
    let (iv, c) = bytes.split_first_chunk()?;
    cbc_decrypt(key, iv, &mut c.to_vec()).map(<[u8]>::to_vec)
}

fn open_plain(shared: &[u8; 32], line: &str) -> Option<Vec<u8>> {
    open(shared, &BASE64.decode(line.as_bytes()).ok()?)
}

fn open_mac([key, mac_key]: &[[u8; 32]; 2], line: &str) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(line.as_bytes()).ok()?;
    let (sealed, tag) = bytes.split_last_chunk::<32>()?;
    schedule::hmac_verify(mac_key, &[sealed], tag).then(|| open(key, sealed)).flatten()
}
