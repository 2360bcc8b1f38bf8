//! The disk of a server as a test sees it: everything that the real binary writes and syncs, in
//! its order, with the acks between them; and orders to fail. The server is loaded with a small
//! library (`shim.c`, made by `cc`), so this is for Linux only.

pub mod image;
pub mod life;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What stands in the log before each of its records: `struct record` of `shim.c`.
pub const HEAD: usize = 32;
/// An ack, written into the log by the test.
pub const MARK: u32 = 11;

/// A library, a log and orders, beside the directory that is watched.
pub struct Disk {
    dir: TempDir,
    root: PathBuf,
    log: File,
    orders: File,
}

/// One file and one thread that something is done to.
#[derive(Debug, Clone, Copy)]
pub struct Aim {
    /// How the file's path ends.
    pub file: &'static str,
    /// As the server calls it; empty: any.
    pub thread: &'static str,
}

/// What is done where it is aimed; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    FailSync,
    FailWrite,
    /// The next write waits until it is released.
    Hold,
}

impl Deed {
    /// Where its `struct aim` stands in the orders.
    fn place(self) -> u64 {
        32 + 56 * self as u64
    }
}

pub const EIO: u32 = 5;
pub const ENOSPC: u32 = 28;

/// What the disk does from now on. By default it does what it should, at once.
#[derive(Debug, Default, Clone, Copy)]
pub struct Orders {
    /// What writes and new names fail with; 0: nothing.
    pub write_error: u32,
    /// What syncs fail with.
    pub sync_error: u32,
    /// One in so many of them, at random; 0: all.
    pub one_in: u32,
    /// How long a sync takes at most, microseconds.
    pub longest_sync: u32,
    /// Syncs that do nothing.
    pub unsynced: Unsynced,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    #[default]
    None,
    Files = 1,
    Directories = 2,
}

impl Disk {
    /// Watches what a server does below `root`, which is there and empty.
    pub fn watching(root: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/disk/shim.c");
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
        cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(dir.path().join("shim.so"));
        let made = cc.arg(source).arg("-ldl").output().expect("a C compiler, as SQLite needs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let options = |append: bool| {
            let mut options = OpenOptions::new();
            options.read(true).write(!append).append(append).create(true);
            options
        };
        let log = options(true).open(dir.path().join("log")).unwrap();
        let orders = options(false).open(dir.path().join("orders")).unwrap();
        orders.set_len(4096).unwrap();
        Self { dir, root: root.canonicalize().unwrap(), log, orders }
    }

    /// What the server is started with.
    pub fn env(&self) -> Vec<(String, PathBuf)> {
        let of = |name: &str, path: PathBuf| (name.to_owned(), path);
        let in_dir = |name: &str| self.dir.path().join(name);
        vec![
            of("LD_PRELOAD", in_dir("shim.so")),
            of("DISK_ROOT", self.root.clone()),
            of("DISK_LOG", in_dir("log")),
            of("DISK_ORDERS", in_dir("orders")),
        ]
    }

    /// Holds for every write and sync that begins from now on.
    pub fn order(&self, orders: Orders) {
        let Orders { write_error, sync_error, one_in, longest_sync, unsynced } = orders;
        let all = [write_error, sync_error, one_in, longest_sync, unsynced as u32];
        let bytes: Vec<_> = all.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.orders.write_all_at(&bytes, 0).unwrap();
    }

    /// How many writes and syncs have failed as ordered.
    pub fn faults(&self) -> u32 {
        let mut count = [0; 4];
        self.orders.read_exact_at(&mut count, 20).unwrap();
        u32::from_le_bytes(count)
    }

    /// Does something to the next so many syncs or writes of one file by one thread.
    pub fn aim(&self, deed: Deed, aim: Aim, times: u32, error: u32) {
        self.release(deed);
        let mut words = [0; 44];
        words[..aim.file.len()].copy_from_slice(aim.file.as_bytes());
        words[28..28 + aim.thread.len()].copy_from_slice(aim.thread.as_bytes());
        self.orders.write_all_at(&words, deed.place() + 12).unwrap();
        self.orders.write_all_at(&error.to_le_bytes(), deed.place() + 8).unwrap();
        self.orders.write_all_at(&0_u32.to_le_bytes(), deed.place() + 4).unwrap();
        self.orders.write_all_at(&times.to_le_bytes(), deed.place()).unwrap();
    }

    /// Nothing is done any more where that was aimed; whatever is held goes on.
    pub fn release(&self, deed: Deed) {
        self.orders.write_all_at(&0_u32.to_le_bytes(), deed.place()).unwrap();
    }

    /// How often that was done since it was aimed.
    pub fn hits(&self, deed: Deed) -> u32 {
        let mut count = [0; 4];
        self.orders.read_exact_at(&mut count, deed.place() + 4).unwrap();
        u32::from_le_bytes(count)
    }

    /// From now on what a failed sync was to bring is gone from the file as well, as where a kernel
    /// drops such pages and reads them again.
    pub fn forget_what_fails(&self) {
        self.orders.write_all_at(&1_u32.to_le_bytes(), 28).unwrap();
    }

    /// The server is killed before the change that comes after so many others.
    pub fn kill_after(&self, changes: u32) {
        self.orders.write_all_at(&(changes + 1).to_le_bytes(), 24).unwrap();
    }

    /// Says in the log that something was acknowledged by now.
    pub fn mark(&self, ack: &str) {
        let mut record = vec![0; HEAD];
        record[..4].copy_from_slice(&MARK.to_le_bytes());
        record[24..28].copy_from_slice(&u32::try_from(ack.len()).unwrap().to_le_bytes());
        record.extend_from_slice(ack.as_bytes());
        // At once, as the library does.
        assert_eq!((&self.log).write(&record).unwrap(), record.len());
    }

    /// All that was written down.
    pub fn log(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("log")).unwrap()
    }
}
