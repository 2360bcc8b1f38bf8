//! The way to the server up to TCP: names, addresses and the proxy.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use twinlock_core::invite::Address;
use twinlock_transport::forward_proxy::{self, ProxyFault};

use super::step::{Diagnosis, Step};
use crate::error::Fault;
use crate::race::interleaved;
use crate::route::{Route, TransportChoice};
use crate::via::{ForwardProxy, Via};

/// Timeout of one attempt.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// A way to the server that TCP can go.
pub(super) struct Path {
    server: Address,
    /// The server or the proxy.
    first: SocketAddr,
    pub(super) proxy: Option<ForwardProxy>,
}

impl Path {
    /// Finds a way, and reports `name`, `tcp` and `proxy`.
    pub(super) async fn find(
        server: &Address,
        route: &Route,
        found: &mut Diagnosis,
    ) -> Option<Self> {
        let proxy = match route.via.proxy_for(server) {
            Ok(proxy) => proxy,
            Err(error) => {
                let text = format!("the environment names a proxy that cannot be used: {error}");
                found.add(Step::failed("proxy", Fault::Local, text).remedy(
                    "set HTTPS_PROXY or ALL_PROXY to http://HOST:PORT or socks5://HOST:PORT. \
                     Proxies that are reached over TLS (https://), SOCKS4 and PAC files are not \
                     supported; --via none ignores the environment",
                ));
                return None;
            }
        };
        if route.transport == TransportChoice::Plain && proxy.is_some() {
            let text = "the plain transport reaches this machine only, not a proxy";
            let step = Step::failed("proxy", Fault::Local, text);
            found.add(step.remedy("leave out --transport plain, or use --via none"));
            return None;
        }
        let end = proxy.as_ref().map_or(server, |proxy| &proxy.address);
        let addresses = look_up(end, proxy.is_some(), found).await?;
        let first = reach(end, &addresses, proxy.is_some(), found).await?;
        let path = Self { server: server.clone(), first, proxy };
        path.ask_proxy(&route.via, found).await.then_some(path)
    }

    /// A new connection to the server, through the proxy.
    pub(super) async fn connect(&self) -> Result<TcpStream, String> {
        let tcp = timeout(DEADLINE, TcpStream::connect(self.first)).await;
        let tcp = tcp.map_err(|_| "no answer")?.map_err(|error| error.to_string())?;
        let Some(proxy) = &self.proxy else { return Ok(tcp) };
        let tunnel = timeout(DEADLINE, self.tunnel(tcp, proxy)).await;
        tunnel.map_err(|_| "the proxy does not answer")?.map_err(|fault| fault.to_string())
    }

    async fn tunnel(&self, tcp: TcpStream, proxy: &ForwardProxy) -> Result<TcpStream, ProxyFault> {
        let server = (self.server.host(), self.server.port());
        forward_proxy::tunnel(tcp, proxy.protocol, proxy.login.as_ref(), server).await
    }

    async fn ask_proxy(&self, via: &Via, found: &mut Diagnosis) -> bool {
        let Some(proxy) = &self.proxy else {
            found.add(Step::ok("proxy", "none on the way out").fact("proxy", Value::Null));
            return true;
        };
        let from = match via {
            Via::Environment => "the environment",
            _ => "--via",
        };
        let asked = async {
            let tcp = TcpStream::connect(self.first).await?;
            self.tunnel(tcp, proxy).await
        };
        let fault = match timeout(DEADLINE, asked).await {
            Ok(Ok(_)) => None,
            Ok(Err(fault)) => Some(fault),
            Err(_) => Some(ProxyFault::Io(std::io::ErrorKind::TimedOut.into())),
        };
        let step = match &fault {
            None => Step::ok(
                "proxy",
                format!("{proxy} (from {from}) opens a connection to {}", self.server),
            ),
            Some(fault) => {
                let text = format!(
                    "{proxy} (from {from}) opens no connection to {}: {fault}",
                    self.server
                );
                Step::failed("proxy", Fault::Network, text)
                    .remedy(proxy_remedy(fault, &self.server))
            }
        };
        let schemes = match &fault {
            Some(ProxyFault::WantsLogin { schemes }) => json!(schemes),
            _ => Value::Null,
        };
        found.add(step.fact("proxy", proxy.to_string()).fact("schemes", schemes));
        fault.is_none()
    }
}

