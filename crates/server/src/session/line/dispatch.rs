//! Dispatch of a session's requests: which rights allow a request, and what handles it.

use std::sync::Arc;

use tokio::time::Instant;
use twinlock_core::chain::Kind;
use twinlock_core::id::{ConversationId, DeviceId, MessageId, Name, Sender, SessionId};
use twinlock_core::limits::MAX_TEXT;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_store::{NewEntry, Person};
use twinlock_transport::transport::Transport;

use super::super::register::Registrations;
use super::super::requests::people;
use super::super::requests::{Asker, done};
use super::super::step_up::StepUp;
use super::job::{Done, Job};
use super::{End, Presence, Rights, Serving, files};
use crate::appends::own_body;
use crate::bus::SessionHandle;
use crate::refusal::{Refused, refuse, too_large};
use crate::services::Services;

impl<S: Transport> Serving<S> {
    /// Starts the next request, or answers it.
    pub(super) fn begin_one(&mut self) -> Result<(), End> {
        let Some(proto::Request { id, op }) = self.intake.pop() else { return Ok(()) };
        let most_follows = self.services.env.config.limits.follows_per_session;
        let may_write = match &op {
            Some(op) if writes(op) => self.services.record.may_write(),
            _ => Ok(()),
        };
        let result = match (op, &mut self.rights) {
            (None, _) => refuse(RefusalReason::Unsupported),
            (Some(_), _) if id == 0 => refuse(RefusalReason::Malformed),
            _ if let Err(refused) = may_write => Err(refused),
            (
                Some(op @ (Op::PutFile(_) | Op::EndFile(_) | Op::GetFile(_) | Op::AbortFile(_))),
                Rights::Device(person, device),
            ) => {
                let files = files(&mut self.files, &self.services.record);
                match files.request(&person.user, device, id, op) {
                    Some(result) => result,
                    // Answered once the disk has done its part; later requests continue.
                    None => return Ok(()),
                }
            }
            (Some(Op::Unfollow(want)), Rights::Device(..)) => {
                self.unfollow(want.conversation);
                done()
            }
            (Some(Op::Follow(want)), Rights::Device(..))
                if self.cursors.is_full(want.conversation, most_follows) =>
            {
                Err(Refused::from(RefusalReason::Limit)
                    .at(proto::Limit::FollowsPerSession, most_follows))
            }
            (Some(op), Rights::Device(person, device)) => {
                // Before the list is read, so that later changes are signalled.
                if let Op::ListPeople(proto::ListPeople { watch: true, .. }) = op
                    && matches!(self.presence, Presence::Unwatched)
                {
                    self.presence = Presence::Told(self.services.bus.watch_presence(&self.handle));
                }
                let only_reads = only_reads(&op);
                let asking = Asking {
                    services: self.services.clone(),
                    this: self.handle.clone(),
                    sid: self.line.session().id(),
                    person: person.clone(),
                    device: *device,
                    // Moved into a request that may use it, until its answer.
                    step_up: if only_reads { None } else { self.step_up.take() },
                };
                let work = asking.request(id, op);
                self.job = Some(if only_reads { Job::reading(work) } else { Job::changing(work) });
                return Ok(());
            }
            (Some(op), Rights::Password(user, registrations)) => {
                let age = Instant::now().into_std() - self.line.session().began();
                if age > self.services.env.config.limits.fresh_password {
                    refuse(RefusalReason::LogInAgain)
                } else {
                    let registering = Registering {
                        services: self.services.clone(),
                        this: self.handle.clone(),
                        user: Some(user.clone()),
                        registrations: registrations.take(),
                    };
                    self.job = Some(Job::changing(registering.request(id, op)));
                    return Ok(());
                }
            }
            (Some(op), Rights::Invite(registrations)) => {
                let registering = Registering {
                    services: self.services.clone(),
                    this: self.handle.clone(),
                    user: None,
                    registrations: registrations.take(),
                };
                self.job = Some(Job::changing(registering.request(id, op)));
                return Ok(());
            }
        };
        self.answer(Done { id, result, follow: None, registrations: None, step_up: None })
    }

    /// Answers a completed request.
    pub(super) fn answer(&mut self, request: Done) -> Result<(), End> {
        let Done { id, result, follow, registrations, step_up } = request;
        if let Some((conversation, after)) = follow {
            self.cursors.follow(&*self.services.bus, &self.handle, conversation, after);
            self.line.session_mut().set_following(true);
        }
        if let Some(registrations) = registrations
            && let Rights::Password(_, place) | Rights::Invite(place) = &mut self.rights
        {
            *place = Some(registrations);
        }
        if step_up.is_some() {
            self.step_up = step_up;
        }
        let result = result.unwrap_or_else(|refused| Answered::Refusal(refused.into()));
        Ok(self.out.answer(self.line.session_mut(), id, result)?)
    }

    pub(super) fn unfollow(&mut self, conversation: ConversationId) {
        self.cursors.unfollow(conversation);
        self.line.session_mut().set_following(!self.cursors.is_empty());
    }

