//! A proxy that intercepts TLS: it ends its clients' TLS with a certificate of its own and opens TLS
//! to the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream};
use twinlock_core::id::TlsPin;
use twinlock_transport::tls::{ServerCert, ServerTls};

use crate::Endpoint;

/// Receives the decrypted TLS data of one direction of one connection.
pub type Watch = Box<dyn FnMut(&[u8]) + Send>;

/// A running proxy. It ends with the runtime that it was started in.
#[derive(Debug)]
pub struct TlsInterceptor {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pin of its certificate.
    pub pin: TlsPin,
    /// Its certificate, PEM, which clients can trust as a CA.
    pub certificate: String,
    connections: Arc<AtomicUsize>,
}

impl TlsInterceptor {
    /// Starts a proxy before `server`. `watch` creates a watcher for each direction of each
    /// connection.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(
        server: Endpoint,
        watch: impl Fn() -> Watch + Send + Sync + 'static,
    ) -> Self {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
        let key = key.serialize_pem();
        let own = ServerCert::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let pin = own.pin();
        let inside = ServerTls::new(own).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counter, watch) = (connections.clone(), Arc::new(watch));
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (inside, server) = (inside.clone(), server.clone());
                let (counter, watch) = (counter.clone(), watch.clone());
                tokio::spawn(async move {
                    let Ok(client) = inside.accept(tcp).await else { return };
                    let tcp = TcpStream::connect(server.address).await.unwrap();
                    let server = server.tls_over(tcp).await.unwrap();
                    counter.fetch_add(1, Ordering::Relaxed);
                    let (from_client, to_client) = split(client);
                    let (from_server, to_server) = split(server);
                    let up = forward(from_client, to_server, watch());
                    let down = forward(from_server, to_client, watch());
                    tokio::join!(up, down);
                });
            }
        });
        Self { address, pin, certificate, connections }
    }

    /// The number of forwarded connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn forward(
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
