//! TLS: its parameters, the certificate and ALPN.
//!
//! The handshake accepts any certificate, so that one that is not trusted can be described. Nothing
//! secret is sent over it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use twinlock_core::invite::Address;
use twinlock_core::session::BindingPolicy;
use twinlock_transport::tls::{
    self, Alpn, CertFacts, ClientTls, Distrust, ServerTrust, TlsFacts, TlsFault,
};
use twinlock_transport::websocket::connect::ask;

use super::Known;
use super::network::{DEADLINE, Path};
use super::step::{Diagnosis, Outcome, Step};
use crate::connector::authority;
use crate::error::Fault;
use crate::route::TransportChoice;

/// Seconds of a day.
const DAY: i64 = 86_400;
/// A certificate that ends sooner is worth a warning, days.
const SOON: i64 = 14;

/// What TLS showed.
#[derive(Default)]
pub(super) struct Seen {
    /// The handshake got as far as protocol names.
    pub(super) speaks_tls: bool,
    /// What the other end selected: HTTP or not; `None`: nothing.
    pub(super) selected_http: Option<bool>,
    pub(super) issuer: Option<String>,
    /// The key is not pinned, but an authority accepts it: TLS ends in front of the server.
    pub(super) is_cut: bool,
    /// The key is pinned.
    pub(super) is_pinned: bool,
}

/// Why there is no TLS.
pub(super) enum NoTls {
    Tcp(String),
    Tls(TlsFault),
    Late,
}

/// A TLS connection with this offer, whatever the certificate.
pub(super) async fn connect(
    path: &Path,
    server: &Address,
    offer: Alpn,
) -> Result<TlsStream<TcpStream>, NoTls> {
    let tcp = path.connect().await.map_err(NoTls::Tcp)?;
    let tls = ClientTls::new(ServerTrust::Learn, offer).map_err(NoTls::Tls)?;
    let connecting = timeout(DEADLINE, tls.connect(server.bare_host(), tcp)).await;
    connecting.map_err(|_| NoTls::Late)?.map_err(NoTls::Tls)
}

/// The protocols that the client offers under a user's choice.
pub(super) fn offer(choice: TransportChoice) -> Alpn {
    match choice {
        TransportChoice::Tls => Alpn::Direct,
        TransportChoice::WebSocket => Alpn::Http,
        TransportChoice::Auto | TransportChoice::Plain => Alpn::Any,
    }
}

/// Reports `tls`, `certificate` and `alpn`.
pub(super) async fn examine(
    path: &Path,
    known: &Known,
    choice: TransportChoice,
    found: &mut Diagnosis,
) -> Seen {
    let stream = match connect(path, &known.address, offer(choice)).await {
        Ok(stream) => stream,
        Err(NoTls::Tls(TlsFault::Alpn)) => {
            found.add(Step::ok("tls", "the other end speaks TLS"));
            let text = "the other end refuses the protocols that this client offers (ALPN \
                        twinlock/1 and http/1.1)";
            found.add(Step::failed("alpn", Fault::Network, text).remedy(
                "check the port: another service may answer there. If a proxy terminates TLS in \
                 front of the server, let it accept http/1.1 and pass WebSocket, or let it pass TLS \
                 through",
            ));
            return Seen { speaks_tls: true, ..Seen::default() };
        }
        Err(fault) => {
            let step = no_tls(path, &known.address, fault, found).await;
            found.add(step);
            return Seen::default();
        }
    };
    let connection = stream.get_ref().1;
    let facts = TlsFacts::of(connection);
    let or_unknown = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
    let [version, group, suite] = [&facts.version, &facts.group, &facts.suite].map(or_unknown);
    found.add(
        Step::ok("tls", format!("{version}, {group}, {suite}"))
            .fact("version", facts.version)
            .fact("key_exchange", facts.group)
            .fact("cipher", facts.suite),
    );
    let selected_http = tls::selected_http(connection);
    let mut seen = Seen { speaks_tls: true, selected_http, ..Seen::default() };
    let chain = connection.peer_certificates().unwrap_or_default();
    match chain.first().and_then(CertFacts::of) {
        Some(certificate) => {
            let fault = judge(known, chain, &certificate, &mut seen);
            found.add(describe(known, &certificate, fault, &seen));
        }
        None => found.add(Step::failed(
            "certificate",
            Fault::ServerIdentity,
            "the other end shows no certificate that can be read",
        )),
    }
    let text = match selected_http {
        Some(false) => "the other end selects twinlock/1: the session follows directly",
        Some(true) => {
            "the other end selects http/1.1: an HTTP server or proxy, so WebSocket follows"
        }
        None => "the other end selects no protocol, as many proxies do: HELLO follows",
    };
    found.add(Step::ok("alpn", text).fact("selected", facts.alpn));
    seen
}

