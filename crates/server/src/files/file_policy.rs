//! The file policy: limits on what users store, and content that lives as long as entries refer to
//! it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::RwLock;
use twinlock_core::id::{ConversationId, MessageId, Name};
use twinlock_core::proto::{Limit, RefusalReason};
use twinlock_store::{
    Appended, Erased, FileRef, LEAST_CHARGE, NewEntry, Receipt, RoomKind, Store, StoreError,
};

use super::claims::{Claims, QuotaClaim, charge};
use super::contract::{Blob, Blobs, FilesError, Hash, OpenUpload, Partial, UploadId};
use super::hash_turns::{HashTurn, HashTurns};
use crate::barred::Barred;
use crate::config::Limits;
use crate::limits::accounts::ENTRY;
use crate::limits::fair::Fair;
use crate::limits::text_reserve::{AtReserve, TextReserve};
use crate::limits::throttle::log_fault;

/// Concurrent lookups for transfers, for all users. They share threads and record connections with
/// logins.
const LOOKUPS: usize = 2;

/// The files of a server.
pub(crate) struct FilePolicy {
    pub(super) blobs: Box<dyn Blobs>,
    pub(super) store: Arc<dyn Store>,
    text_reserve: Arc<TextReserve>,
    barred: Arc<Barred>,
    largest: u64,
    per_user: u64,
    number_per_user: u64,
    partials_per_user: usize,
    pub(super) kept: Duration,
    claims: Claims,
    /// Shared from the placing of content to the recording of its entry; exclusive for checking
    /// whether an entry refers to content, and removing it.
    pub(super) publishing: RwLock<()>,
    lookups: Fair,
    turns: Arc<HashTurns>,
}

/// An offer that passed all checks.
pub(crate) enum CheckedOffer {
    /// The message is in the record already.
    Recorded(Receipt),
    /// Quota and disk have space for it, which the claim reserves.
    Fits(QuotaClaim),
}

/// An open upload, with its claim.
pub(crate) struct ClaimedUpload {
    pub(crate) upload: Box<dyn OpenUpload>,
    pub(crate) claim: QuotaClaim,
}

/// Why an offer was refused, or an upload was not recorded.
#[derive(Debug)]
pub(crate) enum Denied {
    /// A reason of the protocol.
    Refused(RefusalReason),
    /// A limit, with its value.
    OverLimit(RefusalReason, Limit, u64),
    /// A failure of the disk or the record.
    Failed(FilesError),
}

impl<E: Into<FilesError>> From<E> for Denied {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl FilePolicy {
    pub(crate) fn new(
        blobs: Box<dyn Blobs>,
        store: Arc<dyn Store>,
        limits: &Limits,
        text_reserve: Arc<TextReserve>,
        barred: Arc<Barred>,
    ) -> Self {
        Self {
            blobs,
            store,
            text_reserve,
            barred,
            largest: limits.file,
            per_user: limits.files_per_user,
            number_per_user: limits.files_number_per_user,
            partials_per_user: limits.partial_files_per_user,
            kept: limits.partial_files,
            claims: Claims::default(),
            publishing: RwLock::new(()),
            lookups: Fair::new(LOOKUPS),
            turns: HashTurns::new(),
        }
    }

    /// Runs a lookup for a transfer when it is this user's turn; see [`Fair::run`].
    pub(crate) async fn look_up<T, R>(
        self: &Arc<Self>,
        user: &Name,
        lookup: impl FnOnce(Arc<Self>) -> R,
    ) -> Result<T, Denied>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, Denied>> + Send + 'static,
    {
        let lookup = lookup(self.clone());
        let done = self.lookups.run(&Handle::current(), user, lookup).await;
        done.map_err(|_| StoreError::Closed)?
    }

    /// Checks the offer of a message with a file.
    pub(crate) async fn check_offer(
        &self,
        id: &UploadId,
        message_id: &MessageId,
        conversation: ConversationId,
    ) -> Result<CheckedOffer, Denied> {
        // A message that was sent before is recorded, whatever has become of the conversation or
        // the quota.
        if let Some(receipt) = self.store.receipt(&id.user, message_id).await? {
            return Ok(CheckedOffer::Recorded(receipt));
        }
        match self.store.conversation(&id.user, conversation).await? {
            None => return Err(Denied::Refused(RefusalReason::NotFound)),
            Some(found) if found.kind == RoomKind::Audit => {
                return Err(Denied::Refused(RefusalReason::ReadOnly));
            }
            Some(_) => {}
        }
        if id.size > self.largest {
            return Err(Denied::OverLimit(
                RefusalReason::TooLarge,
                Limit::LargestFile,
                self.largest,
            ));
        }
        // Claimed before the stored amount is read: of two concurrent offers that fit only one at a
        // time, none gets too much.
        let (claim, others) = self.claims.claim(id);
        let stored = self.store.stored(&id.user).await?;
        let left = self.per_user.saturating_sub(stored.bytes).saturating_sub(others.of_user);
        let number = stored.files.saturating_add(others.number_of_user);
        if charge(id) > left {
            return Err(Denied::OverLimit(
                RefusalReason::Quota,
                Limit::FilesPerUser,
                self.per_user,
            ));
        }
        if number >= self.number_per_user {
            return Err(Denied::OverLimit(
                RefusalReason::Quota,
                Limit::FileCountPerUser,
                self.number_per_user,
            ));
        }
        let had = self.make_space(id, left - charge(id)).await?;
        claim.set_written(had);
        let room = self.blobs.room().await?;
        // Content takes at least a block, however small it is.
        if charge(id).saturating_sub(had) > room.bytes.saturating_sub(others.to_come) {
            return Err(Denied::OverLimit(
                RefusalReason::Storage,
                Limit::DiskReserve,
                room.reserve,
            ));
        }
        // A partial upload has its inode already, and its content is a hard link to it.
        if had == 0 && room.files <= others.number {
            return Err(FilesError::NoInodes.into());
        }
        Ok(CheckedOffer::Fits(claim))
    }

