//! Startup: identity, record, services, listeners.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;
use twinlock_core::id::TlsPin;
use twinlock_core::invite::Address;
use twinlock_core::opaque::ServerSetup;
use twinlock_store::Store;
use twinlock_store_embedded::convert::{self, Progress};
use twinlock_store_embedded::{EmbeddedStore, Expected, RecordLock, StoreOptions};
use twinlock_transport::OsEntropy;
use twinlock_transport::tls::ServerTls;

use super::data_check::{self, OLD_RECORD, RECORD, StartKind};
use super::heads::{self, HeadFile, Heads};
use super::listeners::{BoundSocket, accept, address_of, public_address};
use super::{FILE_ONLY, Server, clock, upkeep};
use crate::admission::{Admission, ListenerKind};
use crate::bus::local::LocalBus;
use crate::config::Config;
use crate::env::Env;
use crate::error::StartError;
use crate::handshake_runtime::HandshakeRuntime;
use crate::identity::{Identity, IdentityOptions};
use crate::invites::owner;
use crate::record::Record;
use crate::services::Services;
use crate::{classic, private, session};

/// Interval of the log's lines about a conversion.
const REPORTED: Duration = Duration::from_secs(20);

impl Server {
    /// Opens or creates identity and record, and listens. Requires a Tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with_progress(config, |_| {}).await
    }

    /// [`Server::start`], which reports how far the conversion of a record of version 0.1 is. It
    /// takes about 10 s for a million entries. Dropping the future does not end it; the end of the
    /// process does, at any moment.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with_progress(
        mut config: Config,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Self, StartError> {
        if Address::new("localhost", 1).and_then(|a| a.with_path(&config.websocket_path)).is_err() {
            return Err(StartError::WebsocketPath(config.websocket_path));
        }
        let data = private::data_directory(&config.data)?;
        config.data.clone_from(&data);
        // Taken before the directory is inspected: another process may be creating it.
        let lock = RecordLock::take(&data.join(RECORD))?;
        let known = Heads::read(&data, heads::FILE)?;
        let start = data_check::inspect(&data, &config, &known)?;
        let (identity, setup) = open_identity(&config)?;
        let expected = known.expected_beside(&Heads::read(&data, heads::MISSING)?);
        let store = open_store(&config, &setup, lock, expected, progress).await?;
        let started = Self::start_on(config, identity, setup, store.clone(), &known, start).await;
        if started.is_err() {
            // The error of the start counts.
            store.close().await.ok();
        }
        started
    }

    /// Starts the server on an open record.
    async fn start_on(
        config: Config,
        identity: Identity,
        setup: ServerSetup,
        store: Arc<dyn Store>,
        known: &Heads,
        start: StartKind,
    ) -> Result<Self, StartError> {
        let data = config.data.clone();
        // A self-signed certificate is trusted only by its pin.
        let self_made = identity.certificate().is_self_issued().then(|| identity.pin());
        warn_of_another_key(known.tls_pin, self_made);
        data_check::check_files(&data, &*store).await?;
        let whole = heads::compare(&data, known, &*store).await?;
        clock::check(&*store).await?;
        // Binding determines the ports; connections are refused until the sockets listen.
        let sessions = BoundSocket::bind("--port", config.listen)?;
        let lines = BoundSocket::bind_if("--classic-port", config.classic.lines)?;
        let origin = BoundSocket::bind_if("--origin-port", config.classic.origin)?;
        let plain = BoundSocket::bind_if("--plain-port", config.plain)?;
        let address = sessions.address();
        let public = public_address(&config, address);
        let [lines_at, origin_at, plain_at] =
            [&lines, &origin, &plain].map(|s| address_of(s.as_ref()));
        let addresses = [Some(address), lines_at, origin_at, plain_at];
        let env = Arc::new(Env::new(config));
        let record = Record::open(&env.config, store.clone(), env.runtime.clone())?;
        let tls = ServerTls::new(identity.certificate())?;
        let (runtime, handle) = HandshakeRuntime::open().map_err(StartError::Threads)?;
        let admission = Admission::new(env.clone(), setup, tls, handle, addresses)?;
        let services = Services {
            env,
            admission: Arc::new(admission),
            record: Arc::new(record),
            bus: Arc::new(LocalBus::default()),
        };
        let Services { env, admission, record, .. } = &services;
        let pin = self_made.filter(|_| !env.config.behind_proxy);
        let owner_invite = owner::invite(admission, record, &public, pin).await?;
        let key = admission.setup.server_key();
        let mut heads = HeadFile::new(&data, key, self_made);
        if start == StartKind::First {
            heads.write(&*store).await?;
            data_check::complete_first_start(&data)?;
        } else {
            heads.try_write(&*store).await;
        }
        let heads = Arc::new(tokio::sync::Mutex::new(heads));
        let sessions = sessions.listen()?;
        let lines = lines.map(BoundSocket::listen).transpose()?;
        let origin = origin.map(BoundSocket::listen).transpose()?;
        let plain = plain.map(BoundSocket::listen).transpose()?;
        let identity = Arc::new(Mutex::new(identity));
        let sweep = whole && start == StartKind::Later;
        let upkeep = upkeep::spawn(&services, &identity, &heads, sweep);
        let mut accepting = JoinSet::new();
        let runs = &admission.handshake_runtime;
        runs.spawn(&mut accepting, accept(services.clone(), sessions, session::serve));
        if let Some(listener) = plain {
            let address = admission.port(ListenerKind::Plain).address;
            let address = address.map(tracing::field::display);
            tracing::info!(target: FILE_ONLY, address, "listening without TLS");
            runs.spawn(&mut accepting, accept(services.clone(), listener, session::serve_plain));
        }
        if let Some(listener) = lines {
            let address = admission.port(ListenerKind::Classic).address;
            let address = address.map(tracing::field::display);
            tracing::info!(target: FILE_ONLY, address, "listening for classic connections");
            runs.spawn(&mut accepting, accept(services.clone(), listener, classic::serve_lines));
        }
        if let Some(listener) = origin {
            let address = admission.port(ListenerKind::Origin).address;
            let address = address.map(tracing::field::display);
            tracing::warn!(address, "listening for clients of the origin, without integrity");
            runs.spawn(&mut accepting, accept(services.clone(), listener, classic::serve_origin));
        }
        tracing::info!(target: FILE_ONLY, %address, %key, "listening");
        Ok(Self {
            services,
            identity,
            address,
            public,
            owner_invite,
            heads,
            accepting,
            upkeep,
            _handshake_runtime: runtime,
        })
    }
}

