//! The client's log of its sessions at INFO: begin, rekeys, end, and counts of recorded messages.
//!
//! Nothing here logs a text, a file's name or a secret. A session that did not begin is logged too,
//! so that the log shows a TLS interception that the profile refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use twinlock_core::id::ConversationId;
use twinlock_core::invite::Address;
use twinlock_core::session::{Binding, Session};
use twinlock_core::text::Untrusted;

use crate::connector::ReadySession;
use crate::error::ClientError;

/// Minimum interval between two counts of one conversation.
const EACH: Duration = Duration::from_secs(10);
/// Maximum length of the server's software name in characters.
const SOFTWARE: usize = 64;

/// Logs a session that is ready.
pub(crate) fn begin(server: &Address, opened: &ReadySession) {
    let ReadySession { connection, info, binding, tls, transport } = opened;
    let session = connection.session();
    let sid = session.id();
    let software: String = info.software.chars().take(SOFTWARE).collect();
    tracing::info!(
        %sid,
        %server,
        key = %session.server_key(),
        software = ?Untrusted::new(software),
        tls = tls.version.as_deref(),
        group = tls.group.as_deref(),
        suite = tls.suite.as_deref(),
        %transport,
        ?binding,
        "session begun"
    );
    if *binding == Binding::Cut {
        let issuer = tls.issuer.as_deref();
        tracing::warn!(
            %sid, %server, issuer,
            "TLS is intercepted between this client and the server"
        );
    }
}

/// Logs an attempt that led to no session.
pub(crate) fn failed(server: &Address, error: &ClientError) {
    match error {
        ClientError::TlsCut { .. } => tracing::warn!(%server, %error, "no session"),
        error => tracing::info!(%server, %error, "no session"),
    }
}

/// Logs that both directions are in this epoch.
pub(crate) fn rekeyed(session: &Session, epoch: u32) {
    tracing::info!(sid = %session.id(), epoch, "rekeyed");
}

/// Logs the end of a session, by this client or by this error.
pub(crate) fn end(session: &Session, error: Option<&ClientError>) {
    let (sid, seconds) = (session.id(), session.began().elapsed().as_secs());
    let rekeys = session.facts().rekeys;
    let error = error.map(tracing::field::display);
    tracing::info!(%sid, seconds, rekeys, error, "session ended");
}

/// Counts of recorded messages that are not in the log yet.
#[derive(Debug, Default)]
pub(crate) struct RecordedCounts(BTreeMap<ConversationId, RecordedCount>);

#[derive(Debug)]
struct RecordedCount {
    /// The target that the messages name.
    to: Option<String>,
    count: u64,
    last: u64,
    /// Time of the next log line.
    next: Instant,
}

impl RecordedCounts {
    /// Counts the recorded message with number `n`; `to` returns its target.
    pub(crate) fn note(
        &mut self,
        conversation: ConversationId,
        n: u64,
        to: impl FnOnce() -> Option<String>,
    ) {
        let fresh = || RecordedCount { to: to(), count: 0, last: 0, next: Instant::now() };
        let sum = self.0.entry(conversation).or_insert_with(fresh);
        sum.count += 1;
        sum.last = sum.last.max(n);
    }

    /// Logs the counts that are due: the first of a conversation at once, then one per [`EACH`].
    pub(crate) fn write_due(&mut self) {
        let now = Instant::now();
        self.0.retain(|conversation, sum| {
            if sum.next > now {
                return true;
            }
            sum.write(*conversation);
            let is_quiet = sum.count == 0;
            (sum.count, sum.last, sum.next) = (0, 0, now + EACH);
            !is_quiet
        });
    }

    /// Logs the remaining counts.
    pub(crate) fn end(&mut self) {
        for (conversation, sum) in std::mem::take(&mut self.0) {
            sum.write(conversation);
        }
    }
}

impl RecordedCount {
    fn write(&self, conversation: ConversationId) {
        let Self { to, count, last, .. } = self;
        if *count > 0 {
            tracing::info!(to = to.as_deref(), conversation, count, last, "messages recorded");
        }
    }
}
