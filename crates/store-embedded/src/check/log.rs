//! The records of the log, one batch after the other.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use twinlock_core::chain::Position;
use twinlock_core::id::{Commit, ConversationId, Link, Name, Sender, ServerKey};
use twinlock_store::sequencer::ConversationHead;
use twinlock_store::{LOBBY, StoreError, file_body};

use super::findings::{Finding, Findings};
use super::index::IndexCheck;
use super::people::{self, PeopleCheck};
use super::{CheckKeys, RecordReport, changes as macs};
use crate::database;
use crate::error::DbError;
use crate::index::INDEX;
use crate::log::{Erasure, LogPosition, ReplayedBatch, ReplayedBlock, Run, RunPlace, segment_path};
use crate::open_error::OpenError;
use crate::options::Expected;
use crate::people::{PEOPLE, apply, changes, conversations, credentials, files};
use crate::words::WORDS;

type EntryId = (ConversationId, u64);

/// An entry whose content does not match its commitment, until an erasure names it.
struct Suspect {
    commit: Commit,
    /// All of it is zeros, and flagged as erased.
    erased: bool,
    position: LogPosition,
}

/// An entry whose content is there, in whole or in part, although an erasure names it.
struct Unfinished {
    id: EntryId,
    /// The sequence of the batch with the erasure.
    erased_by: u64,
}

/// The state of the pass.
pub(super) struct LogCheck<'a> {
    directory: &'a Path,
    keys: CheckKeys<'a>,
    /// What the changes so far say.
    replayed: Connection,
    people: Option<PeopleCheck>,
    index: Option<IndexCheck>,
    heads: HashMap<ConversationId, ConversationHead>,
    users: HashMap<Name, u64>,
    suspects: HashMap<EntryId, Suspect>,
    unfinished: Vec<Unfinished>,
    /// Entries that the record must have and that were not read yet.
    expected: HashMap<EntryId, Link>,
    report: RecordReport,
    notes: Vec<String>,
}

impl<'a> LogCheck<'a> {
    pub(super) fn new(
        directory: &'a Path,
        record: &[u8; 16],
        keys: CheckKeys<'a>,
        expected: &Expected,
        findings: &mut Findings,
    ) -> Result<Self, OpenError> {
        let mut notes = Vec::new();
        let is_there = |kind| database::has_content(kind, directory);
        let path = |file| directory.join(file);
        let people = match is_there(&PEOPLE) {
            true => people::open(&PEOPLE, directory, record, findings)?
                .map(|(conn, next_seq)| PeopleCheck::new(&path(PEOPLE.file), conn, next_seq)),
            false => {
                let problem = "it is missing: the next start makes it again from the log, but for \
                               read markers and times of logins";
                findings.add(Finding::new(&path(PEOPLE.file), problem));
                None
            }
        };
        let index = match is_there(&INDEX) {
            true => people::open(&INDEX, directory, record, findings)?
                .map(|(conn, next_seq)| IndexCheck::new(&path(INDEX.file), conn, next_seq)),
            false => {
                let name = INDEX.file;
                notes
                    .push(format!("{name} is missing: the next start makes it again from the log"));
                None
            }
        };
        if is_there(&WORDS) {
            // What it has follows from the entries, and only a start compares it with them.
            people::open(&WORDS, directory, record, findings)?;
        }
        let expected = expected.entries.iter().map(|at| ((at.conversation, at.n), at.link));
        Ok(Self {
            directory,
            keys,
            replayed: people::temporary()?,
            people,
            index,
            heads: HashMap::new(),
            users: HashMap::new(),
            suspects: HashMap::new(),
            unfinished: Vec::new(),
            expected: expected.collect(),
            report: RecordReport::default(),
            notes,
        })
    }

    /// Bytes of the batches so far.
    pub(super) fn bytes(&self) -> u64 {
        self.report.bytes
    }

    fn segment(&self, position: LogPosition) -> PathBuf {
        segment_path(self.directory, position.segment)
    }

    fn found(&self, position: LogPosition, problem: impl Into<String>) -> Finding {
        Finding::new(&self.segment(position), problem).at(position.offset)
    }

    /// Takes the next batch.
    ///
    /// # Errors
    /// [`OpenError::OtherServer`]; [`OpenError::Newer`]; a failure of the temporary database.
    pub(super) fn batch(
        &mut self,
        batch: ReplayedBatch,
        findings: &mut Findings,
    ) -> Result<(), OpenError> {
        if batch.next > batch.first {
            self.reached(batch.first, findings);
        }
        self.report.batches += 1;
        self.report.bytes += u64::from(batch.end.offset.saturating_sub(batch.position.offset));
        // First: an entry of the batch may be in a conversation that the batch creates.
        for block in &batch.blocks {
            if let ReplayedBlock::Change(set) = block {
                self.changes(set, batch.position, findings)?;
            }
        }
        for block in &batch.blocks {
            let checked = match block {
                ReplayedBlock::Run(place, run) => self.run(place, run, batch.first, findings),
                ReplayedBlock::Erasure(erasure) => {
                    self.erasure(erasure, batch.first, batch.position, findings)
                }
                ReplayedBlock::Change(_) => Ok(()),
            };
            checked.map_err(temporary)?;
        }
        Ok(())
    }

