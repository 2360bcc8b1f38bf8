//! Builds what a crash may leave: replays a disk's log up to a record, and decides the fate of
//! every change that was not synced by then.
//!
//! The rules are stricter than those of any one file system. A write before the start of a
//! successful sync survives. Any other write survives, is lost, or survives in some of its 512-byte
//! sectors. A name survives once its directory was synced; before that, names may be missing or
//! restored in any combination. After a failed sync, its writes stay doubtful after later syncs
//! too, until they are written again: a kernel may mark such pages clean.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::{HEAD, MARK};
use crate::common::Rng;

const SECTOR: usize = 512;

/// A record of the log.
#[derive(Debug, Clone)]
pub enum Op {
    Start { root: PathBuf, ino: u64 },
    Create { ino: u64, path: PathBuf },
    Truncate { ino: u64, size: usize },
    Write { ino: u64, at: usize, data: std::ops::Range<usize> },
    Sync { ino: u64, number: u64 },
    Synced { number: u64, good: bool },
    MakeDir { ino: u64, path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Unlink { path: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Mark(String),
    Alien(String),
}

/// Parses a log; data is referenced, not copied.
pub fn parse(log: &[u8]) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut at = 0;
    // A kill may have torn the last record.
    while at + HEAD <= log.len() {
        let word = |i: usize| u32::from_le_bytes(log[at + i..at + i + 4].try_into().unwrap());
        let long = |i: usize| u64::from_le_bytes(log[at + i..at + i + 8].try_into().unwrap());
        let (op, error, ino, place) = (word(0), word(4), long(8), long(16));
        let first = at + HEAD..at + HEAD + word(24) as usize;
        let second = first.end..first.end + word(28) as usize;
        at = second.end;
        if at > log.len() {
            break;
        }
        let text = |range: &std::ops::Range<usize>| {
            String::from_utf8(log[range.clone()].to_vec()).unwrap()
        };
        let path = || PathBuf::from(text(&first));
        let other = || PathBuf::from(text(&second));
        let place_of = usize::try_from(place).unwrap_or(usize::MAX);
        ops.push(match op {
            1 => Op::Start { root: path(), ino },
            2 => Op::Create { ino, path: path() },
            3 => Op::Truncate { ino, size: place_of },
            4 => Op::Write { ino, at: place_of, data: first },
            5 => Op::Sync { ino, number: place },
            6 => Op::Synced { number: place, good: error == 0 },
            7 => Op::MakeDir { ino, path: path() },
            8 => Op::Rename { from: path(), to: other() },
            9 => Op::Unlink { path: path() },
            10 => Op::Link { from: path(), to: other() },
            MARK => Op::Mark(text(&first)),
            _ => Op::Alien(text(&first)),
        });
    }
    ops
}

type Id = usize;

/// A file's content: what is certain, and the later changes.
#[derive(Debug, Default, Clone)]
struct Content {
    certain: Vec<u8>,
    then: Vec<Change>,
}

#[derive(Debug, Clone)]
struct Change {
    index: usize,
    what: Bytes,
    state: State,
}

#[derive(Debug, Clone)]
enum Bytes {
    Write(usize, std::ops::Range<usize>),
    Truncate(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Synced,
    /// A sync of it has failed.
    Doubtful,
}

#[derive(Debug, Default, Clone)]
struct Names {
    certain: BTreeMap<PathBuf, Id>,
    then: Vec<(usize, Name)>,
}

#[derive(Debug, Clone)]
enum Name {
    Put(PathBuf, Id),
    Take(PathBuf),
    Move(PathBuf, PathBuf, Id),
}

impl Name {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Id>) {
        match self {
            Self::Put(path, id) => drop(names.insert(path.clone(), *id)),
            Self::Take(path) => drop(names.remove(path)),
            Self::Move(from, to, id) => {
                names.remove(from);
                names.insert(to.clone(), *id);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Node {
    File(Content),
    Dir(Names),
}

/// The disk after some records of the log.
pub struct Replay<'l> {
    log: &'l [u8],
    nodes: Vec<Node>,
    /// The newest node of an inode number.
    by_ino: HashMap<u64, Id>,
    /// The tree as the server sees it.
    now: BTreeMap<PathBuf, Id>,
    root: PathBuf,
    /// Running syncs: the node, and the record of their start.
    syncs: HashMap<u64, (Id, usize)>,
    done: usize,
}

/// The fate of changes that were not synced.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// All are lost.
    Lost,
    /// All survive, as after a kill.
    Kept,
    /// Each survives or not, independently.
    Mixed,
    /// Each sector survives or not, independently.
    Torn,
    /// Names survive, contents do not.
    Hollow,
    /// Contents survive, names do not.
    Nameless,
}

impl Fate {
    pub fn drawn(rng: &mut Rng) -> Self {
        match rng.within(0, 9) {
            0 | 1 => Self::Lost,
            2 => Self::Kept,
            3 | 4 => Self::Mixed,
            5 | 6 => Self::Torn,
            7 => Self::Hollow,
            _ => Self::Nameless,
        }
    }
}

impl<'l> Replay<'l> {
    pub fn new(log: &'l [u8]) -> Self {
        Self {
            log,
            nodes: Vec::new(),
            by_ino: HashMap::new(),
            now: BTreeMap::new(),
            root: PathBuf::new(),
            syncs: HashMap::new(),
            done: 0,
        }
    }

