//! Finds the step at which a connection to a server fails, and the remedy.
//!
//! [`diagnose`] goes through all steps of a connection with connections of its own: the name, TCP,
//! the proxy, TLS, the certificate, ALPN, each transport, the handshake of the session, the clocks.
//! Up to TLS and for the login it calls the functions with which a client connects, with the same
//! trust and the same deadlines, so that it fails where a client fails. It does not repeat a login
//! that the server is too busy for.
//!
//! Nothing but TLS is sent to an end of TLS that a client would not accept. If only an address is
//! known, any end is accepted, as for a first login by password.
//!
//! It sends HELLO once, as a client does. Without an invite link or a profile that is the HELLO of a
//! device that does not exist, which costs one of the guesses that the server allows this address;
//! otherwise it is a login, which costs none if it succeeds.

mod attempts;
mod middle;
mod network;
mod proxy;
mod session;
mod step;
#[cfg(test)]
mod tests;
mod tls;
mod transports;

use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::limits::Timing;
use twinlock_core::session::BindingPolicy;
use twinlock_transport::tls::ServerTrust;

use crate::connector::{Connector, trust_of_link};
use crate::error::ClientError;
use crate::profile::Profile;
use crate::route::{Route, TransportChoice};
use network::Raced;
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

impl Subject {
    /// The parameters with which a client connects.
    fn connector(&self, route: &Route) -> Result<Connector, ClientError> {
        let (warn, timing) = (BindingPolicy::Warn, Timing::default());
        let connector = match self {
            Self::Address(address) => {
                Connector::new(address.clone(), ServerTrust::Learn, None, warn, timing)
            }
            Self::Invite(link) => {
                let key = Some(link.server_key);
                Connector::new(link.address.clone(), trust_of_link(link), key, warn, timing)
            }
            Self::Profile(profile, address) => Connector::of(profile, address.clone(), timing),
        };
        Ok(connector?.over(route.clone()))
    }
}

/// Goes through the steps of a connection.
///
/// # Errors
/// [`ClientError`] of this machine: a profile or a file that cannot be used. A step that fails is a
/// part of the diagnosis.
pub async fn diagnose(subject: &Subject, route: &Route) -> Result<Diagnosis, ClientError> {
    Ok(walk(subject, &subject.connector(route)?, route).await)
}

async fn walk(subject: &Subject, connector: &Connector, route: &Route) -> Diagnosis {
    let mut found = Diagnosis::new(connector.address().to_string());
    let mut seen = tls::Seen::default();
    let is_encrypted = route.transport != TransportChoice::Plain;
    let is_known = !matches!(subject, Subject::Address(_));
    let way = match network::find(connector, &route.via, &mut found).await {
        Raced::Unreachable => None,
        Raced::Won(way, shown) => {
            if is_encrypted {
                tls::describe(&shown, connector, is_known, &mut seen, &mut found);
                transports::examine(&way, connector, route, &seen, &mut found).await;
            }
            Some(way)
        }
        Raced::Lost(way, fault) => {
            tls::explain(&way, connector, fault, &mut seen, &mut found).await;
            Some(way)
        }
    };
    // A transport that does not work is reported before the login that would use it.
    let login = match way.is_some() && found.failed().is_none() {
        true => session::log_in(subject, connector, route, &seen, &mut found).await,
        false => None,
    };
    session::compare_clocks(login.as_ref(), found.http_date, &mut found);
    let proxy = way.as_ref().and_then(|way| way.proxy.as_ref());
    middle::name(proxy, connector.binding(), &seen, login.as_ref(), &mut found);
    found.complete()
}
