//! Step-up (section 8): an OPAQUE login inside a device session that proves its user's password.
//!
//! ```text
//! client  StepUp::start             KE1  ->
//!                                       <-  KE2   AwaitStepUp::start
//!         StepUp::finish            KE3  ->       AwaitStepUp::finish
//! ```
//!
//! The OPAQUE context names the session, `"tl1 ctx" || H("tl1 step-up" || sid)`, so KE1 to KE3 of
//! one session prove nothing in another. The login's keys are discarded: the session keeps its own.

use zeroize::Zeroizing;

use crate::credential::Credential;
use crate::frame::{KE1, KE2, KE3};
use crate::handshake::LoginRefused;
use crate::id::{CredentialId, ServerKey, SessionId};
use crate::legacy_crypto::opaque::{ClientHandshake, RECORD, ServerHandshake, ServerSetup};
use crate::wiped::{self, wiped};
use crate::{Entropy, schedule};

/// The client has sent KE1.
pub struct StepUp {
    credential: Credential,
    context: Vec<u8>,
    opaque: ClientHandshake,
}

impl StepUp {
    /// Starts a proof inside the session `sid` and returns KE1. Draws 128 bytes.
    ///
    /// # Errors
    /// [`LoginRefused`] if OPAQUE cannot blind the password, which does not happen.
    pub fn start(
        credential: Credential,
        sid: &SessionId,
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; KE1]), LoginRefused> {
        wiped::<{ wiped::HANDSHAKE }, _>(|| {
            let input = credential.password_input();
            let (opaque, ke1) =
                ClientHandshake::start(&input, entropy).map_err(|_| LoginRefused)?;
            Ok((Self { credential, context: context(sid), opaque }, ke1))
        })
    }

    /// Verifies KE2 and returns KE3. Argon2id takes about 1 s and 256 MiB.
    ///
    /// # Errors
    /// [`LoginRefused`] if the password is wrong, or the server's key is not `pin`. One error
    /// suffices: the session has already authenticated the server.
    pub fn finish(
        self,
        ke2: &[u8; KE2],
        pin: &ServerKey,
        entropy: &mut dyn Entropy,
    ) -> Result<[u8; KE3], LoginRefused> {
        let Self { credential, context, opaque } = self;
        let finished = wiped::<{ wiped::HANDSHAKE }, _>(|| {
            let input = credential.password_input();
            let cid = credential.id().cid();
            opaque.finish(&input, ke2, &cid, &context, credential.stretching(), entropy)
        })
        .map_err(|_| LoginRefused)?;
        if finished.server_key == *pin { Ok(finished.ke3) } else { Err(LoginRefused) }
    }
}

/// The server has sent KE2.
pub struct AwaitStepUp {
    cid: Vec<u8>,
    context: Vec<u8>,
    // Boxed, so that a move leaves no copy of it.
    opaque: Box<ServerHandshake>,
}

impl AwaitStepUp {
    /// Answers KE1 for `credential` in the session `sid`.
    ///
    /// `record` is the stored record of the credential. `None`, if none is stored, takes the same
    /// steps. Draws the bytes that OPAQUE needs.
    ///
    /// # Errors
    /// [`LoginRefused`] if KE1 does not decode.
    pub fn start(
        setup: &ServerSetup,
        record: Option<&[u8; RECORD]>,
        ke1: &[u8; KE1],
        credential: &CredentialId,
        sid: &SessionId,
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; KE2]), LoginRefused> {
        let (cid, context) = (credential.cid(), context(sid));
        let (opaque, ke2) =
            wiped::<{ wiped::HANDSHAKE }, _>(|| setup.login(record, ke1, &cid, &context, entropy))
                .map_err(|_| LoginRefused)?;
        Ok((Self { cid, context, opaque: Box::new(opaque) }, ke2))
    }

    /// Verifies KE3.
    ///
    /// # Errors
    /// [`LoginRefused`] if it does not prove the password.
    pub fn finish(self, ke3: &[u8; KE3]) -> Result<(), LoginRefused> {
        let key: Result<Zeroizing<[u8; 64]>, _> =
            wiped::<{ wiped::HANDSHAKE }, _>(|| self.opaque.finish(ke3, &self.cid, &self.context));
        key.map(drop).map_err(|_| LoginRefused)
    }
}

