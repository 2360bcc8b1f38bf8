//! The handshake (section 4) and registration (section 8), one type for each step.
//!
//! Each step consumes the one before it, and a session can only be created from [`Established`].
//! No step does I/O: the caller transmits the frames.
//!
//! ```text
//! client                                            server
//! AwaitChallenge::start              HELLO ->       Hello::parse
//! AwaitChallenge::handle_challenge   <- CHALLENGE   Hello::challenge
//!                                    PROOF ->       AwaitProof::handle_proof
//! ```
//!
//! A client that fails after CHALLENGE sends nothing. CHALLENGE already shows the client whether
//! its password is right. To a malicious server, a failure must look like a lost connection.

use std::borrow::Borrow;
use std::sync::Arc;

use thiserror::Error;
use zeroize::Zeroizing;

use crate::credential::Credential;
use crate::frame::{
    self, CHALLENGE, ErrorCode, FrameType, HELLO_PREFIX, KE1, KE3, KEM_CT, KEM_EK, MAX_HELLO,
    MIN_HELLO,
};
use crate::id::{CredentialId, ServerKey, SessionId};
use crate::kem::{self, KemSecret};
use crate::keys::{ChainKey, RootKey};
use crate::legacy_crypto::opaque::{
    self, ClientEnrolment, ClientHandshake, RECORD, REQUEST, RESPONSE, ServerHandshake, ServerSetup,
};
use crate::limits::VERSION;
use crate::wiped::{self, wiped};
use crate::{Entropy, schedule};

/// A completed handshake, which authenticated both ends. Contains the keys of epoch 0.
#[derive(Debug)]
pub struct Established {
    pub(crate) side: Side,
    pub(crate) ck_c2s: ChainKey,
    pub(crate) ck_s2c: ChainKey,
    pub(crate) rk: RootKey,
    pub(crate) sid: SessionId,
    pub(crate) server_key: ServerKey,
    pub(crate) credential: CredentialId,
}

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end that connects, logs in and starts rekeys.
    Client,
    /// The end that accepts connections.
    Server,
}

impl Established {
    /// The session's public identifier, for logs and status.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        self.sid
    }

    /// The server's key. It equals the pin; without a pin, the client pins it now.
    #[must_use]
    pub fn server_key(&self) -> ServerKey {
        self.server_key
    }

    /// The credential of the login.
    #[must_use]
    pub fn credential(&self) -> &CredentialId {
        &self.credential
    }

    /// The chains of both directions, client to server first.
    ///
    /// For tests that act as an authenticated peer and send frames that no session would send.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn into_chains(self) -> [crate::seal::Chain; 2] {
        use crate::seal::Chain;
        [Chain::new(self.ck_c2s, 0), Chain::new(self.ck_s2c, 0)]
    }
}

/// A handshake or registration failed. A client sends nothing more; a server answers a bad PROOF
/// with ERROR 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("login refused")]
pub struct LoginRefused;

/// Why a client stops after CHALLENGE. It sends nothing, so the server does not learn the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotLoggedIn {
    /// The secret is wrong, or the server failed to authenticate itself.
    #[error("login refused")]
    Refused,
    /// The server has the credential's record, but its key is not the pinned one.
    #[error("the server's key is {shown}, not {known}")]
    OtherServer {
        /// The pinned key.
        known: ServerKey,
        /// The key that the server presented.
        shown: ServerKey,
    },
}

impl From<LoginRefused> for NotLoggedIn {
    fn from(_: LoginRefused) -> Self {
        Self::Refused
    }
}

// ---- client ------------------------------------------------------------------------------

/// State of a client that has sent HELLO.
pub struct AwaitChallenge {
    credential: Arc<Credential>,
    pin: Option<ServerKey>,
    hello: Vec<u8>,
    kem: KemSecret,
    opaque: ClientHandshake,
}

