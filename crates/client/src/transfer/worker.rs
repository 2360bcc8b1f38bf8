//! A transfer connection and its task: transfers one file after the other, connects when there is
//! one, and reconnects.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use twinlock_core::Entropy as _;
use twinlock_core::credential::Credential;
use twinlock_core::id::ConversationId;
use twinlock_core::keys::DeviceSecret;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_transport::OsEntropy;

use super::context::JobContext;
use super::download::FileDownload;
use super::error::TransferError;
use super::limit::RateLimit;
use super::model::{JobId, TransferEvent};
use super::transfer_connection::TransferConnection;
use super::upload::{FileUpload, SentFile};
use crate::connector::{Connector, ReadySession};
use crate::delays::{Delays, GOOD_CONNECTION};
use crate::error::{ClientError, Refusal};
use crate::home::Home;
use crate::model::{Options, Up};
use crate::profile::Profile;
use crate::ready::{client_info, learning};
use crate::session_log;
use crate::state::State;

/// Idle time after which a connection is closed, because sessions are limited.
const IDLE: Duration = Duration::from_secs(10);
/// Maximum number of restarts of a file that changes during its upload.
const ANEW: u32 = 2;
/// Maximum delay in seconds that the server can request.
const LONGEST_PAUSE: u32 = 60;

/// The jobs; the next free connection takes one.
pub(super) type JobQueue = Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<(JobId, TransferJob)>>>;

pub(super) enum TransferJob {
    Put(Box<FileUpload>),
    Get(Box<FileDownload>),
}

enum TransferOutcome {
    Sent(SentFile),
    Got(Option<PathBuf>),
}

/// State that all connections share.
pub(super) struct WorkerEnvironment {
    pub(super) home: Home,
    pub(super) profile: Profile,
    pub(super) state: State,
    pub(super) options: Options,
    pub(super) connector: Connector,
    pub(super) limit: Arc<RateLimit>,
    pub(super) events: mpsc::Sender<TransferEvent>,
    /// The error after which no connection is attempted.
    pub(super) fatal: Mutex<Option<ClientError>>,
}

pub(super) struct TransferWorker {
    shared: Arc<WorkerEnvironment>,
    queue: JobQueue,
    info: proto::ClientInfo,
    conversations: HashMap<String, ConversationId>,
}

impl TransferWorker {
    pub(super) fn new(shared: Arc<WorkerEnvironment>, queue: JobQueue) -> Self {
        let mut instance = [0; 8];
        OsEntropy.fill(&mut instance);
        let info = proto::ClientInfo {
            instance: Bytes::copy_from_slice(&instance),
            ..client_info(shared.profile.label())
        };
        Self { shared, queue, info, conversations: HashMap::new() }
    }

    pub(super) async fn run(mut self) {
        let mut connection = None;
        loop {
            let queue = self.queue.clone();
            let next = async move { queue.lock().await.recv().await };
            let taken = match connection {
                None => next.await,
                Some(_) => match timeout(IDLE, next).await {
                    Ok(taken) => taken,
                    Err(_) => {
                        end(connection.take());
                        continue;
                    }
                },
            };
            let Some((id, job)) = taken else { break };
            connection = self.work(id, job, connection).await;
        }
        if let Some(connection) = connection {
            connection.close().await;
        }
    }

