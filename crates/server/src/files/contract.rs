//! The contract of a store of file bytes: content by its hash, and partial uploads.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use thiserror::Error;
use twinlock_core::id::{ConversationId, MessageId, Name};
use twinlock_store::{FileRef, StoreError};

use super::hash_turns::{HashTurn, HashTurns};

/// BLAKE3 of a file or of a prefix of it.
pub(crate) type Hash = [u8; 32];

/// Identifies an upload on any connection: the same offer finds it again after a disconnect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UploadId {
    pub(crate) user: Name,
    /// Size of the complete file, bytes.
    pub(crate) size: u64,
    /// Hash of everything that must be the same.
    pub(super) key: Hash,
}

impl UploadId {
    pub(crate) fn new(
        user: &Name,
        message_id: &MessageId,
        conversation: ConversationId,
        name: &str,
        size: u64,
    ) -> Self {
        // Unambiguous: only the last part has an unknown length.
        let mut key = blake3::Hasher::new();
        key.update(&message_id.0).update(&conversation.to_be_bytes()).update(&size.to_be_bytes());
        key.update(&[u8::try_from(user.as_str().len()).unwrap_or(u8::MAX)]);
        key.update(user.as_str().as_bytes()).update(name.as_bytes());
        Self { user: user.clone(), size, key: *key.finalize().as_bytes() }
    }
}

/// Storage of content. A hash finds only content that is completely on disk and has that hash. A
/// crash at any point leaves nothing that blocks a retry.
#[async_trait]
pub(crate) trait Blobs: Send + Sync + 'static {
    /// Opens a partial upload, or creates one. Another connection that has it open loses it. Waits
    /// for a turn if the partial content must be read.
    async fn begin(
        &self,
        id: &UploadId,
        turns: &HashTurns,
    ) -> Result<Box<dyn OpenUpload>, FilesError>;

    /// The partial uploads of a user.
    async fn partials(&self, user: &Name) -> Result<Vec<Partial>, FilesError>;

    /// Discards a partial upload, unless it is open.
    async fn discard(&self, user: &Name, partial: &Partial) -> Result<(), FilesError>;

    /// Discards partial uploads that were not continued for `age`. Returns their number.
    async fn expire(&self, age: Duration) -> Result<usize, FilesError>;

    /// Opens content.
    async fn open(&self, file: &FileRef) -> Result<Box<dyn Blob>, FilesError>;

    /// Removes content; missing content is not an error.
    async fn remove(&self, hash: &Hash) -> Result<(), FilesError>;

    /// Moves unreferenced content to quarantine. [`Blobs::expire_quarantine`] removes it.
    async fn quarantine(&self, hash: &Hash) -> Result<(), FilesError>;

    /// Restores content from quarantine. `false`: it is not there.
    async fn restore(&self, hash: &Hash) -> Result<bool, FilesError>;

    /// Removes content that has been in quarantine for `age`. Returns the number of files removed.
    async fn expire_quarantine(&self, age: Duration) -> Result<usize, FilesError>;

    /// All content whose hash begins with this byte.
    async fn hashes(&self, first: u8) -> Result<Vec<Hash>, FilesError>;

    /// The space that may still be used.
    async fn room(&self) -> Result<DiskRoom, FilesError>;
}

/// An open upload. If dropped, it stays for a later [`Blobs::begin`].
#[async_trait]
pub(crate) trait OpenUpload: Send {
    /// Its size when it was opened, and its hash.
    fn found(&self) -> (u64, Hash);

    /// Appends `data`, or with `restart` replaces all previous bytes by it. Returns the empty
    /// buffer.
    /// After an error, the bytes of earlier writes remain.
    async fn write(&mut self, restart: bool, data: Vec<u8>) -> Result<Vec<u8>, FilesError>;

    /// Compares size and hash with the written bytes, and waits until all of them are on disk.
    async fn seal(&mut self, hash: &Hash) -> Result<(), FilesError>;

    /// Makes the sealed upload content, which is durable when this returns. The upload stays too,
    /// until it is discarded: a crash before its entry is recorded loses no byte.
    async fn publish(&mut self, hash: &Hash) -> Result<(), FilesError>;

    /// Discards the upload; content that was made of it stays.
    async fn discard(self: Box<Self>) -> Result<(), FilesError>;
}

/// Open content, which stays readable even if it is removed.
#[async_trait]
pub(crate) trait Blob: Send {
    /// BLAKE3 of the first `length` bytes. Unchanged bytes that were hashed before need not be read
    /// again. Keeps the turn until the end, even if the caller is dropped.
    async fn prefix_hash(&self, length: u64, turn: Option<HashTurn>) -> Result<Hash, FilesError>;

    /// Reads `length` bytes into `buffer`, replacing its content.
    async fn read(
        &self,
        offset: u64,
        length: usize,
        buffer: Vec<u8>,
    ) -> Result<Vec<u8>, FilesError>;
}

/// Available space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskRoom {
    pub(crate) bytes: u64,
    /// Number of files: free inodes, on a disk that counts them.
    pub(crate) files: u64,
    /// Bytes of the disk that stay free.
    pub(crate) reserve: u64,
}

/// A partial upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partial {
    pub(super) key: Hash,
    /// Bytes so far.
    pub(crate) bytes: u64,
    /// Time of the last write.
    pub(crate) modified: SystemTime,
    /// Whether a connection has it open.
    pub(crate) open: bool,
}

impl Partial {
    pub(crate) fn is_of(&self, id: &UploadId) -> bool {
        self.key == id.key
    }
}

/// Why bytes were not written or read.
#[derive(Debug, Error)]
pub(crate) enum FilesError {
    /// The disk is full, except for the reserve.
    #[error("the disk is full")]
    Full,
    /// The disk has no inodes left, except for the reserved ones.
    #[error("the disk has no free inodes")]
    NoInodes,
    /// The same upload was begun again on another connection.
    #[error("another connection continues this upload")]
    Taken,
    /// Size or hash differs from the announced one. The peer's fault.
    #[error("the upload does not match its hash or size")]
    Hash,
    /// Content that the record refers to is missing or incomplete.
    #[error("the content of a file is damaged: {0}")]
    Damaged(String),
    /// The record could not answer.
    #[error(transparent)]
    Record(#[from] StoreError),
    /// Any other error of the system.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// Verb for the message: read, write, make.
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}
