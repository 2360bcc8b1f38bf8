//! Building a batch in memory.

use crc32fast::Hasher;
use twinlock_core::id::{Commit, ConversationId};
use twinlock_store::{StoredContent, StoredEntry};

use super::LogPosition;
use super::block::{
    Block, CHANGE, ENTRY_HEAD, ERASURE, Erasure, RUN, RUN_BYTES, RUN_ENTRIES, RUN_HEAD, SALT,
};
use super::error::LogError;
use super::format::{BATCH_HEAD_LEN, BatchHeader, SegmentHeader};
use super::run::{ERASED, RunPlace};

/// Most bytes of a batch. A recorder stays far below it.
const MAX_BATCH: usize = 1024 * 1024 * 1024;

/// Builds one batch. It is reused between commits, so that a commit allocates nothing.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    /// Room for the header, the runs, and once sealed the other records.
    bytes: Vec<u8>,
    runs_end: usize,
    /// Of the runs.
    checksum: Hasher,
    entries: u32,
    /// The runs, relative to the batch and its first sequence.
    runs: Vec<RunPlace>,
    others: Vec<u8>,
    other_count: u32,
    problem: Option<&'static str>,
}

/// The run that entries are being added to.
struct OpenRun {
    start: usize,
    first: u64,
    count: u32,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH_HEAD_LEN],
            runs_end: BATCH_HEAD_LEN,
            checksum: Hasher::new(),
            entries: 0,
            runs: Vec::new(),
            others: Vec::new(),
            other_count: 0,
            problem: None,
        }
    }

    /// Removes all records.
    pub(crate) fn clear(&mut self) {
        self.runs_end = BATCH_HEAD_LEN;
        self.bytes.truncate(self.runs_end);
        self.checksum = Hasher::new();
        (self.entries, self.other_count) = (0, 0);
        self.runs.clear();
        self.others.clear();
        self.problem = None;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records() == 0
    }

    /// Number of records.
    pub(crate) fn records(&self) -> u32 {
        self.entries.saturating_add(self.other_count)
    }

    /// Adds entries of one conversation in their order, each with its commitment. A gap in their
    /// numbers begins another run.
    pub(crate) fn run<'a>(
        &mut self,
        conversation: ConversationId,
        entries: impl IntoIterator<Item = (&'a StoredEntry, &'a Commit)>,
    ) {
        self.bytes.truncate(self.runs_end);
        let mut open: Option<OpenRun> = None;
        for (entry, commit) in entries {
            let body = match &entry.content {
                StoredContent::Body(_, body) => body.len(),
                StoredContent::Erased(_) => 0,
            };
            let length = ENTRY_HEAD + entry.sender.len() + SALT + body;
            let fits = |run: &OpenRun| {
                run.count < RUN_ENTRIES
                    && run.first.checked_add(u64::from(run.count)) == Some(entry.n)
                    && self.bytes.len() - run.start - RUN_HEAD + length <= RUN_BYTES
            };
            let mut run = match open.take() {
                Some(run) if fits(&run) => run,
                full => {
                    self.end_run(conversation, full);
                    let start = self.bytes.len();
                    self.bytes.resize(start + RUN_HEAD, 0);
                    OpenRun { start, first: entry.n, count: 0 }
                }
            };
            self.entry(entry, commit, body);
            run.count += 1;
            open = Some(run);
        }
        self.end_run(conversation, open);
    }

    fn entry(&mut self, entry: &StoredEntry, commit: &Commit, body: usize) {
        let (Ok(sender_len), Ok(body_len)) =
            (u8::try_from(entry.sender.len()), u32::try_from(body))
        else {
            self.problem = Some("a sender or body is too long for the log");
            return;
        };
        let bytes = &mut self.bytes;
        bytes.extend_from_slice(&entry.time_ms.to_be_bytes());
        bytes.extend_from_slice(&entry.message_id.0);
        let erased = matches!(entry.content, StoredContent::Erased(_));
        bytes.extend_from_slice(&[entry.kind.0, if erased { ERASED } else { 0 }, sender_len]);
        bytes.extend_from_slice(&body_len.to_be_bytes());
        bytes.extend_from_slice(&commit.0);
        bytes.extend_from_slice(&entry.link.0);
        bytes.extend_from_slice(&entry.sender);
        match &entry.content {
            StoredContent::Body(salt, body) => {
                bytes.extend_from_slice(&salt.0);
                bytes.extend_from_slice(body);
            }
            StoredContent::Erased(_) => bytes.extend_from_slice(&[0; SALT]),
        }
    }

    fn end_run(&mut self, conversation: ConversationId, run: Option<OpenRun>) {
        let Some(OpenRun { start, first, count }) = run else { return };
        let block = self.bytes.get_mut(start..).unwrap_or_default();
        let length = block.len().saturating_sub(RUN_HEAD);
        let mut header = Vec::with_capacity(RUN_HEAD);
        header.push(RUN);
        header.extend_from_slice(&conversation.to_be_bytes());
        header.extend_from_slice(&first.to_be_bytes());
        header.extend_from_slice(&count.to_be_bytes());
        header.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        for (to, from) in block.iter_mut().zip(header) {
            *to = from;
        }
        let read = Block::read(block, &mut self.checksum);
        if read != Some((Block::Run { conversation, first, count }, block.len())) {
            self.problem.get_or_insert("a run is not valid");
        }
        self.runs.push(RunPlace {
            conversation,
            first,
            count,
            seq: u64::from(self.entries),
            position: LogPosition { segment: 0, offset: u32::try_from(start).unwrap_or(u32::MAX) },
            length: u32::try_from(block.len()).unwrap_or(u32::MAX),
        });
        self.entries = self.entries.saturating_add(count);
        self.runs_end = self.bytes.len();
    }

    /// Adds an erasure.
    pub(crate) fn erasure(&mut self, erasure: &Erasure) {
        self.others.push(ERASURE);
        self.others.extend_from_slice(&erasure.conversation.to_be_bytes());
        self.others.extend_from_slice(&erasure.n.to_be_bytes());
        self.others.extend_from_slice(&erasure.time_ms.to_be_bytes());
        self.others.extend_from_slice(&erasure.commit.0);
        self.other_count = self.other_count.saturating_add(1);
    }

    /// Adds a change set of `people.db`.
    pub(crate) fn change(&mut self, change_set: &[u8]) {
        let Ok(length) = u32::try_from(change_set.len()) else {
            self.problem = Some("a change set is too long for the log");
            return;
        };
        self.others.push(CHANGE);
        self.others.extend_from_slice(&length.to_be_bytes());
        self.others.extend_from_slice(change_set);
        self.other_count = self.other_count.saturating_add(1);
    }

    /// Bytes of the batch with its header.
    ///
    /// # Errors
    /// [`LogError::Failed`] if the records are too large for a batch.
    pub(crate) fn length(&self) -> Result<u32, LogError> {
        let length = self.runs_end + self.others.len();
        let problem = match u32::try_from(length) {
            _ if self.problem.is_some() => self.problem,
            Ok(fitting) if length <= MAX_BATCH => return Ok(fitting),
            _ => Some("a batch is too large for the log"),
        };
        Err(LogError::Failed(problem.unwrap_or_default().into()))
    }

    /// Writes the header for this place, and returns it with the batch's bytes up to the end of a
    /// page.
    pub(crate) fn seal(
        &mut self,
        first: u64,
        segment: &SegmentHeader,
        offset: u32,
    ) -> Result<(BatchHeader, &[u8]), LogError> {
        let length = self.length()?;
        self.bytes.truncate(self.runs_end);
        self.bytes.extend_from_slice(&self.others);
        let mut checksum = self.checksum.clone();
        checksum.update(&self.others);
        let (records, checksum) = (self.records(), checksum.finalize());
        let header = BatchHeader { length, checksum, records, first, closed: false };
        if let Some(place) = self.bytes.first_chunk_mut() {
            *place = header.encode(&segment.id, offset);
        }
        segment.pad(offset, &mut self.bytes);
        Ok((header, &self.bytes))
    }

    /// The runs of the batch that begins at `position` with sequence `first`.
    pub(crate) fn places(&self, first: u64, position: LogPosition) -> Vec<RunPlace> {
        let absolute = |run: &RunPlace| RunPlace {
            seq: first + run.seq,
            position: LogPosition { offset: position.offset + run.position.offset, ..position },
            ..*run
        };
        self.runs.iter().map(absolute).collect()
    }
}
