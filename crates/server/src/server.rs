//! The server: what its program sees of it, and its shutdown.
//!
//! [`start`] opens everything, [`listeners`] accepts connections, [`upkeep`] has the background
//! tasks.

mod clock;
mod data_check;
mod heads;
mod listeners;
mod start;
#[cfg(feature = "test-util")]
mod test_util;
mod upkeep;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, ServerKey, TlsPin};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_store::StoreError;
use twinlock_store_embedded::Expected;

use crate::admission::ListenerKind;
use crate::error::StartError;
use crate::handshake_runtime::HandshakeRuntime;
use crate::identity::{Identity, IdentityError};
use crate::private;
use crate::services::Services;

pub(crate) use data_check::{OLD_RECORD, RECORD};
use heads::HeadFile;

/// Log target for events that only the log file has; the terminal shows them in other words.
pub const FILE_ONLY: &str = "twinlock::file";

/// Creates the data directory and its missing parents durably, and returns its canonical path.
///
/// Use the returned path from then on. [`Server::start`] does the same; call this first to write a
/// log there before the server starts.
///
/// # Errors
/// [`StartError::Data`], also for a directory that another user can write to or replace.
pub fn make_data_directory(path: &Path) -> Result<PathBuf, StartError> {
    Ok(private::data_directory(path)?)
}

/// The time of the newest entry that is noted in the data directory, in ms since 1970.
pub(crate) fn heads_time(data: &Path) -> Option<u64> {
    heads::Heads::read(data, heads::FILE).ok()?.newest_time_ms()
}

/// What the head files say that the record must have, and those that are damaged.
pub(crate) fn expected(data: &Path) -> Result<(Expected, Vec<&'static str>), StartError> {
    let (mut expected, mut damaged) = (Expected::default(), Vec::new());
    for file in [heads::FILE, heads::MISSING] {
        let read = heads::Heads::read(data, file)?;
        if !read.known && private::is_there(&data.join(file))? {
            damaged.push(file);
        }
        expected.entries.extend(read.expected().entries);
    }
    Ok((expected, damaged))
}

/// A running server. Dropping it drops its connections; [`Server::shutdown`] closes them in order.
pub struct Server {
    pub(crate) services: Services,
    identity: Arc<Mutex<Identity>>,
    address: SocketAddr,
    public: Address,
    owner_invite: Option<InviteLink>,
    heads: Arc<tokio::sync::Mutex<HeadFile>>,
    /// Accept loops; each ends once its connections have ended.
    accepting: JoinSet<()>,
    /// Background tasks that run as long as the server.
    upkeep: JoinSet<()>,
    _handshake_runtime: HandshakeRuntime,
}

impl Server {
    /// The listening address, with the actual port if port 0 was requested.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The listening address for classic connections, if they are enabled.
    #[must_use]
    pub fn classic_addr(&self) -> Option<SocketAddr> {
        self.services.admission.port(ListenerKind::Classic).address
    }

    /// The listening address of the origin bridge, if it is enabled.
    #[must_use]
    pub fn origin_addr(&self) -> Option<SocketAddr> {
        self.services.admission.port(ListenerKind::Origin).address
    }

    /// The listening address for sessions without TLS, if it is enabled.
    #[must_use]
    pub fn plain_addr(&self) -> Option<SocketAddr> {
        self.services.admission.port(ListenerKind::Plain).address
    }

    /// Number of open classic connections, including those of the origin bridge.
    #[must_use]
    pub fn classic_connections(&self) -> usize {
        self.services.admission.classic_connections()
    }

    /// The address in invite links.
    #[must_use]
    pub fn public_address(&self) -> &Address {
        &self.public
    }

    /// The key that identifies the server.
    #[must_use]
    pub fn server_key(&self) -> ServerKey {
        self.services.admission.setup.server_key()
    }

    /// The pin of the current TLS key.
    #[must_use]
    pub fn tls_pin(&self) -> TlsPin {
        self.services.admission.tls().spki_pin()
    }

    /// The owner's invite link, if this start created it. It is shown only once.
    #[must_use]
    pub fn owner_invite(&self) -> Option<&InviteLink> {
        self.owner_invite.as_ref()
    }

    /// Drops the owner's invite link from memory after it was shown, because it contains a secret.
    pub fn forget_owner_invite(&mut self) {
        self.owner_invite = None;
    }

    /// Number of sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.services.bus.sessions()
    }

    /// Erases an entry: its salt and body, and a file's content unless another entry refers to it.
    ///
    /// Returns `false` if there is no such entry, or if it is erased already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn erase(&self, conversation: ConversationId, n: u64) -> Result<bool, StoreError> {
        self.services.record.files.erase(conversation, n).await
    }

    /// Reloads the certificate (SIGHUP). Open connections stay. Blocks on two small files.
    ///
    /// # Errors
    /// [`IdentityError`]; the previous certificate stays in use.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate = identity.reload(SystemTime::now())?;
        self.services.admission.tls().reload(certificate);
        tracing::info!(pin = %self.services.admission.tls().spki_pin(), "certificate reloaded");
        Ok(())
    }

    /// Shuts the server down in order.
    ///
    /// It accepts no more connections, drops those that are not authenticated, and lets every
    /// received append be recorded and acknowledged. It sends each session CLOSE 8 with the time to
    /// reconnect, and closes the record.
    ///
    /// # Errors
    /// [`StoreError`] if the record cannot be closed cleanly. No acknowledged entry is lost in that
    /// case.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        let Services { env, record, bus, .. } = &self.services;
        tracing::info!(lines = bus.sessions(), "shutting down");
        env.stop();
        bus.close_all(CloseCode::Shutdown);
        let ended = async { while self.accepting.join_next().await.is_some() {} };
        if timeout(env.config.drain, ended).await.is_err() {
            tracing::warn!(lines = bus.sessions(), "connections were dropped");
        }
        self.accepting.shutdown().await;
        self.upkeep.shutdown().await;
        // A restart would admit the barred devices and keys. Retry: disk space may be available.
        record.barred.write(&*record.store).await;
        let mut heads = self.heads.lock().await;
        heads.try_write(&*record.store).await;
        record.store.close().await
    }
}