/// Why the certificate is not accepted.
fn judge(
    known: &Known,
    chain: &[rustls::pki_types::CertificateDer<'_>],
    certificate: &CertFacts,
    seen: &mut Seen,
) -> Option<TlsFault> {
    seen.issuer.clone_from(&certificate.issuer);
    let trust = known.trust.clone();
    let trust = trust.unwrap_or(ServerTrust::Ca { extra_roots: Vec::new() });
    let judged = ClientTls::new(trust, Alpn::Any).and_then(|tls| {
        tls.check_chain(known.address.bare_host(), chain)?;
        Ok(tls.is_pinned(Some(certificate.pin)))
    });
    match judged {
        Ok(is_pinned) => {
            seen.is_pinned = is_pinned == Some(true);
            seen.is_cut = is_pinned == Some(false);
            None
        }
        Err(fault) => Some(fault),
    }
}

fn describe(known: &Known, certificate: &CertFacts, fault: Option<TlsFault>, seen: &Seen) -> Step {
    const NAME: &str = "certificate";
    let issuer = certificate.issuer.as_deref().unwrap_or("an unnamed issuer");
    let by = match certificate.is_self_issued {
        true => "issued by itself".to_owned(),
        false => format!("issued by {issuer}"),
    };
    let (left, validity) = validity(certificate);
    let step = match fault {
        None if seen.is_cut && known.binding == BindingPolicy::Require => Step::failed(
            NAME,
            Fault::ServerIdentity,
            format!(
                "TLS is intercepted: the key is not the pinned one, its certificate is {by} and \
                 trusted by this system, and the profile requires that TLS reaches the server"
            ),
        )
        .remedy(
            "use a network without this proxy, or have its operator pass TLS to the server through. \
             If the proxy is intended, set `binding = \"warn\"` in the profile",
        ),
        None if seen.is_cut => Step::warning(
            NAME,
            format!(
                "TLS is intercepted: the key is not the pinned one, its certificate is {by} and \
                 trusted by this system; {validity}"
            ),
        )
        .remedy("the session inside TLS stays secret; to avoid this, use another network"),
        // The pin replaces every other check.
        None if seen.is_pinned => {
            Step::ok(NAME, format!("the key is the pinned one; {by}, {validity}"))
        }
        None if left < SOON => {
            Step::warning(NAME, format!("trusted, {by}, but {validity}"))
                .remedy("tell the server's owner to renew the certificate")
        }
        None => Step::ok(NAME, format!("trusted by this system or the profile; {by}, {validity}")),
        Some(fault) if known.trust.is_none() => Step::warning(
            NAME,
            format!("{by}, {validity}; whether it is the server's is unknown here ({fault})"),
        )
        .remedy("diagnose with an invite link or a profile, which name the server's key"),
        Some(fault) => {
            let text = format!("{fault}; {by}, {validity}");
            Step::failed(NAME, Fault::ServerIdentity, text).remedy(remedy(&fault, left))
        }
    };
    step.fact("pin", certificate.pin.to_string())
        .fact("issuer", certificate.issuer.clone())
        .fact("self_issued", certificate.is_self_issued)
        .fact("days_left", left)
        .fact(
            "trusted_by",
            match step_trust(known, seen) {
                Some(by) => json!(by),
                None => Value::Null,
            },
        )
}

fn step_trust(known: &Known, seen: &Seen) -> Option<&'static str> {
    match () {
        () if seen.is_pinned => Some("pin"),
        () if seen.is_cut => Some("authority"),
        () => matches!(known.trust, Some(ServerTrust::Ca { .. })).then_some("authority"),
    }
}

fn remedy(fault: &TlsFault, days_left: i64) -> String {
    match fault {
        TlsFault::Untrusted(Distrust::Expired) => format!(
            "the server's owner renews the certificate{}; if it is valid, set the clock of this \
             machine",
            if days_left < 0 { format!(", which ended {} days ago", -days_left) } else { String::new() }
        ),
        TlsFault::Untrusted(Distrust::NotYetValid) => {
            "set the clock of this machine; if it is right, the server's certificate was made under \
             a wrong clock and its owner renews it"
                .to_owned()
        }
        TlsFault::Untrusted(Distrust::WrongName) => {
            "use the name that the certificate is for, or have the server's owner add this name"
                .to_owned()
        }
        TlsFault::Pin { .. } => {
            "this is another server, or a proxy that this machine does not trust. Check the \
             address; ask the server's owner for a new invite link if the TLS key was replaced; if \
             your organization runs the proxy, install its CA on this machine"
                .to_owned()
        }
        _ => "check the address. If your organization runs a proxy or a CA, install that CA on this \
              machine, or name it in the profile (`ca_file`)"
            .to_owned(),
    }
}

