//! The cost of a message on the client's disk, measured on the real process: syncs of files and of
//! directories.

#![cfg(target_os = "linux")]

use crate::common::*;
use crate::disk::Disk;

/// `SYNC` of `disk/shim.c`: a sync has begun.
const SYNC: u32 = 5;

/// Counts the syncs of a command of `person` that exits with `code`.
fn syncs(person: &Person, args: &[&str], input: &str, code: i32) -> usize {
    let disk = Disk::watching(&person.home);
    let mut command = person.command(args);
    command.envs(disk.env());
    let mut running = Running::start(&mut command);
    running.write(input);
    running.ended(LONG).exits(code);
    let (log, mut at, mut count) = (disk.log(), 0, 0);
    let word = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().unwrap());
    while at < log.len() {
        count += usize::from(word(at) == SYNC);
        at += crate::disk::HEAD + (word(at + 24) + word(at + 28)) as usize;
    }
    count
}

#[test]
fn send__one_message_costs_at_most_three_fsyncs() {
    let host = Host::start();
    let ada = host.owner();
    // The first one creates the database.
    ada.run(&["send", "lobby", "first"]).exits(0);
    for text in ["1", "2", "3"] {
        let count = syncs(&ada, &["send", "lobby", text], "", 0);
        // One sync before the message is sent, and one before its ack is reported.
        assert!((2..=3).contains(&count), "{count} syncs");
    }
    let lines = "one\ntwo\nthree\nfour\n".repeat(10);
    let count = syncs(&ada, &["send", "lobby"], &lines, 0);
    assert!(count < 40, "{count} syncs for 40 lines");
    assert_eq!(ada.reads("lobby").len(), 44);
    ada.run(&["audit", "verify"]).exits(0);
}

#[test]
fn send__refusals_are_batched_into_few_fsyncs() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "first"]).exits(0);
    let count = syncs(&ada, &["send", "nowhere"], &"words\n".repeat(40), 7);
    assert!(count < 20, "{count} syncs for 40 refusals");
}