    pub(super) fn check_append(&self, id: u64, append: proto::Append) -> Result<NewEntry, Refused> {
        let Rights::Device(person, device) = &self.rights else {
            return refuse(RefusalReason::NotAllowed);
        };
        let Some(message_id) = MessageId::from_slice(&append.message_id).filter(|_| id != 0) else {
            return refuse(RefusalReason::Malformed);
        };
        if append.body.len() > MAX_TEXT {
            return too_large(proto::Limit::TextBytes, MAX_TEXT);
        }
        if append.body.is_empty() || std::str::from_utf8(&append.body).is_err() {
            return refuse(RefusalReason::Malformed);
        }
        Ok(NewEntry {
            conversation: append.conversation,
            sender: Sender::new(&person.user, Some(device)),
            message_id,
            kind: Kind::TEXT,
            body: own_body(&append.body),
        })
    }
}

/// Whether the request can be dropped at any point without loss.
fn only_reads(op: &Op) -> bool {
    matches!(
        op,
        Op::Read(_)
            | Op::Search(_)
            | Op::ListConversations(_)
            | Op::FindRoom(_)
            | Op::ListMembers(_)
            | Op::ListPeople(_)
            | Op::ListDevices(_)
            | Op::ListClassicKeys(_)
            | Op::Follow(_)
    )
}

/// Whether the request writes to the record. Revocations do not count.
fn writes(op: &Op) -> bool {
    matches!(
        op,
        Op::Mark(_)
            | Op::CreateRoom(_)
            | Op::JoinRoom(_)
            | Op::LeaveRoom(_)
            | Op::SetTopic(_)
            | Op::OpenDirect(_)
            | Op::MakeInvite(_)
            | Op::AddClassicKey(_)
            | Op::RegisterFinish(_)
            | Op::PutFile(_)
    )
}

/// A request of a device session.
struct Asking {
    services: Services,
    this: Arc<SessionHandle>,
    sid: SessionId,
    person: Arc<Person>,
    device: DeviceId,
    step_up: Option<Box<StepUp>>,
}

impl Asking {
    async fn request(self, id: u64, op: Op) -> Done {
        let Self { services, this, sid, person, device, mut step_up } = self;
        let asker = Asker { services: &services, person: &person, device: &device };
        let mut follow = None;
        let result = match op {
            Op::Read(want) => asker.read(want).await,
            Op::Mark(want) => asker.mark(want).await,
            Op::Search(want) => asker.search(want).await,
            Op::ListConversations(want) => asker.list_conversations(want).await,
            Op::CreateRoom(want) => asker.create_room(want).await,
            Op::JoinRoom(want) => asker.join_room(want).await,
            Op::FindRoom(want) => asker.find_room(want).await,
            Op::LeaveRoom(want) => asker.leave_room(want).await,
            Op::ListMembers(want) => asker.list_members(want).await,
            Op::SetTopic(want) => asker.set_topic(want).await,
            Op::OpenDirect(want) => asker.open_direct(want).await,
            Op::MakeInvite(want) => asker.make_invite(want).await,
            Op::ListDevices(_) => asker.list_devices().await,
            Op::RevokeDevice(want) => match &mut step_up {
                Some(step_up) if want.device != device.0.as_slice() => {
                    step_up.revoke_device(&services, &want).await
                }
                _ => asker.revoke_device(want).await,
            },
            Op::StepUpBegin(want) => {
                let new = || Box::new(StepUp::new(person.user.clone(), device));
                step_up.get_or_insert_with(new).begin(&services, sid, want).await
            }
            Op::StepUpFinish(want) => match &mut step_up {
                Some(step_up) => step_up.finish(&services.admission, &want),
                None => refuse(RefusalReason::NotAllowed),
            },
            Op::AddClassicKey(want) => asker.add_classic_key(want).await,
            Op::ListClassicKeys(want) => asker.list_classic_keys(want).await,
            Op::RevokeClassicKey(want) => asker.revoke_classic_key(want).await,
            Op::ListPeople(want) => asker.list_people(want).await,
            Op::Follow(want) => asker.look_to_follow(&want).await.map(|following| {
                follow = Some((want.conversation, want.after));
                Answered::Following(following)
            }),
            op @ (Op::RegisterBegin(_) | Op::RegisterEvaluate(_) | Op::RegisterFinish(_)) => {
                match &mut step_up {
                    Some(step_up) => step_up.register(&services, &this, op).await,
                    None => refuse(RefusalReason::NotAllowed),
                }
            }
            Op::Unfollow(_)
            | Op::Append(_)
            | Op::PutFile(_)
            | Op::EndFile(_)
            | Op::GetFile(_)
            | Op::AbortFile(_) => refuse(RefusalReason::Unsupported),
        };
        Done { id, result, follow, registrations: None, step_up }
    }
}

/// A request of a session that may register.
struct Registering {
    services: Services,
    this: Arc<SessionHandle>,
    /// The user of a password session, which also manages its own devices.
    user: Option<Name>,
    registrations: Option<Registrations>,
}

impl Registering {
    async fn request(self, id: u64, op: Op) -> Done {
        let Self { services, this, user, mut registrations } = self;
        let result = match (op, &user, &mut registrations) {
            (Op::ListDevices(_), Some(user), _) => {
                people::list_devices(&services, user, None).await
            }
            (Op::RevokeDevice(want), Some(user), _) => match DeviceId::from_slice(&want.device) {
                Some(device) => people::revoke_device(&services, user, &device).await,
                None => refuse(RefusalReason::Malformed),
            },
            (op, _, Some(open)) => open.request(&services, &this, op).await,
            _ => refuse(RefusalReason::NotAllowed),
        };
        Done { id, result, follow: None, registrations, step_up: None }
    }
}
