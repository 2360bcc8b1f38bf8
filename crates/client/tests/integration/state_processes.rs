//! One outbox shared by several processes, some of which are killed.
//!
//! The processes run this test program again. With `TWINLOCK_TEST_ROLE` set, [`child_process__does_nothing_without_a_role`]
//! plays that role instead of being a test.

use std::collections::{HashMap, HashSet};
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use twinlock_client::home::Home;
use twinlock_client::outbox::{Ack, Outbox};
use twinlock_client::state::State;
use twinlock_core::id::{Link, MessageId, Name, ServerKey};
use twinlock_transport::OsEntropy;

const TARGETS: [&str; 3] = ["ops", "lobby", "@bob"];
/// Number of messages that each sending process enqueues.
const EACH: usize = 150;

fn open(home: &Path) -> Outbox {
    let name = |name| Name::new(name).unwrap();
    let key = ServerKey([1; 32]);
    State::open_for(&Home::at(home), &name("p"), &key, &name("ada")).unwrap().outbox()
}

fn spawn(role: &str, home: &Path, port: u16) -> Child {
    Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "state_processes::child_process__does_nothing_without_a_role",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("TWINLOCK_TEST_ROLE", role)
        .env("TWINLOCK_TEST_HOME", home)
        .env("TWINLOCK_TEST_PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The entry point of the child processes; does nothing as a test.
#[test]
fn child_process__does_nothing_without_a_role() {
    let Ok(role) = env::var("TWINLOCK_TEST_ROLE") else { return };
    let home = env::var_os("TWINLOCK_TEST_HOME").unwrap();
    let outbox = open(Path::new(&home));
    let port = env::var("TWINLOCK_TEST_PORT").unwrap().parse().unwrap();
    match role.as_str() {
        "write-until-killed" => write_until_killed(&outbox),
        "send" => send(&outbox, port, EACH),
        "send-until-killed" => send(&outbox, port, usize::MAX),
        _ => panic!("no such role"),
    }
}

/// Prints each id after `enqueue` has returned.
fn write_until_killed(outbox: &Outbox) {
    let mut out = std::io::stdout();
    for i in 0_u32.. {
        let id =
            outbox.enqueue(TARGETS[i as usize % 3], &i.to_be_bytes(), 1, &mut OsEntropy).unwrap();
        writeln!(out, "enqueued {id}").unwrap();
    }
}

/// Enqueues `count` messages while it sends, and ends when no process has a pending message.
fn send(outbox: &Outbox, port: u16, count: usize) {
    let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut written = 0;
    while written < count || outbox.pending_count().unwrap() > 0 {
        if written < count {
            let target = TARGETS[written % 3];
            outbox.enqueue_many([(target, &b"x"[..]); 3], 1, &mut OsEntropy).unwrap();
            written += 3;
        }
        let claimed = outbox.claim(7).unwrap();
        if claimed.is_empty() && written >= count {
            // Another process has claimed the rest.
            thread::sleep(Duration::from_millis(1));
        }
        let mut acks = Vec::new();
        for message in claimed {
            server.write_all(&message.message_id.0).unwrap();
            let mut n = [0; 8];
            server.read_exact(&mut n).unwrap();
            let n = u64::from_be_bytes(n);
            let link = Link([n as u8; 32]);
            acks.push((
                message.message_id,
                Ack { conversation: 1, n, time_ms: n, salt: None, link },
            ));
        }
        outbox.mark_recorded_many(&acks).unwrap();
    }
}

/// The fake server's record: a number for each id, and the same number for a repeated id.
#[derive(Default)]
struct Record {
    numbers: HashMap<[u8; 16], u64>,
    order: Vec<[u8; 16]>,
    received: usize,
}

fn serve(listener: TcpListener, record: &Arc<Mutex<Record>>) {
    for line in listener.incoming() {
        let (mut line, record) = (line.unwrap(), Arc::clone(record));
        thread::spawn(move || {
            let mut id = [0; 16];
            while line.read_exact(&mut id).is_ok() {
                let n = {
                    let mut record = record.lock().unwrap();
                    record.received += 1;
                    let next = record.numbers.len() as u64 + 1;
                    let n = *record.numbers.entry(id).or_insert(next);
                    if n == next {
                        record.order.push(id);
                    }
                    n
                };
                if line.write_all(&n.to_be_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

/// Message ids by target: as the fake server recorded them, and as they were enqueued.
fn orders(home: &Path, order: &[[u8; 16]]) -> [HashMap<String, Vec<[u8; 16]>>; 2] {
    let path = Home::at(home).state(&Name::new("p").unwrap()).join("state.db");
    let conn = rusqlite::Connection::open(path).unwrap();
    let mut select = conn.prepare("SELECT target, message_id FROM outbox ORDER BY seq").unwrap();
    let rows: Vec<(String, [u8; 16])> = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let targets: HashMap<[u8; 16], &String> =
        rows.iter().map(|(target, id)| (*id, target)).collect();
    let mut sorted = [HashMap::<String, Vec<[u8; 16]>>::new(), HashMap::new()];
    for id in order {
        sorted[0].entry(targets[id].clone()).or_default().push(*id);
    }
    for (target, id) in &rows {
        sorted[1].entry(target.clone()).or_default().push(*id);
    }
    sorted
}

#[test]
fn outbox__enqueued_messages_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let mut child = spawn("write-until-killed", dir.path(), 0);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told = Vec::new();
        for line in lines {
            // The last line may be incomplete.
            let line = line.unwrap();
            let hex = line.split_once("enqueued ").map(|(_, hex)| hex);
            told.extend(hex.and_then(MessageId::from_hex));
            if told.len() == 100 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(told.len() >= 100, "it died by itself");
        let pending = open(dir.path()).pending(usize::MAX).unwrap();
        let pending: HashSet<_> = pending.iter().map(|message| message.message_id).collect();
        assert!(told.iter().all(|id| pending.contains(id)));
    }
}

#[test]
fn outbox__shared_by_processes_keeps_order_despite_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let record = Arc::new(Mutex::new(Record::default()));
    let shared = Arc::clone(&record);
    thread::spawn(move || serve(listener, &shared));

    let mut victim = spawn("send-until-killed", dir.path(), port);
    let senders = [(); 2].map(|()| spawn("send", dir.path(), port));
    // The victim can be at any point then; the test must pass for each.
    while record.lock().unwrap().order.len() < EACH {
        assert!(victim.try_wait().unwrap().is_none(), "it died by itself");
        thread::sleep(Duration::from_millis(1));
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    for sender in senders {
        let output = sender.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    assert_eq!(open(dir.path()).pending_count(), Ok(0));
    let record = record.lock().unwrap();
    let [recorded, enqueued] = orders(dir.path(), &record.order);
    assert_eq!(recorded, enqueued);
    assert!(record.order.len() >= 2 * EACH);
    // At most the victim's claimed messages were sent twice.
    assert!(record.received <= record.order.len() + 7, "{} sent", record.received);
}
