//! A proxy that intercepts TLS: it ends its clients' TLS with a certificate of its own and opens TLS
//! to the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
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
    ended: watch::Receiver<usize>,
}

impl TlsInterceptor {
    /// Starts a proxy before `server`. `watcher` creates a watcher for each direction of each
    /// connection.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(
        server: Endpoint,
        watcher: impl Fn() -> Watch + Send + Sync + 'static,
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
        let (counter, watcher) = (connections.clone(), Arc::new(watcher));
        let (ended_sender, ended) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (inside, server) = (inside.clone(), server.clone());
                let (counter, watcher) = (counter.clone(), watcher.clone());
                let ended = ended_sender.clone();
                tokio::spawn(async move {
                    let Ok(client) = inside.accept(tcp).await else { return };
                    counter.fetch_add(1, Ordering::Relaxed);
                    let tcp = TcpStream::connect(server.address).await.unwrap();
                    let server = server.tls_over(tcp).await.unwrap();
                    let (from_client, to_client) = split(client);
                    let (from_server, to_server) = split(server);
                    let up = forward(from_client, to_server, watcher());
                    let down = forward(from_server, to_client, watcher());
                    tokio::join!(up, down);
                    ended.send_modify(|ended| *ended += 1);
                });
            }
        });
        Self { address, pin, certificate, connections, ended }
    }

    /// The number of clients that completed TLS.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Waits until `count` connections have ended. Their watchers have then received everything:
    /// a client that is gone can have bytes on the way.
    ///
    /// # Panics
    /// If they have not ended after 10 s.
    pub async fn wait_ended(&self, count: usize) {
        let mut ended = self.ended.clone();
        let waited =
            timeout(Duration::from_secs(10), ended.wait_for(|ended| *ended >= count)).await;
        assert!(waited.is_ok(), "of {count} connections {} have ended", *self.ended.borrow());
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
