//! Requests of a line but appends under way and files: who may ask what, and who does it.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use twinlock_core::chain::Kind;
use twinlock_core::id::{ConversationId, DeviceId, MessageId, Sender};
use twinlock_core::limits::MAX_TEXT;
use twinlock_core::proto::{self, Why, answer::Result as Answered, request::Op};
use twinlock_core::text::Untrusted;
use twinlock_store::NewEntry;

use super::super::appends::own_body;
use super::super::refusal::{Refused, refuse, too_large};
use super::super::requests::{self, Asker, done};
use super::super::step_up::StepUp;
use super::{End, Presence, Rights, Serving, files};

impl<S: AsyncRead + AsyncWrite + Unpin> Serving<S> {
    pub(super) async fn do_one(&mut self) -> Result<(), End> {
        let Some(proto::Request { id, op }) = self.intake.pop() else { return Ok(()) };
        let result = match op {
            None => refuse(Why::Unsupported),
            Some(_) if id == 0 => refuse(Why::Malformed),
            Some(op @ (Op::PutFile(_) | Op::EndFile(_) | Op::GetFile(_) | Op::AbortFile(_)))
                if let Rights::Device(person, device) = &self.rights =>
            {
                let files = files(&mut self.files, &self.shared);
                match files.request(&person.user, device, id, op) {
                    Some(result) => result,
                    // Answered when the disk has done its part; what comes behind goes on.
                    None => return Ok(()),
                }
            }
            // Boxed, so that an idle line has no room for the largest of them.
            Some(op) => Box::pin(self.dispatch(op)).await,
        };
        let result = result.unwrap_or_else(|refused| Answered::Refusal(refused.into()));
        Ok(self.out.answer(self.line.session_mut(), id, result)?)
    }

    async fn dispatch(&mut self, op: Op) -> Result<Answered, Refused> {
        let shared = &*self.shared;
        let (person, device) = match &mut self.rights {
            Rights::Invite(registrations) => {
                return registrations.request(shared, &self.handle, op).await;
            }
            Rights::Password(person, registrations) => {
                let age = Instant::now().into_std() - self.line.session().began();
                if age > shared.config.limits.fresh_password {
                    return refuse(Why::LogInAgain);
                }
                return match op {
                    Op::ListDevices(_) => requests::list_devices(shared, &person.user, None).await,
                    Op::RevokeDevice(want) => match DeviceId::from_slice(&want.device) {
                        Some(id) => requests::revoke_device(shared, &person.user, &id).await,
                        None => refuse(Why::Malformed),
                    },
                    op => registrations.request(shared, &self.handle, op).await,
                };
            }
            Rights::Device(person, device) => (&*person, &*device),
        };
        let asker = Asker { shared, person, device };
        match op {
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
            Op::RevokeDevice(want) => match &mut self.step_up {
                Some(step_up) if want.device != device.0.as_slice() => {
                    step_up.revoke_device(shared, &want).await
                }
                _ => asker.revoke_device(want).await,
            },
            Op::StepUpBegin(want) => {
                let sid = self.line.session().id();
                let new = || Box::new(StepUp::new(person.user.clone(), *device));
                self.step_up.get_or_insert_with(new).begin(shared, sid, want).await
            }
            Op::StepUpFinish(want) => match &mut self.step_up {
                Some(step_up) => step_up.finish(shared, &want),
                None => refuse(Why::NotAllowed),
            },
            Op::AddClassicKey(want) => asker.add_classic_key(want).await,
            Op::ListClassicKeys(want) => asker.list_classic_keys(want).await,
            Op::RevokeClassicKey(want) => asker.revoke_classic_key(want).await,
            Op::ListPeople(want) => {
                // Before looking: who comes while we look is told again.
                if want.watch && matches!(self.presence, Presence::Unwatched) {
                    self.presence = Presence::Told(shared.hub.watch_presence(&self.handle));
                }
                asker.list_people(want).await
            }
            Op::Follow(want) => {
                let most = shared.config.limits.follows_per_session;
                if self.cursors.is_full(want.conversation, most) {
                    return Err(Refused::from(Why::Limit).at(proto::Limit::FollowsPerSession, most));
                }
                let following = asker.look_to_follow(&want).await?;
                self.cursors.follow(shared, &self.handle, want.conversation, want.after);
                self.line.session_mut().set_following(true);
                Ok(Answered::Following(following))
            }
            Op::Unfollow(want) => {
                self.unfollow(want.conversation);
                done()
            }
            op @ (Op::RegisterBegin(_) | Op::RegisterEvaluate(_) | Op::RegisterFinish(_)) => {
                match &mut self.step_up {
                    Some(step_up) => step_up.register(shared, &self.handle, op).await,
                    None => refuse(Why::NotAllowed),
                }
            }
            Op::Append(_) | Op::PutFile(_) | Op::EndFile(_) | Op::GetFile(_) | Op::AbortFile(_) => {
                refuse(Why::Unsupported)
            }
        }
    }

    pub(super) fn unfollow(&mut self, conversation: ConversationId) {
        self.cursors.unfollow(conversation);
        self.line.session_mut().set_following(!self.cursors.is_empty());
    }

    pub(super) fn check_append(&self, id: u64, append: proto::Append) -> Result<NewEntry, Refused> {
        let Rights::Device(person, device) = &self.rights else {
            return refuse(Why::NotAllowed);
        };
        let Some(message_id) = MessageId::from_slice(&append.message_id).filter(|_| id != 0) else {
            return refuse(Why::Malformed);
        };
        if append.body.len() > MAX_TEXT {
            return too_large(proto::Limit::TextBytes, MAX_TEXT);
        }
        if append.body.is_empty() || std::str::from_utf8(&append.body).is_err() {
            return refuse(Why::Malformed);
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

pub(super) fn log_messages(entries: &[NewEntry]) {
    for entry in entries {
        tracing::info!(
            from = %entry.sender,
            conversation = entry.conversation,
            text = ?Untrusted::from_bytes(&entry.body),
            "message"
        );
    }
}
