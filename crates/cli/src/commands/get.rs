//! `get`: fetches files from a conversation. The entry, read with its link verified, is
//! authoritative; everything else that the server reports about a file must agree with it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use twinlock_client::model::Entry;
use twinlock_client::transfer::{Destination, DownloadRequest, DownloadTarget, name};
use twinlock_client::{ConnectionEvent, Options};
use twinlock_core::id::{ConversationId, Name};

use crate::args::{GetArgs, Point};
use crate::connection_text::why_down;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::lookup::{file_at, file_entry, is_own};
use crate::progress_timeout::ProgressTimeout;
use crate::signals::interrupted;
use crate::transfer_progress::{PROGRESS_TIMEOUT, TransferProgress, TransferredFile};

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

pub(crate) async fn run(args: GetArgs, context: &Context) -> Result<(), Failure> {
    let to_stdout = args.output.as_deref().is_some_and(|path| path.as_os_str() == "-");
    if to_stdout && (args.entries.len() > 1 || args.transfer.json) {
        let what = if args.transfer.json { "--json" } else { "several files" };
        return Err(Failure::usage(format!("{what} and `-o -` do not go together")));
    }
    let target = args.target.to_string();
    let (conversation, entries, user) = read(&target, &args.entries, context).await?;
    let mut progress = TransferProgress::new(context, &target, args.transfer.json)?;
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
                progress.no_entry(n, &failure);
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
            progress.no_entry(n, &error.into());
            continue;
        }
        jobs.push((entry, file, place));
    }
    let (transfers, events) = context.transfers(&args.transfer)?;
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
        progress.add(job, TransferredFile { name, dir, size, id, path, entry: Some(entry) });
    }
    progress.run(transfers, events, "fetched").await
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
type RequestedFiles = (ConversationId, Vec<(u64, Result<Entry, Failure>)>, Name);

/// Reads the entries across reconnects, until the timeout.
async fn read(
    target: &str,
    points: &[Point],
    context: &Context,
) -> Result<RequestedFiles, Failure> {
    let options = Options { send: false, ..Options::default() };
    let client = context.connect(options)?;
    let mut connection = client.connection_events()?;
    let mut down = None;
    let mut timeout = ProgressTimeout::new(context.global.timeout.unwrap_or(PROGRESS_TIMEOUT));
    let found = async {
        let conversation = client.until_answered(|| client.target(target)).await?;
        let mut entries = Vec::with_capacity(points.len());
        let read = async |after, limit| {
            client.until_answered(|| client.read(conversation.id, after, limit)).await
        };
        for point in points {
            let n = file_at(&read, conversation.head, *point).await?.ok_or_else(|| {
                Failure::new(Exit::ServerSaidNo, format!("no such file in {target}"))
            })?;
            entries.push((n, file_entry(&client, conversation.id, n, target).await));
        }
        Ok::<_, Failure>((conversation.id, entries))
    };
    let mut found = Box::pin(found);
    let mut interrupt = std::pin::pin!(interrupted());
    let (conversation, entries) = loop {
        tokio::select! {
            found = &mut found => break found?,
            Some(event) = connection.next() => match event {
                ConnectionEvent::Up(_) => down = None,
                ConnectionEvent::Down { error, .. } => down = Some(error),
                _ => {}
            },
            () = timeout.is_over() => {
                return Err(match down {
                    Some(error) => Failure::new(Exit::NoConnection, why_down(&error)),
                    None => Failure::new(Exit::TimedOut, "timed out"),
                });
            }
            () = &mut interrupt => return Err(Failure::interrupted()),
        }
    };
    drop(found);
    let user = client.user().clone();
    client.close().await;
    Ok((conversation, entries, user))
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
