//! The way to the server up to TLS: names, addresses and the proxy, by the functions with which a
//! client connects.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::TcpStream;
use tokio::time::timeout;
use twinlock_core::invite::Address;
use twinlock_transport::tls::Alpn;

use super::attempts::{Attempt, race_all};
use super::proxy;
use super::step::{Diagnosis, Step};
use super::tls::Shown;
use crate::connector::{CarriedStream, CarrierFault, Connector};
use crate::error::Fault;
use crate::via::{ForwardProxy, Via};

/// Timeout of a question that a client would not ask.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Most bytes of the first message of TLS.
const MAX_HELLO: usize = 16 * 1024;
/// Bytes of an answer that show what speaks.
const MAX_ANSWER: usize = 1024;

/// The way to one address, of the server or of the proxy.
pub(super) struct Way {
    to: SocketAddr,
    pub(super) proxy: Option<ForwardProxy>,
}

/// The result of the race of all addresses.
pub(super) enum Raced {
    /// The first one up to the end of TLS.
    Won(Way, Shown),
    /// None; the address whose failure says most, after TCP and the proxy.
    Lost(Way, CarrierFault),
    /// None gets as far as TLS.
    Unreachable,
}

impl Way {
    /// A new connection with this offer of protocols.
    pub(super) async fn connect(
        &self,
        connector: &Connector,
        offer: Alpn,
    ) -> Result<CarriedStream, CarrierFault> {
        self.carrier(&connector.offering(offer)).await
    }

    /// A new connection up to the end of TLS.
    pub(super) async fn carrier(
        &self,
        connector: &Connector,
    ) -> Result<CarriedStream, CarrierFault> {
        connector.carrier(self.to, self.proxy.as_ref()).await
    }

    /// The start of what the other end answers to the first message of TLS.
    pub(super) async fn answer_to_tls(&self, connector: &Connector) -> Vec<u8> {
        let asking = async {
            let tcp = connector.tcp(self.to, self.proxy.as_ref()).await.ok()?;
            answer_to_tls(connector, tcp).await
        };
        timeout(DEADLINE, asking).await.ok().flatten().unwrap_or_default()
    }
}

