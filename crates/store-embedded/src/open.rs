//! Opening a record: the log is read from where the databases end.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::SystemTime;

use rusqlite::Connection;
use tokio::sync::{Semaphore, broadcast};
use twinlock_core::id::ServerKey;
use twinlock_store::StoreError;
use twinlock_store::sequencer::Salts;

use crate::convert;
use crate::database::{self, DatabaseFile};
use crate::entry_reader::EntryReader;
use crate::error::DbError;
use crate::file_names::with_suffix;
use crate::index::{INDEX, IndexWriter, Indexer};
use crate::log::{self, BatchBuilder, LogOptions, LogWriter, OpenedLog, Resume};
use crate::open_error::OpenError;
use crate::options::{Expected, StoreOptions};
use crate::people::writer::{LoggedBatch, PeopleWriter};
use crate::people::{PEOPLE, changes, conversations, files};
use crate::readers::Readers;
use crate::record_lock::RecordLock;
use crate::recorder::{RecordedJob, Recorder, RecorderCommand, RecorderState};
use crate::replay::Replay;
use crate::store::{COMMITS, EmbeddedStore, QUEUE, Threads};
use crate::sync_thread::{SharedLog, SyncThread};
use crate::tail::Tail;
use crate::words::{self, FeederParts, WORDS, WordsFeeder, WordsWriter};

/// Opens the record that `lock` holds. Bytes at the log's end are not overwritten if it then lacks
/// entries that are `expected`.
pub(crate) fn open(
    lock: RecordLock,
    options: StoreOptions,
    expected: &Expected,
) -> Result<Arc<EmbeddedStore>, OpenError> {
    open_with(lock, options, expected, &LogOptions::default())
}

