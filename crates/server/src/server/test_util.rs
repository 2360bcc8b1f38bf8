//! Parts of a server's work on their own, for tests that measure how long they take.

use std::net::Ipv4Addr;

use twinlock_core::classic::{ClassicChannel, Heard};
use twinlock_core::handshake::AwaitProof;

use super::Server;
use crate::limits::Origin;
use crate::{classic, session};

impl Server {
    /// Does all of a server's work from HELLO to CHALLENGE, for a client at 127.0.0.1.
    ///
    /// Returns `None` if the server answers with an ERROR or not at all.
    pub async fn answer_hello(&self, hello: &[u8]) -> Option<(AwaitProof, Vec<u8>)> {
        let origin = Origin::of(Ipv4Addr::LOCALHOST.into());
        let asked = session::ask(&self.shared, hello, Some(origin)).await.ok()?;
        // Such a test repeats the same names, which must not exhaust their limits.
        self.shared.guesses.give_back(asked.taken);
        if let Some(device) = asked.device {
            self.shared.devices.give_back(&device);
        }
        Some((asked.state, asked.challenge))
    }

    /// Does all of a server's work from a classic connection's first line to the keys of its lines.
    pub async fn hear_classic(&self, heard: Heard) -> Option<ClassicChannel> {
        classic::hear(&self.shared, heard).await
    }
}
