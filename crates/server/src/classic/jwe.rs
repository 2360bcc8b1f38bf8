//! The loop of a classic connection: lines in, answers out once the entries are on disk.
//!
//! At most [`MAX_UNANSWERED`] lines are ahead of their answers; at that limit, nothing is read. An
//! unknown or revoked key is handled like a wrong one, up to the first line that does not open.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use twinlock_core::chain::EntryKind;
use twinlock_core::classic::{
    ClassicChannel, ClassicHello, ClassicScheme, Greeting, MAX_HELLO, MAX_LINE, MAX_UNANSWERED,
    answer,
};
use twinlock_core::id::Name;
use twinlock_store::{Appended, StoredClassicKey};
use twinlock_transport::OsEntropy;

use super::end::ClassicEnd;
use super::entry::{append_log, entry};
use super::line_stream::{LineStream, StreamWake};
use crate::admission::Admission;
use crate::append_log::{AppendLog, RecordedAppend};
use crate::appends::{AnsweredBatch, AppendBatch, Appends};
use crate::limits::connection_limiter::{Permit, Rank};
use crate::record::Record;
use crate::refusal::not_recorded;
use crate::services::Services;

/// Serves a connection to its end.
pub(super) async fn serve<S>(
    services: &Services,
    mut stream: LineStream<S>,
    permit: &Permit,
) -> ClassicEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let greeting = Greeting::draw(&mut OsEntropy);
    stream.out().extend_from_slice(greeting.line().as_bytes());
    let hello = tokio::select! {
        line = timeout(services.env.config.classic.greeting, hello(&mut stream)) => match line {
            Ok(Ok(line)) => greeting.read_hello(&line),
            Ok(Err(ended)) => return ended,
            Err(_) => return ClassicEnd::Late,
        },
        () = services.env.stopping() => return ClassicEnd::Shutdown,
    };
    let hello = match hello {
        Ok(hello) => hello,
        Err(closed) => return closed.into(),
    };
    // Before the key is looked up, so that any later revocation is signalled.
    let revocations = services.bus.watch_keys();
    let (key, lines) = match key_and_lines(&services.admission, &services.record, hello).await {
        Ok(found) => found,
        Err(ended) => return ended,
    };
    let now = Instant::now();
    let begun = (!stream.pending().is_empty()).then_some(now);
    let account = key.as_ref().map(|key| services.record.accounts.of(&key.user));
    let log = key.as_ref().map(|key| append_log(key, EntryKind::CLASSIC));
    let connection = JweConnection {
        services,
        permit,
        stream,
        lines,
        key,
        revocations,
        appends: account.map(Appends::of).unwrap_or_default(),
        ending: None,
        last_data: now,
        begun,
        proven: false,
        log,
    };
    connection.run().await
}

async fn hello<S>(stream: &mut LineStream<S>) -> Result<Vec<u8>, ClassicEnd>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        if let Some(line) = stream.take_line(MAX_HELLO)? {
            return Ok(line);
        }
        if stream.wait(true).await? == StreamWake::End {
            return Err(ClassicEnd::Bye);
        }
    }
}

/// The key that the client names, if it exists, and the keys of the connection's lines. For an
/// unknown name, those of a key that does not exist.
pub(super) async fn key_and_lines(
    admission: &Admission,
    record: &Record,
    hello: ClassicHello,
) -> Result<(Option<StoredClassicKey>, ClassicChannel), ClassicEnd> {
    // An invalid name belongs to no key. The protocol allows names that the server does not accept;
    // they are looked up as a name without a key.
    #[allow(clippy::expect_used)]
    let name = Name::new(hello.kid()).unwrap_or_else(|_| Name::new("nobody").expect("a constant"));
    let row = record.store.classic_key(&name).await?;
    let row = row.filter(|row| row.form == ClassicScheme::Jwe && row.name.as_str() == hello.kid());
    let row = row.filter(|row| !record.barred.has_key(row));
    let psk = admission.classic_key(&name, row.as_ref());
    let lines = hello.lines(&psk);
    Ok((row, lines))
}