    /// Runs a job, over as many connections as it takes; returns the last one if it still works.
    async fn work(
        &mut self,
        id: JobId,
        mut job: TransferJob,
        mut connection: Option<TransferConnection>,
    ) -> Option<TransferConnection> {
        let context = JobContext::new(
            id,
            self.shared.events.clone(),
            self.shared.limit.clone(),
            self.shared.state.clone(),
        );
        let mut delays = Delays::new(&self.shared.options);
        let mut anew = 0;
        loop {
            let began = Instant::now();
            let outcome = self.once(&mut job, &mut connection, &context).await;
            let error = match outcome {
                Ok(outcome) => {
                    self.tell(done(id, &job, outcome)).await;
                    return connection;
                }
                Err(error) => error,
            };
            let ended = connection.take_if(|connection| connection.is_dead());
            let error = match (error, &mut job) {
                (TransferError::Changed(_), TransferJob::Put(upload)) if anew < ANEW => {
                    anew += 1;
                    match upload.renew(&context).await {
                        Ok(()) => {
                            let message_id = upload.message_id;
                            let size = upload.file.source.size;
                            self.tell(TransferEvent::Changed { job: id, message_id, size }).await;
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                (error, _) => error,
            };
            let pause = match &error {
                // The connection still works.
                TransferError::Client(ClientError::Refused(Refusal {
                    why: RefusalReason::Busy,
                    retry_seconds,
                    ..
                })) => Duration::from_secs(u64::from((*retry_seconds).clamp(1, LONGEST_PAUSE))),
                TransferError::Client(error)
                    if error.is_retryable() && self.shared.options.reconnect =>
                {
                    let (moved, hint) = ended.as_ref().map_or((false, None), |connection| {
                        (connection.moved, connection.retry_after)
                    });
                    let good = moved || (ended.is_some() && began.elapsed() > GOOD_CONNECTION);
                    delays.after(good, error, hint)
                }
                _ => {
                    end(ended);
                    self.failed(id, &mut job, error, &context).await;
                    return connection;
                }
            };
            end(ended);
            if let TransferError::Client(error) = error {
                self.tell(TransferEvent::Down { error, retry: pause }).await;
            }
            sleep(pause).await;
        }
    }

    /// The existing connection, or a new one.
    async fn connection<'a>(
        &self,
        connection: &'a mut Option<TransferConnection>,
    ) -> Result<&'a mut TransferConnection, ClientError> {
        let opened = match connection {
            Some(connection) => return Ok(connection),
            None => self.connect().await?,
        };
        Ok(connection.insert(opened))
    }

    async fn connect(&self) -> Result<TransferConnection, ClientError> {
        let shared = &self.shared;
        if let Some(error) = shared.fatal.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(error);
        }
        let secret = DeviceSecret::new(shared.profile.secret().expose_secret());
        let credential = Credential::Device(*shared.profile.device(), secret);
        let opened = shared.connector.open(credential, &self.info).await.inspect_err(|error| {
            session_log::failed(shared.connector.address(), error);
            if !error.is_retryable() {
                let mut fatal = shared.fatal.lock().unwrap_or_else(PoisonError::into_inner);
                *fatal = Some(error.clone());
            }
        });
        let opened = opened?;
        session_log::begin(shared.connector.address(), &opened);
        let ReadySession { connection, info, binding, tls, transport } = opened;
        let learn = learning(&shared.home, &shared.profile, &info);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = learn() {
                tracing::warn!(%error, "the facts of READY were not stored");
            }
        });
        let up = Up { server: (&info).into(), binding, tls, transport };
        self.tell(TransferEvent::Up(Box::new(up))).await;
        Ok(TransferConnection::new(connection))
    }

    async fn once(
        &mut self,
        job: &mut TransferJob,
        connection: &mut Option<TransferConnection>,
        context: &JobContext,
    ) -> Result<TransferOutcome, TransferError> {
        if let TransferJob::Get(download) = job {
            // Reports a problem with the destination before anything else.
            download.open().await?;
        }
        let connection = self.connection(connection).await?;
        match job {
            TransferJob::Put(upload) => {
                let conversation = self.conversation(connection, &upload.target).await?;
                upload.run(connection, conversation, context).await.map(TransferOutcome::Sent)
            }
            TransferJob::Get(download) => {
                download.run(connection, context).await.map(TransferOutcome::Got)
            }
        }
    }

    async fn conversation(
        &mut self,
        connection: &mut TransferConnection,
        target: &str,
    ) -> Result<ConversationId, ClientError> {
        if let Some(known) = self.conversations.get(target) {
            return Ok(*known);
        }
        let op = match target.strip_prefix('@') {
            Some(user) => Op::OpenDirect(proto::OpenDirect { user: user.to_owned() }),
            None => Op::FindRoom(proto::FindRoom { name: target.to_owned() }),
        };
        match connection.answer(op).await? {
            Ok(Answered::Conversation(found)) => {
                self.conversations.insert(target.to_owned(), found.id);
                Ok(found.id)
            }
            Ok(_) => Err(ClientError::Protocol("an answer to another question")),
            Err(Refusal { why: RefusalReason::NotFound, .. }) => {
                Err(ClientError::NoTarget(target.to_owned()))
            }
            Err(no) => Err(ClientError::Refused(no)),
        }
    }

    async fn failed(
        &self,
        id: JobId,
        job: &mut TransferJob,
        mut error: TransferError,
        context: &JobContext,
    ) {
        match job {
            TransferJob::Get(download) => download.leave(),
            TransferJob::Put(upload) if is_final(&error) => {
                if let Err(worse) = upload.forget(context).await {
                    error = worse;
                }
            }
            TransferJob::Put(_) => {}
        }
        self.tell(TransferEvent::Failed { job: id, error }).await;
    }

    async fn tell(&self, event: TransferEvent) {
        // The consumer is gone; the transfers continue.
        let _gone = self.shared.events.send(event).await;
    }
}

/// Whether another offer of the file would be refused again, or restart the upload anyway.
fn is_final(error: &TransferError) -> bool {
    match error {
        TransferError::Client(ClientError::NoTarget(_))
        | TransferError::Changed(_)
        | TransferError::Size { .. } => true,
        error => error.refusal().is_some_and(|no| {
            !matches!(no.why, RefusalReason::Busy | RefusalReason::Storage | RefusalReason::Quota)
        }),
    }
}

fn done(job: JobId, what: &TransferJob, outcome: TransferOutcome) -> TransferEvent {
    match (outcome, what) {
        (TransferOutcome::Sent(SentFile { ack, size, hash }), TransferJob::Put(upload)) => {
            let (conversation, n) = (ack.conversation, ack.n);
            tracing::info!(
                to = upload.target.as_str(),
                conversation,
                n,
                bytes = size,
                "file recorded"
            );
            TransferEvent::Sent { job, message_id: upload.message_id, ack, size, hash }
        }
        (TransferOutcome::Got(path), _) => TransferEvent::Got { job, path },
        (TransferOutcome::Sent(_), TransferJob::Get(_)) => {
            TransferEvent::Failed { job, error: ClientError::Closed.into() }
        }
    }
}

/// Closes a connection in the background: sending the last frames takes up to a second.
fn end(connection: Option<TransferConnection>) {
    if let Some(connection) = connection {
        tokio::spawn(connection.close());
    }
}
