//! SIGHUP: a certificate is replaced under open connections, or not replaced at all.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::*;
use rcgen::{CertificateParams, KeyPair, SerialNumber};
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// An operator's own certificate: the files, and the key.
struct Own {
    cert: PathBuf,
    key: PathBuf,
    pair: KeyPair,
}

impl Own {
    fn new(dir: &Path) -> Self {
        let own = Self {
            cert: dir.join("own.crt"),
            key: dir.join("own.key"),
            pair: KeyPair::generate().unwrap(),
        };
        std::fs::write(&own.key, own.pair.serialize_pem()).unwrap();
        own
    }

    /// A new certificate for the same key.
    fn renew(&self, serial: u64) -> CertificateDer<'static> {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let cert = params.self_signed(&self.pair).unwrap();
        std::fs::write(&self.cert, cert.pem()).unwrap();
        cert.der().clone()
    }
}

/// Whether a new connection that trusts only `cert` succeeds.
fn shows(address: SocketAddr, cert: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"twinlock/1".to_vec()];
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = std::net::TcpStream::connect(address).unwrap();
    let mut stream = StreamOwned::new(connection, tcp);
    while stream.conn.is_handshaking() {
        if stream.conn.complete_io(&mut stream.sock).is_err() {
            return false;
        }
    }
    stream.conn.peer_certificates().unwrap()[0] == *cert
}

#[test]
fn certificate_reload__keeps_connections_and_ignores_invalid() {
    let root = tempfile::tempdir().unwrap();
    let own = Own::new(root.path());
    let first = own.renew(1);
    let [cert, key] = [&own.cert, &own.key].map(|file| file.to_str().unwrap().to_owned());
    let both = ["--classic-port", "0", "--origin-port", "0"];
    let host =
        Host::start_in(root, &[&["--tls-cert", &cert, "--tls-key", &key], &both[..]].concat());
    host.running().wait_lines(3);
    let said = host.running().out();
    let ports = |line: &str| line.rsplit_once(" on ").unwrap().1.parse::<SocketAddr>().unwrap();
    let ports: Vec<_> = said.lines().take(3).map(ports).collect();
    // On all three ports: that of users, and those of devices.
    let shows = |_, cert: &CertificateDer<'static>| {
        let each: Vec<_> = ports.iter().map(|port| shows(*port, cert)).collect();
        assert!(each.iter().all(|shown| *shown == each[0]), "{each:?}");
        each[0]
    };
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let listening = bob.start(&["listen", "lobby", "--since", "all"]);
    let say = |text: &str, lines: usize| {
        ada.run(&["send", "lobby", text]).exits(0);
        listening.wait_lines(lines);
        assert!(listening.out().trim_end().ends_with(text), "{}", listening.out());
        // A lost connection would be reported.
        let words = listening.err();
        assert!(words.lines().all(|line| line.starts_with("caught up with lobby: 1")), "{words}");
    };
    say("before", 1);
    assert!(shows(host.address(), &first));

    let second = own.renew(2);
    assert!(shows(host.address(), &first), "nobody has told it");
    host.running().signal(Signal::HUP);
    host.running().wait_err("certificate reloaded");
    assert!(shows(host.address(), &second));
    assert!(!shows(host.address(), &first));
    say("reloaded", 2);

    // Each kind of error: no certificate, one for another key, no file.
    let good = std::fs::read(&own.cert).unwrap();
    let other = KeyPair::generate().unwrap();
    let others = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let others = others.self_signed(&other).unwrap().pem();
    let mut lines = 2;
    for (times, wrong) in [Some("no PEM at all"), Some(&*others), None].into_iter().enumerate() {
        match wrong {
            Some(text) => std::fs::write(&own.cert, text).unwrap(),
            None => std::fs::remove_file(&own.cert).unwrap(),
        }
        host.running().signal(Signal::HUP);
        host.running().wait_err_times("the old certificate stays", times + 1);
        assert!(shows(host.address(), &second), "{wrong:?}");
        lines += 1;
        say(&format!("still here {times}"), lines);
    }

    std::fs::write(&own.cert, good).unwrap();
    host.running().signal(Signal::HUP);
    host.running().wait_err_times("certificate reloaded", 2);
    say("and on", lines + 1);
    listening.killed();
}
