//! The loop of `chat`: waits for input, events and timeouts, and decides when the chat ends.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use twinlock_app::{Roster, load_roster};
use twinlock_client::{ClientError, Event};

use super::LineChat;
use super::screen::{Suspensions, TypedInput, TypedLine};
use crate::exit::{Exit, Failure};
use crate::outbox_delivery::{LOOK, QUIET, waits};
use crate::progress_timeout::ProgressTimeout;

type LoadingRoster = Pin<Box<dyn Future<Output = Result<Roster, ClientError>> + Send>>;

/// What a failed line of a script adds to its message.
const REST_NOT_SENT: &str = "no line after it was sent";

/// What the loop keeps between two events.
struct LoopState {
    /// Input and output are not both a terminal.
    is_script: bool,
    /// The input has not ended.
    is_open: bool,
    /// Why the input ended early.
    bad_input: Option<Failure>,
    /// The device has too many sessions. Another process of the profile, which has one, sends the
    /// messages.
    no_session: Option<Failure>,
    /// How long the chat waits for unsettled messages and files.
    deadline: ProgressTimeout,
    /// The wait has been explained.
    is_explained: bool,
    waits_since: Instant,
}

impl LoopState {
    /// Ends the input; what was read is still sent.
    fn close(&mut self, bad_input: Option<Failure>) {
        self.is_open = false;
        self.bad_input = bad_input.or(self.bad_input.take());
        self.deadline.renew();
    }
}

impl LineChat {
    /// Runs until the user ends it, or until the input ends and all of it is recorded.
    pub(super) async fn run(
        &mut self,
        input: &mut TypedInput,
        suspensions: &mut Suspensions,
        events: &mut mpsc::Receiver<Event>,
        interrupt: impl Future<Output = ()>,
        patience: Duration,
    ) -> Result<(), Failure> {
        let mut interrupt = std::pin::pin!(interrupt);
        // Kept across all iterations, because dropping the future would lose the request.
        let mut loading = Some(self.load_roster());
        let mut state = LoopState {
            is_script: !self.screen.is_terminal(),
            is_open: true,
            bad_input: None,
            no_session: None,
            deadline: ProgressTimeout::new(patience),
            is_explained: false,
            waits_since: Instant::now(),
        };
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while state.is_open || self.is_unsettled() {
            // Until its last line is settled, a script reads no more; the deadline counts as after
            // the end of the input.
            let settles = state.is_script && state.is_open && self.must_settle();
            let waits = !state.is_open || settles;
            if !waits {
                state.waits_since = Instant::now();
            } else {
                // No key is read any more, so signal keys (Ctrl-C) work again.
                self.screen.restore();
                if self.app.connection().is_down() {
                    self.explain_wait(&mut state, patience);
                }
            }
            let timeout = self.app.poll_timeout().map(Instant::from_std);
            tokio::select! {
                roster = next_roster(&mut loading) => {
                    loading = None;
                    self.take_roster(roster, &mut state).await?;
                }
                line = input.next(), if state.is_open && !settles => {
                    self.take_input(line, input, &mut state).await?;
                }
                event = events.recv(), if state.no_session.is_none() => match event {
                    Some(Event::Ended(None)) => return Ok(()),
                    event => {
                        let is_up = matches!(event, Some(Event::Up(_)));
                        self.take_event(event, &mut state).await?;
                        if is_up && self.app.connection().is_restored() && loading.is_none() {
                            loading = Some(self.load_roster());
                        }
                    }
                },
                event = self.files.next() => {
                    if self.take_file_event(event).await? {
                        state.deadline.renew();
                    }
                }
                // Another process of this profile may have sent it.
                _ = look.tick(), if self.app.composer().queued_count() > 0 => {
                    if self.check_outbox().await? {
                        state.deadline.renew();
                    }
                }
                () = sleep_until(state.waits_since + QUIET), if waits && !state.is_explained => {
                    self.explain_wait(&mut state, patience);
                }
                () = state.deadline.is_over(), if waits => {
                    if settles {
                        self.out.warn(REST_NOT_SENT);
                    }
                    break;
                }
                () = sleep_until(timeout.unwrap_or(state.waits_since)), if timeout.is_some() => {
                    self.app.handle_timeout(std::time::Instant::now());
                    self.update().await?;
                }
                () = suspensions.next() => self.screen.suspend().await,
                () = &mut interrupt => return Err(Failure::interrupted()),
            }
            let has_failed = self.refused_count() > 0 || self.failed.is_some();
            if state.is_script && state.is_open && has_failed {
                self.out.warn(REST_NOT_SENT);
                state.close(None);
            }
        }
        let unsettled = self.is_unsettled();
        state.no_session.filter(|_| unsettled).or(state.bad_input).map_or(Ok(()), Err)
    }

