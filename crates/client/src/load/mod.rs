//! A load generator: connections that only measure a server (`twinlock bench`).
//!
//! Only the server is measured, so the client skips its own work: no outbox, no receipts, no
//! verification of links. It counts answers instead of decoding them. The bytes on the network are
//! those of any client, with TLS and the session. The server does all of its work: each message
//! becomes an entry, and its ack follows an fsync.
//!
//! All messages go into a separate room. Connections are sessions of the profile's device, each
//! with a distinct `instance`, or of users created for the run ([`Plan::users`]). A server allows
//! 16 sessions per user by default.
//!
//! A run has a warm-up, a window in which answers count, and a phase that waits for outstanding
//! answers. So [`Report::total`] is what the record has.

mod count;
mod crew;
mod fanout;
mod files;
mod idle;
mod logins;
mod measure;
mod messages;
mod process;
mod sender;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use twinlock_core::Entropy as _;
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::invite::Address;
use twinlock_core::limits::Timing;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_core::session::Binding;
use twinlock_transport::OsEntropy;

use crate::connector::{Connector, ReadySession};
use crate::error::ClientError;
use crate::profile::Profile;
use crate::request_connection::RequestConnection;
use crew::Crew;
pub use measure::{Latency, Report, ServerCost};
use process::Process;

/// Timeout for the answers that are outstanding at the end of a window.
const LAST_ANSWERS: Duration = Duration::from_secs(30);

/// Maximum number of concurrent logins.
pub const LOGINS_AT_ONCE: u32 = crew::AT_ONCE as u32;

/// The kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Connections that each keep a window of messages outstanding.
    Messages,
    /// One connection that sends, and connections that follow.
    Fanout,
    /// Idle connections.
    Idle,
    /// Logins, from the first packet to the server's READY, and the close.
    Logins,
    /// The upload of a file, then its download; from memory to memory on the client.
    Files,
}

/// The amount of load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Connections; with [`Mode::Fanout`] followers, with [`Mode::Logins`] concurrent logins.
    pub lines: usize,
    /// Outstanding messages on each connection.
    pub window: usize,
    /// Size of a message's text in bytes.
    pub size: usize,
    /// Size of a file in bytes.
    pub file: u64,
    /// Length of the window in which answers count.
    pub time: Duration,
}

/// The users of the connections, and the process to observe.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Connect to this address instead of the profile's.
    pub address: Option<Address>,
    /// Create this many users and spread the connections over them; 0: use the profile's device.
    pub users: usize,
    /// The server's process id, if it runs on this machine.
    pub server: Option<u32>,
}

/// Why a measurement failed.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The error of any client.
    #[error(transparent)]
    Client(ClientError),
    /// The device has as many sessions as the server allows.
    #[error("the server allows no more sessions for one device")]
    TooManyLines,
    /// The server allows fewer unacknowledged messages.
    #[error("the server accepts at most {most} unacknowledged messages on a connection")]
    Window {
        /// The server's limit.
        most: u32,
    },
    /// The server allows shorter texts only.
    #[error("the server accepts texts of at most {most} bytes")]
    Size {
        /// The server's limit.
        most: u32,
    },
    /// The server has not sent all answers after the window.
    #[error("the server has not answered for {} s", LAST_ANSWERS.as_secs())]
    NoAnswer,
    /// The resource use of a process cannot be read.
    #[error("what process {0} uses cannot be read from /proc (is it running on this machine?)")]
    NoProcess(u32),
    /// The run was stopped before the measurement started.
    #[error("stopped before the measurement started")]
    Stopped,
    /// A histogram could not be created.
    #[error("no histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
}

/// Stops a run early, with the results so far.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Stops the run when the sender of `told` sends `true`.
    #[must_use]
    pub fn new(told: watch::Receiver<bool>) -> Self {
        Self(told)
    }

    /// Whether the run is stopped.
    #[must_use]
    pub fn is_told(&self) -> bool {
        *self.0.borrow()
    }

    async fn told(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            // The sender is gone, so nothing stops the run.
            std::future::pending::<()>().await;
        }
    }
}

/// The room for all messages.
#[derive(Debug, Clone)]
struct Room {
    id: ConversationId,
    name: Name,
}

/// The users and the room of a load.
pub struct Load {
    crew: Arc<Crew>,
    room: Room,
    binding: Binding,
    server: Option<Process>,
    stop: Stop,
}

impl Load {
    /// Creates the room, and users if requested.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn start(profile: &Profile, plan: Plan, stop: Stop) -> Result<Self, LoadError> {
        let server = plan.server.map(Process::new).transpose()?;
        let mut tag = [0; 4];
        OsEntropy.fill(&mut tag);
        let tag = tag.iter().fold("bench-".to_owned(), |mut tag, byte| {
            let _infallible = write!(tag, "{byte:02x}");
            tag
        });
        let name = Name::new(&tag).map_err(|_| ClientError::Protocol("a room's name"))?;
        let dial = Connector::of(profile, plan.address.clone(), Timing::default())?;
        let crew = Crew::of(profile, dial.clone());
        let ReadySession { connection: line, binding, .. } = crew.open(0).await?;
        let mut wire = RequestConnection::new(line);
        let made = async {
            let topic = "made by a load generator".to_owned();
            let create = proto::CreateRoom { name: name.to_string(), topic };
            let Answered::Conversation(room) = wire.request(Op::CreateRoom(create)).await? else {
                return Err(ClientError::Protocol("an answer to another question").into());
            };
            let room = Room { id: room.id, name };
            let crew = match plan.users {
                0 => crew,
                users => {
                    Crew::recruit(profile, plan.address, dial, users, &tag, &mut wire, &stop)
                        .await?
                }
            };
            Ok::<_, LoadError>((room, crew))
        }
        .await;
        wire.close().await;
        let (room, crew) = made?;
        Ok(Self { crew: Arc::new(crew), room, binding, server, stop })
    }

    /// The room's name.
    #[must_use]
    pub fn room(&self) -> &Name {
        &self.room.name
    }

    /// The result of the channel binding.
    #[must_use]
    pub fn binding(&self) -> Binding {
        self.binding
    }

    /// Runs one measurement.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn run(&mut self, mode: Mode, shape: Shape) -> Result<Vec<Report>, LoadError> {
        match mode {
            Mode::Messages => Ok(vec![self.messages(shape).await?]),
            Mode::Fanout => Ok(vec![self.fanout(shape).await?]),
            Mode::Idle => Ok(vec![self.idle(shape).await?]),
            Mode::Logins => Ok(vec![self.logins(shape).await?]),
            Mode::Files => self.files(shape.file).await,
        }
    }

    /// Leaves the room, and revokes the devices of created users. The messages stay.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn end(self, profile: &Profile) -> Result<(), LoadError> {
        self.crew.dismiss().await?;
        let own = Crew::of(profile, self.crew.dial());
        let mut wire = RequestConnection::new(own.open(0).await?.connection);
        let leave = proto::LeaveRoom { conversation: self.room.id };
        let left = wire.request(Op::LeaveRoom(leave)).await;
        wire.close().await;
        left.map(drop).map_err(LoadError::from)
    }
}

impl From<ClientError> for LoadError {
    fn from(error: ClientError) -> Self {
        if error == ClientError::TooManySessions { Self::TooManyLines } else { Self::Client(error) }
    }
}
