//! What a profile or an invite link states about its server: the address, and the trust in TLS.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_transport::tls::ServerTrust;

use crate::error::ClientError;
use crate::profile::{Profile, TlsTrust};

/// The address of a profile's server.
///
/// # Errors
/// [`ClientError::NoAddress`] if the profile's host is neither a name nor an address.
pub fn profile_address(profile: &Profile) -> Result<Address, ClientError> {
    Address::new(profile.host(), profile.port())
        .and_then(|address| address.with_path(profile.path()))
        .map_err(|_| ClientError::NoAddress(profile.host().to_owned()))
}

/// The trust in TLS that a profile states.
pub(crate) fn trust_of_profile(profile: &Profile) -> Result<ServerTrust, ClientError> {
    Ok(match profile.tls() {
        TlsTrust::Pins(pins) => ServerTrust::Pins(pins),
        TlsTrust::Ca { file } => ServerTrust::Ca { extra_roots: roots(file.as_deref())? },
    })
}

/// The trust in TLS that an invite link states.
pub(crate) fn trust_of_link(link: &InviteLink) -> ServerTrust {
    match link.tls_pin {
        Some(pin) => ServerTrust::Pins(vec![pin]),
        None => ServerTrust::Ca { extra_roots: Vec::new() },
    }
}

pub(crate) fn roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let cannot = |error: rustls::pki_types::pem::Error| {
        ClientError::Authority(format!("{}: {error}", file.display()))
    };
    let roots = CertificateDer::pem_file_iter(file).map_err(cannot)?;
    let roots: Vec<_> = roots.collect::<Result<_, _>>().map_err(cannot)?;
    if roots.is_empty() {
        let words = format!("{}: the file has no certificate in PEM form", file.display());
        return Err(ClientError::Authority(words));
    }
    Ok(roots)
}
