//! The loop of an origin bridge connection: a message, its answer, the next one.
//!
//! The origin's client sends no line ends. A message is complete at LF, or when nothing more is
//! readable and it opens, or after a pause. A message that does not open ends the connection, after
//! a delay in the tarpit: this slows down attacks on the padding of the plain form. Only a few
//! connections are in the tarpit at once, and others wait for their turn.

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use twinlock_core::chain::EntryKind;
use twinlock_core::classic::ClassicScheme;
use twinlock_core::classic::origin::{Bridge, MAX_MESSAGE};
use twinlock_store::{Appended, Receipt, StoreError, StoredClassicKey};
use twinlock_transport::OsEntropy;

use super::end::ClassicEnd;
use super::entry::{append_log, entry};
use super::line_stream::{LineStream, StreamLost, StreamWake};
use crate::append_log::{AppendLog, RecordedAppend};
use crate::limits::accounts::ENTRY;
use crate::limits::connection_limiter::{Permit, Rank};
use crate::refusal::{Unrecorded, not_recorded};
use crate::services::Services;

/// Serves a connection to its end.
pub(super) async fn serve<S>(
    services: &Services,
    stream: LineStream<S>,
    permit: &Permit,
) -> ClassicEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Before any key is looked up, so that any later revocation is signalled.
    let revocations = services.bus.watch_keys();
    let mut connection = BridgeConnection {
        services,
        permit,
        stream,
        revocations,
        keys: None,
        bound: false,
        lines: false,
        loose: false,
        tried: false,
        log: None,
    };
    let ended = connection.run().await;
    if let Some(log) = &mut connection.log {
        log.end(&services.record);
    }
    // However it ends: a client that closes first has used its attempt all the same.
    if connection.tried
        || matches!(ended, ClassicEnd::NotOpened | ClassicEnd::Lost(StreamLost::TooLong))
    {
        tracing::debug!("a message of the origin bridge was not opened: the close is delayed");
        tokio::select! {
            () = services.admission.tarpit() => {}
            () = services.env.stopping() => {}
        }
    }
    if matches!(ended, ClassicEnd::Bye | ClassicEnd::Shutdown) {
        connection.stream.finish().await;
    }
    ended
}

/// A key of the bridge, with its cipher.
type BridgeKey = (StoredClassicKey, Bridge);

struct BridgeConnection<'s, S> {
    services: &'s Services,
    permit: &'s Permit,
    stream: LineStream<S>,
    revocations: watch::Receiver<u64>,
    /// The keys that a message may use; looked up with the first bytes.
    keys: Option<Vec<BridgeKey>>,
    /// A message has opened, and from then on only its key counts.
    bound: bool,
    /// A message ended with LF, so the next ones are expected to.
    lines: bool,
    /// The last message ended without LF, which may still arrive.
    loose: bool,
    /// The last bytes have not opened so far.
    tried: bool,
    /// Set by the first message.
    log: Option<AppendLog>,
}

/// A message that opened.
struct BridgeMessage {
    text: String,
    /// It ended with LF, so the answer does.
    lf: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> BridgeConnection<'_, S> {
    async fn run(&mut self) -> ClassicEnd {
        loop {
            if let Err(ended) = self.serve_message().await {
                return ended;
            }
        }
    }

