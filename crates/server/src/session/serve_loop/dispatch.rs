//! Dispatch of a session's requests: which rights allow a request, and what handles it.

use std::sync::Arc;

use tokio::time::Instant;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{ConversationId, DeviceId, MessageId, Name, Sender, SessionId};
use twinlock_core::limits::MAX_TEXT;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_store::{NewEntry, StoredPerson};
use twinlock_transport::transport::Transport;

use super::super::register::Registrations;
use super::super::requests::people;
use super::super::requests::{RequestContext, done};
use super::super::step_up::SessionStepUp;
use super::end::SessionEnd;
use super::files::files;
use super::in_progress::{CompletedRequest, InProgress};
use super::{PresenceProgress, Rights, SessionLoop};
use crate::appends::own_body;
use crate::bus::SessionHandle;
use crate::refusal::{RequestRefusal, refuse, too_large};
use crate::services::Services;

impl<S: Transport> SessionLoop<S> {
    /// Starts the next request, or answers it.
    pub(super) fn begin_one(&mut self) -> Result<(), SessionEnd> {
        let Some(proto::Request { id, op }) = self.queue.pop() else { return Ok(()) };
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
                Err(RequestRefusal::from(RefusalReason::Limit)
                    .at(proto::Limit::FollowsPerSession, most_follows))
            }
            (Some(op), Rights::Device(person, device)) => {
                // Before the list is read, so that later changes are signalled.
                if let Op::ListPeople(proto::ListPeople { watch: true, .. }) = op
                    && matches!(self.presence, PresenceProgress::Unwatched)
                {
                    self.presence =
                        PresenceProgress::Sent(self.services.bus.watch_presence(&self.handle));
                }
                let only_reads = only_reads(&op);
                let request = DeviceRequest {
                    services: self.services.clone(),
                    this: self.handle.clone(),
                    sid: self.connection.session().id(),
                    person: person.clone(),
                    device: *device,
                    // Moved into a request that may use it, until its answer.
                    step_up: if only_reads { None } else { self.step_up.take() },
                };
                let work = request.request(id, op);
                self.in_progress = Some(if only_reads {
                    InProgress::reading(work)
                } else {
                    InProgress::changing(work)
                });
                return Ok(());
            }
            (Some(op), Rights::Password(user, registrations)) => {
                let age = Instant::now().into_std() - self.connection.session().began();
                if age > self.services.env.config.limits.fresh_password {
                    refuse(RefusalReason::LogInAgain)
                } else {
                    let request = RegistrationRequest {
                        services: self.services.clone(),
                        this: self.handle.clone(),
                        user: Some(user.clone()),
                        registrations: registrations.take(),
                    };
                    self.in_progress = Some(InProgress::changing(request.request(id, op)));
                    return Ok(());
                }
            }
            (Some(op), Rights::Invite(registrations)) => {
                let request = RegistrationRequest {
                    services: self.services.clone(),
                    this: self.handle.clone(),
                    user: None,
                    registrations: registrations.take(),
                };
                self.in_progress = Some(InProgress::changing(request.request(id, op)));
                return Ok(());
            }
        };
        self.answer(CompletedRequest {
            id,
            result,
            follow: None,
            registrations: None,
            step_up: None,
        })
    }

    /// Answers a completed request.
    pub(super) fn answer(&mut self, request: CompletedRequest) -> Result<(), SessionEnd> {
        let CompletedRequest { id, result, follow, registrations, step_up } = request;
        if let Some((conversation, after)) = follow {
            self.cursors.follow(&*self.services.bus, &self.handle, conversation, after);
            self.connection.session_mut().set_following(true);
        }
        if let Some(registrations) = registrations
            && let Rights::Password(_, returned) | Rights::Invite(returned) = &mut self.rights
        {
            *returned = Some(registrations);
        }
        if step_up.is_some() {
            self.step_up = step_up;
        }
        let result = result.unwrap_or_else(|refused| Answered::Refusal(refused.into()));
        Ok(self.writer.answer(self.connection.session_mut(), id, result)?)
    }

    pub(super) fn unfollow(&mut self, conversation: ConversationId) {
        self.cursors.unfollow(conversation);
        self.connection.session_mut().set_following(!self.cursors.is_empty());
    }

    pub(super) fn check_append(
        &self,
        id: u64,
        append: proto::Append,
    ) -> Result<NewEntry, RequestRefusal> {
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
            kind: EntryKind::TEXT,
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
            | Op::ListDevicesOf(_)
            | Op::ListInvites(_)
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
            | Op::SetRole(_)
            | Op::RestorePerson(_)
    )
}

