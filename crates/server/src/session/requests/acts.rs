//! Acts of power: requests that change what other people may do.

use std::slice::from_ref;

use twinlock_core::id::Name;
use twinlock_core::proto::{self, RefusalReason};
use twinlock_store::{Act, ActEffects, Actor, Administered, PersonState, rights};

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

    async fn administer(&self, act: Act) -> RequestResult {
        self.change()?;
        let by = Actor::Person { user: self.person.user.clone(), device: *self.device };
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

    /// Ends the sessions of the person if they must end, and tells the others what has changed.
    async fn announce(&self, act: &Act, effects: ActEffects) {
        let bus = &self.services.bus;
        if act.ends_sessions() {
            bus.person_shut_out(act.user());
            bus.key_revoked();
        }
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

    /// The answer to an act that could not be recorded. If it takes access away, it holds until the
    /// server stops.
    async fn bar(&self, by: Actor, act: Act, no: RequestRefusal) -> RequestRefusal {
        if !act.ends_sessions() {
            return no;
        }
        let user = act.user().clone();
        let person = self.reading(|store| async move { store.person(&user).await }).await;
        // The store judges it again when it is recorded.
        let (Ok(Some(me)), Ok(Some(person))) = (self.me().await, person) else { return no };
        if person.state == PersonState::Removed
            || rights::judge(&act, Some(&me), &person, false) != rights::Verdict::Do
        {
            return no;
        }
        tracing::warn!(%by, ?act, "in force until a restart: not recorded");
        self.services.bus.person_shut_out(act.user());
        self.services.record.barred.bar(Revocation::Act(by, act));
        self.services.bus.key_revoked();
        RequestRefusal { barred: true, ..no }
    }
}
