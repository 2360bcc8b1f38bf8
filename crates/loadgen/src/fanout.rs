//! Fan-out: one connection sends, and followers count deliveries.
//!
//! The window limits the messages with outstanding deliveries, counted over all followers. So one
//! follower may be as far behind as all others are ahead, and send times are kept for that long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use twinlock_client::connector::ClientStream;
use twinlock_client::error::{ClientError, closed};
use twinlock_client::request_connection::RequestConnection;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_core::session::SessionEvent;
use twinlock_transport::connection::Connection;

use crate::load::Load;
use crate::measure::{ConnectionTasks, Gauge, ResourceSnapshot, measure};
use crate::model::{LoadError, Measurement, Shape, StopSignal};
use crate::proto_scan::{ScannedItem, scan};
use crate::sender::{MessageSender, refusal};

/// State that the sender and the followers share.
struct Spread {
    gauge: Arc<Gauge>,
    began: Instant,
    /// The number of the last entry before the first message.
    head: u64,
    /// Send times of messages, in microseconds after `began`, as a ring buffer.
    sent: Vec<AtomicU64>,
    /// Notified after a delivery.
    delivered: Notify,
}

impl Spread {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn slot(&self, message: u64) -> Option<&AtomicU64> {
        let slots = self.sent.len().max(1) as u64;
        self.sent.get(usize::try_from(message % slots).unwrap_or(0))
    }
}

impl Load {
    pub(crate) async fn fanout(&mut self, shape: Shape) -> Result<Measurement, LoadError> {
        let before = ResourceSnapshot::now(self.server);
        let mut opened = self.open(shape.connections + 1, Some(shape)).await?;
        let sender = opened.pop().ok_or(ClientError::Closed)?.connection;
        let (mut followers, mut head) = (Vec::with_capacity(shape.connections), 0);
        for opened in opened {
            let (connection, at) = self.follow(opened.connection).await?;
            followers.push(connection);
            head = at;
        }
        let spread = Arc::new(Spread {
            gauge: Gauge::new()?,
            began: Instant::now(),
            head,
            sent: (0..shape.window * shape.connections).map(|_| AtomicU64::new(0)).collect(),
            delivered: Notify::new(),
        });
        let (over, ends) = watch::channel(false);
        let ends = StopSignal::new(ends);
        let mut tasks = ConnectionTasks::new();
        for connection in followers {
            tasks.spawn(keep_following(connection, spread.clone(), ends.clone()));
        }
        let sender = MessageSender::new(sender, self.room.id, shape.size);
        tasks.spawn(keep_sending(sender, shape, spread.clone(), over));
        measure("fanout", before, shape.time, &spread.gauge, tasks, &mut self.stop).await
    }

    /// Makes a connection follow the room from its end.
    async fn follow(
        &self,
        connection: Connection<ClientStream>,
    ) -> Result<(Connection<ClientStream>, u64), LoadError> {
        let mut requests = RequestConnection::new(connection);
        let find = proto::FindRoom { name: self.room.name.to_string() };
        let Answered::Conversation(room) = requests.request(Op::FindRoom(find)).await? else {
            return Err(ClientError::Protocol("an answer to another question").into());
        };
        let follow = proto::Follow { conversation: room.id, after: room.head };
        let Answered::Following(_) = requests.request(Op::Follow(follow)).await? else {
            return Err(ClientError::Protocol("an answer to another question").into());
        };
        let mut connection = requests.into_connection();
        connection.session_mut().set_following(true);
        Ok((connection, room.head))
    }
}

async fn keep_sending(
    mut sender: MessageSender,
    shape: Shape,
    spread: Arc<Spread>,
    over: watch::Sender<bool>,
) -> Result<(), ClientError> {
    let (window, followers) = (shape.window as u64, (shape.connections as u64).max(1));
    let mut took = Vec::new();
    loop {
        let everywhere = spread.gauge.total() / followers;
        let ahead = sender.sent().saturating_sub(everywhere);
        if !spread.gauge.ends() {
            let more = window.saturating_sub(ahead);
            let now = spread.now();
            for message in sender.sent()..sender.sent() + more {
                if let Some(slot) = spread.slot(message) {
                    slot.store(now, Relaxed);
                }
            }
            sender.send(usize::try_from(more).unwrap_or(0))?;
        } else if ahead == 0 && sender.outstanding() == 0 {
            over.send_replace(true);
            sender.close().await;
            return Ok(());
        }
        tokio::select! {
            wake = sender.connection.wait(None) => {
                wake?;
                sender.take(&mut took)?;
                took.clear();
            }
            () = spread.delivered.notified() => {}
        }
    }
}

async fn keep_following(
    mut connection: Connection<ClientStream>,
    spread: Arc<Spread>,
    mut over: StopSignal,
) -> Result<(), ClientError> {
    let (mut last, mut took) = (spread.head, Vec::new());
    loop {
        tokio::select! {
            biased;
            wake = connection.wait(None) => { wake?; }
            () = over.stopped() => {
                connection.close(CloseCode::Bye).await;
                return Ok(());
            }
        }
        let now = spread.now();
        while connection.has_frame().map_err(|error| ClientError::Lost(error.to_string()))? {
            let body = match connection.open_frame()? {
                SessionEvent::App(body) => body,
                SessionEvent::Closed(code) => return Err(closed(code)),
                _ => continue,
            };
            let mut refused = false;
            scan(body, |scanned| {
                match scanned {
                    ScannedItem::Entry(n) if n == last + 1 => {
                        let message = last - spread.head;
                        last = n;
                        let sent = spread.slot(message).map_or(now, |slot| slot.load(Relaxed));
                        took.push(Duration::from_micros(now.saturating_sub(sent)));
                    }
                    ScannedItem::Entry(_) => {
                        return Err(ClientError::Protocol("entries out of order"));
                    }
                    ScannedItem::Ack(_) => {}
                    ScannedItem::Other(_) => refused = true,
                }
                Ok(())
            })?;
            if refused {
                return Err(refusal(body));
            }
        }
        if !took.is_empty() {
            spread.gauge.record_answers(took.len() as u64, took.drain(..));
            spread.delivered.notify_one();
        }
    }
}