/// A request of a device session.
struct DeviceRequest {
    services: Services,
    this: Arc<SessionHandle>,
    sid: SessionId,
    person: Arc<StoredPerson>,
    device: DeviceId,
    step_up: Option<Box<SessionStepUp>>,
}

impl DeviceRequest {
    async fn request(self, id: u64, op: Op) -> CompletedRequest {
        let Self { services, this, sid, person, device, mut step_up } = self;
        let context = RequestContext { services: &services, person: &person, device: &device };
        let mut follow = None;
        let result = match op {
            Op::Read(want) => context.read(want).await,
            Op::Mark(want) => context.mark(want).await,
            Op::Search(want) => context.search(want).await,
            Op::ListConversations(want) => context.list_conversations(want).await,
            Op::CreateRoom(want) => context.create_room(want).await,
            Op::JoinRoom(want) => context.join_room(want).await,
            Op::FindRoom(want) => context.find_room(want).await,
            Op::LeaveRoom(want) => context.leave_room(want).await,
            Op::ListMembers(want) => context.list_members(want).await,
            Op::SetTopic(want) => context.set_topic(want).await,
            Op::OpenDirect(want) => context.open_direct(want).await,
            Op::MakeInvite(want) => context.make_invite(want).await,
            Op::SetRole(want) => context.set_role(want).await,
            Op::SuspendPerson(want) => context.suspend_person(want).await,
            Op::RestorePerson(want) => context.restore_person(want).await,
            Op::RemovePerson(want) => {
                let proven = match &mut step_up {
                    Some(step_up) => step_up.is_proven(&services).await,
                    None => false,
                };
                context.remove_person(want, proven).await
            }
            Op::ListInvites(want) => context.list_invites(want).await,
            Op::RevokeInvite(want) => context.revoke_invite(want).await,
            Op::ListDevicesOf(want) => context.list_devices_of(want).await,
            Op::RevokeDeviceOf(want) => context.revoke_device_of(want).await,
            Op::ListDevices(_) => context.list_devices().await,
            Op::RevokeDevice(want) => match &mut step_up {
                Some(step_up) if want.device != device.0.as_slice() => {
                    step_up.revoke_device(&services, &want).await
                }
                _ => context.revoke_device(want).await,
            },
            Op::StepUpBegin(want) => {
                let new = || Box::new(SessionStepUp::new(person.user.clone(), device));
                step_up.get_or_insert_with(new).begin(&services, sid, want).await
            }
            Op::StepUpFinish(want) => match &mut step_up {
                Some(step_up) => step_up.finish(&services.admission, &want),
                None => refuse(RefusalReason::NotAllowed),
            },
            Op::AddClassicKey(want) => context.add_classic_key(want).await,
            Op::ListClassicKeys(want) => context.list_classic_keys(want).await,
            Op::RevokeClassicKey(want) => context.revoke_classic_key(want).await,
            Op::ListPeople(want) => context.list_people(want).await,
            Op::Follow(want) => context.prepare_follow(&want).await.map(|following| {
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
        CompletedRequest { id, result, follow, registrations: None, step_up }
    }
}

/// A request of a session that may register.
struct RegistrationRequest {
    services: Services,
    this: Arc<SessionHandle>,
    /// The user of a password session, which also manages its own devices.
    user: Option<Name>,
    registrations: Option<Registrations>,
}

impl RegistrationRequest {
    async fn request(self, id: u64, op: Op) -> CompletedRequest {
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
        CompletedRequest { id, result, follow: None, registrations, step_up: None }
    }
}