    /// Compares the databases whose position is reached.
    fn reached(&mut self, next: u64, findings: &mut Findings) {
        if let Some(people) = &mut self.people {
            people.reached(next, &self.replayed, findings);
        }
        if let Some(index) = &mut self.index {
            index.reached(next, &self.heads, findings);
        }
    }

    fn changes(
        &mut self,
        set: &[u8],
        position: LogPosition,
        findings: &mut Findings,
    ) -> Result<(), OpenError> {
        let set = match changes::decode(set) {
            Ok(set) => set,
            Err(bad @ changes::BadChange::Newer(_)) => {
                return Err(bad.into_open_error(&self.segment(position), self.directory));
            }
            Err(bad) => {
                findings.add(self.found(position, bad.to_string()));
                return Ok(());
            }
        };
        for change in set {
            if let changes::Change::Conversation(image) = &change
                && image.id == LOBBY
                && let Ok(recorded) = <[u8; 32]>::try_from(image.server_key.as_slice())
                && recorded != self.keys.server.0
            {
                let (path, recorded) = (self.directory.to_path_buf(), ServerKey(recorded));
                return Err(OpenError::OtherServer { path, recorded, given: *self.keys.server });
            }
            let verified = apply::apply(&self.replayed, &change)
                .and_then(|()| macs::verify(&self.replayed, &change, self.keys.row));
            if let Err(error) = verified {
                match StoreError::from(error) {
                    StoreError::Damaged(problem) => {
                        let of = macs::described(&change);
                        findings.add(self.found(position, format!("a change of {of}: {problem}")));
                    }
                    other => return Err(temporary(other.into())),
                }
            }
        }
        Ok(())
    }

    fn run(
        &mut self,
        place: &RunPlace,
        run: &Run,
        batch: u64,
        findings: &mut Findings,
    ) -> Result<(), DbError> {
        let conversation = place.conversation;
        let mut index = self.index.take();
        let mut indexed = index.as_mut().filter(|index| index.has(batch));
        if let Some(index) = &mut indexed {
            index.run(place, findings);
        }
        let at = |n: u64| {
            let offset = run.locate(n).map_or(0, |(at, _)| u32::try_from(at).unwrap_or_default());
            LogPosition { offset: place.position.offset.saturating_add(offset), ..place.position }
        };
        let mut head = match self.heads.get(&conversation) {
            Some(head) => *head,
            None => match conversations::server_key(&self.replayed, conversation)? {
                Some(key) => ConversationHead::empty(&key, conversation),
                None => {
                    let problem = "the creation of its conversation is missing in the log";
                    findings
                        .add(self.found(place.position, problem).entry(conversation, place.first));
                    ConversationHead::empty(self.keys.server, conversation)
                }
            },
        };
        let mut position = Position::new(conversation, head.n, head.link);
        for entry in run.entries() {
            let Ok(entry) = entry else { break };
            let n = entry.n;
            self.report.entries += 1;
            if let Err(broken) = position.advance(&entry.linked(conversation), Some(&entry.link)) {
                findings.add(self.found(at(n), broken.to_string()).entry(conversation, n));
                // The next entries are checked against what this one says.
                position = Position::new(conversation, n, entry.link);
            } else if entry.time_ms < head.time_ms {
                let problem = "it is older than the entry before it";
                findings.add(self.found(at(n), problem).entry(conversation, n));
            }
            head = ConversationHead { n, time_ms: entry.time_ms, link: entry.link };
            if self.expected.get(&(conversation, n)) == Some(&entry.link) {
                self.expected.remove(&(conversation, n));
            }
            let user = match self.user(&entry.sender)? {
                Ok(user) => user,
                Err(problem) => {
                    findings.add(self.found(at(n), problem).entry(conversation, n));
                    continue;
                }
            };
            if let Some(index) = &mut indexed {
                index.id(user, &entry.message_id, (conversation, n), findings);
            }
            if !entry.body_matches() {
                let (commit, erased) = (entry.commit, entry.erased);
                let suspect = Suspect { commit, erased, position: at(n) };
                self.suspects.insert((conversation, n), suspect);
            } else if let Some(file) = file_body::reference(entry.kind, &entry.body) {
                files::insert(&self.replayed, conversation, n, user, &file)?;
            }
        }
        self.heads.insert(conversation, head);
        self.index = index;
        Ok(())
    }

