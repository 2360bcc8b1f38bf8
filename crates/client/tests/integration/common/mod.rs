//! A real server in this process, and users who join it.
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use twinlock_client::enrol::{self, NewUser};
use twinlock_client::home::Home;
use twinlock_client::model::Entry;
use twinlock_client::profile::Profile;
use twinlock_client::state::State;
use twinlock_client::{Client, Event, Options};
use twinlock_core::Entropy as _;
use twinlock_core::id::Name;
use twinlock_core::invite::InviteLink;
use twinlock_core::proto::Role;
use twinlock_server::{Config, Server};

/// Timeout far above the duration of any operation in these tests.
pub const LONG: Duration = Duration::from_secs(60);

pub struct World {
    pub dir: TempDir,
    pub config: Config,
    pub server: Option<Server>,
    owner: String,
}

impl World {
    pub async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("server");
        // A random loopback address: while the server is down, no other test's connection can take
        // its port.
        let mut own = [0; 3];
        twinlock_transport::OsEntropy.fill(&mut own);
        let [a, b, c] = own;
        let listen = (Ipv4Addr::new(127, a, b, c.clamp(1, 254)), 0).into();
        let mut config = Config::new(data.clone(), listen);
        change(&mut config);
        let server = Server::start(config.clone()).await.unwrap();
        config.listen = server.local_addr();
        let owner = std::fs::read_to_string(data.join("owner-invite")).unwrap();
        Self { dir, config, server: Some(server), owner }
    }

    pub fn data(&self) -> PathBuf {
        self.config.data.clone()
    }

    pub async fn stop(&mut self) {
        self.server.take().unwrap().shutdown().await.unwrap();
    }

    pub async fn start(&mut self) {
        self.server = Some(Server::start(self.config.clone()).await.unwrap());
    }

    pub fn home(&self, user: &str) -> Home {
        Home::at(&self.dir.path().join(user))
    }

    /// Registers the owner with the first invite.
    pub async fn owner(&self, user: &str) -> Person {
        self.join(user, self.owner.trim()).await
    }

    pub async fn join(&self, user: &str, link: &str) -> Person {
        let link = InviteLink::parse(link).unwrap();
        let home = self.home(user);
        enrol::join(&home, &name("default"), &link, new_user(user)).await.unwrap();
        Person { home }
    }
}

pub fn new_user(user: &str) -> NewUser {
    let route = twinlock_client::Route::default();
    let label = "test".to_owned();
    NewUser { user: name(user), label, password: None, require_binding: false, route }
}

pub struct Person {
    pub home: Home,
}

impl Person {
    pub fn state(&self) -> State {
        State::open(&self.home, &self.profile()).unwrap()
    }

    pub fn profile(&self) -> Profile {
        Profile::load(&self.home, &name("default")).unwrap()
    }

    pub fn start(&self, options: Options) -> (Client, mpsc::Receiver<Event>) {
        Client::start(&self.home, self.profile(), self.state(), options).unwrap()
    }

    /// Creates an invite link for another user.
    pub async fn invite(&self, client: &Client) -> String {
        let invite = client.make_invite(Role::Member, None, 0).await.unwrap();
        let profile = self.profile();
        let twinlock_client::profile::TlsTrust::Pins(pins) = profile.tls() else { panic!() };
        let link = InviteLink {
            address: twinlock_core::invite::Address::new(profile.host(), profile.port()).unwrap(),
            id: invite.id,
            secret: invite.secret,
            server_key: *profile.server_key(),
            tls_pin: pins.first().copied(),
            proxy: false,
        };
        link.to_link().to_string()
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn quick() -> Options {
    Options {
        first_delay: Duration::from_millis(5),
        longest_delay: Duration::from_millis(50),
        ..Options::default()
    }
}

/// The next event; fails the test if none arrives within [`LONG`].
pub async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(LONG, events.recv()).await.unwrap().unwrap()
}

/// Takes events until `enough` returns true.
pub async fn until(events: &mut mpsc::Receiver<Event>, mut enough: impl FnMut(&Event) -> bool) {
    loop {
        let event = next(events).await;
        if let Event::Ended(error) = &event {
            panic!("ended: {error:?}");
        }
        if enough(&event) {
            return;
        }
    }
}

pub fn text(entry: &Entry) -> String {
    entry.text.as_ref().unwrap().expose_raw().to_owned()
}
