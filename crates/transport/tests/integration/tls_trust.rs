//! Which server a client trusts, and under which certificate a server serves.

use std::time::Duration;

use crate::common::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use twinlock_core::id::TlsPin;
use twinlock_transport::tls::{
    ALPN, Alpn, CertFault, ClientTls, Distrust, ServerCert, ServerTls, ServerTrust, TlsFault,
    spki_pin,
};

fn distrust<T>(result: Result<T, TlsFault>) -> Distrust {
    match result {
        Err(TlsFault::Untrusted(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("trusted"),
    }
}

#[tokio::test]
async fn tls_trust__pinned_key_is_accepted_despite_name_and_expiry() {
    let expired = server_cert(|params| params.not_after = date_time_ymd(2001, 1, 1));
    let stranger = TlsPin([7; 32]);
    let pins = ServerTrust::Pins(vec![stranger, expired.pin()]);
    let client = ClientTls::new(pins, Alpn::Direct).unwrap();
    let server = ServerTls::new(expired).unwrap();
    for name in ["elsewhere.example", "192.0.2.1", "fe80::1%eth0", "no name at all"] {
        let (accepted, connected) = meet(&server, &client, name).await;
        accepted.unwrap();
        connected.unwrap();
    }
}

#[tokio::test]
async fn tls_trust__other_key_is_refused_and_both_pins_reported() {
    let (ours, theirs) = (fresh(), fresh());
    let (accepted, connected) =
        meet(&ServerTls::new(theirs.clone()).unwrap(), &pinning(&ours), "localhost").await;
    assert!(accepted.is_err(), "the client says so by an alert");
    let fault = connected.unwrap_err();
    assert!(fault.is_distrust());
    assert!(fault.to_string().contains(&theirs.pin().to_string()));
    match fault {
        TlsFault::Pin { got, expected, .. } => {
            assert_eq!(got, theirs.pin());
            assert_eq!(expected, [ours.pin()]);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn tls_trust__empty_pin_list_refuses_server() {
    let cert = fresh();
    let client = ClientTls::new(ServerTrust::Pins(Vec::new()), Alpn::Direct).unwrap();
    let (_, connected) = meet(&ServerTls::new(cert).unwrap(), &client, "localhost").await;
    assert!(matches!(connected, Err(TlsFault::Pin { expected, .. }) if expected.is_empty()));
}

/// The certificate is public: a server that shows it must also sign with its key.
#[tokio::test]
async fn tls_trust__signature_by_other_key_is_refused() {
    let (owner, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let chain = vec![certificate(&owner, |_| ())];
    let cert = ServerCert::from_der(chain.clone(), der(&owner)).unwrap();
    let config = foreign_server(chain, der(&thief), &[ALPN]);
    for client in [pinning(&cert), trusting(&[&cert])] {
        let fault = meet_foreign_server(config.clone(), &client).await.unwrap_err();
        assert!(fault.is_distrust());
        assert_eq!(distrust::<()>(Err(fault)), Distrust::Signature);
    }
}

/// The end entity must match a pin, not a certificate further up the chain.
#[tokio::test]
async fn tls_trust__pin_beyond_end_entity_does_not_count() {
    let (owner, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let pinned = certificate(&owner, |_| ());
    let own = certificate(&thief, |_| ());
    let client = pinning(&ServerCert::from_der(vec![pinned.clone()], der(&owner)).unwrap());
    let config = foreign_server(vec![own.clone(), pinned], der(&thief), &[ALPN]);
    let fault = meet_foreign_server(config, &client).await.unwrap_err();
    assert!(matches!(fault, TlsFault::Pin { got, .. } if got == spki_pin(&own).unwrap()));
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issued(
    by: &CertifiedIssuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> ServerCert {
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "a server");
    change(&mut params);
    let cert = params.signed_by(&key, by).unwrap().der().clone();
    ServerCert::from_der(vec![cert], der(&key)).unwrap()
}

fn trusting_authority(root: &CertificateDer<'static>) -> ClientTls {
    ClientTls::new(ServerTrust::Ca { extra_roots: vec![root.clone()] }, Alpn::Direct).unwrap()
}

#[tokio::test]
async fn tls_trust__ca_certificate_is_valid_for_its_names_only() {
    let ca = authority("one");
    let server = ServerTls::new(issued(&ca, |_| ())).unwrap();
    let client = trusting_authority(ca.der());
    for name in ["localhost", "127.0.0.1"] {
        let (accepted, connected) = meet(&server, &client, name).await;
        accepted.unwrap();
        connected.unwrap();
    }
    for name in ["elsewhere.example", "127.0.0.2", "::1"] {
        let (_, connected) = meet(&server, &client, name).await;
        assert_eq!(distrust(connected), Distrust::WrongName);
    }
    let (_, connected) = meet(&server, &client, "no name at all").await;
    assert!(matches!(connected, Err(TlsFault::Name)));
}

#[tokio::test]
async fn tls_trust__unknown_ca_wrong_time_or_purpose_is_refused() {
    let (ca, other, namesake) = (authority("one"), authority("two"), authority("one"));
    let client = trusting_authority(ca.der());
    let cases: [(ServerCert, Distrust); 5] = [
        (issued(&other, |_| ()), Distrust::UnknownIssuer),
        (issued(&namesake, |_| ()), Distrust::Signature),
        (issued(&ca, |p| p.not_after = date_time_ymd(2001, 1, 1)), Distrust::Expired),
        (issued(&ca, |p| p.not_before = date_time_ymd(4000, 1, 1)), Distrust::NotYetValid),
        (
            issued(&ca, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            Distrust::Purpose,
        ),
    ];
    for (cert, why) in cases {
        let (_, connected) = meet(&ServerTls::new(cert).unwrap(), &client, "localhost").await;
        let fault = connected.unwrap_err();
        assert!(fault.is_distrust());
        assert_eq!(distrust::<()>(Err(fault)), why);
    }
}

#[tokio::test]
async fn tls_trust__self_signed_certificate_can_be_its_own_root() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    meet(&server, &trusting(&[&cert]), "localhost").await.1.unwrap();
    let (_, connected) = meet(&server, &trusting(&[&fresh()]), "localhost").await;
    assert!(connected.unwrap_err().is_distrust());
}

#[test]
fn tls_trust__malformed_root_is_reported() {
    let extra_roots = vec![CertificateDer::from(b"nonsense".to_vec())];
    let fault = ClientTls::new(ServerTrust::Ca { extra_roots }, Alpn::Direct).unwrap_err();
    assert!(matches!(fault, TlsFault::Roots(_)));
}

#[tokio::test]
async fn tls_cert__reload_applies_to_new_connections_only() {
    let (old, new) = (fresh(), fresh());
    let server = ServerTls::new(old.clone()).unwrap();
    let (accepted, connected) = meet(&server, &pinning(&old), "localhost").await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());

    server.clone().reload(new.clone());
    assert_eq!(server.spki_pin(), new.pin());
    assert_eq!(server.expires_at(), new.expires_at());

    for text in [b"one", b"two"] {
        connected.write_all(text).await.unwrap();
        connected.flush().await.unwrap();
        let mut got = [0; 3];
        accepted.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, text);
        accepted.write_all(&got).await.unwrap();
        accepted.flush().await.unwrap();
        connected.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, text);
    }
    let (_, connected) = meet(&server, &pinning(&new), "localhost").await;
    connected.unwrap();
    let (_, connected) = meet(&server, &pinning(&old), "localhost").await;
    assert!(matches!(connected, Err(TlsFault::Pin { .. })));
}

/// A certificate that fails its checks does not become a [`ServerCert`], so it cannot be loaded.
#[tokio::test]
async fn tls_cert__mismatched_key_is_refused_and_old_cert_stays() {
    let old = fresh();
    let server = ServerTls::new(old.clone()).unwrap();
    let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    match ServerCert::from_der(vec![certificate(&one, |_| ())], der(&two)) {
        Ok(cert) => server.reload(cert),
        Err(fault) => assert_eq!(fault, CertFault::Mismatch),
    }
    assert_eq!(server.spki_pin(), old.pin());
    meet(&server, &pinning(&old), "localhost").await.1.unwrap();
}

#[test]
fn tls_cert__pem_is_read_and_each_fault_is_distinguished() {
    let key = KeyPair::generate().unwrap();
    let other = KeyPair::generate().unwrap();
    let cert =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (chain, key_pem) = (cert.pem(), key.serialize_pem());

    let read = ServerCert::from_pem(chain.as_bytes(), key_pem.as_bytes()).unwrap();
    assert_eq!(read.pin(), spki_pin(cert.der()).unwrap());
    let with_both = format!("{key_pem}{chain}");
    ServerCert::from_pem(with_both.as_bytes(), with_both.as_bytes()).unwrap();

    let rotten = chain.replace("\n-----END", "A\n-----END");
    let no_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let locked =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let cases: [(&str, &str, CertFault); 8] = [
        ("", &key_pem, CertFault::NoCertificate),
        ("some text", &key_pem, CertFault::NoCertificate),
        (&rotten, &key_pem, CertFault::BadCertificate),
        (no_x509, &key_pem, CertFault::BadCertificate),
        (&chain, "", CertFault::NoKey),
        (&chain, locked, CertFault::NoKey),
        (&chain, no_key, CertFault::BadKey),
        (&chain, &other.serialize_pem(), CertFault::Mismatch),
    ];
    for (chain, key, fault) in cases {
        assert_eq!(ServerCert::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err(), fault);
    }
}

#[test]
fn tls_cert__truncated_is_rejected() {
    let key = KeyPair::generate().unwrap();
    let whole = certificate(&key, |_| ());
    for end in 0..whole.len() {
        let cut = CertificateDer::from(whole[..end].to_vec());
        assert_eq!(
            ServerCert::from_der(vec![cut], der(&key)).unwrap_err(),
            CertFault::BadCertificate
        );
    }
}

#[test]
fn tls_cert__validity_period_is_checked() {
    let cert = server_cert(|params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let day = Duration::from_secs(86_400);
    let end = cert.expires_at();
    assert_eq!(cert.check_time(end), Ok(()));
    assert_eq!(cert.check_time(end - 366 * day), Ok(()));
    assert_eq!(cert.check_time(end + 3 * day), Err(CertFault::Expired { days: 3 }));
    assert_eq!(cert.check_time(end - 368 * day), Err(CertFault::NotYetValid { days: 2 }));
    assert!(matches!(cert.check_time(now()), Err(CertFault::Expired { .. })));
}

#[test]
fn tls_cert__debug_shows_pin_and_is_short() {
    let cert = server_cert(|params| params.not_before = date_time_ymd(2020, 1, 1));
    let shown = format!("{cert:?}");
    let expected = format!("ServerCert {{ pin: TlsPin({}), not_before: ", cert.pin());
    assert!(shown.starts_with(&expected), "{shown}");
    assert!(shown.len() < 300, "{shown}");
}
