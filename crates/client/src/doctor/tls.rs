//! TLS: its parameters, the certificate and ALPN.
//!
//! A certificate that a client does not accept is described over a connection that accepts any, and
//! on which nothing is sent.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use twinlock_transport::stream::Carrier;
use twinlock_transport::tls::{
    Alpn, CertFacts, ClientTls, Distrust, ServerTrust, TlsFacts, TlsFault,
};
use twinlock_transport::websocket::connect::HttpAnswer;

use super::network::Way;
use super::step::{Diagnosis, Step};
use crate::connector::{CarriedStream, CarrierFault, Connector};
use crate::error::Fault;

/// Seconds of a day.
const DAY: i64 = 86_400;
/// A certificate that ends sooner is worth a warning, days.
const SOON: i64 = 14;

/// What a connection showed.
pub(super) struct Shown {
    facts: TlsFacts,
    selected_http: Option<bool>,
    /// The certificates, the other end's own first.
    chain: Vec<CertificateDer<'static>>,
}

impl Shown {
    /// Reads it and closes the connection.
    pub(super) fn of(carried: CarriedStream) -> Self {
        let chain = match &carried.carrier {
            Carrier::Tls(stream) => stream.get_ref().1.peer_certificates().unwrap_or_default(),
            Carrier::Plain(_) => &[],
        };
        let chain = chain.to_vec();
        Self { facts: carried.tls, selected_http: carried.selected_http, chain }
    }
}

/// What TLS showed, and what the client makes of it.
#[derive(Default)]
pub(super) struct Seen {
    /// What the other end selected: HTTP or not; `None`: nothing.
    pub(super) selected_http: Option<bool>,
    pub(super) issuer: Option<String>,
    /// The key is not pinned, but an authority accepts it: TLS ends in front of the server.
    pub(super) is_cut: bool,
    /// The key is pinned.
    pub(super) is_pinned: bool,
}

/// What the client does about a certificate.
enum Verdict {
    Accepted,
    /// It is accepted because the server's key is unknown; by the system's authorities or not.
    Unjudged(Option<TlsFault>),
    Refused(TlsFault),
    /// An authority accepts it, and the profile requires the pinned key.
    Cut,
}

/// Reports `tls`, `certificate` and `alpn` of a connection that the client accepts. `is_known`: an
/// invite link or a profile states which server to trust.
pub(super) fn describe(
    shown: &Shown,
    connector: &Connector,
    is_known: bool,
    seen: &mut Seen,
    found: &mut Diagnosis,
) {
    let verdict = match is_known {
        true => Verdict::Accepted,
        false => Verdict::Unjudged(by_authority(shown, connector).err()),
    };
    describe_all(shown, connector, verdict, seen, found);
}

/// Reports `tls`, `certificate` and `alpn` for an end of TLS that the client does not accept, or
/// that does not complete the handshake.
pub(super) async fn explain(
    way: &Way,
    connector: &Connector,
    fault: CarrierFault,
    seen: &mut Seen,
    found: &mut Diagnosis,
) {
    let verdict = match fault {
        CarrierFault::Cut(_) => Verdict::Cut,
        CarrierFault::Tls(Some(fault)) if fault.is_distrust() => Verdict::Refused(fault),
        CarrierFault::Tls(Some(TlsFault::Alpn)) => {
            found.add(Step::ok("tls", "the other end speaks TLS"));
            let text = "the other end refuses the protocols that this client offers (ALPN \
                        twinlock/1 and http/1.1)";
            found.add(Step::failed("alpn", Fault::Network, text).remedy(
                "check the port: another service may answer there. If a proxy terminates TLS in \
                 front of the server, let it accept http/1.1 and pass WebSocket, or let it pass TLS \
                 through",
            ));
            return;
        }
        fault => {
            let step = no_tls(way, connector, fault, found).await;
            found.add(step);
            return;
        }
    };
    let shown = match connector.trusting_any() {
        Some(any) => way.carrier(&any).await.ok(),
        None => None,
    };
    match (shown, verdict) {
        (Some(carried), verdict) => {
            describe_all(&Shown::of(carried), connector, verdict, seen, found)
        }
        (None, verdict) => {
            found.add(Step::ok("tls", "the other end speaks TLS"));
            let text = match verdict {
                Verdict::Refused(fault) => fault.to_string(),
                _ => "TLS is intercepted, and the profile requires that it reaches the server"
                    .to_owned(),
            };
            let step = Step::failed("certificate", Fault::ServerIdentity, text);
            found.add(step.remedy("repeat, to see the certificate: it did not show it again"));
        }
    }
}