impl AwaitChallenge {
    /// Starts a login and returns the HELLO frame to send.
    ///
    /// Draws 64 random bytes for the KEM, then those that OPAQUE needs.
    ///
    /// `pin` is the server key that this client knows. It is `None` only at a first login by
    /// password without an invite link.
    ///
    /// # Errors
    /// [`LoginRefused`] if OPAQUE cannot blind the password, which does not happen.
    pub fn start(
        credential: impl Into<Arc<Credential>>,
        pin: Option<ServerKey>,
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, Vec<u8>), LoginRefused> {
        wiped::<{ wiped::HANDSHAKE }, _>(|| Self::hello(credential.into(), pin, entropy))
    }

    fn hello(
        credential: Arc<Credential>,
        pin: Option<ServerKey>,
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, Vec<u8>), LoginRefused> {
        let (kem, ek) = kem::generate(entropy);
        let (opaque, ke1) = ClientHandshake::start(&credential.password_input(), entropy)
            .map_err(|_| LoginRefused)?;
        let id = credential.id();
        let prefix = [VERSION, 0, id.kind(), id.id().len() as u8];
        let hello = [&prefix, id.id(), &ek, &ke1].concat();
        let frame = frame::encode(FrameType::Hello, &[&hello]);
        Ok((Self { credential, pin, hello, kem, opaque }, frame))
    }

    /// Verifies the payload of CHALLENGE and returns the PROOF frame to send.
    ///
    /// The caller sends its READY right after PROOF. For a user's password, Argon2id takes about
    /// 1 s and 256 MiB.
    ///
    /// # Errors
    /// [`NotLoggedIn`]: close the connection without sending anything.
    pub fn handle_challenge(
        self,
        challenge: &[u8; CHALLENGE],
        entropy: &mut dyn Entropy,
    ) -> Result<(Established, Vec<u8>), NotLoggedIn> {
        wiped::<{ wiped::HANDSHAKE }, _>(|| self.prove(challenge, entropy))
    }

    fn prove(
        self,
        challenge: &[u8; CHALLENGE],
        entropy: &mut dyn Entropy,
    ) -> Result<(Established, Vec<u8>), NotLoggedIn> {
        let (kem_ct, ke2) = challenge.split_first_chunk::<KEM_CT>().ok_or(LoginRefused)?;
        let ke2 = ke2.try_into().map_err(|_| LoginRefused)?;
        let ss = self.kem.decapsulate(kem_ct);
        let id = self.credential.id();
        let finished = self
            .opaque
            .finish(
                &self.credential.password_input(),
                ke2,
                &id.cid(),
                &context(&self.hello, kem_ct),
                self.credential.stretching(),
                entropy,
            )
            .map_err(|_| LoginRefused)?;
        let shown = finished.server_key;
        if let Some(known) = self.pin.filter(|known| *known != shown) {
            return Err(NotLoggedIn::OtherServer { known, shown });
        }
        let established = establish(
            Side::Client,
            [&self.hello, challenge, &finished.ke3],
            &finished.session_key,
            &ss,
            finished.server_key,
            id,
        );
        Ok((established, frame::encode(FrameType::Proof, &[&finished.ke3])))
    }
}

// ---- server ------------------------------------------------------------------------------

/// A HELLO that the server cannot answer with CHALLENGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HelloFault {
    /// Answer with this ERROR, then close.
    #[error("{0}")]
    Answer(ErrorCode),
    /// Close without an answer.
    #[error("a HELLO of {0} bytes")]
    Length(usize),
}

/// Checks version and length of a HELLO before the server reads the rest.
///
/// The version is checked first, because a HELLO of a later version may have any length, and its
/// client must learn the version of this server.
///
/// # Errors
/// [`HelloFault`].
pub fn check_hello(version: u8, len: usize) -> Result<(), HelloFault> {
    if version != VERSION {
        Err(HelloFault::Answer(ErrorCode::Version(VERSION)))
    } else if !(MIN_HELLO..=MAX_HELLO).contains(&len) {
        Err(HelloFault::Length(len))
    } else {
        Ok(())
    }
}

/// A well-formed HELLO. Nothing in it is authenticated.
pub struct Hello {
    payload: Vec<u8>,
    credential: CredentialId,
    ek: Box<[u8; KEM_EK]>,
    ke1: [u8; KE1],
}

