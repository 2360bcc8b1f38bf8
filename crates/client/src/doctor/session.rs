//! The session: the handshake up to CHALLENGE, the login, and the clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twinlock_core::credential::Credential;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::id::DeviceId;
use twinlock_core::keys::{DeviceSecret, InviteSecret};
use twinlock_core::limits::VERSION;
use twinlock_core::proto;
use twinlock_core::session::Binding;
use twinlock_core::text::Untrusted;
use twinlock_transport::connection::ConnectionError;
use twinlock_transport::login::LoginError;
use twinlock_transport::tls::TlsFacts;

use super::Subject;
use super::step::{Diagnosis, Step};
use super::tls::Seen;
use crate::connector::{Connector, NotReady, OpenFault, ReadySession};
use crate::error::{ClientError, Fault};
use crate::ready::client_info;
use crate::route::{ClientTransport, Route, TransportChoice};

/// Smallest difference of the clocks that is worth a warning.
const NOTABLE: Duration = Duration::from_secs(60);
/// Difference at which certificates, invites and times are wrong.
const WRONG: Duration = Duration::from_secs(3600);

/// A login, which has ended.
pub(super) struct Login {
    pub(super) binding: Binding,
    pub(super) transport: ClientTransport,
    pub(super) there: proto::Transport,
    pub(super) tls: TlsFacts,
    /// The server's clock, and this machine's at that moment, both since 1970.
    clocks: (Duration, Duration),
}

/// Sends HELLO, and logs in if the subject has a credential. Reports `challenge` and `login`.
pub(super) async fn log_in(
    subject: &Subject,
    connector: &Connector,
    route: &Route,
    seen: &Seen,
    found: &mut Diagnosis,
) -> Option<Login> {
    let (credential, label) = match subject {
        Subject::Address(_) => (stranger(), ""),
        Subject::Invite(link) => {
            let secret = InviteSecret::new(link.secret.expose_secret());
            (Some(Credential::Invite(link.id, secret)), "")
        }
        Subject::Profile(profile, _) => {
            let secret = DeviceSecret::new(profile.secret().expose_secret());
            (Some(Credential::Device(*profile.device(), secret)), profile.label())
        }
    };
    let Some(credential) = credential else {
        found.add(Step::failed("challenge", Fault::Local, "this machine has no randomness"));
        return None;
    };
    let has_credential = !matches!(subject, Subject::Address(_));
    match connector.attempt(credential, &client_info(label)).await {
        Ok(ready) => {
            found.add(challenged(
                "HELLO is answered with CHALLENGE; the login used no guess, since it succeeded",
            ));
            Some(logged_in(ready, found).await)
        }
        Err(OpenFault::Login(LoginError::Refused(_))) if !has_credential => {
            found.add(challenged(
                "HELLO is answered with CHALLENGE; this used one of the 20 guesses a minute that \
                 the server allows an address",
            ));
            let text = "needs an invite link or a profile";
            found.add(Step::not_tried("login", text));
            None
        }
        Err(fault) => {
            let is_plain = route.transport == TransportChoice::Plain;
            fail(subject, connector, fault, (seen, is_plain), found);
            None
        }
    }
}

/// A device that does not exist.
fn stranger() -> Option<Credential> {
    let (mut id, mut secret) = ([0; 16], [0; 32]);
    getrandom::fill(&mut id).ok()?;
    getrandom::fill(&mut secret).ok()?;
    Some(Credential::Device(DeviceId(id), DeviceSecret::new(&secret)))
}

fn challenged(text: &str) -> Step {
    Step::ok("challenge", text)
}

async fn logged_in(ready: ReadySession, found: &mut Diagnosis) -> Login {
    let ReadySession { connection, info, binding, tls, transport } = ready;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    connection.close(CloseCode::Bye).await;
    let software = Untrusted::new(info.software.clone()).render_line();
    let who = match info.user.as_str() {
        "" => "the invite is valid and stays unused".to_owned(),
        user => format!("{} is logged in", Untrusted::new(user.to_owned()).render_line()),
    };
    found.add(
        Step::ok("login", format!("{who}; the server is {software}, transport {transport}"))
            .fact("server_software", software)
            .fact("transport", transport.to_string()),
    );
    let clocks = (Duration::from_millis(info.time_ms), now);
    Login { binding, transport, there: info.transport(), tls, clocks }
}

