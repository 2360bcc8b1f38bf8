//! Why there is no connection or no session, by the step that failed.

use std::io;

use twinlock_core::frame::CloseCode;
use twinlock_core::session::SessionFault;
use twinlock_transport::connection::ConnectionError;
use twinlock_transport::forward_proxy::ProxyFault;
use twinlock_transport::login::LoginError;
use twinlock_transport::tls::TlsFault;

use super::Connector;
use crate::error::{ClientError, closed};
use crate::via::{ForwardProxy, ViaError};

/// What to do about a proxy that wants a user name and password.
const WANTS_LOGIN: &str = "; --via-auth-file FILE, or HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, has \
     them (NTLM and Negotiate do not work here)";
/// The same for SOCKS5.
const WANTS_SOCKS_LOGIN: &str =
    "; --via-auth-file FILE, or ALL_PROXY=socks5://USER:PASSWORD@HOST:PORT, has them";
/// What to do about a proxy that refuses the server's port.
const REFUSES_PORT: &str =
    "; many proxies allow port 443 only, so the server needs to be reachable there";

/// Why there is no connection up to the end of TLS, by the step that failed. `None`: it took too
/// long.
pub(crate) enum CarrierFault {
    /// The environment names a proxy that cannot be used.
    Via(ViaError),
    /// Without TLS only this machine is reached, and through no proxy.
    PlainBeyondMachine,
    /// The name of the server, or of the proxy.
    Name(Option<io::Error>),
    /// TCP to the server, or to the proxy.
    Tcp(Option<io::Error>),
    /// The proxy opens no connection to the server.
    Proxy(Option<ProxyFault>),
    Tls(Option<TlsFault>),
    /// No TLS, or one that ends in front of the server, which the profile forbids; who issued the
    /// certificate, as it says.
    Cut(Option<String>),
}

/// Why there is no session, by the step that failed.
pub(crate) enum OpenFault {
    /// Before HELLO.
    Connect(ClientError),
    /// HELLO to PROOF.
    Login(LoginError),
    /// After PROOF.
    Ready(NotReady),
}

/// Why a session did not get the server's READY.
pub(crate) enum NotReady {
    Connection(ConnectionError),
    Closed(CloseCode),
    /// TLS is intercepted; who issued the certificate, as it says.
    Cut(Option<String>),
    Unreadable,
    Late,
}

impl NotReady {
    /// Whether the server has closed the connection without a word.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Connection(ConnectionError::Cut(error))
            if error.as_ref().is_none_or(is_closed))
    }

    /// Adds who issued the certificate if TLS is intercepted.
    pub(super) fn with_issuer(self, issuer: Option<String>) -> Self {
        match self {
            Self::Connection(ConnectionError::Fault(SessionFault::Binding))
            | Self::Closed(CloseCode::Binding) => Self::Cut(issuer),
            error => error,
        }
    }
}

impl From<ConnectionError> for NotReady {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<NotReady> for ClientError {
    fn from(error: NotReady) -> Self {
        match error {
            NotReady::Connection(error) => error.into(),
            NotReady::Closed(code) => closed(code),
            NotReady::Cut(issuer) => Self::TlsCut { issuer },
            NotReady::Unreadable => Self::Protocol("its READY cannot be read"),
            NotReady::Late => Self::Lost("the server did not get ready in time".to_owned()),
        }
    }
}

/// Whether the peer has closed the connection.
pub(super) fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe
    )
}

impl CarrierFault {
    /// Whether the other end is not the server, rather than out of reach.
    pub(crate) fn is_distrust(&self) -> bool {
        match self {
            Self::Cut(_) => true,
            Self::Tls(Some(fault)) => fault.is_distrust(),
            _ => false,
        }
    }
}

impl Connector {
    /// The error to report.
    pub(crate) fn error_of(&self, fault: OpenFault) -> ClientError {
        match fault {
            OpenFault::Connect(error) => error,
            OpenFault::Login(LoginError::Io(error)) if is_closed(&error) => self.not_admitted(),
            OpenFault::Login(error) => error.into(),
            OpenFault::Ready(error) if error.is_closed() => self.not_admitted(),
            OpenFault::Ready(error) => error.into(),
        }
    }

    /// The error to report for a connection that failed before the transport.
    pub(crate) fn carrier_error(
        &self,
        fault: CarrierFault,
        proxy: Option<&ForwardProxy>,
    ) -> ClientError {
        let or_late = |error: Option<io::Error>, late: &str| {
            error.map_or_else(|| late.to_owned(), |error| error.to_string())
        };
        match fault {
            CarrierFault::Via(error) => error.into(),
            CarrierFault::PlainBeyondMachine => {
                ClientError::PlainBeyondMachine(self.address.clone())
            }
            CarrierFault::Name(Some(error)) => {
                self.no_way_to(proxy, format!("its name cannot be resolved: {error}"))
            }
            CarrierFault::Name(None) => {
                self.no_way_to(proxy, "its name is not resolved in time".to_owned())
            }
            CarrierFault::Tcp(Some(error)) if is_closed(&error) && proxy.is_none() => {
                self.not_admitted()
            }
            CarrierFault::Tcp(error) => self.no_way_to(proxy, or_late(error, "no answer")),
            CarrierFault::Proxy(fault) => {
                let hint = match &fault {
                    Some(ProxyFault::WantsLogin { .. } | ProxyFault::LoginRefused) => WANTS_LOGIN,
                    Some(ProxyFault::WantsSocksLogin) => WANTS_SOCKS_LOGIN,
                    Some(ProxyFault::Status(403 | 405)) => REFUSES_PORT,
                    _ => "",
                };
                ClientError::Proxy {
                    proxy: proxy.map(ToString::to_string).unwrap_or_default(),
                    address: self.address.clone(),
                    problem: fault
                        .map_or_else(|| "it does not answer".to_owned(), |fault| fault.to_string()),
                    hint,
                }
            }
            CarrierFault::Tls(Some(TlsFault::Io(error))) if is_closed(&error) => {
                self.not_admitted()
            }
            CarrierFault::Tls(Some(fault)) => ClientError::tls(&fault, &self.address),
            CarrierFault::Tls(None) => self.unreachable("the TLS handshake took too long"),
            CarrierFault::Cut(issuer) => ClientError::TlsCut { issuer },
        }
    }

    /// The error for an end of TCP that cannot be reached: the server or a proxy.
    fn no_way_to(&self, proxy: Option<&ForwardProxy>, problem: String) -> ClientError {
        match proxy {
            None => self.unreachable(problem),
            Some(proxy) => ClientError::Proxy {
                proxy: proxy.to_string(),
                address: self.address.clone(),
                problem: format!("it cannot be reached: {problem}"),
                hint: "",
            },
        }
    }

    /// The error to report for several attempts: one about the server's identity before one about
    /// reaching it.
    pub(super) fn main_error(&self, errors: impl Iterator<Item = ClientError>) -> ClientError {
        let rank = |error: &ClientError| match error {
            ClientError::Distrusted(_) | ClientError::TlsCut { .. } => 0,
            ClientError::NotAdmitted { .. } => 1,
            _ => 2,
        };
        errors.min_by_key(rank).unwrap_or_else(|| self.unreachable("its name has no address"))
    }
}
