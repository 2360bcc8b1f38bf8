//! Shared setup of the commands: the profile, its state, and the connection to its server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use twinlock_client::connector::profile_address;
use twinlock_client::enrol::ByPassword;
use twinlock_client::home::Home;
use twinlock_client::profile::{self, Profile};
use twinlock_client::state::State;
use twinlock_client::transfer::{self, Transfers};
use twinlock_client::{Client, ClientError, ConnectionEvent, Event, Options};
use twinlock_core::credential::Password;
use twinlock_core::id::Name;

use crate::args::{GlobalArgs, TransferArgs};
use crate::connection_text::{trying_again, warn_about_tls};
use crate::exit::Failure;
use crate::logging::Logs;
use crate::output::Output;

/// Whether the warning about a read-only profile was printed.
static WARNED: AtomicBool = AtomicBool::new(false);

/// The global options and the output of a command.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) global: GlobalArgs,
    pub(crate) out: Output,
}

/// An opened profile with its running client.
pub(crate) struct OpenProfile {
    pub(crate) client: Client,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) user: Name,
}

impl Context {
    pub(crate) fn home(&self) -> Result<Home, Failure> {
        Ok(Home::locate()?)
    }

    /// The name of the profile that was asked for.
    pub(crate) fn profile_name(&self) -> Result<Name, Failure> {
        Ok(profile::choose(self.global.profile.as_deref(), |name| std::env::var_os(name))?)
    }

    /// Merges `--host` and `--port` into `--address`; the profile supplies the part that is not
    /// given.
    pub(crate) fn find_address(&mut self) -> Result<(), Failure> {
        if self.global.host.is_some() || self.global.port.is_some() {
            let profile = self.profile()?;
            let known = profile_address(&profile)?;
            self.global.address = self.global.reach(&known)?;
        }
        Ok(())
    }

    pub(crate) fn profile(&self) -> Result<Profile, Failure> {
        Ok(Profile::load(&self.home()?, &self.profile_name()?)?)
    }

    /// Opens the profile and connects.
    pub(crate) fn connect(&self, mut options: Options) -> Result<Client, Failure> {
        let (home, profile, state) = self.begin()?;
        options.address.clone_from(&self.global.address);
        options.route = self.global.route();
        Ok(Client::connect(&home, profile, state, options)?)
    }

    /// Opens the profile and starts its client, whose events the caller takes.
    pub(crate) fn open(&self, mut options: Options) -> Result<OpenProfile, Failure> {
        let (home, profile, state) = self.begin()?;
        let user = profile.user().clone();
        options.address.clone_from(&self.global.address);
        options.route = self.global.route();
        let (client, events) = Client::start(&home, profile, state, options)?;
        Ok(OpenProfile { client, events, user })
    }

    /// Opens the profile and prepares file transfers.
    pub(crate) fn transfers(
        &self,
        args: &TransferArgs,
    ) -> Result<(Transfers, mpsc::Receiver<transfer::TransferEvent>), Failure> {
        let (home, profile, state) = self.begin()?;
        let (address, route) = (self.global.address.clone(), self.global.route());
        let connection = Options { address, route, ..Options::default() };
        let options =
            transfer::TransferOptions { connection, jobs: args.jobs.into(), limit: args.limit };
        Ok(Transfers::start(&home, profile, state, options)?)
    }

    /// The state of the profile, without a connection to its server.
    pub(crate) fn state(&self) -> Result<State, Failure> {
        let (_, _, state) = self.begin()?;
        Ok(state)
    }

    fn begin(&self) -> Result<(Home, Profile, State), Failure> {
        let home = self.home()?;
        let profile = self.profile()?;
        let level = if self.global.verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
        let state = State::open(&home, &profile)?;
        if state.is_read_only() {
            // Once per process: `get` opens its profile twice.
            if !WARNED.swap(true, Ordering::Relaxed) {
                self.out.warn(
                    "this profile is on a read-only disk: reading works, but nothing is stored",
                );
            }
        } else {
            let file = &home.make_state(profile.name())?.join("client.log");
            // A command runs without its log if the log cannot be opened.
            Logs { file, console: None, level, json: false, color: false }.start().ok();
        }
        Ok((home, profile, state))
    }

    /// A client for one request: it does not reconnect and sends nothing from the outbox.
    pub(crate) fn ask_once(&self) -> Result<Client, Failure> {
        let mut options = Options { reconnect: false, send: false, ..Options::default() };
        // Short delays: a connection slot becomes free within moments.
        options.first_delay = Duration::from_millis(100);
        options.longest_delay = Duration::from_secs(1);
        if let Some(timeout) = self.global.timeout {
            options.patience = timeout;
        }
        let client = self.connect(options)?;
        let mut connection = client.connection_events()?;
        let out = self.out;
        tokio::spawn(async move {
            let mut down = false;
            while let Some(event) = connection.next().await {
                match event {
                    ConnectionEvent::Up(up) => {
                        warn_about_tls(&out, up.binding, up.tls.issuer.as_deref())
                    }
                    // Reported once: the command waits for exactly this connection.
                    ConnectionEvent::Down { error, retry }
                        if !std::mem::replace(&mut down, true) =>
                    {
                        out.say(&trying_again(&error, retry));
                    }
                    _ => {}
                }
            }
        });
        Ok(client)
    }

    /// A session by the password, for a device that is shut out.
    pub(crate) async fn open_by_password(
        &self,
        profile: &Profile,
        password: Password,
    ) -> Result<ByPassword, Failure> {
        let address = self.global.address.clone();
        let opened = ByPassword::open(profile, address, &self.global.route(), password).await?;
        let (binding, issuer) = opened.tls();
        warn_about_tls(&self.out, binding, issuer);
        Ok(opened)
    }
}

/// Whether this device cannot log in, now or at all; the password still can.
pub(crate) fn is_shut_out(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::LoginRefused | ClientError::Ended(_) | ClientError::TooManySessions
    )
}
