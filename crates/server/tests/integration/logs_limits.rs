//! Limits in the log. One test: the log is the process's.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::classic::both_ports;
use crate::common::*;
use tokio::net::TcpStream;
use twinlock_core::frame::CloseCode;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines_with(&self, words: &str) -> usize {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(words)).count()
    }
}

#[tokio::test]
async fn limits_that_close_connections_are_logged_by_name() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let host = Host::start_with(|config| {
        both_ports(config);
        config.classic.connections_per_address = 1;
        config.limits.tls_deadline = Duration::from_millis(200);
        config.limits.sessions_per_device = 1;
    })
    .await;
    let (laptop, _ada) = host.owner().await;

    let mut second = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(second.end().await.unwrap(), CloseCode::Quota);
    for address in [host.address(), host.server.classic_addr().unwrap()] {
        let mut idle = Vec::new();
        for _ in 0..120 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        for mut idle in idle {
            assert!(rest(&mut idle).await.is_empty());
        }
    }
    while hello(&mut host.tls().await, Device::unknown().credential()).await.is_ok() {}

    for limit in [
        "sessions-per-device",
        "unauthenticated-per-address",
        "classic-connections-per-address",
        "logins-per-minute",
        "time for TLS",
    ] {
        let lines = log.lines_with(&format!("limit=\"{limit}\""));
        // A flood of them is a line or two.
        assert!((1..=3).contains(&lines), "{lines} lines of {limit}");
    }
    let told = "of the last 100 connections came from one address";
    assert_eq!(log.lines_with(told), 1);
}
