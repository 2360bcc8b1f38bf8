//! The diagnosis of names with several addresses, and its agreement with a client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;
use twinlock_core::credential::Credential;
use twinlock_core::keys::InviteSecret;
use twinlock_testing::{TestServer, TlsInterceptor, Watch};

use super::*;
use crate::error::Fault;
use crate::ready::client_info;

/// What is behind an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The server.
    Server,
    /// Another server, whose key is not the pinned one.
    OtherServer,
    /// A machine on which nothing listens.
    Nothing,
    /// It closes each connection.
    Closing,
    /// It answers everything with HTTP.
    Http,
    /// It accepts TCP, and never answers.
    Silent,
}

/// An end of every kind.
struct Ends {
    server: TestServer,
    other: TestServer,
    nothing: SocketAddr,
    closing: SocketAddr,
    http: SocketAddr,
    silent: TcpListener,
}

impl Ends {
    async fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            server: TestServer::start().await,
            other: TestServer::start().await,
            nothing: free.local_addr().unwrap(),
            closing: answering(b"").await,
            http: answering(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await,
            silent: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    fn address(&self, end: End) -> SocketAddr {
        match end {
            End::Server => self.server.address(),
            End::OtherServer => self.other.address(),
            End::Nothing => self.nothing,
            End::Closing => self.closing,
            End::Http => self.http,
            End::Silent => self.silent.local_addr().unwrap(),
        }
    }

    /// An invite of the server, whose name has these addresses. It stays unused.
    fn invite(&self, ends: &[End], route: &Route) -> (Subject, Connector) {
        let link = self.server.server().owner_invite().unwrap().to_link();
        let mut link = InviteLink::parse(&link).unwrap();
        link.address = Address::new("chat.example", 7443).unwrap();
        let subject = Subject::Invite(link);
        let connector = subject.connector(route).unwrap();
        (subject, connector.at(ends.iter().map(|end| self.address(*end)).collect()))
    }
}

fn direct(transport: TransportChoice) -> Route {
    Route { transport, via: crate::via::Via::Direct }
}

/// A peer that gives one answer and closes.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let _gone = tcp.read(&mut [0; 4096]).await;
            let _gone = tcp.write_all(answer).await;
        }
    });
    address
}

/// The fault of a client that connects with the invite.
async fn client(subject: &Subject, connector: &Connector) -> Option<Fault> {
    let Subject::Invite(link) = subject else { panic!() };
    let secret = InviteSecret::new(link.secret.expose_secret());
    let credential = Credential::Invite(link.id, secret);
    let opened = connector.open(credential, &client_info("")).await;
    opened.err().map(|error| error.fault())
}

fn steps<'d>(found: &'d Diagnosis, name: &str) -> Vec<&'d Step> {
    found.steps.iter().filter(|step| step.name == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor__fails_where_a_client_fails() {
    use TransportChoice::{Auto, Plain, Tls, WebSocket};
    let ends = Ends::start().await;
    let kinds = [End::Server, End::OtherServer, End::Nothing, End::Closing, End::Http];
    let pairs = kinds.iter().flat_map(|first| kinds.map(|second| vec![*first, second]));
    let pairs = pairs.filter(|pair| pair[0] != pair[1]).chain([vec![]]);
    let cases = pairs.map(|pair| (pair, TransportChoice::Auto));
    let alone = [Auto, Tls, WebSocket, Plain].map(|choice| kinds.map(|end| (vec![end], choice)));
    for (name, transport) in cases.chain(alone.into_iter().flatten()) {
        let route = direct(transport);
        let (subject, connector) = ends.invite(&name, &route);
        let found = walk(&subject, &connector, &route).await;
        let fault = found.failed().and_then(|step| step.fault);
        let case = format!("{name:?}, {transport:?}: {:#?}", found.steps);
        assert_eq!(fault, client(&subject, &connector).await, "{case}");
        let reaches = name.contains(&End::Server) && transport != Plain;
        assert_eq!(fault.is_none(), reaches, "{case}");
        // Each address has a line.
        for end in &name {
            let address = ends.address(*end).to_string();
            let line = found.steps.iter().find(|step| step.text.contains(&address));
            assert!(line.is_some(), "{case}");
        }
        if name.contains(&End::OtherServer) && !reaches && transport != Plain {
            assert_eq!(fault, Some(Fault::ServerIdentity), "{case}");
            assert_eq!(found.failed().unwrap().name, "certificate");
            assert_eq!(steps(&found, "challenge")[0].outcome, Outcome::NotTried);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor__dead_address_beside_a_live_one_is_a_warning() {
    let (ends, route) = (Ends::start().await, direct(TransportChoice::Auto));
    for (dead, name, words) in [
        (End::Nothing, "tcp", "does not accept a connection"),
        (End::Closing, "tls", "closed the connection"),
        (End::Http, "tls", "does not speak TLS"),
        (End::OtherServer, "certificate", "differs from the pinned key"),
        (End::Silent, "tls", "no answer"),
    ] {
        let (subject, connector) = ends.invite(&[dead, End::Server], &route);
        let began = Instant::now();
        let found = walk(&subject, &connector, &route).await;
        assert!(found.failed().is_none(), "{dead:?}: {:#?}", found.steps);
        let warned = steps(&found, name);
        let warned = warned.iter().find(|step| step.outcome == Outcome::Warning).unwrap();
        let address = ends.address(dead).to_string();
        assert!(warned.text.contains(&address) && warned.text.contains(words), "{warned:#?}");
        assert!(warned.remedy.as_ref().unwrap().contains("chat.example"), "{warned:#?}");
        let said = steps(&found, "login")[0];
        assert!(said.text.contains("the invite is valid"), "{said:#?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{dead:?}");
    }
}

/// Neither Host nor path nor HELLO goes to an end of TLS that a client does not accept.
#[tokio::test(flavor = "multi_thread")]
async fn doctor__untrusted_end_gets_nothing_but_tls() {
    let (ends, route) = (Ends::start().await, direct(TransportChoice::Auto));
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let watch = move || -> Watch {
        let count = count.clone();
        Box::new(move |part| {
            count.fetch_add(part.len(), Ordering::SeqCst);
        })
    };
    let proxy = TlsInterceptor::start(ends.server.endpoint(), watch).await;
    let (subject, connector) = ends.invite(&[], &route);
    let connector = connector.at(vec![proxy.address]);
    let found = walk(&subject, &connector, &route).await;
    assert_eq!(found.failed().unwrap().name, "certificate", "{:#?}", found.steps);
    // The one that describes the certificate completes TLS.
    proxy.wait_ended(1).await;
    assert_eq!((proxy.connections(), seen.load(Ordering::SeqCst)), (1, 0));
}