struct JweConnection<'s, S> {
    services: &'s Services,
    permit: &'s Permit,
    stream: LineStream<S>,
    lines: ClassicChannel,
    /// `None`: the key does not exist, so no line opens.
    key: Option<StoredClassicKey>,
    revocations: watch::Receiver<u64>,
    appends: Appends,
    /// Set once nothing more is read; the connection ends when everything is answered.
    ending: Option<ClassicEnd>,
    /// Time of the last line.
    last_data: Instant,
    /// Since when part of a line is pending.
    begun: Option<Instant>,
    /// A line has opened.
    proven: bool,
    log: Option<AppendLog>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> JweConnection<'_, S> {
    async fn run(mut self) -> ClassicEnd {
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
                self.stream.finish().await;
                return self.ending.unwrap_or(ClassicEnd::Bye);
            }
        }
    }

    fn end_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.end(&self.services.record);
        }
    }

    /// Hands over the complete lines, then waits for the next event.
    async fn turn(&mut self) -> Result<(), ClassicEnd> {
        // A key that was revoked before a line arrived must not open it.
        if self.revocations.has_changed().map_err(|_| ClassicEnd::Shutdown)? {
            self.revocations.mark_unchanged();
            self.recheck_key().await?;
        }
        if self.ending.is_none() {
            self.take_lines().await?;
        }
        let listen = self.ending.is_none() && self.may_take(&AppendBatch::default());
        if !listen {
            // A client that is not read is not late.
            self.begun = self.begun.map(|_| Instant::now());
        }
        let deadline = self.deadline(listen);
        tokio::select! {
            biased;
            changed = self.revocations.changed() => {
                // The bus holds the sender.
                changed.map_err(|_| ClassicEnd::Shutdown)?;
                self.recheck_key().await?;
            }
            Some(recorded) = self.appends.next() => self.answer(recorded)?,
            () = self.services.env.stopping(), if self.ending.is_none() => {
                self.ending = Some(ClassicEnd::Shutdown);
            }
            wake = self.stream.wait(listen) => match wake? {
                StreamWake::Data => _ = self.begun.get_or_insert_with(Instant::now),
                StreamWake::End => self.ending = Some(ClassicEnd::Bye),
                StreamWake::Room => {}
            },
            () = sleep_until(deadline) => self.check_time(listen)?,
        }
        Ok(())
    }

    /// Whether another line may be ahead of its answer, in addition to those in `batch`.
    fn may_take(&self, batch: &AppendBatch) -> bool {
        self.appends.count() + batch.len() < MAX_UNANSWERED
            && self.appends.have_room(batch, &self.services.env.config.limits)
            && self.stream.has_room()
    }

    fn deadline(&self, listen: bool) -> Instant {
        let limits = &self.services.env.config.classic;
        let half = self.begun.filter(|_| listen).map(|begun| begun + limits.half_line);
        let silence = self.last_data + limits.silence;
        let log = self.log.as_ref().and_then(AppendLog::due);
        let all = [half, self.stream.check_at(limits.half_line), log];
        all.into_iter().flatten().fold(silence, Instant::min)
    }

    /// Checks the timeouts, and logs the due sums.
    fn check_time(&mut self, listen: bool) -> Result<(), ClassicEnd> {
        if let Some(log) = &mut self.log {
            log.write_due(&self.services.record, Instant::now());
        }
        let limits = &self.services.env.config.classic;
        self.stream.check(limits.half_line)?;
        if self.begun.is_some_and(|begun| listen && begun.elapsed() >= limits.half_line) {
            return Err(ClassicEnd::Late);
        }
        if self.last_data.elapsed() >= limits.silence { Err(ClassicEnd::Silence) } else { Ok(()) }
    }

    /// Opens the complete lines, as many as may be ahead, and hands them over together.
    async fn take_lines(&mut self) -> Result<(), ClassicEnd> {
        let mut batch = AppendBatch::default();
        let mut broken = None;
        while self.may_take(&batch) {
            let line = match self.stream.take_line(MAX_LINE) {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(lost) => {
                    broken = Some(lost.into());
                    break;
                }
            };
            self.last_data = Instant::now();
            self.begun = (!self.stream.pending().is_empty()).then_some(self.last_data);
            match self.open(&line) {
                Ok(entry) => batch.push(0, entry),
                Err(ended) => {
                    broken = Some(ended);
                    break;
                }
            }
        }
        self.appends.record(&self.services.record, batch).await;
        broken.map_or(Ok(()), Err)
    }

    fn open(&mut self, line: &[u8]) -> Result<twinlock_store::NewEntry, ClassicEnd> {
        let text = self.lines.open(line)?;
        // A key that does not exist opens nothing.
        let key = self.key.as_ref().ok_or(twinlock_core::classic::Closed::Tag)?;
        if !self.proven {
            if !self.permit.rise(Rank::Held) {
                return Err(ClassicEnd::Wanted);
            }
            self.proven = true;
            tracing::info!(user = %key.user, key = %key.name, "classic connection");
        }
        Ok(entry(&self.services.env, &self.services.record, key, EntryKind::CLASSIC, text))
    }

    fn answer(&mut self, recorded: AnsweredBatch) -> Result<(), ClassicEnd> {
        let appended = match recorded.result {
            Ok(appended) => appended,
            Err(error) => {
                not_recorded(&error);
                return Err(error.into());
            }
        };
        for (asked, appended) in recorded.requests.iter().zip(appended) {
            let Appended::Recorded(receipt) = appended else { return Err(ClassicEnd::NotAMember) };
            if let Some(log) = &mut self.log {
                let (conversation, n, bytes) = (receipt.conversation, receipt.n, asked.bytes);
                log.note(&self.services.record, &[RecordedAppend { conversation, n, bytes }]);
            }
            let text = answer(receipt.conversation, receipt.n, &receipt.link);
            self.lines.seal(&text, &mut OsEntropy, self.stream.out());
        }
        Ok(())
    }

    /// Checks after a revocation whether this connection's key still exists.
    ///
    /// Until the client has proven a key, its revocation changes nothing that the client can see. A
    /// close would reveal that the key existed.
    async fn recheck_key(&mut self) -> Result<(), ClassicEnd> {
        let Some(key) = &self.key else { return Ok(()) };
        let now = self.services.record.store.classic_key(&key.name).await?;
        match now.as_ref() == Some(key) && !self.services.record.barred.has_key(key) {
            true => Ok(()),
            false if self.proven => Err(ClassicEnd::Revoked),
            false => {
                self.key = None;
                Ok(())
            }
        }
    }
}
