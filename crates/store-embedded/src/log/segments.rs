//! Reading and erasing in segments.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use lru::LruCache;

use super::LogPosition;
use super::block::ENTRY_FLAGS;
use super::directory::segment_path;
use super::error::LogError;
use super::faults::Faults;
use super::file::LogFile;
use super::format::{SEGMENT_HEAD_LEN, SegmentHeader};
use super::run::{ERASED, Run, RunPlace};

/// Open files at most. Each takes a file descriptor; a busy server reads in a few segments.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);

/// Shared access for readers. The files that were not used for the longest time are closed.
#[derive(Debug)]
pub(crate) struct Segments {
    directory: PathBuf,
    record_id: [u8; 16],
    faults: Faults,
    files: Mutex<LruCache<u32, Arc<OpenSegment>>>,
    /// Held for writing while bytes change in place, so that no reader sees half of it.
    in_place: RwLock<()>,
}

#[derive(Debug)]
struct OpenSegment {
    file: LogFile,
    size: u32,
}

impl Segments {
    pub(crate) fn new(directory: &Path, record_id: [u8; 16], faults: &Faults) -> Self {
        Self {
            directory: directory.to_owned(),
            record_id,
            faults: faults.clone(),
            files: Mutex::new(LruCache::new(OPEN_FILES)),
            in_place: RwLock::new(()),
        }
    }

    /// Reads a block.
    pub(crate) fn read(&self, position: LogPosition, length: u32) -> Result<Bytes, LogError> {
        let segment = self.segment(position.segment)?;
        let _whole = self.in_place.read().unwrap_or_else(PoisonError::into_inner);
        segment.read(position, length)
    }

    /// Overwrites the content of entry `n` with zeros, and syncs. Idempotent. The log must have the
    /// erasure: without it the entry counts as damaged.
    pub(crate) fn erase(&self, run: &RunPlace, n: u64) -> Result<(), LogError> {
        let segment = self.open(run.position.segment, true)?;
        let bytes = segment.read(run.position, run.length)?;
        let decoded = Run::decode(bytes)?;
        let found = (decoded.conversation(), decoded.first(), decoded.count());
        if found != (run.conversation, run.first, run.count) {
            return Err(segment.damaged(run.position, "another run than the index says"));
        }
        let (at, span) = decoded.locate(n)?;
        let entry = u64::from(run.position.offset) + at as u64;
        let content = span.content.start as u64;
        let length = span.content.len() as u64;
        let file = &segment.file;
        let overwrite = || {
            let _alone = self.in_place.write().unwrap_or_else(PoisonError::into_inner);
            file.write(entry + ENTRY_FLAGS as u64, &[ERASED])?;
            file.zero(entry + content, length)
        };
        // An entry that is erased already may not be so on disk.
        overwrite().and_then(|()| file.sync()).map_err(|error| LogError::io(file.path(), &error))
    }

    /// The open file of a segment.
    fn segment(&self, number: u32) -> Result<Arc<OpenSegment>, LogError> {
        if let Some(open) = self.files().get(&number) {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(self.open(number, false)?);
        self.files().put(number, Arc::clone(&opened));
        Ok(opened)
    }

    fn files(&self) -> MutexGuard<'_, LruCache<u32, Arc<OpenSegment>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, number: u32, writable: bool) -> Result<OpenSegment, LogError> {
        let path = segment_path(&self.directory, number);
        let failed = |error| LogError::io(&path, &error);
        let file = match writable {
            true => LogFile::open_writable(&path, &self.faults),
            false => LogFile::open(&path, &self.faults),
        };
        let file = file.map_err(failed)?;
        let mut head = [0; SEGMENT_HEAD_LEN];
        file.read(0, &mut head).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        match SegmentHeader::decode(&head) {
            Ok(header)
                if header.number == number
                    && header.record_id == self.record_id
                    && u64::from(header.size) == size =>
            {
                Ok(OpenSegment { file, size: header.size })
            }
            _ => Err(LogError::Damaged(format!("{}: it was replaced", path.display()))),
        }
    }
}

impl OpenSegment {
    fn read(&self, position: LogPosition, length: u32) -> Result<Bytes, LogError> {
        if position.offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(self.damaged(position, "the index names bytes after its end"));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.file
            .read(u64::from(position.offset), &mut bytes)
            .map_err(|error| LogError::io(self.file.path(), &error))?;
        Ok(bytes.into())
    }

    fn damaged(&self, position: LogPosition, problem: &str) -> LogError {
        let path = self.file.path().display();
        LogError::Damaged(format!("{path}, byte {}: {problem}", position.offset))
    }
}
