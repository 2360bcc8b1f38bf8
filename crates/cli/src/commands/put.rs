//! `put`: sends files to a conversation; exits with 0 once all are on the server's disk.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;
use twinlock_client::home::Home;
use twinlock_client::profile::Profile;
use twinlock_client::transfer::name::DEEPEST;
use twinlock_client::transfer::{Copies, LocalFile, TransferError, gather, spool};

use crate::args::PutArgs;
use crate::blocking::blocking;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::stdin;
use crate::output::harmless;
use crate::progress_timeout::ProgressTimeout;
use crate::signals::interrupted;
use crate::transfer_progress::{TransferProgress, TransferredFile};

/// Paths of standard input. If it is closed, it must not be read as an empty file.
const STDIN_DEVICES: [&str; 3] = ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];
/// The remedy if there is no space for a copy of standard input.
const NO_ROOM: &str = "nothing was sent: free space there and send it again, or send it as a \
                       file, which needs no copy";
/// How often to check whether a source was read.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) async fn run(mut args: PutArgs, context: &Context) -> Result<(), Failure> {
    let target = args.take_target().map_err(Failure::usage)?.to_string();
    let stdin = args.files.iter().any(|file| is_stdin(file));
    if args.files.len() > 1 && (stdin || args.name.is_some()) {
        let what = if stdin { "`-`" } else { "--name" };
        return Err(Failure::usage(format!("{what} goes with one FILE only")));
    }
    if args.name.as_ref().is_some_and(String::is_empty) {
        return Err(Failure::usage("--name is empty"));
    }
    let mut progress = TransferProgress::new(context, &target, args.transfer.json)?;
    let copies = Copies::default();
    let sources = collect(&mut args, context, &copies);
    let sources = tokio::select! {
        sources = sources => sources,
        () = stalled(&copies, context.global.timeout) => {
            Err(Failure::new(Exit::TimedOut, "timed out: no source delivered a byte"))
        }
        () = interrupted() => Err(Failure::interrupted()),
    };
    let Sources { files, failures, links } = sources.inspect_err(|_| copies.discard())?;
    for link in &links {
        let link = harmless(&link.to_string_lossy());
        context.out.warn(&format!("{link} is a symbolic link, which -r leaves out"));
    }
    for failure in &failures {
        progress.no_source(failure);
    }
    if files.is_empty() && failures.is_empty() {
        return Err(Failure::usage("nothing is sent: no regular file is in the directory"));
    }
    let (transfers, events) = context.transfers(&args.transfer)?;
    let shown: Vec<_> = files
        .iter()
        .map(|file| {
            // A copied source is not at that path.
            let path = file.hash.is_none().then(|| file.source.path.clone());
            (file.name.clone(), file.path.clone(), file.source.size, path)
        })
        .collect();
    let jobs = transfers.put(&target, files).await.inspect_err(|_| copies.discard())?;
    for ((job, begun), (name, dir, size, path)) in jobs.into_iter().zip(shown) {
        progress
            .add(job, TransferredFile { name, dir, size, id: begun.message_id, path, entry: None });
    }
    progress.run(transfers, events, "sent").await
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == OsStr::new("-")
}

/// Examines the sources and copies those without a size.
async fn collect(
    args: &mut PutArgs,
    context: &Context,
    copies: &Copies,
) -> Result<Sources, Failure> {
    let (paths, name, copies) = (std::mem::take(&mut args.files), args.name.take(), copies.clone());
    let (home, profile, recursive) = (context.home()?, context.profile()?, args.recursive);
    if paths.iter().any(|path| is_stdin(path)) {
        let Some(name) = name else {
            return Err(Failure::usage("standard input needs a --name"));
        };
        // Copy all of it: size and hash must be known before it is offered.
        let mut stdin = stdin()?;
        let copy = move || spool(&home, &profile, &name, &mut stdin, &copies).map_err(no_room);
        let files = vec![blocking(copy).await?];
        return Ok(Sources { files, ..Sources::default() });
    }
    if paths.iter().any(|path| STDIN_DEVICES.iter().any(|device| path == Path::new(device))) {
        stdin()?;
    }
    let collector =
        SourceCollector { home, profile, recursive, copies, sources: Sources::default() };
    let mut sources = blocking(move || Ok::<_, Failure>(collector.collect(&paths))).await?;
    if let Some(name) = name {
        match sources.files.as_mut_slice() {
            [] => {}
            [file] => file.name = name,
            several => {
                let files = several.len();
                return Err(Failure::usage(format!(
                    "--name goes with one file only, and the directory has {files}"
                )));
            }
        }
    }
    Ok(sources)
}

/// Resolves once no source has delivered a byte for the time of `--timeout`.
async fn stalled(copies: &Copies, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    let mut timeout = ProgressTimeout::new(timeout);
    let mut seen = copies.bytes();
    loop {
        let over = tokio::select! {
            () = timeout.is_over() => true,
            () = sleep(LOOK) => false,
        };
        let now = copies.bytes();
        if now != seen {
            seen = now;
            timeout.renew();
        } else if over {
            return;
        }
    }
}

/// The files to send, and those that cannot be sent.
#[derive(Default)]
struct Sources {
    files: Vec<LocalFile>,
    failures: Vec<Failure>,
    /// Symbolic links, which are skipped.
    links: Vec<PathBuf>,
}

/// Examines named files and, with `recursive`, those in directories.
struct SourceCollector {
    home: Home,
    profile: Profile,
    recursive: bool,
    copies: Copies,
    sources: Sources,
}

impl SourceCollector {
    fn collect(mut self, paths: &[PathBuf]) -> Sources {
        for path in paths {
            match path.is_dir() {
                true if self.recursive => {
                    let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
                    self.walk(path, &name);
                }
                true => {
                    let words = format!("{} is a directory", path.display());
                    let failure = Failure::usage(words).hint("-r sends the files in it");
                    self.sources.failures.push(failure);
                }
                false => self.add(path, ""),
            }
        }
        self.sources
    }

    fn add(&mut self, path: &Path, above: &str) {
        match gather(&self.home, &self.profile, path, &self.copies) {
            Ok(found) => self.sources.files.push(LocalFile { path: above.to_owned(), ..found }),
            Err(error) => self.sources.failures.push(no_room(error)),
        }
    }

    /// Links in a directory are not followed: they may lead anywhere and form cycles. Pipes are not
    /// read: they may never end.
    fn walk(&mut self, dir: &Path, above: &str) {
        let failed = |error: io::Error| Failure::usage(format!("{}: {error}", dir.display()));
        if above.split('/').count() > DEEPEST {
            let words = format!("{} is below more than {DEEPEST} directories", dir.display());
            let failure =
                Failure::usage(words).hint("send that directory separately, or as an archive");
            return self.sources.failures.push(failure);
        }
        let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.sources.failures.push(failed(error)),
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
                Ok(kind) if kind.is_symlink() => self.sources.links.push(path),
                Ok(kind) if kind.is_file() => self.add(&path, above),
                Ok(_) => {
                    let words =
                        format!("{} is not a regular file: name it without -r", path.display());
                    self.sources.failures.push(Failure::usage(words));
                }
                Err(error) => self.sources.failures.push(failed(error)),
            }
        }
    }
}

fn no_room(error: TransferError) -> Failure {
    let full = matches!(&error, TransferError::Disk(error) if error.is_full());
    let failure = Failure::from(error);
    if full { failure.hint(NO_ROOM) } else { failure }
}
