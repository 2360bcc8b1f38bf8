//! A proxy that intercepts TLS and passes the plaintext to a watcher.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use twinlock_core::id::TlsPin;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_transport::tls::{Alpn, ClientTls, ServerCert, ServerTls, ServerTrust, spki_pin};

use crate::common::{Host, Person};

/// A proxy that terminates its clients' TLS and opens TLS to the server.
pub struct Proxy {
    pub address: SocketAddr,
    /// Its certificate, PEM, which clients can trust as a CA.
    pub ca_file: PathBuf,
    pub pin: TlsPin,
    lines: Arc<AtomicUsize>,
    _runtime: Runtime,
}

/// Receives the decrypted TLS data of one direction of one connection.
pub type Watch = Box<dyn FnMut(&[u8]) + Send>;

impl Proxy {
    /// A proxy before `host`, whose key is `server_pin`. `watch` creates a watcher for each
    /// direction of each connection.
    pub fn start(
        host: &Host,
        server_pin: TlsPin,
        watch: impl Fn() -> Watch + Send + Sync + 'static,
    ) -> Self {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let cert = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let ca_file = host.root().join("proxy.pem");
        std::fs::write(&ca_file, cert.pem()).unwrap();
        let pin = spki_pin(cert.der()).unwrap();
        let pem = (cert.pem(), key.serialize_pem());
        let ends = ServerCert::from_pem(pem.0.as_bytes(), pem.1.as_bytes()).unwrap();
        let inside = ServerTls::new(ends).unwrap();
        let outside = ClientTls::new(ServerTrust::Pins(vec![server_pin]), Alpn::Direct).unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let lines = Arc::new(AtomicUsize::new(0));
        let (to, counted, watch) = (host.address(), lines.clone(), Arc::new(watch));
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (inside, outside) = (inside.clone(), outside.clone());
                let (counted, watch) = (counted.clone(), watch.clone());
                tokio::spawn(async move {
                    let Ok(client) = inside.accept(tcp).await else { return };
                    let server = TcpStream::connect(to).await.unwrap();
                    let server = outside.connect("localhost", server).await.unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                    let (from_client, to_client) = split(client);
                    let (from_server, to_server) = split(server);
                    let up = carry(from_client, to_server, watch());
                    let down = carry(from_server, to_client, watch());
                    tokio::join!(up, down);
                });
            }
        });
        Self { address, ca_file, pin, lines, _runtime: runtime }
    }

    /// A forged invite link, with the proxy's address and key.
    pub fn forges(&self, link: &str) -> String {
        let mut link = InviteLink::parse(link).unwrap();
        link.address = Address::new("127.0.0.1", self.address.port()).unwrap();
        link.tls_pin = Some(self.pin);
        link.to_link().to_string()
    }

    /// Makes a person's profile trust the proxy's certificate as a CA, with this `binding`, as a
    /// user can by editing the file.
    pub fn is_trusted_by(&self, person: &Person, binding: &str) -> Person {
        let text = person.profile_text();
        let (head, _) = text.split_once("[tls]").unwrap();
        let head = head.lines().map(|line| {
            let is_binding = line.starts_with("binding = ");
            if is_binding { format!("binding = \"{binding}\"\n") } else { format!("{line}\n") }
        });
        let tls = format!("[tls]\ntrust = \"ca\"\nca_file = \"{}\"\n", self.ca_file.display());
        std::fs::write(person.profile_file(), head.collect::<String>() + &tls).unwrap();
        person.by(self.address)
    }

    /// The number of forwarded connections.
    pub fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut watch: Watch,
) {
    let mut part = vec![0; 16 * 1024];
    while let Ok(got @ 1..) = from.read(&mut part).await {
        watch(&part[..got]);
        if to.write_all(&part[..got]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _gone = to.shutdown().await;
}

/// A secret in each form in which it could appear.
pub fn forms(secret: &[u8]) -> [Vec<u8>; 5] {
    let hex = HEXLOWER.encode(secret);
    [
        secret.to_vec(),
        hex.to_ascii_uppercase().into_bytes(),
        hex.into_bytes(),
        BASE64.encode(secret).trim_end_matches('=').as_bytes().to_vec(),
        BASE64URL_NOPAD.encode(secret).into_bytes(),
    ]
}