    /// Replays up to the record `end`.
    pub fn advance(&mut self, ops: &[Op], end: usize) {
        for op in &ops[self.done..end] {
            self.step(op);
            self.done += 1;
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Start { root, ino } => {
                // A server's syncs end with it.
                self.syncs.clear();
                if self.nodes.is_empty() {
                    self.root.clone_from(root);
                    self.add(Node::Dir(Names::default()), *ino, root);
                }
            }
            Op::Create { ino, path } => {
                let id = self.add(Node::File(Content::default()), *ino, path);
                self.name(path, Name::Put(path.clone(), id));
            }
            Op::MakeDir { ino, path } => {
                let id = self.add(Node::Dir(Names::default()), *ino, path);
                self.name(path, Name::Put(path.clone(), id));
            }
            Op::Truncate { ino, size } => self.change(*ino, Bytes::Truncate(*size)),
            Op::Write { ino, at, data } => self.change(*ino, Bytes::Write(*at, data.clone())),
            Op::Sync { ino, number } => {
                if let Some(id) = self.by_ino.get(ino) {
                    self.syncs.insert(*number, (*id, self.done));
                }
            }
            Op::Synced { number, good } => {
                if let Some((id, from)) = self.syncs.remove(number) {
                    self.synced(id, from, *good);
                }
            }
            Op::Rename { from, to } => {
                let id = self.now.remove(from).unwrap();
                self.now.insert(to.clone(), id);
                if from.parent() == to.parent() {
                    self.name(to, Name::Move(from.clone(), to.clone(), id));
                } else {
                    self.name(to, Name::Put(to.clone(), id));
                    self.name(from, Name::Take(from.clone()));
                }
            }
            Op::Unlink { path } => {
                self.now.remove(path);
                self.name(path, Name::Take(path.clone()));
            }
            Op::Link { from, to } => {
                let id = self.now[from];
                self.now.insert(to.clone(), id);
                self.name(to, Name::Put(to.clone(), id));
            }
            Op::Mark(_) => {}
            Op::Alien(what) => panic!("the log does not know what {what} does"),
        }
    }

    fn add(&mut self, node: Node, ino: u64, path: &Path) -> Id {
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        self.by_ino.insert(ino, id);
        self.now.insert(path.to_owned(), id);
        id
    }

    fn name(&mut self, path: &Path, name: Name) {
        let dir = self.now[path.parent().unwrap()];
        let done = self.done;
        let Node::Dir(names) = &mut self.nodes[dir] else { panic!("no directory") };
        names.then.push((done, name));
    }

    fn change(&mut self, ino: u64, what: Bytes) {
        let (id, index) = (self.by_ino[&ino], self.done);
        let Node::File(content) = &mut self.nodes[id] else { panic!("no file") };
        content.then.push(Change { index, what, state: State::Pending });
    }