    /// The number of an entry's user, or the problem of the sender.
    fn user(&mut self, sender: &[u8]) -> Result<Result<u64, String>, DbError> {
        let sender = match Sender::parse(sender) {
            Ok(sender) => sender,
            Err(error) => return Ok(Err(format!("it has no sender: {error}"))),
        };
        let Some(name) = sender.user() else { return Ok(Ok(0)) };
        if let Some(user) = self.users.get(name) {
            return Ok(Ok(*user));
        }
        let Some(user) = credentials::user_number(&self.replayed, name)? else {
            return Ok(Err(format!("the registration of its sender {name} is missing in the log")));
        };
        self.users.insert(name.clone(), user);
        Ok(Ok(user))
    }

    fn erasure(
        &mut self,
        erasure: &Erasure,
        erased_by: u64,
        position: LogPosition,
        findings: &mut Findings,
    ) -> Result<(), DbError> {
        let id @ (conversation, n) = (erasure.conversation, erasure.n);
        if self.heads.get(&conversation).is_none_or(|head| head.n < n) {
            let problem = "an erasure names this entry, which is not before it in the log";
            findings.add(self.found(position, problem).entry(conversation, n));
            return Ok(());
        }
        let named = files::is_erasing(&self.replayed, conversation, n)?;
        self.report.erased += u64::from(!named);
        match self.suspects.remove(&id) {
            Some(suspect) if suspect.commit != erasure.commit => {
                let problem = "its erasure has another commitment than the entry";
                findings.add(self.found(suspect.position, problem).entry(conversation, n));
            }
            Some(Suspect { erased: true, .. }) => {}
            None if named => {}
            _ => self.unfinished.push(Unfinished { id, erased_by }),
        }
        files::begin_erasure(&self.replayed, conversation, n)
    }

    /// Judges what only the end of the log decides. `next`: the sequence after the last record.
    /// `is_lost`: records that follow cannot be read.
    pub(super) fn finish(
        mut self,
        next: u64,
        is_lost: bool,
        findings: &mut Findings,
        notes: &mut Vec<String>,
    ) -> Result<RecordReport, OpenError> {
        notes.append(&mut self.notes);
        self.reached(next, findings);
        let mut damaged: Vec<_> = std::mem::take(&mut self.suspects).into_iter().collect();
        damaged.sort_unstable_by_key(|(_, suspect)| suspect.position);
        let without_body: HashSet<EntryId> = damaged.iter().map(|(id, _)| *id).collect();
        let mut unnamed = 0_u64;
        for ((conversation, n), suspect) in damaged {
            let problem = match suspect.erased {
                true if is_lost => {
                    unnamed += 1;
                    continue;
                }
                true => "it is erased, and no erasure in the log names it",
                false => "its content was changed: it does not match its commitment",
            };
            findings.add(self.found(suspect.position, problem).entry(conversation, n));
        }
        if unnamed > 0 {
            notes.push(format!(
                "{unnamed} erased entries have no erasure in the part of the log that was read"
            ));
        }
        self.unfinished(findings, notes);
        let replayed = &self.replayed;
        if let Some(people) = &self.people {
            let has_no_body = |conversation, n| {
                without_body.contains(&(conversation, n))
                    || files::is_erasing(replayed, conversation, n).unwrap_or(false)
            };
            people.finish(replayed, has_no_body, findings, notes);
        }
        if let Some(index) = &self.index {
            index.end(notes);
        }
        let mut missing: Vec<_> = self.expected.keys().copied().collect();
        missing.sort_unstable();
        for (conversation, n) in missing {
            let head = self.heads.get(&conversation).map_or(0, |head| head.n);
            let problem = match n <= head {
                true => "it was acknowledged, and the record has another one in its place",
                false => "it was acknowledged, and is missing: the record is from an earlier time",
            };
            findings.add(Finding::new(self.directory, problem).entry(conversation, n));
        }
        let count = |sql| {
            let count = replayed.query_row(sql, [], |row| crate::row::get_uint(row, 0));
            count.map_err(|error| temporary(error.into()))
        };
        self.report.conversations = count("SELECT count(*) FROM conversations")?;
        self.report.accounts = count("SELECT count(*) FROM users")?;
        Ok(self.report)
    }

    /// Erasures that a start has to end, or that should have ended.
    fn unfinished(&self, findings: &mut Findings, notes: &mut Vec<String>) {
        let mut noted = 0_u64;
        for Unfinished { id: (conversation, n), erased_by } in &self.unfinished {
            // A start makes a missing database again, and notes them in it.
            let is_noted = self.people.as_ref().is_none_or(|people| {
                *erased_by >= people.next_seq || people.is_erasing(*conversation, *n)
            });
            if is_noted {
                noted += 1;
                continue;
            }
            let problem = "an erasure names it, and its content is still there";
            findings.add(Finding::new(self.directory, problem).entry(*conversation, *n));
        }
        if noted > 0 {
            notes.push(format!("{noted} erasures are not complete: the next start ends them"));
        }
    }
}

fn temporary(error: DbError) -> OpenError {
    let problem = error.to_string();
    OpenError::Database { path: "a temporary database".into(), problem }
}