/// The rest of the validity period in days, negative after its end, and as text.
fn validity(certificate: &CertFacts) -> (i64, String) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let (from, to) = certificate.valid;
    let left = to.saturating_sub(now).div_euclid(DAY);
    let text = if from > now {
        format!("valid only in {} days", from.saturating_sub(now) / DAY + 1)
    } else if to < now {
        format!("expired {} days ago", now.saturating_sub(to) / DAY)
    } else {
        format!("valid for another {left} days")
    };
    (left, text)
}

/// The step for a handshake that failed, after a look at what else speaks there.
async fn no_tls(path: &Path, server: &Address, fault: NoTls, found: &mut Diagnosis) -> Step {
    let fault = match fault {
        NoTls::Tls(fault @ (TlsFault::NotTls | TlsFault::Io(_))) => fault,
        NoTls::Tls(fault) if fault.is_old_version() => {
            return Step::failed(
                "tls",
                Fault::Network,
                "the other end supports TLS 1.2 at most, and Twinlock requires TLS 1.3",
            )
            .remedy(
                "enable TLS 1.3 there (nginx: `ssl_protocols TLSv1.3;`). A middle that is limited to \
                 TLS 1.2 cannot be passed: use another network or another port",
            )
            .fact("version", "TLS 1.2");
        }
        NoTls::Tls(fault) => {
            return Step::failed("tls", Fault::Network, fault.to_string())
                .remedy("check the address and port; the other end may be another service");
        }
        NoTls::Tcp(problem) => {
            return Step::failed("tls", Fault::Network, format!("no second connection: {problem}"))
                .remedy("repeat; the server or the proxy may limit connections");
        }
        NoTls::Late => {
            let text = format!("no answer to TLS within {} s", DEADLINE.as_secs());
            return Step::failed("tls", Fault::Network, text).remedy(
                "check the port: what listens there does not speak TLS, or a firewall holds TLS back",
            );
        }
    };
    if let Some(status) = plain_http(path, server, found).await {
        let text = format!(
            "port {} speaks plain HTTP, not TLS (it answered HTTP {status})",
            server.port()
        );
        let remedy = match status {
            300..=399 => {
                "the network redirects to a login page: log in there in a browser, then repeat"
            }
            _ => {
                "use the port that speaks TLS. If an HTTP proxy runs in front of the server, enable \
                 TLS on this port there"
            }
        };
        return Step::failed("tls", Fault::Network, text)
            .remedy(remedy)
            .fact("http_status", status);
    }
    Step::failed("tls", Fault::Network, fault.to_string()).remedy(match fault {
        TlsFault::NotTls => "check the port: another service listens there",
        _ => {
            "the other end closes the connection: the server has no free connection slot, a balancer \
             in front of it does not reach it, a firewall interferes, or the port is another \
             service's"
        }
    })
}

/// The status of a plain HTTP server.
async fn plain_http(path: &Path, server: &Address, found: &mut Diagnosis) -> Option<u16> {
    let tcp = path.connect().await.ok()?;
    let host = authority(server);
    let asked = ask(tcp, &host, server.path());
    let answer = timeout(DEADLINE, asked).await.ok()?.ok()?;
    found.note_date(answer.date);
    Some(answer.status)
}

/// Adds to a certificate that is not accepted what its owner answers over HTTP.
pub(super) fn explain_certificate(found: &mut Diagnosis) {
    let status = |step: &Step| step.facts.get("http_status").and_then(Value::as_u64);
    let websocket = found.steps.iter().find(|step| step.name == "websocket");
    let Some(status) = websocket.and_then(status).filter(|status| *status != 101) else { return };
    for step in &mut found.steps {
        if step.name == "certificate" && step.outcome == Outcome::Failed {
            step.text += &format!(". It does not speak twinlock: it answered HTTP {status}");
            if (300..400).contains(&status) {
                let portal = "if the network has a login page, log in there in a browser. Else ";
                step.remedy = step.remedy.take().map(|remedy| format!("{portal}{remedy}"));
            }
        }
    }
}
