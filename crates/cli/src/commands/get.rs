//! `get`: fetches files from a conversation. The entry, read with its link verified, is
//! authoritative; everything else that the server reports about a file must agree with it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use twinlock_client::model::{Entry, FileEntry};
use twinlock_client::transfer::{Destination, DownloadRequest, DownloadTarget, name};
use twinlock_client::{Client, Event, Options};
use twinlock_core::chain::Kind;
use twinlock_core::id::{ConversationId, Name, Sender};

use super::listen::again;
use super::moving::{File, Moves, PATIENCE};
use super::points::file_at;
use crate::args::{Get, Point};
use crate::exit::{Exit, Failure};
use crate::interrupted;
use crate::open::{Context, Opened, why_down};
use crate::patience::Patience;

/// Chooses a safe name that is not in `names` for the same directory, and adds it. The later of two
/// files of one name gets its entry's number, and also a counter if that name is taken.
fn unlike(
    names: &mut HashSet<(Vec<String>, String)>,
    below: &[String],
    wanted: &str,
    n: u64,
) -> String {
    let own = name::harmless(wanted);
    let mut name = own.clone();
    let mut again = 1;
    while !names.insert((below.to_vec(), name.clone())) {
        let mark = if again == 1 { n.to_string() } else { format!("{n}-{again}") };
        name = name::marked(&own, &mark);
        again += 1;
    }
    name
}

pub(crate) async fn run(args: Get, context: &Context) -> Result<(), Failure> {
    let to_stdout = args.output.as_deref().is_some_and(|path| path.as_os_str() == "-");
    if to_stdout && (args.entries.len() > 1 || args.moving.json) {
        let what = if args.moving.json { "--json" } else { "several files" };
        return Err(Failure::usage(format!("{what} and `-o -` do not go together")));
    }
    let target = args.target.to_string();
    let (conversation, entries, user) = read(&target, &args.entries, context).await?;
    let mut moves = Moves::new(context, &target, args.moving.json)?;
    let single = args.output.as_deref().filter(|path| !is_dir(path));
    if args.entries.len() > 1 && single.is_some() {
        return Err(Failure::usage("several files need an existing directory"));
    }
    let mut jobs = Vec::new();
    let mut names = HashSet::new();
    for (n, entry) in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(failure) => {
                moves.no_entry(n, &failure);
                continue;
            }
        };
        let Some(file) = entry.file.clone() else { continue };
        let place = match (single, to_stdout) {
            (_, true) => None,
            (Some(path), _) => Some(place_at(path)),
            (None, _) => {
                let below = name::below(file.path.expose_raw());
                let name = unlike(&mut names, &below, file.name.expose_raw(), entry.n);
                let dir = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
                Some((dir, below, name.into()))
            }
        };
        let (force, keep_mode) = (args.force, args.keep_mode);
        let place =
            place.map(|(dir, below, name)| Destination { dir, below, name, force, keep_mode });
        if let Some(Err(error)) = place.as_ref().map(Destination::check) {
            moves.no_entry(n, &error.into());
            continue;
        }
        jobs.push((entry, file, place));
    }
    let (transfers, events) = context.transfers(&args.moving)?;
    for (entry, file, place) in jobs {
        let path = place.as_ref().map(Destination::path);
        let into = match place {
            Some(place) => DownloadTarget::File(place),
            None => DownloadTarget::Stream(stdout()?),
        };
        let (n, own) = (entry.n, is_own(&entry, &user));
        let (name, size) = (file.name.expose_raw().to_owned(), file.size);
        let file_dir = file.path.expose_raw().to_owned();
        let job = transfers.get(DownloadRequest { conversation, n, file, own, into })?;
        let (dir, id) = (file_dir, entry.message_id);
        moves.add(job, File { name, dir, size, id, path, entry: Some(entry) });
    }
    moves.run(transfers, events, "fetched").await
}

/// Whether this user sent the entry.
pub(super) fn is_own(entry: &Entry, user: &Name) -> bool {
    entry.sender.as_ref().and_then(Sender::user) == Some(user)
}

fn is_dir(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn place_at(path: &Path) -> (PathBuf, Vec<String>, OsString) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let name = path.file_name().unwrap_or(OsStr::new(""));
    (dir.unwrap_or(Path::new(".")).to_path_buf(), Vec::new(), name.to_os_string())
}

