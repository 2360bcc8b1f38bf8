//! Shows file transfers of `put`, `get`, `listen` and `chat`: on a terminal as bars with rate and
//! time left, otherwise as a line for each finished file, or as JSON events.

mod events;

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::Instant;
use twinlock_client::ClientError;
use twinlock_client::model::Entry;
use twinlock_client::outbox::Ack;
use twinlock_client::transfer::{JobId, TransferError, TransferEvent, Transfers};
use twinlock_core::id::MessageId;

use crate::connection_text::{trying_again, warn_about_tls, why_down};
use crate::context::Context;
use crate::entry::{AckJson, EntryJson, FileJson};
use crate::exit::{Exit, Failure};
use crate::output::{JsonEvents, Output, harmless, json_path};
use crate::progress_timeout::ProgressTimeout;
use crate::signals::interrupted;
use events::{FailedJson, GotJson, NoEntryJson, NoSourceJson, ProgressJson, SentJson, StartJson};

/// How long a transfer waits without progress before it fails, unless `--timeout` is given.
pub(crate) const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two progress events of one file.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// A progress bar; the file name has up to 24 columns.
const BAR: &str =
    "{prefix:24!} {wide_bar} {bytes:>11} of {total_bytes:<11} {bytes_per_sec:>13} {eta:>5}";

/// A file of this command.
pub(crate) struct TransferredFile {
    /// The name that its sender gave it.
    pub(crate) name: String,
    /// The directories above it at the sender.
    pub(crate) dir: String,
    pub(crate) size: u64,
    pub(crate) id: MessageId,
    /// Its source or destination path.
    pub(crate) path: Option<PathBuf>,
    /// The entry of a file that is fetched.
    pub(crate) entry: Option<Entry>,
}

struct RunningTransfer {
    file: TransferredFile,
    bar: Option<ProgressBar>,
    told: Instant,
    began: bool,
}

/// Running transfers, and how they are shown.
pub(crate) struct TransferProgress<'a> {
    context: &'a Context,
    target: String,
    report: Option<JsonEvents>,
    bars: Option<MultiProgress>,
    open: HashMap<JobId, RunningTransfer>,
    /// Why there is no connection now.
    down: Option<ClientError>,
    warned: bool,
    failed: Option<Exit>,
    done: usize,
}

/// Whether standard error can show progress bars.
pub(crate) fn shows_bars(quiet: bool) -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stderr().is_terminal() && !quiet && !dumb
}

impl<'a> TransferProgress<'a> {
    pub(crate) fn new(context: &'a Context, target: &str, json: bool) -> Result<Self, Failure> {
        let report = json.then(|| JsonEvents::begin(context.out)).transpose()?;
        let bars = shows_bars(context.global.quiet)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Ok(Self {
            context,
            target: target.to_owned(),
            report,
            bars,
            open: HashMap::new(),
            down: None,
            warned: false,
            failed: None,
            done: 0,
        })
    }

    pub(crate) fn add(&mut self, job: JobId, file: TransferredFile) {
        self.open
            .insert(job, RunningTransfer { file, bar: None, told: Instant::now(), began: false });
    }

    /// Reports a failure before the transfer started.
    pub(crate) fn fails(&mut self, failure: &Failure) {
        let worst = self.failed.map_or(failure.exit, |exit| exit.worse(failure.exit));
        self.failed = Some(worst);
        self.say(|out| out.failure(failure));
    }

    /// Reports a source that cannot be sent.
    pub(crate) fn no_source(&mut self, failure: &Failure) {
        if let Some(report) = &mut self.report {
            let (exit, error) = (failure.exit as u8, &failure.message);
            report.json(&NoSourceJson { event: "failed", exit, error });
        }
        self.fails(failure);
    }

    /// Reports that entry `n` cannot be fetched; the others continue.
    pub(crate) fn no_entry(&mut self, n: u64, failure: &Failure) {
        if let Some(report) = &mut self.report {
            let (event, conversation) = ("failed", &self.target);
            let (exit, error) = (failure.exit as u8, &failure.message);
            report.json(&NoEntryJson { event, conversation, n, exit, error });
        }
        self.fails(failure);
    }

