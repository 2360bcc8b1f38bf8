//! Raw clients for the two listeners of section 11.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use twinlock_core::classic::origin::Bridge;
use twinlock_core::classic::{ClassicChannel, ClassicScheme, call};
use twinlock_core::keys::ClassicSecret;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_server::Config;
use twinlock_transport::OsEntropy;
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust};

use super::{RawClient, TestServer, copy, read_to_end, soon};

/// Opens both listeners on free ports.
pub fn both_ports(config: &mut Config) {
    config.classic.lines = Some("127.0.0.1:0".parse().unwrap());
    config.classic.origin = Some("127.0.0.1:0".parse().unwrap());
}

/// Creates a key; returns its bytes, because keys cannot be copied.
pub async fn add_key(
    client: &mut RawClient,
    name: &str,
    conversation: u64,
    form: proto::ClassicForm,
) -> Result<[u8; 32], RefusalReason> {
    let made = import_key(client, name, conversation, form, &[]).await?;
    Ok(made.try_into().unwrap())
}

/// Imports a key; returns the key in the answer.
pub async fn import_key(
    client: &mut RawClient,
    name: &str,
    conversation: u64,
    form: proto::ClassicForm,
    key: &[u8],
) -> Result<Vec<u8>, RefusalReason> {
    let (name, key) = (name.to_owned(), copy(key));
    let add = proto::AddClassicKey { name, conversation, form: form.into(), key };
    match client.ask(Op::AddClassicKey(add)).await? {
        Answered::NewClassicKey(new) => Ok(new.key.to_vec()),
        other => panic!("{other:?}"),
    }
}

pub async fn revoke_key(client: &mut RawClient, name: &str) -> Result<(), RefusalReason> {
    let revoke = proto::RevokeClassicKey { name: name.to_owned() };
    client.ask(Op::RevokeClassicKey(revoke)).await.map(super::done)
}

pub async fn list_keys(client: &mut RawClient) -> Vec<(String, String, String)> {
    match client.ask(Op::ListClassicKeys(proto::ListClassicKeys::default())).await.unwrap() {
        Answered::ClassicKeys(list) => {
            list.keys.into_iter().map(|key| (key.name, key.user, key.room)).collect()
        }
        other => panic!("{other:?}"),
    }
}

pub type Stream = BufReader<tokio_rustls::client::TlsStream<TcpStream>>;

async fn connect(host: &TestServer, address: std::net::SocketAddr) -> Option<Stream> {
    over(host, TcpStream::connect(address).await.unwrap()).await
}

/// The same through a proxy that reports this IPv4 client.
pub async fn proxied(
    host: &TestServer,
    address: std::net::SocketAddr,
    client: [u8; 4],
) -> Option<Stream> {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(&super::proxy_header(client)).await.unwrap();
    over(host, tcp).await
}

async fn over(host: &TestServer, tcp: TcpStream) -> Option<Stream> {
    tcp.set_nodelay(true).unwrap();
    let tls = ClientTls::new(ServerTrust::Pins(vec![host.pin()]), Alpn::Direct).unwrap();
    soon("TLS", tls.connect("localhost", tcp)).await.ok().map(BufReader::new)
}

/// Connects to the classic listener, up to the kid line. `None`: the server closed it.
pub async fn try_lines(host: &TestServer) -> Option<Stream> {
    connect(host, host.server().classic_addr().unwrap()).await
}

/// Connects to the origin bridge. `None`: the server closed it.
pub async fn try_bridge(host: &TestServer) -> Option<Stream> {
    connect(host, host.server().origin_addr().unwrap()).await
}

pub async fn read_line(io: &mut Stream) -> String {
    let mut line = String::new();
    soon("a line", io.read_line(&mut line)).await.unwrap();
    line
}

pub async fn send(io: &mut Stream, bytes: impl AsRef<[u8]>) {
    // If the server has closed the connection, writing may fail.
    let _thrown_out = io.write_all(bytes.as_ref()).await;
    let _thrown_out = io.flush().await;
}

/// Everything that the server sends until it closes the connection.
pub async fn to_end(mut io: Stream) -> Vec<u8> {
    read_to_end(&mut io).await
}

/// A classic connection that has sent its kid line.
pub struct Caller {
    pub io: Stream,
    pub lines: ClassicChannel,
    /// Its kid line.
    pub hello: String,
}

impl Caller {
    pub async fn new(host: &TestServer, kid: &str, key: &[u8; 32]) -> Self {
        Self::over(try_lines(host).await.unwrap(), kid, key).await
    }

    /// Over an existing connection.
    pub async fn over(mut io: Stream, kid: &str, key: &[u8; 32]) -> Self {
        let greeting = read_line(&mut io).await;
        let key = ClassicSecret::new(key);
        let (hello, lines) =
            call(kid, &key, greeting.trim_end().as_bytes(), &mut OsEntropy).unwrap();
        send(&mut io, &hello).await;
        Self { io, lines, hello }
    }

    pub fn sealed(&mut self, text: &str) -> Vec<u8> {
        let mut line = Vec::new();
        self.lines.seal(text, &mut OsEntropy, &mut line);
        line
    }

    pub async fn answer(&mut self) -> String {
        let line = read_line(&mut self.io).await;
        assert!(!line.is_empty(), "the line was closed");
        self.lines.open(line.trim_end().as_bytes()).unwrap()
    }

    pub async fn say(&mut self, text: &str) -> String {
        let line = self.sealed(text);
        send(&mut self.io, line).await;
        self.answer().await
    }
}

/// The client's end of the bridge.
pub fn bridge(form: ClassicScheme, key: &[u8; 32]) -> Bridge {
    Bridge::new(form, &ClassicSecret::new(key)).unwrap().reversed()
}

/// Kind, sender and text of the entries after `after`.
pub async fn recorded(
    client: &mut RawClient,
    conversation: u64,
    after: u64,
) -> Vec<(u32, String, String)> {
    let page = client.read(conversation, after).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    page.entries.iter().map(|e| (e.kind, text(&e.sender), text(&e.body))).collect()
}
