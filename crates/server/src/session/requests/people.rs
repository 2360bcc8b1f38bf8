//! Requests about invites, devices, and lists of people.

use twinlock_core::id::{DeviceId, InviteId, Name};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered};
use twinlock_store::rights::{self, Right};
use twinlock_store::{StoredPerson, UserRole};

use super::{LIST, RequestContext, RequestResult, done, page_after};
use crate::barred::Revocation;
use crate::convert::{self, copy};
use crate::invites;
use crate::refusal::{RequestRefusal, bad_name, needs, refuse, storage};
use crate::services::Services;

impl RequestContext<'_> {
    pub(crate) async fn list_people(&self, want: proto::ListPeople) -> RequestResult {
        let after = page_after(&want.after)?;
        let rows =
            self.reading(|store| async move { store.people(after.as_ref(), LIST + 1).await });
        let rows = rows.await?;
        let online = |person: &StoredPerson| self.services.bus.is_online(&person.user);
        Ok(Answered::People(proto::People {
            more: rows.len() > LIST,
            people: rows.iter().take(LIST).map(|p| convert::person(p, online(p))).collect(),
        }))
    }

    pub(crate) async fn make_invite(&self, want: proto::MakeInvite) -> RequestResult {
        let role = convert::role_from(want.role).unwrap_or(UserRole::Member);
        // The role may have been withdrawn since the session began.
        let Some(me) = self.me().await?.filter(|me| rights::may(me.role, Right::Invite, role))
        else {
            return needs(rights::required(Right::Invite, role));
        };
        let user = match want.user.as_str() {
            "" => None,
            user => Some(Name::new(user).map_err(bad_name)?),
        };
        if let Some(user) = user.clone()
            && self.reading(|store| async move { store.person(&user).await }).await?.is_some()
        {
            return refuse(RefusalReason::NameTaken);
        }
        let Services { admission, record, .. } = self.services;
        let (id, secret, expires_ms) =
            invites::make(admission, record, role, user, want.seconds, Some(me.user)).await?;
        Ok(Answered::Invite(proto::Invite {
            id: copy(&id.0),
            secret: copy(secret.expose_secret()),
            expires_ms,
        }))
    }

    pub(crate) async fn list_invites(&self, want: proto::ListInvites) -> RequestResult {
        let after = match (want.after.is_empty(), InviteId::from_slice(&want.after)) {
            (true, _) => None,
            (false, Some(after)) => Some(after),
            (false, None) => return refuse(RefusalReason::Malformed),
        };
        let user = self.person.user.clone();
        let rows = self
            .reading(|store| async move { store.invites(&user, after, LIST + 1).await })
            .await?;
        Ok(Answered::Invites(proto::Invites {
            more: rows.len() > LIST,
            invites: rows.iter().take(LIST).map(convert::invite).collect(),
        }))
    }

    pub(crate) async fn list_devices(&self) -> RequestResult {
        list_devices(self.services, &self.person.user, Some(self.device)).await
    }

    /// Revokes the session's own device and no other: a stolen device must not lock out the rest.
    pub(crate) async fn revoke_device(&self, want: proto::RevokeDevice) -> RequestResult {
        match DeviceId::from_slice(&want.device) {
            None => refuse(RefusalReason::Malformed),
            Some(id) if id == *self.device => {
                revoke_device(self.services, &self.person.user, &id).await
            }
            Some(_) => refuse(RefusalReason::NotAllowed),
        }
    }
}

pub(in crate::session) async fn list_devices(
    services: &Services,
    user: &Name,
    current: Option<&DeviceId>,
) -> RequestResult {
    let owner = user.clone();
    let devices =
        services.record.read(user, |store| async move { store.devices(&owner).await }).await;
    let devices = devices.map_err(|e| storage(&e))?;
    let devices = devices.iter().map(|device| proto::Device {
        id: copy(&device.id.0),
        label: device.label.clone(),
        created_ms: device.created_ms,
        seen_ms: device.seen_ms,
        current: Some(&device.id) == current,
        online: services.bus.is_device_online(&device.id),
    });
    // A frame holds about 400 devices. No user has that many, and omitting the rest is harmless.
    Ok(Answered::Devices(proto::Devices { devices: devices.take(4 * LIST).collect() }))
}

pub(in crate::session) async fn revoke_device(
    services: &Services,
    user: &Name,
    device: &DeviceId,
) -> RequestResult {
    match services.record.store.revoke_device(user, device).await {
        Ok(true) => {}
        Ok(false) => return refuse(RefusalReason::NotFound),
        Err(error) => {
            let no = storage(&error);
            // If the record cannot be read either, a live session shows whose device it is.
            let is_own = match services.record.store.devices(user).await {
                Ok(own) => own.iter().any(|own| own.id == *device),
                Err(_) => services.bus.is_device_of(user, device),
            };
            if !is_own {
                return refuse(RefusalReason::NotFound);
            }
            tracing::warn!(%user, %device, "device barred until a restart: not recorded");
            services.record.barred.bar(Revocation::Device(user.clone(), *device));
            services.bus.device_revoked(device);
            return Err(RequestRefusal { barred: true, ..no });
        }
    }
    tracing::info!(%user, %device, "device revoked");
    services.record.barred.written(&Revocation::Device(user.clone(), *device));
    services.bus.device_revoked(device);
    done()
}
