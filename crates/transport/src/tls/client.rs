//! The client's end of TLS.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use twinlock_core::id::TlsPin;

use super::facts::issuer_of;
use super::fault::WrongPin;
use super::{ALPN, ALPN_HTTP, Distrust, TlsFault, VERSIONS, pin_of, provider};

/// Which server a client trusts.
#[derive(Debug, Clone)]
pub enum ServerTrust {
    /// The owner of one of these keys, whose name, issuer and expiry are not checked: the key is
    /// the identity. Else an end with a certificate for the name from an authority that this system
    /// trusts: TLS ends there, in front of the server ([`ClientTls::is_pinned`]).
    Pins(Vec<TlsPin>),
    /// Any owner of the certificate that it shows. Only for a first login by password: there the
    /// session's handshake authenticates the server and names the pins to keep.
    Learn,
    /// A server with a certificate for the name from an authority that this system trusts.
    Ca {
        /// Authorities (or self-signed server certificates) trusted in addition to the system's.
        extra_roots: Vec<CertificateDer<'static>>,
    },
}

/// The protocols that a client offers. A peer that selects none is accepted: it may be a proxy that
/// knows no protocol names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// `twinlock/1`, else `http/1.1`.
    Any,
    /// Only `twinlock/1`.
    Direct,
    /// Only `http/1.1`, for WebSocket.
    Http,
}

impl Alpn {
    fn names(self) -> Vec<Vec<u8>> {
        match self {
            Self::Any => vec![ALPN.to_vec(), ALPN_HTTP.to_vec()],
            Self::Direct => vec![ALPN.to_vec()],
            Self::Http => vec![ALPN_HTTP.to_vec()],
        }
    }
}

/// Creates TLS connections under one profile's trust. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    verifier: Arc<dyn ServerCertVerifier>,
    alpn: Alpn,
    name_matters: bool,
    /// `None`: the trust has no pins.
    pins: Option<Arc<[TlsPin]>>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { connector: _, verifier: _, alpn, name_matters, pins } = self;
        f.debug_struct("ClientTls")
            .field("alpn", alpn)
            .field("name_matters", name_matters)
            .field("pins", pins)
            .finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Sets up a client. With [`ServerTrust::Ca`] this reads the system's root certificates from disk,
    /// which blocks for some milliseconds.
    ///
    /// # Errors
    /// [`TlsFault::Roots`] if an extra root cannot be read or there are no roots.
    pub fn new(trust: ServerTrust, alpn: Alpn) -> Result<Self, TlsFault> {
        let name_matters = matches!(trust, ServerTrust::Ca { .. });
        let pins: Option<Arc<[TlsPin]>> = match &trust {
            ServerTrust::Pins(pins) => Some(pins.as_slice().into()),
            ServerTrust::Learn | ServerTrust::Ca { .. } => None,
        };
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            ServerTrust::Pins(_) | ServerTrust::Learn => Arc::new(PinVerifier {
                pins: pins.clone(),
                by_authority: OnceLock::new(),
                algorithms: provider().signature_verification_algorithms,
            }),
            ServerTrust::Ca { extra_roots } => by_authority(extra_roots)?,
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.names();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.cert_compressors = Vec::new();
        config.cert_decompressors = Vec::new();
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self { connector, verifier, alpn, name_matters, pins })
    }

    /// The same with another offer.
    #[must_use]
    pub fn offering(&self, alpn: Alpn) -> Self {
        let mut config = ClientConfig::clone(self.connector.config());
        config.alpn_protocols = alpn.names();
        let connector = TlsConnector::from(Arc::new(config));
        Self { connector, alpn, ..self.clone() }
    }

    /// Whether the key that the peer showed is pinned; `None` if the trust has no pins. A peer that
    /// was accepted without is the end of TLS in front of the server.
    #[must_use]
    pub fn is_pinned(&self, peer_pin: Option<TlsPin>) -> Option<bool> {
        self.pins.as_ref().map(|pins| peer_pin.is_some_and(|pin| pins.contains(&pin)))
    }

    /// Whether this trust accepts the chain that a server `host` has shown, end entity first. The
    /// handshake also checks that the server has the key.
    ///
    /// # Errors
    /// [`TlsFault::Pin`], [`TlsFault::Untrusted`], or [`TlsFault::Name`] for an invalid name.
    pub fn check_chain(&self, host: &str, chain: &[CertificateDer<'_>]) -> Result<(), TlsFault> {
        let name = self.server_name(host)?;
        let (first, rest) = chain.split_first().ok_or(TlsFault::Untrusted(Distrust::Malformed))?;
        self.verifier.verify_server_cert(first, rest, &name, &[], UnixTime::now())?;
        Ok(())
    }

    /// Performs the handshake with the server `host`, a DNS name or an IP address without brackets.
    ///
    /// Sets no timeout.
    ///
    /// # Errors
    /// [`TlsFault::Pin`] and [`TlsFault::Untrusted`] if it is not the trusted server;
    /// [`TlsFault::Alpn`], [`TlsFault::NotTls`], [`TlsFault::Tls`], [`TlsFault::Io`] if the peer
    /// does not speak Twinlock; [`TlsFault::Name`] if a name that must be checked is invalid.
    pub async fn connect<IO>(&self, host: &str, io: IO) -> Result<TlsStream<IO>, TlsFault>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        // rustls refuses an answer that was not offered.
        Ok(self.connector.connect(self.server_name(host)?, io).await?)
    }

    fn server_name(&self, host: &str) -> Result<ServerName<'static>, TlsFault> {
        match ServerName::try_from(host) {
            Ok(name) => Ok(name.to_owned()),
            // A pinned server may have any name. rustls never sends an address as SNI.
            Err(_) if !self.name_matters => Ok(IpAddr::from(Ipv4Addr::UNSPECIFIED).into()),
            Err(_) => Err(TlsFault::Name),
        }
    }
}

