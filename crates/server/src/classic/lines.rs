//! The loop of a classic connection: lines in, answers out once the entries are on disk.
//!
//! At most [`AHEAD`] lines are ahead of their answers; at that limit, nothing is read. An unknown
//! or revoked key is handled like a wrong one, up to the first line that does not open.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use twinlock_core::chain::Kind;
use twinlock_core::classic::{
    AHEAD, ClassicChannel, Form, Greeting, Heard, MAX_HELLO, MAX_LINE, answer,
};
use twinlock_core::id::Name;
use twinlock_store::{Appended, ClassicKey};
use twinlock_transport::OsEntropy;

use super::wire::{Wake, Wire};
use super::{Ended, append_log, entry};
use crate::append_log::{AppendLog, Logged};
use crate::limits::slots::{Permit, Rank};
use crate::server::Shared;
use crate::session::appends::{Appends, Batch, Recorded};
use crate::session::refusal::not_recorded;

/// Serves a connection to its end.
pub(super) async fn serve<S>(shared: &Arc<Shared>, mut wire: Wire<S>, permit: &Permit) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let greeting = Greeting::draw(&mut OsEntropy);
    wire.out().extend_from_slice(greeting.line().as_bytes());
    let heard = tokio::select! {
        line = timeout(shared.config.classic.greeting, hello(&mut wire)) => match line {
            Ok(Ok(line)) => greeting.hear(&line),
            Ok(Err(ended)) => return ended,
            Err(_) => return Ended::Late,
        },
        () = shared.stopping() => return Ended::Shutdown,
    };
    let heard = match heard {
        Ok(heard) => heard,
        Err(closed) => return closed.into(),
    };
    // Before the key is looked up, so that any later revocation is signalled.
    let revocations = shared.classic.revocations.subscribe();
    let (key, lines) = match key_and_lines(shared, heard).await {
        Ok(found) => found,
        Err(ended) => return ended,
    };
    let now = Instant::now();
    let begun = (!wire.pending().is_empty()).then_some(now);
    let account = key.as_ref().map(|key| shared.accounts.of(&key.user));
    let log = key.as_ref().map(|key| append_log(key, Kind::CLASSIC));
    let line = Line {
        shared,
        permit,
        wire,
        lines,
        key,
        revocations,
        appends: account.map(Appends::of).unwrap_or_default(),
        ending: None,
        heard: now,
        begun,
        proven: false,
        log,
    };
    line.run().await
}

async fn hello<S>(wire: &mut Wire<S>) -> Result<Vec<u8>, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        if let Some(line) = wire.take_line(MAX_HELLO)? {
            return Ok(line);
        }
        if wire.wait(true).await? == Wake::End {
            return Err(Ended::Bye);
        }
    }
}

/// The key that the client names, if it exists, and the keys of the connection's lines. For an
/// unknown name, those of a key that does not exist.
pub(super) async fn key_and_lines(
    shared: &Shared,
    heard: Heard,
) -> Result<(Option<ClassicKey>, ClassicChannel), Ended> {
    // An invalid name belongs to no key. The protocol allows names that the server does not accept;
    // they are looked up as a name without a key.
    #[allow(clippy::expect_used)]
    let name = Name::new(heard.kid()).unwrap_or_else(|_| Name::new("nobody").expect("a constant"));
    let row = shared.store.classic_key(&name).await?;
    let row = row.filter(|row| row.form == Form::Jwe && row.name.as_str() == heard.kid());
    let row = row.filter(|row| !shared.barred.has_key(&row.name));
    let psk = shared.classic.key(&name, row.as_ref());
    let lines = heard.lines(&psk);
    Ok((row, lines))
}

