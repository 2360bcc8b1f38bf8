//! Requests about rooms and direct conversations.

use twinlock_core::id::{ConversationId, Name};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};

use super::listing::Listing;
use super::{Client, unexpected};
use crate::blocking::blocking;
use crate::directory::ConversationInfo;
use crate::error::ClientError;
use crate::record;

impl Client {
    /// All conversations of this user, or with `joinable` all rooms that the user could join.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn conversations(
        &self,
        joinable: bool,
    ) -> Result<Vec<ConversationInfo>, ClientError> {
        let mut all =
            Listing::new("conversations", |conversation: &proto::Conversation| conversation.id);
        loop {
            let after = all.last().unwrap_or(0);
            let list = proto::ListConversations { joinable, after };
            match self.request(Op::ListConversations(list)).await? {
                Answered::Conversations(some) => {
                    if let Some(all) = all.add(some.conversations, some.more)? {
                        return Ok(all.into_iter().map(ConversationInfo::from).collect());
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// The conversation of a target: a room's name, or `@` and a user name. Creates a direct
    /// conversation if there is none.
    ///
    /// # Errors
    /// [`ClientError::NoTarget`], or another [`ClientError`].
    pub async fn target(&self, target: &str) -> Result<ConversationInfo, ClientError> {
        let nobody = || ClientError::NoTarget(target.to_owned());
        let op = match target.strip_prefix('@') {
            Some(user) => Op::OpenDirect(proto::OpenDirect { user: user.to_owned() }),
            None => Op::FindRoom(proto::FindRoom { name: target.to_owned() }),
        };
        match self.ask_conversation(op).await {
            Err(ClientError::Refused(no)) if no.why == RefusalReason::NotFound => Err(nobody()),
            found => found,
        }
    }

    /// Creates a public room and joins it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_room(
        &self,
        name: &Name,
        topic: &str,
    ) -> Result<ConversationInfo, ClientError> {
        let create = proto::CreateRoom { name: name.to_string(), topic: topic.to_owned() };
        self.ask_conversation(Op::CreateRoom(create)).await
    }

    /// Joins a public room.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn join_room(&self, name: &Name) -> Result<ConversationInfo, ClientError> {
        self.ask_conversation(Op::JoinRoom(proto::JoinRoom { name: name.to_string() })).await
    }

    /// Leaves a room.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn leave_room(&self, conversation: ConversationId) -> Result<(), ClientError> {
        self.done(Op::LeaveRoom(proto::LeaveRoom { conversation })).await?;
        let receipts = self.state.receipts();
        blocking(move || record::note_left(&receipts, conversation)).await
    }

    /// Sets a room's topic.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_topic(
        &self,
        conversation: ConversationId,
        topic: &str,
    ) -> Result<ConversationInfo, ClientError> {
        let topic = topic.to_owned();
        self.ask_conversation(Op::SetTopic(proto::SetTopic { conversation, topic })).await
    }

    /// All members of a conversation, sorted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn members(&self, conversation: ConversationId) -> Result<Vec<String>, ClientError> {
        let mut all = Listing::new("members", String::clone);
        loop {
            let after = all.last().unwrap_or_default();
            let list = proto::ListMembers { conversation, after };
            match self.request(Op::ListMembers(list)).await? {
                Answered::Members(some) => {
                    if let Some(all) = all.add(some.users, some.more)? {
                        return Ok(all);
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Advances the read marker, which all devices of the user share.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn mark_read(&self, conversation: ConversationId, n: u64) -> Result<(), ClientError> {
        self.done(Op::Mark(proto::Mark { conversation, n })).await
    }
}