impl Hello {
    /// Decodes the payload of HELLO and checks its group elements and encapsulation key.
    ///
    /// # Errors
    /// [`HelloFault`].
    pub fn parse(payload: &[u8]) -> Result<Self, HelloFault> {
        const MALFORMED: HelloFault = HelloFault::Answer(ErrorCode::Malformed);
        check_hello(payload.first().copied().unwrap_or(VERSION), payload.len())?;
        let (&[_, flags, kind, id_len], rest) =
            payload.split_first_chunk::<HELLO_PREFIX>().ok_or(MALFORMED)?;
        let (id, rest) = rest.split_at_checked(usize::from(id_len)).ok_or(MALFORMED)?;
        let (ek, ke1) = rest.split_first_chunk::<KEM_EK>().ok_or(MALFORMED)?;
        let ke1: [u8; KE1] = ke1.try_into().map_err(|_| MALFORMED)?;
        let credential = CredentialId::parse(kind, id).map_err(|_| MALFORMED)?;
        if flags != 0 || kem::check(ek).is_err() || opaque::check_ke1(&ke1).is_err() {
            return Err(MALFORMED);
        }
        Ok(Self { payload: payload.to_vec(), credential, ek: Box::new(*ek), ke1 })
    }

    /// The credential that the client claims.
    #[must_use]
    pub fn credential(&self) -> &CredentialId {
        &self.credential
    }

    /// Answers with a CHALLENGE frame.
    ///
    /// `record` is the stored record of the credential, or `None` if the credential is unknown,
    /// revoked, expired or used. Both cases take the same steps, so that neither the answer nor its
    /// time shows which credentials exist. Draws 32 random bytes for the KEM, then those that
    /// OPAQUE needs.
    ///
    /// # Errors
    /// [`HelloFault`], which [`Hello::parse`] has ruled out.
    pub fn challenge(
        self,
        setup: &ServerSetup,
        record: Option<&[u8; RECORD]>,
        entropy: &mut dyn Entropy,
    ) -> Result<(AwaitProof, Vec<u8>), HelloFault> {
        wiped::<{ wiped::HANDSHAKE }, _>(|| self.answer(setup, record, entropy))
    }

    fn answer(
        self,
        setup: &ServerSetup,
        record: Option<&[u8; RECORD]>,
        entropy: &mut dyn Entropy,
    ) -> Result<(AwaitProof, Vec<u8>), HelloFault> {
        const MALFORMED: HelloFault = HelloFault::Answer(ErrorCode::Malformed);
        let (kem_ct, ss) = kem::encapsulate(&self.ek, entropy).map_err(|_| MALFORMED)?;
        let context = context(&self.payload, &kem_ct);
        let cid = self.credential.cid();
        let (opaque, ke2) =
            setup.login(record, &self.ke1, &cid, &context, entropy).map_err(|_| MALFORMED)?;
        let challenge = [kem_ct.as_slice(), &ke2].concat();
        let frame = frame::encode(FrameType::Challenge, &[&challenge]);
        let state = AwaitProof {
            hello: self.payload,
            challenge,
            credential: self.credential,
            context,
            opaque: Box::new(opaque),
            ss: Box::new(ss),
            server_key: setup.server_key(),
        };
        Ok((state, frame))
    }
}

/// State of a server that has sent CHALLENGE.
pub struct AwaitProof {
    hello: Vec<u8>,
    challenge: Vec<u8>,
    credential: CredentialId,
    context: Vec<u8>,
    // The secrets are boxed, so that moving this state leaves no copies of them.
    opaque: Box<ServerHandshake>,
    ss: Box<Zeroizing<[u8; 32]>>,
    server_key: ServerKey,
}

impl AwaitProof {
    /// Verifies the payload of PROOF.
    ///
    /// # Errors
    /// [`LoginRefused`]: answer with ERROR 3, then close.
    pub fn handle_proof(self, proof: &[u8; KE3]) -> Result<Established, LoginRefused> {
        wiped::<{ wiped::HANDSHAKE }, _>(|| self.check(proof))
    }

    fn check(self, proof: &[u8; KE3]) -> Result<Established, LoginRefused> {
        let session_key = self
            .opaque
            .finish(proof, &self.credential.cid(), &self.context)
            .map_err(|_| LoginRefused)?;
        Ok(establish(
            Side::Server,
            [&self.hello, &self.challenge, proof],
            &session_key,
            &self.ss,
            self.server_key,
            self.credential,
        ))
    }
}