    /// Discards the partial uploads of a removed user. One that a connection has open expires later.
    pub(crate) async fn discard_partials(&self, user: &Name) {
        let discarded = async {
            for partial in self.blobs.partials(user).await? {
                self.blobs.discard(user, &partial).await?;
            }
            Ok::<_, FilesError>(())
        };
        if let Err(error) = discarded.await {
            log_fault("the partial uploads of a removed user stay until they expire", error);
        }
    }

    /// Opens the upload of an offer that fits.
    pub(crate) async fn begin(
        &self,
        id: &UploadId,
        claim: QuotaClaim,
    ) -> Result<ClaimedUpload, Denied> {
        Ok(ClaimedUpload { upload: self.blobs.begin(id, &self.turns).await?, claim })
    }

    /// Discards partial uploads of this user that are not open, the oldest first, until the rest
    /// has at most `left` bytes. Returns the bytes that exist of this upload.
    async fn make_space(&self, id: &UploadId, left: u64) -> Result<u64, FilesError> {
        let mut partials = self.blobs.partials(&id.user).await?;
        let had = partials.iter().find(|p| p.is_of(id)).map_or(0, |p| p.bytes);
        // Open uploads have claims.
        partials.retain(|partial| !partial.open && !partial.is_of(id));
        partials.sort_by_key(|partial| partial.modified);
        let charged = |partial: &Partial| partial.bytes.max(LEAST_CHARGE);
        let mut bytes: u64 = partials.iter().map(charged).sum();
        let mut count = partials.len();
        for partial in &partials {
            if bytes <= left && count < self.partials_per_user {
                break;
            }
            self.blobs.discard(&id.user, partial).await?;
            bytes -= charged(partial);
            count -= 1;
        }
        Ok(had)
    }

    /// Compares the hash, and records the entry once the content is on disk. An upload with another
    /// hash is discarded.
    pub(crate) async fn finish(
        &self,
        ClaimedUpload { mut upload, claim }: ClaimedUpload,
        hash: Hash,
        entry: NewEntry,
    ) -> Result<Appended, Denied> {
        if let Err(error) = upload.seal(&hash).await {
            if matches!(error, FilesError::Hash) {
                upload.discard().await?;
            }
            return Err(error.into());
        }
        self.has_room_for(&entry)?;
        let publishing = self.publishing.read().await;
        upload.publish(&hash).await?;
        let mut appended = self.store.append(vec![entry]).await?;
        drop(publishing);
        drop(claim);
        // The entry is recorded even if the upload cannot be removed.
        if let Err(error) = upload.discard().await {
            tracing::warn!(%error, "an upload that was recorded was not removed");
        }
        // If the entry was refused, or recorded before, the content may be unreferenced.
        if let Err(error) = self.collect(&hash).await {
            tracing::warn!(%error, "content that may be unreferenced was not checked");
        }
        appended.pop().ok_or(Denied::Refused(RefusalReason::Storage))
    }

    /// Checks a file's entry against the reserve of text. Unwritten revocations come first.
    fn has_room_for(&self, entry: &NewEntry) -> Result<(), Denied> {
        if self.barred.is_unwritten() {
            return Err(FilesError::Full.into());
        }
        let taken = self.text_reserve.take(entry.body.len() as u64 + ENTRY, Instant::now());
        taken.map_err(|AtReserve(least)| {
            Denied::OverLimit(RefusalReason::Storage, Limit::TextReserve, least)
        })
    }

    /// A turn at hashing, to compare with what a client has already.
    pub(crate) async fn hashing(&self, user: &Name) -> Option<HashTurn> {
        self.turns.take(user).await
    }

    /// Removes content if no entry refers to it.
    async fn collect(&self, hash: &Hash) -> Result<(), FilesError> {
        if self.store.is_referenced(hash).await? {
            return Ok(());
        }
        let _alone = self.publishing.write().await;
        if !self.store.is_referenced(hash).await? {
            self.blobs.remove(hash).await?;
        }
        Ok(())
    }

    /// The file of an entry and its content, if this user may have it.
    pub(crate) async fn open(
        &self,
        user: &Name,
        conversation: ConversationId,
        n: u64,
    ) -> Result<(FileRef, Box<dyn Blob>), Denied> {
        let file = self.store.file(user, conversation, n).await?;
        let file = file.ok_or(Denied::Refused(RefusalReason::NotFound))?;
        let blob = self.blobs.open(&file).await?;
        Ok((file, blob))
    }

    /// Erases an entry, and its content unless another entry refers to it.
    pub(crate) async fn erase(
        &self,
        conversation: ConversationId,
        n: u64,
    ) -> Result<bool, StoreError> {
        let erased = self.store.erase(conversation, n).await?;
        if let Some(Erased { file: Some(file) }) = &erased
            && let Err(error) = self.collect(&file.hash).await
        {
            tracing::error!(%error, "the content of an erased file stays until 7 days after the next start");
        }
        Ok(erased.is_some())
    }
}