    /// Receives a message and answers it.
    async fn serve_message(&mut self) -> Result<(), ClassicEnd> {
        let BridgeMessage { text, lf } = self.message().await?;
        let first = self.keys.as_ref().and_then(|keys| keys.first());
        let Some((key, bridge)) = first else { return Err(ClassicEnd::NotOpened) };
        let bytes = text.len();
        let account = self.services.record.accounts.of(&key.user);
        let charge = bytes as u64 + ENTRY;
        if let Err(refused) = self.services.record.may_record(Some(&account), charge) {
            let error = Unrecorded::Limit(refused);
            not_recorded(&error);
            return Err(error.into());
        }
        let entry =
            entry(&self.services.env, &self.services.record, key, EntryKind::UNPROTECTED, text);
        let receipt = match self.services.record.store.append(vec![entry]).await {
            Ok(appended) => match appended.into_iter().next() {
                Some(Appended::Recorded(receipt)) => receipt,
                _ => return Err(ClassicEnd::NotAMember),
            },
            Err(error) => {
                account.give_back(charge);
                let error = Unrecorded::from(error);
                not_recorded(&error);
                return Err(error.into());
            }
        };
        let log = self.log.get_or_insert_with(|| append_log(key, EntryKind::UNPROTECTED));
        let (conversation, n) = (receipt.conversation, receipt.n);
        log.note(&self.services.record, &[RecordedAppend { conversation, n, bytes }]);
        let mut answer = bridge.seal(&received_at(&receipt), &mut OsEntropy);
        if lf {
            answer.push('\n');
        }
        self.stream.out().extend_from_slice(answer.as_bytes());
        // Nothing is read while the user's rate is exceeded.
        while let Some(wait) = account.text_wait(Instant::now().into_std()) {
            let until = Instant::now() + wait;
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.services.env.stopping() => return Err(ClassicEnd::Shutdown),
                // The answer is still sent.
                wake = self.stream.wait(false) => {
                    wake?;
                }
            }
        }
        Ok(())
    }

    /// Waits for a message that opens.
    async fn message(&mut self) -> Result<BridgeMessage, ClassicEnd> {
        let limits = &self.services.env.config.classic;
        let (mut last_data, began) = (Instant::now(), Instant::now());
        // When the pending, incomplete message began.
        let mut begun = None;
        loop {
            // Checked even if the next message is already buffered.
            if self.revocations.has_changed().map_err(|_| ClassicEnd::Shutdown)? {
                self.revocations.mark_unchanged();
                self.recheck_key().await?;
            }
            if self.services.env.stopping().now_or_never().is_some() {
                return Err(ClassicEnd::Shutdown);
            }
            if !self.stream.has_room() {
                self.make_room().await?;
                last_data = Instant::now();
            }
            if let Some(line) = self.stream.take_line(MAX_MESSAGE)? {
                self.lines = true;
                if std::mem::take(&mut self.loose) && line.is_empty() {
                    continue;
                }
                let text = self.open(&line).await?.ok_or(ClassicEnd::NotOpened)?;
                return Ok(BridgeMessage { text, lf: true });
            }
            let pause = last_data.elapsed() >= limits.pause;
            if (pause || !self.lines)
                && let Some(text) = self.open_pending().await?
            {
                self.stream.clear();
                self.loose = true;
                return Ok(BridgeMessage { text, lf: false });
            }
            let part = !self.stream.pending().is_empty();
            begun = if part { begun.or_else(|| Some(Instant::now())) } else { None };
            let deadline = begun.map(|begun| begun + limits.half_line);
            if part && (pause || deadline.is_some_and(|by| by <= Instant::now())) {
                return Err(ClassicEnd::NotOpened);
            }
            let late = match deadline {
                Some(by) => by.min(last_data + limits.pause),
                None => began + limits.silence,
            };
            let check_at = self.stream.check_at(limits.half_line).unwrap_or(late);
            let log_at = self.log.as_ref().and_then(AppendLog::due).unwrap_or(late);
            tokio::select! {
                biased;
                changed = self.revocations.changed() => {
                    // The bus holds the sender.
                    changed.map_err(|_| ClassicEnd::Shutdown)?;
                    self.recheck_key().await?;
                }
                wake = self.stream.wait(true) => match wake? {
                    StreamWake::Data => last_data = Instant::now(),
                    StreamWake::Room => {}
                    StreamWake::End if self.lines && part => {
                        let text = self.open_pending().await?.ok_or(ClassicEnd::Bye)?;
                        self.stream.clear();
                        return Ok(BridgeMessage { text, lf: false });
                    }
                    StreamWake::End => return Err(ClassicEnd::Bye),
                },
                () = self.services.env.stopping() => return Err(ClassicEnd::Shutdown),
                () = sleep_until(late.min(check_at).min(log_at)) => {
                    if let Some(log) = &mut self.log {
                        log.write_due(&self.services.record, Instant::now());
                    }
                    self.stream.check(limits.half_line)?;
                    if !part && began.elapsed() >= limits.silence {
                        return Err(ClassicEnd::Silence);
                    }
                }
            }
        }
    }

    /// Waits until the peer has taken some of its answers.
    async fn make_room(&mut self) -> Result<(), ClassicEnd> {
        let limit = self.services.env.config.classic.half_line;
        while !self.stream.has_room() {
            let check_at = self.stream.check_at(limit).unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = self.services.env.stopping() => return Err(ClassicEnd::Shutdown),
                wake = self.stream.wait(false) => {
                    wake?;
                }
                () = sleep_until(check_at) => self.stream.check(limit)?,
            }
        }
        Ok(())
    }

    /// The text of a message without a line end, if it is complete.
    async fn open_pending(&mut self) -> Result<Option<String>, ClassicEnd> {
        // Complete base64 has a multiple of four characters; decoding checks the rest.
        if self.stream.pending().is_empty() || !self.stream.pending().len().is_multiple_of(4) {
            return Ok(None);
        }
        let pending = self.stream.pending().to_vec();
        self.open(&pending).await
    }

    /// The text of a message under one of the keys, which then is the connection's only key. The
    /// form with a MAC is tried first: a message that passes its MAC can be of no other key.
    async fn open(&mut self, message: &[u8]) -> Result<Option<String>, ClassicEnd> {
        // Before the attempt: a failed one enters the tarpit, and an eviction by a new connection
        // must not shorten that.
        if !self.tried && !self.bound && !self.permit.rise(Rank::Held) {
            return Err(ClassicEnd::Wanted);
        }
        let keys = match self.keys.take() {
            Some(keys) => keys,
            None => self.look_up().await?,
        };
        self.tried = true;
        let found =
            keys.iter().enumerate().find_map(|(i, (_, bridge))| Some((i, bridge.open(message)?)));
        let Some((i, text)) = found else {
            self.keys = Some(keys);
            return Ok(None);
        };
        self.tried = false;
        let bridge = keys.into_iter().nth(i);
        if let (Some((key, _)), false) = (&bridge, self.bound) {
            let form = key.form.word();
            tracing::info!(user = %key.user, key = %key.name, form, "origin connection");
        }
        self.bound = true;
        self.keys = Some(bridge.into_iter().collect());
        Ok(Some(text))
    }

    async fn look_up(&self) -> Result<Vec<BridgeKey>, StoreError> {
        let mut keys = Vec::new();
        for form in [ClassicScheme::OriginHmac, ClassicScheme::Origin] {
            if let Some(row) = self.services.record.store.classic_key_of(form).await?
                && !self.services.record.barred.has_key(&row)
            {
                let secret = self.services.admission.classic_key(&row.name, Some(&row));
                if let Some(bridge) = Bridge::new(form, &secret) {
                    keys.push((row, bridge));
                }
            }
        }
        Ok(keys)
    }

    /// Checks after a revocation whether this connection's key still exists.
    async fn recheck_key(&mut self) -> Result<(), ClassicEnd> {
        if !self.bound {
            self.keys = None;
            return Ok(());
        }
        for (key, _) in self.keys.iter().flatten() {
            let now = self.services.record.store.classic_key(&key.name).await?;
            if now.as_ref() != Some(key) || self.services.record.barred.has_key(key) {
                return Err(ClassicEnd::Revoked);
            }
        }
        Ok(())
    }
}

/// The answer of the origin's server, with the time of the record in UTC.
fn received_at(receipt: &Receipt) -> String {
    let ms = i64::try_from(receipt.time_ms).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    format!("Message received at {}", time.strftime("%Y-%m-%d %H:%M:%S"))
}
