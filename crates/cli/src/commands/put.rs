//! `put`: files into a conversation, and 0 once all of them are on the server's disk.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use twinlock_client::home::Home;
use twinlock_client::profile::Profile;
use twinlock_client::transfer::{Found, TransferError, gather, spool};

use super::moving::{File, Moves, harmless};
use super::send::blocking;
use crate::args::Put;
use crate::exit::Failure;
use crate::open::Context;

/// What to do where there is no room for standard input.
const NO_ROOM: &str = "nothing of it was sent: make room there and send it again, or send it as a \
                       file, which needs no copy";

pub(crate) async fn run(mut args: Put, context: &Context) -> Result<(), Failure> {
    let target = args.take_target().map_err(Failure::usage)?.to_string();
    let stdin = args.files.iter().any(|file| is_stdin(file));
    if args.files.len() > 1 && (stdin || args.name.is_some()) {
        let what = if stdin { "`-`" } else { "--name" };
        return Err(Failure::usage(format!("{what} goes with one FILE only")));
    }
    if args.name.as_ref().is_some_and(String::is_empty) {
        return Err(Failure::usage("--name is empty"));
    }
    let mut moves = Moves::new(context, &target, args.moving.json);
    let files = if stdin {
        let Some(name) = args.name else {
            return Err(Failure::usage("what comes by standard input needs a --name"));
        };
        vec![from_stdin(context, name).await?]
    } else {
        let (paths, collector) = (args.files, Collector::new(context, args.recursive)?);
        let collected = blocking(move || Ok::<_, Failure>(collector.collect(&paths))).await?;
        let Collected { mut files, failures, links } = collected;
        for link in &links {
            let link = harmless(&link.to_string_lossy());
            context.out.warn(&format!("{link} is a symbolic link, which -r leaves out"));
        }
        for failure in &failures {
            moves.fails(failure);
        }
        if let (Some(name), [file]) = (args.name, files.as_mut_slice()) {
            file.name = name;
        }
        files
    };
    let (transfers, events) = context.transfers(&args.moving)?;
    let shown: Vec<_> = files
        .iter()
        .map(|file| {
            // One that was copied is not at that path.
            let path = file.hash.is_none().then(|| file.source.path.clone());
            (file.name.clone(), file.path.clone(), file.source.size, path)
        })
        .collect();
    let jobs = transfers.put(&target, files).await?;
    for ((job, begun), (name, dir, size, path)) in jobs.into_iter().zip(shown) {
        moves.add(job, File { name, dir, size, id: begun.message_id, path, entry: None });
    }
    moves.run(transfers, events, "sent").await
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == OsStr::new("-")
}

/// All of standard input: what it is has to be known before it is offered.
async fn from_stdin(context: &Context, name: String) -> Result<Found, Failure> {
    let (home, profile) = (context.home()?, context.profile()?);
    blocking(move || spool(&home, &profile, &name, &mut io::stdin().lock()).map_err(no_room)).await
}

/// The files to send, and those that cannot be sent.
#[derive(Default)]
struct Collected {
    files: Vec<Found>,
    failures: Vec<Failure>,
    /// Links, which are left out.
    links: Vec<PathBuf>,
}

/// Looks at files that are named, and with `recursive` at those in directories.
struct Collector {
    home: Home,
    profile: Profile,
    recursive: bool,
    collected: Collected,
}

impl Collector {
    fn new(context: &Context, recursive: bool) -> Result<Self, Failure> {
        let (home, profile) = (context.home()?, context.profile()?);
        Ok(Self { home, profile, recursive, collected: Collected::default() })
    }

    fn collect(mut self, paths: &[PathBuf]) -> Collected {
        for path in paths {
            match path.is_dir() {
                true if self.recursive => {
                    let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
                    self.walk(path, &name);
                }
                true => {
                    let words = format!("{} is a directory", path.display());
                    let failure = Failure::usage(words).hint("-r sends the files in it");
                    self.collected.failures.push(failure);
                }
                false => self.add(path, ""),
            }
        }
        self.collected
    }

    fn add(&mut self, path: &Path, above: &str) {
        match gather(&self.home, &self.profile, path) {
            Ok(found) => self.collected.files.push(Found { path: above.to_owned(), ..found }),
            Err(error) => self.collected.failures.push(no_room(error)),
        }
    }

    /// Links in a directory are not followed: they may lead anywhere, and form cycles. Pipes are not
    /// read: they may never end.
    fn walk(&mut self, dir: &Path, above: &str) {
        let failed = |error: io::Error| Failure::usage(format!("{}: {error}", dir.display()));
        let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.collected.failures.push(failed(error)),
        };
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    let name = entry.file_name();
                    let slash = if above.is_empty() { "" } else { "/" };
                    self.walk(&path, &format!("{above}{slash}{}", name.to_string_lossy()));
                }
                Ok(kind) if kind.is_symlink() => self.collected.links.push(path),
                Ok(kind) if kind.is_file() => self.add(&path, above),
                Ok(_) => {
                    let words =
                        format!("{} is not a regular file: name it without -r", path.display());
                    self.collected.failures.push(Failure::usage(words));
                }
                Err(error) => self.collected.failures.push(failed(error)),
            }
        }
    }
}

fn no_room(error: TransferError) -> Failure {
    let full = matches!(&error, TransferError::Disk(error) if error.is_full());
    let failure = Failure::from(error);
    if full { failure.hint(NO_ROOM) } else { failure }
}
