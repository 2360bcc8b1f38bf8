//! A connection that keeps messages outstanding.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use twinlock_client::clock::now_ms;
use twinlock_client::connector::ClientStream;
use twinlock_client::error::{ClientError, closed};
use twinlock_core::Entropy;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{ConversationId, MessageId};
use twinlock_core::pack::pack;
use twinlock_core::proto::{self, answer::Result as Answered, item::What, request::Op};
use twinlock_core::session::SessionEvent;
use twinlock_transport::OsEntropy;
use twinlock_transport::connection::Connection;

use crate::proto_scan::{ScannedItem, scan};

/// Number of texts that a connection sends in turn.
const TEXTS: usize = 16;
/// Overhead of a request in a frame in bytes: tag and length.
const HEAD: usize = 6;
/// The words of the texts, so that indexing costs what it costs for a real record.
const WORDS: &[&str] = &[
    "the", "backup", "of", "disk", "seven", "is", "done", "and", "nobody", "waits", "for", "it",
    "any", "more", "please", "look", "at", "line", "twelve", "before", "noon", "we", "have", "a",
    "server", "that", "keeps", "what", "was", "said", "since", "monday",
];

/// A connection and its outstanding messages.
pub(crate) struct MessageSender {
    pub(crate) connection: Connection<ClientStream>,
    room: ConversationId,
    texts: Vec<Bytes>,
    /// The part of message ids before the message's number.
    tag: [u8; 6],
    next: u64,
    /// Send times from the oldest outstanding message on; `None` once answered.
    sent: VecDeque<Option<Instant>>,
    outstanding: usize,
}

/// The part of a message id after the time: drawn once per connection, then counted up. Kernel
/// randomness for each message would cost the client more than sealing it.
struct MessageIdEntropy {
    tag: [u8; 6],
    number: u64,
}

impl Entropy for MessageIdEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        let [_, _, _, _, number @ ..] = self.number.to_be_bytes();
        let rest = self.tag.into_iter().chain(number);
        bytes.iter_mut().zip(rest).for_each(|(byte, of)| *byte = of);
    }
}

impl MessageSender {
    pub(crate) fn new(
        connection: Connection<ClientStream>,
        room: ConversationId,
        size: usize,
    ) -> Self {
        let mut tag = [0; 6];
        OsEntropy.fill(&mut tag);
        let texts = (0..TEXTS).map(|n| text(size, n)).collect();
        Self { connection, room, texts, tag, next: 0, sent: VecDeque::new(), outstanding: 0 }
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Number of messages sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.next
    }

    /// Seals this many messages, as many per frame as fit.
    pub(crate) fn send(&mut self, messages: usize) -> Result<(), ClientError> {
        let now = Instant::now();
        let now_ms = now_ms();
        let requests: Vec<_> = (0..messages).map(|_| self.request(now_ms)).collect();
        self.sent.extend(requests.iter().map(|_| Some(now)));
        self.outstanding += messages;
        for requests in pack(requests, 0, |request| request.encoded_len() + HEAD) {
            let frame = proto::ToServer { requests, ..Default::default() };
            let sent = self.connection.send_app(&frame.encode_to_vec());
            sent.map_err(|error| ClientError::Lost(error.to_string()))?;
        }
        Ok(())
    }

    fn request(&mut self, now_ms: u64) -> proto::Request {
        let turn = usize::try_from(self.next).unwrap_or(0) % self.texts.len().max(1);
        // A time and a distinct rest, as in other clients.
        let id =
            MessageId::fresh(now_ms, &mut MessageIdEntropy { tag: self.tag, number: self.next });
        self.next += 1;
        let append = proto::Append {
            conversation: self.room,
            message_id: Bytes::copy_from_slice(&id.0),
            body: self.texts.get(turn).cloned().unwrap_or_default(),
        };
        proto::Request { id: self.next, op: Some(Op::Append(append)) }
    }

    /// Handles the complete frames; adds the latencies of the acknowledged messages to `took`.
    pub(crate) fn take(&mut self, took: &mut Vec<Duration>) -> Result<(), ClientError> {
        let Self { connection, sent, next, outstanding, .. } = self;
        let now = Instant::now();
        while connection.has_frame().map_err(|error| ClientError::Lost(error.to_string()))? {
            let body = match connection.open_frame()? {
                SessionEvent::App(body) => body,
                SessionEvent::Closed(code) => return Err(closed(code)),
                _ => continue,
            };
            let oldest = *next + 1 - sent.len() as u64;
            let mut refused = false;
            scan(body, |scanned| {
                match scanned {
                    ScannedItem::Ack(id) => {
                        let at = id.checked_sub(oldest).and_then(|at| usize::try_from(at).ok());
                        let slot = at.and_then(|at| sent.get_mut(at));
                        let at = slot.and_then(Option::take);
                        let at = at.ok_or(ClientError::Protocol("an answer to nothing"))?;
                        took.push(now - at);
                        *outstanding -= 1;
                    }
                    ScannedItem::Other(_) => refused = true,
                    ScannedItem::Entry(_) => {}
                }
                Ok(())
            })?;
            if refused {
                return Err(refusal(body));
            }
            while let Some(None) = sent.front() {
                sent.pop_front();
            }
        }
        Ok(())
    }

    pub(crate) async fn close(self) {
        self.connection.close(CloseCode::Bye).await;
    }
}

/// The first refusal in a frame.
pub(crate) fn refusal(body: &[u8]) -> ClientError {
    let items = proto::ToClient::decode(body).map(|frame| frame.items).unwrap_or_default();
    let no = items.into_iter().find_map(|item| match item.what {
        Some(What::Answer(proto::Answer { result: Some(Answered::Refusal(no)), .. })) => Some(no),
        _ => None,
    });
    no.map_or(ClientError::Protocol("an answer to another question"), |no| {
        ClientError::Refused(no.into())
    })
}

/// A text of `size` bytes, made of words.
fn text(size: usize, n: usize) -> Bytes {
    let mut text = String::with_capacity(size + 16);
    let mut at = n * 7;
    while text.len() < size {
        text.push_str(WORDS.get(at % WORDS.len()).copied().unwrap_or_default());
        text.push(' ');
        at = at * 5 + 3 + n;
        at %= WORDS.len() * TEXTS;
    }
    text.truncate(size);
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_text__has_requested_size_and_many_words() {
        for size in [1, 2, 255, 256, 32 * 1024] {
            for n in 0..TEXTS {
                assert_eq!(text(size, n).len(), size);
            }
        }
        assert!(text(256, 3).split(|b| *b == b' ').count() > 20);
        assert_ne!(text(256, 3), text(256, 4));
    }
}
