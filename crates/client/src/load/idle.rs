//! Idle connections, and their cost to the server.

use std::time::Instant;

use tokio::sync::watch;
use tokio::time::sleep;
use twinlock_core::frame::CloseCode;
use twinlock_core::session::Event;
use twinlock_transport::connection::Connection;

use super::measure::{Before, Gauge, Lines, Report};
use super::{Load, LoadError, Shape, Stop};
use crate::connector::ClientStream;
use crate::error::{ClientError, closed};

impl Load {
    /// Opens connections, keeps them for the time in `shape`, and reads the server's memory. The
    /// report counts connections, and its time is that of opening them.
    pub(super) async fn idle(&mut self, shape: Shape) -> Result<Report, LoadError> {
        let gauge = Gauge::new()?;
        let before = Before::now(self.server);
        let (over, ends) = watch::channel(false);
        let ends = Stop::new(ends);
        let (mut lines, began, mut up) = (Lines::new(), Instant::now(), 0);
        let opened = self.crew.open_each(shape.lines, &self.stop, |opened| {
            up += 1;
            lines.spawn(hold(opened.connection, ends.clone()));
        });
        opened.await?;
        let opening = began.elapsed();
        let lost = tokio::select! {
            () = sleep(shape.time) => None,
            () = self.stop.told() => None,
            Some(ended) = lines.join_next() => Some(ended.unwrap_or(Err(ClientError::Closed))),
        };
        if let Some(Err(error)) = lost {
            return Err(error.into());
        }
        let report = before.report("idle", up, &gauge);
        over.send_replace(true);
        while lines.join_next().await.is_some() {}
        Ok(Report { seconds: opening.as_secs_f64(), ..report })
    }
}

/// Answers pings until the measurement is over.
async fn hold(mut line: Connection<ClientStream>, mut over: Stop) -> Result<(), ClientError> {
    loop {
        tokio::select! {
            wake = line.wait(None) => { wake?; }
            () = over.told() => {
                line.close(CloseCode::Bye).await;
                return Ok(());
            }
        }
        if let Event::Closed(code) = line.open_frame()? {
            return Err(closed(code));
        }
    }
}