    fn synced(&mut self, id: Id, from: usize, good: bool) {
        match &mut self.nodes[id] {
            // A failing journal stops its file system; a later sync still makes the names durable.
            Node::Dir(_) if !good => {}
            Node::Dir(names) => {
                let later = names.then.partition_point(|(index, _)| *index < from);
                for (_, name) in names.then.drain(..later) {
                    name.apply(&mut names.certain);
                }
            }
            Node::File(content) => {
                let reached = content.then.iter_mut().take_while(|change| change.index < from);
                for change in reached.filter(|change| change.state == State::Pending) {
                    change.state = if good { State::Synced } else { State::Doubtful };
                }
                let sure = content.then.iter().take_while(|change| change.state == State::Synced);
                let sure = sure.count();
                for change in content.then.drain(..sure) {
                    apply(&change.what, &mut content.certain, self.log, |_| true);
                }
            }
        }
    }

    /// Builds in `into` what a crash at this point may leave of the watched directory.
    pub fn crash(&self, into: &Path, fate: Fate, rng: &mut Rng) {
        let root = self.now[&self.root];
        self.lay_out(root, into, fate, rng);
    }

    fn lay_out(&self, id: Id, into: &Path, fate: Fate, rng: &mut Rng) {
        match &self.nodes[id] {
            Node::Dir(names) => {
                fs::create_dir_all(into).unwrap();
                fs::set_permissions(into, mode(0o700)).unwrap();
                let mut there = names.certain.clone();
                // A journal keeps names in order; other file systems may not.
                let in_order = rng.within(0, 2) == 0;
                let cut = rng.within(0, names.then.len() as u64 + 1) as usize;
                for (i, (_, name)) in names.then.iter().enumerate() {
                    let kept = match fate {
                        Fate::Lost | Fate::Nameless => false,
                        Fate::Kept | Fate::Hollow => true,
                        Fate::Mixed | Fate::Torn if in_order => i < cut,
                        Fate::Mixed | Fate::Torn => rng.within(0, 2) == 0,
                    };
                    if kept {
                        name.apply(&mut there);
                    }
                }
                for (path, id) in there {
                    self.lay_out(id, &into.join(path.file_name().unwrap()), fate, rng);
                }
            }
            Node::File(content) => {
                let mut bytes = content.certain.clone();
                for change in &content.then {
                    let certain = change.state == State::Synced;
                    let whole = rng.within(0, 2) == 0;
                    let torn = matches!(fate, Fate::Torn);
                    let kept = match fate {
                        _ if certain => true,
                        Fate::Lost | Fate::Hollow => false,
                        Fate::Kept | Fate::Nameless => true,
                        Fate::Mixed => whole,
                        Fate::Torn => true,
                    };
                    if kept && (certain || !torn) {
                        apply(&change.what, &mut bytes, self.log, |_| true);
                    } else if kept {
                        let mut sector = |_| rng.within(0, 2) == 0;
                        apply(&change.what, &mut bytes, self.log, &mut sector);
                    }
                }
                fs::write(into, &bytes).unwrap();
                fs::set_permissions(into, mode(0o600)).unwrap();
            }
        }
    }
}

fn mode(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

/// Applies a change to a file, in the sectors that `kept` selects.
fn apply(what: &Bytes, to: &mut Vec<u8>, log: &[u8], mut kept: impl FnMut(usize) -> bool) {
    match what {
        Bytes::Truncate(size) => {
            if kept(0) {
                to.resize(*size, 0);
            }
        }
        Bytes::Write(at, data) => {
            let data = &log[data.clone()];
            let mut from = 0;
            while from < data.len() {
                let start = at + from;
                let to_end = (SECTOR - start % SECTOR).min(data.len() - from);
                if kept(start / SECTOR) {
                    if to.len() < start + to_end {
                        to.resize(start + to_end, 0);
                    }
                    to[start..start + to_end].copy_from_slice(&data[from..from + to_end]);
                }
                from += to_end;
            }
        }
    }
}
