//! Messages: connections that each keep a window outstanding, and count acks.

use std::sync::Arc;

use twinlock_client::connector::ReadySession;
use twinlock_client::error::ClientError;
use twinlock_client::request_connection::RequestConnection;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};

use crate::load::Load;
use crate::measure::{ConnectionTasks, Gauge, ResourceSnapshot, measure};
use crate::model::{LoadError, Measurement, Shape};
use crate::sender::MessageSender;

impl Load {
    pub(crate) async fn messages(&mut self, shape: Shape) -> Result<Measurement, LoadError> {
        let gauge = Gauge::new()?;
        let before = ResourceSnapshot::now(self.server);
        let mut tasks = ConnectionTasks::new();
        for opened in self.open(shape.connections, Some(shape)).await? {
            let sender = MessageSender::new(opened.connection, self.room.id, shape.size);
            tasks.spawn(keep_sending(sender, shape.window, gauge.clone()));
        }
        measure("messages", before, shape.time, &gauge, tasks, &mut self.stop).await
    }

    /// Opens connections of users in the room. With a shape, checks it against the server's limits.
    pub(crate) async fn open(
        &self,
        connections: usize,
        shape: Option<Shape>,
    ) -> Result<Vec<ReadySession>, LoadError> {
        let mut all = Vec::with_capacity(connections);
        self.users.open_each(connections, &self.stop, |opened| all.push(opened)).await?;
        if let (Some(shape), Some(ReadySession { info, .. })) = (shape, all.first()) {
            let (window, size) = (info.max_in_flight, info.max_text);
            if shape.window > usize::try_from(window).unwrap_or(usize::MAX) {
                return Err(LoadError::Window { max: window });
            }
            if shape.size > usize::try_from(size).unwrap_or(usize::MAX) {
                return Err(LoadError::Size { max: size });
            }
        }
        if !self.users.is_made() {
            return Ok(all);
        }
        let mut joined = Vec::with_capacity(connections);
        for opened in all {
            let mut requests = RequestConnection::new(opened.connection);
            let join = proto::JoinRoom { name: self.room.name.to_string() };
            let Answered::Conversation(_) = requests.request(Op::JoinRoom(join)).await? else {
                return Err(ClientError::Protocol("an answer to another question").into());
            };
            joined.push(ReadySession { connection: requests.into_connection(), ..opened });
        }
        Ok(joined)
    }
}

async fn keep_sending(
    mut sender: MessageSender,
    window: usize,
    gauge: Arc<Gauge>,
) -> Result<(), ClientError> {
    let mut took = Vec::with_capacity(window);
    loop {
        if !gauge.ends() {
            sender.send(window.saturating_sub(sender.outstanding()))?;
        } else if sender.outstanding() == 0 {
            sender.close().await;
            return Ok(());
        }
        sender.connection.wait(None).await?;
        sender.take(&mut took)?;
        gauge.record_answers(took.len() as u64, took.drain(..));
    }
}