fn by_authority(
    extra_roots: Vec<CertificateDer<'static>>,
) -> Result<Arc<WebPkiServerVerifier>, TlsFault> {
    let roots = Arc::new(roots(extra_roots)?);
    WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|_| TlsFault::Roots("the root certificates cannot be used"))
}

fn roots(extra: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TlsFault> {
    let mut roots = RootCertStore::empty();
    for root in extra {
        roots.add(root).map_err(|_| TlsFault::Roots("a root certificate cannot be read"))?;
    }
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "some of the system's root certificates cannot be read");
    }
    // Some systems have roots that rustls does not parse; the others count.
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        return Err(TlsFault::Roots("this system has no root certificates, and none were given"));
    }
    Ok(roots)
}

/// Checks the pin instead of name and chain; if the key is not pinned, name and chain.
///
/// Verifies the handshake signature as usual, because the certificate is public and any server
/// could show it.
#[derive(Debug)]
struct PinVerifier {
    /// `None`: accepts any key, to learn it.
    pins: Option<Arc<[TlsPin]>>,
    /// Read at the first key that is not pinned; `None` if this system has no usable roots.
    by_authority: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got = pin_of(&ParsedCertificate::try_from(end_entity)?.subject_public_key_info());
        let Some(pins) = self.pins.as_ref().filter(|pins| !pins.contains(&got)) else {
            return Ok(ServerCertVerified::assertion());
        };
        // The placeholder for a host that no certificate can name.
        let no_name = ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED));
        let authorities = self.by_authority.get_or_init(|| by_authority(Vec::new()).ok());
        let verified =
            authorities.as_ref().filter(|_| *server_name != no_name).map(|authorities| {
                let (certificate, chain) = (end_entity, intermediates);
                authorities.verify_server_cert(certificate, chain, server_name, ocsp_response, now)
            });
        match verified {
            Some(Ok(verified)) => Ok(verified),
            _ => {
                let issuer = issuer_of(end_entity).unwrap_or_default();
                let wrong = WrongPin { got, expected: pins.to_vec(), issuer };
                Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
