//! Outgoing files in the profile's state: the message id of each upload.
//!
//! A `put` that was killed resumes under its message id, so the server finds its partial upload and
//! records nothing twice. Path, size, modification time and inode show that a file is unchanged.
//! Before sending, the transfer also compares the hash of the server's part ([`crate::transfer`]).
//! A row is deleted when its file is recorded.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Row, Transaction, params};
use twinlock_core::Entropy;
use twinlock_core::id::{MessageId, Name};

use crate::outbox::{Ack, message_id};
use crate::receipts::{self, Known};
use crate::state::{State, StateError, int};

/// Maximum age of an upload that is resumed; the server has deleted the part of an older one.
const OLDEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// A file as it was when its upload began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// An absolute path.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, ns since 1970 UTC.
    pub modified_ns: i64,
    /// The inode number.
    pub inode: u64,
    /// The device number of the file system.
    pub device: u64,
}

impl SourceFile {
    /// The source at `path`, which is absolute, from the file's metadata.
    #[must_use]
    pub fn of(path: &Path, found: &Metadata) -> Self {
        let seconds = found.mtime().saturating_mul(1_000_000_000);
        Self {
            path: path.to_path_buf(),
            size: found.len(),
            modified_ns: seconds.saturating_add(found.mtime_nsec()),
            inode: found.ino(),
            device: found.dev(),
        }
    }

    /// Modification time, ms since 1970 UTC; 0 for an earlier one.
    #[must_use]
    pub fn modified_ms(&self) -> u64 {
        u64::try_from(self.modified_ns / 1_000_000).unwrap_or(0)
    }
}

/// A file to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOffer {
    /// A room's name, or `@` and a user name.
    pub target: String,
    /// The name for the recipients.
    pub name: String,
    /// The file.
    pub source: SourceFile,
    /// BLAKE3 of a spooled copy, whose path is temporary; identifies the same content.
    pub hash: Option<[u8; 32]>,
}

/// An offer that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunUpload {
    /// The message id of the upload.
    pub message_id: MessageId,
    /// Whether an earlier upload is resumed.
    pub again: bool,
    /// The earlier upload's file, if the new one replaces it.
    pub replaced: Option<PathBuf>,
}

/// The outgoing files of one account.
#[derive(Debug, Clone)]
pub struct Uploads {
    state: State,
}

impl State {
    /// The outgoing files.
    #[must_use]
    pub fn uploads(&self) -> Uploads {
        Uploads { state: self.clone() }
    }
}

impl Uploads {
    /// Stores offers, all or nothing, with one disk sync. An upload that began before resumes under
    /// its message id if the file is unchanged and no other process sends it.
    ///
    /// # Errors
    /// [`StateError`]; nothing is stored then.
    pub fn begin(
        &self,
        offers: &[UploadOffer],
        now_ms: u64,
        entropy: &mut (impl Entropy + ?Sized),
    ) -> Result<Vec<BegunUpload>, StateError> {
        self.state.wants_disk()?;
        if let Some(bad) = offers.iter().find(|offer| !is_target(&offer.target)) {
            return Err(StateError::BadTarget { got: bad.target.clone() });
        }
        self.state.write_claims(|tx, me, is_alive| {
            let is_free = |claimer: Option<&str>| claimer.is_none_or(|c| c != me && !is_alive(c));
            let mut begun = Vec::with_capacity(offers.len());
            for offer in offers {
                let one = match self.earlier(tx, offer, now_ms, is_free)? {
                    Some((message_id, path)) => {
                        self.take_up(tx, &message_id, offer, me)?;
                        let replaced = (path != offer.source.path).then_some(path);
                        BegunUpload { message_id, again: true, replaced }
                    }
                    None => {
                        let message_id = message_id(now_ms, entropy);
                        self.insert(tx, &message_id, offer, me, now_ms)?;
                        BegunUpload { message_id, again: false, replaced: None }
                    }
                };
                begun.push(one);
            }
            Ok(begun)
        })
    }

    /// The message id of an earlier upload, if the file is unchanged and no process sends it.
    /// Deletes the row of a file that has changed.
    fn earlier(
        &self,
        tx: &Transaction<'_>,
        offer: &UploadOffer,
        now_ms: u64,
        is_free: impl Fn(Option<&str>) -> bool,
    ) -> Result<Option<(MessageId, PathBuf)>, StateError> {
        let path = offer.source.path.as_os_str().as_bytes();
        let mut select = tx.prepare_cached(
            "SELECT message_id, name, path, size, modified_ns, inode, device, claimed_by, begun_ms
             FROM upload WHERE account = ?1 AND target = ?2 AND (
                 (?4 IS NULL AND path = ?3) OR hash = ?4) ORDER BY begun_ms",
        )?;
        let at = params![self.state.account(), offer.target, path, offer.hash];
        let rows = select.query_map(at, StoredUpload::read)?.collect::<Result<Vec<_>, _>>()?;
        let oldest = now_ms.saturating_sub(OLDEST.as_millis().try_into().unwrap_or(u64::MAX));
        let mut found = None;
        for kept in rows.into_iter().filter(|kept| is_free(kept.claimed_by.as_deref())) {
            let same = kept.name == offer.name
                && kept.source.size == offer.source.size
                && (offer.hash.is_some() || kept.source == offer.source);
            if found.is_none() && same && kept.begun_ms >= oldest {
                found = Some((kept.message_id, kept.source.path));
            } else if !same && offer.hash.is_none() {
                delete(tx, self.state.account(), &kept.message_id)?;
            }
        }
        Ok(found)
    }