/// `context = "tl1 ctx" || H("tl1 hello" || HELLO || kem_ct)`.
fn context(hello: &[u8], kem_ct: &[u8; KEM_CT]) -> Vec<u8> {
    [schedule::CONTEXT, &schedule::hash(&[schedule::HELLO, hello, kem_ct])].concat()
}

/// Derives `th`, `root`, the session id and the keys of epoch 0 (section 4).
fn establish(
    side: Side,
    [hello, challenge, proof]: [&[u8]; 3],
    session_key: &[u8; 64],
    ss: &[u8; 32],
    server_key: ServerKey,
    credential: CredentialId,
) -> Established {
    let th = schedule::hash(&[schedule::TRANSCRIPT, hello, challenge, proof]);
    let mut ikm = Zeroizing::new([0; 96]);
    for (to, from) in ikm.iter_mut().zip(session_key.iter().chain(ss)) {
        *to = *from;
    }
    let root = schedule::extract(&th, ikm.as_slice());
    let sid: Zeroizing<[u8; 16]> = schedule::expand(&root, &[schedule::SID]);
    Established {
        side,
        ck_c2s: ChainKey::new(&schedule::expand(&root, &[schedule::C2S])),
        ck_s2c: ChainKey::new(&schedule::expand(&root, &[schedule::S2C])),
        rk: RootKey::new(&schedule::expand(&root, &[schedule::RK])),
        sid: SessionId(*sid),
        server_key,
        credential,
    }
}

// ---- registration ------------------------------------------------------------------------

/// The client's side of a registration (section 8): sends a request, then the record.
///
/// The blinded input contains the credential's id. The server therefore draws a device's id before
/// the registration starts.
pub struct Enrolment<C> {
    credential: C,
    opaque: ClientEnrolment,
}

impl<C: Borrow<Credential>> Enrolment<C> {
    /// Starts a registration and returns the request to send. Draws 64 random bytes.
    ///
    /// # Errors
    /// [`LoginRefused`] if OPAQUE cannot blind the secret, which does not happen.
    pub fn start(
        credential: C,
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; REQUEST]), LoginRefused> {
        wiped::<{ wiped::HANDSHAKE }, _>(|| {
            let input = credential.borrow().password_input();
            let (opaque, request) =
                ClientEnrolment::start(&input, entropy).map_err(|_| LoginRefused)?;
            Ok((Self { credential, opaque }, request))
        })
    }

    /// Takes the server's response and returns the record to upload. Draws 32 random bytes.
    /// Stretching a password takes about 1 s and 256 MiB.
    ///
    /// # Errors
    /// [`LoginRefused`] if the response is malformed or the server is not the pinned one.
    pub fn finish(
        self,
        response: &[u8; RESPONSE],
        pin: &ServerKey,
        entropy: &mut dyn Entropy,
    ) -> Result<[u8; RECORD], LoginRefused> {
        let credential = self.credential.borrow();
        let finished = wiped::<{ wiped::HANDSHAKE }, _>(|| {
            self.opaque.finish(
                &credential.password_input(),
                response,
                &credential.id().cid(),
                credential.stretching(),
                entropy,
            )
        })
        .map_err(|_| LoginRefused)?;
        if finished.server_key != *pin {
            return Err(LoginRefused);
        }
        Ok(finished.record)
    }
}

/// Creates a credential on the server by running both sides of a registration.
///
/// For invites: the server discards the secret afterwards (section 2).
///
/// # Errors
/// [`LoginRefused`] if OPAQUE fails, which does not happen.
pub fn self_register(
    setup: &ServerSetup,
    credential: &Credential,
    entropy: &mut dyn Entropy,
) -> Result<[u8; RECORD], LoginRefused> {
    let (enrolment, request) = Enrolment::start(credential, entropy)?;
    let response = setup.evaluate(&credential.id().cid(), &request).map_err(|_| LoginRefused)?;
    enrolment.finish(&response, &setup.server_key(), entropy)
}