/// Sends the first message of TLS and returns the start of the answer, which TLS does not get.
async fn answer_to_tls(connector: &Connector, mut tcp: TcpStream) -> Option<Vec<u8>> {
    let (near, mut far) = duplex(MAX_HELLO);
    let greeting = connector.client_tls().connect(connector.address().bare_host(), near);
    let exchange = async {
        let mut hello = Vec::with_capacity(MAX_HELLO);
        far.read_buf(&mut hello).await.ok()?;
        tcp.write_all(&hello).await.ok()?;
        let mut answer = Vec::with_capacity(MAX_ANSWER);
        while answer.len() < MAX_ANSWER && !answer.contains(&b'\n') {
            match tcp.read_buf(&mut answer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        Some(answer)
    };
    tokio::select! {
        _ = greeting => None,
        answer = exchange => answer,
    }
}

/// Finds the proxy and the addresses, and races them as a client does. Then tries those that the
/// race left out. Reports `name`, `tcp` and `proxy`; for addresses that fail where another one
/// works, also later steps.
pub(super) async fn find(connector: &Connector, via: &Via, found: &mut Diagnosis) -> Raced {
    let proxy = match connector.proxy() {
        Ok(proxy) => proxy,
        Err(fault) => {
            found.add(no_way_out(connector, fault));
            return Raced::Unreachable;
        }
    };
    let end = proxy.as_ref().map_or(connector.address(), |proxy| &proxy.address);
    let addresses = match connector.resolve(proxy.as_ref()).await {
        Ok(addresses) => addresses,
        Err(fault) => {
            found.add(unresolved(connector, end, proxy.is_some(), fault));
            return Raced::Unreachable;
        }
    };
    found.add(resolved(end, &addresses));
    let (won, mut attempts) = race_all(connector, &addresses, proxy.as_ref()).await;
    let lead = match &won {
        Some((to, _)) => *to,
        None => match attempts.iter().min_by_key(|attempt| attempt.rank()) {
            Some(attempt) => attempt.to,
            None => return Raced::Unreachable,
        },
    };
    let lead_step = attempts.iter().find(|attempt| attempt.to == lead).map_or("", Attempt::step);
    let is_one = attempts.len() == 1;
    for attempt in &attempts {
        // Where one address works, another one that does not is worth a warning.
        let is_fatal = won.is_none() && attempt.step() == lead_step;
        match &attempt.result {
            Err(CarrierFault::Tcp(problem)) => {
                found.add(attempt.no_tcp(problem.as_ref(), end, proxy.is_some(), is_one, is_fatal));
                continue;
            }
            Err(fault) if attempt.to != lead => {
                found.add(attempt.failed_beside(fault, end, is_fatal));
            }
            // The steps after TCP are described for the leading address.
            _ => {}
        }
        found.add(attempt.reached());
    }
    let lost = match attempts.iter().position(|attempt| attempt.to == lead) {
        Some(at) => attempts.swap_remove(at).result.err(),
        None => None,
    };
    match &lost {
        Some(CarrierFault::Tcp(_)) => {}
        Some(CarrierFault::Proxy(fault)) => {
            let refused = fault.as_ref();
            found.add(proxy::describe(proxy.as_ref(), via, connector.address(), Some(refused)));
        }
        _ => found.add(proxy::describe(proxy.as_ref(), via, connector.address(), None)),
    }
    let way = Way { to: lead, proxy };
    match (won, lost) {
        (Some((_, shown)), _) => Raced::Won(way, shown),
        (None, Some(fault @ (CarrierFault::Tls(_) | CarrierFault::Cut(_)))) => {
            Raced::Lost(way, fault)
        }
        (None, _) => Raced::Unreachable,
    }
}

/// The step for a way that the settings exclude.
fn no_way_out(connector: &Connector, fault: CarrierFault) -> Step {
    match fault {
        CarrierFault::Via(error) => {
            let text = format!("the environment names a proxy that cannot be used: {error}");
            Step::failed("proxy", Fault::Local, text).remedy(
                "set HTTPS_PROXY or ALL_PROXY to http://HOST:PORT or socks5://HOST:PORT. Proxies that \
                 are reached over TLS (https://), SOCKS4 and PAC files are not supported; --via none \
                 ignores the environment",
            )
        }
        CarrierFault::Cut(_) => Step::failed(
            "tls",
            Fault::ServerIdentity,
            "the plain transport has no TLS, and the profile requires that TLS reaches the server",
        )
        .remedy("leave out --transport plain"),
        fault => {
            let error = connector.carrier_error(fault, None);
            Step::failed("proxy", error.fault(), format!("a proxy is on the way out: {error}"))
                .remedy("leave out --transport plain, or use --via none")
        }
    }
}

fn resolved(end: &Address, addresses: &[SocketAddr]) -> Step {
    let host = end.bare_host();
    let ips: Vec<_> = addresses.iter().map(|at| at.ip().to_string()).collect();
    let text = match host.parse::<std::net::IpAddr>() {
        _ if ips.is_empty() => {
            return Step::failed("name", Fault::Network, format!("the name {host} has no address"))
                .remedy("check the spelling, and add an A or AAAA record to the DNS");
        }
        Ok(_) => format!("{host} is an address"),
        Err(_) => format!("{host} is {}", ips.join(", ")),
    };
    Step::ok("name", text).fact("host", host).fact("addresses", ips)
}

fn unresolved(connector: &Connector, end: &Address, is_proxy: bool, fault: CarrierFault) -> Step {
    let host = end.bare_host();
    let problem = match fault {
        CarrierFault::Name(Some(error)) => error.to_string(),
        CarrierFault::Name(None) => "no answer".to_owned(),
        fault => {
            let error = connector.carrier_error(fault, None);
            return Step::failed("name", error.fault(), error.to_string())
                .remedy("leave out --transport plain");
        }
    };
    let text = format!("the name {host} cannot be resolved: {problem}");
    let remedy = match is_proxy {
        true => "check the proxy's name, and this machine's DNS".to_owned(),
        false => format!(
            "check the spelling of {host} and this machine's DNS (`getent hosts {host}`). If this \
             network requires a proxy, name it with --via: the proxy then resolves the name"
        ),
    };
    Step::failed("name", Fault::Network, text).remedy(remedy).fact("host", host)
}
