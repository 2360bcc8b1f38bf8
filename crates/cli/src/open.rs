//! Shared setup of the commands: the profile, its state, and the connection to its server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use twinlock_client::home::Home;
use twinlock_client::profile::{self, Profile};
use twinlock_client::state::State;
use twinlock_client::transfer::{self, Transfers};
use twinlock_client::{Client, ClientError, Event, Options};
use twinlock_core::id::Name;
use twinlock_core::invite::Address;
use twinlock_core::proto;
use twinlock_core::session::Binding;

use crate::args::{Global, Moving};
use crate::exit::Failure;
use crate::logging::Logs;
use crate::output::Output;

/// Whether the warning about a read-only profile was printed.
static WARNED: AtomicBool = AtomicBool::new(false);

/// The global options and the output of a command.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) out: Output,
}

/// An opened profile with its running client.
pub(crate) struct Opened {
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
            let known = address_of(&profile)?;
            self.global.address = self.global.reach(&known)?;
        }
        Ok(())
    }

    pub(crate) fn profile(&self) -> Result<Profile, Failure> {
        Ok(Profile::load(&self.home()?, &self.profile_name()?)?)
    }

    /// Opens the profile and starts its client.
    pub(crate) fn open(&self, mut options: Options) -> Result<Opened, Failure> {
        let (home, profile, state) = self.begin()?;
        let user = profile.user().clone();
        options.address.clone_from(&self.global.address);
        let (client, events) = Client::start(&home, profile, state, options)?;
        Ok(Opened { client, events, user })
    }

    /// Opens the profile and prepares file transfers.
    pub(crate) fn transfers(
        &self,
        moving: &Moving,
    ) -> Result<(Transfers, mpsc::Receiver<transfer::TransferEvent>), Failure> {
        let (home, profile, state) = self.begin()?;
        let line = Options { address: self.global.address.clone(), ..Options::default() };
        let moving = transfer::TransferOptions {
            connection: line,
            jobs: moving.jobs.into(),
            limit: moving.limit,
        };
        Ok(Transfers::start(&home, profile, state, moving)?)
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
        let Opened { client, mut events, .. } = self.open(options)?;
        let out = self.out;
        tokio::spawn(async move {
            let mut down = false;
            while let Some(event) = events.recv().await {
                match event {
                    Event::Up(up) => warn_about_tls(&out, up.binding),
                    // Reported once: the command waits for exactly this connection.
                    Event::Down { error, retry } if !std::mem::replace(&mut down, true) => {
                        out.say(&trying_again(&error, retry));
                    }
                    _ => {}
                }
            }
        });
        Ok(client)
    }
}

/// The address of a profile's server.
pub(crate) fn address_of(profile: &Profile) -> Result<Address, Failure> {
    Address::new(profile.host(), profile.port())
        .map_err(|_| Failure::usage("the profile's host is neither a name nor an address"))
}

/// Warns the user when TLS does not reach the server.
pub(crate) fn warn_about_tls(out: &Output, binding: Binding) {
    if let Some(warning) = tls_warning(binding) {
        out.warn(warning);
    }
}

/// The warning about TLS, if one is due.
pub(crate) fn tls_warning(binding: Binding) -> Option<&'static str> {
    match binding {
        Binding::Cut => Some(
            "TLS is intercepted between you and the server: a proxy, or an attacker with a forged \
             certificate.\nThe inner lock held: nobody between reads what you write. Names, sizes \
             and times can be seen there.",
        ),
        Binding::Unknown => Some(
            "The server says nothing about its end of TLS, so it is not known whether anybody \
             ends it in between.\nThe inner lock held.",
        ),
        Binding::Bound | Binding::Off => None,
    }
}

/// The spelling of a conversation on the command line.
pub(crate) fn target_of(conversation: &proto::Conversation) -> String {
    match conversation.kind() {
        proto::conversation::Kind::Direct => format!("@{}", conversation.name),
        _ => conversation.name.clone(),
    }
}

/// Why the connection is down, for people. The system's error text for a broken stream goes to the
/// log.
pub(crate) fn why_down(error: &ClientError) -> String {
    match error {
        ClientError::Lost(details) => {
            tracing::info!(%details, "connection lost");
            "the connection was lost".to_owned()
        }
        error => error.to_string(),
    }
}

/// The message about a lost connection, printed once per loss.
pub(crate) fn trying_again(error: &ClientError, retry: Duration) -> String {
    format!("{}; trying again in {} s", why_down(error), retry.as_secs().max(1))
}
