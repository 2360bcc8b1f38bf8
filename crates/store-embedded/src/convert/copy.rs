//! Copies the old record into a new log, and verifies every row and entry on the way.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use rusqlite::Row;
use twinlock_core::chain::{self, EntryKind, Linked, Position};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Name, Salt, Sender, ServerKey};
use twinlock_store::row_mac::{ClassicKeyRow, CredentialRow, MacRow as _};
use twinlock_store::{LOBBY, RoomKind, RowKey, StoreError, StoredContent, StoredEntry};

use crate::error::DbError;
use crate::log::{self, BatchBuilder, Erasure, LogError, LogOptions, LogWriter, OpenedLog, Resume};
use crate::open_error::OpenError;
use crate::people::changes::{
    self, Change, ClassicKeyImage, ConversationImage, CredentialImage, MemberJoined, PersonImage,
};
use crate::people::{classic, credentials};
use crate::row::{get_name, get_uint};

use super::old_record::OldRecord;
use super::{Keys, Progress, Stage};

/// Bytes of a batch, about.
const BATCH: usize = 1024 * 1024;
/// Entries at the end of the record that keep their order, so that its newest entries are the same.
/// Before them, those of a conversation stand together in a batch.
const IN_ORDER: u64 = 1024;
/// What an entry takes besides its body, bytes, about.
const ENTRY: usize = 160;

/// The numbers of copied rows.
pub(super) struct Copied {
    pub(super) record_id: [u8; 16],
    pub(super) entries: u64,
    pub(super) users: u64,
    /// The newest entry of each conversation, `link_0` for an empty one.
    pub(super) heads: HashMap<ConversationId, (u64, Link)>,
}

/// Creates the log in `directory`, which does not exist.
pub(super) fn copy(
    old: &OldRecord,
    directory: &Path,
    keys: Keys<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Copied, OpenError> {
    let nothing = &mut |_: log::ReplayedBatch| Ok(());
    let OpenedLog { writer, record_id, .. } =
        log::open(directory, Resume::beginning(), &LogOptions::default(), nothing)?;
    let log = LogCopy { directory, writer, batch: BatchBuilder::new() };
    let mut copy = RecordCopy { old, log, users: HashMap::new(), positions: HashMap::new() };
    copy.people(keys)?;
    let entries = copy.entries(progress)?;
    let RecordCopy { log, users, positions, .. } = copy;
    log.close()?;
    let head = |(id, at): (ConversationId, Position)| (id, (at.n(), *at.link()));
    let heads = positions.into_iter().map(head).collect();
    Ok(Copied { record_id, entries, users: users.len() as u64, heads })
}

struct RecordCopy<'a> {
    old: &'a OldRecord,
    log: LogCopy<'a>,
    users: HashMap<Name, u64>,
    positions: HashMap<ConversationId, Position>,
}

