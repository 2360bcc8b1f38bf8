//! Log of recorded appends: a line for each at DEBUG, sums at INFO.
//!
//! A sender causes any number of appends. At INFO a session therefore writes at most one line for
//! each conversation in [`INTERVAL`]: the first append at once, later ones as a sum. Names are
//! looked up in a separate task, so that no session waits for its log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{ConversationId, Name, SessionId};
use twinlock_core::text::Untrusted;
use twinlock_store::NewEntry;

use crate::record::Record;

/// Interval between two sums of one session and conversation.
const INTERVAL: Duration = Duration::from_secs(10);
/// Logs an event with the name of its conversation: immediately if the name is cached, otherwise in
/// a task that reads it.
pub(crate) fn with_name(
    record: &Arc<Record>,
    user: &Name,
    conversation: ConversationId,
    write: impl FnOnce(&str) + Send + 'static,
) {
    if let Some(name) = record.cached_name(conversation) {
        return write(&name);
    }
    let (record, user) = (record.clone(), user.clone());
    tokio::spawn(async move { write(&record.conversation_name(&user, conversation).await) });
}

/// Logs the text of a message (`log-messages`).
pub(crate) fn write_text(record: &Arc<Record>, user: &Name, entry: &NewEntry) {
    let (conversation, entry) = (entry.conversation, entry.clone());
    with_name(record, user, conversation, move |room| {
        tracing::info!(
            from = %entry.sender,
            kind = entry.kind.word(),
            room,
            conversation,
            text = ?Untrusted::from_bytes(&entry.body),
            "message"
        );
    });
}

/// Unlogged appends of one session.
pub(crate) struct AppendLog {
    /// `None`: the session cannot append.
    who: Option<AppendSender>,
    sums: HashMap<ConversationId, AppendSum>,
}

/// A recorded append.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordedAppend {
    pub(crate) conversation: ConversationId,
    pub(crate) n: u64,
    /// Length of the body.
    pub(crate) bytes: usize,
}

/// The sender of appends.
#[derive(Clone)]
pub(crate) struct AppendSender {
    pub(crate) user: Name,
    /// As entries name it.
    pub(crate) sender: Arc<str>,
    pub(crate) kind: EntryKind,
    pub(crate) sid: Option<SessionId>,
}

/// Appends to a conversation that are not logged yet.
#[derive(Debug, Clone, Copy)]
struct AppendSum {
    count: u64,
    bytes: u64,
    last: u64,
    /// Earliest time of the next line.
    next: Instant,
}

impl AppendLog {
    pub(crate) fn new(who: Option<AppendSender>) -> Self {
        Self { who, sums: HashMap::new() }
    }

    /// Counts recorded appends, and logs the due sums.
    pub(crate) fn note(&mut self, record: &Arc<Record>, recorded: &[RecordedAppend]) {
        let Some(who) = &self.who else { return };
        if tracing::enabled!(tracing::Level::DEBUG) {
            write_each(record, who, recorded.to_vec());
        }
        let now = Instant::now();
        for one in recorded {
            let fresh = AppendSum { count: 0, bytes: 0, last: 0, next: now };
            let sum = self.sums.entry(one.conversation).or_insert(fresh);
            sum.count += 1;
            sum.bytes += one.bytes as u64;
            sum.last = one.n;
        }
        self.write_due(record, now);
    }

    /// Time at which [`AppendLog::write_due`] has something to log.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.sums.values().filter(|sum| sum.count > 0).map(|sum| sum.next).min()
    }

    /// Logs the sums that are due.
    pub(crate) fn write_due(&mut self, record: &Arc<Record>, now: Instant) {
        let Some(who) = &self.who else { return };
        let mut due = Vec::new();
        self.sums.retain(|conversation, sum| {
            if sum.next > now {
                return true;
            }
            if sum.count == 0 {
                return false;
            }
            due.push((*conversation, *sum));
            *sum = AppendSum { count: 0, bytes: 0, last: 0, next: now + INTERVAL };
            true
        });
        write_sums(record, who, due);
    }

    /// Logs the remaining sums at the end of the session.
    pub(crate) fn end(&mut self, record: &Arc<Record>) {
        let Some(who) = &self.who else { return };
        let left = self.sums.drain().filter(|(_, sum)| sum.count > 0).collect();
        write_sums(record, who, left);
    }
}

fn write_each(record: &Arc<Record>, who: &AppendSender, recorded: Vec<RecordedAppend>) {
    let (record, who) = (record.clone(), who.clone());
    tokio::spawn(async move {
        for RecordedAppend { conversation, n, bytes } in recorded {
            let name = record.conversation_name(&who.user, conversation).await;
            tracing::debug!(
                sid = who.sid.map(tracing::field::display),
                from = &*who.sender,
                kind = who.kind.word(),
                room = &*name,
                conversation,
                n,
                bytes,
                "recorded"
            );
        }
    });
}

/// Logs sums in one task, so that a session waits for at most one read of a name at a time.
fn write_sums(record: &Arc<Record>, who: &AppendSender, sums: Vec<(ConversationId, AppendSum)>) {
    if sums.is_empty() {
        return;
    }
    let (record, who) = (record.clone(), who.clone());
    tokio::spawn(async move {
        for (conversation, AppendSum { count, bytes, last, .. }) in sums {
            let name = record.conversation_name(&who.user, conversation).await;
            tracing::info!(
                sid = who.sid.map(tracing::field::display),
                from = &*who.sender,
                kind = who.kind.word(),
                room = &*name,
                conversation,
                count,
                bytes,
                last,
                "appends recorded"
            );
        }
    });
}