/// [`open`] with other sizes of segments, and failures of files.
fn open_with(
    lock: RecordLock,
    options: StoreOptions,
    expected: &Expected,
    log_options: &LogOptions,
) -> Result<Arc<EmbeddedStore>, OpenError> {
    let StoreOptions { server_key, row_key, clock, bounds } = options;
    let lock = Arc::new(lock);
    let directory = lock.directory.as_path();
    let fault = |error: DbError| OpenError::Database {
        path: directory.to_path_buf(),
        problem: error.to_string(),
    };
    log::create_directory(directory, &log_options.faults)
        .map_err(|error| OpenError::File { path: directory.to_path_buf(), error })?;
    let people_file = DatabaseFile::new(&PEOPLE, directory)?;
    let read = || read_log(directory, &people_file, &server_key, expected, log_options);
    let (opened, replay) = match read() {
        Err(ReadError { index: Some(problem), .. }) => {
            discard(&directory.join(INDEX.file), &problem)?;
            read()
        }
        read => read,
    }
    .map_err(|failed| failed.error)?;
    let OpenedLog { writer: mut log, record_id, created, closed, torn, damaged, .. } = opened;
    let unfinished = opened.unfinished_erasures.iter().map(|(run, n)| (run.conversation, *n));
    let unfinished: Vec<_> = unfinished.chain(opened.earlier_erasures).collect();
    tracing::debug!(created, closed, "the log of the record is open");
    if let Some((position, bytes)) = torn {
        tracing::warn!(
            segment = position.segment,
            offset = position.offset,
            bytes,
            "the log ended in a batch that was not written whole and so not acknowledged; it was removed"
        );
    }
    for (conversation, n) in damaged {
        tracing::error!(conversation, n, "the content of an entry is damaged");
    }
    let Replay { mut people, mut index, .. } = replay;
    for (conversation, n) in unfinished {
        files::begin_erasure(people.conn(), conversation, n).map_err(fault)?;
    }
    people.set_record(record_id);
    index.set_record(record_id);
    lobby(&mut log, &mut people, &server_key, clock(), directory)?;
    convert::refuse_older_programs(directory)?;
    people.settle(log.next_seq(), log.end()).map_err(|error| fault(error.into()))?;

    let (tail, segments) = (Arc::new(Tail::default()), log.segments());
    let index_path = directory.join(INDEX.file);
    let reader = || database::reader(&index_path).map_err(|error| fault(error.into()));
    let mut words = open_words(directory, record_id, log.next_seq())?;
    let index_conn = reader()?;
    let entries = EntryReader { index: &index_conn, tail: &tail, segments: &segments };
    // Until here a refused start leaves the accounts as they are.
    database::leave_wal(people.conn(), false).map_err(|error| fault(error.into()))?;
    finish_erasures(&mut people, &mut words, &entries, directory).map_err(fault)?;
    forget_when_old(directory);
    // A position inside the last run leaves no later run, but entries.
    let behind = entries.bytes_from(words.next_seq()).map_err(fault)?;
    let behind = behind.max(u64::from(words.next_seq() < log.next_seq()));

    let (commands, waiting) = mpsc::channel();
    let done = {
        let (commands, directory) = (commands.clone(), directory.to_path_buf());
        move |erased: &words::ErasedEntry| {
            let (conversation, n) = (erased.run.conversation, erased.n);
            // If it fails, the next start ends the erasure.
            convert::forget_old_record(&directory).map_err(|error| {
                StoreError::Database(format!("the record before its conversion stays: {error}"))
            })?;
            let job = end_erasure(conversation, n);
            // If the recorder has ended, the next start ends the erasure.
            commands.send(RecorderCommand::Job(job)).ok();
            Ok(())
        }
    };
    let parts = FeederParts {
        words,
        index: reader()?,
        tail: tail.clone(),
        segments: segments.clone(),
        done: Box::new(done),
    };
    let thread = |error| OpenError::File { path: directory.to_path_buf(), error };
    let (words, handle) = WordsFeeder::start(parts, behind).map_err(thread)?;
    let commits = broadcast::Sender::new(COMMITS);
    let salts = Arc::new(Salts::default());
    let log = SharedLog::new(log);
    let sync = SyncThread::start(log.clone()).map_err(thread)?;
    let indexer = Indexer::start(index, tail.clone(), people_file.clone()).map_err(thread)?;
    let recorder = Recorder {
        people,
        index: index_conn,
        sync,
        log,
        segments: segments.clone(),
        tail: tail.clone(),
        words: handle.clone(),
        salts: salts.clone(),
        clock,
        commits: commits.clone(),
        state: RecorderState::default(),
    };
    let recorder = thread::Builder::new().name("recorder".into()).spawn(move || {
        let ended = recorder.run(&waiting);
        if let Err(error) = &ended.0 {
            tracing::error!(%error, "the recorder has ended");
        }
        ended
    });
    // The other threads end with what was dropped here.
    let recorder = recorder.map_err(|error| {
        tail.close();
        thread(error)
    })?;
    let readers = Readers::new(directory.to_path_buf(), tail, segments, lock.clone());
    Ok(Arc::new(EmbeddedStore {
        server_key,
        row_key: Arc::new(row_key),
        bounds,
        readers: Arc::new(readers),
        commands,
        turn: tokio::sync::Mutex::new(()),
        room: Arc::new(Semaphore::new(QUEUE)),
        words: handle,
        salts,
        commits,
        people: people_file.clone(),
        threads: Mutex::new(Some(Threads {
            recorder,
            words,
            indexer,
            people: people_file,
            lock: lock.clone(),
        })),
    }))
}

/// Why the log could not be read into the databases.
struct ReadError {
    error: OpenError,
    /// If the index is at fault: how.
    index: Option<String>,
}

impl From<OpenError> for ReadError {
    fn from(error: OpenError) -> Self {
        Self { error, index: None }
    }
}

