//! `put`: files into a conversation, and 0 once all of them are on the server's disk.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use twinlock_client::transfer::{Found, TransferError, look, spool};

use super::moving::{File, Moves};
use super::send::blocking;
use crate::args::Put;
use crate::exit::{Exit, Failure};
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
        let (paths, recursive) = (args.files, args.recursive);
        let (mut files, failures) =
            blocking(move || Ok::<_, Failure>(collect(&paths, recursive))).await?;
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
            let path = (!stdin).then(|| file.source.path.clone());
            (file.name.clone(), file.source.size, path)
        })
        .collect();
    let jobs = transfers.put(&target, files).await?;
    for ((job, begun), (name, size, path)) in jobs.into_iter().zip(shown) {
        moves.add(job, File { name, size, id: begun.message_id, path, entry: None });
    }
    moves.run(transfers, events, "sent").await
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == OsStr::new("-")
}

/// All of standard input: what it is has to be known before it is offered.
async fn from_stdin(context: &Context, name: String) -> Result<Found, Failure> {
    let (home, profile) = (context.home()?, context.profile()?);
    blocking(move || {
        spool(&home, &profile, &name, &mut io::stdin().lock()).map_err(|error| {
            let full = matches!(&error, TransferError::Disk(error) if error.is_full());
            let failure = Failure::from(error);
            if full { failure.hint(NO_ROOM) } else { failure }
        })
    })
    .await
}

/// The files that were named, and with `recursive` those in directories; and what is wrong with
/// some of them.
fn collect(paths: &[PathBuf], recursive: bool) -> (Vec<Found>, Vec<Failure>) {
    let (mut files, mut failures) = (Vec::new(), Vec::new());
    for path in paths {
        match look(path) {
            Ok(found) => files.push(found),
            Err(TransferError::NotAFile { .. }) if path.is_dir() => {
                if recursive {
                    walk(path, &mut files, &mut failures);
                } else {
                    let words = format!("{} is a directory", path.display());
                    failures.push(Failure::usage(words).hint("-r sends the files in it"));
                }
            }
            Err(error) => failures.push(error.into()),
        }
    }
    (files, failures)
}

/// Links in a directory are not followed: they may lead anywhere, and round in circles.
fn walk(dir: &Path, files: &mut Vec<Found>, failures: &mut Vec<Failure>) {
    let failed = |error: io::Error| Failure::usage(format!("{}: {error}", dir.display()));
    let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) => return failures.push(failed(error)),
    };
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&path, files, failures),
            Ok(kind) if kind.is_symlink() => {
                let words = format!("{} is a symbolic link, which -r leaves out", path.display());
                failures.push(Failure::new(Exit::Usage, words));
            }
            Ok(_) => match look(&path) {
                Ok(found) => files.push(found),
                Err(error) => failures.push(error.into()),
            },
            Err(error) => failures.push(failed(error)),
        }
    }
}
