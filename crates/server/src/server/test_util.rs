//! Parts of a server's work on their own, for tests that measure how long they take.

use std::net::Ipv4Addr;

use twinlock_core::classic::{ClassicChannel, Heard};
use twinlock_core::handshake::AwaitProof;

use super::Server;
use crate::admission::login::ask;
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
        let asked = ask(admission, record, hello, Some(origin)).await.ok()?;
        // Such a test repeats the same names, which must not exhaust their limits.
        admission.give_back(asked.taken, asked.device.as_ref());
        Some((asked.state, asked.challenge))
    }

    /// Does all of a server's work from a classic connection's first line to the keys of its lines.
    pub async fn hear_classic(&self, heard: Heard) -> Option<ClassicChannel> {
        classic::hear(&self.services.admission, &self.services.record, heard).await
    }
}
