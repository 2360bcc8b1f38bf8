//! A proxy that terminates TLS without ALPN and passes HTTP only, as an older HAProxy does in mode `http`
//! without the setting `alpn`: it refuses HELLO, and passes the upgrade to WebSocket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy_bidirectional,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use twinlock_core::id::TlsPin;
use twinlock_transport::tls::spki_pin;

pub struct HttpOnly {
    pub address: SocketAddr,
    /// Of its TLS key.
    pub pin: TlsPin,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl HttpOnly {
    /// Starts a proxy in front of a server's plain port.
    pub fn start(server: SocketAddr) -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let cert = cert.self_signed(&key).unwrap();
        let pin = spki_pin(cert.der()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let [connections, requests] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let (accepted, asked) = (connections.clone(), requests.clone());
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, accepted, asked) =
                    (acceptor.clone(), accepted.clone(), asked.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    accepted.fetch_add(1, Ordering::SeqCst);
                    let pass = service_fn(|request| {
                        asked.fetch_add(1, Ordering::SeqCst);
                        pass(server, request)
                    });
                    // Answers what is not HTTP with 400.
                    let _ended = http1::Builder::new()
                        .serve_connection(HyperIo(tls), pass)
                        .with_upgrades()
                        .await;
                });
            }
        });
        Self { address, pin, connections, requests, _runtime: runtime }
    }

    /// The connections that completed TLS, and the HTTP requests on them.
    pub fn counts(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
    }
}

/// Passes a request to the server; after an upgrade, all bytes.
async fn pass(server: SocketAddr, request: Request<Incoming>) -> io::Result<Response<String>> {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        head += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    let mut to = TcpStream::connect(server).await?;
    to.write_all(format!("{head}\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(to.read_u8().await?);
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap();
    let mut response = Response::builder().status(status);
    for field in answer.lines().skip(1) {
        let Some((name, value)) = field.split_once(": ") else { continue };
        if !name.eq_ignore_ascii_case("content-length") {
            response = response.header(name, value);
        }
    }
    if status == 101 {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let parts = upgraded.downcast::<HyperIo<TlsStream<TcpStream>>>().unwrap();
            let mut tls = parts.io.0;
            to.write_all(&parts.read_buf).await.unwrap();
            let _ended = copy_bidirectional(&mut tls, &mut to).await;
        });
    }
    Ok(response.body(String::new()).unwrap())
}

/// A Tokio stream as hyper reads and writes it.
struct HyperIo<S>(S);

impl<S: AsyncRead + Unpin> Read for HyperIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 2048];
        let room = cursor.remaining().min(bytes.len());
        let mut read = ReadBuf::new(&mut bytes[..room]);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        cursor.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Write for HyperIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