    fn load_roster(&self) -> LoadingRoster {
        let target = self.app.conversations().open_target().to_owned();
        let client = self.client.clone();
        Box::pin(async move { load_roster(&client, &target).await })
    }

    async fn take_roster(
        &mut self,
        roster: Result<Roster, ClientError>,
        state: &mut LoopState,
    ) -> Result<(), Failure> {
        match roster {
            Ok(roster) => {
                self.app.handle_roster(roster);
                self.update().await
            }
            // After a reconnection, the chat keeps the conversations that it knows.
            Err(error) if self.app.is_ready() => {
                tracing::warn!(%error, "the conversations were not listed again");
                Ok(())
            }
            // Wait until the server refuses the earlier lines, so that none stays queued.
            Err(error) if state.is_script && self.app.composer().queued_count() > 0 => {
                state.close(Some(error.into()));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn take_input(
        &mut self,
        line: Option<TypedLine>,
        input: &mut TypedInput,
        state: &mut LoopState,
    ) -> Result<(), Failure> {
        let line = match line {
            Some(Ok(line)) => line,
            Some(Err(failure)) if failure.exit == Exit::Interrupted => return Err(failure),
            // Earlier lines are still recorded.
            Some(Err(failure)) => {
                state.close(Some(failure));
                return Ok(());
            }
            None => {
                state.close(None);
                return Ok(());
            }
        };
        state.deadline.renew();
        match self.take_line(&line).await {
            Ok(is_open) => state.is_open = is_open,
            // The next line may be meant for the room that this one failed to enter.
            Err(failure) if state.is_script && failure.exit != Exit::Done => {
                state.bad_input = Some(failure.hint(REST_NOT_SENT));
                state.is_open = false;
            }
            Err(failure) => return Err(failure),
        }
        if state.is_open {
            input.request_line(self.app.conversations().open_target());
        }
        Ok(())
    }

    async fn take_event(
        &mut self,
        event: Option<Event>,
        state: &mut LoopState,
    ) -> Result<(), Failure> {
        match event {
            Some(Event::Ended(Some(error @ ClientError::TooManySessions))) if state.is_script => {
                state.no_session = Some(error.into());
                Ok(())
            }
            Some(Event::Ended(error)) => Err(error.unwrap_or(ClientError::Closed).into()),
            None => Err(ClientError::Closed.into()),
            Some(event) => {
                if matches!(event, Event::Recorded { .. }) {
                    state.deadline.renew();
                }
                self.app.handle_event(event, std::time::Instant::now());
                self.update().await
            }
        }
    }

    /// Whether a script's next line depends on a pending file or a pending text for another room.
    fn must_settle(&self) -> bool {
        self.app.transfers().open_count() > 0 || self.app.composer().has_queued_aside()
    }

    /// Explains, once, what the chat waits for.
    fn explain_wait(&self, state: &mut LoopState, patience: Duration) {
        if std::mem::replace(&mut state.is_explained, true) {
            return;
        }
        let (messages, files) =
            (self.app.composer().queued_count(), self.app.transfers().open_count());
        if messages > 0 {
            self.out.say(&waits(messages, patience));
        } else if files > 0 {
            let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
            self.out.say(&format!("waiting for {files}; Ctrl-C ends the wait"));
        }
    }
}

async fn next_roster(loading: &mut Option<LoadingRoster>) -> Result<Roster, ClientError> {
    match loading {
        Some(loading) => loading.await,
        None => std::future::pending().await,
    }
}
