//! The virtual users of a load, which open the connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;
use twinlock_client::connector::{Connector, ReadySession};
use twinlock_client::enrol::{self, NewUser};
use twinlock_client::error::{ClientError, closed};
use twinlock_client::home::{DiskError, Home};
use twinlock_client::profile::{Profile, TlsTrust};
use twinlock_client::ready::client_info;
use twinlock_client::request_connection::RequestConnection;
use twinlock_core::Entropy as _;
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{DeviceId, InviteId, Name};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::keys::{DeviceSecret, InviteSecret};
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_core::session::BindingPolicy;
use twinlock_transport::OsEntropy;

use crate::model::{LoadError, StopSignal};

/// Maximum number of concurrent logins. Fewer than the 8 unauthenticated connections that a server
/// allows per address, so that it needs no special settings.
pub(crate) const CONCURRENT_LOGINS: usize = 6;

struct VirtualUser {
    device: DeviceId,
    secret: DeviceSecret,
}

impl VirtualUser {
    fn of(profile: &Profile) -> Self {
        let secret = DeviceSecret::new(profile.secret().expose_secret());
        Self { device: *profile.device(), secret }
    }
}

/// The users that open connections, in turn.
pub(crate) struct VirtualUsers {
    connector: Connector,
    users: Vec<VirtualUser>,
    /// Whether the users were created for this run.
    made: bool,
    label: String,
    /// Random at the start; each connection takes the next one.
    instance: AtomicU64,
}

impl VirtualUsers {
    /// The profile's device as the only user.
    pub(crate) fn of(profile: &Profile, connector: Connector) -> Self {
        Self::new(connector, vec![VirtualUser::of(profile)], profile.label(), false)
    }

    fn new(connector: Connector, users: Vec<VirtualUser>, label: &str, made: bool) -> Self {
        let mut instance = [0; 8];
        OsEntropy.fill(&mut instance);
        let instance = AtomicU64::new(u64::from_be_bytes(instance));
        Self { connector, users, made, label: label.to_owned(), instance }
    }

    /// Creates users, each with a device. After this returns, only memory holds the secrets.
    pub(crate) async fn recruit(
        profile: &Profile,
        address: Option<Address>,
        connector: Connector,
        count: usize,
        tag: &str,
        requests: &mut RequestConnection<()>,
        stop: &StopSignal,
    ) -> Result<Self, LoadError> {
        let address = match address {
            Some(address) => address,
            None => Address::new(profile.host(), profile.port())
                .and_then(|address| address.with_path(profile.path()))
                .map_err(|_| ClientError::NoAddress(profile.host().to_owned()))?,
        };
        let disk =
            |error: std::io::Error| ClientError::from(DiskError::at(&std::env::temp_dir())(error));
        let dir = tempfile::tempdir().map_err(disk)?;
        let mut joining = JoinSet::new();
        let mut users = Vec::with_capacity(count);
        for n in 0..count {
            if stop.is_stopped() {
                return Err(LoadError::Stopped);
            }
            if joining.len() >= CONCURRENT_LOGINS
                && let Some(user) = joining.join_next().await
            {
                users.push(joined(user)?);
            }
            let link = invite(profile, address.clone(), requests).await?;
            let user = Name::new(&format!("{tag}-{n}"));
            let user = user.map_err(|_| ClientError::Protocol("a user's name"))?;
            let home = Home::at(&dir.path().join(n.to_string()));
            joining.spawn(async move {
                let label = "bench".to_owned();
                let name = user.clone();
                let route = twinlock_client::Route::default();
                let new = NewUser { user, label, password: None, require_binding: false, route };
                enrol::join(&home, &name, &link, new)
                    .await
                    .map(|joined| VirtualUser::of(&joined.profile))
            });
        }
        while let Some(user) = joining.join_next().await {
            users.push(joined(user)?);
        }
        Ok(Self::new(connector, users, "bench", true))
    }

    pub(crate) fn connector(&self) -> Connector {
        self.connector.clone()
    }

    /// Whether the users were created for this run, and so are in no room but the lobby.
    pub(crate) fn is_made(&self) -> bool {
        self.made
    }

