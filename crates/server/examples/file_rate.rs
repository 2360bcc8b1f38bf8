//! How fast a file goes up and comes down over both locks: one line over loopback, a client that
//! makes its bytes up and throws away what it gets, client and server in one process on two
//! threads. 1 GiB below the directory named (default: the system's temporary one).
//!
//! `cargo run --release -p twinlock-server --example file_rate [DIR [MIB [ROUNDS]]]`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::time::Instant;

use common::files::*;
use common::*;
use prost::Message as _;
use twinlock_core::proto::{self, item::What, request::Op};
use twinlock_core::session::Event;
use twinlock_link::line::Wake;

const MIB: usize = 1024 * 1024;
/// Data of a frame, bytes.
const FRAME: usize = 128 * 1024;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let below = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let size = args.next().map_or(1024, |mib| mib.parse().expect("MiB")) * MIB;
    let rounds = args.next().map_or(3, |rounds| rounds.parse().expect("rounds"));
    let host = Host::start_in(tempfile::tempdir_in(below).unwrap(), |_| ()).await;
    let (_, mut client) = host.owner().await;
    let data = content(1, FRAME);
    let mut hasher = blake3::Hasher::new();
    for _ in 0..size / FRAME {
        hasher.update(&data);
    }
    let hash = copy(hasher.finalize().as_bytes());
    for round in 0..rounds {
        let began = Instant::now();
        let n = up(&mut client, &data, size, hash.clone()).await;
        rate("up", size, began);
        let began = Instant::now();
        down(&mut client, n, size).await;
        rate("down", size, began);
        println!("   resident {} MiB after round {round}", resident() / MIB);
    }
}

fn rate(way: &str, size: usize, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    println!("{way:>5} {:6.0} MB/s ({:.2} s)", size as f64 / 1e6 / seconds, seconds);
}

async fn up(client: &mut Client, data: &[u8], size: usize, hash: bytes::Bytes) -> u64 {
    let accepted = client.offer(put(random(), "x", size as u64)).await.unwrap();
    let (mut sent, mut taken) = (0, 0);
    while sent < size {
        if client.line.backlog() < 256 * 1024 && (sent + FRAME) as u64 - taken <= WINDOW {
            let session = client.line.session_mut();
            session.send_bulk(accepted.transfer, sent as u64, data).unwrap();
            sent += FRAME;
            continue;
        }
        let room = ((sent + FRAME) as u64 - taken <= WINDOW).then_some(192 * 1024);
        if client.line.wait(room).await.unwrap() == Wake::Frame
            && let Event::App(body) = client.line.open_frame().unwrap()
        {
            for item in proto::ToClient::decode(body).unwrap().items {
                if let Some(What::FileAck(ack)) = item.what {
                    taken = ack.offset;
                }
            }
        }
    }
    let end = proto::EndFile { transfer: accepted.transfer, hash };
    client.ask(Op::EndFile(end)).await.map(ack).unwrap().n
}

async fn down(client: &mut Client, n: u64, size: usize) {
    let coming = client.ask(Op::GetFile(get(n))).await.map(coming).unwrap();
    let mut got = client.bulk.drain(..).map(|(_, _, data)| data.len()).sum::<usize>();
    let mut acked = 0;
    while got < size {
        client.line.wait(None).await.unwrap();
        if let Event::Bulk { data, .. } = client.line.open_frame().unwrap() {
            got += data.len();
        }
        if got - acked >= MIB {
            acked = got;
            client.ack_file(coming.transfer, acked as u64);
        }
    }
}
