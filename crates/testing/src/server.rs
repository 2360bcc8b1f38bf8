//! A real server in the process of the test, on a loopback socket.
//!
//! The tests of the server compile this file themselves: its unit tests need the private parts of a
//! running server, and the server that this crate depends on is another copy there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use twinlock_core::credential::Credential;
use twinlock_core::id::{ServerKey, TlsPin};
use twinlock_core::proto::Role;
use twinlock_core::session::SessionConfig;
use twinlock_server::{Config, Server, StartError};
use twinlock_store_embedded::OpenError;
use twinlock_testing::endpoint::{Endpoint, Io};
use twinlock_testing::raw_client::{NoConnection, RawClient};
use twinlock_testing::{TestDevice, TestInvite, soon};

/// A server and its directory, which is removed at the end of the test.
pub struct TestServer {
    /// Settings of the current start, or of the last one while the server is stopped.
    config: Config,
    /// `None` while it is stopped.
    server: Option<Server>,
    dir: TempDir,
}

impl TestServer {
    /// A new server with the settings of [`config`](Self::config).
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// A new server with changed settings.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Self::config(&dir.path().join("data"));
        change(&mut config);
        let mut host = Self { config, server: None, dir };
        host.start_again().await;
        host
    }

    /// The settings that tests start from: any free port of 127.0.0.1, and 5 s to drain.
    #[must_use]
    pub fn config(data: &Path) -> Config {
        let mut config = Config::new(data.to_owned(), ([127, 0, 0, 1], 0).into());
        config.drain = Duration::from_secs(5);
        config
    }

    /// Stops it in order. Its directory stays.
    ///
    /// # Panics
    /// If it is not running, or does not stop.
    pub async fn stop(&mut self) {
        let server = self.server.take().unwrap();
        soon("shutdown", server.shutdown()).await.unwrap();
    }

    /// Starts a stopped server with its last settings, on its last address.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_again(&mut self) {
        let server = Server::start(self.config.clone()).await.unwrap();
        self.config.listen = server.local_addr();
        self.server = Some(server);
    }

    /// Starts it on a free port with the settings of [`config`](Self::config) and this change, in
    /// its directory. Stops it first if it is running.
    ///
    /// # Panics
    /// If it does not stop or start.
    pub async fn restart(mut self, change: impl FnOnce(&mut Config)) -> Self {
        if self.server.is_some() {
            self.stop().await;
        }
        self.config = Self::config(&self.data());
        change(&mut self.config);
        self.start_again().await;
        self
    }

    /// The same after a crash instead of an orderly stop.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn crash(mut self, change: impl FnOnce(&mut Config)) -> Self {
        self.config = Self::config(&self.data());
        change(&mut self.config);
        drop(self.server.take());
        // Its tasks end at their next await; the last of them releases the lock of the record.
        let start = async {
            loop {
                match Server::start(self.config.clone()).await {
                    Err(StartError::Record(OpenError::InUse(_))) => tokio::task::yield_now().await,
                    started => return started.unwrap(),
                }
            }
        };
        let server = soon("start", start).await;
        self.config.listen = server.local_addr();
        self.server = Some(server);
        self
    }

    /// The running server.
    ///
    /// # Panics
    /// If it is stopped.
    #[must_use]
    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Waits until at most this many sessions are left.
    ///
    /// # Panics
    /// If more stay.
    pub async fn until_sessions(&self, left: usize) {
        let gone = async {
            while self.server().sessions() > left {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("end of a session", gone).await;
    }

    /// The server's directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its address, also while it is stopped.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.config.listen
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> ServerKey {
        self.server().server_key()
    }

    /// The pin of its TLS key.
    #[must_use]
    pub fn pin(&self) -> TlsPin {
        self.server().tls_pin()
    }

    /// The invite of the first start.
    ///
    /// # Panics
    /// If this start reported none.
    #[must_use]
    pub fn owner_invite(&self) -> TestInvite {
        let link = self.server().owner_invite().unwrap();
        TestInvite { id: link.id.0, secret: *link.secret.expose_secret() }
    }

    /// How clients reach it.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::pinned(self.address(), vec![self.pin()], self.key())
    }

    /// Connects, up to the end of the TLS handshake.
    pub async fn tls(&self) -> Io {
        self.endpoint().tls().await
    }

    /// Connects, logs in and waits for READY.
    ///
    /// # Errors
    /// If the login fails.
    pub async fn connect(&self, credential: Credential) -> Result<RawClient, NoConnection> {
        self.endpoint().connect(credential).await
    }

    /// The same for this instance of the client, with a change of the session's configuration.
    ///
    /// # Errors
    /// If the login fails.
    pub async fn connect_with(
        &self,
        credential: Credential,
        instance: &[u8],
        change: impl FnOnce(&mut SessionConfig),
    ) -> Result<RawClient, NoConnection> {
        self.endpoint().connect_with(credential, instance, change).await
    }

    /// Registers a new user with a device, by an invite.
    ///
    /// # Panics
    /// If the server refuses it.
    pub async fn join(&self, invite: &TestInvite, user: &str) -> TestDevice {
        let mut client = self.connect(invite.credential()).await.unwrap();
        client.register(user, None).await.unwrap()
    }

    /// Registers the owner, `ada`; returns her device and one of its sessions.
    ///
    /// # Panics
    /// If the server refuses it.
    pub async fn owner(&self) -> (TestDevice, RawClient) {
        let device = self.join(&self.owner_invite(), "ada").await;
        let client = self.connect(device.credential()).await.unwrap();
        (device, client)
    }

    /// Registers a member whom `owner` invites; returns the device and one of its sessions.
    ///
    /// # Panics
    /// If the server refuses it.
    pub async fn member(&self, owner: &mut RawClient, user: &str) -> (TestDevice, RawClient) {
        let invite = owner.invite(Role::Member, "").await.unwrap();
        let device = self.join(&invite, user).await;
        let client = self.connect(device.credential()).await.unwrap();
        (device, client)
    }
}
