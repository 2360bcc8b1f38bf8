//! The guarantee of an ack: after a kill at any moment, no acknowledged entry is missing.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::contract::*;
use crate::common::{check, entry, full, join, links, name, open, say};
use twinlock_store::{Appended, LOBBY};

const CHILD: &str = "TWINLOCK_STORE_KILLED";
/// Kills in `make test` and in `make torture`.
const ROUNDS: [usize; 2] = [12, 500];
/// Kills of one record, which is read as a whole after each.
const ROUNDS_OF_RECORD: usize = 20;
const TASKS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record__acked_entries_survive_a_kill() {
    if let Some(dir) = std::env::var_os(CHILD) {
        record_until_killed(Path::new(&dir)).await;
        return;
    }
    let mut rounds = ROUNDS[usize::from(full())];
    while rounds > 0 {
        let of_record = rounds.min(ROUNDS_OF_RECORD);
        kill_and_check(of_record).await;
        rounds -= of_record;
    }
}

/// Kills a recording process this many times, and looks after each kill for what it acknowledged.
async fn kill_and_check(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: HashMap<(u64, u64), String> = HashMap::new();
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "record_kill::record__acked_entries_survive_a_kill", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // From no ack to some thousand; the first kill can also hit the creation of the record.
        let lines = (round % 20) * (round % 20) * 25;
        let mut acks: Vec<_> = out.by_ref().filter(|l| l.starts_with("ack ")).take(lines).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        // Acks in the pipe count too.
        acks.extend(out.filter(|l| l.starts_with("ack ") && l.ends_with(" .")));
        assert!(acks.len() >= lines, "the child ended by itself in round {round}");
        for ack in &acks {
            let [_, conversation, n, link, _] = ack.split(' ').collect::<Vec<_>>()[..] else {
                continue;
            };
            let place = (conversation.parse().unwrap(), n.parse().unwrap());
            let twice = acked.insert(place, link.to_owned());
            assert_eq!(twice, None, "a place was given twice");
        }
        // What a start would find: sound, whatever was being written.
        if let Some(report) = check(dir.path()) {
            assert!(report.is_sound(), "round {round}: {report:#?}");
            assert!(report.entries >= acked.len() as u64, "round {round}: {report:#?}");
        }
        let store = open(dir.path());
        for conversation in [LOBBY, LOBBY + 1] {
            let links = links(&*store, conversation).await.unwrap();
            let mine = acked.iter().filter(|((c, _), _)| *c == conversation);
            for ((_, n), link) in mine {
                let there = links.get(usize::try_from(*n).unwrap() - 1);
                let there = there.map(ToString::to_string);
                assert_eq!(there.as_ref(), Some(link), "entry {n} after round {round}");
            }
        }
        drop(store);
    }
    assert!(acked.len() > 5_000, "only {} entries were acknowledged", acked.len());
    let store = open(dir.path());
    let last = say(&*store, entry(LOBBY, "user0", "after all that")).await;
    assert_eq!(links(&*store, LOBBY).await.unwrap().len() as u64, last.n);
}

async fn record_until_killed(dir: &Path) {
    let store = open(dir);
    for task in 0..TASKS {
        let user = format!("user{task}");
        if store.person(&name(&user)).await.unwrap().is_none() {
            join(&*store, &user).await;
        }
    }
    let room = match store.create_room(&name("user0"), &name("ops"), "").await.unwrap() {
        Some(room) => room,
        None => store.room(&name("user0"), &name("ops")).await.unwrap().unwrap(),
    };
    for task in 0..TASKS {
        let store = store.clone();
        tokio::spawn(async move {
            let user = format!("user{task}");
            store.join_room(&name(&user), &name("ops")).await.unwrap();
            for i in 0.. {
                let batch: Vec<_> = (0..1 + i % 5)
                    .map(|k| {
                        let conversation = if k % 2 == 0 { LOBBY } else { room.id };
                        entry(conversation, &user, &"x".repeat(20 + i % 3000))
                    })
                    .collect();
                let mut acks = String::new();
                for answer in store.append(batch).await.unwrap() {
                    let Appended::Recorded(receipt) = answer else { unreachable!() };
                    let (conversation, n, link) = (receipt.conversation, receipt.n, receipt.link);
                    acks.push_str(&format!("ack {conversation} {n} {link} .\n"));
                }
                std::io::stdout().lock().write_all(acks.as_bytes()).unwrap();
            }
        });
    }
    // Ends the process if its parent is gone.
    tokio::time::sleep(Duration::from_secs(30)).await;
}
