//! A real server in this process, and users who join it.
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
use twinlock_core::id::Name;
use twinlock_core::invite::InviteLink;
use twinlock_core::proto::Role;
use twinlock_server::Config;
pub use twinlock_testing::LONG;
use twinlock_testing::TestServer;
use twinlock_testing::endpoint::random_loopback;
use twinlock_transport::OsEntropy;

/// A server, and its users with their homes.
pub struct World {
    /// The homes, and other files of the test.
    pub dir: TempDir,
    pub server: TestServer,
}

impl World {
    pub async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let server = TestServer::start_with(|config| {
            // Tests stop the server and start it again on its address.
            config.listen = random_loopback();
            change(config);
        });
        Self { dir: tempfile::tempdir().unwrap(), server: server.await }
    }

    pub fn data(&self) -> PathBuf {
        self.server.data()
    }

    pub async fn stop(&mut self) {
        self.server.stop().await;
    }

    pub async fn start(&mut self) {
        self.server.start_again().await;
    }

    pub fn home(&self, user: &str) -> Home {
        Home::at(&self.dir.path().join(user))
    }

    /// Registers the owner with the first invite.
    pub async fn owner(&self, user: &str) -> Person {
        let link = self.server.server().owner_invite().unwrap().to_link();
        self.join(user, &link).await
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

    /// Queues texts, which a client sends.
    pub fn enqueue(&self, target: &str, texts: &[String]) {
        let messages = texts.iter().map(|text| (target, text.as_bytes()));
        self.state().outbox().enqueue_many(messages, 1, &mut OsEntropy).unwrap();
    }

    /// Sends `count` texts and waits until all are recorded.
    pub async fn say(&self, target: &str, count: usize) {
        let texts: Vec<_> = (0..count).map(|n| n.to_string()).collect();
        self.enqueue(target, &texts);
        let (client, mut events) = self.start(quick());
        let mut left = count;
        until(&mut events, |event| {
            left -= usize::from(matches!(event, Event::Recorded { .. }));
            left == 0
        })
        .await;
        client.close().await;
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
