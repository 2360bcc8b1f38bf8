//! Files in `chat`: sent and fetched on separate connections while the chat continues.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use twinlock_app::{TransferDirection, TransferView};
use twinlock_client::transfer::{
    Copies, Destination, DownloadRequest, DownloadTarget, LocalFile, TransferError, TransferEvent,
    Transfers, gather, look, name,
};

use super::LineChat;
use crate::args::TransferArgs;
use crate::context::Context;
use crate::exit::Failure;
use crate::lookup::{file_entry, is_own};
use crate::output::harmless;

/// Transfer connections.
const JOBS: u8 = 3;

/// The transfer connections, which are opened on first use, and the files that are examined.
pub(super) struct FileTransfers {
    context: Context,
    transfers: Option<(Transfers, mpsc::Receiver<TransferEvent>)>,
    /// Files that threads examine before they are sent, with the target of each. A disk may not
    /// answer, which must not block the chat.
    examined: JoinSet<(String, Result<LocalFile, TransferError>)>,
}

/// An event of a file.
pub(super) enum FileEvent {
    /// A file was examined: it can be sent to the target, or cannot.
    Examined {
        target: String,
        found: Result<LocalFile, TransferError>,
    },
    /// The thread has already printed a message.
    ExaminationPanicked,
    Transfer(TransferEvent),
}

impl FileTransfers {
    pub(super) fn new(context: &Context) -> Self {
        Self { context: context.clone(), transfers: None, examined: JoinSet::new() }
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> FileEvent {
        let Self { transfers, examined, .. } = self;
        let event = async {
            if let Some((_, events)) = transfers
                && let Some(event) = events.recv().await
            {
                return event;
            }
            std::future::pending().await
        };
        tokio::select! {
            event = event => FileEvent::Transfer(event),
            Some(joined) = examined.join_next() => match joined {
                Ok((target, found)) => FileEvent::Examined { target, found },
                Err(_) => FileEvent::ExaminationPanicked,
            },
        }
    }

    fn transfers(&mut self) -> Result<&Transfers, Failure> {
        let transfers = match self.transfers.take() {
            Some(transfers) => transfers,
            None => {
                self.context.transfers(&TransferArgs { limit: None, jobs: JOBS, json: false })?
            }
        };
        Ok(&self.transfers.insert(transfers).0)
    }
}

impl LineChat {
    /// Starts to send a regular file. A pipe or a device is refused, because it may never end.
    pub(super) fn put(&mut self, path: PathBuf, target: String) -> Result<(), Failure> {
        let places = self.files.context.home().and_then(|home| {
            let profile = self.files.context.profile()?;
            Ok((home, profile))
        });
        let (home, profile) = places.inspect_err(|_| self.app.end_examination())?;
        self.files.examined.spawn_blocking(move || {
            let found =
                look(&path).and_then(|_| gather(&home, &profile, &path, &Copies::default()));
            (target, found)
        });
        Ok(())
    }

    /// Handles an event of a file. Returns whether there was progress.
    pub(super) async fn take_file_event(&mut self, event: FileEvent) -> Result<bool, Failure> {
        let is_progress = match event {
            FileEvent::Transfer(event) => self.app.handle_transfer(event),
            FileEvent::Examined { target, found } => {
                self.app.end_examination();
                // A file that cannot be sent does not end the chat.
                if let Err(failure) = self.send_file(target, found).await {
                    self.note_failed_file(failure.exit);
                    self.print_error(&failure.message)?;
                }
                true
            }
            FileEvent::ExaminationPanicked => {
                self.app.end_examination();
                false
            }
        };
        self.update().await?;
        Ok(is_progress)
    }

    async fn send_file(
        &mut self,
        target: String,
        found: Result<LocalFile, TransferError>,
    ) -> Result<(), Failure> {
        let file = found?;
        let transfer = TransferView {
            direction: TransferDirection::Sending,
            name: harmless(&file.name),
            size: file.source.size,
            done: 0,
            target,
            message_id: None,
        };
        let jobs = self.files.transfers()?.put(&transfer.target, vec![file]).await?;
        for (job, begun) in jobs {
            let message_id = Some(begun.message_id);
            self.app.start_transfer(job, TransferView { message_id, ..transfer.clone() });
        }
        Ok(())
    }

    /// Starts to fetch the file of an entry.
    pub(super) async fn get(&mut self, target: &str, n: u64) -> Result<(), Failure> {
        let found = self.ask(self.client.target(target)).await?;
        let entry = self.within(file_entry(&self.client, found.id, n, target)).await?;
        let Some(file) = entry.file.clone() else { return Ok(()) };
        let name = name::harmless(file.name.expose_raw());
        let transfer = TransferView {
            direction: TransferDirection::Fetching,
            name: name.to_string(),
            target: target.to_owned(),
            size: file.size,
            done: 0,
            message_id: None,
        };
        let (dir, below) = (PathBuf::from("."), name::below(file.path.expose_raw()));
        let place = Destination { dir, below, name: name.into(), force: false, keep_mode: false };
        place.check()?;
        let (conversation, own) = (found.id, is_own(&entry, self.app.user()));
        let get = DownloadRequest { conversation, n, file, own, into: DownloadTarget::File(place) };
        let job = self.files.transfers()?.get(get)?;
        self.app.start_transfer(job, transfer);
        Ok(())
    }
}

/// Expands `~/`, because no shell has processed this path.
pub(super) fn expand_home(path: &str) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}
