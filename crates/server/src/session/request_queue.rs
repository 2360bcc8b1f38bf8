//! The request queue: requests that were received and not started, in order.
//!
//! Frames are kept encoded and decoded one at a time: a request of two bytes takes a hundred once
//! decoded. A connection reads ahead until [`MAX_BYTES`] bytes are queued, so the queue is bounded
//! by that and one read. File acknowledgements wait only for the frames before theirs.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message as _;
use twinlock_core::proto::{FileAck, Request, ToServer};

/// Maximum requests in a frame, and maximum acknowledgements. An append takes at least 30 bytes, so
/// a frame of appends has fewer.
const MAX_REQUESTS: usize = 2048;
/// Bytes of queued frames beyond which the connection reads nothing more. Enough that a client that
/// pipelines requests always has one queued; more only delays backpressure.
const MAX_BYTES: usize = 64 * 1024;
/// Overhead of a queued frame, bytes.
const FRAME: usize = 64;

/// A frame that does not decode or contains too many requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MalformedRequests;

#[derive(Default)]
pub(crate) struct RequestQueue {
    bodies: VecDeque<Bytes>,
    /// Bytes of `bodies`, with overhead.
    waiting: usize,
    decoded: VecDeque<Request>,
    /// Bytes of the frame that `decoded` came from.
    current: usize,
    acks: Vec<FileAck>,
}

impl RequestQueue {
    /// Queues the body of an APP frame.
    pub(crate) fn push(&mut self, body: &[u8]) {
        self.waiting += body.len() + FRAME;
        self.bodies.push_back(Bytes::copy_from_slice(body));
    }

    /// Whether the queue is full, so that nothing more should be read.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting + self.current >= MAX_BYTES
    }

    /// Drops all queued requests.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.decoded.is_empty() && self.bodies.is_empty()
    }

    /// The next request, if there is one.
    pub(crate) fn peek(&mut self) -> Result<Option<&Request>, MalformedRequests> {
        while self.decoded.is_empty()
            && let Some(body) = self.bodies.pop_front()
        {
            self.current = body.len() + FRAME;
            self.waiting = self.waiting.saturating_sub(self.current);
            let ToServer { requests, mut file_acks } =
                ToServer::decode(body).map_err(|_| MalformedRequests)?;
            if requests.len() > MAX_REQUESTS || file_acks.len() > MAX_REQUESTS {
                return Err(MalformedRequests);
            }
            self.decoded = requests.into();
            self.acks.append(&mut file_acks);
        }
        if self.decoded.is_empty() {
            self.current = 0;
        }
        if self.bodies.is_empty() {
            // An idle session keeps no buffer.
            self.bodies = VecDeque::new();
        }
        Ok(self.decoded.front())
    }

    /// Takes the acknowledgements of the frames that [`RequestQueue::peek`] has decoded.
    pub(crate) fn take_acks(&mut self) -> Vec<FileAck> {
        std::mem::take(&mut self.acks)
    }

    /// Takes the request that [`RequestQueue::peek`] returned.
    pub(crate) fn pop(&mut self) -> Option<Request> {
        let request = self.decoded.pop_front();
        if self.decoded.is_empty() {
            self.decoded = VecDeque::new();
            self.current = 0;
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(ids: std::ops::Range<u64>) -> Vec<u8> {
        let requests = ids.map(|id| Request { id, op: None }).collect();
        ToServer { requests, ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn request_queue__keeps_order_across_frames() {
        let mut queue = RequestQueue::default();
        for ids in [0..3, 3..3, 3..5] {
            queue.push(&body(ids));
        }
        let mut seen = Vec::new();
        while let Some(request) = queue.peek().unwrap().cloned() {
            assert_eq!(queue.pop(), Some(request.clone()));
            seen.push(request.id);
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(queue.is_empty());
    }

    #[test]
    fn request_queue__full_by_bytes_until_frame_is_consumed() {
        let mut queue = RequestQueue::default();
        let mut frames = 0;
        while !queue.is_full() {
            queue.push(&body(0..100));
            frames += 1;
        }
        let each = body(0..100).len() + FRAME;
        assert_eq!(frames, MAX_BYTES.div_ceil(each));
        // A frame counts until its last request is taken.
        for _ in 0..100 {
            assert!(queue.is_full());
            assert!(queue.peek().unwrap().is_some());
            queue.pop();
        }
        assert!(!queue.is_full());
        while queue.peek().unwrap().is_some() {
            queue.pop();
        }
        assert!(queue.is_empty() && queue.waiting == 0 && queue.current == 0);
        queue.push(&vec![0; MAX_BYTES]);
        assert!(queue.is_full());
        queue.clear();
        assert!(queue.is_empty() && !queue.is_full());
    }

    #[test]
    fn request_queue__file_acks_are_returned_without_request() {
        let ack = |offset| FileAck { transfer: 2, offset };
        let mut queue = RequestQueue::default();
        for offset in [7, 9] {
            let acks = ToServer { file_acks: vec![ack(offset)], ..Default::default() };
            queue.push(&acks.encode_to_vec());
        }
        assert_eq!(queue.peek(), Ok(None));
        assert_eq!(queue.take_acks(), [ack(7), ack(9)]);
        assert_eq!(queue.take_acks(), []);
    }

    #[test]
    fn request_queue__malformed_or_oversized_list_is_rejected() {
        let acks = ToServer { file_acks: vec![FileAck::default(); 2049], ..Default::default() };
        for bad in [vec![0x0a, 0xff], body(0..2049), acks.encode_to_vec(), vec![0xff; 10]] {
            let mut queue = RequestQueue::default();
            queue.push(&bad);
            assert_eq!(queue.peek(), Err(MalformedRequests));
        }
        let mut queue = RequestQueue::default();
        queue.push(&body(0..2048));
        assert!(queue.peek().is_ok());
    }
}
