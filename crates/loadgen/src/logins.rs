//! Repeated logins: TCP, TLS, HELLO to READY, and the close.

use std::iter::once;
use std::sync::Arc;
use std::time::Instant;

use twinlock_client::error::ClientError;
use twinlock_core::frame::CloseCode;

use crate::load::Load;
use crate::measure::{ConnectionTasks, Gauge, ResourceSnapshot, measure};
use crate::model::{LoadError, Measurement, Shape};
use crate::virtual_users::{CONCURRENT_LOGINS, VirtualUsers};

impl Load {
    pub(crate) async fn logins(&mut self, shape: Shape) -> Result<Measurement, LoadError> {
        let gauge = Gauge::new()?;
        let before = ResourceSnapshot::now(self.server);
        let mut tasks = ConnectionTasks::new();
        for n in 0..shape.connections.min(CONCURRENT_LOGINS) {
            tasks.spawn(keep_logging_in(n, self.users.clone(), gauge.clone()));
        }
        measure("logins", before, shape.time, &gauge, tasks, &mut self.stop).await
    }
}

async fn keep_logging_in(
    n: usize,
    users: Arc<VirtualUsers>,
    gauge: Arc<Gauge>,
) -> Result<(), ClientError> {
    while !gauge.ends() {
        let began = Instant::now();
        let opened = users.open(n).await?;
        gauge.record_answers(1, once(began.elapsed()));
        opened.connection.close(CloseCode::Bye).await;
    }
    Ok(())
}
