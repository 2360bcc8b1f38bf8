//! Requests that list and change conversations. Changes are announced to the members.

use std::slice::from_ref;

use twinlock_core::id::Name;
use twinlock_core::limits::MAX_TOPIC;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered};
use twinlock_store::Joined;

use super::{LIST, RequestContext, RequestResult, done, page_after};
use crate::convert;
use crate::refusal::{bad_name, refuse, storage, too_large};

/// Rows of a list of conversations in one answer: 100 with long topics do not fit in a frame.
const CONVERSATIONS: usize = 64;

impl RequestContext<'_> {
    pub(crate) async fn list_conversations(&self, want: proto::ListConversations) -> RequestResult {
        let (user, max) = (self.person.user.clone(), CONVERSATIONS + 1);
        let rows = self.reading(|store| async move {
            store.conversations(&user, want.joinable, want.after, max).await
        });
        let rows = rows.await?;
        Ok(Answered::Conversations(proto::Conversations {
            more: rows.len() > CONVERSATIONS,
            conversations: rows.iter().take(CONVERSATIONS).map(convert::conversation).collect(),
        }))
    }

    pub(crate) async fn create_room(&self, want: proto::CreateRoom) -> RequestResult {
        let name = Name::new(&want.name).map_err(bad_name)?;
        if want.topic.len() > MAX_TOPIC {
            return too_large(proto::Limit::TopicBytes, MAX_TOPIC);
        }
        self.change()?;
        let made =
            self.services.record.store.create_room(&self.person.user, &name, &want.topic).await;
        let Some(made) = made.map_err(|e| storage(&e))? else {
            return refuse(RefusalReason::NameTaken);
        };
        self.services.bus.conversation_changed(from_ref(&self.person.user), made.id);
        Ok(Answered::Conversation(convert::conversation(&made)))
    }

    pub(crate) async fn find_room(&self, want: proto::FindRoom) -> RequestResult {
        let name = Name::new(&want.name).map_err(bad_name)?;
        let user = self.person.user.clone();
        match self.reading(|store| async move { store.room(&user, &name).await }).await? {
            Some(room) => Ok(Answered::Conversation(convert::conversation(&room))),
            None => refuse(RefusalReason::NotFound),
        }
    }

    pub(crate) async fn join_room(&self, want: proto::JoinRoom) -> RequestResult {
        let name = Name::new(&want.name).map_err(bad_name)?;
        self.change()?;
        let joined = self.services.record.store.join_room(&self.person.user, &name).await;
        let Some(joined) = joined.map_err(|e| storage(&e))? else {
            return refuse(RefusalReason::NotFound);
        };
        let Joined { conversation: joined, new } = joined;
        if new {
            self.notify_members(joined.id).await?;
            self.post_notice(joined.id, &format!("{} joined", self.person.user)).await;
        }
        Ok(Answered::Conversation(convert::conversation(&joined)))
    }

    pub(crate) async fn leave_room(&self, want: proto::LeaveRoom) -> RequestResult {
        self.own(want.conversation).await?;
        self.change()?;
        let left =
            self.services.record.store.leave_room(&self.person.user, want.conversation).await;
        if !left.map_err(|e| storage(&e))? {
            return refuse(RefusalReason::NotAllowed);
        }
        // First, so that the user's other sessions stop following it.
        self.services.bus.conversation_changed(from_ref(&self.person.user), want.conversation);
        self.notify_members(want.conversation).await?;
        self.post_notice(want.conversation, &format!("{} left", self.person.user)).await;
        done()
    }

    pub(crate) async fn set_topic(&self, want: proto::SetTopic) -> RequestResult {
        if want.topic.len() > MAX_TOPIC {
            return too_large(proto::Limit::TopicBytes, MAX_TOPIC);
        }
        self.change()?;
        let changed = self
            .services
            .record
            .store
            .set_topic(&self.person.user, want.conversation, &want.topic)
            .await
            .map_err(|e| storage(&e))?;
        let Some(changed) = changed else { return refuse(RefusalReason::NotFound) };
        let notice = format!("{} set the topic: {}", self.person.user, want.topic);
        self.notify_members(want.conversation).await?;
        self.post_notice(want.conversation, &notice).await;
        Ok(Answered::Conversation(convert::conversation(&changed)))
    }

    pub(crate) async fn open_direct(&self, want: proto::OpenDirect) -> RequestResult {
        let other = Name::new(&want.user).map_err(bad_name)?;
        self.change()?;
        let opened = self.services.record.store.open_direct(&self.person.user, &other).await;
        let Some(opened) = opened.map_err(|e| storage(&e))? else {
            return refuse(RefusalReason::NotFound);
        };
        if opened.head == 0 {
            self.services.bus.conversation_changed(&[self.person.user.clone(), other], opened.id);
        }
        Ok(Answered::Conversation(convert::conversation(&opened)))
    }

    pub(crate) async fn list_members(&self, want: proto::ListMembers) -> RequestResult {
        self.own(want.conversation).await?;
        let after = page_after(&want.after)?;
        let rows = self.members(want.conversation, after, LIST + 1).await?;
        Ok(Answered::Members(proto::Members {
            more: rows.len() > LIST,
            users: rows.iter().take(LIST).map(Name::to_string).collect(),
        }))
    }
}