fn proxy_remedy(fault: &ProxyFault, server: &Address) -> String {
    match fault {
        ProxyFault::WantsLogin { schemes } => {
            let is_basic = |scheme: &String| scheme.eq_ignore_ascii_case("basic");
            if !schemes.is_empty() && !schemes.iter().any(is_basic) {
                return format!(
                    "the proxy accepts only {}, which is not supported (Basic is): ask its operator \
                     for Basic, or run a local proxy that logs in to it and name that with --via",
                    schemes.join(", ")
                );
            }
            "put USER:PASSWORD into a file and use --via URL --via-auth-file FILE, or set \
             HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT. NTLM and Negotiate are not supported"
                .to_owned()
        }
        ProxyFault::LoginRefused => "correct the user name and password of the proxy".to_owned(),
        ProxyFault::Status(403 | 405) => format!(
            "many proxies allow CONNECT to port 443 only, and this server is at port {}: make the \
             server reachable at port 443, or have the proxy's operator allow the port",
            server.port()
        ),
        ProxyFault::Status(300..=399) => {
            "log in at the network's login page in a browser, then repeat".to_owned()
        }
        ProxyFault::Status(500..=599) => {
            "the proxy cannot reach the server: check that the server runs and that the address is \
             right"
                .to_owned()
        }
        ProxyFault::NotHttp | ProxyFault::Io(_) => {
            "check the proxy's port and kind: http:// for CONNECT, socks5:// for SOCKS5".to_owned()
        }
        _ => "check the proxy's settings, or use --via none to connect without it".to_owned(),
    }
}

/// The name of the end of TCP in messages.
fn of(end: &Address, is_proxy: bool) -> String {
    if is_proxy { format!("the proxy {end}") } else { end.to_string() }
}

async fn look_up(end: &Address, is_proxy: bool, found: &mut Diagnosis) -> Option<Vec<SocketAddr>> {
    let host = end.bare_host();
    let problem = match timeout(DEADLINE, lookup_host((host, end.port()))).await {
        Ok(Ok(addresses)) => {
            let addresses = interleaved(addresses);
            if !addresses.is_empty() {
                let ips: Vec<_> = addresses.iter().map(|at| at.ip().to_string()).collect();
                let text = match host.parse::<std::net::IpAddr>() {
                    Ok(_) => format!("{host} is an address"),
                    Err(_) => format!("{host} is {}", ips.join(", ")),
                };
                found.add(Step::ok("name", text).fact("host", host).fact("addresses", ips));
                return Some(addresses);
            }
            "it has no address".to_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
    };
    let text = format!("the name {host} cannot be resolved: {problem}");
    let remedy = match is_proxy {
        true => "check the proxy's name, and this machine's DNS".to_owned(),
        false => format!(
            "check the spelling of {host} and this machine's DNS (`getent hosts {host}`). If this \
             network requires a proxy, name it with --via: the proxy then resolves the name"
        ),
    };
    found.add(Step::failed("name", Fault::Network, text).remedy(remedy).fact("host", host));
    None
}

/// Tries every address, and returns the first that works.
async fn reach(
    end: &Address,
    addresses: &[SocketAddr],
    is_proxy: bool,
    found: &mut Diagnosis,
) -> Option<SocketAddr> {
    let tries = addresses.iter().map(async |to| {
        let began = Instant::now();
        let problem = match timeout(DEADLINE, TcpStream::connect(to)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some((error.to_string(), error.kind())),
            Err(_) => Some(("no answer".to_owned(), std::io::ErrorKind::TimedOut)),
        };
        (*to, began.elapsed(), problem)
    });
    let tried = futures_util::future::join_all(tries).await;
    let facts: Vec<_> = tried
        .iter()
        .map(|(to, took, problem)| {
            let problem = problem.as_ref().map(|(words, _)| words);
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            json!({"address": to.to_string(), "ms": ms, "problem": problem})
        })
        .collect();
    let good = tried.iter().find(|(.., problem)| problem.is_none());
    let bad: Vec<_> = tried
        .iter()
        .filter_map(|(to, _, problem)| Some(format!("{to}: {}", problem.as_ref()?.0)))
        .collect();
    let name = of(end, is_proxy);
    let step = match good {
        Some((to, took, _)) if bad.is_empty() => {
            Step::ok("tcp", format!("{to} answers in {} ms", took.as_millis()))
        }
        Some((to, ..)) => Step::warning("tcp", format!("{to} answers, but {}", bad.join(", ")))
            .remedy("remove the address that does not answer from DNS, or repair it there"),
        None => {
            let is_refused = |kind: &Option<(String, std::io::ErrorKind)>| {
                matches!(kind, Some((_, std::io::ErrorKind::ConnectionRefused)))
            };
            let remedy = if tried.iter().any(|(.., problem)| is_refused(problem)) {
                format!(
                    "nothing listens on port {} there: start the server (`twinlock serve`), or \
                     correct the port",
                    end.port()
                )
            } else {
                format!(
                    "check the address, that the machine is up, and that no firewall blocks port {}. \
                     If this network requires a proxy, name it with --via",
                    end.port()
                )
            };
            let problems = match tried.as_slice() {
                [(to, _, Some((problem, _)))] if to.to_string() == name => problem.clone(),
                _ => bad.join(", "),
            };
            let text = format!("{name} does not accept a connection ({problems})");
            Step::failed("tcp", Fault::Network, text).remedy(remedy)
        }
    };
    found.add(step.fact("addresses", facts));
    good.map(|(to, ..)| *to)
}
