//! A server's disk under observation: every write and sync of the real binary in order, with the
//! acks between them. A test can also order failures. The server loads a small library (`shim.c`,
//! built with `cc`), so this is for Linux only.

pub mod image;
pub mod life;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Size of the header of a log record: `struct record` of `shim.c`.
pub const HEAD: usize = 32;
/// An ack, written into the log by the test.
pub const MARK: u32 = 11;

/// The library, the log and the orders, outside the watched directory.
pub struct Disk {
    dir: TempDir,
    root: PathBuf,
    log: File,
    orders: File,
}

/// The file and the thread that a deed affects.
#[derive(Debug, Clone, Copy)]
pub struct Aim {
    /// The end of the file's path.
    pub file: &'static str,
    /// The server's name for the thread; empty: any.
    pub thread: &'static str,
}

/// The action on the target; none by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    FailSync,
    FailWrite,
}

impl Deed {
    /// The offset of its `struct aim` in the orders.
    fn place(self) -> u64 {
        32 + 56 * self as u64
    }
}

pub const EIO: u32 = 5;
pub const ENOSPC: u32 = 28;

/// The behaviour of the disk from now on. By default every operation succeeds at once.
#[derive(Debug, Default, Clone, Copy)]
pub struct Orders {
    /// The error of writes and of new names; 0: none.
    pub write_error: u32,
    /// The error of syncs.
    pub sync_error: u32,
    /// One in this many fails, at random; 0: all.
    pub one_in: u32,
    /// Longest duration of a sync, microseconds.
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
    /// Watches a server below `root`, which exists and is empty.
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

    /// The environment variables for the server.
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

    /// Applies to every write and sync that begins from now on.
    pub fn order(&self, orders: Orders) {
        let Orders { write_error, sync_error, one_in, longest_sync, unsynced } = orders;
        let all = [write_error, sync_error, one_in, longest_sync, unsynced as u32];
        let bytes: Vec<_> = all.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.orders.write_all_at(&bytes, 0).unwrap();
    }

    /// The number of writes and syncs that failed as ordered.
    pub fn faults(&self) -> u32 {
        let mut count = [0; 4];
        self.orders.read_exact_at(&mut count, 20).unwrap();
        u32::from_le_bytes(count)
    }

    /// Applies a deed to the next `times` syncs or writes of one file by one thread.
    pub fn aim(&self, deed: Deed, aim: Aim, times: u32, error: u32) {
        self.orders.write_all_at(&0_u32.to_le_bytes(), deed.place()).unwrap();
        let mut words = [0; 44];
        words[..aim.file.len()].copy_from_slice(aim.file.as_bytes());
        words[28..28 + aim.thread.len()].copy_from_slice(aim.thread.as_bytes());
        self.orders.write_all_at(&words, deed.place() + 12).unwrap();
        self.orders.write_all_at(&error.to_le_bytes(), deed.place() + 8).unwrap();
        self.orders.write_all_at(&0_u32.to_le_bytes(), deed.place() + 4).unwrap();
        self.orders.write_all_at(&times.to_le_bytes(), deed.place()).unwrap();
    }

    /// How often the deed happened since it was aimed.
    pub fn hits(&self, deed: Deed) -> u32 {
        let mut count = [0; 4];
        self.orders.read_exact_at(&mut count, deed.place() + 4).unwrap();
        u32::from_le_bytes(count)
    }

    /// From now on, data of a failed sync also disappears from the file, as with a kernel that
    /// drops such pages and reads them again.
    pub fn forget_what_fails(&self) {
        self.orders.write_all_at(&1_u32.to_le_bytes(), 28).unwrap();
    }

    /// Kills the server after this many changes, before the next one.
    pub fn kill_after(&self, changes: u32) {
        self.orders.write_all_at(&(changes + 1).to_le_bytes(), 24).unwrap();
    }

    /// Logs that something was acknowledged by now.
    pub fn mark(&self, ack: &str) {
        let mut record = vec![0; HEAD];
        record[..4].copy_from_slice(&MARK.to_le_bytes());
        record[24..28].copy_from_slice(&u32::try_from(ack.len()).unwrap().to_le_bytes());
        record.extend_from_slice(ack.as_bytes());
        // In a single write, as the library does.
        assert_eq!((&self.log).write(&record).unwrap(), record.len());
    }

    /// The whole log.
    pub fn log(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("log")).unwrap()
    }
}
