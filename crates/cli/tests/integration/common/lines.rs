//! Members for thousands of connections from one process.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use twinlock_client::enrol::{self, NewUser};
use twinlock_client::home::Home;
use twinlock_client::profile::{Profile, TlsTrust};
use twinlock_client::state::State;
use twinlock_client::{Client, Options};
use twinlock_core::id::Name;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::proto::Role;
use twinlock_transport::connection::Connection;

use crate::common::Person;
use crate::common::raw::{Card, Io};

/// Sessions that one user may have (section 9).
pub const PER_USER: usize = 16;
/// Concurrent logins of one address: fewer than its 8 unauthenticated connections.
pub const AT_ONCE: usize = 6;

pub type Connected = Connection<Io>;

/// Registers enough members for all connections, each with a device.
pub async fn members(owner: &Person, root: &Path, count: usize) -> Vec<Card> {
    let home = Home::at(&owner.home);
    let default = Name::new("default").unwrap();
    let profile = Profile::load(&home, &default).unwrap();
    let state = State::open(&home, &profile).unwrap();
    let TlsTrust::Pins(pins) = profile.tls() else { panic!("no pins") };
    let (address, key) =
        (Address::new(profile.host(), profile.port()).unwrap(), profile.server_key());
    let key = *key;
    let (client, _events) = Client::start(&home, profile, state, Options::default()).unwrap();
    let mut joining = JoinSet::new();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for n in 0..count {
        let place = places.clone().acquire_owned().await.unwrap();
        let invite = client.make_invite(Role::Member, None, 0).await.unwrap();
        let link = InviteLink {
            address: address.clone(),
            id: invite.id,
            secret: invite.secret,
            server_key: key,
            tls_pin: pins.first().copied(),
            proxy: false,
        };
        let home = Home::at(&root.join(format!("member-{n}")));
        let (user, default) = (Name::new(&format!("member-{n}")).unwrap(), default.clone());
        joining.spawn(async move {
            let label = "idle".to_owned();
            let route = twinlock_client::Route::default();
            let new = NewUser { user, label, password: None, require_binding: false, route };
            let joined = enrol::join(&home, &default, &link, new).await.unwrap();
            drop(place);
            Card::of_profile(&joined.profile)
        });
    }
    let members = joining.join_all().await;
    client.close().await;
    members
}
