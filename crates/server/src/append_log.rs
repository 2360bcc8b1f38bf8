//! Log of recorded appends: a line for each at DEBUG, sums at INFO.
//!
//! A sender causes any number of appends. At INFO a session therefore writes at most one line for
//! each conversation in [`EACH`]: the first append at once, later ones as a sum. Names are looked
//! up in a separate task, so that no session waits for its log.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;
use twinlock_core::chain::Kind;
use twinlock_core::id::{ConversationId, Name, SessionId};
use twinlock_core::text::Untrusted;
use twinlock_store::{Form, NewEntry};

use crate::server::Shared;

/// Interval between two sums of one session and conversation.
const EACH: Duration = Duration::from_secs(10);
/// Cached names; about 100 bytes each.
const KEPT: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Cached names of conversations. A room keeps its name.
pub(crate) struct Names(Mutex<LruCache<ConversationId, Arc<str>>>);

impl Names {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(KEPT)))
    }

    fn known(&self, id: ConversationId) -> Option<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The name of a conversation of this user, read from the record if it is not cached.
    pub(crate) async fn of(&self, shared: &Shared, user: &Name, id: ConversationId) -> Arc<str> {
        if let Some(name) = self.known(id) {
            return name;
        }
        let reader = user.clone();
        let read = shared.read(user, |store| async move { store.conversation(&reader, id).await });
        let name: Arc<str> = match read.await {
            Ok(Some(conversation)) => match conversation.form {
                Form::Room(name) => name.as_str().into(),
                Form::Direct(other) => {
                    format!("@{}+@{}", user.min(&other), user.max(&other)).into()
                }
            },
            // The user has left, or the row is damaged: only the conversation's id is logged.
            Ok(None) | Err(_) => return "?".into(),
        };
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.put(id, name.clone());
        name
    }
}

/// Logs an event with the name of its conversation: immediately if the name is cached, otherwise in
/// a task that reads it.
pub(crate) fn with_name(
    shared: &Arc<Shared>,
    user: &Name,
    conversation: ConversationId,
    write: impl FnOnce(&str) + Send + 'static,
) {
    if let Some(name) = shared.names.known(conversation) {
        return write(&name);
    }
    let (shared, user) = (shared.clone(), user.clone());
    tokio::spawn(async move { write(&shared.names.of(&shared, &user, conversation).await) });
}

/// Logs the text of a message (`log-messages`).
pub(crate) fn write_text(shared: &Arc<Shared>, user: &Name, entry: &NewEntry) {
    let (conversation, entry) = (entry.conversation, entry.clone());
    with_name(shared, user, conversation, move |room| {
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
    who: Option<Who>,
    sums: HashMap<ConversationId, Sum>,
}

/// A recorded append.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logged {
    pub(crate) conversation: ConversationId,
    pub(crate) n: u64,
    /// Length of the body.
    pub(crate) bytes: usize,
}

/// The sender of appends.
#[derive(Clone)]
pub(crate) struct Who {
    pub(crate) user: Name,
    /// As entries name it.
    pub(crate) sender: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) sid: Option<SessionId>,
}

/// Appends to a conversation that are not logged yet.
#[derive(Debug, Clone, Copy)]
struct Sum {
    count: u64,
    bytes: u64,
    last: u64,
    /// Earliest time of the next line.
    next: Instant,
}

impl AppendLog {
    pub(crate) fn new(who: Option<Who>) -> Self {
        Self { who, sums: HashMap::new() }
    }

    /// Counts recorded appends, and logs what is due.
    pub(crate) fn note(&mut self, shared: &Arc<Shared>, recorded: &[Logged]) {
        let Some(who) = &self.who else { return };
        if tracing::enabled!(tracing::Level::DEBUG) {
            write_each(shared, who, recorded.to_vec());
        }
        let now = Instant::now();
        for one in recorded {
            let fresh = Sum { count: 0, bytes: 0, last: 0, next: now };
            let sum = self.sums.entry(one.conversation).or_insert(fresh);
            sum.count += 1;
            sum.bytes += one.bytes as u64;
            sum.last = one.n;
        }
        self.write_due(shared, now);
    }

    /// Time at which [`AppendLog::write_due`] has something to log.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.sums.values().filter(|sum| sum.count > 0).map(|sum| sum.next).min()
    }

    /// Logs the sums that are due.
    pub(crate) fn write_due(&mut self, shared: &Arc<Shared>, now: Instant) {
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
            *sum = Sum { count: 0, bytes: 0, last: 0, next: now + EACH };
            true
        });
        write_sums(shared, who, due);
    }

    /// Logs the remaining sums at the end of the session.
    pub(crate) fn end(&mut self, shared: &Arc<Shared>) {
        let Some(who) = &self.who else { return };
        let left = self.sums.drain().filter(|(_, sum)| sum.count > 0).collect();
        write_sums(shared, who, left);
    }
}

fn write_each(shared: &Arc<Shared>, who: &Who, recorded: Vec<Logged>) {
    let (shared, who) = (shared.clone(), who.clone());
    tokio::spawn(async move {
        for Logged { conversation, n, bytes } in recorded {
            let name = shared.names.of(&shared, &who.user, conversation).await;
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
fn write_sums(shared: &Arc<Shared>, who: &Who, sums: Vec<(ConversationId, Sum)>) {
    if sums.is_empty() {
        return;
    }
    let (shared, who) = (shared.clone(), who.clone());
    tokio::spawn(async move {
        for (conversation, Sum { count, bytes, last, .. }) in sums {
            let name = shared.names.of(&shared, &who.user, conversation).await;
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