/// Standard output without line buffering.
fn stdout() -> Result<Box<dyn Write + Send>, Failure> {
    let failed = |error: io::Error| Failure::usage(format!("standard output: {error}"));
    let out = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
    Ok(Box::new(fs::File::from(out)))
}

/// The conversation, each number with its entry or a failure, and this user.
type Read = (ConversationId, Vec<(u64, Result<Entry, Failure>)>, Name);

/// Reads the entries across reconnects, until `Patience` ends.
async fn read(target: &str, points: &[Point], context: &Context) -> Result<Read, Failure> {
    let options = Options { send: false, ..Options::default() };
    let Opened { client, mut events, user } = context.open(options)?;
    let (told, down) = watch::channel(None);
    let (end, mut ended) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut end = Some(end);
        while let Some(event) = events.recv().await {
            match event {
                Event::Up(_) => _ = told.send_replace(None),
                Event::Down { error, .. } => _ = told.send_replace(Some(error)),
                Event::Ended(Some(error)) => {
                    if let Some(end) = end.take() {
                        let _gone = end.send(error);
                    }
                }
                _ => {}
            }
        }
    });
    let mut patience = Patience::new(context.global.timeout.unwrap_or(PATIENCE));
    let found = async {
        let conversation = again(&client, async |client| client.target(target).await).await?;
        let mut entries = Vec::with_capacity(points.len());
        let read = async |after, limit| {
            again(&client, async |client| client.read(conversation.id, after, limit).await).await
        };
        for point in points {
            let n = file_at(&read, conversation.head, *point).await?.ok_or_else(|| {
                Failure::new(Exit::ServerSaidNo, format!("no such file in {target}"))
            })?;
            entries.push((n, entry(&client, conversation.id, n, target).await));
        }
        Ok::<_, Failure>((conversation.id, entries))
    };
    let (conversation, entries) = tokio::select! {
        found = found => found?,
        Ok(error) = &mut ended => return Err(error.into()),
        () = patience.is_over() => {
            let why = down.borrow().clone();
            return Err(match why {
                Some(error) => Failure::new(Exit::NoConnection, why_down(&error)),
                None => Failure::new(Exit::TimedOut, "timed out"),
            });
        }
        () = interrupted() => return Err(Failure::interrupted()),
    };
    client.close().await;
    Ok((conversation, entries, user))
}

/// Reads the entry of a file.
pub(super) async fn entry(
    client: &Client,
    conversation: ConversationId,
    n: u64,
    target: &str,
) -> Result<Entry, Failure> {
    let none = || {
        Failure::new(Exit::ServerSaidNo, format!("there is no entry {n} in {target}"))
            .hint("`twinlock history` shows what there is")
    };
    let page = again(client, async |client| client.read(conversation, n - 1, 1).await).await;
    let page = match page {
        // The conversation ends before `n`.
        Err(failure) if failure.exit == Exit::ServerSaidNo => return Err(none()),
        page => page?,
    };
    let entry = page.entries.into_iter().next().filter(|entry| entry.n == n).ok_or_else(none)?;
    match (&entry.file, entry.kind) {
        (Some(FileEntry { .. }), _) => Ok(entry),
        (None, Kind::FILE) => {
            Err(Failure::new(Exit::ServerSaidNo, format!("the file of entry {n} was erased")))
        }
        (None, kind) => {
            let word = kind.word();
            Err(Failure::usage(format!("entry {n} of {target} is not a file (it is {word})")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get__files_of_one_command_get_distinct_names() {
        let mut names = HashSet::new();
        let mut take = |wanted: &str, n| unlike(&mut names, &[], wanted, n);
        assert_eq!(take("a-5.txt", 3), "a-5.txt");
        assert_eq!(take("a.txt", 4), "a.txt");
        assert_eq!(take("a.txt", 5), "a-5-2.txt");
        assert_eq!(take("../a.txt", 6), "a-6.txt");
        // A name of the maximum length that already ends in the mark.
        let full = format!("{}-8", "x".repeat(253));
        assert_eq!(take(&full, 7), full);
        assert_eq!(take(&full, 8), format!("{}-8-2", "x".repeat(251)));
        assert_eq!(unlike(&mut names, &["other".to_owned()], "a.txt", 9), "a.txt");
    }
}
