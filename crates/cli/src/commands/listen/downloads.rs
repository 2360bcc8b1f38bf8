//! Fetches files into a directory for `listen --get`.
//!
//! Two people may send files of the same name: the later one gets its entry's number in its name. A
//! file that already exists with the same content is not fetched again.
//!
//! An entry is handled once its file is complete. A failure that the transfer does not retry ends
//! `listen`, and the position stays before that entry.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use twinlock_client::ClientError;
use twinlock_client::model::{Entry, FileEntry};
use twinlock_client::transfer::{
    Destination, DownloadRequest, DownloadTarget, JobId, TransferEvent, Transfers, hash_file, name,
};
use twinlock_core::id::{ConversationId, Name};

use crate::args::TransferArgs;
use crate::blocking::blocking;
use crate::context::Context;
use crate::exit::Failure;
use crate::lookup::is_own;
use crate::output::harmless;

/// Transfer connections.
const JOBS: u8 = 3;
/// Names that are tried for one file.
const NAMES: usize = 1000;

/// A file to be placed in the directory.
pub(super) enum EntryDownload {
    /// The file exists.
    Have(PathBuf),
    /// The transfer is running.
    Running(JobId),
    /// The directory has no destination for it.
    Failed(Failure),
}

/// The downloads into the directory of `--get`.
pub(super) struct Downloads {
    transfers: Transfers,
    events: mpsc::Receiver<TransferEvent>,
    dir: PathBuf,
    user: Name,
    /// Destinations of running transfers.
    taken: HashSet<PathBuf>,
    ended: HashMap<JobId, Result<Option<PathBuf>, Failure>>,
    /// Why the last transfer connection was lost, until one is up again.
    down: Option<ClientError>,
}

impl Downloads {
    pub(super) fn start(context: &Context, dir: &Path, user: Name) -> Result<Self, Failure> {
        if !dir.is_dir() {
            return Err(Failure::usage(format!("{} is not a directory", dir.display())));
        }
        let options = TransferArgs { limit: None, jobs: JOBS, json: false };
        let (transfers, events) = context.transfers(&options)?;
        let (dir, taken, ended) = (dir.to_path_buf(), HashSet::new(), HashMap::new());
        Ok(Self { transfers, events, dir, user, taken, ended, down: None })
    }

    /// Why files cannot be fetched now.
    pub(super) fn down(&self) -> Option<&ClientError> {
        self.down.as_ref()
    }

    /// Starts the downloads of these entries' files, several at once; keyed by entry number.
    pub(super) async fn begin(
        &mut self,
        target: &str,
        conversation: ConversationId,
        entries: &[Entry],
    ) -> Result<BTreeMap<u64, EntryDownload>, Failure> {
        let mut downloads = BTreeMap::new();
        for entry in entries {
            let Some(file) = entry.file.clone() else { continue };
            let download = match self.choose(target, entry.n, &file).await {
                Ok(Choice::Have(path)) => EntryDownload::Have(path),
                Ok(Choice::Free(place)) => {
                    self.taken.insert(place.path());
                    let (n, own) = (entry.n, is_own(entry, &self.user));
                    let into = DownloadTarget::File(place);
                    let get = DownloadRequest { conversation, n, file, own, into };
                    EntryDownload::Running(self.transfers.get(get)?)
                }
                Ok(Choice::None) => EntryDownload::Failed(Failure::usage(format!(
                    "all names for it exist already in {}",
                    self.dir.display()
                ))),
                Err(failure) => EntryDownload::Failed(failure),
            };
            downloads.insert(entry.n, download);
        }
        Ok(downloads)
    }

    /// Waits for one file and returns its path.
    ///
    /// A failure names the entry. The entry is not handled, and the next run retries it.
    pub(super) async fn wait(
        &mut self,
        download: EntryDownload,
        target: &str,
        entry: &Entry,
    ) -> Result<Option<PathBuf>, Failure> {
        let ended = match download {
            EntryDownload::Have(path) => Ok(Some(path)),
            EntryDownload::Failed(failure) => Err(failure),
            EntryDownload::Running(job) => self.end_of(job).await,
        };
        ended.map_err(|mut failure| {
            let name = entry.file.as_ref().map(|file| harmless(file.name.expose_raw()));
            let (name, n) = (name.unwrap_or_default(), entry.n);
            let why = &failure.message;
            failure.message = format!("{name} of entry {n} of {target} was not fetched: {why}");
            failure.hint.get_or_insert(format!(
                "the next `listen --get` retries it; `listen {target} --since {n}` skips it"
            ));
            failure
        })
    }

    /// Waits for the end of a transfer. Results of other transfers are kept until their entry is
    /// due, so that a failure does not hide the files of entries before it.
    async fn end_of(&mut self, job: JobId) -> Result<Option<PathBuf>, Failure> {
        loop {
            if let Some(ended) = self.ended.remove(&job) {
                return ended;
            }
            match self.events.recv().await {
                Some(TransferEvent::Got { job, path }) => {
                    if let Some(path) = &path {
                        self.taken.remove(path);
                    }
                    self.ended.insert(job, Ok(path));
                }
                Some(TransferEvent::Failed { job, error }) => {
                    self.ended.insert(job, Err(error.into()));
                }
                // The connection for entries reports it to the user.
                Some(TransferEvent::Down { error, .. }) => self.down = Some(error),
                Some(TransferEvent::Up(_)) => self.down = None,
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
    Free(Destination),
    None,
}

/// The names that a file may get, the best first. There are many, because senders can choose names
/// that other files would get.
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
        // A directory that does not exist yet is created.
        fs::symlink_metadata(&at).map_or(true, |found| found.is_dir()) && !taken.contains(&at)
    });
    // If a file or a link has a directory's name, the new file goes into the target directory.
    let below = if is_open { below } else { Vec::new() };
    for name in names {
        let (dir, below, name) = (dir.to_path_buf(), below.clone(), name.into());
        let place = Destination { dir, below, name, force: false, keep_mode: false };
        let path = place.path();
        if taken.iter().any(|taken| taken.starts_with(&path)) {
            continue;
        }
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Choice::Free(place));
            }
            Err(error) => return Err(Failure::usage(format!("{}: {error}", path.display()))),
            // A file that cannot be read counts as different.
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
