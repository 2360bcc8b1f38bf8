//! The front door: a client by a profile's name, and its conversations.

use std::path::Path;
use std::sync::Arc;

use twinlock_core::id::Name;
use twinlock_core::invite::InviteLink;

use super::Client;
use crate::blocking::blocking;
use crate::connection_events::ConnectionEvents;
use crate::conversation::{Conversation, SentMessage};
use crate::delivery::Deliveries;
use crate::enrol::{self, NewUser};
use crate::error::ClientError;
use crate::event_router::EventRouter;
use crate::home::Home;
use crate::inbox::{Inbox, InboxOptions};
use crate::model::Options;
use crate::profile::{DEFAULT, Profile, ProfileError};
use crate::shared_transfers::{SentFile, SharedTransfers};
use crate::state::State;
use crate::transfer::TransferError;

/// The label of a device that [`Client::join`] enrols.
const LABEL: &str = "program";

impl Client {
    /// Opens a profile of this user ([`Home::locate`]), and connects in the background. It
    /// reconnects by itself, and messages wait on disk until there is a connection.
    ///
    /// # Errors
    /// [`ClientError`] if the profile cannot be used.
    pub async fn open(profile: &str) -> Result<Self, ClientError> {
        Self::open_in(&Home::locate()?, profile).await
    }

    /// [`Self::open`] with the directories of profiles and state.
    ///
    /// # Errors
    /// [`ClientError`] if the profile cannot be used.
    pub async fn open_in(home: &Home, profile: &str) -> Result<Self, ClientError> {
        let name = profile_name(profile)?;
        let open = {
            let home = home.clone();
            move || {
                let profile = Profile::load(&home, &name)?;
                let state = State::open(&home, &profile)?;
                Ok((profile, state))
            }
        };
        let (profile, state) = blocking(open).await?;
        Self::connect(home, profile, state, Options::default())
    }

    /// [`Self::open`] with a profile and its state. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] if the profile's CA certificates cannot be read.
    pub fn connect(
        home: &Home,
        profile: Profile,
        state: State,
        options: Options,
    ) -> Result<Self, ClientError> {
        let (mut client, events) = Self::start(home, profile, state, options)?;
        let router = EventRouter::new();
        tokio::spawn(router.clone().run(events, client.commands.downgrade()));
        client.router = Some(router);
        Ok(client)
    }

    /// Uses an invite link: registers the user with this device as the profile `default`, and opens
    /// it.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::LoginRefused`] for an invite that is used or expired.
    pub async fn join(link: &str, user: &str) -> Result<Self, ClientError> {
        Self::join_in(&Home::locate()?, DEFAULT, link, user).await
    }

    /// [`Self::join`] with the directories of profiles and state, and the profile's name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn join_in(
        home: &Home,
        profile: &str,
        link: &str,
        user: &str,
    ) -> Result<Self, ClientError> {
        let name = profile_name(profile)?;
        let link = InviteLink::parse(link)?;
        let user = Name::new(user).map_err(|_| ClientError::NotAName(user.to_owned()))?;
        let label = LABEL.to_owned();
        let route = crate::Route::default();
        let new = NewUser { user, label, password: None, require_binding: false, route };
        enrol::join(home, &name, &link, new).await?;
        Self::open_in(home, profile).await
    }

    /// A room by its name, or a direct conversation by `@` and a user name. Waits for a connection.
    ///
    /// # Errors
    /// [`ClientError::NoTarget`] if there is none; [`ClientError::EventsTaken`].
    pub async fn conversation(&self, target: &str) -> Result<Conversation, ClientError> {
        let router = self.router()?;
        let info = self.until_answered(|| self.target(target)).await?;
        Ok(Conversation::new(self.clone(), router, info))
    }

    /// Sends a text to a room, or to `@` and a user name. When this returns, the message survives a
    /// crash of this program. Needs no connection.
    ///
    /// # Errors
    /// [`ClientError::State`] if the message cannot be stored; it is not sent then.
    /// [`ClientError::EventsTaken`].
    pub async fn send(
        &self,
        target: &str,
        text: impl Into<String>,
    ) -> Result<SentMessage, ClientError> {
        let mut deliveries = self.deliveries()?;
        let ids = deliveries.send(target, vec![text.into()]).await?;
        let id = ids.first().copied().ok_or(ClientError::Closed)?;
        Ok(SentMessage::new(deliveries, id))
    }

    /// Sends a regular file to a room, or to `@` and a user name. The upload resumes after a lost
    /// connection, and in a later run if the same file is sent again. It needs this client until it
    /// is recorded.
    ///
    /// # Errors
    /// [`TransferError`] if the file cannot be read; nothing is sent then.
    pub async fn send_file(
        &self,
        target: &str,
        path: impl AsRef<Path>,
    ) -> Result<SentFile, TransferError> {
        self.transfers().await?.send(target, path.as_ref()).await
    }

    /// Sends many messages, and learns what becomes of each.
    ///
    /// # Errors
    /// [`ClientError::EventsTaken`].
    pub fn deliveries(&self) -> Result<Deliveries, ClientError> {
        Ok(Deliveries::new(self.clone(), self.router()?))
    }

    /// Receives the entries of several conversations.
    ///
    /// # Errors
    /// [`ClientError::EventsTaken`].
    pub fn inbox(&self, options: InboxOptions) -> Result<Inbox, ClientError> {
        Ok(Inbox::new(self.clone(), self.router()?, options))
    }

    /// The changes of the connection from now on, beginning with its state.
    ///
    /// # Errors
    /// [`ClientError::EventsTaken`].
    pub fn connection_events(&self) -> Result<ConnectionEvents, ClientError> {
        Ok(self.router()?.connection_events())
    }

    /// The file transfers, which begin with the first file.
    pub(crate) async fn transfers(&self) -> Result<Arc<SharedTransfers>, ClientError> {
        let source = &self.source;
        if self.ended.get().is_some() {
            return Err(self.end());
        }
        let start = async || {
            let (home, name) = (source.home.clone(), source.profile.clone());
            let profile = blocking(move || Ok(Profile::load(&home, &name)?)).await?;
            // Another process may have put another account into the profile.
            if *profile.user() != source.user || *profile.server_key() != source.server_key {
                return Err(ProfileError::Replaced { name: source.profile.clone() }.into());
            }
            let (state, options) = (self.state.clone(), source.options.clone());
            SharedTransfers::start(&source.home, profile, state, options).map(Arc::new)
        };
        source.transfers.get_or_try_init(start).await.cloned()
    }

    /// The router of events; the caller of [`Self::start`] takes them, so there is none then.
    fn router(&self) -> Result<EventRouter, ClientError> {
        self.router.clone().ok_or(ClientError::EventsTaken)
    }
}

fn profile_name(profile: &str) -> Result<Name, ClientError> {
    let bad = |_| ProfileError::BadName { got: profile.to_owned() };
    Ok(Name::new(profile).map_err(bad)?)
}
