//! `bench` against a real server: its figures match the record, and it names the limit that
//! prevents a measurement.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::common::*;
use rustix::process::Signal;
use serde_json::Value;

/// A small and quick shape, unless a test asks for another.
const SHAPE: &[[&str; 2]] = &[
    ["--lines", "3"],
    ["--window", "4"],
    ["--size", "40"],
    ["--file", "300K"],
    ["--seconds", "0.2"],
];

fn bench(person: &Person, args: &[&str]) -> Ran {
    let shape = SHAPE.iter().filter(|[option, _]| !args.contains(option)).flatten();
    let all: Vec<&str> = ["bench"].iter().chain(shape).chain(args).copied().collect();
    person.run(&all)
}

/// The measurements by name.
fn measured(ran: &Ran) -> BTreeMap<String, Value> {
    ran.json().into_iter().map(|json| (json["what"].as_str().unwrap().to_owned(), json)).collect()
}

fn number(json: &Value, field: &str) -> u64 {
    json[field].as_u64().unwrap_or_else(|| panic!("{field}: {json}"))
}

/// Everything in a room that the person has left.
fn entries(person: &Person, room: &str) -> Vec<Value> {
    person.run(&["room", "join", room]).exits(0);
    person.reads(room)
}

fn count(entries: &[Value], kind: &str) -> u64 {
    entries.iter().filter(|entry| entry["kind"] == kind).count() as u64
}

#[test]
fn bench__measurements_match_record() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "before"]).exits(0);
    let pid = host.running().pid().to_string();
    let ran = bench(&ada, &["--json", "--server-pid", &pid]).exits(0);
    assert!(ran.err.contains("bench-") && ran.err.contains("stay there"), "{ran:?}");
    let all = measured(&ran);
    let what: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(what, ["fanout", "get", "idle", "logins", "messages", "put"]);
    let room = all["messages"]["room"].as_str().unwrap();
    for (what, json) in &all {
        assert_eq!(json["room"], room, "{json}");
        assert!(number(json, "count") <= number(json, "total"), "{json}");
        assert!(number(json, "total") > 0, "{json}");
        assert!(number(&json["server"], "resident_bytes") > 1 << 20, "{json}");
        if ["messages", "fanout", "logins"].contains(&what.as_str()) && number(json, "count") > 0 {
            let latency = &json["latency_us"];
            let steps = ["p50", "p90", "p99", "p999", "max"].map(|step| number(latency, step));
            assert!(steps.is_sorted() && steps[0] > 0, "{json}");
        }
    }
    assert_eq!(number(&all["idle"], "total"), 3);
    // No one is left in the room, and it is not among the person's rooms.
    assert!(!ada.run(&["rooms"]).exits(0).out.contains(room));
    let entries = entries(&ada, room);
    // Each message of the fan-out was delivered to three.
    let (acks, deliveries) = (number(&all["messages"], "total"), number(&all["fanout"], "total"));
    assert_eq!(deliveries % 3, 0);
    assert_eq!(count(&entries, "text"), acks + deliveries / 3);
    let said: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "text").cloned().collect();
    let texts = texts(&said);
    assert!(texts.iter().all(|text| text.len() == 40 && text.contains(' ')), "{:?}", texts[0]);
    let files: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "file").collect();
    assert_eq!(files.len(), 1);
    assert_eq!(number(&files[0]["file"], "size"), 300 * 1024);
    assert_eq!(number(&all["get"], "count"), 300 * 1024);
    // Other conversations received nothing.
    assert_eq!(texts_of(&ada, "lobby"), ["before"]);
    assert_eq!(ada.run(&["people"]).exits(0).out.lines().count(), 1);
}

fn texts_of(person: &Person, target: &str) -> Vec<String> {
    texts(&person.reads(target)).into_iter().map(str::to_owned).collect()
}

#[test]
fn bench__table_has_row_per_measurement_and_aligned_columns() {
    let host = Host::start();
    let ada = host.owner();
    let ran = bench(&ada, &["default", "--mode", "messages,files", "--quiet"]).exits(0);
    assert_eq!(ran.err, "");
    let rows: Vec<_> = ran.out.lines().collect();
    let names: Vec<_> = rows.iter().map(|row| row[..8].trim()).collect();
    assert_eq!(names, ["", "messages", "put", "get"]);
    assert!(rows[1].contains(" acks ") && rows[2].contains(" MB "), "{}", ran.out);
    let length = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == length && length <= 80), "{}", ran.out);
    // The server's usage is known only for a process that was named.
    assert!(!ran.out.contains("CPU"), "{}", ran.out);
    let pid = host.running().pid().to_string();
    let ran = bench(&ada, &["--mode", "messages,idle", "--server-pid", &pid]).exits(0);
    assert!(ran.out.contains(" us CPU each") && ran.out.contains(" KiB a line"), "{}", ran.out);
}

