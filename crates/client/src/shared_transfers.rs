//! The file transfers of a [`Client`](crate::Client), which begin with its first file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::blocking::run_blocking;
use crate::error::ClientError;
use crate::home::Home;
use crate::model::Options;
use crate::profile::Profile;
use crate::state::State;
use crate::transfer::{
    DownloadRequest, JobId, TransferError, TransferEvent, TransferOptions, Transfers, look,
};

/// A file on its way to the server; see [`crate::Client::send_file`].
#[derive(Debug)]
pub struct SentFile {
    transfers: Arc<SharedTransfers>,
    job: JobId,
    result: oneshot::Receiver<TransferResult>,
}

/// The number of the recorded entry, or the path of the fetched file.
#[derive(Debug)]
enum TransferValue {
    Recorded(u64),
    Fetched(Option<PathBuf>),
}

type TransferResult = Result<TransferValue, TransferError>;

#[derive(Debug)]
pub(crate) struct SharedTransfers {
    /// `None` once the client was closed.
    transfers: Mutex<Option<Arc<Transfers>>>,
    results: Arc<Mutex<HashMap<JobId, JobResult>>>,
}

#[derive(Debug)]
enum JobResult {
    Awaited(oneshot::Sender<TransferResult>),
    /// It arrived before its caller waited for it.
    Early(TransferResult),
    /// Its caller no longer waits.
    Abandoned,
}

impl SharedTransfers {
    pub(crate) fn start(
        home: &Home,
        profile: Profile,
        state: State,
        connection: Options,
    ) -> Result<Self, ClientError> {
        let options = TransferOptions { connection, ..TransferOptions::default() };
        let (transfers, events) = Transfers::start(home, profile, state, options)?;
        let results = Arc::default();
        tokio::spawn(route(events, Arc::clone(&results)));
        Ok(Self { transfers: Mutex::new(Some(Arc::new(transfers))), results })
    }

    pub(crate) async fn send(
        self: &Arc<Self>,
        target: &str,
        path: &Path,
    ) -> Result<SentFile, TransferError> {
        let path = path.to_owned();
        let file = run_blocking(move || look(&path)).await??;
        let transfers = self.transfers()?;
        let jobs = transfers.put(target, vec![file]).await?;
        let (job, _) = jobs.into_iter().next().ok_or(ClientError::Closed)?;
        Ok(SentFile { transfers: self.clone(), job, result: self.result_of(job) })
    }

    pub(crate) async fn fetch(
        &self,
        get: DownloadRequest,
    ) -> Result<Option<PathBuf>, TransferError> {
        let job = self.transfers()?.get(get)?;
        match self.result_of(job).await {
            Ok(Ok(TransferValue::Fetched(path))) => Ok(path),
            Ok(Ok(TransferValue::Recorded(_))) | Err(_) => Err(ClientError::Closed.into()),
            Ok(Err(error)) => Err(error),
        }
    }

    /// Ends all transfers.
    pub(crate) fn close(&self) {
        lock(&self.transfers).take();
    }

    fn transfers(&self) -> Result<Arc<Transfers>, ClientError> {
        lock(&self.transfers).clone().ok_or(ClientError::Closed)
    }

    fn result_of(&self, job: JobId) -> oneshot::Receiver<TransferResult> {
        let (sender, receiver) = oneshot::channel();
        let mut results = lock(&self.results);
        match results.remove(&job) {
            Some(JobResult::Early(result)) => _ = sender.send(result),
            _ => _ = results.insert(job, JobResult::Awaited(sender)),
        }
        receiver
    }
}

/// Passes each result to its caller.
async fn route(
    mut events: mpsc::Receiver<TransferEvent>,
    results: Arc<Mutex<HashMap<JobId, JobResult>>>,
) {
    while let Some(event) = events.recv().await {
        let (job, result) = match event {
            TransferEvent::Sent { job, ack, .. } => (job, Ok(TransferValue::Recorded(ack.n))),
            TransferEvent::Got { job, path } => (job, Ok(TransferValue::Fetched(path))),
            TransferEvent::Failed { job, error } => (job, Err(error)),
            _ => continue,
        };
        let mut results = lock(&results);
        match results.remove(&job) {
            Some(JobResult::Awaited(caller)) => _ = caller.send(result),
            Some(JobResult::Abandoned) => {}
            _ => _ = results.insert(job, JobResult::Early(result)),
        }
    }
    lock(&results).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SentFile {
    /// Waits until the file is on the server's disk and its entry is recorded; returns the entry's
    /// number.
    ///
    /// # Errors
    /// [`TransferError`]. A lost connection is not an error: the upload resumes.
    pub async fn recorded(mut self) -> Result<u64, TransferError> {
        match (&mut self.result).await {
            Ok(Ok(TransferValue::Recorded(n))) => Ok(n),
            Ok(Ok(TransferValue::Fetched(_))) | Err(_) => Err(ClientError::Closed.into()),
            Ok(Err(error)) => Err(error),
        }
    }
}

impl Drop for SentFile {
    fn drop(&mut self) {
        if let Some(waiting) = lock(&self.transfers.results).get_mut(&self.job) {
            *waiting = JobResult::Abandoned;
        }
    }
}
