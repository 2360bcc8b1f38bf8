//! Performs the effects of the app, and renders the changes.

use std::time::Duration;

use twinlock_app::{ClientEffect, Effect, FileEffect, perform};
use twinlock_client::ClientError;
use twinlock_client::Target;

use super::LineChat;
use crate::clock::now_ms;
use crate::exit::{Exit, Failure};
use crate::progress_timeout;

/// Timeout of a request: there may be no connection.
const ANSWER: Duration = Duration::from_secs(10);

impl LineChat {
    /// Prints the changes and performs the effects of the last input, until there are none.
    pub(super) async fn update(&mut self) -> Result<(), Failure> {
        loop {
            self.render_changes()?;
            let Some(effect) = self.app.poll_effect() else { return Ok(()) };
            if let Err(failure) = self.perform(effect).await {
                self.render_changes()?;
                return Err(failure);
            }
        }
    }

    async fn perform(&mut self, effect: Effect) -> Result<(), Failure> {
        let effect = match effect {
            Effect::Client(effect) => effect,
            Effect::File(FileEffect::Send { path, target }) => return self.put(path, target),
            Effect::File(FileEffect::Fetch { target, n }) => return self.get(&target, n).await,
        };
        let subject = match &effect {
            ClientEffect::JoinRoom(room) => Some(Target::Room(room.clone())),
            ClientEffect::OpenDirect(user) => Some(Target::User(user.clone())),
            _ => None,
        };
        let needs_server = effect.needs_server();
        let work = perform(&self.client, effect, now_ms());
        let outcome = if needs_server { self.ask(work).await } else { Ok(work.await?) };
        let outcome = match subject {
            Some(subject) => outcome.map_err(|failure| failure.about(&subject)),
            None => outcome,
        };
        Ok(self.app.handle_outcome(outcome?)?)
    }

    /// Sends a request to the server, which may be unreachable.
    pub(super) async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Failure> {
        let request = async {
            match request.await {
                Err(ClientError::Lost(_)) => Err(not_connected()),
                answer => Ok(answer?),
            }
        };
        self.within(request).await
    }

    /// The same for several requests in a row.
    pub(super) async fn within<T>(
        &self,
        requests: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if self.app.connection().is_down() {
            return Err(not_connected());
        }
        progress_timeout::within(ANSWER, requests).await.unwrap_or_else(|| Err(not_connected()))
    }
}

fn not_connected() -> Failure {
    Failure::new(Exit::NoConnection, "no connection to the server now")
}
