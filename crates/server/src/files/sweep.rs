//! Expiry of partial uploads, and the sweep of unreferenced content.

use std::collections::HashSet;
use std::time::Duration;

use super::contract::FilesError;
use super::file_policy::FilePolicy;

/// Interval between checks for abandoned uploads.
const SWEEP: Duration = Duration::from_secs(60 * 60);
/// How long unreferenced content stays in quarantine: the record may be older than the files, and
/// the operator may still restore the right one.
const QUARANTINE_TIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Hashes read from the record at a time.
const PAGE: usize = 1000;

impl FilePolicy {
    /// Expires partial uploads and quarantined content, at the start and every hour.
    ///
    /// With `sweep`, quarantines the content that crashes have left. Without it, the record may be
    /// older than the files, and all content stays.
    pub(crate) async fn upkeep(&self, sweep: bool) {
        let mut expire = tokio::time::interval(SWEEP);
        expire.tick().await;
        self.expire().await;
        if sweep {
            match self.quarantine_all().await {
                Ok(0) => {}
                Ok(files) => tracing::warn!(
                    files,
                    "unreferenced content was moved to files/unreferenced/, where it stays for 7 days: a \
                     crash left it, or this record is an older one"
                ),
                Err(error) => {
                    tracing::warn!(%error, "not all unreferenced content was moved");
                }
            }
        }
        match self.count_missing().await {
            Ok(0) => {}
            Ok(files) => tracing::error!(
                files,
                "content of entries is missing in files/: restore it from its backup, \
                 or have it sent again"
            ),
            Err(error) => tracing::warn!(%error, "the content of files was not checked"),
        }
        loop {
            expire.tick().await;
            self.expire().await;
        }
    }

    async fn quarantine_all(&self) -> Result<usize, FilesError> {
        let mut files = 0;
        for first in 0..=u8::MAX {
            for hash in self.blobs.hashes(first).await? {
                if self.store.is_referenced(&hash).await? {
                    continue;
                }
                let _alone = self.publishing.write().await;
                if !self.store.is_referenced(&hash).await? {
                    self.blobs.quarantine(&hash).await?;
                    files += 1;
                }
            }
        }
        Ok(files)
    }

    /// Number of missing contents that entries refer to. Quarantined ones are restored.
    async fn count_missing(&self) -> Result<usize, FilesError> {
        let (mut missing, mut after) = (0, None);
        // The hashes on disk that begin with `first`.
        let (mut first, mut there) = (None, HashSet::new());
        loop {
            let hashes = self.store.file_hashes(after, PAGE).await?;
            let Some(last) = hashes.last() else { return Ok(missing) };
            after = Some(*last);
            for hash in hashes {
                if first != hash.first().copied() {
                    first = hash.first().copied();
                    there =
                        self.blobs.hashes(first.unwrap_or_default()).await?.into_iter().collect();
                }
                // An entry erased since the list was read refers to nothing.
                if !there.contains(&hash)
                    && self.store.is_referenced(&hash).await?
                    && !self.blobs.restore(&hash).await?
                {
                    missing += 1;
                }
            }
        }
    }

    async fn expire(&self) {
        match self.blobs.expire(self.kept).await {
            Ok(0) => {}
            Ok(uploads) => tracing::info!(uploads, "partial uploads have expired"),
            Err(error) => tracing::warn!(%error, "partial uploads were not checked"),
        }
        match self.blobs.expire_quarantine(QUARANTINE_TIME).await {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "unreferenced content was removed"),
            Err(error) => {
                tracing::warn!(%error, "unreferenced content was not removed");
            }
        }
    }
}
