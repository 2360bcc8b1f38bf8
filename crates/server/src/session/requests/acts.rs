//! Acts of power: requests that change what other people may do.

use std::slice::from_ref;

use twinlock_core::id::{DeviceId, InviteId, Name};
use twinlock_core::proto::{self, RefusalReason};
use twinlock_store::rights::{self, Right, Verdict};
use twinlock_store::{Act, ActEffects, Actor, Administered, PersonState, RevokedInvite};

use super::people::list_devices;
use super::{RequestContext, RequestResult, done};
use crate::barred::Revocation;
use crate::convert;
use crate::limits::throttle::log_fault;
use crate::refusal::{RequestRefusal, bad_name, needs, refuse, storage};

impl RequestContext<'_> {
    pub(crate) async fn set_role(&self, want: proto::SetRole) -> RequestResult {
        let user = Name::new(&want.user).map_err(bad_name)?;
        match convert::role_from(want.role) {
            Some(role) => self.administer(Act::SetRole { user, role }).await,
            None => refuse(RefusalReason::Malformed),
        }
    }

    pub(crate) async fn suspend_person(&self, want: proto::SuspendPerson) -> RequestResult {
        let user = Name::new(&want.user).map_err(bad_name)?;
        self.administer(Act::Suspend { user }).await
    }

    pub(crate) async fn restore_person(&self, want: proto::RestorePerson) -> RequestResult {
        let user = Name::new(&want.user).map_err(bad_name)?;
        self.administer(Act::Restore { user }).await
    }

    /// `proven`: this session has proven the password in the last minutes.
    pub(crate) async fn remove_person(
        &self,
        want: proto::RemovePerson,
        proven: bool,
    ) -> RequestResult {
        let user = Name::new(&want.user).map_err(bad_name)?;
        // A stolen device must not remove the account of its user.
        if user == self.person.user && !proven && self.me().await?.is_some_and(|me| me.password) {
            return refuse(RefusalReason::LogInAgain);
        }
        self.administer(Act::Remove { user }).await
    }

    /// The devices of another user, for those who may revoke them.
    pub(crate) async fn list_devices_of(&self, want: proto::ListDevicesOf) -> RequestResult {
        let user = Name::new(&want.user).map_err(bad_name)?;
        let Some(me) = self.me().await? else { return refuse(RefusalReason::NotAllowed) };
        let searched = user.clone();
        let person = self.reading(|store| async move { store.person(&searched).await }).await?;
        let person = person.filter(|person| person.state != PersonState::Removed);
        let Some(person) = person else { return refuse(RefusalReason::NotFound) };
        if !rights::may(me.role, Right::ManageDevices, person.role) {
            return needs(rights::required(Right::ManageDevices, person.role));
        }
        list_devices(self.services, &user, None).await
    }

    pub(crate) async fn revoke_device_of(&self, want: proto::RevokeDeviceOf) -> RequestResult {
        let user = Name::new(&want.user).map_err(bad_name)?;
        match DeviceId::from_slice(&want.device) {
            Some(device) => self.administer(Act::RevokeDevice { user, device }).await,
            None => refuse(RefusalReason::Malformed),
        }
    }

    pub(crate) async fn revoke_invite(&self, want: proto::RevokeInvite) -> RequestResult {
        let Some(id) = InviteId::from_slice(&want.id) else {
            return refuse(RefusalReason::Malformed);
        };
        self.change()?;
        let by = self.actor();
        let revoked = self.services.record.store.revoke_invite(by.clone(), id).await;
        match revoked.map_err(|e| storage(&e))? {
            RevokedInvite::Done(effects) => {
                tracing::info!(%by, invite = %id, "invite revoked");
                self.services.bus.invite_revoked(&id);
                if let Some((audit, people)) = effects.audit {
                    self.services.bus.conversation_changed(&people, audit);
                }
                done()
            }
            RevokedInvite::Unchanged => done(),
            RevokedInvite::Gone => refuse(RefusalReason::AlreadyUsed),
            RevokedInvite::NotFound => refuse(RefusalReason::NotFound),
        }
    }

    fn actor(&self) -> Actor {
        Actor::Person { user: self.person.user.clone(), device: *self.device }
    }

    async fn administer(&self, act: Act) -> RequestResult {
        self.change()?;
        let by = self.actor();
        let record = &self.services.record;
        match record.store.administer(by.clone(), act.clone()).await {
            Ok(Administered::Done(effects)) => {
                tracing::info!(%by, ?act, "act of power");
                record.barred.written(&Revocation::Act(by, act.clone()));
                self.announce(&act, effects).await;
                done()
            }
            Ok(Administered::Unchanged) => done(),
            Ok(Administered::NotFound) => refuse(RefusalReason::NotFound),
            Ok(Administered::NotAllowed(Some(role))) => needs(role),
            Ok(Administered::NotAllowed(None)) => refuse(RefusalReason::NotAllowed),
            Ok(Administered::LastOwner) => refuse(RefusalReason::LastOwner),
            Err(error) => Err(self.bar(by, act, storage(&error)).await),
        }
    }

    fn end_sessions(&self, act: &Act) {
        let bus = &self.services.bus;
        if let Act::RevokeDevice { device, .. } = act {
            bus.device_revoked(device);
        }
        if act.shuts_out() {
            bus.person_shut_out(act.user());
            bus.key_revoked();
        }
    }

    /// Ends the sessions of the person if they must end, and signals to others what has changed.
    async fn announce(&self, act: &Act, effects: ActEffects) {
        let bus = &self.services.bus;
        self.end_sessions(act);
        if let Some((audit, people)) = effects.audit {
            bus.conversation_changed(&people, audit);
        }
        for room in effects.left {
            bus.conversation_changed(from_ref(act.user()), room);
            // The act is complete, whether or not its members learn of it at once.
            if let Err(error) = self.notify_members(room).await {
                log_fault(
                    "members of a room do not learn at once who has left",
                    error.why.as_str_name(),
                );
            }
        }
        if let Act::Remove { user } = act {
            self.services.record.files.discard_partials(user).await;
        }
    }

    /// Whether the device of the act is one of the person, if the act is on a device.
    async fn is_of_person(&self, act: &Act) -> bool {
        let Act::RevokeDevice { user, device } = act else { return true };
        let user = user.clone();
        let devices = self.reading(|store| async move { store.devices(&user).await }).await;
        devices.is_ok_and(|devices| devices.iter().any(|own| own.id == *device))
    }

    /// The answer to an act that could not be recorded. If it takes access away, it holds until the
    /// server stops.
    async fn bar(&self, by: Actor, act: Act, no: RequestRefusal) -> RequestRefusal {
        if !act.revokes() {
            return no;
        }
        let user = act.user().clone();
        let person = self.reading(|store| async move { store.person(&user).await }).await;
        // The store judges it again when it is recorded.
        let (Ok(Some(me)), Ok(Some(person))) = (self.me().await, person) else { return no };
        // Only another owner acts on an owner, so that one stays.
        let may = me.user != person.user
            && person.state != PersonState::Removed
            && rights::judge(&act, Some(&me), &person, false) == Verdict::Do;
        if !may || !self.is_of_person(&act).await {
            return no;
        }
        tracing::warn!(%by, ?act, "in force until a restart: not recorded");
        self.services.record.barred.bar(Revocation::Act(by, act.clone()));
        self.end_sessions(&act);
        RequestRefusal { barred: true, ..no }
    }
}
