//! The race of the addresses of a name, of which each is reported.

use std::cmp::Reverse;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;
use twinlock_core::invite::Address;
use twinlock_transport::tls::TlsFault;

use super::step::Step;
use super::tls::Shown;
use crate::connector::{CarrierFault, Connector};
use crate::error::Fault;
use crate::race::race;
use crate::via::ForwardProxy;

/// One address, and how far it leads.
pub(super) struct Attempt {
    pub(super) to: SocketAddr,
    /// The time up to the end of TLS.
    pub(super) result: Result<Duration, CarrierFault>,
}

/// Races the addresses; then tries those whose attempts the race dropped or did not start. Returns
/// the winner, and all attempts in the order of the addresses.
pub(super) async fn race_all(
    connector: &Connector,
    addresses: &[SocketAddr],
    proxy: Option<&ForwardProxy>,
) -> (Option<(SocketAddr, Shown)>, Vec<Attempt>) {
    let attempts = Mutex::new(Vec::new());
    let ended = |to, result| {
        attempts.lock().unwrap_or_else(|error| error.into_inner()).push(Attempt { to, result });
    };
    let try_one = async |to| {
        let began = Instant::now();
        match connector.carrier(to, proxy).await {
            Ok(carried) => {
                ended(to, Ok(began.elapsed()));
                // Closes it, so that it takes no connection slot meanwhile.
                Ok((to, Shown::of(carried)))
            }
            Err(fault) => {
                ended(to, Err(fault));
                Err(())
            }
        }
    };
    let won = race(addresses.to_vec(), &try_one).await.ok();
    let is_known = |to: &SocketAddr| {
        let attempts = attempts.lock().unwrap_or_else(|error| error.into_inner());
        attempts.iter().any(|attempt| attempt.to == *to)
    };
    let rest: Vec<_> = addresses.iter().copied().filter(|to| !is_known(to)).collect();
    join_all(rest.into_iter().map(&try_one)).await;
    let mut attempts = attempts.into_inner().unwrap_or_else(|error| error.into_inner());
    attempts.sort_by_key(|attempt| addresses.iter().position(|to| *to == attempt.to));
    (won, attempts)
}

impl Attempt {
    /// The step at which it failed; empty if it did not.
    pub(super) fn step(&self) -> &'static str {
        match &self.result {
            Ok(_) => "",
            Err(CarrierFault::Proxy(_)) => "proxy",
            Err(CarrierFault::Tls(Some(TlsFault::Alpn))) => "alpn",
            Err(fault) if fault.is_distrust() => "certificate",
            Err(CarrierFault::Tls(_) | CarrierFault::Cut(_)) => "tls",
            Err(_) => "tcp",
        }
    }

    /// Sorts by how much a failure says: as a client does, the server's identity first; then the
    /// one that got farthest.
    pub(super) fn rank(&self) -> (bool, Reverse<u8>) {
        let is_distrust = matches!(&self.result, Err(fault) if fault.is_distrust());
        let far = match self.step() {
            "tcp" => 0,
            "proxy" => 1,
            _ => 2,
        };
        (!is_distrust, Reverse(far))
    }

    /// The step `tcp` for an address that answers.
    pub(super) fn reached(&self) -> Step {
        let Self { to, result } = self;
        let ms =
            result.as_ref().ok().map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let text = match ms {
            Some(ms) => format!("{to} answers; connected in {ms} ms"),
            None => format!("{to} answers"),
        };
        Step::ok("tcp", text)
            .fact("address", to.to_string())
            .fact("ms", ms)
            .fact("problem", Value::Null)
    }

    /// The step for an address that fails after TCP, beside one that says more.
    pub(super) fn failed_beside(
        &self,
        fault: &CarrierFault,
        end: &Address,
        is_fatal: bool,
    ) -> Step {
        let problem = match fault {
            CarrierFault::Proxy(Some(fault)) => fault.to_string(),
            CarrierFault::Tls(Some(fault)) => fault.to_string(),
            CarrierFault::Cut(_) => "TLS is intercepted".to_owned(),
            _ => "no answer".to_owned(),
        };
        let (name, text) = (self.step(), format!("at {}: {problem}", self.to));
        let step = match fault.is_distrust() {
            _ if !is_fatal => Step::warning(name, text),
            true => Step::failed(name, Fault::ServerIdentity, text),
            false => Step::failed(name, Fault::Network, text),
        };
        step.remedy(beside(end)).fact("address", self.to.to_string())
    }

    /// The step `tcp` for an address that does not accept TCP.
    pub(super) fn no_tcp(
        &self,
        problem: Option<&io::Error>,
        end: &Address,
        is_proxy: bool,
        is_one: bool,
        is_fatal: bool,
    ) -> Step {
        const NAME: &str = "tcp";
        let to = self.to.to_string();
        let reason = problem.map_or_else(|| "no answer".to_owned(), ToString::to_string);
        let text = match end.to_string() {
            name if is_one && name != to => {
                format!("{name} does not accept a connection ({to}: {reason})")
            }
            _ => format!("{to} does not accept a connection ({reason})"),
        };
        let is_refused = problem.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        let port = end.port();
        let step = match (is_fatal, is_proxy) {
            (false, _) => Step::warning(NAME, text).remedy(beside(end)),
            (true, true) => Step::failed(NAME, Fault::Network, format!("the proxy {text}"))
                .remedy("check the proxy's address and port, or use --via none"),
            (true, false) if is_refused => {
                Step::failed(NAME, Fault::Network, text).remedy(format!(
                    "nothing listens on port {port} there: start the server (`twinlock serve`), or \
                     correct the port"
                ))
            }
            (true, false) => Step::failed(NAME, Fault::Network, text).remedy(format!(
                "check the address, that the machine is up, and that no firewall blocks port {port}. \
                 If this network requires a proxy, name it with --via"
            )),
        };
        step.fact("address", to).fact("ms", Value::Null).fact("problem", reason)
    }
}

/// What to do about an address that fails beside others.
fn beside(end: &Address) -> String {
    let host = end.bare_host();
    format!("remove this address of {host} from the DNS, or repair what answers there")
}
