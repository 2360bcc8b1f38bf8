//! The entry that a message under a classic key becomes, and its log.

use std::sync::Arc;

use bytes::Bytes;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{MessageId, Sender};
use twinlock_store::{NewEntry, StoredClassicKey};
use twinlock_transport::OsEntropy;

use crate::append_log::{AppendLog, AppendSender, write_text};
use crate::env::Env;
use crate::record::Record;

/// The entry of a text that arrived under a key.
pub(super) fn entry(
    env: &Env,
    record: &Arc<Record>,
    key: &StoredClassicKey,
    kind: EntryKind,
    text: String,
) -> NewEntry {
    let entry = NewEntry {
        conversation: key.conversation,
        sender: Sender::Classic(key.user.clone(), key.name.clone()),
        message_id: MessageId::fresh(env.now_ms(), &mut OsEntropy),
        kind,
        body: Bytes::from(text),
    };
    if env.config.log_messages {
        write_text(record, &key.user, &entry);
    }
    entry
}

/// The log of appends under a key.
pub(super) fn append_log(key: &StoredClassicKey, kind: EntryKind) -> AppendLog {
    AppendLog::new(Some(AppendSender {
        user: key.user.clone(),
        sender: Sender::Classic(key.user.clone(), key.name.clone()).to_string().into(),
        kind,
        sid: None,
    }))
}
