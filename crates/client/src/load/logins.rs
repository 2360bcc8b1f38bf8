//! Repeated logins: TCP, TLS, HELLO to READY, and the close.

use std::iter::once;
use std::sync::Arc;
use std::time::Instant;

use twinlock_core::frame::CloseCode;

use super::crew::{AT_ONCE, Crew};
use super::measure::{Before, Gauge, Lines, Report, measure};
use super::{Load, LoadError, Shape};
use crate::error::ClientError;

impl Load {
    pub(super) async fn logins(&mut self, shape: Shape) -> Result<Report, LoadError> {
        let gauge = Gauge::new()?;
        let before = Before::now(self.server);
        let mut lines = Lines::new();
        for n in 0..shape.lines.min(AT_ONCE) {
            lines.spawn(keep_logging_in(n, self.crew.clone(), gauge.clone()));
        }
        measure("logins", before, shape.time, &gauge, lines, &mut self.stop).await
    }
}

async fn keep_logging_in(n: usize, crew: Arc<Crew>, gauge: Arc<Gauge>) -> Result<(), ClientError> {
    while !gauge.ends() {
        let began = Instant::now();
        let opened = crew.open(n).await?;
        gauge.came(1, once(began.elapsed()));
        opened.connection.close(CloseCode::Bye).await;
    }
    Ok(())
}
