//! What the log says of recorded appends: at DEBUG a line for each, at INFO sums.
//!
//! A sender causes as many appends as it likes, so at INFO a session writes at most one line for each
//! conversation in [`EACH`]: the first append at once, what follows together. Names are looked up in a
//! task of their own, so that no session waits for its log.

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

/// Between two sums of one session and conversation.
const EACH: Duration = Duration::from_secs(10);
/// Names kept; about 100 bytes each.
const KEPT: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Names of conversations. A room keeps its name.
pub(crate) struct Names(Mutex<LruCache<ConversationId, Arc<str>>>);

impl Names {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(KEPT)))
    }

    fn known(&self, id: ConversationId) -> Option<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The name of a conversation of this user, from the record if need be.
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
            // Left, or damaged: the number has to do.
            Ok(None) | Err(_) => return "?".into(),
        };
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.put(id, name.clone());
        name
    }
}

/// Writes a line of the log that names a conversation: at once where the name is known, else in a task
/// that reads it.
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

/// Writes a text to the log (`log-messages`).
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

/// The appends of one session.
pub(crate) struct AppendLog {
    /// `None`: nothing is appended here.
    who: Option<Who>,
    sums: HashMap<ConversationId, Sum>,
}

/// An append that was recorded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logged {
    pub(crate) conversation: ConversationId,
    pub(crate) n: u64,
    /// Of its text.
    pub(crate) bytes: usize,
}

/// Who appends.
#[derive(Clone)]
pub(crate) struct Who {
    pub(crate) user: Name,
    /// As entries name it.
    pub(crate) sender: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) sid: Option<SessionId>,
}

/// Appends to a conversation that are not in the log yet.
#[derive(Debug, Clone, Copy)]
struct Sum {
    count: u64,
    bytes: u64,
    last: u64,
    /// When the next line may be written.
    next: Instant,
}

impl AppendLog {
    pub(crate) fn new(who: Option<Who>) -> Self {
        Self { who, sums: HashMap::new() }
    }

    /// Appends were recorded.
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

    /// When [`AppendLog::write_due`] has something to write.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.sums.values().filter(|sum| sum.count > 0).map(|sum| sum.next).min()
    }

    /// Writes the sums that may be written.
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

    /// Writes what is left, at the end of the session.
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

/// One task for all of them, so that a session has one read of a name waiting for its turn.
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
