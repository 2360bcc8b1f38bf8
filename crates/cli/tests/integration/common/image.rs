//! Searches the memory of a server's process, as a core dump would contain it.
//!
//! A server denies access to its memory: once the process is not dumpable, even its own user cannot
//! open `/proc/PID/mem`. A file that was opened earlier stays readable. So a watched server reads
//! its configuration from a pipe, and is opened while it waits there. At that moment it already
//! runs this program but has not denied access yet. This works for every user; it fails where the
//! system forbids reading child processes (`ptrace_scope` 2 and above).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};

use crate::common::{Host, LONG};

const PAGE: usize = 4096;

/// A process whose memory can be read.
pub struct Image {
    maps: File,
    mem: File,
}

impl Image {
    /// Opens a process that is accessible now; it may deny access later.
    fn of(pid: u32) -> Self {
        let open = |what: &str| {
            File::open(format!("/proc/{pid}/{what}"))
                .unwrap_or_else(|error| panic!("the memory of a child cannot be read: {error}"))
        };
        Self { maps: open("maps"), mem: open("mem") }
    }

    /// Whether the process's memory can be opened now.
    pub fn can_be_opened(pid: u32) -> bool {
        File::open(format!("/proc/{pid}/mem")).is_ok()
    }

    /// All writable memory, with its location: stacks, heaps, static data. Pages that were never
    /// written are left out.
    pub fn read(&mut self) -> Vec<(String, Vec<u8>)> {
        let mut maps = String::new();
        self.maps.seek(SeekFrom::Start(0)).unwrap();
        self.maps.read_to_string(&mut maps).unwrap();
        let mut all = Vec::new();
        for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with("rw")) {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
            let name = line.split_whitespace().nth(5).unwrap_or("anonymous");
            let mut bytes = vec![0; (to - from) as usize];
            // A mapping that no longer exists belonged to a thread that has ended.
            if self.mem.read_exact_at(&mut bytes, from).is_err() {
                continue;
            }
            let mut start = 0;
            let pages: Vec<bool> =
                bytes.chunks(PAGE).map(|page| page.iter().any(|byte| *byte != 0)).collect();
            while let Some(first) = pages[start..].iter().position(|used| *used) {
                let first = start + first;
                let end = pages[first..].iter().position(|used| !used);
                let end = end.map_or(pages.len(), |end| first + end);
                let some = bytes[first * PAGE..(end * PAGE).min(bytes.len())].to_vec();
                all.push((format!("{name} at {:x}", from + (first * PAGE) as u64), some));
                start = end;
            }
        }
        all
    }
}

/// Starts a server with these settings, and opens its memory.
pub fn watched(settings: &str) -> (Host, Image) {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("settings");
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    let path = config.to_str().unwrap().to_owned();
    let mut image = None;
    let host = Host::start_when(root, &["--config", &path], |running| {
        let mut pipe = opened_by_it(&config);
        image = Some(Image::of(running.pid()));
        pipe.write_all(settings.as_bytes()).unwrap();
    });
    (host, image.unwrap())
}

/// Opens the pipe for writing once the server reads from it.
fn opened_by_it(pipe: &Path) -> File {
    let until = Instant::now() + LONG;
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    loop {
        match options.open(pipe) {
            Ok(file) => return file,
            Err(error) => assert!(Instant::now() < until, "nobody reads the settings: {error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Secrets to search for, in each form that bytes take in memory, in files and on the network.
#[derive(Default)]
pub struct Needles {
    /// By their first eight bytes.
    all: HashMap<[u8; 8], Vec<(String, Vec<u8>)>>,
    /// A bit set that contains the first three bytes of each.
    begin: Vec<u64>,
}

impl Needles {
    /// Adds a secret of at least eight bytes. If it has 32 or more, each half counts as found.
    pub fn add(&mut self, what: &str, secret: &[u8]) {
        let parts: Vec<&[u8]> =
            if secret.len() >= 32 { secret.chunks_exact(16).collect() } else { vec![secret] };
        for (n, part) in parts.into_iter().enumerate() {
            let what = format!("{what}[{n}]");
            self.put(&what, "as it is", part.to_vec());
            self.put(&what, "in hex", HEXLOWER.encode(part).into_bytes());
            self.put(&what, "in HEX", HEXUPPER.encode(part).into_bytes());
            let list: Vec<String> = part.iter().map(ToString::to_string).collect();
            self.put(&what, "as a list", list.join(", ").into_bytes());
            // Inside a longer text, at each alignment: only the characters that depend on the
            // secret alone.
            for before in 0..3 {
                let padded = [&vec![0; before][..], part].concat();
                let from = (before * 8).div_ceil(6);
                let to = padded.len() * 8 / 6;
                for (form, code) in [("in base64", &BASE64), ("in base64url", &BASE64URL)] {
                    let text = code.encode(&padded);
                    self.put(&what, form, text.as_bytes()[from..to].to_vec());
                }
            }
        }
    }

    fn put(&mut self, what: &str, form: &str, bytes: Vec<u8>) {
        if self.begin.is_empty() {
            self.begin = vec![0; 1 << 18];
        }
        let first: [u8; 8] = bytes[..8].try_into().unwrap();
        let place = place(&first);
        self.begin[place / 64] |= 1 << (place % 64);
        self.all.entry(first).or_default().push((format!("{what} {form}"), bytes));
    }

    /// The number of forms of all secrets.
    pub fn count(&self) -> usize {
        self.all.values().map(Vec::len).sum()
    }

    /// The matches in these bytes, and their offsets.
    pub fn find<'n>(&'n self, bytes: &[u8]) -> Vec<(usize, &'n str)> {
        let mut found = Vec::new();
        for (at, window) in bytes.windows(8).enumerate() {
            let place = place(window);
            if self.begin[place / 64] & (1 << (place % 64)) == 0 {
                continue;
            }
            for (what, needle) in self.all.get(window).into_iter().flatten() {
                if bytes[at..].starts_with(needle) {
                    found.push((at, what.as_str()));
                }
            }
        }
        found
    }

    /// The matches in a process.
    pub fn find_in_memory(&self, image: &mut Image) -> Vec<String> {
        let mut found = Vec::new();
        let mut size = 0;
        for (place, bytes) in image.read() {
            size += bytes.len();
            found.extend(
                self.find(&bytes).iter().map(|(at, what)| format!("{what}: {place}+{at:x}")),
            );
        }
        assert!(size > 1 << 20, "{size} bytes are not the memory of a server");
        found
    }

    /// The number of files below a directory, and the matches in them.
    pub fn find_in_files(&self, dir: &Path) -> (usize, Vec<String>) {
        let (mut files, mut found) = (0, Vec::new());
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let (more, there) = self.find_in_files(&path);
                files += more;
                found.extend(there);
            } else if path.is_file() {
                files += 1;
                let bytes = std::fs::read(&path).unwrap();
                found.extend(
                    self.find(&bytes).iter().map(|(_, what)| format!("{what}: {}", path.display())),
                );
            }
        }
        (files, found)
    }
}

fn place(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) | usize::from(bytes[1]) << 8 | usize::from(bytes[2]) << 16
}
