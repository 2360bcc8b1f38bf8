//! Which transports the other end of TLS passes.

use tokio::time::timeout;
use twinlock_transport::tls::{Alpn, TlsFault};
use twinlock_transport::websocket::connect::{UpgradeFault, ask};

use super::network::{DEADLINE, Way};
use super::step::{Diagnosis, Step};
use super::tls::Seen;
use crate::connector::{CarrierFault, Connector, UPGRADE_DEADLINE, authority};
use crate::error::Fault;
use crate::route::{Route, TransportChoice};

/// Reports `direct` and `websocket`. The transport that a connection would use has to work; the
/// other one is worth a warning.
pub(super) async fn examine(
    way: &Way,
    connector: &Connector,
    route: &Route,
    seen: &Seen,
    found: &mut Diagnosis,
) {
    let uses_http = match route.transport {
        TransportChoice::WebSocket => true,
        TransportChoice::Tls => false,
        _ => seen.selected_http == Some(true),
    };
    if seen.selected_http == Some(false) {
        found.add(Step::ok("direct", "works: the other end knows twinlock/1"));
    } else {
        found.add(direct(way, connector, uses_http).await);
    }
    let step = websocket(way, connector, uses_http, found).await;
    found.add(step);
}

async fn direct(way: &Way, connector: &Connector, uses_http: bool) -> Step {
    const NAME: &str = "direct";
    match way.connect(connector, Alpn::Direct).await {
        Ok(carried) if carried.selected_http == Some(false) => {
            Step::ok(NAME, "works: the other end knows twinlock/1")
        }
        Ok(_) => Step::ok(NAME, "possible: the other end selects no protocol; HELLO decides"),
        Err(fault) => {
            let text = format!("does not pass: {}", words(&fault));
            match uses_http {
                // An HTTP proxy passes nothing else, and need not.
                true => Step::ok(NAME, format!("{text}; not needed, since WebSocket works")),
                false => Step::warning(NAME, text).remedy(
                    "try --transport websocket, or have the operator pass TLS through to the server",
                ),
            }
        }
    }
}

fn words(fault: &CarrierFault) -> String {
    match fault {
        CarrierFault::Tls(Some(TlsFault::Alpn)) => {
            "the other end refuses the protocol twinlock/1".to_owned()
        }
        CarrierFault::Tls(Some(fault)) => fault.to_string(),
        CarrierFault::Tls(None) => "no answer to TLS".to_owned(),
        CarrierFault::Tcp(Some(error)) => format!("no second connection: {error}"),
        CarrierFault::Proxy(Some(fault)) => format!("no second connection: {fault}"),
        CarrierFault::Cut(_) => "another connection of these is intercepted".to_owned(),
        _ => "no second connection".to_owned(),
    }
}

async fn websocket(way: &Way, connector: &Connector, is_used: bool, found: &mut Diagnosis) -> Step {
    const NAME: &str = "websocket";
    let server = connector.address();
    let at = server.path();
    let carried = match way.connect(connector, Alpn::Http).await {
        Ok(carried) => carried,
        Err(CarrierFault::Tls(Some(TlsFault::Alpn))) => {
            let text =
                "the other end does not know http/1.1, so it has no WebSocket: an older server";
            return unless_needed(NAME, is_used, text.to_owned(), "update the server".to_owned());
        }
        Err(fault) => {
            let remedy = "repeat; the other end may limit connections";
            return unless_needed(NAME, is_used, words(&fault), remedy.to_owned());
        }
    };
    let deadline = if is_used { UPGRADE_DEADLINE } else { DEADLINE };
    let host = authority(server);
    let asked = timeout(deadline, ask(carried.carrier, &host, at)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(fault)) => {
            let text = format!("no WebSocket at {at}: {fault}");
            let remedy = match fault {
                UpgradeFault::NotAccepted => {
                    "a middle changes the answer: let it pass the Upgrade and Connection fields"
                }
                _ => "the other end is no HTTP server, or no Twinlock server: check the port",
            };
            return unless_needed(NAME, is_used, text, remedy.to_owned());
        }
        Err(_) => {
            let text = format!("no answer to HTTP within {} s", deadline.as_secs());
            let remedy =
                "check that the proxy's server behind it runs, and that it passes WebSocket";
            return unless_needed(NAME, is_used, text, remedy.to_owned());
        }
    };
    found.note_date(answer.date);
    let status = answer.status;
    let step = if status == 101 {
        Step::ok(NAME, format!("works at {at}"))
    } else {
        let text = match status {
            300..=399 => format!(
                "no WebSocket at {at}: the other end answered HTTP {status}, a redirect, perhaps to a \
                 login page of the network"
            ),
            _ => format!("no WebSocket at {at}: the other end answered HTTP {status}"),
        };
        unless_needed(NAME, is_used, text, remedy(status, at))
    };
    step.fact("http_status", status).fact("path", at)
}

fn unless_needed(name: &'static str, is_needed: bool, text: String, remedy: String) -> Step {
    match is_needed {
        true => Step::failed(name, Fault::Network, text).remedy(remedy),
        false => Step::warning(name, text).remedy(remedy),
    }
}

fn remedy(status: u16, path: &str) -> String {
    match status {
        300..=399 => {
            "log in at the network's login page in a browser, then repeat; if there is none, correct \
             the address"
                .to_owned()
        }
        401 | 403 | 405 | 426 => format!(
            "a middle blocks WebSocket: have its operator allow the upgrade at {path}, or use \
             another network"
        ),
        404 | 400 => format!(
            "the path or the proxy's configuration is wrong: it has to pass {path} with its Upgrade \
             and Connection fields to the server (docs/operating.md has examples)"
        ),
        500..=599 => {
            "the proxy in front of the server does not reach it: start the server, or correct the \
             proxy's upstream"
                .to_owned()
        }
        _ => format!("check that a Twinlock server is behind this address, at {path}"),
    }
}
