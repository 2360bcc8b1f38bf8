//! One connection: sends requests, receives answers and entries.

use std::collections::HashMap;

use prost::Message as _;
use twinlock_core::id::ServerKey;
use twinlock_core::limits::MAX_BODY;
use twinlock_core::pack::pack;
use twinlock_core::proto::{self, answer::Result as Answered, item::What, request::Op};
use twinlock_core::session::Event as LineEvent;
use twinlock_transport::connection::Connection;

use super::command::{Recipient, Reply};
use super::{Driver, put};
use crate::connector::Stream;
use crate::error::{ClientError, Refusal, closed};
use crate::limits::MAX_LISTED;
use crate::model::{Event, Facts, Rekeyed, Up};
use crate::session_log;

/// Maximum number of events that wait for the consumer: about one per user and conversation.
const MOST_EVENTS: usize = MAX_LISTED;
/// Maximum number of unanswered requests on the connection, not counting appends.
const ASKED: usize = 128;
/// Bytes sealed and not yet written above which no more frames are sealed.
const BACKLOG: usize = 128 * 1024;
/// Overhead of a request in a frame in bytes: tag and length.
const REQUEST_HEAD: usize = 6;

/// State of one connection, dropped with it.
pub(super) struct Serving {
    pub(super) up: Up,
    asked: HashMap<u64, Recipient>,
    /// Callers that wait for a rekey, with the epoch at their request.
    rekeys: Vec<(u32, Reply<Rekeyed>)>,
    next: u64,
    appends: usize,
    /// Requests for the next frame.
    frame: Vec<proto::Request>,
    frame_bytes: usize,
}

impl Serving {
    pub(super) fn new(up: Up) -> Self {
        Self {
            up,
            asked: HashMap::new(),
            rekeys: Vec::new(),
            next: 1,
            appends: 0,
            frame: Vec::new(),
            frame_bytes: 0,
        }
    }

    /// Adds a request to the current frame; seals a full frame first.
    fn ask(
        &mut self,
        line: &mut Connection<Stream>,
        op: Op,
        asker: Recipient,
    ) -> Result<(), ClientError> {
        let request = proto::Request { id: self.next, op: Some(op) };
        let bytes = size(&request);
        if self.frame_bytes + bytes > MAX_BODY {
            self.seal(line)?;
        }
        self.appends += usize::from(matches!(asker, Recipient::Append(_)));
        self.asked.insert(self.next, asker);
        self.next += 1;
        self.frame_bytes += bytes;
        self.frame.push(request);
        Ok(())
    }

    fn seal(&mut self, line: &mut Connection<Stream>) -> Result<(), ClientError> {
        self.frame_bytes = 0;
        for requests in pack(std::mem::take(&mut self.frame), 0, size) {
            let frame = proto::ToServer { requests, ..Default::default() };
            let sent = line.send_app(&frame.encode_to_vec());
            sent.map_err(|error| ClientError::Lost(error.to_string()))?;
        }
        Ok(())
    }

    fn answered(&mut self, id: u64) -> Option<Recipient> {
        let asker = self.asked.remove(&id)?;
        self.appends -= usize::from(matches!(asker, Recipient::Append(_)));
        Some(asker)
    }
}

/// Size of a request in a frame, in bytes.
fn size(request: &proto::Request) -> usize {
    request.encoded_len() + REQUEST_HEAD
}

impl Driver {
    /// Sends queued requests as far as the limits allow.
    pub(super) fn pump(
        &mut self,
        serving: &mut Serving,
        line: &mut Connection<Stream>,
    ) -> Result<(), ClientError> {
        for reply in self.facts.drain(..) {
            let session = line.session();
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
            let session = line.session_mut();
            session.want_rekey();
            serving.rekeys.push((session.facts().epoch.0, reply));
        }
        let busy = |serving: &Serving, line: &Connection<Stream>| {
            line.backlog() + serving.frame_bytes >= BACKLOG
        };
        while !busy(serving, line) && serving.asked.len() - serving.appends < ASKED {
            let Some((op, asker)) = self.waiting.pop_front() else { break };
            serving.ask(line, op, asker)?;
        }
        for (op, conversation) in self.follows.requests() {
            let asker = conversation.map_or(Recipient::Discard, Recipient::Follow);
            serving.ask(line, op, asker)?;
        }
        while !busy(serving, line) {
            let Some((op, asker)) = self.sending.next() else { break };
            serving.ask(line, op, asker)?;
        }
        serving.seal(line)?;
        // A sender that waits for an ack must notice a dead connection as soon as a follower.
        let watching = self.follows.any() || self.sending.waits();
        line.session_mut().set_following(watching);
        self.settle(true);
        self.check();
        Ok(())
    }

