//! The bytes of files: one short contract, the local disk behind it, and the rules above it.
//!
//! [`Blobs`] keeps content by its BLAKE3 and uploads until they are whole; object storage can take
//! the disk's place. [`Files`] decides who may put how much there, and sees to it that content
//! stays while an entry refers to it and goes after. The record says what a file is; nothing here
//! knows of lines or of the wire.

mod disk;
mod keeper;
mod name;
mod partial;
mod prefix;
#[cfg(test)]
mod tests;
mod turns;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use thiserror::Error;
use twinlock_core::id::{ConversationId, MessageId, Name};
use twinlock_store::{FileRef, StoreError};

pub(crate) use disk::LocalDisk;
pub(crate) use keeper::{Claim, Denied, Files, Judged, Offer};
pub(crate) use name::is_possible;
pub(crate) use turns::{Turn, Turns};

/// BLAKE3, of all of a file or of a beginning of it.
pub(crate) type Hash = [u8; 32];

/// An upload, whichever line it comes over: the same offer finds it again after any break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UploadId {
    pub(crate) user: Name,
    /// Bytes it will have.
    pub(crate) size: u64,
    /// Of everything that has to be the same.
    key: Hash,
}

impl UploadId {
    pub(crate) fn new(
        user: &Name,
        message_id: &MessageId,
        conversation: ConversationId,
        name: &str,
        size: u64,
    ) -> Self {
        // The only part of unknown length is the last.
        let mut key = blake3::Hasher::new();
        key.update(&message_id.0).update(&conversation.to_be_bytes()).update(&size.to_be_bytes());
        key.update(&[u8::try_from(user.as_str().len()).unwrap_or(u8::MAX)]);
        key.update(user.as_str().as_bytes()).update(name.as_bytes());
        Self { user: user.clone(), size, key: *key.finalize().as_bytes() }
    }
}

/// Where the bytes are. Nothing is found under a hash before all of it is on disk and has that
/// hash; a crash at any point leaves nothing that is in the way of the next try.
#[async_trait]
pub(crate) trait Blobs: Send + Sync + 'static {
    /// Opens a partial upload, or creates one. A connection that has it open loses it. Waits for a
    /// turn where the partial content must be read.
    async fn begin(&self, id: &UploadId, turns: &Turns) -> Result<Box<dyn Upload>, FilesError>;

    /// The uploads of a user that are not whole yet.
    async fn partials(&self, user: &Name) -> Result<Vec<Partial>, FilesError>;

    /// Throws away what there is of an upload, unless somebody has it open.
    async fn discard(&self, user: &Name, partial: &Partial) -> Result<(), FilesError>;

    /// Throws away uploads that nobody has gone on with for so long; how many.
    async fn expire(&self, age: Duration) -> Result<usize, FilesError>;

    /// Opens content.
    async fn open(&self, file: &FileRef) -> Result<Box<dyn Blob>, FilesError>;

    /// Removes content; none there is no error.
    async fn remove(&self, hash: &Hash) -> Result<(), FilesError>;

    /// Moves unreferenced content to quarantine. [`Blobs::expire_set_aside`] removes it.
    async fn set_aside(&self, hash: &Hash) -> Result<(), FilesError>;

    /// Restores content from quarantine. `false`: it is not there.
    async fn bring_back(&self, hash: &Hash) -> Result<bool, FilesError>;

    /// Removes content that has been in quarantine for `age`. Returns the number of files removed.
    async fn expire_set_aside(&self, age: Duration) -> Result<usize, FilesError>;

    /// All content whose hash begins with this byte.
    async fn hashes(&self, first: u8) -> Result<Vec<Hash>, FilesError>;

    /// What may still be written.
    async fn room(&self) -> Result<Room, FilesError>;
}

/// An upload that is open. Dropped, it stays for a later [`Blobs::begin`].
#[async_trait]
pub(crate) trait Upload: Send {
    /// How much there was when it was opened, and its hash.
    fn found(&self) -> (u64, Hash);

    /// Writes on, or with `anew` from the beginning in place of all there was. Gives the buffer
    /// back, empty. After an error, what was written before it stands.
    async fn write(&mut self, anew: bool, data: Vec<u8>) -> Result<Vec<u8>, FilesError>;

    /// Compares size and hash with what was written, and waits until all of it is on disk.
    async fn seal(&mut self, hash: &Hash) -> Result<(), FilesError>;

    /// Makes what was sealed content, which is there for good when this returns. The upload stays
    /// too, until it is discarded: a crash before its entry is recorded costs no byte of it.
    async fn place(&mut self, hash: &Hash) -> Result<(), FilesError>;

    /// Throws the upload away; content that it was made stays.
    async fn discard(self: Box<Self>) -> Result<(), FilesError>;
}

/// Content that is open, and stays readable even if it is removed meanwhile.
#[async_trait]
pub(crate) trait Blob: Send {
    /// BLAKE3 of the first `length` bytes. What has not changed since it was hashed need not be
    /// read again. Keeps the turn until it is done, even if the caller goes.
    async fn prefix_hash(&self, length: u64, turn: Option<Turn>) -> Result<Hash, FilesError>;

    /// Reads `length` bytes into `buffer`, in place of what is in it.
    async fn read(
        &self,
        offset: u64,
        length: usize,
        buffer: Vec<u8>,
    ) -> Result<Vec<u8>, FilesError>;
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    /// Files: inodes of the disk, on one that counts them.
    pub(crate) files: u64,
    /// Bytes of the disk that stay free.
    pub(crate) reserve: u64,
}

/// What there is of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partial {
    key: Hash,
    /// Bytes so far.
    pub(crate) bytes: u64,
    /// When somebody last went on with it.
    pub(crate) modified: SystemTime,
    /// Somebody has it open.
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
    /// The disk is full but for what is kept free.
    #[error("the disk is full")]
    Full,
    /// The disk has no inode left but those that are kept free.
    #[error("the disk has room for no more files (inodes)")]
    NoInodes,
    /// The same upload was begun again, on another line.
    #[error("another line goes on with this upload")]
    Taken,
    /// Not what was promised. The peer's fault.
    #[error("what was uploaded has another hash or size")]
    Hash,
    /// Content that the record refers to is not there or not whole.
    #[error("the content of a file is damaged: {0}")]
    Damaged(String),
    /// The record was asked and could not answer.
    #[error(transparent)]
    Record(#[from] StoreError),
    /// Anything else the system says.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// A verb: read, write, make.
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}
