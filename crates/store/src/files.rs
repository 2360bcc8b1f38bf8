//! The references of entries to the content of files.

use async_trait::async_trait;
use twinlock_core::id::{ConversationId, Name};

use crate::error::StoreError;

/// Minimum charge for a file, bytes: one disk block.
pub const LEAST_CHARGE: u64 = 4096;

/// Which content the recorded entries refer to.
#[async_trait]
pub trait FileIndex: Send + Sync + 'static {
    /// The file of entry `n`, if `user` is a member of the conversation.
    ///
    /// An entry of kind `EntryKind::FILE` is a file if its body is a `FileBody` with a hash. The
    /// reference is recorded in the entry's transaction and kept until the entry is erased.
    async fn file(
        &self,
        user: &Name,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<FileRef>, StoreError>;

    /// Total of all files that this user has sent and that are not erased. Content that was sent
    /// twice counts twice.
    async fn stored(&self, user: &Name) -> Result<FileUsage, StoreError>;

    /// The distinct hashes of content that entries refer to, ascending, greater than `after`, at
    /// most `limit`.
    async fn file_hashes(
        &self,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<[u8; 32]>, StoreError>;

    /// Whether an entry refers to this content.
    async fn is_referenced(&self, hash: &[u8; 32]) -> Result<bool, StoreError>;
}

/// A reference to the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRef {
    /// BLAKE3 of the content.
    pub hash: [u8; 32],
    /// Size of the content, bytes.
    pub size: u64,
}

/// Total of a user's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileUsage {
    /// Bytes charged: for each file its size, but at least [`LEAST_CHARGE`].
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
}
