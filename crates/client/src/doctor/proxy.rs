//! The proxy on the way out.

use serde_json::{Value, json};
use twinlock_core::invite::Address;
use twinlock_transport::forward_proxy::ProxyFault;

use super::step::Step;
use crate::error::Fault;
use crate::via::{ForwardProxy, Via};

/// The step `proxy`. `refused`: why it opens no connection; in it `None`: it does not answer.
pub(super) fn describe(
    proxy: Option<&ForwardProxy>,
    via: &Via,
    server: &Address,
    refused: Option<Option<&ProxyFault>>,
) -> Step {
    const NAME: &str = "proxy";
    let Some(proxy) = proxy else {
        return Step::ok(NAME, "none on the way out").fact("proxy", Value::Null);
    };
    let from = match via {
        Via::Environment => "the environment",
        _ => "--via",
    };
    let does = |does: &str| format!("{proxy} (from {from}) {does} to {server}");
    let step = match refused {
        None => Step::ok(NAME, does("opens a connection")),
        Some(fault) => {
            let problem =
                fault.map_or_else(|| "it does not answer".to_owned(), ToString::to_string);
            let text = format!("{}: {problem}", does("opens no connection"));
            Step::failed(NAME, Fault::Network, text).remedy(match fault {
                Some(fault) => remedy(fault, server),
                None => KIND.to_owned(),
            })
        }
    };
    let schemes = match refused {
        Some(Some(ProxyFault::WantsLogin { schemes })) => json!(schemes),
        _ => Value::Null,
    };
    step.fact("proxy", proxy.to_string()).fact("schemes", schemes)
}

const KIND: &str = "check the proxy's port and kind: http:// for CONNECT, socks5:// for SOCKS5";

fn remedy(fault: &ProxyFault, server: &Address) -> String {
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
        ProxyFault::WantsSocksLogin => {
            "put USER:PASSWORD into a file and use --via URL --via-auth-file FILE, or set \
             ALL_PROXY=socks5://USER:PASSWORD@HOST:PORT"
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
        ProxyFault::NotHttp | ProxyFault::Io(_) => KIND.to_owned(),
        _ => "check the proxy's settings, or use --via none to connect without it".to_owned(),
    }
}