    /// Runs until all files have arrived or failed.
    pub(crate) async fn run(
        mut self,
        transfers: Transfers,
        mut events: mpsc::Receiver<TransferEvent>,
        verb: &str,
    ) -> Result<(), Failure> {
        let patience = self.context.global.timeout.unwrap_or(PROGRESS_TIMEOUT);
        let mut timeout = ProgressTimeout::new(patience);
        let mut interrupt = std::pin::pin!(interrupted());
        while !self.open.is_empty() {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => if self.take(event)? {
                        timeout.renew();
                    },
                    None => break,
                },
                () = timeout.is_over() => return Err(self.gave_up(patience, verb)),
                () = &mut interrupt => return Err(self.interrupted(verb)),
            }
        }
        drop(events);
        transfers.close().await;
        match self.failed {
            Some(exit) => Err(Failure::said(exit)),
            None => self.report.map_or(Ok(()), JsonEvents::end),
        }
    }

    fn left(&self) -> usize {
        self.open.len()
    }

    fn gave_up(&mut self, patience: Duration, verb: &str) -> Failure {
        self.clear();
        let left = self.left();
        let files = if left == 1 { "1 file is".to_owned() } else { format!("{left} files are") };
        let (exit, why) = match &self.down {
            Some(error) => (Exit::NoConnection, why_down(error)),
            None => (Exit::TimedOut, format!("nothing moved for {} s", patience.as_secs())),
        };
        Failure::new(exit, format!("{files} not {verb}: {why}")).hint("the same command resumes it")
    }

    fn interrupted(&mut self, verb: &str) -> Failure {
        self.clear();
        let left = self.left();
        let files = if left == 1 { "1 file is".to_owned() } else { format!("{left} files are") };
        Failure::new(Exit::Interrupted, format!("interrupted; {files} not {verb}"))
            .hint("the same command resumes it")
    }

    /// Returns whether there was progress.
    fn take(&mut self, event: TransferEvent) -> Result<bool, Failure> {
        match event {
            TransferEvent::Up(up) => {
                if self.down.take().is_some() {
                    self.say(|out| out.say("connected again"));
                }
                if !std::mem::replace(&mut self.warned, true) {
                    self.say(|out| warn_about_tls(out, up.binding, up.tls.issuer.as_deref()));
                }
                Ok(false)
            }
            TransferEvent::Down { error, retry } => {
                if self.down.is_none() {
                    self.say(|out| out.say(&trying_again(&error, retry)));
                }
                self.down = Some(error);
                Ok(false)
            }
            TransferEvent::Began { job, from } => self.began(job, from),
            TransferEvent::Progress { job, done } => self.progress(job, done),
            TransferEvent::Changed { job, message_id, size } => {
                if let Some(shown) = self.open.get_mut(&job) {
                    (shown.file.id, shown.file.size) = (message_id, size);
                    if let Some(bar) = &shown.bar {
                        bar.set_length(size);
                    }
                    let name = harmless(&shown.file.name);
                    self.say(|out| {
                        out.say(&format!(
                            "{name} changed while it was sent; sending it again from the start"
                        ));
                    });
                }
                Ok(true)
            }
            TransferEvent::Sent { job, message_id, ack, size, hash } => {
                self.sent(job, &message_id, &ack, (size, &hash))
            }
            TransferEvent::Got { job, path } => self.got(job, path),
            TransferEvent::Failed { job, error } => self.lost(job, error),
            _ => Ok(false),
        }
    }

    fn began(&mut self, job: JobId, from: u64) -> Result<bool, Failure> {
        let Some(shown) = self.open.get_mut(&job) else { return Ok(false) };
        let TransferredFile { name, size, id, path, .. } = &shown.file;
        if let Some(bars) = &self.bars {
            let bar = shown.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(*size).with_prefix(harmless(name));
                bar.set_style(
                    ProgressStyle::with_template(BAR)
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
                bars.add(bar)
            });
            bar.set_position(from);
            bar.reset_eta();
        }
        if let Some(report) = &mut self.report {
            let path = path.as_deref().map(json_path);
            let (event, id) = ("start", id.to_string());
            report.json(&StartJson { event, id, name, path, size: *size, from });
        }
        if from > 0 && !std::mem::replace(&mut shown.began, true) {
            let words = format!(
                "{} resumes at {} of {}",
                harmless(name),
                HumanBytes(from),
                HumanBytes(*size)
            );
            self.say(|out| out.say(&words));
        }
        self.down = None;
        Ok(true)
    }

    fn progress(&mut self, job: JobId, done: u64) -> Result<bool, Failure> {
        let Some(shown) = self.open.get_mut(&job) else { return Ok(false) };
        if let Some(bar) = &shown.bar {
            bar.set_position(done);
        }
        if let Some(report) = &mut self.report
            && shown.told.elapsed() >= EVENT_INTERVAL
        {
            shown.told = Instant::now();
            let TransferredFile { name, size, id, .. } = &shown.file;
            let (event, id) = ("progress", id.to_string());
            report.json(&ProgressJson { event, id, name, size: *size, done });
        }
        Ok(true)
    }

    fn end(&mut self, job: JobId) -> Option<TransferredFile> {
        let RunningTransfer { file, bar, .. } = self.open.remove(&job)?;
        if let (Some(bar), Some(bars)) = (bar, &self.bars) {
            bar.finish_and_clear();
            bars.remove(&bar);
        }
        Some(file)
    }

    fn sent(
        &mut self,
        job: JobId,
        message_id: &MessageId,
        ack: &Ack,
        (size, hash): (u64, &[u8; 32]),
    ) -> Result<bool, Failure> {
        let Some(TransferredFile { name, dir, path, .. }) = self.end(job) else { return Ok(false) };
        self.done += 1;
        let target = self.target.clone();
        if let Some(report) = &mut self.report {
            let event = "done";
            let ack = AckJson::new(&target, message_id, ack);
            let file = FileJson::new(&name, size, hash).in_dir(&dir);
            let path = path.as_deref().map(json_path);
            report.json(&SentJson { event, ack, file, path });
        }
        let name = harmless(&name);
        let words = format!("sent {name} ({}) to {target} as entry {}", HumanBytes(size), ack.n);
        self.say(|out| out.say(&words));
        Ok(true)
    }

    fn got(&mut self, job: JobId, path: Option<PathBuf>) -> Result<bool, Failure> {
        let Some(TransferredFile { name, size, entry, .. }) = self.end(job) else {
            return Ok(false);
        };
        self.done += 1;
        if let (Some(report), Some(entry)) = (&mut self.report, &entry) {
            let (event, entry) = ("done", EntryJson::new(&self.target, entry));
            let path = path.as_deref().map(json_path);
            report.json(&GotJson { event, entry, path });
        }
        if let Some(path) = path {
            let words = format!(
                "saved {} ({}) as {}",
                harmless(&name),
                HumanBytes(size),
                harmless(&path.to_string_lossy())
            );
            self.say(|out| out.say(&words));
        }
        Ok(true)
    }

    fn lost(&mut self, job: JobId, error: TransferError) -> Result<bool, Failure> {
        let streamed = matches!(error, TransferError::Hash);
        let Some(TransferredFile { name, id, path, entry, .. }) = self.end(job) else {
            return Ok(false);
        };
        let mut failure = Failure::from(error);
        if failure.exit == Exit::Done {
            return Err(failure);
        }
        if streamed && path.is_none() && entry.is_some() {
            failure = failure.hint(
                "the bytes already written to standard output are not valid: do not use them",
            );
        }
        if let Some(report) = &mut self.report {
            let path = path.as_deref().map(json_path);
            let (event, id, exit) = ("failed", id.to_string(), failure.exit as u8);
            let error = &failure.message;
            report.json(&FailedJson { event, id, name: &name, path, exit, error });
        }
        failure.message = format!("{}: {}", harmless(&name), failure.message);
        self.fails(&failure);
        Ok(true)
    }

    /// Prints messages without fragments of bars between them.
    fn say(&self, words: impl FnOnce(&Output)) {
        match &self.bars {
            Some(bars) => bars.suspend(|| words(&self.context.out)),
            None => words(&self.context.out),
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            let _gone = bars.clear();
        }
    }
}
