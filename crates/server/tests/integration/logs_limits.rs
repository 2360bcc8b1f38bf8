//! Limits in the log.

use std::time::Duration;

use crate::common::classic::{Caller, add_key, both_ports, send, to_end};
use crate::common::log::Log;
use crate::common::*;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tracing::Level;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::ClassicForm;

#[tokio::test]
async fn log__connection_limits_are_named_at_bounded_rate() {
    let log = Log::of(Level::INFO);
    let host = TestServer::start_with(|config| {
        both_ports(config);
        config.classic.connections_per_address = 1;
        config.limits.tls_deadline = Duration::from_millis(200);
        config.limits.sessions_per_device = 1;
    })
    .await;
    let (laptop, _ada) = host.owner().await;

    let mut second = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(second.end().await.unwrap(), CloseCode::Quota);
    for address in [host.address(), host.server().classic_addr().unwrap()] {
        let mut idle = Vec::new();
        for _ in 0..120 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        for mut idle in idle {
            assert!(read_to_end(&mut idle).await.is_empty());
        }
    }
    while hello(&mut host.tls().await, TestDevice::unknown().credential()).await.is_ok() {}

    for limit in [
        "sessions-per-device",
        "unauthenticated-per-address",
        "classic-connections-per-address",
        "logins-per-minute",
        "time for TLS",
    ] {
        let lines = log.with(&[&format!("limit=\"{limit}\"")]).len();
        // A flood of them produces only a line or two.
        assert!((1..=3).contains(&lines), "{lines} lines of {limit}");
    }
    let told = "of the last 100 connections came from one address";
    assert_eq!(log.with(&[told]).len(), 1);
}

#[tokio::test]
async fn log__classic_limits_are_named_at_bounded_rate() {
    let log = Log::of(Level::INFO);
    let host = TestServer::start_with(both_ports).await;
    let (_, mut ada) = host.owner().await;
    let lamp = add_key(&mut ada, "lamp", LOBBY, ClassicForm::JweLines).await.unwrap();
    log.wait(&["classic key made", "room=\"lobby\""], 1).await;
    drop(ada);
    let host = host
        .restart(|config| {
            both_ports(config);
            config.limits.text_reserve = Some(1 << 50);
            config.classic.silence = Duration::from_millis(200);
        })
        .await;
    for _ in 0..20 {
        let mut caller = Caller::new(&host, "lamp", &lamp).await;
        let line = caller.sealed("no room");
        send(&mut caller.io, line).await;
        to_end(caller.io).await;
        to_end(Caller::new(&host, "lamp", &lamp).await.io).await;
    }
    for limit in ["text-reserve-mib", "time between messages"] {
        let lines = log.with(&[&format!("limit=\"{limit}\"")]).len();
        assert!((1..=3).contains(&lines), "{lines} lines of {limit}");
    }
    assert!(!log.text().contains("TextReserve"));
}

#[tokio::test]
async fn log__missing_proxy_header_is_logged_once() {
    let log = Log::of(Level::INFO);
    let host = TestServer::start_with(|config| {
        config.proxies = vec![[127, 0, 0, 1].into()];
        config.limits.tls_deadline = Duration::from_millis(200);
    })
    .await;
    let mut silent = TcpStream::connect(host.address()).await.unwrap();
    assert!(read_to_end(&mut silent).await.is_empty());
    assert_eq!(log.with(&["limit=\"time for a PROXY header\""]).len(), 1);
    for _ in 0..20 {
        let mut old = TcpStream::connect(host.address()).await.unwrap();
        old.write_all(b"PROXY TCP4 192.0.2.1\r\n").await.unwrap();
        assert!(read_to_end(&mut old).await.is_empty());
    }
    assert_eq!(log.with(&["a proxy sent no PROXY header", "version 1"]).len(), 1);
}
