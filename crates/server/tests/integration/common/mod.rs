//! What the tests of the server share beyond `twinlock_testing`.

pub mod classic;
pub mod files;
pub mod log;
// Not `twinlock_testing::TestServer`: the unit tests of the server compile this module too, with the
// copy of the server that has their private parts in reach.
#[path = "../../../../testing/src/server.rs"]
#[allow(dead_code, reason = "client tests use more of it")]
mod server;

pub use server::TestServer;
use twinlock_core::credential::Credential;
use twinlock_core::id::ServerKey;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_core::step_up::StepUp;
pub use twinlock_testing::endpoint::{Io, proxy_header};
pub use twinlock_testing::messages::*;
pub use twinlock_testing::process::resident;
pub use twinlock_testing::raw_client::NoConnection;
pub use twinlock_testing::raw_handshake::{error, hello, read_to_end};
pub use twinlock_testing::{RawClient, SOON, TestDevice, TestInvite, password, random, soon};
use twinlock_transport::OsEntropy;

pub const MIB: usize = 1 << 20;

/// The refusal of a request that has to be refused.
pub async fn refused(client: &mut RawClient, op: Op) -> proto::Refusal {
    let id = client.post(op);
    match client.answer(id).await {
        Answered::Refusal(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Proves a password inside this session; `None`: the client found that it is wrong.
pub async fn prove_password(
    client: &mut RawClient,
    key: &ServerKey,
    password: Credential,
) -> Option<Result<(), RefusalReason>> {
    let sid = client.connection.session().id();
    let (state, ke1) = StepUp::start(password, &sid, &mut OsEntropy).unwrap();
    let begin = Op::StepUpBegin(proto::StepUpBegin { ke1: copy(&ke1) });
    let ke2 = match client.ask(begin).await {
        Ok(Answered::StepUpChallenge(challenge)) => challenge.ke2,
        Ok(other) => panic!("{other:?}"),
        Err(why) => return Some(Err(why)),
    };
    let ke2 = ke2.as_ref().try_into().unwrap();
    let ke3 = state.finish(&ke2, key, &mut OsEntropy).ok()?;
    let finish = Op::StepUpFinish(proto::StepUpFinish { ke3: copy(&ke3) });
    Some(client.ask(finish).await.map(done))
}

/// The reason, limit and figure of a refusal.
pub fn told(refusal: &proto::Refusal) -> (RefusalReason, proto::Limit, u64) {
    (refusal.why(), refusal.limit(), refusal.most)
}
