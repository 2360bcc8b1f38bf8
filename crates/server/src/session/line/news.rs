//! What others have to tell a line: mail, changes, presence, and its last words.

use twinlock_core::frame::CloseCode;
use twinlock_core::id::ConversationId;
use twinlock_core::proto::{self, item::What};
use twinlock_link::transport::Transport;

use super::super::follow::ROOM;
use super::job::next_finished;
use super::{End, PRESENCE, Presence, Rights, Serving, next_done};
use crate::convert;
use crate::hub::Mail;

/// Changed conversations looked up in a turn.
const CHANGES: usize = 32;

impl<S: Transport> Serving<S> {
    pub(super) async fn read_mail(&mut self) -> Result<(), End> {
        let Mail { news, mut changed, presence, close } = self.handle.take_mail();
        if let Some(code) = close {
            return Err(self.last_words(code).await);
        }
        // Nothing but READY and CLOSE may be sent before the client's READY; nobody follows or
        // watches before it either, and what changed is seen when it asks.
        if !self.line.session().is_open() {
            return Ok(());
        }
        self.cursors.add_news(news);
        self.changed.append(&mut changed);
        if presence && let Presence::Told(seen) = self.presence {
            self.presence = Presence::Behind(seen);
        }
        Ok(())
    }

    /// There is something to tell, for which there was no room.
    pub(super) fn has_news(&self) -> bool {
        self.cursors.are_behind() || self.may_tell_changes() && self.has_changes()
    }

    fn has_changes(&self) -> bool {
        !self.changed.is_empty() || matches!(self.presence, Presence::Behind(_))
    }

    /// An answer that is older than a change must not come after it, so changes wait for the request
    /// under way. Entries do not: their numbers order them.
    fn may_tell_changes(&self) -> bool {
        self.job.as_ref().is_none()
    }

    /// Tells what there is to tell, while there is room.
    pub(super) async fn tell_news(&mut self) -> Result<(), End> {
        if !self.has_news() {
            return Ok(());
        }
        if self.may_tell_changes() {
            self.tell_changes().await?;
        }
        self.out.flush(self.line.session_mut())?;
        let (user, session) = (self.handle.user(), self.line.session_mut());
        Ok(self.cursors.pump(&self.shared, user, session, &mut self.out).await?)
    }

    /// Some of what changed: between two turns the connection is looked at.
    async fn tell_changes(&mut self) -> Result<(), End> {
        for _ in 0..CHANGES {
            if self.line.backlog() + self.out.bytes() >= ROOM {
                break;
            }
            let Some(conversation) = self.changed.pop_first() else { break };
            self.tell_changed(conversation).await?;
        }
        while self.line.backlog() + self.out.bytes() < ROOM
            && let Presence::Behind(seen) = self.presence
        {
            self.tell_presence(seen)?;
        }
        Ok(())
    }

    async fn tell_changed(&mut self, id: ConversationId) -> Result<(), End> {
        let Rights::Device(person, _) = &self.rights else { return Ok(()) };
        let turn = self.shared.reads.turn(&person.user).await;
        let found = self.shared.store.conversation(&person.user, id).await?;
        drop(turn);
        let item = match found {
            Some(conversation) => convert::conversation(&conversation),
            None => {
                self.unfollow(id);
                proto::Conversation { id, ..proto::Conversation::default() }
            }
        };
        Ok(self.out.push(self.line.session_mut(), What::Conversation(item))?)
    }

    fn tell_presence(&mut self, seen: u64) -> Result<(), End> {
        let (changes, seen) = self.shared.hub.presence_since(seen, PRESENCE);
        let all = changes.len() < PRESENCE;
        self.presence = if all { Presence::Told(seen) } else { Presence::Behind(seen) };
        for (user, online) in changes {
            let presence = proto::Presence { user: user.to_string(), online };
            self.out.push(self.line.session_mut(), What::Presence(presence))?;
        }
        Ok(())
    }

    /// Sends the last items before the server closes: acks of everything that the recorder has, the
    /// answer to a change under way, and at a shutdown the time of return. Drops queued requests.
    pub(super) async fn last_words(&mut self, code: CloseCode) -> End {
        self.drop_requests();
        let said = async {
            if let Some(finished) = next_finished(&mut self.job).await {
                self.finish(finished)?;
            }
            while !self.appends.is_empty()
                && let Some(recorded) = self.appends.next().await
            {
                self.acknowledge(recorded)?;
            }
            while self.files.as_ref().is_some_and(|files| files.are_ending())
                && let Some(done) = next_done(&mut self.files).await
            {
                self.settle(done)?;
            }
            let session = self.line.session_mut();
            if session.is_open() {
                if code == CloseCode::Shutdown {
                    let seconds = self.shared.config.come_back.as_secs();
                    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
                    let away = What::GoingAway(proto::GoingAway { seconds });
                    self.out.push(session, away)?;
                }
                self.out.flush(session)?;
            }
            Ok(End::Close(code))
        };
        said.await.unwrap_or_else(|end: End| end)
    }
}