#[test]
fn bench__sessions_over_user_limit_need_more_users() {
    let host = Host::start();
    let ada = host.owner();
    for mode in ["messages", "idle", "fanout"] {
        let ran = bench(&ada, &["--mode", mode, "--lines", "40"]).exits(7);
        assert!(ran.err.contains("sessions-per-device") && ran.err.contains("--users"), "{ran:?}");
        assert!(!ran.out.contains(mode), "{ran:?}");
    }
    let args = ["--mode", "idle,messages,fanout", "--lines", "40", "--users", "3", "--json"];
    let ran = bench(&ada, &args).exits(0);
    let all = measured(&ran);
    assert_eq!(number(&all["idle"], "total"), 40);
    let room = all["messages"]["room"].as_str().unwrap();
    let (acks, deliveries) = (number(&all["messages"], "total"), number(&all["fanout"], "total"));
    assert_eq!(count(&entries(&ada, room), "text"), acks + deliveries / 40);
    // Only the names of the users remain: each has revoked its device.
    let people = ada.run(&["people", "--json"]).exits(0).json();
    assert_eq!(people.len(), 4);
    let log = host.log();
    assert_eq!(log.matches("device revoked").count(), 3);
}

#[test]
fn bench__invalid_or_refused_arguments_are_reported() {
    let host = Host::start();
    let ada = host.owner();
    let ran = bench(&ada, &["--mode", "messages", "--window", "1025"]).exits(7);
    assert!(ran.err.contains("1024"), "{ran:?}");
    let bob = host.member(&ada, "bob");
    let ran = bench(&bob, &["--mode", "idle", "--users", "2"]).exits(7);
    assert!(ran.err.contains("may not"), "{ran:?}");
    for bad in [
        &["--mode", "everything"][..],
        &["--lines", "0"],
        &["--size", "32769"],
        &["--seconds", "0"],
        &["--file", "much"],
        &["--server-pid", "4294967295"],
        &["--lines", "1000000"],
        &["default", "--profile", "default"],
        &["nobody"],
    ] {
        let ran = ada.run(&[&["bench"], bad].concat()).exits(2);
        assert!(ran.out.is_empty() && !ran.err.is_empty(), "{bad:?}: {ran:?}");
    }
}

/// Starts a measurement of an hour, and waits until some of it is recorded.
fn started(host: &Host, ada: &Person, args: &[&str]) -> (Running, String) {
    let fixed = ["bench", "--mode", "messages,logins", "--seconds", "3600", "--json"];
    let running = ada.start(&[&fixed[..], args].concat());
    running.wait_err("stay there");
    let said = running.err();
    let at = said.find("bench-").unwrap();
    let room = said[at..at + "bench-12345678".len()].to_owned();
    let bob = host.member(ada, "bob");
    bob.run(&["room", "join", &room]).exits(0);
    let until = Instant::now() + LONG;
    while bob.run(&["history", &room, "--limit", "1"]).exits(0).out.is_empty() {
        assert!(Instant::now() < until, "nothing is recorded");
    }
    (running, room)
}

#[test]
fn bench__interrupt_reports_partial_results() {
    let host = Host::start();
    let ada = host.owner();
    let (running, room) = started(&host, &ada, &[]);
    running.signal(Signal::INT);
    let ran = running.ended(LONG).exits(130);
    // No other measurement was started.
    let all = measured(&ran);
    assert_eq!(all.len(), 1);
    let total = number(&all["messages"], "total");
    assert!(total > 0);
    assert_eq!(count(&entries(&ada, &room), "text"), total);
}

#[test]
fn bench__timeout_reports_partial_results() {
    let host = Host::start();
    let ada = host.owner();
    let args = ["bench", "--mode", "messages", "--seconds", "3600", "--json", "--timeout", "500ms"];
    let ran = ada.run(&args).exits(9);
    let all = measured(&ran);
    let room = all["messages"]["room"].as_str().unwrap();
    let total = number(&all["messages"], "total");
    assert_eq!(count(&entries(&ada, room), "text"), total);
}

#[test]
fn bench__lost_or_missing_server_exits_5() {
    let mut host = Host::start();
    let ada = host.owner();
    let (running, _) = started(&host, &ada, &[]);
    host.kill();
    let ran = running.ended(LONG).exits(5);
    assert!(ran.err.contains("connection was lost") && ran.out.is_empty(), "{ran:?}");
    bench(&ada, &[]).exits(5);
}