impl RecordCopy<'_> {
    /// Copies everything but entries. Each change refers only to earlier ones.
    fn people(&mut self, keys: Keys<'_>) -> Result<(), OpenError> {
        let old = self.old;
        let users = &mut self.users;
        let log = &mut self.log;
        each(
            old,
            &old.sql.users(),
            |row| {
                let image = person(row, keys.row)?;
                users.insert(get_name(row, 0)?, image.id);
                Ok(Change::Person(image))
            },
            |change| log.change(change),
        )?;
        let positions = &mut self.positions;
        let mut lobby = None;
        each(
            old,
            &old.sql.conversations(),
            |row| {
                let image = conversation(row)?;
                let key = ServerKey(row.get(5)?);
                if image.id == LOBBY {
                    lobby = Some(key);
                }
                let link_0 = chain::link_0(&key, image.id);
                positions.insert(image.id, Position::new(image.id, 0, link_0));
                Ok(Change::Conversation(image))
            },
            |change| log.change(change),
        )?;
        match lobby {
            Some(recorded) if recorded != *keys.server => {
                let (path, given) = (old.path.clone(), *keys.server);
                return Err(OpenError::OtherServer { path, recorded, given });
            }
            Some(_) => {}
            // The first start of a server was cut short; the next one creates the lobby.
            None if self.positions.is_empty() => {}
            None => return Err(old.damaged("the lobby is missing")),
        }
        let (users, positions) = (&self.users, &self.positions);
        let member = |row: &Row<'_>| {
            let (conversation, user) = (get_uint(row, 0)?, get_name(row, 1)?);
            let problem = if !users.contains_key(&user) {
                "is no user"
            } else if !positions.contains_key(&conversation) {
                "is in none that exists"
            } else {
                // The marker is not in the log, which never forgets. After a loss of `people.db`
                // everything counts as unread.
                let user = user.to_string();
                return Ok(Change::Joined(MemberJoined { conversation, user, read: 0 }));
            };
            let problem = format!("member {user} of conversation {conversation} {problem}");
            Err(StoreError::Damaged(problem).into())
        };
        each(old, &old.sql.members(), member, |change| log.change(change))?;
        let credential = |row: &Row<'_>| credential(row, keys.row).map(Change::Credential);
        each(old, &old.sql.credentials(), credential, |change| log.change(change))?;
        if let Some(sql) = old.sql.classic_keys() {
            let key = |row: &Row<'_>| classic_key(row, keys.row).map(Change::ClassicKey);
            each(old, &sql, key, |change| log.change(change))?;
        }
        log.append()
    }

    /// Copies all entries in their order. Returns their number.
    fn entries(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<u64, OpenError> {
        let old = self.old;
        let sqlite = |error: rusqlite::Error| old.fault(error);
        let total = old
            .conn
            .query_row("SELECT count(*) FROM entries", [], |row| get_uint(row, 0))
            .map_err(sqlite)?;
        let mut done = 0;
        let mut report = |done| progress(Progress { stage: Stage::Copy, done, total });
        report(0);
        let mut select = old
            .conn
            .prepare(
                "SELECT conversation, n, time_ms, user, message_id, kind, sender, link,
                     \"commit\", salt, body
                 FROM entries ORDER BY seq",
            )
            .map_err(sqlite)?;
        let mut rows = select.query([]).map_err(sqlite)?;
        let mut batch = EntryCopies::default();
        while let Some(row) = rows.next().map_err(sqlite)? {
            let (conversation, entry, commit) = self.entry(row)?;
            batch.add(conversation, entry, commit, done + IN_ORDER >= total);
            done += 1;
            if batch.bytes >= BATCH {
                batch.write(&mut self.log)?;
                report(done);
            }
        }
        batch.write(&mut self.log)?;
        report(done);
        // The count is that of an index: a row that the scan has not found is missing.
        if done != total {
            return Err(old.damaged(format!("it has {done} entries, and its index has {total}")));
        }
        Ok(done)
    }

    /// Reads an entry and verifies that it continues its conversation.
    fn entry(&mut self, row: &Row<'_>) -> Result<(ConversationId, StoredEntry, Commit), OpenError> {
        let old = self.old;
        let place = || -> rusqlite::Result<_> { Ok((get_uint(row, 0)?, get_uint(row, 1)?)) };
        let (conversation, n) = place().map_err(|error| old.fault(error))?;
        let wrong = |problem: String| {
            old.damaged(format!("entry {n} of conversation {conversation}: {problem}"))
        };
        let read = || -> Result<_, DbError> { Ok((get_entry(row, n)?, get_uint(row, 3)?)) };
        let (entry, user) = read().map_err(|error| wrong(error.to_string()))?;
        let Some((entry, commit)) = entry else {
            return Err(wrong("it has neither a body nor a commitment".into()));
        };
        let position = self.positions.get_mut(&conversation);
        let position = position.ok_or_else(|| wrong("the conversation is missing".into()))?;
        let linked = Linked {
            conversation,
            n,
            time_ms: entry.time_ms,
            message_id: &entry.message_id,
            kind: entry.kind,
            sender: &entry.sender,
            commit: &commit,
        };
        position
            .advance(&linked, Some(&entry.link))
            .map_err(|broken| old.damaged(broken.to_string()))?;
        let sender = Sender::parse(&entry.sender).map_err(|error| wrong(error.to_string()))?;
        let of_sender = sender.user().map_or(Some(0), |name| self.users.get(name).copied());
        if of_sender != Some(user) {
            return Err(wrong("it is stored for another user than its sender".into()));
        }
        Ok((conversation, entry, commit))
    }
}

/// The entries of the next batch. `at`: the newest part of each conversation.
#[derive(Default)]
struct EntryCopies {
    parts: Vec<(ConversationId, Vec<(StoredEntry, Commit)>)>,
    at: HashMap<ConversationId, usize>,
    bytes: usize,
}

impl EntryCopies {
    fn add(
        &mut self,
        conversation: ConversationId,
        entry: StoredEntry,
        commit: Commit,
        in_order: bool,
    ) {
        self.bytes += ENTRY;
        if let StoredContent::Body(_, body) = &entry.content {
            self.bytes += body.len();
        }
        let last = self.parts.last().map(|(conversation, _)| *conversation);
        if in_order && last != Some(conversation) {
            self.at.remove(&conversation);
        }
        let at = *self.at.entry(conversation).or_insert_with(|| {
            self.parts.push((conversation, Vec::new()));
            self.parts.len() - 1
        });
        if let Some((_, entries)) = self.parts.get_mut(at) {
            entries.push((entry, commit));
        }
    }

