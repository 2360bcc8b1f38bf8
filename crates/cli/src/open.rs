//! What most commands begin with: the profile, its state, a line to its server.

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

/// That nothing is remembered has been said.
static WARNED: AtomicBool = AtomicBool::new(false);

/// What a command knows of its surroundings.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) out: Output,
}

/// A profile in use.
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) user: Name,
}

impl Context {
    pub(crate) fn home(&self) -> Result<Home, Failure> {
        Ok(Home::locate()?)
    }

    /// Which profile was asked for.
    pub(crate) fn profile_name(&self) -> Result<Name, Failure> {
        Ok(profile::choose(self.global.profile.as_deref(), |name| std::env::var_os(name))?)
    }

    /// Puts `--host` and `--port` into `--address`, whose other part the profile knows.
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

    /// Opens the profile and makes ready to move files.
    pub(crate) fn transfers(
        &self,
        moving: &Moving,
    ) -> Result<(Transfers, mpsc::Receiver<transfer::Event>), Failure> {
        let (home, profile, state) = self.begin()?;
        let line = Options { address: self.global.address.clone(), ..Options::default() };
        let moving = transfer::Moving { line, jobs: moving.jobs.into(), limit: moving.limit };
        Ok(Transfers::start(&home, profile, state, moving)?)
    }

    /// The state of the profile, without a line to its server.
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
            // Once a process: `get` opens its profile twice.
            if !WARNED.swap(true, Ordering::Relaxed) {
                self.out.warn(
                    "this profile is on a read-only disk: reading works, but nothing is remembered",
                );
            }
        } else {
            let file = &home.make_state(profile.name())?.join("client.log");
            // A command does without its log.
            Logs { file, console: None, level, json: false, color: false }.start().ok();
        }
        Ok((home, profile, state))
    }

    /// A client for one question: it tries once and sends nothing.
    pub(crate) fn ask_once(&self) -> Result<Client, Failure> {
        let mut options = Options { reconnect: false, send: false, ..Options::default() };
        // A slot is free again in a moment.
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
                    // Once: it is what the command is waiting for.
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

/// Where a profile's server is.
pub(crate) fn address_of(profile: &Profile) -> Result<Address, Failure> {
    Address::new(profile.host(), profile.port())
        .map_err(|_| Failure::usage("the profile's host is neither a name nor an address"))
}

/// Tells the person when TLS does not reach the server.
pub(crate) fn warn_about_tls(out: &Output, binding: Binding) {
    if let Some(warning) = tls_warning(binding) {
        out.warn(warning);
    }
}

/// What the person has to know about TLS, if anything.
pub(crate) fn tls_warning(binding: Binding) -> Option<&'static str> {
    match binding {
        Binding::Cut => Some(
            "TLS ends somewhere between you and the server: a proxy, or somebody with a forged \
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

/// How a conversation is written on the command line.
pub(crate) fn target_of(conversation: &proto::Conversation) -> String {
    match conversation.kind() {
        proto::conversation::Kind::Direct => format!("@{}", conversation.name),
        _ => conversation.name.clone(),
    }
}

/// Why there is no line, for people: what the system said about a broken stream is in the log.
pub(crate) fn why_down(error: &ClientError) -> String {
    match error {
        ClientError::Lost(details) => {
            tracing::info!(%details, "line lost");
            "the line was lost".to_owned()
        }
        error => error.to_string(),
    }
}

/// What is said when a line is lost, once for each time.
pub(crate) fn trying_again(error: &ClientError, retry: Duration) -> String {
    format!("{}; trying again in {} s", why_down(error), retry.as_secs().max(1))
}
