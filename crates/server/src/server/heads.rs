//! The last known heads of the record, kept in the head file `DIR/heads`.
//!
//! A record restored from an earlier time is consistent in itself. Only data kept elsewhere shows
//! that its newest entries are missing. The file lists the newest entry of each conversation among
//! the last [`ENTRIES`] of the record. That is enough, because an older copy of a record lacks its
//! end. The server writes the file at startup, each minute while entries arrive, and at an orderly
//! shutdown. A restore of the whole directory includes this file; only clients notice it.
//!
//! Missing heads are kept in `DIR/heads.missing` until the record has them again. No file is swept
//! until then, because the newer record may refer to it.

use std::path::Path;
use std::time::Duration;

use data_encoding::HEXLOWER;
use twinlock_core::id::{ConversationId, Link, ServerKey, TlsPin};
use twinlock_store::{Newest, ReadLimit, Store, StoreError};
use twinlock_store_embedded::Expected;

use crate::error::StartError;
use crate::private::{self, Failed};

pub(super) const FILE: &str = "heads";
pub(super) const MISSING: &str = "heads.missing";

/// Interval between writes of the file while entries arrive.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// Newest entries that are considered; each conversation among them takes a line of 130 bytes.
const ENTRIES: usize = 256;
/// Maximum size of the file, bytes.
const MAX_BYTES: u64 = 128 * 1024;
const FIRST_LINE: &str = "twinlock heads 1";

/// Content of a head file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heads {
    /// The file existed and was valid.
    pub(super) known: bool,
    pub(super) server: Option<ServerKey>,
    /// Pin of a self-signed certificate's key.
    pub(super) tls_pin: Option<TlsPin>,
    newest: Vec<Newest>,
}

impl Heads {
    /// What a record that is opened must have.
    pub(super) fn expected(&self) -> Expected {
        Expected { entries: self.newest.clone() }
    }

    /// [`Self::expected`] without the entries that an earlier start has found `missing`.
    pub(super) fn expected_beside(&self, missing: &Self) -> Expected {
        let is_missing = |at: &&Newest| {
            missing.newest.iter().any(|m| m.conversation == at.conversation && m.n >= at.n)
        };
        Expected { entries: self.newest.iter().filter(|at| !is_missing(at)).copied().collect() }
    }

    /// The time of the newest entry, in ms since 1970.
    pub(super) fn newest_time_ms(&self) -> Option<u64> {
        self.newest.iter().map(|newest| newest.time_ms).max()
    }

    /// Reads the file. A damaged one counts as missing, with a warning.
    pub(super) fn read(data: &Path, file: &str) -> Result<Self, Failed> {
        let path = data.join(file);
        let Some(text) = private::read(&path, MAX_BYTES)? else { return Ok(Self::default()) };
        let heads = std::str::from_utf8(&text).ok().and_then(Self::parse);
        if heads.is_none() {
            tracing::warn!(
                path = %path.display(),
                "this file is damaged: an older record will not be detected"
            );
        }
        Ok(heads.unwrap_or_default())
    }

    /// Parses the file; `None` if the format is another one or the end is missing.
    fn parse(text: &str) -> Option<Self> {
        let mut heads = Self { known: true, ..Self::default() };
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        for line in lines {
            let mut words = line.split(' ');
            match words.next()? {
                "end" => return Some(heads),
                "server" => heads.server = Some(ServerKey(hex(words.next()?)?)),
                "tls-pin" => heads.tls_pin = Some(TlsPin(hex(words.next()?)?)),
                "entry" => {
                    let mut number = || words.next()?.parse().ok();
                    let (seq, conversation, n) = (number()?, number()?, number()?);
                    let (time_ms, link) = (number()?, Link(hex(words.next()?)?));
                    heads.newest.push(Newest { seq, conversation, n, time_ms, link });
                }
                // Written by another version.
                _ => {}
            }
        }
        None
    }

    fn text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n");
        if let Some(server) = self.server {
            text.push_str(&format!("server {}\n", HEXLOWER.encode(&server.0)));
        }
        if let Some(pin) = self.tls_pin {
            text.push_str(&format!("tls-pin {}\n", HEXLOWER.encode(&pin.0)));
        }
        for Newest { seq, conversation, n, time_ms, link } in &self.newest {
            let link = HEXLOWER.encode(&link.0);
            text.push_str(&format!("entry {seq} {conversation} {n} {time_ms} {link}\n"));
        }
        text.push_str("end\n");
        text
    }

    fn write(&self, data: &Path, file: &str) -> Result<(), Failed> {
        private::write(&data.join(file), self.text().as_bytes())
    }

    /// The heads in this file that the record lacks.
    async fn missing(&self, store: &dyn Store) -> Result<Vec<Newest>, StoreError> {
        let mut missing = Vec::new();
        for at in &self.newest {
            let one = ReadLimit { entries: 1, bytes: 1 };
            let present = match store.read(at.conversation, at.n.saturating_sub(1), one).await {
                Ok(page) => page.entries.first().is_some_and(|e| e.n == at.n && e.link == at.link),
                Err(StoreError::Damaged(_)) => false,
                Err(error) => return Err(error),
            };
            if !present {
                missing.push(*at);
            }
        }
        Ok(missing)
    }
}

