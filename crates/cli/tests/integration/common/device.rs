//! Devices of section 11, each on a separate thread: classic connections and the origin's form.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use twinlock_core::classic::origin::Bridge;
use twinlock_core::classic::{ClassicChannel, ClassicScheme, call};
use twinlock_core::keys::ClassicSecret;
use twinlock_transport::OsEntropy;

use super::{Host, Person};

/// The addresses that the devices of one server connect to, and the certificates that they trust.
#[derive(Clone)]
pub struct Ports {
    pub lines: SocketAddr,
    pub origin: SocketAddr,
    trust: Arc<ClientConfig>,
    /// Sent before everything else on each connection.
    pub header: Vec<u8>,
}

impl Ports {
    /// The ports of a server that runs both listeners.
    pub fn of(host: &Host) -> Self {
        let cert = host.data().join("identity/tls-cert.pem");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
        let trust = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self {
            lines: host.printed_address("classic connections on "),
            origin: host.printed_address("origin bridge on "),
            trust: Arc::new(trust),
            header: Vec::new(),
        }
    }

    fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        let mut tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(60)))?;
        tcp.write_all(&self.header)?;
        let name = "localhost".try_into().unwrap();
        let tls = ClientConnection::new(self.trust.clone(), name).unwrap();
        Ok(BufReader::new(StreamOwned::new(tls, tcp)))
    }
}

type Stream = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// Sends a text and waits for its answer.
pub trait Device: Send {
    fn say(&mut self, text: &str) -> io::Result<String>;
}

/// Creates a key; returns it as `classic add` prints it.
pub fn add_key(by: &Person, name: &str, room: &str, format: &str) -> [u8; 32] {
    let ran = by.run(&["classic", "add", name, "--to", room, "--format", format]).exits(0);
    data_encoding::HEXLOWER.decode(ran.out.trim().as_bytes()).unwrap().try_into().unwrap()
}

/// A classic connection.
pub struct Line {
    io: Stream,
    lines: ClassicChannel,
}

impl Line {
    pub fn new(ports: &Ports, name: &str, key: &[u8; 32]) -> io::Result<Self> {
        let mut io = ports.connect(ports.lines)?;
        let greeting = line(&mut io)?;
        let key = ClassicSecret::new(key);
        let (hello, lines) = call(name, &key, greeting.as_bytes(), &mut OsEntropy).unwrap();
        io.get_mut().write_all(hello.as_bytes())?;
        Ok(Self { io, lines })
    }
}

impl Device for Line {
    fn say(&mut self, text: &str) -> io::Result<String> {
        let mut sealed = Vec::new();
        self.lines.seal(text, &mut OsEntropy, &mut sealed);
        self.io.get_mut().write_all(&sealed)?;
        let answer = line(&mut self.io)?;
        Ok(self.lines.open(answer.as_bytes()).unwrap())
    }
}

fn line(io: &mut Stream) -> io::Result<String> {
    let mut line = String::new();
    io.read_line(&mut line)?;
    line.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(line)
}

/// An origin client: it sends no line ends, and waits for each answer.
pub struct Origin {
    io: Stream,
    bridge: Bridge,
}

impl Origin {
    pub fn new(ports: &Ports, key: &[u8; 32]) -> io::Result<Self> {
        let bridge =
            Bridge::new(ClassicScheme::Origin, &ClassicSecret::new(key)).unwrap().reversed();
        Ok(Self { io: ports.connect(ports.origin)?, bridge })
    }
}

impl Device for Origin {
    fn say(&mut self, text: &str) -> io::Result<String> {
        let sealed = self.bridge.seal(text, &mut OsEntropy);
        self.io.get_mut().write_all(sealed.as_bytes())?;
        let mut answer = [0; 4096];
        let read = self.io.read(&mut answer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.bridge.open(&answer[..read]).unwrap())
    }
}
