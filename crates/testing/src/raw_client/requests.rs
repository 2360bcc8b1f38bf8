//! Requests of a user.

use twinlock_core::proto::{
    self, RefusalReason, answer::Result as Answered, item::What, request::Op,
};

use super::RawClient;
use crate::TestInvite;
use crate::messages::{ack, append, conversation, page};

impl RawClient {
    /// Appends a text.
    ///
    /// # Errors
    /// Why the server refused it.
    pub async fn append(
        &mut self,
        conversation: u64,
        text: &str,
    ) -> Result<proto::Ack, RefusalReason> {
        self.ask(append(conversation, text)).await.map(ack)
    }

    /// Follows a conversation from a position.
    ///
    /// # Errors
    /// Why the server refused it.
    ///
    /// # Panics
    /// If the answer is another one.
    pub async fn follow(
        &mut self,
        conversation: u64,
        after: u64,
    ) -> Result<proto::Following, RefusalReason> {
        let op = Op::Follow(proto::Follow { conversation, after });
        match self.ask(op).await? {
            Answered::Following(following) => Ok(following),
            other => panic!("{other:?}"),
        }
    }

    /// Followed entries of this conversation, until there are `n`.
    ///
    /// # Panics
    /// If they do not arrive.
    pub async fn entries(&mut self, conversation: u64, n: usize) -> Vec<proto::Entry> {
        let mut all = Vec::new();
        while all.len() < n {
            let pick = |item: &What| match item {
                What::Entries(e) if e.conversation == conversation => Some(e.entries.clone()),
                _ => None,
            };
            all.extend(self.pick("entries", pick).await);
        }
        all
    }

    /// Reads a page of a conversation.
    ///
    /// # Errors
    /// Why the server refused it.
    pub async fn read(
        &mut self,
        conversation: u64,
        after: u64,
    ) -> Result<proto::Page, RefusalReason> {
        let op = Op::Read(proto::Read { conversation, after, ..proto::Read::default() });
        self.ask(op).await.map(page)
    }

    /// The user's conversations.
    ///
    /// # Panics
    /// If the answer is another one.
    pub async fn conversations(&mut self) -> Vec<proto::Conversation> {
        let op = Op::ListConversations(proto::ListConversations::default());
        match self.ask(op).await {
            Ok(Answered::Conversations(list)) => list.conversations,
            other => panic!("{other:?}"),
        }
    }

    /// Joins a room.
    ///
    /// # Errors
    /// Why the server refused it.
    pub async fn room(&mut self, name: &str) -> Result<proto::Conversation, RefusalReason> {
        let name = name.to_owned();
        self.ask(Op::JoinRoom(proto::JoinRoom { name })).await.map(conversation)
    }

    /// Makes an invite.
    ///
    /// # Errors
    /// Why the server refused it.
    ///
    /// # Panics
    /// If the answer is another one.
    pub async fn invite(
        &mut self,
        role: proto::Role,
        user: &str,
    ) -> Result<TestInvite, RefusalReason> {
        let invite = proto::MakeInvite { role: role.into(), user: user.to_owned(), seconds: 0 };
        match self.ask(Op::MakeInvite(invite)).await? {
            Answered::Invite(invite) => Ok(TestInvite {
                id: invite.id.as_ref().try_into().unwrap(),
                secret: invite.secret.as_ref().try_into().unwrap(),
            }),
            other => panic!("{other:?}"),
        }
    }
}