fn fail(
    subject: &Subject,
    connector: &Connector,
    fault: OpenFault,
    (seen, is_plain): (&Seen, bool),
    found: &mut Diagnosis,
) {
    let challenge = |text: String| Step::failed("challenge", Fault::Network, text);
    let login = |fault: Fault, text: String| Step::failed("login", fault, text);
    let another = match seen.selected_http {
        _ if is_plain => "name the port that `serve --plain-port` set, with --port",
        None => {
            "the end of TLS selects no protocol and does not pass Twinlock: let it select http/1.1 \
             (ALPN) and pass WebSocket, or let it pass TCP to the server; if there is no proxy, \
             check the port"
        }
        Some(_) => "check that a Twinlock server is behind this address and port",
    };
    let step = match fault {
        OpenFault::Login(LoginError::Server(ErrorCode::Version(theirs))) => challenge(format!(
            "the server answered HELLO with ERROR 1: it speaks protocol version {theirs}, this \
             program speaks {VERSION}"
        ))
        .remedy(if theirs < VERSION { "update the server" } else { "update this program" }),
        OpenFault::Login(LoginError::Server(ErrorCode::Busy(seconds))) => challenge(format!(
            "the server is busy, or this address has used its guesses; it asks to wait {seconds} s"
        ))
        .remedy(format!("repeat in {seconds} s")),
        OpenFault::Login(LoginError::Server(code)) => {
            let text = format!("the server refused HELLO: {code}");
            let fault = match code {
                ErrorCode::Refused => Fault::Credentials,
                _ => Fault::Network,
            };
            Step::failed("challenge", fault, text)
                .remedy("update the older one of server and client")
        }
        OpenFault::Login(LoginError::Header(bad)) => challenge(format!(
            "the answer to HELLO is not a frame of Twinlock ({bad}): another service answers"
        ))
        .remedy(another),
        OpenFault::Login(LoginError::Io(_)) => challenge(
            "the other end closed the connection after HELLO: it does not know Twinlock, its server \
             is not reached, or an older server does not know this form"
                .to_owned(),
        )
        .remedy(format!("{another}; update the server if it is older than this program")),
        OpenFault::Login(LoginError::Timeout) => {
            challenge("no answer to HELLO".to_owned()).remedy(another)
        }
        OpenFault::Connect(error) => {
            let fault = error.fault();
            let remedy = match fault {
                Fault::Network if seen.selected_http.is_none() && !is_plain => another,
                Fault::Network => "repeat; the other end may limit connections",
                _ => login_remedy(&error),
            };
            Step::failed("challenge", fault, error.to_string()).remedy(remedy)
        }
        fault => {
            found.add(challenged("HELLO is answered with CHALLENGE"));
            let is_refusal = matches!(
                &fault,
                OpenFault::Login(LoginError::Refused(_))
                    | OpenFault::Ready(NotReady::Connection(ConnectionError::Refused(
                        ErrorCode::Refused
                    )))
            );
            let error = connector.error_of(fault);
            match subject {
                Subject::Invite(_) if is_refusal => login(
                    Fault::Credentials,
                    "the invite is used, expired or of another server".to_owned(),
                )
                .remedy("ask for a new invite link"),
                _ if is_refusal => login(Fault::Credentials, error.to_string()).remedy(
                    "this device was revoked, or another server answers: compare the server words \
                     with its owner, and enrol this device again with `twinlock login`",
                ),
                _ => login(error.fault(), error.to_string()).remedy(login_remedy(&error)),
            }
        }
    };
    found.add(step);
}

fn login_remedy(error: &ClientError) -> &'static str {
    match error {
        ClientError::TlsCut { .. } => {
            "use a network without this proxy, or have its operator pass TLS through"
        }
        ClientError::OtherServer { .. } => "ask the server's owner for a new invite link",
        ClientError::TooManySessions => "end another program of this device",
        _ => "repeat; see the server's log (`server.log`) for the reason",
    }
}

/// Compares the clocks, by the session or else by HTTP. Reports `clock`.
pub(super) fn compare_clocks(
    login: Option<&Login>,
    http: Option<(SystemTime, SystemTime)>,
    found: &mut Diagnosis,
) {
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let by_http = || http.map(|(theirs, ours)| (since(theirs), since(ours), "HTTP Date"));
    let by_session = login.map(|login| (login.clocks.0, login.clocks.1, "session"));
    let Some((theirs, ours, source)) = by_session.or_else(by_http) else {
        if found.failed().is_none() {
            let text =
                "needs an invite link or a profile: the server tells its time inside the session";
            found.add(Step::not_tried("clock", text));
        }
        return;
    };
    let apart = theirs.abs_diff(ours);
    let which = if theirs > ours { "ahead of" } else { "behind" };
    let text = format!("the server's clock is {} {which} this machine's ({source})", span(apart));
    let remedy = "set the clock of the machine that is wrong, best by NTP (`timedatectl`): \
                  certificates, invites and the times of messages depend on it";
    let step = if apart >= WRONG {
        Step::failed("clock", Fault::Local, text).remedy(remedy)
    } else if apart >= NOTABLE {
        Step::warning("clock", text).remedy(remedy)
    } else {
        Step::ok("clock", text)
    };
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let difference = ms(theirs).saturating_sub(ms(ours));
    found.add(step.fact("difference_ms", difference).fact("source", source));
}

/// A duration in its two largest units.
fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}
