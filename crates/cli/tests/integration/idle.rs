//! Thousands of idle connections (2,000; with `make torture` 10,000) cost a server little, and it closes each of them properly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::lines::{AT_ONCE, Connected, PER_USER, members};
use crate::common::raw::{full, resident};
use crate::common::*;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_core::frame::CloseCode;
use twinlock_core::session::SessionEvent;

/// Descriptors that are not connections, on either side.
const OTHERS: u64 = 300;

/// Connections that the limit of open files allows; the server raises its own soft limit.
fn room() -> usize {
    let wanted = if full() { 10_000 } else { 2_000 };
    let maximum = getrlimit(Resource::Nofile).maximum;
    let room = maximum.map_or(wanted, |max| usize::try_from(max - OTHERS).unwrap());
    if room < wanted {
        eprintln!(
            "\n!!! ONLY {room} CONNECTIONS: THE HARD LIMIT OF OPEN FILES IS {maximum:?} !!!\n"
        );
    }
    room.min(wanted)
}

/// Answers pings until the server closes the connection; returns the close code.
async fn idle(mut line: Connected) -> CloseCode {
    loop {
        line.wait(None).await.unwrap();
        if let SessionEvent::Closed(code) = line.open_frame().unwrap() {
            line.finish().await;
            return code;
        }
    }
}

#[test]
fn idle_connections__cost_bounded_memory_and_each_gets_close() {
    let lines = room();
    let hard = getrlimit(Resource::Nofile).maximum;
    // The server starts with the limit of a login shell, and raises it.
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: hard }).unwrap();
    let mut host = Host::start();
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    let ada = host.owner();
    let pid = host.running().pid();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();

    let began = Instant::now();
    let users = lines.div_ceil(PER_USER);
    let members = Arc::new(runtime.block_on(members(&ada, host.root(), users)));
    eprintln!("{users} members joined in {:?}", began.elapsed());

    let before = resident(pid);
    let began = Instant::now();
    let up = Arc::new(AtomicUsize::new(0));
    let mut held = JoinSet::new();
    runtime.block_on(async {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut connecting = JoinSet::new();
        for n in 0..lines {
            let place = places.clone().acquire_owned().await.unwrap();
            while let Some(line) = connecting.try_join_next() {
                held.spawn(idle(line.unwrap()));
            }
            let (up, members) = (up.clone(), members.clone());
            connecting.spawn(async move {
                let member = &members[n % users];
                let client =
                    member.try_connect_from(None, &(n as u64).to_be_bytes()).await.unwrap();
                drop(place);
                up.fetch_add(1, Ordering::Relaxed);
                client.connection
            });
        }
        while let Some(line) = connecting.join_next().await {
            held.spawn(idle(line.unwrap()));
        }
    });
    assert_eq!(up.load(Ordering::Relaxed), lines);
    let took = began.elapsed();
    let per_line = resident(pid).saturating_sub(before) / lines;
    eprintln!(
        "{lines} lines in {took:?}; the server: {} MiB before, {} MiB now, {:.1} KiB a line",
        before >> 20,
        resident(pid) >> 20,
        per_line as f64 / 1024.0
    );
    assert!(per_line < 64 * 1024, "{per_line} bytes a line");

    // It serves requests as before.
    let asked = Instant::now();
    ada.run(&["send", "lobby", "is anybody awake?"]).exits(0);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // All connections still exist, and each receives a CLOSE.
    host.running().signal(Signal::TERM);
    let told =
        runtime.block_on(async { timeout(LONG, held.join_all()).await.expect("all lines end") });
    assert_eq!(told.len(), lines);
    let shutdown = told.iter().filter(|code| **code == CloseCode::Shutdown).count();
    assert_eq!(shutdown, lines);
    host.gone().exits(0);
}
