//! Parts of a server's work on their own, for tests that measure how long they take.

use std::net::Ipv4Addr;

use twinlock_core::classic::{ClassicChannel, ClassicHello};
use twinlock_core::handshake::AwaitProof;

use super::Server;
use crate::admission::login::answer_with_challenge;
use crate::classic;
use crate::limits::SourcePrefix;
use crate::services::Services;

impl Server {
    /// Does all of a server's work from HELLO to CHALLENGE, for a client at 127.0.0.1.
    ///
    /// Returns `None` if the server answers with an ERROR or not at all.
    pub async fn answer_hello(&self, hello: &[u8]) -> Option<(AwaitProof, Vec<u8>)> {
        let origin = SourcePrefix::of(Ipv4Addr::LOCALHOST.into());
        let Services { admission, record, .. } = &self.services;
        let answered = answer_with_challenge(admission, record, hello, Some(origin)).await.ok()?;
        // Such a test repeats the same names, which must not exhaust their limits.
        admission.give_back(answered.taken, answered.device.as_ref());
        Some((answered.state, answered.challenge))
    }

    /// Does all of a server's work from a classic connection's first line to the keys of its lines.
    pub async fn classic_lines(&self, hello: ClassicHello) -> Option<ClassicChannel> {
        classic::read_hello(&self.services.admission, &self.services.record, hello).await
    }
}