/// Opens the databases, and the log, which is read from where they end.
fn read_log<'a>(
    directory: &'a Path,
    people_file: &DatabaseFile,
    server_key: &ServerKey,
    expected: &'a Expected,
    log_options: &LogOptions,
) -> Result<(OpenedLog, Replay<'a>), ReadError> {
    let fault = |error: DbError| OpenError::Database {
        path: directory.to_path_buf(),
        problem: error.to_string(),
    };
    let (people, record) = open_people(directory, people_file)?;
    // Before anything changes.
    refuse_other_server(&people, server_key, directory)?;
    let people_at = database::position(&people).map_err(fault)?;
    let index = open_index(directory, record)?;
    let index_at = index.position().map_err(fault)?;
    let next = |at: Option<u64>| at.unwrap_or(1);
    let people_next = next(people_at.map(|at| at.next_seq));
    let index_next = next(index_at.map(|at| at.next_seq));
    let resume = match (people_at, index_at) {
        (Some(people), Some(index)) if index.next_seq < people.next_seq => {
            Resume { position: Some(index.position), next_seq: index.next_seq }
        }
        (Some(people), Some(_)) => {
            Resume { position: Some(people.position), next_seq: people.next_seq }
        }
        _ => Resume::beginning(),
    };
    // A new log draws its id when it is opened, and its databases take it then.
    let people = PeopleWriter::new(people, record.unwrap_or_default());
    let mut replay = Replay::new(directory, expected, people, people_next, index, index_next);
    let opened = log::open(directory, resume, log_options, &mut replay);
    let opened = opened.and_then(|opened| replay.flush().map(|()| opened).map_err(fault));
    match opened {
        Ok(opened) => Ok((opened, replay)),
        Err(error) => Err(ReadError { error, index: replay.index_failed }),
    }
}

/// Opens `people.db`, and reads the record's id; `None`: the record is new.
fn open_people(
    directory: &Path,
    file: &DatabaseFile,
) -> Result<(Connection, Option<[u8; 16]>), OpenError> {
    let record = log::record_id(directory)?;
    let had_wal = database::has_wal(file.path());
    let people = file.writer()?;
    let fault = |error: DbError| OpenError::Database {
        path: file.path().to_path_buf(),
        problem: error.to_string(),
    };
    // An empty one goes with a refused start, as it came.
    database::leave_wal(&people, had_wal).map_err(|error| fault(error.into()))?;
    let at = database::position(&people).map_err(fault)?;
    let Some(at) = at else { return Ok((people, record)) };
    let fits = match record {
        Some(record) if record == at.record_id => {
            log::is_boundary(directory, at.position, at.next_seq)?
        }
        _ => false,
    };
    if fits {
        return Ok((people, record));
    }
    // A segment that is missing or foreign is the better reason.
    log::check_files(directory)?;
    Err(OpenError::Damaged {
        path: file.path().to_path_buf(),
        directory: directory.to_path_buf(),
        problem: "it belongs to another record, or to another time of this one".into(),
    })
}

/// Opens the index. One that cannot be used is made again from the log.
fn open_index(directory: &Path, record: Option<[u8; 16]>) -> Result<IndexWriter, OpenError> {
    let usable = |index: &IndexWriter| -> Result<bool, OpenError> {
        match (index.position(), record) {
            (Ok(Some(at)), Some(record)) if at.record_id == record => {
                log::is_boundary(directory, at.position, at.next_seq)
            }
            (Ok(at), _) => Ok(at.is_none()),
            (Err(_), _) => Ok(false),
        }
    };
    let path = directory.join(INDEX.file);
    let id = record.unwrap_or_default();
    match IndexWriter::open(directory, id) {
        Ok(index) if usable(&index)? => Ok(index),
        Ok(index) => {
            drop(index);
            discard(&path, "it is not of this record and time")?;
            IndexWriter::open(directory, id)
        }
        Err(OpenError::Database { problem, .. } | OpenError::Damaged { problem, .. }) => {
            discard(&path, &problem)?;
            IndexWriter::open(directory, id)
        }
        Err(error) => Err(error),
    }
}

