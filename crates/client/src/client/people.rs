//! Requests about users, invites and devices.

use bytes::Bytes;
use twinlock_core::id::{DeviceId, InviteId, Name};
use twinlock_core::keys::InviteSecret;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};

use super::listing::Listing;
use super::{Client, unexpected};
use crate::directory::{DeviceInfo, InviteInfo, PersonInfo, Role};
use crate::error::ClientError;
use crate::model::NewInvite;

impl Client {
    /// All users of the server, sorted. With `watch`, changes of presence are reported from now on,
    /// for as long as this connection lasts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn people(&self, watch: bool) -> Result<Vec<PersonInfo>, ClientError> {
        let mut all = Listing::new("people", |person: &proto::Person| person.user.clone());
        loop {
            let after = all.last().unwrap_or_default();
            let list = proto::ListPeople { after, watch };
            match self.request(Op::ListPeople(list)).await? {
                Answered::People(some) => {
                    if let Some(all) = all.add(some.people, some.more)? {
                        return Ok(all.into_iter().map(PersonInfo::from).collect());
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Creates an invite that is valid for `seconds`; 0: the server's default.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn make_invite(
        &self,
        role: Role,
        user: Option<&Name>,
        seconds: u64,
    ) -> Result<NewInvite, ClientError> {
        let user = user.map(ToString::to_string).unwrap_or_default();
        let make = proto::MakeInvite { role: role.into(), user, seconds };
        let Answered::Invite(invite) = self.request(Op::MakeInvite(make)).await? else {
            return Err(unexpected());
        };
        let secret = <[u8; 16]>::try_from(invite.secret.as_ref()).map_err(|_| unexpected())?;
        Ok(NewInvite {
            id: InviteId::from_slice(&invite.id).ok_or_else(unexpected)?,
            secret: InviteSecret::new(&secret),
            expires_ms: invite.expires_ms,
        })
    }

    /// The invites that this user has made, and those of others that its role could have made, oldest
    /// first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn invites(&self) -> Result<Vec<InviteInfo>, ClientError> {
        let mut all = Listing::new("invites", |invite: &proto::ListedInvite| invite.id.clone());
        loop {
            let after = all.last().unwrap_or_default();
            match self.request(Op::ListInvites(proto::ListInvites { after })).await? {
                Answered::Invites(some) => {
                    if let Some(all) = all.add(some.invites, some.more)? {
                        let mut invites: Vec<_> =
                            all.into_iter().filter_map(InviteInfo::of).collect();
                        invites.sort_by_key(|invite| (invite.created_ms, invite.id));
                        return Ok(invites);
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Revokes an unused invite.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `AlreadyUsed` if it was used before or has expired, with
    /// `NotFound` if it is not in [`Client::invites`].
    pub async fn revoke_invite(&self, id: &InviteId) -> Result<(), ClientError> {
        let id = Bytes::copy_from_slice(&id.0);
        self.done(Op::RevokeInvite(proto::RevokeInvite { id })).await
    }

    /// Changes a user's role.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NotAllowed` or `LastOwner`, among others.
    pub async fn set_role(&self, user: &Name, role: Role) -> Result<(), ClientError> {
        let role = role.into();
        self.done(Op::SetRole(proto::SetRole { user: user.to_string(), role })).await
    }

    /// Ends all sessions of a user, and accepts none of its credentials and entries until
    /// [`Client::restore_person`].
    ///
    /// # Errors
    /// As [`Client::set_role`].
    pub async fn suspend_person(&self, user: &Name) -> Result<(), ClientError> {
        self.done(Op::SuspendPerson(proto::SuspendPerson { user: user.to_string() })).await
    }

    /// Ends a suspension.
    ///
    /// # Errors
    /// As [`Client::set_role`].
    pub async fn restore_person(&self, user: &Name) -> Result<(), ClientError> {
        self.done(Op::RestorePerson(proto::RestorePerson { user: user.to_string() })).await
    }

    /// Removes a user for good: all sessions end, all credentials are revoked, and the user leaves
    /// all rooms. The name stays taken, and the entries stay.
    ///
    /// A user with a password removes itself only after [`Client::prove_password`].
    ///
    /// # Errors
    /// As [`Client::set_role`]. [`ClientError::Ended`] may replace the answer if the user removes
    /// itself.
    pub async fn remove_person(&self, user: &Name) -> Result<(), ClientError> {
        self.done(Op::RemovePerson(proto::RemovePerson { user: user.to_string() })).await
    }

    /// This user's devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn devices(&self) -> Result<Vec<DeviceInfo>, ClientError> {
        self.list_devices(Op::ListDevices(proto::ListDevices {})).await
    }

    /// The devices of another user.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NotAllowed`, among others.
    pub async fn devices_of(&self, user: &Name) -> Result<Vec<DeviceInfo>, ClientError> {
        self.list_devices(Op::ListDevicesOf(proto::ListDevicesOf { user: user.to_string() })).await
    }

    async fn list_devices(&self, op: Op) -> Result<Vec<DeviceInfo>, ClientError> {
        match self.request(op).await? {
            Answered::Devices(devices) => {
                Ok(devices.devices.into_iter().filter_map(DeviceInfo::of).collect())
            }
            _ => Err(unexpected()),
        }
    }

    /// Revokes a device of another user; its sessions end.
    ///
    /// # Errors
    /// As [`Client::devices_of`].
    pub async fn revoke_device_of(
        &self,
        user: &Name,
        device: &DeviceId,
    ) -> Result<(), ClientError> {
        let (user, device) = (user.to_string(), Bytes::copy_from_slice(&device.0));
        self.done(Op::RevokeDeviceOf(proto::RevokeDeviceOf { user, device })).await
    }

    /// Revokes a device: this one, or after [`Client::prove_password`] any other of this user.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_device(&self, device: &DeviceId) -> Result<(), ClientError> {
        let device = Bytes::copy_from_slice(&device.0);
        self.done(Op::RevokeDevice(proto::RevokeDevice { device })).await
    }
}
