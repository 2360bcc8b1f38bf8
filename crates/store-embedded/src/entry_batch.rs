//! The entries of the batch that is being built. The hot path.

use std::collections::HashMap;

use rusqlite::Connection;
use twinlock_core::id::{Commit, ConversationId, MessageId, Sender};
use twinlock_store::sequencer::{ConversationHead, PreparedEntry, next_head};
use twinlock_store::{Appended, FileRef, Published, Receipt, StoreError};

use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::head_cache::HeadCache;
use crate::index::IndexReader;
use crate::log::BatchBuilder;
use crate::people::{classic, credentials};
use crate::tail::{KnownId, RecordedId};

/// A file that a new entry refers to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewFile {
    pub(crate) conversation: ConversationId,
    pub(crate) n: u64,
    pub(crate) user: u64,
    pub(crate) file: FileRef,
}

/// The new entries of one conversation.
struct Part {
    published: Published,
    commits: Vec<Commit>,
    /// The head after the newest of them.
    head: ConversationHead,
}

/// The new entries, in the order of their numbers.
#[derive(Default)]
pub(crate) struct EntryBatch {
    number: u64,
    parts: Vec<Part>,
    ids: Vec<RecordedId>,
    known: HashMap<(u64, MessageId), (usize, usize)>,
    files: Vec<NewFile>,
    bytes: usize,
}

/// Why entries were not added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddError {
    /// This append fails, and the batch continues.
    Append(StoreError),
    /// The whole batch is lost.
    Batch(StoreError),
}

impl AddError {
    pub(crate) fn into_cause(self) -> StoreError {
        match self {
            Self::Append(error) | Self::Batch(error) => error,
        }
    }
}

/// What entries are checked against.
#[derive(Clone, Copy)]
pub(crate) struct RecordView<'a> {
    pub(crate) people: &'a Connection,
    pub(crate) entries: EntryReader<'a>,
}