    /// Handles every complete frame.
    pub(super) fn take_frames(
        &mut self,
        serving: &mut Serving,
        line: &mut Connection<Stream>,
    ) -> Result<(), ClientError> {
        while line.has_frame().map_err(|e| ClientError::Lost(e.to_string()))? {
            let items = match line.open_frame()? {
                LineEvent::App(body) => {
                    proto::ToClient::decode(bytes::Bytes::copy_from_slice(body))
                        .map_err(|_| ClientError::Protocol("a frame that cannot be read"))?
                        .items
                }
                LineEvent::Closed(code) => return Err(closed(code)),
                LineEvent::Bulk { .. } => {
                    return Err(ClientError::Protocol("file bytes that were not requested"));
                }
                LineEvent::Rekeyed(epoch) => {
                    session_log::rekeyed(line.session(), epoch);
                    for (before, reply) in serving.rekeys.drain(..) {
                        let _gone = reply.send(Ok(Rekeyed { before, after: epoch }));
                    }
                    continue;
                }
                LineEvent::Ready { .. } | LineEvent::Nothing => continue,
            };
            for item in items {
                self.take_item(serving, item)?;
            }
        }
        Ok(())
    }

    fn take_item(&mut self, serving: &mut Serving, item: proto::Item) -> Result<(), ClientError> {
        if self.queue.len() >= MOST_EVENTS {
            return Err(ClientError::BadList("changes"));
        }
        match item.what {
            Some(What::Answer(answer)) => self.take_answer(serving, answer)?,
            Some(What::Entries(entries)) => {
                self.moved = true;
                self.follows.arrived(entries.conversation, entries.entries);
            }
            Some(What::Presence(proto::Presence { user, online })) => {
                put(&mut self.queue, Event::Presence { user, online });
            }
            Some(What::Conversation(conversation)) => {
                self.learn_origins(std::slice::from_ref(&conversation))?;
                if !conversation.joined {
                    self.follows.end(conversation.id);
                    self.note_left(conversation.id);
                }
                put(&mut self.queue, Event::Conversation(conversation));
            }
            Some(What::GoingAway(away)) => {
                self.come_back = Some(std::time::Duration::from_secs(u64::from(away.seconds)));
            }
            Some(What::Damaged(proto::Damaged { conversation, n })) => {
                return Err(ClientError::Missing { conversation, n });
            }
            // Transfers use separate connections.
            Some(What::FileAck(_) | What::FileAborted(_)) => {}
            // An item of a later protocol version.
            None => {}
        }
        Ok(())
    }

    fn take_answer(
        &mut self,
        serving: &mut Serving,
        answer: proto::Answer,
    ) -> Result<(), ClientError> {
        let result = match answer.result {
            Some(Answered::Refusal(no)) => Err(Refusal::from(no)),
            Some(answered) => Ok(answered),
            None => return Err(ClientError::Protocol("an answer of a kind it was not asked for")),
        };
        match &result {
            Ok(Answered::Conversation(one)) => self.learn_origins(std::slice::from_ref(one))?,
            Ok(Answered::Conversations(some)) => self.learn_origins(&some.conversations)?,
            _ => {}
        }
        match serving.answered(answer.id) {
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
    pub(super) fn line_ended(&mut self, serving: Serving, why: Option<&ClientError>) {
        let lost = ClientError::Lost("it ended before the answer came".to_owned());
        let why = why.filter(|why| !why.is_passing()).unwrap_or(&lost);
        for (_, reply) in serving.rekeys {
            let _gone = reply.send(Err(why.clone()));
        }
        for asker in serving.asked.into_values() {
            if let Recipient::Caller(reply) = asker {
                let _gone = reply.send(Err(why.clone()));
            }
        }
        self.follows.line_ended();
        self.sending.line_ended();
        self.settle(false);
    }
}
