//! Two ends of TLS over loopback sockets.

pub mod connected;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{client, server};
use twinlock_transport::tls::{Alpn, ClientTls, ServerCert, ServerTls, ServerTrust, TlsFault};

pub type ServerEnd = server::TlsStream<TcpStream>;
pub type ClientEnd = client::TlsStream<TcpStream>;

/// A certificate for `localhost` from 1975 to 4096 unless `change` says otherwise.
pub fn certificate(
    key: &KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut params);
    params.self_signed(key).unwrap().der().clone()
}

pub fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(key.serialize_der()).unwrap()
}

pub fn server_cert(change: impl FnOnce(&mut CertificateParams)) -> ServerCert {
    let key = KeyPair::generate().unwrap();
    ServerCert::from_der(vec![certificate(&key, change)], der(&key)).unwrap()
}

pub fn fresh() -> ServerCert {
    server_cert(|_| ())
}

pub fn pinning(cert: &ServerCert) -> ClientTls {
    ClientTls::new(ServerTrust::Pins(vec![cert.pin()]), Alpn::Direct).unwrap()
}

pub fn trusting(roots: &[&ServerCert]) -> ClientTls {
    let extra_roots = roots.iter().map(|cert| cert.chain()[0].clone()).collect();
    ClientTls::new(ServerTrust::Ca { extra_roots }, Alpn::Direct).unwrap()
}

pub async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Performs one handshake and returns each end's result.
pub async fn meet(
    server: &ServerTls,
    client: &ClientTls,
    name: &str,
) -> (Result<ServerEnd, TlsFault>, Result<ClientEnd, TlsFault>) {
    let (listener, address) = listen().await;
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        server.accept(tcp).await
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        client.connect(name, tcp).await
    };
    tokio::join!(accept, connect)
}

/// One handshake of our client with a server whose configuration is not ours.
pub async fn meet_foreign_server(
    config: rustls::ServerConfig,
    client: &ClientTls,
) -> Result<ClientEnd, TlsFault> {
    let (listener, address) = listen().await;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        acceptor.accept(tcp).await
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        client.connect("localhost", tcp).await
    };
    let (_server, client) = tokio::join!(accept, connect);
    client
}

/// One handshake of our server with a client whose configuration is not ours.
pub async fn meet_foreign_client(
    server: &ServerTls,
    config: rustls::ClientConfig,
) -> (Result<ServerEnd, TlsFault>, std::io::Result<ClientEnd>) {
    let (listener, address) = listen().await;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        server.accept(tcp).await
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        connector.connect("localhost".try_into().unwrap(), tcp).await
    };
    tokio::join!(accept, connect)
}

/// Serves one chain with one key, whether they match or not.
#[derive(Debug)]
pub struct Fixed(pub Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

pub fn foreign_server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    alpn: &[&[u8]],
) -> rustls::ServerConfig {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Fixed(Arc::new(CertifiedKey::new(chain, key)))));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

pub fn foreign_client(
    root: &ServerCert,
    change: impl FnOnce(&mut rustls::crypto::CryptoProvider),
    alpn: &[&[u8]],
) -> rustls::ClientConfig {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    change(&mut provider);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.chain()[0].clone()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

pub fn now() -> SystemTime {
    SystemTime::now()
}
