//! What the driver does on one connection: sends requests, receives answers and entries.

use twinlock_core::id::ServerKey;
use twinlock_core::proto::{self, answer::Result as Answered, item::What};

use super::command::Recipient;
use super::served_connection::ServedConnection;
use super::{Driver, put};
use crate::error::{ClientError, Refusal};
use crate::limits::MAX_LISTED;
use crate::model::{Event, Facts, Rekeyed};
use crate::request_connection::Received;

/// Maximum number of events that wait for the consumer: about one per user and conversation.
const MAX_EVENTS: usize = MAX_LISTED;
impl Driver {
    /// Sends queued requests as far as the limits allow.
    pub(super) fn pump(&mut self, serving: &mut ServedConnection) -> Result<(), ClientError> {
        for reply in self.facts.drain(..) {
            let session = serving.requests.connection().session();
            let facts = Facts {
                up: serving.up.clone(),
                session: session.facts(),
                id: session.id(),
                server_key: session.server_key(),
                age: session.began().elapsed(),
                since_rekey: session.facts().last_rekey.map(|at| at.elapsed()),
            };
            let _gone = reply.send(Ok(facts));
        }
        for reply in self.rekeys.drain(..) {
            let session = serving.requests.connection_mut().session_mut();
            session.want_rekey();
            serving.rekeys.push((session.facts().epoch.0, reply));
        }
        while !serving.is_busy() && serving.has_room() {
            let Some((op, recipient)) = self.waiting.pop_front() else { break };
            serving.queue(op, recipient)?;
        }
        for (op, conversation) in self.follows.requests() {
            serving.queue(op, conversation.map_or(Recipient::Discard, Recipient::Follow))?;
        }
        while !serving.is_busy() {
            let Some((op, recipient)) = self.sending.next() else { break };
            serving.queue(op, recipient)?;
        }
        serving.requests.flush()?;
        // A sender that waits for an ack must notice a dead connection as soon as a follower.
        let watching = self.follows.any() || self.sending.waits();
        serving.requests.connection_mut().session_mut().set_following(watching);
        self.settle(true);
        self.check();
        Ok(())
    }

    /// Handles every complete frame.
    pub(super) fn take_frames(
        &mut self,
        serving: &mut ServedConnection,
    ) -> Result<(), ClientError> {
        while let Some(received) = serving.requests.try_receive()? {
            match received {
                Received::Answer { recipient, result, .. } => {
                    self.check_queue()?;
                    serving.appends -= usize::from(matches!(recipient, Some(Recipient::Append(_))));
                    self.take_answer(recipient, result)?;
                }
                Received::Item(what) => {
                    self.check_queue()?;
                    self.take_item(what)?;
                }
                Received::Rekeyed(epoch) => {
                    for (before, reply) in serving.rekeys.drain(..) {
                        let _gone = reply.send(Ok(Rekeyed { before, after: epoch }));
                    }
                }
                Received::Bulk { .. } => {
                    return Err(ClientError::Protocol("file bytes that were not requested"));
                }
                Received::Room => {}
            }
        }
        Ok(())
    }

    /// Limits the events that the consumer has not taken.
    fn check_queue(&self) -> Result<(), ClientError> {
        if self.queue.len() >= MAX_EVENTS {
            return Err(ClientError::BadList("changes"));
        }
        Ok(())
    }

    fn take_item(&mut self, what: What) -> Result<(), ClientError> {
        match what {
            What::Entries(entries) => {
                self.moved = true;
                self.follows.arrived(entries.conversation, entries.entries);
            }
            What::Presence(proto::Presence { user, online }) => {
                put(&mut self.queue, Event::Presence { user, online });
            }
            What::Conversation(conversation) => {
                self.learn_origins(std::slice::from_ref(&conversation))?;
                if !conversation.joined {
                    self.follows.end(conversation.id);
                    self.note_left(conversation.id);
                }
                put(&mut self.queue, Event::Conversation(conversation.into()));
            }
            What::GoingAway(away) => {
                self.retry_after = Some(std::time::Duration::from_secs(u64::from(away.seconds)));
            }
            What::Damaged(proto::Damaged { conversation, n }) => {
                return Err(ClientError::Missing { conversation, n });
            }
            // Transfers use separate connections.
            What::FileAck(_) | What::FileAborted(_) => {}
            // The connection yields answers apart from items.
            What::Answer(_) => {}
        }
        Ok(())
    }

    fn take_answer(
        &mut self,
        recipient: Option<Recipient>,
        result: Result<Answered, Refusal>,
    ) -> Result<(), ClientError> {
        match &result {
            Ok(Answered::Conversation(one)) => self.learn_origins(std::slice::from_ref(one))?,
            Ok(Answered::Conversations(some)) => self.learn_origins(&some.conversations)?,
            _ => {}
        }
        match recipient {
            Some(Recipient::Caller(reply)) => {
                let _gone = reply.send(result.map_err(ClientError::Refused));
            }
            Some(Recipient::Append(message_id)) => {
                self.moved |= matches!(result, Ok(Answered::Ack(_)));
                self.sending.answered(message_id, result)?;
            }
            Some(Recipient::Target(target)) => self.sending.found(target, result)?,
            Some(Recipient::Follow(conversation)) => {
                self.queue.extend(self.follows.answered(conversation, result)?);
            }
            Some(Recipient::Discard) => {}
            None => return Err(ClientError::Protocol("an answer to nothing")),
        }
        if let Some((no, retry)) = self.sending.take_news() {
            put(&mut self.queue, Event::Held { error: ClientError::Refused(no), retry });
        }
        Ok(())
    }

    /// Stores the server keys in first links. A notice that a conversation was left names none.
    fn learn_origins(&self, conversations: &[proto::Conversation]) -> Result<(), ClientError> {
        for conversation in conversations {
            if let Some(key) = ServerKey::from_slice(&conversation.server_key)
                && !self.sending.state().learn_origin(conversation.id, key)
            {
                return Err(ClientError::BadList("conversations"));
            }
        }
        Ok(())
    }

    /// Fails the outstanding requests of a lost connection; with its error, if that is not
    /// retryable.
    pub(super) fn connection_ended(
        &mut self,
        serving: &mut ServedConnection,
        why: Option<&ClientError>,
    ) {
        let lost = ClientError::Lost("it ended before the answer came".to_owned());
        let why = why.filter(|why| !why.is_retryable()).unwrap_or(&lost);
        for (_, reply) in serving.rekeys.drain(..) {
            let _gone = reply.send(Err(why.clone()));
        }
        for recipient in serving.requests.take_outstanding() {
            if let Recipient::Caller(reply) = recipient {
                let _gone = reply.send(Err(why.clone()));
            }
        }
        self.follows.connection_ended();
        self.sending.connection_ended();
        self.settle(false);
    }
}
