//! A conversion that is killed at any moment leaves one form whole, and the next one completes it.
//!
//! `TWINLOCK_TORTURE=full` (`make torture`) kills 50 times; this one 5 times.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use twinlock_core::id::Link;
use twinlock_store::LOBBY;
use twinlock_store_embedded::convert;

use crate::common::contract::*;
use crate::common::links;
use crate::common::old_record::{grow, links_of};
use crate::convert::{convert, open_new};

const CHILD: &str = "TWINLOCK_CONVERSION_KILLED";
const NAME: &str = "convert_kill::convert__killed_at_any_moment_loses_nothing";
/// Entries, so that the conversion takes some hundred milliseconds.
const ENTRIES: usize = 20_000;
fn kills() -> u32 {
    match std::env::var("TWINLOCK_TORTURE").as_deref() {
        Ok("full") => 50,
        Ok(other) => panic!("TWINLOCK_TORTURE={other}: it is full or not set"),
        Err(_) => 5,
    }
}

#[tokio::test]
async fn convert__killed_at_any_moment_loses_nothing() {
    if let Some(dir) = std::env::var_os(CHILD) {
        convert(Path::new(&dir)).unwrap();
        return;
    }
    let original = crate::convert::fixture();
    let mut conn = Connection::open(crate::convert::database(&original)).unwrap();
    let texts: Vec<_> =
        (0..ENTRIES).map(|n| format!("entry {n} {}", "x".repeat(n % 400))).collect();
    grow(&mut conn, LOBBY, &texts);
    let before = links_of(&conn, LOBBY);
    conn.close().unwrap();
    let original = original.path().join("record.db");

    let begin = Instant::now();
    let dir = copy(&original);
    let mut whole = child(dir.path());
    wait(&mut whole, is_new(dir.path().join("record.db.new")));
    let switching = Instant::now();
    whole.wait().unwrap();
    let (whole, switch) = (begin.elapsed(), switching.elapsed());
    assert_links(dir.path(), &before).await;

    let (mut old, mut resumed, mut done) = (0, 0, 0);
    let mut dir = copy(&original);
    for kill in 0..kills() {
        let mut child = child(dir.path());
        // At any time, while the log is read again, while the switch is prepared, and in it.
        let new = |file| is_new(dir.path().join(file));
        let pause = match kill % 4 {
            0 => whole.mul_f64(random()),
            1 => {
                wait(&mut child, new("record.new/people.db"));
                Duration::ZERO
            }
            2 => {
                wait(&mut child, new("record.db.new"));
                switch.mul_f64(random())
            }
            _ => {
                wait(&mut child, || is_replaced(dir.path()));
                Duration::ZERO
            }
        };
        std::thread::sleep(pause);
        child.kill().unwrap();
        child.wait().unwrap();
        let directory = dir.path().join("record");
        if convert::is_due(&dir.path().join("record.db"), &directory).unwrap() {
            // The old record is whole as long as the new one does not count.
            if !is_replaced(dir.path()) {
                old += 1;
                assert!(
                    fs::read(dir.path().join("record.db")).unwrap() == fs::read(&original).unwrap()
                );
                // The next start is killed too.
                if kill % 2 == 0 {
                    continue;
                }
            } else {
                resumed += 1;
            }
            convert(dir.path()).unwrap();
        } else {
            done += 1;
        }
        assert_links(dir.path(), &before).await;
        dir = copy(&original);
    }
    assert!(old > 0, "no kill came before the switch: {resumed} in it, {done} after it");
    println!(
        "killed in {whole:?}, {switch:?} of it the switch: {old} before the switch, {resumed} in it, {done} after it"
    );
}

fn child(dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until this holds, or the child has ended.
fn wait(child: &mut std::process::Child, holds: impl Fn() -> bool) {
    while !holds() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// Whether a file was made from now on: an earlier child may have left one.
fn is_new(path: PathBuf) -> impl Fn() -> bool {
    let begin = SystemTime::now();
    move || fs::metadata(&path).and_then(|meta| meta.modified()).is_ok_and(|at| at > begin)
}

fn copy(original: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(original, dir.path().join("record.db")).unwrap();
    dir
}

fn is_replaced(dir: &Path) -> bool {
    let bytes = fs::read(dir.join("record.db")).unwrap();
    bytes[60..64] == 9u32.to_be_bytes()
}

async fn assert_links(dir: &Path, before: &[Link]) {
    let store = open_new(dir);
    assert!(links(&*store, LOBBY).await.unwrap() == before);
    store.close().await.unwrap();
    let names = fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["record", "record.db", "record.db.before-log", "record.lock"]);
}

/// A number from 0 to 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).unwrap();
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}
