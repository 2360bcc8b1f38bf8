//! A run: creates the room and the users, takes measurements, and cleans up.

use std::fmt::Write as _;
use std::sync::Arc;

use twinlock_client::ClientError;
use twinlock_client::connector::{Connector, ReadySession};
use twinlock_client::profile::Profile;
use twinlock_client::request_connection::RequestConnection;
use twinlock_client::route::ClientTransport;
use twinlock_core::Entropy as _;
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::limits::Timing;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_core::session::Binding;
use twinlock_transport::OsEntropy;

use crate::model::{LoadError, LoadMode, Measurement, Plan, Shape, StopSignal};
use crate::process::Process;
use crate::virtual_users::VirtualUsers;

/// The room for all messages.
#[derive(Debug, Clone)]
pub(crate) struct LoadRoom {
    pub(crate) id: ConversationId,
    pub(crate) name: Name,
}

/// The users and the room of a load.
pub struct Load {
    pub(crate) users: Arc<VirtualUsers>,
    pub(crate) room: LoadRoom,
    binding: Binding,
    transport: ClientTransport,
    issuer: Option<String>,
    pub(crate) server: Option<Process>,
    pub(crate) stop: StopSignal,
}

impl Load {
    /// Creates the room, and users if requested.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn start(profile: &Profile, plan: Plan, stop: StopSignal) -> Result<Self, LoadError> {
        let server = plan.server.map(Process::new).transpose()?;
        let mut tag = [0; 4];
        OsEntropy.fill(&mut tag);
        let tag = tag.iter().fold("bench-".to_owned(), |mut tag, byte| {
            let _infallible = write!(tag, "{byte:02x}");
            tag
        });
        let name = Name::new(&tag).map_err(|_| ClientError::Protocol("a room's name"))?;
        let connector = Connector::of(profile, plan.address.clone(), Timing::default())?;
        let connector = connector.over(plan.route.clone());
        let users = VirtualUsers::of(profile, connector.clone());
        let ReadySession { connection, binding, tls, transport, .. } = users.open(0).await?;
        let mut requests = RequestConnection::new(connection);
        let made = async {
            let topic = "made by a load generator".to_owned();
            let create = proto::CreateRoom { name: name.to_string(), topic };
            let Answered::Conversation(room) = requests.request(Op::CreateRoom(create)).await?
            else {
                return Err(ClientError::Protocol("an answer to another question").into());
            };
            let room = LoadRoom { id: room.id, name };
            let users = match plan.users {
                0 => users,
                users => {
                    VirtualUsers::recruit(
                        profile,
                        plan.address,
                        connector,
                        users,
                        &tag,
                        &mut requests,
                        &stop,
                    )
                    .await?
                }
            };
            Ok::<_, LoadError>((room, users))
        }
        .await;
        requests.close().await;
        let (room, users) = made?;
        let (users, issuer) = (Arc::new(users), tls.issuer);
        Ok(Self { users, room, binding, transport, issuer, server, stop })
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

    /// The transport of the connections.
    #[must_use]
    pub fn transport(&self) -> ClientTransport {
        self.transport
    }

    /// Who issued the TLS certificate, as it says; `None` without TLS.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// Runs one measurement.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn run(
        &mut self,
        mode: LoadMode,
        shape: Shape,
    ) -> Result<Vec<Measurement>, LoadError> {
        match mode {
            LoadMode::Messages => Ok(vec![self.messages(shape).await?]),
            LoadMode::Fanout => Ok(vec![self.fanout(shape).await?]),
            LoadMode::Idle => Ok(vec![self.idle(shape).await?]),
            LoadMode::Logins => Ok(vec![self.logins(shape).await?]),
            LoadMode::Files => self.files(shape.file).await,
        }
    }

    /// Leaves the room, and revokes the devices of created users. The messages stay.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn end(self, profile: &Profile) -> Result<(), LoadError> {
        self.users.dismiss().await?;
        let own = VirtualUsers::of(profile, self.users.connector());
        let mut requests = RequestConnection::new(own.open(0).await?.connection);
        let leave = proto::LeaveRoom { conversation: self.room.id };
        let left = requests.request(Op::LeaveRoom(leave)).await;
        requests.close().await;
        left.map(drop).map_err(LoadError::from)
    }
}