/// Opens the index of words. One that cannot be used is made again from the log.
fn open_words(directory: &Path, record: [u8; 16], next_seq: u64) -> Result<WordsWriter, OpenError> {
    let path = directory.join(WORDS.file);
    match WordsWriter::open(directory, record) {
        Ok(words) if words.is_of(&record, next_seq) => Ok(words),
        Ok(words) => {
            drop(words);
            discard(&path, "it is not of this record and time")?;
            WordsWriter::open(directory, record)
        }
        Err(OpenError::Database { problem, .. } | OpenError::Damaged { problem, .. }) => {
            discard(&path, &problem)?;
            WordsWriter::open(directory, record)
        }
        Err(error) => Err(error),
    }
}

/// Removes a database that is made again.
fn discard(path: &Path, problem: &str) -> Result<(), OpenError> {
    tracing::warn!(path = %path.display(), problem, "this index is made again from the log");
    for suffix in ["", "-wal", "-shm"] {
        let path = with_suffix(path, suffix);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::File { path, error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses the record of another server, as far as `people.db` knows it.
fn refuse_other_server(
    people: &Connection,
    server_key: &ServerKey,
    directory: &Path,
) -> Result<(), OpenError> {
    let path = directory.to_path_buf();
    match conversations::lobby_key(people) {
        Ok(Some(recorded)) if recorded != *server_key => {
            Err(OpenError::OtherServer { path, recorded, given: *server_key })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(OpenError::Database { path, problem: error.to_string() }),
    }
}

/// Creates the lobby of a new record, and checks the server of one whose `people.db` was lost.
fn lobby(
    log: &mut LogWriter,
    people: &mut PeopleWriter,
    server_key: &ServerKey,
    now_ms: u64,
    directory: &Path,
) -> Result<(), OpenError> {
    let path = directory.to_path_buf();
    let fault = |error: StoreError| match error {
        StoreError::Full => {
            OpenError::File { path: path.clone(), error: io::ErrorKind::StorageFull.into() }
        }
        other => OpenError::Database { path: path.clone(), problem: other.to_string() },
    };
    refuse_other_server(people.conn(), server_key, directory)?;
    match conversations::lobby_key(people.conn()).map_err(|error| fault(error.into()))? {
        Some(_) => Ok(()),
        None => {
            let set = changes::encode(vec![conversations::lobby_change(server_key, now_ms)]);
            let mut batch = BatchBuilder::new();
            batch.change(&set);
            let appended = log.append(&mut batch).map_err(|error| fault(error.into()))?;
            let (next_seq, end) = (appended.next, appended.end);
            let logged =
                LoggedBatch { changes: vec![set], next_seq, end, ..LoggedBatch::default() };
            people.apply(&logged).map_err(|error| fault(error.into()))
        }
    }
}

/// Completes the erasures that the log has and that were interrupted.
fn finish_erasures(
    people: &mut PeopleWriter,
    words: &mut WordsWriter,
    entries: &EntryReader<'_>,
    directory: &Path,
) -> Result<(), DbError> {
    for (conversation, n) in files::erasing(people.conn())? {
        convert::forget_old_record(directory).map_err(|error| {
            StoreError::Database(format!(
                "the record before its conversion is not removed: {error}"
            ))
        })?;
        if let Some((run, _)) = entries.entry(conversation, n)? {
            words::erase(words, entries, &run, n)?;
        }
        files::end_erasure(people.conn(), conversation, n)?;
    }
    Ok(())
}

/// Removes the old record that a conversion has kept, if that is long ago.
fn forget_when_old(directory: &Path) {
    match convert::forget_when_old(directory, SystemTime::now()) {
        Ok(true) => tracing::info!("the record before its conversion was removed, as announced"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "the record before its conversion is not removed"),
    }
}

/// A job that notes that an entry is overwritten.
fn end_erasure(conversation: u64, n: u64) -> crate::recorder::WriteJob {
    Box::new(move |transaction| {
        let ended = transaction.map_err(|error| error.clone()).and_then(|transaction| {
            files::end_erasure(transaction.conn, conversation, n).map_err(StoreError::from)
        });
        let keep = ended.is_ok();
        // If it fails, the next start erases the entry once more, which has no effect.
        RecordedJob { keep, answer: Box::new(|_| {}) }
    })
}

#[cfg(test)]
pub(crate) mod tests;
