//! Files that come while somebody listens, put into a directory. Two people may send files of one
//! name: the second is told apart by its entry's number, and one that is there already with the
//! same content is not fetched again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use twinlock_client::client::{Entry, FileEntry};
use twinlock_client::error::Blame;
use twinlock_client::transfer::{
    Event, Get, Into, JobId, Place, TransferError, Transfers, hash_file, name,
};
use twinlock_core::id::{ConversationId, Name};

use super::get::is_own;
use super::moving::harmless;
use super::send::blocking;
use crate::args::Moving;
use crate::exit::Failure;
use crate::open::Context;

/// Lines for what comes.
const JOBS: u8 = 3;

/// A file that is to be in the directory.
pub(super) enum Fetch {
    /// It is there.
    Have(PathBuf),
    /// It is on its way.
    Coming(JobId),
    /// It will not come, as was said.
    Lost,
}

pub(super) struct Fetching<'a> {
    context: &'a Context,
    transfers: Transfers,
    events: mpsc::Receiver<Event>,
    dir: PathBuf,
    user: Name,
    /// Places of files that are on their way.
    taken: HashSet<PathBuf>,
    ended: HashMap<JobId, Option<PathBuf>>,
}

impl<'a> Fetching<'a> {
    pub(super) fn start(context: &'a Context, dir: &Path, user: Name) -> Result<Self, Failure> {
        if !dir.is_dir() {
            return Err(Failure::usage(format!("{} is no directory", dir.display())));
        }
        let moving = Moving { limit: None, jobs: JOBS, json: false };
        let (transfers, events) = context.transfers(&moving)?;
        let (dir, taken, ended) = (dir.to_path_buf(), HashSet::new(), HashMap::new());
        Ok(Self { context, transfers, events, dir, user, taken, ended })
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
            let fetch = match self.choose(target, entry.n, &file).await? {
                Choice::Have(path) => Fetch::Have(path),
                Choice::Free(name, path) => {
                    self.taken.insert(path);
                    let dir = self.dir.clone();
                    let name = name.into();
                    let place = Place { dir, name, force: false, keep_mode: false };
                    let (n, own) = (entry.n, is_own(entry, &self.user));
                    let into = Into::Place(place);
                    let get = Get { conversation, n, file, own, into };
                    Fetch::Coming(self.transfers.get(get)?)
                }
                Choice::None => {
                    let name = harmless(file.name.expose_raw());
                    let words = format!(
                        "{name} of entry {} is not fetched: other files have all names for it",
                        entry.n
                    );
                    self.context.out.warn(&words);
                    Fetch::Lost
                }
            };
            fetches.insert(entry.n, fetch);
        }
        Ok(fetches)
    }

    /// Waits for one, and says what became of it.
    pub(super) async fn wait(&mut self, fetch: &Fetch) -> Result<Option<PathBuf>, Failure> {
        let job = match fetch {
            Fetch::Have(path) => return Ok(Some(path.clone())),
            Fetch::Lost => return Ok(None),
            Fetch::Coming(job) => job,
        };
        loop {
            if let Some(ended) = self.ended.remove(job) {
                return Ok(ended);
            }
            match self.events.recv().await {
                Some(Event::Got { job, path }) => {
                    if let Some(path) = &path {
                        self.taken.remove(path);
                    }
                    self.ended.insert(job, path);
                }
                Some(Event::Failed { job, error }) => {
                    // Without room for this one there is none for those behind it. It is not taken
                    // for handled, and comes the next time.
                    let full = matches!(&error, TransferError::Disk(error) if error.is_full());
                    let ends = full || matches!(error.blame(), Blame::Us | Blame::Them);
                    let failure = Failure::from(error);
                    if ends {
                        return Err(failure);
                    }
                    self.context.out.warn(&format!("a file was not fetched: {}", failure.message));
                    self.ended.insert(job, None);
                }
                // The line beside these says when the server is gone.
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    async fn choose(&self, target: &str, n: u64, file: &FileEntry) -> Result<Choice, Failure> {
        let own = name::harmless(file.name.expose_raw());
        let place = target.trim_start_matches('@');
        let marks =
            [name::marked(&own, &n.to_string()), name::marked(&own, &format!("{place}-{n}"))];
        let names: Vec<_> = std::iter::once(own).chain(marks).collect();
        let (dir, taken, file) = (self.dir.clone(), self.taken.clone(), file.clone());
        blocking(move || choose(&dir, names, &taken, &file)).await
    }
}

enum Choice {
    Have(PathBuf),
    Free(String, PathBuf),
    None,
}

fn choose(
    dir: &Path,
    names: Vec<String>,
    taken: &HashSet<PathBuf>,
    file: &FileEntry,
) -> Result<Choice, Failure> {
    for name in names {
        let path = dir.join(&name);
        if taken.contains(&path) {
            continue;
        }
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Choice::Free(name, path));
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
