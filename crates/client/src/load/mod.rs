//! A load generator: lines that do nothing but measure a server (`twinlock bench`).
//!
//! It is the server that is measured, so what a client does for itself is left out: no outbox, no
//! receipts, no link is checked, answers are counted rather than decoded. What goes over the wire
//! is what every client sends, over both locks, and the server does all that it does for anybody:
//! each message becomes an entry, and its ack comes after fsync.
//!
//! All of it is written into a room of its own. Lines are sessions of the profile's device, each
//! with an `instance` of its own, or of users that are made for it ([`Plan::users`]): a server has
//! 16 sessions for a user unless told otherwise.
//!
//! A run is a warm-up, then a window in which answers count, then an end in which everything that
//! is outstanding is answered still, so that [`Report::total`] is what the record has.

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
use twinlock_link::OsEntropy;

use crate::dial::{Dial, Opened};
use crate::error::ClientError;
use crate::profile::Profile;
use crate::transfer::wire::Wire;
use crew::Crew;
pub use measure::{Latency, Report, ServerCost};
use process::Process;

/// What is outstanding at the end of a window is answered within this.
const LAST_ANSWERS: Duration = Duration::from_secs(30);

/// Logins at once, at most.
pub const LOGINS_AT_ONCE: u32 = crew::AT_ONCE as u32;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Lines that each keep a window of messages outstanding.
    Messages,
    /// One line that sends, and lines that follow.
    Fanout,
    /// Lines that do nothing.
    Idle,
    /// Logins, from the first packet to the server's READY, and the bye.
    Logins,
    /// A file sent, then fetched; from memory to memory on this side.
    Files,
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Lines; with [`Mode::Fanout`] those that follow, with [`Mode::Logins`] logins at once.
    pub lines: usize,
    /// Messages outstanding on each line.
    pub window: usize,
    /// Bytes of a message's text.
    pub size: usize,
    /// Bytes of a file.
    pub file: u64,
    /// How long answers count.
    pub time: Duration,
}

/// Who the lines are and what is watched.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Connect there instead of where the profile says.
    pub address: Option<Address>,
    /// Make so many users and spread the lines over them; 0: the lines are the profile's own.
    pub users: usize,
    /// The server's process, if it is on this machine.
    pub server: Option<u32>,
}

/// Why a measurement did not come about.
#[derive(Debug, Error)]
pub enum LoadError {
    /// As for any other client.
    #[error(transparent)]
    Client(ClientError),
    /// The device has as many sessions as the server allows.
    #[error("the server has no more sessions for one device")]
    TooManyLines,
    /// The server takes fewer messages ahead of its acks.
    #[error("the server takes at most {most} unacknowledged messages on a line")]
    Window {
        /// So many.
        most: u32,
    },
    /// The server takes shorter texts.
    #[error("the server takes texts of at most {most} bytes")]
    Size {
        /// So many.
        most: u32,
    },
    /// The server still owes answers after the window.
    #[error("the server has not answered for {} s", LAST_ANSWERS.as_secs())]
    NoAnswer,
    /// What a process uses cannot be read.
    #[error("what process {0} uses cannot be read from /proc (is it running on this machine?)")]
    NoProcess(u32),
    /// It was told to stop before anything was measured.
    #[error("stopped before anything was measured")]
    Stopped,
    /// A histogram could not be made.
    #[error("no histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
}

/// Tells a run to end now with what it has.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Told by sending `true`.
    #[must_use]
    pub fn new(told: watch::Receiver<bool>) -> Self {
        Self(told)
    }

    /// Whether it was told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        *self.0.borrow()
    }

    async fn told(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            // Nobody is left who could.
            std::future::pending::<()>().await;
        }
    }
}

/// The room that everything is written into.
#[derive(Debug, Clone)]
struct Room {
    id: ConversationId,
    name: Name,
}

/// Lines with a room of their own.
pub struct Load {
    crew: Arc<Crew>,
    room: Room,
    binding: Binding,
    server: Option<Process>,
    stop: Stop,
}

impl Load {
    /// Makes the room, and the users if there are to be some.
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
        let dial = Dial::of(profile, plan.address.clone(), Timing::default())?;
        let crew = Crew::of(profile, dial.clone());
        let Opened { line, binding, .. } = crew.open(0).await?;
        let mut wire = Wire::new(line);
        let made = async {
            let topic = "made by a load generator".to_owned();
            let create = proto::CreateRoom { name: name.to_string(), topic };
            let room = match wire.answer(Op::CreateRoom(create)).await? {
                Ok(Answered::Conversation(room)) => Room { id: room.id, name },
                Ok(_) => return Err(ClientError::Protocol("an answer to another question").into()),
                Err(no) => return Err(ClientError::Refused(no).into()),
            };
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

    /// What is known about TLS.
    #[must_use]
    pub fn binding(&self) -> Binding {
        self.binding
    }

    /// Measures.
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

    /// Leaves the room, and locks out the users that were made. What was written stays.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn end(self, profile: &Profile) -> Result<(), LoadError> {
        self.crew.dismiss().await?;
        let own = Crew::of(profile, self.crew.dial());
        let mut wire = Wire::new(own.open(0).await?.line);
        let leave = proto::LeaveRoom { conversation: self.room.id };
        let left = wire.answer(Op::LeaveRoom(leave)).await;
        wire.close().await;
        left?.map(drop).map_err(|no| ClientError::Refused(no).into())
    }
}

impl From<ClientError> for LoadError {
    fn from(error: ClientError) -> Self {
        if error == ClientError::TooManySessions { Self::TooManyLines } else { Self::Client(error) }
    }
}
