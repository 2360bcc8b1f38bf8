//! The server's end of TLS.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use twinlock_core::id::TlsPin;

use super::{ALPN, ALPN_HTTP, ServerCert, TlsFault, VERSIONS, provider};

/// Accepts TLS connections under a certificate that can be replaced while connections exist.
///
/// Cheap to clone; all clones share the certificate.
#[derive(Clone, Debug)]
pub struct ServerTls {
    acceptor: DebugAcceptor,
    current: Arc<Current>,
}

#[derive(Clone)]
struct DebugAcceptor(TlsAcceptor);

impl std::fmt::Debug for DebugAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

/// The certificate for the next handshake.
#[derive(Debug)]
struct Current(RwLock<ServerCert>);

impl Current {
    // A poisoned lock still holds a whole certificate: the only write is one assignment.
    fn get(&self) -> ServerCert {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, cert: ServerCert) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = cert;
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().certified())
    }
}

impl ServerTls {
    /// Sets up a server.
    ///
    /// # Errors
    /// [`TlsFault::Tls`] if rustls rejects the configuration, which would be a bug in this module.
    pub fn new(cert: ServerCert) -> Result<Self, TlsFault> {
        Self::over(Arc::new(Current(RwLock::new(cert))), true)
    }

    /// The same without ALPN, for listeners whose clients do not use it (section 11).
    ///
    /// A client's offer is ignored. Both share the certificate.
    ///
    /// # Errors
    /// As [`ServerTls::new`].
    pub fn without_alpn(&self) -> Result<Self, TlsFault> {
        Self::over(self.current.clone(), false)
    }

    fn over(current: Arc<Current>, alpn: bool) -> Result<Self, TlsFault> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols =
            if alpn { vec![ALPN.to_vec(), ALPN_HTTP.to_vec()] } else { Vec::new() };
        config.ignore_client_order = true;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        config.cert_compressors = Vec::new();
        config.cert_decompressors = Vec::new();
        Ok(Self { acceptor: DebugAcceptor(TlsAcceptor::from(Arc::new(config))), current })
    }

    /// Performs the handshake with a client. Sets no timeout: the listener does (10 s).
    ///
    /// Selects `twinlock/1`, else `http/1.1`, from what the client offers. A client that offers no
    /// protocol is accepted, as are all where the listener has no ALPN.
    ///
    /// # Errors
    /// [`TlsFault::Alpn`] if the client offers only other protocols, [`TlsFault::NotTls`],
    /// [`TlsFault::Tls`] or [`TlsFault::Io`].
    pub async fn accept<IO>(&self, io: IO) -> Result<TlsStream<IO>, TlsFault>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        Ok(self.acceptor.0.accept(io).await?)
    }

    /// Uses `cert` for every handshake from now on. Existing connections do not change.
    pub fn reload(&self, cert: ServerCert) {
        self.current.set(cert);
    }

    /// The pin of the certificate in use.
    #[must_use]
    pub fn spki_pin(&self) -> TlsPin {
        self.current.get().pin()
    }

    /// Whether no authority issued the certificate in use, so that clients know it by its pin.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.current.get().is_self_issued()
    }

    /// The end of the validity period of the certificate in use.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.current.get().expires_at()
    }
}
