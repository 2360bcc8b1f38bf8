//! The front door: a client by a profile's name, and its conversations.

use twinlock_core::id::Name;
use twinlock_core::invite::InviteLink;

use super::Client;
use crate::blocking::blocking;
use crate::conversation::Conversation;
use crate::enrol::{self, NewUser};
use crate::error::ClientError;
use crate::event_router::EventRouter;
use crate::home::Home;
use crate::model::Options;
use crate::profile::{DEFAULT, Profile, ProfileError};
use crate::state::State;

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
        let user = profile.user().clone();
        let (mut client, events) = Self::start(home, profile, state, Options::default())?;
        let router = EventRouter::new(user);
        tokio::spawn(router.clone().run(events));
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
    /// [`ClientError::NoTarget`] if there is none; [`ClientError::EventsTaken`] if this client is
    /// not from [`Self::open`] or [`Self::join`].
    pub async fn conversation(&self, target: &str) -> Result<Conversation, ClientError> {
        let router = self.router.clone().ok_or(ClientError::EventsTaken)?;
        let found = loop {
            match self.target(target).await {
                // The connection was lost during the request.
                Err(ClientError::Lost(_)) => {}
                found => break found?,
            }
        };
        Ok(Conversation::new(self.clone(), router, target, found.id, found.head))
    }
}

fn profile_name(profile: &str) -> Result<Name, ClientError> {
    let bad = |_| ProfileError::BadName { got: profile.to_owned() };
    Ok(Name::new(profile).map_err(bad)?)
}
