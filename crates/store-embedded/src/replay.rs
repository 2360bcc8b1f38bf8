//! The replay of the log's end into `people.db` and the index, at a start.

use std::collections::HashMap;
use std::path::Path;

use twinlock_core::chain::Position;
use twinlock_core::id::{ConversationId, Name, Sender};
use twinlock_store::sequencer::ConversationHead;
use twinlock_store::{StoreError, file_body};

use crate::entry_batch::NewFile;
use crate::error::DbError;
use crate::index::{IndexReader, IndexWriter};
use crate::log::{self, Replayed, ReplayedBatch, ReplayedBlock, Run, RunPlace, ScannedBatch};
use crate::open_error::OpenError;
use crate::options::Expected;
use crate::people::writer::{LoggedBatch, PeopleWriter};
use crate::people::{changes, conversations, credentials};
use crate::tail::{CommittedBatch, RecordedId};

/// Number of entries in one transaction of the index.
const STEP: usize = 64 * 1024;

/// The databases, while the log is read.
pub(crate) struct Replay<'a> {
    directory: &'a Path,
    expected: &'a Expected,
    pub(crate) people: PeopleWriter,
    pub(crate) index: IndexWriter,
    /// The next sequence of each database.
    people_next: u64,
    index_next: u64,
    heads: HashMap<ConversationId, ConversationHead>,
    users: HashMap<Name, u64>,
    pending: Vec<CommittedBatch>,
    pending_entries: usize,
    /// Why the replay has failed, if that is the index's fault.
    pub(crate) index_failed: Option<String>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(
        directory: &'a Path,
        expected: &'a Expected,
        people: PeopleWriter,
        people_next: u64,
        index: IndexWriter,
        index_next: u64,
    ) -> Self {
        Self {
            directory,
            expected,
            people,
            index,
            people_next,
            index_next,
            heads: HashMap::new(),
            users: HashMap::new(),
            pending: Vec::new(),
            pending_entries: 0,
            index_failed: None,
        }
    }

    fn try_batch(&mut self, batch: ReplayedBatch) -> Result<(), DbError> {
        let mut logged =
            LoggedBatch { next_seq: batch.next, end: batch.end, ..LoggedBatch::default() };
        let mut runs = Vec::new();
        for block in batch.blocks {
            match block {
                ReplayedBlock::Run(place, run) => runs.push((place, run)),
                ReplayedBlock::Erasure(erasure) => logged.erasures.push(erasure),
                ReplayedBlock::Change(set) => logged.changes.push(set.to_vec()),
            }
        }
        let in_people = batch.first < self.people_next;
        if !in_people && !logged.changes.is_empty() {
            // First: an entry of the batch may be in a conversation that the batch creates.
            self.people.apply_changes(&logged)?;
        }
        let mut committed = CommittedBatch {
            next_seq: batch.next,
            end: batch.end,
            runs: Vec::new(),
            ids: Vec::new(),
            heads: Vec::new(),
        };
        for (place, run) in &runs {
            self.run(place, run, &mut logged, &mut committed)?;
        }
        logged.entries = committed.ids.len();
        if !in_people {
            self.people.commit(logged)?;
        }
        if batch.first >= self.index_next {
            self.pending_entries += committed.entries();
            self.pending.push(committed);
            if self.pending_entries >= STEP {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Verifies the entries of a run, and collects what the databases need of them.
    fn run(
        &mut self,
        place: &RunPlace,
        run: &Run,
        logged: &mut LoggedBatch,
        committed: &mut CommittedBatch,
    ) -> Result<(), DbError> {
        let conversation = place.conversation;
        let known = place.seq < self.index_next;
        let of_index = !self.heads.contains_key(&conversation) && self.index_next > 1;
        let head = self.head(conversation)?;
        let mut position = Position::new(conversation, head.n, head.link);
        let mut time_ms = head.time_ms;
        for entry in run.entries() {
            let entry = entry.map_err(StoreError::from)?;
            if !known {
                let advanced = position.advance(&entry.linked(conversation), Some(&entry.link));
                if let Err(broken) = advanced {
                    let (first, last, offset) = (place.first, place.last(), place.position.offset);
                    let problem = format!(
                        "the run of entries {first} to {last} at offset {offset} does not continue the \
                         record: {broken}"
                    );
                    if of_index {
                        self.index_failed = Some(problem.clone());
                    }
                    return Err(StoreError::Damaged(problem).into());
                }
                time_ms = entry.time_ms;
            }
            let user = self.user(&entry.sender)?;
            let n = entry.n;
            if !entry.erased
                && let Some(file) = file_body::reference(entry.kind, &entry.body)
            {
                logged.files.push(NewFile { conversation, n, user, file });
            }
            committed.ids.push(RecordedId { user, message_id: entry.message_id, conversation, n });
        }
        committed.runs.push(*place);
        if !known {
            let head = ConversationHead { n: position.n(), time_ms, link: *position.link() };
            self.heads.insert(conversation, head);
            committed.heads.retain(|(known, _)| *known != conversation);
            committed.heads.push((conversation, head));
        }
        Ok(())
    }

    fn head(&mut self, conversation: ConversationId) -> Result<ConversationHead, DbError> {
        if let Some(head) = self.heads.get(&conversation) {
            return Ok(*head);
        }
        let indexed = IndexReader(self.index.conn()).head(conversation);
        if let Some(head) = indexed.map_err(|error| self.blame_index(error))? {
            return Ok(head);
        }
        let key =
            conversations::server_key(self.people.conn(), conversation)?.ok_or_else(|| {
                StoreError::Damaged(format!(
                    "it has entries of conversation {conversation}, whose creation is missing"
                ))
            })?;
        Ok(ConversationHead::empty(&key, conversation))
    }

    /// The number of an entry's user.
    fn user(&mut self, sender: &[u8]) -> Result<u64, DbError> {
        let sender = Sender::parse(sender)
            .map_err(|error| StoreError::Damaged(format!("an entry has no sender: {error}")))?;
        let Some(name) = sender.user() else { return Ok(0) };
        if let Some(user) = self.users.get(name) {
            return Ok(*user);
        }
        let user = credentials::user_number(self.people.conn(), name)?.ok_or_else(|| {
            StoreError::Damaged(format!("it has an entry of {name}, whose registration is missing"))
        })?;
        self.users.insert(name.clone(), user);
        Ok(user)
    }

    /// Writes the pending batches into the index.
    pub(crate) fn flush(&mut self) -> Result<(), DbError> {
        self.index.add(&self.pending).map_err(|error| self.blame_index(error))?;
        self.pending.clear();
        self.pending_entries = 0;
        Ok(())
    }

    fn blame_index(&mut self, error: DbError) -> DbError {
        if error.0 != StoreError::Full {
            self.index_failed = Some(error.to_string());
        }
        error
    }
}

impl Replayed for Replay<'_> {
    /// # Errors
    /// [`OpenError::Damaged`] if an entry does not follow the one before it.
    fn batch(&mut self, batch: ReplayedBatch) -> Result<(), OpenError> {
        let path = log::segment_path(self.directory, batch.position.segment);
        for block in &batch.blocks {
            if let ReplayedBlock::Change(set) = block {
                changes::decode(set).map_err(|bad| bad.into_open_error(&path, self.directory))?;
            }
        }
        self.try_batch(batch).map_err(|problem| match StoreError::from(problem) {
            StoreError::Damaged(problem) => {
                OpenError::Damaged { path, directory: self.directory.into(), problem }
            }
            other => {
                let (path, problem) = (self.directory.to_path_buf(), other.to_string());
                OpenError::Database { path, problem }
            }
        })
    }

    fn lacks(
        &mut self,
        last: Option<&ScannedBatch>,
    ) -> Result<Option<(ConversationId, u64)>, OpenError> {
        let mut reached: HashMap<ConversationId, u64> = HashMap::new();
        for block in last.iter().flat_map(|batch| &batch.blocks) {
            if let ReplayedBlock::Run(place, _) = block {
                reached.insert(place.conversation, place.last());
            }
        }
        for at in &self.expected.entries {
            let known = match (reached.get(&at.conversation), self.heads.get(&at.conversation)) {
                (Some(n), _) => *n,
                (None, Some(head)) => head.n,
                (None, None) => {
                    let head = IndexReader(self.index.conn()).head(at.conversation);
                    let head = head.map_err(|error| self.blame_index(error));
                    let head = head.map_err(|error| OpenError::Database {
                        path: self.directory.to_path_buf(),
                        problem: StoreError::from(error).to_string(),
                    })?;
                    head.map_or(0, |head| head.n)
                }
            };
            if known < at.n {
                return Ok(Some((at.conversation, at.n)));
            }
        }
        Ok(None)
    }
}