fn context(sid: &SessionId) -> Vec<u8> {
    [schedule::CONTEXT, &schedule::hash(&[schedule::STEP_UP, &sid.0])].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::self_register;
    use crate::id::DeviceId;
    use crate::keys::DeviceSecret;
    use crate::test_entropy::Seeded;

    /// Uses a device's secret instead of a password, because stretching a password takes 1 s.
    fn credential(secret: u8) -> Credential {
        Credential::Device(DeviceId([4; 16]), DeviceSecret::new(&[secret; 32]))
    }

    /// Whether `secret` is proven if the client is in session `client` and the server in `server`.
    fn proves(secret: u8, client: u8, server: u8, known: bool) -> bool {
        let entropy = &mut Seeded(1);
        let setup = ServerSetup::generate(entropy);
        let record = self_register(&setup, &credential(9), entropy).unwrap();
        let (sid, there) = (SessionId([client; 16]), SessionId([server; 16]));
        let (state, ke1) = StepUp::start(credential(secret), &sid, entropy).unwrap();
        let id = credential(9).id();
        let record = known.then_some(&record);
        let (waiting, ke2) =
            AwaitStepUp::start(&setup, record, &ke1, &id, &there, entropy).unwrap();
        let Ok(ke3) = state.finish(&ke2, &setup.server_key(), entropy) else { return false };
        let mut wrong = ke3;
        wrong[63] ^= 1;
        let (waiting_too, _) =
            AwaitStepUp::start(&setup, record, &ke1, &id, &there, entropy).unwrap();
        assert!(waiting_too.finish(&wrong).is_err());
        waiting.finish(&ke3).is_ok()
    }

    #[test]
    fn step_up__wrong_secret_no_record_or_other_session_fails() {
        assert!(proves(9, 1, 1, true));
        assert!(!proves(8, 1, 1, true), "a wrong secret");
        assert!(!proves(9, 1, 1, false), "no record");
        assert!(!proves(9, 1, 2, true), "KE2 of another session");
    }

    #[test]
    fn step_up__answer_for_other_session_is_rejected() {
        let entropy = &mut Seeded(1);
        let setup = ServerSetup::generate(entropy);
        let record = self_register(&setup, &credential(9), entropy).unwrap();
        let id = credential(9).id();
        let [here, there] = [SessionId([1; 16]), SessionId([2; 16])];
        let (state, ke1) = StepUp::start(credential(9), &here, entropy).unwrap();
        // Both answers draw the same bytes, so only the session differs.
        let answer = |sid| {
            AwaitStepUp::start(&setup, Some(&record), &ke1, &id, sid, &mut Seeded(3)).unwrap()
        };
        let ((right, ke2), (wrong, _)) = (answer(&here), answer(&there));
        let ke3 = state.finish(&ke2, &setup.server_key(), entropy).unwrap();
        assert!(wrong.finish(&ke3).is_err());
        assert!(right.finish(&ke3).is_ok());
    }

    #[test]
    fn step_up__other_server_key_is_refused() {
        let entropy = &mut Seeded(1);
        let setup = ServerSetup::generate(entropy);
        let record = self_register(&setup, &credential(9), entropy).unwrap();
        let sid = SessionId([1; 16]);
        let (state, ke1) = StepUp::start(credential(9), &sid, entropy).unwrap();
        let id = credential(9).id();
        let (_, ke2) = AwaitStepUp::start(&setup, Some(&record), &ke1, &id, &sid, entropy).unwrap();
        assert!(state.finish(&ke2, &ServerKey([5; 32]), entropy).is_err());
    }
}
