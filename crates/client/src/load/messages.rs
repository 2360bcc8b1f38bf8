//! Messages: connections that each keep a window outstanding, and count acks.

use std::sync::Arc;

use twinlock_core::proto::{self, answer::Result as Answered, request::Op};

use super::measure::{Before, Gauge, Lines, Report, measure};
use super::sender::Sender;
use super::{Load, LoadError, Shape};
use crate::connector::ReadySession;
use crate::error::ClientError;
use crate::request_connection::RequestConnection;

impl Load {
    pub(super) async fn messages(&mut self, shape: Shape) -> Result<Report, LoadError> {
        let gauge = Gauge::new()?;
        let before = Before::now(self.server);
        let mut lines = Lines::new();
        for opened in self.open(shape.lines, Some(shape)).await? {
            let sender = Sender::new(opened.connection, self.room.id, shape.size);
            lines.spawn(keep_sending(sender, shape.window, gauge.clone()));
        }
        measure("messages", before, shape.time, &gauge, lines, &mut self.stop).await
    }

    /// Opens connections of users in the room. With a shape, checks it against the server's limits.
    pub(super) async fn open(
        &self,
        lines: usize,
        shape: Option<Shape>,
    ) -> Result<Vec<ReadySession>, LoadError> {
        let mut all = Vec::with_capacity(lines);
        self.crew.open_each(lines, &self.stop, |opened| all.push(opened)).await?;
        if let (Some(shape), Some(ReadySession { info, .. })) = (shape, all.first()) {
            let (window, size) = (info.max_in_flight, info.max_text);
            if shape.window > usize::try_from(window).unwrap_or(usize::MAX) {
                return Err(LoadError::Window { most: window });
            }
            if shape.size > usize::try_from(size).unwrap_or(usize::MAX) {
                return Err(LoadError::Size { most: size });
            }
        }
        if !self.crew.is_made() {
            return Ok(all);
        }
        let mut joined = Vec::with_capacity(lines);
        for opened in all {
            let mut wire = RequestConnection::new(opened.connection);
            let join = proto::JoinRoom { name: self.room.name.to_string() };
            let Answered::Conversation(_) = wire.request(Op::JoinRoom(join)).await? else {
                return Err(ClientError::Protocol("an answer to another question").into());
            };
            joined.push(ReadySession { connection: wire.into_connection(), ..opened });
        }
        Ok(joined)
    }
}

async fn keep_sending(
    mut sender: Sender,
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
        gauge.came(took.len() as u64, took.drain(..));
    }
}