    /// Opens the `n`th connection.
    pub(crate) async fn open(&self, n: usize) -> Result<ReadySession, ClientError> {
        let of = n.checked_rem(self.users.len()).unwrap_or(0);
        let user = self.users.get(of).ok_or(ClientError::Closed)?;
        let secret = DeviceSecret::new(user.secret.expose_secret());
        let instance = self.instance.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let info = proto::ClientInfo {
            instance: Bytes::copy_from_slice(&instance),
            ..client_info(&self.label)
        };
        self.connector.open(Credential::Device(user.device, secret), &info).await
    }

    /// Opens connections, a few at a time, and passes on each one as soon as it is ready. With many
    /// of them, the server may ping the first before the last is open.
    pub(crate) async fn open_each(
        self: &Arc<Self>,
        connections: usize,
        stop: &StopSignal,
        mut take: impl FnMut(ReadySession),
    ) -> Result<(), LoadError> {
        let mut opening = JoinSet::new();
        let (mut asked, mut up) = (0, 0);
        while up < connections {
            if stop.is_stopped() {
                return Err(LoadError::Stopped);
            }
            while asked < connections && opening.len() < CONCURRENT_LOGINS {
                let (users, n) = (self.clone(), asked);
                opening.spawn(async move { users.open(n).await });
                asked += 1;
            }
            match opening.join_next().await {
                Some(Ok(Ok(opened))) => take(opened),
                Some(Ok(Err(error))) => return Err(error.into()),
                Some(Err(_)) | None => return Err(ClientError::Closed.into()),
            }
            up += 1;
        }
        Ok(())
    }

    /// Revokes the devices of the created users.
    pub(crate) async fn dismiss(self: &Arc<Self>) -> Result<(), LoadError> {
        if !self.made {
            return Ok(());
        }
        let mut leaving = JoinSet::new();
        for (n, user) in self.users.iter().enumerate() {
            if leaving.len() >= CONCURRENT_LOGINS
                && let Some(left) = leaving.join_next().await
            {
                left.unwrap_or(Err(ClientError::Closed))?;
            }
            let (users, device) = (self.clone(), Bytes::copy_from_slice(&user.device.0));
            leaving.spawn(async move {
                let mut requests = RequestConnection::new(users.open(n).await?.connection);
                let revoked =
                    requests.request(Op::RevokeDevice(proto::RevokeDevice { device })).await;
                requests.close().await;
                match revoked {
                    // The server closes this same connection, so its answer may be lost.
                    Err(error) if error == closed(CloseCode::Revoked) => Ok(()),
                    revoked => revoked.map(drop),
                }
            });
        }
        while let Some(left) = leaving.join_next().await {
            left.unwrap_or(Err(ClientError::Closed))?;
        }
        Ok(())
    }
}

fn joined(
    joined: Result<Result<VirtualUser, ClientError>, tokio::task::JoinError>,
) -> Result<VirtualUser, ClientError> {
    joined.unwrap_or(Err(ClientError::Closed))
}

async fn invite(
    profile: &Profile,
    address: Address,
    requests: &mut RequestConnection<()>,
) -> Result<InviteLink, ClientError> {
    let make = proto::MakeInvite { role: proto::Role::Member.into(), ..Default::default() };
    let Answered::Invite(invite) = requests.request(Op::MakeInvite(make)).await? else {
        return Err(ClientError::Protocol("an answer to another question"));
    };
    let malformed = || ClientError::Protocol("an invite");
    let secret = <[u8; 16]>::try_from(invite.secret.as_ref()).map_err(|_| malformed())?;
    Ok(InviteLink {
        address,
        id: InviteId::from_slice(&invite.id).ok_or_else(malformed)?,
        secret: InviteSecret::new(&secret),
        server_key: *profile.server_key(),
        tls_pin: match profile.tls() {
            TlsTrust::Pins(pins) => pins.first().copied(),
            TlsTrust::Ca { .. } => None,
        },
        proxy: profile.binding() == BindingPolicy::Off,
    })
}
