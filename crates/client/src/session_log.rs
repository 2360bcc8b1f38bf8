//! What the client's log says of its sessions at INFO: begin, rekeys, end, and sums of recorded
//! messages.
//!
//! Nothing here takes a text, a file's name or a secret. A session that did not begin gets a line
//! too, so the log shows a TLS interception that the profile refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use twinlock_core::id::ConversationId;
use twinlock_core::invite::Address;
use twinlock_core::session::{Binding, Session};
use twinlock_core::text::Untrusted;

use crate::dial::Opened;
use crate::error::ClientError;

/// Between two sums of one conversation.
const EACH: Duration = Duration::from_secs(10);
/// Characters of the server's name for its software.
const SOFTWARE: usize = 64;

/// Both ends are ready.
pub(crate) fn begin(server: &Address, opened: &Opened) {
    let Opened { line, info, binding, tls } = opened;
    let session = line.session();
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
        ?binding,
        "session begun"
    );
    if *binding == Binding::Cut {
        tracing::warn!(%sid, %server, "TLS ends somewhere between this client and the server");
    }
}

/// There is no session.
pub(crate) fn failed(server: &Address, error: &ClientError) {
    match error {
        ClientError::TlsCut => tracing::warn!(%server, %error, "no session"),
        error => tracing::info!(%server, %error, "no session"),
    }
}

/// Both directions are in this epoch.
pub(crate) fn rekeyed(session: &Session, epoch: u32) {
    tracing::info!(sid = %session.id(), epoch, "rekeyed");
}

/// The session has ended, by this client or by this error.
pub(crate) fn end(session: &Session, error: Option<&ClientError>) {
    let (sid, seconds) = (session.id(), session.began().elapsed().as_secs());
    let rekeys = session.facts().rekeys;
    let error = error.map(tracing::field::display);
    tracing::info!(%sid, seconds, rekeys, error, "session ended");
}

/// Recorded messages that are not in the log yet.
#[derive(Debug, Default)]
pub(crate) struct Sums(BTreeMap<ConversationId, Sum>);

#[derive(Debug)]
struct Sum {
    /// As the messages name it.
    to: Option<String>,
    count: u64,
    last: u64,
    /// When the next line may be written.
    next: Instant,
}

impl Sums {
    /// The message with number `n` is recorded. `to` names its target.
    pub(crate) fn note(
        &mut self,
        conversation: ConversationId,
        n: u64,
        to: impl FnOnce() -> Option<String>,
    ) {
        let fresh = || Sum { to: to(), count: 0, last: 0, next: Instant::now() };
        let sum = self.0.entry(conversation).or_insert_with(fresh);
        sum.count += 1;
        sum.last = sum.last.max(n);
    }

    /// Writes the sums that may be written: of a conversation the first at once, then one in
    /// [`EACH`].
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

    /// Writes all that is left.
    pub(crate) fn end(&mut self) {
        for (conversation, sum) in std::mem::take(&mut self.0) {
            sum.write(conversation);
        }
    }
}

impl Sum {
    fn write(&self, conversation: ConversationId) {
        let Self { to, count, last, .. } = self;
        if *count > 0 {
            tracing::info!(to = to.as_deref(), conversation, count, last, "messages recorded");
        }
    }
}
