//! The virtual users of a load, which open the connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;
use twinlock_core::Entropy as _;
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{DeviceId, InviteId, Name};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::keys::{DeviceSecret, InviteSecret};
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_core::session::BindingPolicy;
use twinlock_transport::OsEntropy;

use super::{LoadError, Stop};
use crate::connector::{Connector, ReadySession};
use crate::enrol::{self, NewUser};
use crate::error::{ClientError, closed};
use crate::home::{DiskError, Home};
use crate::profile::{Profile, TlsTrust};
use crate::ready::client_info;
use crate::request_connection::RequestConnection;

/// Maximum number of concurrent logins. Fewer than the 8 unauthenticated connections that a server
/// allows per address, so that it needs no special settings.
pub(super) const AT_ONCE: usize = 6;

struct Member {
    device: DeviceId,
    secret: DeviceSecret,
}

impl Member {
    fn of(profile: &Profile) -> Self {
        let secret = DeviceSecret::new(profile.secret().expose_secret());
        Self { device: *profile.device(), secret }
    }
}

/// The users that open connections, in turn.
pub(super) struct Crew {
    dial: Connector,
    members: Vec<Member>,
    /// Whether the users were created for this run.
    made: bool,
    label: String,
    /// Random at the start; each connection takes the next one.
    instance: AtomicU64,
}

impl Crew {
    /// The profile's device as the only user.
    pub(super) fn of(profile: &Profile, dial: Connector) -> Self {
        Self::new(dial, vec![Member::of(profile)], profile.label(), false)
    }

    fn new(dial: Connector, members: Vec<Member>, label: &str, made: bool) -> Self {
        let mut instance = [0; 8];
        OsEntropy.fill(&mut instance);
        let instance = AtomicU64::new(u64::from_be_bytes(instance));
        Self { dial, members, made, label: label.to_owned(), instance }
    }

    /// Creates users, each with a device. After this returns, only memory holds the secrets.
    pub(super) async fn recruit(
        profile: &Profile,
        address: Option<Address>,
        dial: Connector,
        users: usize,
        tag: &str,
        wire: &mut RequestConnection<()>,
        stop: &Stop,
    ) -> Result<Self, LoadError> {
        let address = match address {
            Some(address) => address,
            None => Address::new(profile.host(), profile.port())
                .map_err(|_| ClientError::NoAddress(profile.host().to_owned()))?,
        };
        let disk =
            |error: std::io::Error| ClientError::from(DiskError::at(&std::env::temp_dir())(error));
        let dir = tempfile::tempdir().map_err(disk)?;
        let mut joining = JoinSet::new();
        let mut members = Vec::with_capacity(users);
        for n in 0..users {
            if stop.is_told() {
                return Err(LoadError::Stopped);
            }
            if joining.len() >= AT_ONCE
                && let Some(member) = joining.join_next().await
            {
                members.push(joined(member)?);
            }
            let link = invite(profile, address.clone(), wire).await?;
            let user = Name::new(&format!("{tag}-{n}"));
            let user = user.map_err(|_| ClientError::Protocol("a user's name"))?;
            let home = Home::at(&dir.path().join(n.to_string()));
            joining.spawn(async move {
                let label = "bench".to_owned();
                let name = user.clone();
                let new = NewUser { user, label, password: None, require_binding: false };
                enrol::join(&home, &name, &link, new).await.map(|profile| Member::of(&profile))
            });
        }
        while let Some(member) = joining.join_next().await {
            members.push(joined(member)?);
        }
        Ok(Self::new(dial, members, "bench", true))
    }

    pub(super) fn dial(&self) -> Connector {
        self.dial.clone()
    }

    /// Whether the users were created for this run, and so are in no room but the lobby.
    pub(super) fn is_made(&self) -> bool {
        self.made
    }

    /// Opens the `n`th connection.
    pub(super) async fn open(&self, n: usize) -> Result<ReadySession, ClientError> {
        let of = n.checked_rem(self.members.len()).unwrap_or(0);
        let member = self.members.get(of).ok_or(ClientError::Closed)?;
        let secret = DeviceSecret::new(member.secret.expose_secret());
        let instance = self.instance.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let info = proto::ClientInfo {
            instance: Bytes::copy_from_slice(&instance),
            ..client_info(&self.label)
        };
        self.dial.open(Credential::Device(member.device, secret), &info).await
    }

    /// Opens connections, a few at a time, and passes on each one as soon as it is ready. With many
    /// of them, the server may ping the first before the last is open.
    pub(super) async fn open_each(
        self: &Arc<Self>,
        lines: usize,
        stop: &Stop,
        mut take: impl FnMut(ReadySession),
    ) -> Result<(), LoadError> {
        let mut opening = JoinSet::new();
        let (mut asked, mut up) = (0, 0);
        while up < lines {
            if stop.is_told() {
                return Err(LoadError::Stopped);
            }
            while asked < lines && opening.len() < AT_ONCE {
                let (crew, n) = (self.clone(), asked);
                opening.spawn(async move { crew.open(n).await });
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
    pub(super) async fn dismiss(self: &Arc<Self>) -> Result<(), LoadError> {
        if !self.made {
            return Ok(());
        }
        let mut leaving = JoinSet::new();
        for (n, member) in self.members.iter().enumerate() {
            if leaving.len() >= AT_ONCE
                && let Some(left) = leaving.join_next().await
            {
                left.unwrap_or(Err(ClientError::Closed))?;
            }
            let (crew, device) = (self.clone(), Bytes::copy_from_slice(&member.device.0));
            leaving.spawn(async move {
                let mut wire = RequestConnection::new(crew.open(n).await?.connection);
                let revoked = wire.request(Op::RevokeDevice(proto::RevokeDevice { device })).await;
                wire.close().await;
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
    joined: Result<Result<Member, ClientError>, tokio::task::JoinError>,
) -> Result<Member, ClientError> {
    joined.unwrap_or(Err(ClientError::Closed))
}

async fn invite(
    profile: &Profile,
    address: Address,
    wire: &mut RequestConnection<()>,
) -> Result<InviteLink, ClientError> {
    let make = proto::MakeInvite { role: proto::Role::Member.into(), ..Default::default() };
    let Answered::Invite(invite) = wire.request(Op::MakeInvite(make)).await? else {
        return Err(ClientError::Protocol("an answer to another question"));
    };
    let odd = || ClientError::Protocol("an invite");
    let secret = <[u8; 16]>::try_from(invite.secret.as_ref()).map_err(|_| odd())?;
    Ok(InviteLink {
        address,
        id: InviteId::from_slice(&invite.id).ok_or_else(odd)?,
        secret: InviteSecret::new(&secret),
        server_key: *profile.server_key(),
        tls_pin: match profile.tls() {
            TlsTrust::Pins(pins) => pins.first().copied(),
            TlsTrust::Ca { .. } => None,
        },
        proxy: profile.binding() == BindingPolicy::Off,
    })
}