struct Line<'s, S> {
    shared: &'s Arc<Shared>,
    permit: &'s Permit,
    wire: Wire<S>,
    lines: ClassicChannel,
    /// `None`: the key does not exist, so no line opens.
    key: Option<ClassicKey>,
    revocations: watch::Receiver<u64>,
    appends: Appends,
    /// Set once nothing more is read; the connection ends when everything is answered.
    ending: Option<Ended>,
    /// Time of the last line.
    heard: Instant,
    /// Since when part of a line is pending.
    begun: Option<Instant>,
    /// A line has opened.
    proven: bool,
    log: Option<AppendLog>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<'_, S> {
    async fn run(mut self) -> Ended {
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(ended) => {
                    self.end_log();
                    return ended;
                }
            }
            if self.ending.is_some() && self.appends.is_empty() {
                self.end_log();
                self.wire.finish().await;
                return self.ending.unwrap_or(Ended::Bye);
            }
        }
    }

    fn end_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.end(self.shared);
        }
    }

    /// Hands over the complete lines, then waits for the next event.
    async fn turn(&mut self) -> Result<(), Ended> {
        // A key that was revoked before a line arrived must not open it.
        if self.revocations.has_changed().map_err(|_| Ended::Shutdown)? {
            self.revocations.mark_unchanged();
            self.look_again().await?;
        }
        if self.ending.is_none() {
            self.take_lines().await?;
        }
        let listen = self.ending.is_none() && self.may_take(&Batch::default());
        if !listen {
            // A client that is not read is not late.
            self.begun = self.begun.map(|_| Instant::now());
        }
        let deadline = self.deadline(listen);
        tokio::select! {
            biased;
            changed = self.revocations.changed() => {
                // `shared` holds the sender.
                changed.map_err(|_| Ended::Shutdown)?;
                self.look_again().await?;
            }
            Some(recorded) = self.appends.next() => self.answer(recorded)?,
            () = self.shared.stopping(), if self.ending.is_none() => {
                self.ending = Some(Ended::Shutdown);
            }
            wake = self.wire.wait(listen) => match wake? {
                Wake::Data => _ = self.begun.get_or_insert_with(Instant::now),
                Wake::End => self.ending = Some(Ended::Bye),
                Wake::Room => {}
            },
            () = sleep_until(deadline) => self.check_time(listen)?,
        }
        Ok(())
    }

    /// Whether another line may be ahead of its answer, in addition to those in `batch`.
    fn may_take(&self, batch: &Batch) -> bool {
        self.appends.count() + batch.len() < AHEAD
            && self.appends.have_room(batch, &self.shared.config.limits)
            && self.wire.has_room()
    }

    fn deadline(&self, listen: bool) -> Instant {
        let limits = &self.shared.config.classic;
        let half = self.begun.filter(|_| listen).map(|begun| begun + limits.half_line);
        let silence = self.heard + limits.silence;
        let log = self.log.as_ref().and_then(AppendLog::due);
        let all = [half, self.wire.look_at(limits.half_line), log];
        all.into_iter().flatten().fold(silence, Instant::min)
    }

    /// Checks the timeouts, and logs what is due.
    fn check_time(&mut self, listen: bool) -> Result<(), Ended> {
        if let Some(log) = &mut self.log {
            log.write_due(self.shared, Instant::now());
        }
        let limits = &self.shared.config.classic;
        self.wire.check(limits.half_line)?;
        if self.begun.is_some_and(|begun| listen && begun.elapsed() >= limits.half_line) {
            return Err(Ended::Late);
        }
        if self.heard.elapsed() >= limits.silence { Err(Ended::Silence) } else { Ok(()) }
    }

    /// Opens the complete lines, as many as may be ahead, and hands them over together.
    async fn take_lines(&mut self) -> Result<(), Ended> {
        let mut batch = Batch::default();
        let mut broken = None;
        while self.may_take(&batch) {
            let line = match self.wire.take_line(MAX_LINE) {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(lost) => {
                    broken = Some(lost.into());
                    break;
                }
            };
            self.heard = Instant::now();
            self.begun = (!self.wire.pending().is_empty()).then_some(self.heard);
            match self.open(&line) {
                Ok(entry) => batch.push(0, entry),
                Err(ended) => {
                    broken = Some(ended);
                    break;
                }
            }
        }
        self.appends.record(self.shared, batch).await;
        broken.map_or(Ok(()), Err)
    }

    fn open(&mut self, line: &[u8]) -> Result<twinlock_store::NewEntry, Ended> {
        let text = self.lines.open(line)?;
        // A key that does not exist opens nothing.
        let key = self.key.as_ref().ok_or(twinlock_core::classic::Closed::Tag)?;
        if !self.proven {
            if !self.permit.rise(Rank::Held) {
                return Err(Ended::Wanted);
            }
            self.proven = true;
            tracing::info!(user = %key.user, key = %key.name, "classic connection");
        }
        Ok(entry(self.shared, key, Kind::CLASSIC, text))
    }

    fn answer(&mut self, recorded: Recorded) -> Result<(), Ended> {
        let appended = match recorded.result {
            Ok(appended) => appended,
            Err(error) => {
                not_recorded(&error);
                return Err(error.into());
            }
        };
        for (asked, appended) in recorded.requests.iter().zip(appended) {
            let Appended::Recorded(receipt) = appended else { return Err(Ended::NotAMember) };
            if let Some(log) = &mut self.log {
                let (conversation, n, bytes) = (receipt.conversation, receipt.n, asked.bytes);
                log.note(self.shared, &[Logged { conversation, n, bytes }]);
            }
            let text = answer(receipt.conversation, receipt.n, &receipt.link);
            self.lines.seal(&text, &mut OsEntropy, self.wire.out());
        }
        Ok(())
    }

    /// Checks after a revocation whether this connection's key still exists.
    ///
    /// Until the client has proven a key, its revocation changes nothing that the client can see. A
    /// close would reveal that the key existed.
    async fn look_again(&mut self) -> Result<(), Ended> {
        let Some(key) = &self.key else { return Ok(()) };
        let now = self.shared.store.classic_key(&key.name).await?;
        match now.as_ref() == Some(key) && !self.shared.barred.has_key(&key.name) {
            true => Ok(()),
            false if self.proven => Err(Ended::Revoked),
            false => {
                self.key = None;
                Ok(())
            }
        }
    }
}