impl EntryBatch {
    /// Begins a batch with a number that no other batch has.
    pub(crate) fn begin(&mut self, number: u64) {
        self.number = number;
        self.parts.clear();
        self.ids.clear();
        self.known.clear();
        self.files.clear();
        self.bytes = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Size of the bodies, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn files(&self) -> &[NewFile] {
        &self.files
    }

    /// Numbers and links entries in order. `before`: the batch before this one, if it is not in the
    /// tail yet.
    ///
    /// # Errors
    /// [`AddError`].
    pub(crate) fn add(
        &mut self,
        view: RecordView<'_>,
        before: Option<&Self>,
        cache: &mut HeadCache,
        entries: Vec<PreparedEntry>,
        now_ms: u64,
    ) -> Result<Vec<Appended>, AddError> {
        // Before anything changes, so that an entry that cannot be read fails this append alone.
        let mut recorded = Vec::with_capacity(entries.len());
        for entry in &entries {
            let found = self.recorded(view, before, cache, entry);
            recorded.push(found.map_err(|error| AddError::Append(error.into()))?);
        }
        let lost = |error: DbError| AddError::Batch(error.into());
        let added = entries.into_iter().zip(recorded).map(|(entry, recorded)| match recorded {
            Some(answer) => Ok(answer),
            None => self.add_one(view, cache, entry, now_ms).map_err(lost),
        });
        added.collect()
    }

    /// The answer to an entry that is not recorded: its sender may not append, or its id was
    /// recorded before.
    fn recorded(
        &self,
        view: RecordView<'_>,
        before: Option<&Self>,
        cache: &mut HeadCache,
        entry: &PreparedEntry,
    ) -> Result<Option<Appended>, DbError> {
        let (conversation, sender) = (entry.new.conversation, &entry.new.sender);
        let writer = cache.writer(view.people, &view.entries, conversation, sender.user())?;
        let user = match writer {
            Ok((_, user)) => user,
            Err(refused) => return self.refused(view, before, entry, refused).map(Some),
        };
        // A revocation applies from its commit on, also to entries that were in the queue.
        if let Sender::Classic(name, key) = sender
            && !classic::may_append(view.people, key, name, conversation)?
        {
            return self.refused(view, before, entry, Appended::NotAMember).map(Some);
        }
        self.first(view, before, user, &entry.new.message_id)
    }

    fn add_one(
        &mut self,
        view: RecordView<'_>,
        cache: &mut HeadCache,
        entry: PreparedEntry,
        now_ms: u64,
    ) -> Result<Appended, DbError> {
        let (conversation, sender) = (entry.new.conversation, &entry.new.sender);
        let writer = cache.writer(view.people, &view.entries, conversation, sender.user())?;
        let (cached, user) = match writer {
            Ok(writer) => writer,
            Err(refused) => return Ok(refused),
        };
        // Twice in one append.
        if let Some(first) = self.receipt(user, &entry.new.message_id) {
            return Ok(Appended::Recorded(first));
        }
        let head = next_head(&cached.head, &entry, now_ms)?;
        cached.head = head;
        if cached.part.0 != self.number {
            cached.part = (self.number, self.parts.len());
            let published = Published { conversation, head: head.n, entries: Vec::new() };
            self.parts.push(Part { published, commits: Vec::new(), head });
        }
        let message_id = entry.new.message_id;
        if let Some(file) = entry.file {
            self.files.push(NewFile { conversation, n: head.n, user, file });
        }
        self.bytes += entry.new.body.len();
        let receipt = entry.receipt(&head);
        if let Some(part) = self.parts.get_mut(cached.part.1) {
            self.known.insert((user, message_id), (cached.part.1, part.published.entries.len()));
            part.head = head;
            part.published.head = head.n;
            part.commits.push(entry.commit);
            part.published.entries.push(entry.into_entry(&head));
        }
        self.ids.push(RecordedId { user, message_id, conversation, n: head.n });
        Ok(Appended::Recorded(receipt))
    }

    /// The receipt of an entry of this batch.
    fn receipt(&self, user: u64, message_id: &MessageId) -> Option<Receipt> {
        let (part, entry) = self.known.get(&(user, *message_id))?;
        let part = &self.parts.get(*part)?.published;
        Some(part.entries.get(*entry)?.receipt(part.conversation))
    }

    /// The answer to an entry with an id that was recorded before, in this batch or earlier.
    fn first(
        &self,
        view: RecordView<'_>,
        before: Option<&Self>,
        user: u64,
        message_id: &MessageId,
    ) -> Result<Option<Appended>, DbError> {
        let unsynced = self.receipt(user, message_id);
        let unsynced = unsynced.or_else(|| before?.receipt(user, message_id));
        if unsynced.is_some() {
            return Ok(unsynced.map(Appended::Recorded));
        }
        let index = IndexReader(view.entries.index);
        let place = match view.entries.tail.known(user, message_id, || index.greatest_id(user))? {
            KnownId::No => None,
            KnownId::At(conversation, n) => Some((conversation, n)),
            KnownId::AskIndex => index.id(user, message_id)?,
        };
        let Some((conversation, n)) = place else { return Ok(None) };
        let first = view.entries.receipt(conversation, n)?.ok_or_else(|| {
            StoreError::Damaged(format!("entry {n} of conversation {conversation} is missing"))
        })?;
        Ok(Some(Appended::Recorded(first)))
    }

    /// The answer to an entry whose sender may not append: the receipt, if it was recorded before.
    fn refused(
        &self,
        view: RecordView<'_>,
        before: Option<&Self>,
        entry: &PreparedEntry,
        refused: Appended,
    ) -> Result<Appended, DbError> {
        let user = match entry.new.sender.user() {
            None => Some(0),
            Some(name) => credentials::user_number(view.people, name)?,
        };
        let first =
            user.map(|user| self.first(view, before, user, &entry.new.message_id)).transpose()?;
        Ok(first.flatten().unwrap_or(refused))
    }

    /// Puts the entries into a batch of the log.
    pub(crate) fn encode(&self, batch: &mut BatchBuilder) {
        for part in &self.parts {
            let entries = part.published.entries.iter().zip(&part.commits);
            batch.run(part.published.conversation, entries);
        }
    }

    /// The ids of the entries, and the heads after them.
    pub(crate) fn take_index(
        &mut self,
    ) -> (Vec<RecordedId>, Vec<(ConversationId, ConversationHead)>) {
        let head = |part: &Part| (part.published.conversation, part.head);
        (std::mem::take(&mut self.ids), self.parts.iter().map(head).collect())
    }

    /// The entries for the watchers.
    pub(crate) fn take_published(&mut self) -> Vec<Published> {
        self.parts.drain(..).map(|part| part.published).collect()
    }
}
