//! A relay between a proxy and the server, which keeps what the proxy sends and receives there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use twinlock_testing::endpoint::tcp_from;
use twinlock_testing::search::first_of;

use crate::common::Host;

type Seen = Arc<Mutex<Vec<u8>>>;

/// A relay; its connections end with it.
pub struct Tap {
    pub address: SocketAddr,
    seen: Seen,
    _runtime: Runtime,
}

impl Tap {
    /// Relays TCP to `server`, to which it connects from `from`. If `ends_tls` has the ends for both
    /// sides, it terminates TLS as the server does, and keeps what is inside.
    pub fn start(from: Ipv4Addr, server: SocketAddr, ends_tls: Option<Ends>) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Seen::default();
        let list = seen.clone();
        runtime.spawn(async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                let (list, ends) = (list.clone(), ends_tls.clone());
                tokio::spawn(async move {
                    let _ = tcp.set_nodelay(true);
                    if let Err(error) = Self::pass(tcp, from, server, ends, list).await {
                        eprintln!("tap: {error}");
                    }
                });
            }
        });
        Self { address, seen, _runtime: runtime }
    }

    async fn pass(
        mut tcp: TcpStream,
        from: Ipv4Addr,
        server: SocketAddr,
        ends: Option<Ends>,
        seen: Seen,
    ) -> io::Result<()> {
        let Some(ends) = ends else {
            relay(tcp, tcp_from(from, server).await?, seen).await;
            return Ok(());
        };
        let header = proxy_header(&mut tcp).await?;
        let inside = TlsAcceptor::from(ends.server).accept(tcp).await?;
        let mut to = tcp_from(from, server).await?;
        to.write_all(&header).await?;
        let mut config = (*ends.client).clone();
        let selected = inside.get_ref().1.alpn_protocol();
        config.alpn_protocols = selected.map(<[u8]>::to_vec).into_iter().collect();
        let name = "localhost".try_into().unwrap();
        let to = TlsConnector::from(Arc::new(config)).connect(name, to).await?;
        relay(inside, to, seen).await;
        Ok(())
    }

    /// The number of bytes that it relayed, in both directions.
    pub fn bytes(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The first of these that it relayed, in one direction and at one time.
    pub fn finds<'a>(&self, any: &'a [Vec<u8>]) -> Option<&'a [u8]> {
        first_of(any, &self.seen.lock().unwrap())
    }
}

/// How a relay terminates TLS on both sides.
#[derive(Clone)]
pub struct Ends {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Ends {
    /// Offers what the server offers, with another key, and trusts the server's certificate.
    pub fn like(host: &Host) -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let cert = cert.self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        server.alpn_protocols = vec![b"twinlock/1".to_vec(), b"http/1.1".to_vec()];
        let mut roots = RootCertStore::empty();
        let cert = host.data().join("identity/tls-cert.pem");
        roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { server: Arc::new(server), client: Arc::new(client) }
    }
}

/// The PROXY header before TLS, empty if there is none.
async fn proxy_header(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    const SIGNATURE: usize = 16;
    let mut header = vec![0];
    if tcp.peek(&mut header).await? == 0 || header == [0x16] {
        return Ok(Vec::new());
    }
    if header == *b"P" {
        header.clear();
        while !header.ends_with(b"\n") {
            header.push(tcp.read_u8().await?);
        }
    } else {
        header = vec![0; SIGNATURE];
        tcp.read_exact(&mut header).await?;
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        header.resize(SIGNATURE + rest, 0);
        tcp.read_exact(&mut header[SIGNATURE..]).await?;
    }
    Ok(header)
}

async fn relay<C, S>(client: C, server: S, seen: Seen)
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let ((from_client, to_client), (from_server, to_server)) = (split(client), split(server));
    tokio::join!(carry(from_client, to_server, &seen), carry(from_server, to_client, &seen));
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, seen: &Seen) {
    // Larger than a TLS record, a frame's header and a message: a text is not divided unnoticed.
    let mut part = vec![0; 64 * 1024];
    while let Ok(got @ 1..) = from.read(&mut part).await {
        seen.lock().unwrap().extend_from_slice(&part[..got]);
        if to.write_all(&part[..got]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _gone = to.shutdown().await;
}