    fn write(&mut self, log: &mut LogCopy<'_>) -> Result<(), OpenError> {
        for (conversation, entries) in &self.parts {
            log.batch.run(*conversation, entries.iter().map(|(entry, commit)| (entry, commit)));
            for (entry, commit) in entries {
                if matches!(entry.content, StoredContent::Erased(_)) {
                    let (conversation, n, commit) = (*conversation, entry.n, *commit);
                    // When it was erased is not known.
                    log.batch.erasure(&Erasure { conversation, n, time_ms: 0, commit });
                }
            }
        }
        self.parts.clear();
        self.at.clear();
        self.bytes = 0;
        log.append()
    }
}

/// The log that is being written.
struct LogCopy<'a> {
    directory: &'a Path,
    writer: LogWriter,
    batch: BatchBuilder,
}

impl LogCopy<'_> {
    fn change(&mut self, change: Change) -> Result<(), OpenError> {
        self.batch.change(&changes::encode(vec![change]));
        match self.batch.length().map_err(|error| fault(self.directory, error))? as usize {
            length if length < BATCH => Ok(()),
            _ => self.append(),
        }
    }

    fn append(&mut self) -> Result<(), OpenError> {
        let appended = self.writer.append(&mut self.batch);
        self.batch.clear();
        appended.map(drop).map_err(|error| fault(self.directory, error))
    }

    fn close(self) -> Result<(), OpenError> {
        self.writer.close().map_err(|error| fault(self.directory, error))
    }
}

fn fault(directory: &Path, error: LogError) -> OpenError {
    let error = match error {
        LogError::Full => std::io::ErrorKind::StorageFull.into(),
        other => std::io::Error::other(other),
    };
    OpenError::File { path: directory.to_path_buf(), error }
}

/// Reads all rows of a query, and hands over the change that each becomes.
fn each(
    old: &OldRecord,
    sql: &str,
    mut read: impl FnMut(&Row<'_>) -> Result<Change, DbError>,
    mut write: impl FnMut(Change) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let sqlite = |error: rusqlite::Error| old.fault(error);
    let mut select = old.conn.prepare(sql).map_err(sqlite)?;
    let mut rows = select.query([]).map_err(sqlite)?;
    while let Some(row) = rows.next().map_err(sqlite)? {
        write(read(row).map_err(|error| old.fault(error))?)?;
    }
    Ok(())
}

fn person(row: &Row<'_>, key: &RowKey) -> Result<PersonImage, DbError> {
    let person = credentials::get_person(row, key)?;
    Ok(PersonImage {
        id: get_uint(row, 6)?,
        state: person.state.number().into(),
        mac: person.mac(key).to_vec(),
        name: person.user.to_string(),
        role: person.role.number().into(),
        password: person.password,
        created_ms: person.created_ms,
    })
}

fn conversation(row: &Row<'_>) -> Result<ConversationImage, DbError> {
    Ok(ConversationImage {
        id: get_uint(row, 0)?,
        name: row.get(1)?,
        low: row.get(2)?,
        high: row.get(3)?,
        topic: row.get(4)?,
        server_key: row.get(5)?,
        created_ms: get_uint(row, 6)?,
        made_by: row.get(7)?,
        kind: RoomKind::Public.number().into(),
    })
}

fn credential(row: &Row<'_>, key: &RowKey) -> Result<CredentialImage, DbError> {
    let verified = CredentialRow::verified(Ok(credentials::read_row(row)?), key)?;
    Ok(credentials::image(key, &verified))
}

fn classic_key(row: &Row<'_>, key: &RowKey) -> Result<ClassicKeyImage, DbError> {
    let verified = ClassicKeyRow::verified(Ok(classic::read_row(row)?), key)?;
    Ok(classic::image(key, &verified))
}

/// `None`: there is neither a body nor a commitment.
fn get_entry(row: &Row<'_>, n: u64) -> rusqlite::Result<Option<(StoredEntry, Commit)>> {
    let (content, commit) = match row.get_ref(10)?.as_blob_or_null()? {
        Some(body) => {
            let (salt, body) = (Salt(row.get(9)?), Bytes::copy_from_slice(body));
            let commit = chain::commit(&salt, &body);
            (StoredContent::Body(salt, body), commit)
        }
        None => match row.get::<_, Option<[u8; 32]>>(8)?.map(Commit) {
            Some(commit) => (StoredContent::Erased(commit), commit),
            None => return Ok(None),
        },
    };
    let entry = StoredEntry {
        n,
        time_ms: get_uint(row, 2)?,
        message_id: MessageId(row.get(4)?),
        kind: EntryKind(row.get(5)?),
        sender: Bytes::copy_from_slice(row.get_ref(6)?.as_blob()?),
        content,
        link: Link(row.get(7)?),
    };
    Ok(Some((entry, commit)))
}
