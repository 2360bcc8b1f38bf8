//! Thousands of connections from one process: members that own them, and logins without a client.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use twinlock_client::enrol::{self, NewUser};
use twinlock_client::home::Home;
use twinlock_client::profile::{Profile, TlsTrust};
use twinlock_client::state::State;
use twinlock_client::{Client, Options};
use twinlock_core::credential::Credential;
use twinlock_core::id::Name;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::proto::{self, Role};
use twinlock_core::session::{BindingPolicy, SessionConfig, SessionEvent};
use twinlock_transport::connection::Connection;
use twinlock_transport::login::login;
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust, channel_binding};

use crate::common::Person;

/// Sessions that one user may have (section 9).
pub const PER_USER: usize = 16;
/// Concurrent logins of one address: fewer than its 8 unauthenticated connections.
pub const AT_ONCE: usize = 6;

pub type Connected = Connection<TlsStream<TcpStream>>;

/// The server's port and the TLS configuration for it.
pub struct To {
    port: u16,
    tls: ClientTls,
}

impl To {
    /// The server of a member, on this port.
    pub fn new(port: u16, member: &Profile) -> Self {
        let TlsTrust::Pins(pins) = member.tls() else { panic!("no pins") };
        Self { port, tls: ClientTls::new(ServerTrust::Pins(pins), Alpn::Direct).unwrap() }
    }

    /// Logs a device in and waits for READY. `from`: another address of this machine.
    pub async fn connect(
        &self,
        profile: &Profile,
        instance: u64,
        from: Option<Ipv4Addr>,
    ) -> Result<Connected, String> {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(from) = from {
            socket.bind((from, 0).into()).unwrap();
        }
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let tcp = socket.connect(server).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).unwrap();
        let stream = self.tls.connect("127.0.0.1", tcp).await.map_err(|e| e.to_string())?;
        let info = proto::ClientInfo {
            instance: Bytes::copy_from_slice(&instance.to_be_bytes()),
            ..proto::ClientInfo::default()
        };
        let config = SessionConfig {
            binding: BindingPolicy::Require,
            exporter: channel_binding(stream.get_ref().1).ok(),
            info: info.encode_to_vec(),
            max_version: VERSION,
            timing: Timing::default(),
        };
        let secret = DeviceSecret::new(profile.secret().expose_secret());
        let credential = Credential::Device(*profile.device(), secret);
        let line = login(stream, credential, Some(*profile.server_key()), config).await;
        let mut line = line.map_err(|error| error.to_string())?;
        loop {
            line.wait(None).await.map_err(|error| error.to_string())?;
            match line.open_frame().map_err(|error| error.to_string())? {
                SessionEvent::Ready { .. } => return Ok(line),
                SessionEvent::Closed(code) => return Err(format!("{code:?}")),
                _ => {}
            }
        }
    }
}

/// Registers enough members for all connections, each with a device.
pub async fn members(owner: &Person, root: &Path, count: usize) -> Vec<Profile> {
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
            joined
        });
    }
    let members = joining.join_all().await;
    client.close().await;
    members
}
