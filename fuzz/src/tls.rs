//! Certificates and keys as files contain them.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use twinlock_transport::tls::{CertFault, ServerCert, spki_pin};

use crate::input::Input;

/// A PKCS #8 key of P-256 whose scalar repeats 0x07: unused elsewhere, and always the same.
fn key() -> Vec<u8> {
    let head = b"\x30\x41\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04\x27\x30\x25\x02\x01\x01\x04\x20";
    [&head[..], &[7; 32]].concat()
}

struct TlsPair {
    chain: Vec<u8>,
    chain_pem: String,
    key_pem: String,
}

fn good() -> &'static TlsPair {
    static GOOD: OnceLock<TlsPair> = OnceLock::new();
    GOOD.get_or_init(|| {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key()));
        let pair = KeyPair::try_from(&der).unwrap();
        let params = CertificateParams::new(vec!["example.org".to_owned()]).unwrap();
        let cert = params.self_signed(&pair).unwrap();
        let chain_pem = cert.pem();
        TlsPair { chain: cert.der().to_vec(), chain_pem, key_pem: pair.serialize_pem() }
    })
}

/// A certificate is accepted only with its own key, and its pin is that of the key, whatever else
/// it contains. Any validity period can be checked without overflow.
pub(crate) fn certificate(data: &[u8]) {
    let good = good();
    let mut input = Input(data);
    let kind = input.below(4);
    let result = match kind {
        0 => ServerCert::from_pem(input.rest(), good.key_pem.as_bytes()),
        1 => ServerCert::from_pem(good.chain_pem.as_bytes(), input.rest()),
        2 => {
            let mut der = good.chain.clone();
            input.change(&mut der);
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key()));
            let _no_panic = spki_pin(&CertificateDer::from(der.clone()));
            ServerCert::from_der(vec![CertificateDer::from(der)], key)
        }
        _ => {
            let (mut chain, mut key) =
                (good.chain_pem.clone().into_bytes(), good.key_pem.clone().into_bytes());
            let changed = [input.change(&mut chain), input.change(&mut key)];
            let result = ServerCert::from_pem(&chain, &key);
            assert!(changed != [false; 2] || result.is_ok(), "{result:?}");
            result
        }
    };
    match result {
        Ok(cert) => {
            let first = cert.chain().first().unwrap();
            assert_eq!(spki_pin(first).unwrap(), cert.pin());
            assert_eq!(cert.pin(), spki_pin(&CertificateDer::from(good.chain.as_slice())).unwrap());
            let year = Duration::from_secs(365 * 86_400);
            let times = [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + year * 5000];
            for now in times.into_iter().chain([cert.expires_at()]) {
                let expired = matches!(cert.check_time(now), Err(CertFault::Expired { .. }));
                assert_eq!(expired, now > cert.expires_at());
            }
        }
        Err(fault) => {
            // A valid key is not reported as the fault.
            assert!(kind != 0 || !fault.blames_key(), "{fault}");
            assert!(!matches!(fault, CertFault::Expired { .. } | CertFault::NotYetValid { .. }));
        }
    }
}
