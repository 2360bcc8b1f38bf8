//! Servers on data directories that a test prepares or damages.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use serde_json::Value;
use twinlock_core::id::Link;
use twinlock_testing::record_files::LoggedEntry;

pub fn serve(data: &Path, args: &[&str]) -> Running {
    let mut command = twinlock();
    command.arg("serve").arg("--data").arg(data).args(["--port", "0"]).args(args);
    Running::start(&mut command)
}

/// A stopped server with a file and two texts.
pub fn full(kill: bool) -> (Host, Person) {
    let mut host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "one"]).exits(0);
    let file = host.root().join("file.txt");
    fs::write(&file, "content of a file").unwrap();
    ada.run(&["put", file.to_str().unwrap(), "lobby"]).exits(0);
    ada.run(&["send", "lobby", "two"]).exits(0);
    if kill {
        host.kill()
    } else {
        drop(host.terminate().exits(0))
    }
    (host, ada)
}

/// An entry in the log of a server that is stopped; `shown` is its JSON.
pub fn logged(data: &Path, shown: &Value) -> LoggedEntry {
    let link = data_encoding::HEXLOWER.decode(shown["link"].as_str().unwrap().as_bytes());
    LoggedEntry::find(data, &Link(link.unwrap().try_into().unwrap()))
}

pub fn move_away(host: &Host, part: &str) -> PathBuf {
    let kept = host.root().join("kept");
    fs::create_dir_all(&kept).unwrap();
    let to = kept.join(part.replace('/', "_"));
    fs::rename(host.data().join(part), &to).unwrap();
    to
}