/// Compares the record with the known heads, and stores the missing ones.
///
/// Returns `true` if heads were known and none is missing: only then may unreferenced content be
/// removed.
pub(super) async fn compare(
    data: &Path,
    known: &Heads,
    store: &dyn Store,
) -> Result<bool, StartError> {
    let before = Heads::read(data, MISSING)?;
    let mut lost = known.missing(store).await?;
    for at in before.missing(store).await? {
        // The higher number of each conversation.
        match lost.iter_mut().find(|other| other.conversation == at.conversation) {
            Some(other) if other.n < at.n => *other = at,
            Some(_) => {}
            None => lost.push(at),
        }
    }
    let path = data.join(MISSING);
    if lost.is_empty() {
        if before.known {
            tracing::info!("the record again has all entries that were missing");
            private::remove(&path)?;
        }
        return Ok(known.known);
    }
    warn(&lost, store, &path).await?;
    let missing = Heads { newest: lost, ..known.clone() };
    if missing.newest != before.newest {
        missing.write(data, MISSING)?;
    }
    Ok(false)
}

async fn warn(lost: &[Newest], store: &dyn Store, path: &Path) -> Result<(), StoreError> {
    let end = store.newest(1).await?.first().map_or(0, |at| at.seq);
    let known = lost.iter().map(|at| at.seq).max().unwrap_or(0);
    let entries = known.saturating_sub(end);
    for at in lost.iter().take(10) {
        tracing::error!(
            conversation = at.conversation,
            n = at.n,
            head = head(store, at.conversation).await?,
            "this acknowledged entry is missing in the record"
        );
    }
    tracing::error!(
        entries,
        conversations = lost.len(),
        "THE RECORD IS OLDER THAN IT WAS, or another one: entries that were acknowledged are missing. \
         Put the newer record back if there is one. No file is swept meanwhile. To accept the loss, \
         remove {}",
        path.display()
    );
    Ok(())
}

async fn head(store: &dyn Store, conversation: ConversationId) -> Result<u64, StoreError> {
    match store.read(conversation, 0, ReadLimit { entries: 1, bytes: 1 }).await {
        Ok(page) => Ok(page.head),
        Err(StoreError::Damaged(_)) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Writes the head file.
pub(super) struct HeadFile {
    data: std::path::PathBuf,
    written: Heads,
}

impl HeadFile {
    pub(super) fn new(data: &Path, server: ServerKey, tls_pin: Option<TlsPin>) -> Self {
        let written = Heads { known: false, server: Some(server), tls_pin, newest: Vec::new() };
        Self { data: data.to_owned(), written }
    }

    /// Writes the file if the record has grown.
    ///
    /// # Errors
    /// [`StartError`]; the file is then unchanged.
    pub(super) async fn write(&mut self, store: &dyn Store) -> Result<(), StartError> {
        let newest = store.newest(ENTRIES).await?;
        if self.written.known && self.written.newest == newest {
            return Ok(());
        }
        let heads = Heads { known: true, newest, ..self.written.clone() };
        let data = self.data.clone();
        let done = tokio::task::spawn_blocking(move || heads.write(&data, FILE).map(|()| heads));
        self.written = done.await.map_err(|error| StartError::Threads(error.into()))??;
        Ok(())
    }

    /// Like [`HeadFile::write`], but only logs a failure.
    pub(super) async fn try_write(&mut self, store: &dyn Store) {
        if let Err(error) = self.write(store).await {
            tracing::warn!(%error, "the heads file was not written");
        }
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads__round_trip_or_rejected_if_truncated() {
        let at = |conversation| Newest {
            seq: 9 + conversation,
            conversation,
            n: u64::MAX,
            time_ms: 5,
            link: Link([7; 32]),
        };
        let heads = Heads {
            known: true,
            server: Some(ServerKey([1; 32])),
            tls_pin: Some(TlsPin([2; 32])),
            newest: vec![at(1), at(2)],
        };
        let text = heads.text();
        assert_eq!(Heads::parse(&text), Some(heads.clone()));
        assert_eq!(Heads::parse(&text.replace("end", "later 1 2\nend")), Some(heads));
        for cut in 0..text.len() - "\n".len() {
            assert_eq!(Heads::parse(&text[..cut]), None, "{cut}");
        }
        assert_eq!(Heads::parse(&text.replace("entry", "entry x")), None);
    }

    #[test]
    fn heads__entries_that_are_known_to_be_missing_are_not_expected() {
        let at =
            |conversation, n| Newest { seq: n, conversation, n, time_ms: 5, link: Link([7; 32]) };
        let heads = Heads { newest: vec![at(1, 5), at(2, 5), at(3, 5)], ..Heads::default() };
        let missing = Heads { newest: vec![at(1, 4), at(2, 5), at(4, 9)], ..Heads::default() };
        assert_eq!(heads.expected().entries, heads.newest);
        assert_eq!(heads.expected_beside(&missing).entries, [at(1, 5), at(3, 5)]);
    }
}