fn describe_all(
    shown: &Shown,
    connector: &Connector,
    verdict: Verdict,
    seen: &mut Seen,
    found: &mut Diagnosis,
) {
    let facts = &shown.facts;
    let or_unknown = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
    let [version, group, suite] = [&facts.version, &facts.group, &facts.suite].map(or_unknown);
    found.add(
        Step::ok("tls", format!("{version}, {group}, {suite}"))
            .fact("version", facts.version.clone())
            .fact("key_exchange", facts.group.clone())
            .fact("cipher", facts.suite.clone()),
    );
    seen.selected_http = shown.selected_http;
    seen.issuer.clone_from(&facts.issuer);
    let is_accepted = matches!(verdict, Verdict::Accepted | Verdict::Cut);
    let is_pinned = connector.client_tls().is_pinned(facts.peer_pin).filter(|_| is_accepted);
    seen.is_pinned = is_pinned == Some(true);
    seen.is_cut = is_pinned == Some(false);
    found.add(match shown.chain.first().and_then(CertFacts::of) {
        Some(certificate) => certificate_step(&certificate, verdict, seen),
        None => Step::failed(
            "certificate",
            Fault::ServerIdentity,
            "the other end shows no certificate that can be read",
        ),
    });
    let text = match seen.selected_http {
        Some(false) => "the other end selects twinlock/1: the session follows directly",
        Some(true) => {
            "the other end selects http/1.1: an HTTP server or proxy, so WebSocket follows"
        }
        None => {
            "the other end selects no protocol, as many proxies do: HELLO follows, and WebSocket if \
             the answer is HTTP"
        }
    };
    found.add(Step::ok("alpn", text).fact("selected", facts.alpn.clone()));
}

/// Whether the system's authorities accept the certificate for this host.
fn by_authority(shown: &Shown, connector: &Connector) -> Result<(), TlsFault> {
    let tls = ClientTls::new(ServerTrust::Ca { extra_roots: Vec::new() }, Alpn::Any)?;
    tls.check_chain(connector.address().bare_host(), &shown.chain)
}

