//! Finds the step at which a connection to a server fails, and the remedy.
//!
//! [`diagnose`] goes through all steps of a connection with connections of its own: the name, TCP,
//! the proxy, TLS, the certificate, ALPN, each transport, the handshake of the session, the clocks.
//! It sends HELLO once. Without an invite link or a profile that is the HELLO of a device that does
//! not exist, which costs one of the guesses that the server allows this address; otherwise it is a
//! login, which costs none if it succeeds. No secret is sent before the certificate is accepted.

mod middle;
mod network;
mod session;
mod step;
mod tls;
mod transports;

use twinlock_core::id::ServerKey;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::session::BindingPolicy;
use twinlock_transport::tls::ServerTrust;

use crate::connector::{profile_address, trust_of_link, trust_of_profile};
use crate::error::ClientError;
use crate::profile::Profile;
use crate::route::{Route, TransportChoice};
use network::Path;
pub use step::{Diagnosis, Outcome, Step};

/// What to diagnose.
pub enum Subject {
    /// A server of which only the address is known.
    Address(Address),
    /// The server of an invite link, which stays unused.
    Invite(InviteLink),
    /// The server of a profile, or the same server at another address.
    Profile(Box<Profile>, Option<Address>),
}

/// What is known about the server before the first connection.
struct Known {
    address: Address,
    /// `None`: the certificate cannot be judged by anything but the system's authorities.
    trust: Option<ServerTrust>,
    key: Option<ServerKey>,
    binding: BindingPolicy,
}

impl Subject {
    fn known(&self) -> Result<Known, ClientError> {
        Ok(match self {
            Self::Address(address) => Known {
                address: address.clone(),
                trust: None,
                key: None,
                binding: BindingPolicy::Warn,
            },
            Self::Invite(link) => Known {
                address: link.address.clone(),
                trust: Some(trust_of_link(link)),
                key: Some(link.server_key),
                binding: BindingPolicy::Warn,
            },
            Self::Profile(profile, address) => Known {
                address: address.clone().map_or_else(|| profile_address(profile), Ok)?,
                trust: Some(trust_of_profile(profile)?),
                key: Some(*profile.server_key()),
                binding: profile.binding(),
            },
        })
    }
}

/// Goes through the steps of a connection.
///
/// # Errors
/// [`ClientError`] of this machine: a profile, a file or a proxy's URL that cannot be used. A step
/// that fails is a part of the diagnosis.
pub async fn diagnose(subject: &Subject, route: &Route) -> Result<Diagnosis, ClientError> {
    let known = subject.known()?;
    let mut found = Diagnosis::new(known.address.to_string());
    let path = Path::find(&known.address, route, &mut found).await;
    let encrypted = route.transport != TransportChoice::Plain;
    let mut trusted = path.is_some();
    let mut seen = tls::Seen::default();
    if let Some(path) = path.as_ref().filter(|_| encrypted) {
        seen = tls::examine(path, &known, route.transport, &mut found).await;
        trusted = found.failed().is_none();
        if seen.speaks_tls {
            transports::examine(path, &known, route, &seen, &mut found).await;
            tls::explain_certificate(&mut found);
        }
    }
    // A transport that does not work is reported before the login that would use it.
    let login = match trusted && found.failed().is_none() {
        true => session::log_in(subject, &known, route, &seen, &mut found).await,
        false => None,
    };
    session::compare_clocks(login.as_ref(), found.http_date, &mut found);
    middle::name(path.as_ref(), &known, &seen, login.as_ref(), &mut found);
    Ok(found.complete())
}
