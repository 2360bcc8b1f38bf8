//! What stands between client and server, and what it does with TLS.

use serde_json::json;
use twinlock_core::proto;
use twinlock_core::session::{Binding, BindingPolicy};

use super::session::Login;
use super::step::{Diagnosis, Step};
use super::tls::Seen;
use crate::error::Fault;
use crate::route::ClientTransport;
use crate::via::ForwardProxy;

/// Reports `middle`.
pub(super) fn name(
    proxy: Option<&ForwardProxy>,
    policy: BindingPolicy,
    seen: &Seen,
    login: Option<&Login>,
    found: &mut Diagnosis,
) {
    let mut middles = Vec::new();
    let mut words = Vec::new();
    if let Some(proxy) = proxy {
        middles.push(json!({"middle": proxy.to_string(), "does": "pass"}));
        words.push(format!("{proxy} passes TLS"));
    }
    let issuer = login.and_then(|login| login.tls.issuer.clone()).or_else(|| seen.issuer.clone());
    let ends = || {
        format!(
            "TLS ends at a proxy (its certificate is by {})",
            issuer.as_deref().unwrap_or("an unnamed issuer")
        )
    };
    let is_cut = match login {
        Some(login) => match login.binding {
            Binding::Bound => Some(false),
            Binding::Cut => Some(true),
            // Not compared: the server's view of the transport remains.
            Binding::Off | Binding::Unknown => match login.there {
                proto::Transport::Plain | proto::Transport::PlainWebsocket => Some(true),
                _ => seen.is_cut.then_some(true),
            },
        },
        None if seen.is_pinned => Some(false),
        None => seen.is_cut.then_some(true),
    };
    let step = match is_cut {
        Some(true) => {
            let text = match login.map(|login| login.transport) {
                Some(ClientTransport::Plain) => "no TLS on this machine".to_owned(),
                _ => ends(),
            };
            middles.push(json!({"middle": issuer, "does": "cut"}));
            words.push(format!("{text}: it sees names, sizes and times, but no text"));
            let text = words.join("; ");
            match policy {
                BindingPolicy::Require => Step::failed("middle", Fault::ServerIdentity, text)
                    .remedy("use a network without this proxy, or have it pass TLS through"),
                // Intended.
                BindingPolicy::Off => Step::ok("middle", text),
                BindingPolicy::Warn => Step::warning("middle", text)
                    .remedy("if no proxy is intended, do not go on over this network"),
            }
        }
        Some(false) => {
            words.push("TLS reaches the server; nothing opens it in between".to_owned());
            Step::ok("middle", words.join("; "))
        }
        None if found.failed().is_some() => return,
        None => {
            words.push(match login {
                Some(_) => "the server does not say whether TLS reaches it".to_owned(),
                None => {
                    "whether TLS reaches the server needs an invite link or a profile".to_owned()
                }
            });
            Step::not_tried("middle", words.join("; "))
        }
    };
    found.add(step.fact("middles", middles).fact("cut", is_cut));
}
