//! Files that come while somebody listens, put into a directory. Two people may send files of one
//! name: the second is told apart by its entry's number, and one that is there already with the
//! same content is not fetched again.
//!
//! An entry is handled once its file is there. A failure that the transfer does not retry ends
//! `listen`, and the position stays before that entry.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use twinlock_client::ClientError;
use twinlock_client::client::{Entry, FileEntry};
use twinlock_client::transfer::{Event, Get, Into, JobId, Place, Transfers, hash_file, name};
use twinlock_core::id::{ConversationId, Name};

use super::get::is_own;
use super::moving::harmless;
use super::send::blocking;
use crate::args::Moving;
use crate::exit::Failure;
use crate::open::Context;

/// Lines for what comes.
const JOBS: u8 = 3;
/// Names that are tried for one file.
const NAMES: usize = 1000;

/// A file that is to be in the directory.
pub(super) enum Fetch {
    /// It is there.
    Have(PathBuf),
    /// It is on its way.
    Coming(JobId),
    /// It has no place in the directory.
    Failed(Failure),
}

pub(super) struct Fetching {
    transfers: Transfers,
    events: mpsc::Receiver<Event>,
    dir: PathBuf,
    user: Name,
    /// Places of files that are on their way.
    taken: HashSet<PathBuf>,
    ended: HashMap<JobId, Result<Option<PathBuf>, Failure>>,
    /// Why the last connection for files was lost, until one stands again.
    down: Option<ClientError>,
}

impl Fetching {
    pub(super) fn start(context: &Context, dir: &Path, user: Name) -> Result<Self, Failure> {
        if !dir.is_dir() {
            return Err(Failure::usage(format!("{} is no directory", dir.display())));
        }
        let moving = Moving { limit: None, jobs: JOBS, json: false };
        let (transfers, events) = context.transfers(&moving)?;
        let (dir, taken, ended) = (dir.to_path_buf(), HashSet::new(), HashMap::new());
        Ok(Self { transfers, events, dir, user, taken, ended, down: None })
    }

    /// Why files cannot be fetched now.
    pub(super) fn down(&self) -> Option<&ClientError> {
        self.down.as_ref()
    }

    /// Begins with the files of these entries, several at once; by the entries' numbers.
    pub(super) async fn begin(
        &mut self,
        target: &str,
        conversation: ConversationId,
        entries: &[Entry],
    ) -> Result<BTreeMap<u64, Fetch>, Failure> {
        let mut fetches = BTreeMap::new();
        for entry in entries {
            let Some(file) = entry.file.clone() else { continue };
            let fetch = match self.choose(target, entry.n, &file).await {
                Ok(Choice::Have(path)) => Fetch::Have(path),
                Ok(Choice::Free(place)) => {
                    self.taken.insert(place.path());
                    let (n, own) = (entry.n, is_own(entry, &self.user));
                    let into = Into::Place(place);
                    let get = Get { conversation, n, file, own, into };
                    Fetch::Coming(self.transfers.get(get)?)
                }
                Ok(Choice::None) => Fetch::Failed(Failure::usage(format!(
                    "other files in {} have all names for it",
                    self.dir.display()
                ))),
                Err(failure) => Fetch::Failed(failure),
            };
            fetches.insert(entry.n, fetch);
        }
        Ok(fetches)
    }

    /// Waits for one; where it is then.
    ///
    /// A failure names the entry, which is not handled: it comes again the next time.
    pub(super) async fn wait(
        &mut self,
        fetch: Fetch,
        target: &str,
        entry: &Entry,
    ) -> Result<Option<PathBuf>, Failure> {
        let ended = match fetch {
            Fetch::Have(path) => Ok(Some(path)),
            Fetch::Failed(failure) => Err(failure),
            Fetch::Coming(job) => self.end_of(job).await,
        };
        ended.map_err(|mut failure| {
            let name = entry.file.as_ref().map(|file| harmless(file.name.expose_raw()));
            let (name, n) = (name.unwrap_or_default(), entry.n);
            let why = &failure.message;
            failure.message = format!("{name} of entry {n} of {target} was not fetched: {why}");
            failure.hint.get_or_insert(format!(
                "the next `listen --get` tries it again; `listen {target} --since {n}` leaves it out"
            ));
            failure
        })
    }

    /// Waits for the end of a transfer. Other transfers that end first keep their result for
    /// their turn, so that a failure does not hide the files of entries before it.
    async fn end_of(&mut self, job: JobId) -> Result<Option<PathBuf>, Failure> {
        loop {
            if let Some(ended) = self.ended.remove(&job) {
                return ended;
            }
            match self.events.recv().await {
                Some(Event::Got { job, path }) => {
                    if let Some(path) = &path {
                        self.taken.remove(path);
                    }
                    self.ended.insert(job, Ok(path));
                }
                Some(Event::Failed { job, error }) => {
                    self.ended.insert(job, Err(error.into()));
                }
                // The connection for entries reports it to the user.
                Some(Event::Down { error, .. }) => self.down = Some(error),
                Some(Event::Up(_)) => self.down = None,
                Some(_) => {}
                None => return Err(ClientError::Closed.into()),
            }
        }
    }

    async fn choose(&self, target: &str, n: u64, file: &FileEntry) -> Result<Choice, Failure> {
        let own = name::harmless(file.name.expose_raw());
        let place = target.trim_start_matches('@').to_owned();
        let (dir, taken, file) = (self.dir.clone(), self.taken.clone(), file.clone());
        blocking(move || choose(&dir, &names(&own, &place, n), &taken, &file)).await
    }
}

enum Choice {
    Have(PathBuf),
    Free(Place),
    None,
}

/// The names that a file may get, the best first. Senders choose names that others would get, so
/// there are many.
fn names(own: &str, place: &str, n: u64) -> Vec<String> {
    let marked = |mark: &str| name::marked(own, mark);
    let first = [own.to_owned(), marked(&n.to_string()), marked(&format!("{place}-{n}"))];
    let more = (2..NAMES).map(|again| marked(&format!("{place}-{n}-{again}")));
    first.into_iter().chain(more).collect()
}

fn choose(
    dir: &Path,
    names: &[String],
    taken: &HashSet<PathBuf>,
    file: &FileEntry,
) -> Result<Choice, Failure> {
    let below = name::below(file.path.expose_raw());
    let mut at = dir.to_path_buf();
    let is_open = below.iter().all(|name| {
        at.push(name);
        // One that is not there yet is made.
        fs::symlink_metadata(&at).map_or(true, |found| found.is_dir()) && !taken.contains(&at)
    });
    // A file or a link has the name of a directory: the new file goes into the target directory.
    let below = if is_open { below } else { Vec::new() };
    for name in names {
        let (dir, below, name) = (dir.to_path_buf(), below.clone(), name.into());
        let place = Place { dir, below, name, force: false, keep_mode: false };
        let path = place.path();
        if taken.iter().any(|taken| taken.starts_with(&path)) {
            continue;
        }
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Choice::Free(place));
            }
            Err(error) => return Err(Failure::usage(format!("{}: {error}", path.display()))),
            // One that cannot be read is another one.
            Ok(found) if found.is_file() && found.len() == file.size => {
                if hash_file(&path).is_ok_and(|hash| hash == file.hash) {
                    return Ok(Choice::Have(path));
                }
            }
            Ok(_) => {}
        }
    }
    Ok(Choice::None)
}