fn certificate_step(certificate: &CertFacts, verdict: Verdict, seen: &Seen) -> Step {
    const NAME: &str = "certificate";
    let issuer = certificate.issuer.as_deref().unwrap_or("an unnamed issuer");
    let by = match certificate.is_self_issued {
        true => "issued by itself".to_owned(),
        false => format!("issued by {issuer}"),
    };
    let (left, validity) = validity(certificate);
    let cut = format!(
        "TLS is intercepted: the key is not the pinned one, its certificate is {by} and trusted by \
         this system"
    );
    let trusted_by = match &verdict {
        Verdict::Accepted if seen.is_pinned => Some("pin"),
        Verdict::Accepted | Verdict::Cut | Verdict::Unjudged(None) => Some("authority"),
        Verdict::Refused(_) | Verdict::Unjudged(Some(_)) => None,
    };
    let step = match verdict {
        Verdict::Cut => Step::failed(
            NAME,
            Fault::ServerIdentity,
            format!("{cut}, and the profile requires that TLS reaches the server"),
        )
        .remedy(
            "use a network without this proxy, or have its operator pass TLS to the server through. \
             If the proxy is intended, set `binding = \"warn\"` in the profile",
        ),
        Verdict::Accepted if seen.is_cut => Step::warning(NAME, format!("{cut}; {validity}"))
            .remedy("the session inside TLS stays secret; to avoid this, use another network"),
        // The pin replaces every other check.
        Verdict::Accepted if seen.is_pinned => {
            Step::ok(NAME, format!("the key is the pinned one; {by}, {validity}"))
        }
        Verdict::Accepted | Verdict::Unjudged(None) if left < SOON => {
            Step::warning(NAME, format!("trusted, {by}, but {validity}"))
                .remedy("tell the server's owner to renew the certificate")
        }
        Verdict::Accepted | Verdict::Unjudged(None) => {
            Step::ok(NAME, format!("trusted by this system or the profile; {by}, {validity}"))
        }
        Verdict::Unjudged(Some(fault)) => Step::warning(
            NAME,
            format!("{by}, {validity}; whether it is the server's is unknown here ({fault})"),
        )
        .remedy("diagnose with an invite link or a profile, which name the server's key"),
        Verdict::Refused(fault) => {
            let is_http = seen.selected_http == Some(true);
            let (speaks, portal) = match is_http {
                true => (
                    ". It speaks HTTP, so it is a web server or a proxy",
                    "if the network has a login page, log in there in a browser. Else ",
                ),
                false => ("", ""),
            };
            let text = format!("{fault}; {by}, {validity}{speaks}");
            Step::failed(NAME, Fault::ServerIdentity, text)
                .remedy(format!("{portal}{}", remedy(&fault, left)))
        }
    };
    step.fact("pin", certificate.pin.to_string())
        .fact("issuer", certificate.issuer.clone())
        .fact("self_issued", certificate.is_self_issued)
        .fact("days_left", left)
        .fact("trusted_by", trusted_by)
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
async fn no_tls(
    way: &Way,
    connector: &Connector,
    fault: CarrierFault,
    found: &mut Diagnosis,
) -> Step {
    const NAME: &str = "tls";
    let failed = |text: String| Step::failed(NAME, Fault::Network, text);
    let fault = match fault {
        CarrierFault::Tls(Some(fault @ (TlsFault::NotTls | TlsFault::Io(_)))) => fault,
        CarrierFault::Tls(Some(fault)) if fault.is_old_version() => {
            return failed(
                "the other end supports TLS 1.2 at most, and Twinlock requires TLS 1.3".to_owned(),
            )
            .remedy(
                "enable TLS 1.3 there (nginx: `ssl_protocols TLSv1.3;`). A middle that is limited to \
                 TLS 1.2 cannot be passed: use another network or another port",
            )
            .fact("version", "TLS 1.2");
        }
        CarrierFault::Tls(Some(fault)) => {
            return failed(fault.to_string())
                .remedy("check the address and port; the other end may be another service");
        }
        _ => {
            return failed("no answer to TLS".to_owned()).remedy(
                "check the port: what listens there does not speak TLS, or a firewall holds TLS back",
            );
        }
    };
    // Other services answer the first message of TLS with an error in their own protocol.
    let answer = way.answer_to_tls(connector).await;
    if let Some(HttpAnswer { status, date }) = HttpAnswer::parse(&answer) {
        found.note_date(date);
        let port = connector.address().port();
        let text = format!("port {port} speaks plain HTTP, not TLS (it answered HTTP {status})");
        let remedy = match status {
            300..=399 => {
                "the network redirects to a login page: log in there in a browser, then repeat"
            }
            _ => {
                "use the port that speaks TLS. If an HTTP proxy runs in front of the server, enable \
                 TLS on this port there. If the network has a login page, log in there in a browser"
            }
        };
        return failed(text).remedy(remedy).fact("http_status", status);
    }
    failed(fault.to_string()).remedy(match fault {
        TlsFault::NotTls => "check the port: another service listens there",
        _ => {
            "the other end closes the connection: the server has no free connection slot, a balancer \
             in front of it does not reach it, a firewall interferes, or the port is another \
             service's"
        }
    })
}
