//! A malicious server: it has the real server's keys, logs in there with the account of its client,
//! and forwards all messages, except those that a test changes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use twinlock_core::frame::CloseCode;
use twinlock_core::handshake::self_register;
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::opaque::ServerSetup;
use twinlock_core::proto;
use twinlock_core::session::{BindingPolicy, SessionConfig, SessionEvent};
use twinlock_transport::OsEntropy;
use twinlock_transport::connection::Connection;
use twinlock_transport::login::{Acceptor, parse_hello};
use twinlock_transport::tls::{ServerCert, ServerTls, channel_binding};

use crate::common::raw::Card;
use crate::common::{Host, Person};

/// A message of the server.
pub enum Said {
    Item(proto::Item),
    /// Without data it is not forwarded.
    Bulk {
        transfer: u32,
        offset: u64,
        data: Vec<u8>,
    },
}

/// Changes a message.
pub type Tampering = Box<dyn FnMut(&mut Said) + Send>;

pub struct MaliciousServer {
    address: SocketAddr,
    tampering: Arc<Mutex<Tampering>>,
    _runtime: Runtime,
}

impl MaliciousServer {
    /// Impersonates `host` towards `person`.
    pub fn start(host: &Host, person: &Person) -> Self {
        Self::start_with_clock(host, person, 0)
    }

    /// The same with a clock that is ahead by this many ms.
    pub fn start_with_clock(host: &Host, person: &Person, ahead_ms: u64) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let tampering: Arc<Mutex<Tampering>> = Arc::new(Mutex::new(Box::new(|_| {})));
        let keys = Arc::new(Keys::new(host, person, ahead_ms));
        let shared = tampering.clone();
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (keys, shared) = (keys.clone(), shared.clone());
                tokio::spawn(async move { carry(tcp, &keys, &shared).await });
            }
        });
        Self { address, tampering, _runtime: runtime }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Applies this change to all later messages.
    pub fn install(&self, tampering: impl FnMut(&mut Said) + Send + 'static) {
        *self.tampering.lock().unwrap() = Box::new(tampering);
    }

    /// Forwards all later messages unchanged.
    pub fn reset(&self) {
        self.install(|_| {});
    }
}

/// The keys that were stolen from a server, and the account that they are used against.
struct Keys {
    setup: ServerSetup,
    inside: ServerTls,
    account: Card,
    ahead_ms: u64,
}

impl Keys {
    fn new(host: &Host, person: &Person, ahead_ms: u64) -> Self {
        let read = |name| std::fs::read(host.data().join("identity").join(name)).unwrap();
        let setup = read("opaque-setup");
        let setup = ServerSetup::from_bytes(setup.as_slice().try_into().unwrap()).unwrap();
        let cert = ServerCert::from_pem(&read("tls-cert.pem"), &read("tls-key.pem")).unwrap();
        let inside = ServerTls::new(cert).unwrap();
        Self { setup, inside, account: Card::of(person), ahead_ms }
    }
}

/// Forwards messages until either connection ends.
async fn carry(tcp: TcpStream, keys: &Keys, tampering: &Mutex<Tampering>) {
    let stream = keys.inside.accept(tcp).await.unwrap();
    let exporter = channel_binding(stream.get_ref().1).ok();
    let mut greeter = Acceptor::new(stream);
    let hello = parse_hello(&greeter.read_hello().await.unwrap()).unwrap();
    let record =
        self_register(&keys.setup, &keys.account.device.credential(), &mut OsEntropy).unwrap();
    let (state, challenge) = hello.challenge(&keys.setup, Some(&record), &mut OsEntropy).unwrap();
    let proof = greeter.exchange(&challenge).await.unwrap();
    let established = state.handle_proof(&proof).unwrap();

    let mut client = keys.account.connect().await;
    client.info.time_ms += keys.ahead_ms;
    let (info, mut there) = (client.info.encode_to_vec(), client.connection);
    let binding = BindingPolicy::Warn;
    let timing = Timing::default();
    let config = SessionConfig { binding, exporter, info, max_version: VERSION, timing };
    let mut here = greeter.into_connection(established, config);
    loop {
        let (from_here, woken) = tokio::select! {
            woken = here.wait(None) => (true, woken),
            woken = there.wait(None) => (false, woken),
        };
        let goes_on = woken.is_ok()
            && if from_here {
                hand_on(&mut here, &mut there)
            } else {
                say(&mut there, &mut here, tampering)
            };
        if !goes_on {
            tokio::join!(here.close(CloseCode::Bye), there.close(CloseCode::Bye));
            return;
        }
    }
}

/// Forwards a client's message unchanged.
fn hand_on<A, B>(from: &mut Connection<A>, to: &mut Connection<B>) -> bool
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    match from.open_frame() {
        Ok(SessionEvent::App(body)) => to.send_app(body).is_ok(),
        Ok(SessionEvent::Bulk { transfer, offset, data }) => {
            to.session_mut().send_bulk(transfer, offset, data).is_ok()
        }
        Ok(SessionEvent::Closed(_)) | Err(_) => false,
        Ok(_) => true,
    }
}

/// Forwards a server's message after the change that the test installed.
fn say<A, B>(from: &mut Connection<A>, to: &mut Connection<B>, tampering: &Mutex<Tampering>) -> bool
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut tampering = tampering.lock().unwrap();
    match from.open_frame() {
        Ok(SessionEvent::App(body)) => {
            let said = proto::ToClient::decode(body).unwrap();
            let items = said.items.into_iter().map(|item| {
                let mut said = Said::Item(item);
                tampering(&mut said);
                match said {
                    Said::Item(item) => item,
                    Said::Bulk { .. } => panic!("an item stays one"),
                }
            });
            let said = proto::ToClient { items: items.collect() };
            to.send_app(&said.encode_to_vec()).is_ok()
        }
        Ok(SessionEvent::Bulk { transfer, offset, data }) => {
            let mut said = Said::Bulk { transfer, offset, data: data.to_vec() };
            tampering(&mut said);
            match said {
                Said::Bulk { data, .. } if data.is_empty() => true,
                Said::Bulk { transfer, offset, data } => {
                    to.session_mut().send_bulk(transfer, offset, &data).is_ok()
                }
                Said::Item(_) => panic!("bytes stay bytes"),
            }
        }
        Ok(SessionEvent::Closed(_)) | Err(_) => false,
        Ok(_) => true,
    }
}