    fn take_up(
        &self,
        tx: &Transaction<'_>,
        message_id: &MessageId,
        offer: &UploadOffer,
        me: &str,
    ) -> Result<(), StateError> {
        let source = &offer.source;
        tx.prepare_cached(
            "UPDATE upload SET claimed_by = ?3, path = ?4, modified_ns = ?5, inode = ?6, device = ?7
             WHERE account = ?1 AND message_id = ?2",
        )?
        .execute(params![
            self.state.account(),
            message_id.0,
            me,
            source.path.as_os_str().as_bytes(),
            source.modified_ns,
            source.inode.cast_signed(),
            source.device.cast_signed(),
        ])?;
        Ok(())
    }

    fn insert(
        &self,
        tx: &Transaction<'_>,
        message_id: &MessageId,
        offer: &UploadOffer,
        me: &str,
        now_ms: u64,
    ) -> Result<(), StateError> {
        let source = &offer.source;
        tx.prepare_cached(
            "INSERT INTO upload (account, message_id, target, path, name, size, modified_ns, inode,
                 device, hash, claimed_by, begun_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            self.state.account(),
            message_id.0,
            offer.target,
            source.path.as_os_str().as_bytes(),
            offer.name,
            int(source.size)?,
            source.modified_ns,
            source.inode.cast_signed(),
            source.device.cast_signed(),
            offer.hash,
            me,
            int(now_ms)?,
        ])?;
        Ok(())
    }

    /// Replaces the message id of an upload whose file has changed.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn renew(
        &self,
        old: &MessageId,
        offer: &UploadOffer,
        now_ms: u64,
        entropy: &mut (impl Entropy + ?Sized),
    ) -> Result<MessageId, StateError> {
        self.state.write_claims(|tx, me, _| {
            delete(tx, self.state.account(), old)?;
            let new = message_id(now_ms, entropy);
            self.insert(tx, &new, offer, me, now_ms)?;
            Ok(new)
        })
    }

    /// Stores the receipt of a file that is on the server's disk, and deletes its row.
    ///
    /// # Errors
    /// [`StateError::Conflict`] is tamper evidence. After any error nothing is stored.
    pub fn finish(&self, message_id: &MessageId, ack: &Ack) -> Result<(), StateError> {
        let known = Known {
            conversation: ack.conversation,
            n: ack.n,
            link: ack.link,
            time_ms: ack.time_ms,
        };
        self.state.write(|tx| {
            receipts::keep_own(tx, self.state.server(), &known)?;
            delete(tx, self.state.account(), message_id)
        })
    }

    /// Deletes the row of a file that the server refuses.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget(&self, message_id: &MessageId) -> Result<(), StateError> {
        self.state.write(|tx| delete(tx, self.state.account(), message_id))
    }

    /// The number of outgoing files, claimed or not.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn count(&self) -> Result<u64, StateError> {
        let count = "SELECT COUNT(*) FROM upload WHERE account = ?1";
        self.state.read(|tx| {
            let count: i64 = tx.query_row(count, [self.state.account()], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }
}

struct StoredUpload {
    message_id: MessageId,
    name: String,
    source: SourceFile,
    claimed_by: Option<String>,
    begun_ms: u64,
}

impl StoredUpload {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let path: Vec<u8> = row.get("path")?;
        Ok(Self {
            message_id: MessageId(row.get("message_id")?),
            name: row.get("name")?,
            source: SourceFile {
                path: PathBuf::from(OsString::from_vec(path)),
                size: row.get::<_, i64>("size")?.unsigned_abs(),
                modified_ns: row.get("modified_ns")?,
                inode: row.get::<_, i64>("inode")?.cast_unsigned(),
                device: row.get::<_, i64>("device")?.cast_unsigned(),
            },
            claimed_by: row.get("claimed_by")?,
            begun_ms: row.get::<_, i64>("begun_ms")?.unsigned_abs(),
        })
    }
}

fn delete(tx: &Transaction<'_>, account: i64, id: &MessageId) -> Result<(), StateError> {
    tx.prepare_cached("DELETE FROM upload WHERE account = ?1 AND message_id = ?2")?
        .execute(params![account, id.0])?;
    Ok(())
}

fn is_target(target: &str) -> bool {
    Name::new(target.strip_prefix('@').unwrap_or(target)).is_ok()
}
