//! Idle connections, and their cost to the server.

use std::time::Instant;

use tokio::sync::watch;
use tokio::time::sleep;
use twinlock_client::connector::ClientStream;
use twinlock_client::error::{ClientError, closed};
use twinlock_core::frame::CloseCode;
use twinlock_core::session::SessionEvent;
use twinlock_transport::connection::Connection;

use crate::load::Load;
use crate::measure::{ConnectionTasks, Gauge, ResourceSnapshot};
use crate::model::{LoadError, Measurement, Shape, StopSignal};

impl Load {
    /// Opens connections, keeps them for the time in `shape`, and reads the server's memory. The
    /// report counts connections, and its time is that of opening them.
    pub(crate) async fn idle(&mut self, shape: Shape) -> Result<Measurement, LoadError> {
        let gauge = Gauge::new()?;
        let before = ResourceSnapshot::now(self.server);
        let (over, ends) = watch::channel(false);
        let ends = StopSignal::new(ends);
        let (mut tasks, began, mut up) = (ConnectionTasks::new(), Instant::now(), 0);
        let opened = self.users.open_each(shape.connections, &self.stop, |opened| {
            up += 1;
            tasks.spawn(answer_pings(opened.connection, ends.clone()));
        });
        opened.await?;
        let opening = began.elapsed();
        let lost = tokio::select! {
            () = sleep(shape.time) => None,
            () = self.stop.stopped() => None,
            Some(ended) = tasks.join_next() => Some(ended.unwrap_or(Err(ClientError::Closed))),
        };
        if let Some(Err(error)) = lost {
            return Err(error.into());
        }
        let report = before.report("idle", up, &gauge);
        over.send_replace(true);
        while tasks.join_next().await.is_some() {}
        Ok(Measurement { seconds: opening.as_secs_f64(), ..report })
    }
}

/// Answers pings until the measurement is over.
async fn answer_pings(
    mut connection: Connection<ClientStream>,
    mut over: StopSignal,
) -> Result<(), ClientError> {
    loop {
        tokio::select! {
            wake = connection.wait(None) => { wake?; }
            () = over.stopped() => {
                connection.close(CloseCode::Bye).await;
                return Ok(());
            }
        }
        if let SessionEvent::Closed(code) = connection.open_frame()? {
            return Err(closed(code));
        }
    }
}