fn setup_path(data: &Path) -> PathBuf {
    identity_dir(data).join("opaque-setup")
}

fn identity_dir(data: &Path) -> PathBuf {
    data.join("identity")
}

fn open_identity(config: &Config) -> Result<(Identity, ServerSetup), StartError> {
    let options = IdentityOptions {
        key_type: config.key_type,
        names: config.public.iter().filter_map(certificate_name).collect(),
        own: config.own_files.clone(),
    };
    let new_setup = || ServerSetup::generate(&mut OsEntropy).to_bytes();
    let dir = identity_dir(&config.data);
    let identity = Identity::open_or_create(&dir, options, SystemTime::now(), new_setup)?;
    let setup = ServerSetup::from_bytes(identity.setup_bytes())
        .map_err(|_| StartError::Setup(setup_path(&config.data)))?;
    Ok((identity, setup))
}

/// Opens the record, and converts an old one before. Reading the end of the log takes time.
async fn open_store(
    config: &Config,
    setup: &ServerSetup,
    lock: RecordLock,
    expected: Expected,
    mut progress: impl FnMut(Progress) + Send + 'static,
) -> Result<Arc<dyn Store>, StartError> {
    let (database, directory) = (config.data.join(OLD_RECORD), config.data.join(RECORD));
    let (server_key, row_key) = (setup.server_key(), setup.row_key());
    let options = StoreOptions::new(server_key, setup.row_key()).bounds(config.limits.bounds);
    let open = move || -> Result<Arc<dyn Store>, StartError> {
        if convert::is_due(&database, &directory)? {
            tracing::info!("converting the record into its new form; nothing has to be done");
            let (begun, mut told) = (Instant::now(), Instant::now());
            let mut report = |at: Progress| {
                if told.elapsed() >= REPORTED {
                    told = Instant::now();
                    tracing::info!(stage = ?at.stage, done = at.done, total = at.total, "converting the record");
                }
                progress(at);
            };
            let converted = convert::convert(
                &database,
                &directory,
                &row_key,
                &server_key,
                &expected,
                &mut report,
            )?;
            tracing::info!(
                entries = converted.entries,
                seconds = begun.elapsed().as_secs(),
                "the record is converted; record.db.before-log, the old one, is removed with the first \
                 erasure, or in 30 days"
            );
        }
        Ok(EmbeddedStore::open_locked(lock, options, &expected)?)
    };
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|error| StartError::Threads(error.into()))?
}

/// The part of an address that a certificate can contain: a scope is valid on this machine only.
fn certificate_name(public: &Address) -> Option<String> {
    public.bare_host().split('%').next().map(str::to_owned)
}

/// Warns that the TLS key has changed: clients that pin the previous key refuse the server.
fn warn_of_another_key(known: Option<TlsPin>, current: Option<TlsPin>) {
    if let Some((before, now)) = known.zip(current)
        && before != now
    {
        tracing::warn!(%before, %now, "the TLS key has changed since the last start: clients that pin the old key refuse this server");
    }
}
