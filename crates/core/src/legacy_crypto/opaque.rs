//! OPAQUE (RFC 9807) with ristretto255-SHA512 and 3DH on byte arrays: registration and login.
//!
//! Credential identifier and client identity are both `cid` (section 2); the server identity is
//! unset. The stretching is never left to a default.

use generic_array::{ArrayLength, GenericArray};
use opaque_ke::errors::InternalError;
use opaque_ke::ksf::Ksf;
use opaque_ke::{
    CipherSuite, ClientLogin, ClientLoginFinishParameters, ClientRegistration,
    ClientRegistrationFinishParameters, CredentialFinalization, CredentialRequest,
    CredentialResponse, Identifiers, RegistrationRequest, RegistrationResponse, RegistrationUpload,
    Ristretto255, ServerLogin, ServerLoginParameters, ServerRegistration, TripleDh,
};
use sha2_010::Sha512;
use thiserror::Error;
use zeroize::Zeroizing;

use super::RngAdapter;
use crate::Entropy;
use crate::frame::{KE1, KE2, KE3};
use crate::id::ServerKey;
use crate::keys::{ClassicRoot, RowKey};
use crate::schedule;

/// Bytes of a server's setup: OPRF seed 64, private key 32, public key of the fake record 32.
pub const SETUP: usize = 128;
/// Bytes of a registration request.
pub const REQUEST: usize = 32;
/// Bytes of a registration response.
pub const RESPONSE: usize = 64;
/// Bytes of a registration record.
pub const RECORD: usize = 192;

/// The suite; its type parameters are RFC 9807's ristretto255 configuration.
struct Suite;

impl CipherSuite for Suite {
    type OprfCs = Ristretto255;
    type KeyExchange = TripleDh<Ristretto255, Sha512>;
    type Ksf = Stretching;
}

/// How a client stretches the OPRF's output (section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stretching {
    /// Argon2id, m = 262144 KiB, t = 3, p = 4: for passwords. Takes 256 MiB and about 1 s.
    Password,
    /// None: the secret is already random.
    RandomSecret,
}

impl Default for Stretching {
    /// Required by the trait and never used: every call names its stretching.
    fn default() -> Self {
        Self::Password
    }
}

impl Ksf for Stretching {
    fn hash<L: ArrayLength<u8>>(
        &self,
        input: GenericArray<u8, L>,
    ) -> Result<GenericArray<u8, L>, InternalError> {
        match self {
            Self::RandomSecret => Ok(input),
            Self::Password => {
                let params = argon2::Params::new(256 * 1024, 3, 4, Some(L::USIZE))
                    .map_err(|_| InternalError::KsfError)?;
                let argon = argon2::Argon2::new(
                    argon2::Algorithm::Argon2id,
                    argon2::Version::V0x13,
                    params,
                );
                let mut output = GenericArray::default();
                argon
                    .hash_password_into(&input, &[0; 16], &mut output)
                    .map_err(|_| InternalError::KsfError)?;
                Ok(output)
            }
        }
    }
}

/// Bytes from the peer are malformed or do not match. The error does not show which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("OPAQUE refused")]
pub struct OpaqueRefused;

fn identifiers(cid: &[u8]) -> Identifiers<'_> {
    Identifiers { client: Some(cid), server: None }
}

/// The server's OPAQUE setup: the OPRF seed, the key pair and the fake record's key.
///
/// It identifies the server. An attacker with it and the credentials can guess
/// passwords at the cost of Argon2id. It is stored in a separate file, apart from the record and
/// its backups.
pub struct ServerSetup {
    inner: opaque_ke::ServerSetup<Suite>,
    /// A record that decodes, so that a miss does the work of a hit.
    decoy: [u8; RECORD],
}

impl std::fmt::Debug for ServerSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerSetup(..)")
    }
}

impl ServerSetup {
    /// Generates a new server's setup. Draws 64 (private key), 64 (OPRF seed) and 64 bytes (fake
    /// record's key).
    pub fn generate(entropy: &mut dyn Entropy) -> Self {
        Self::new(opaque_ke::ServerSetup::new(&mut RngAdapter(entropy)))
    }

    fn new(inner: opaque_ke::ServerSetup<Suite>) -> Self {
        let mut decoy = [0; RECORD];
        for (to, from) in decoy.iter_mut().zip(inner.keypair().public().serialize()) {
            *to = from;
        }
        Self { inner, decoy }
    }

    /// Decodes a stored setup.
    ///
    /// # Errors
    /// [`OpaqueRefused`] if the bytes are not a setup.
    pub fn from_bytes(bytes: &[u8; SETUP]) -> Result<Self, OpaqueRefused> {
        let inner = opaque_ke::ServerSetup::deserialize(bytes).map_err(|_| OpaqueRefused)?;
        Ok(Self::new(inner))
    }

    /// The bytes to store, mode 0600.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; SETUP]> {
        Zeroizing::new(self.inner.serialize().into())
    }

    /// The server's public key, which identifies it to clients.
    #[must_use]
    pub fn server_key(&self) -> ServerKey {
        ServerKey(self.inner.keypair().public().serialize().into())
    }

    /// The key of the row MACs of credentials: `Expand(Extract("tl1 rows", setup), "tl1 rows")`.
    #[must_use]
    pub fn row_key(&self) -> RowKey {
        let prk = schedule::extract(schedule::ROWS, self.to_bytes().as_slice());
        RowKey::new(&schedule::expand(&prk, &[schedule::ROWS]))
    }

    /// The root of the classic keys: `Expand(Extract("tl1 classic", setup), "tl1 classic")`.
    #[must_use]
    pub fn classic_root(&self) -> ClassicRoot {
        let prk = schedule::extract(schedule::CLASSIC_ROOT, self.to_bytes().as_slice());
        ClassicRoot::new(&schedule::expand(&prk, &[schedule::CLASSIC_ROOT]))
    }

    /// Registration, step 2: answers a request for `cid`.
    ///
    /// Call it only for an id that the session may register at this moment (section 8); otherwise
    /// it is an oracle.
    ///
    /// # Errors
    /// [`OpaqueRefused`] if the request is not a group element.
    pub fn evaluate(
        &self,
        cid: &[u8],
        request: &[u8; REQUEST],
    ) -> Result<[u8; RESPONSE], OpaqueRefused> {
        let request = RegistrationRequest::deserialize(request).map_err(|_| OpaqueRefused)?;
        let started =
            ServerRegistration::start(&self.inner, request, cid).map_err(|_| OpaqueRefused)?;
        Ok(started.message.serialize().into())
    }

    /// Registration, step 4: checks that a record can be stored.
    ///
    /// # Errors
    /// [`OpaqueRefused`].
    pub fn check_record(record: &[u8; RECORD]) -> Result<(), OpaqueRefused> {
        RegistrationUpload::<Suite>::deserialize(record).map(drop).map_err(|_| OpaqueRefused)
    }

    /// Login, step 2: `KE2`.
    ///
    /// Without a record it uses the fake one of RFC 9807, section 10.9. Draws 64, 32, 32, 32 bytes,
    /// with a record or without.
    pub(crate) fn login(
        &self,
        record: Option<&[u8; RECORD]>,
        ke1: &[u8; KE1],
        cid: &[u8],
        context: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<(ServerHandshake, [u8; KE2]), OpaqueRefused> {
        let ke1 = CredentialRequest::deserialize(ke1).map_err(|_| OpaqueRefused)?;
        let decoded = ServerRegistration::deserialize(record.unwrap_or(&self.decoy));
        // A stored record that does not decode counts as none; it must not look different.
        let known = record.and(decoded.ok());
        let parameters =
            ServerLoginParameters { context: Some(context), identifiers: identifiers(cid) };
        let started =
            ServerLogin::start(&mut RngAdapter(entropy), &self.inner, known, ke1, cid, parameters)
                .map_err(|_| OpaqueRefused)?;
        let ke2 = started.message.serialize().as_slice().try_into().map_err(|_| OpaqueRefused)?;
        Ok((ServerHandshake { state: started.state }, ke2))
    }
}

/// Checks that a KE1 decodes; refuses identity elements.
pub(crate) fn check_ke1(ke1: &[u8; KE1]) -> Result<(), OpaqueRefused> {
    CredentialRequest::<Suite>::deserialize(ke1).map(drop).map_err(|_| OpaqueRefused)
}

/// The server between KE2 and KE3.
pub(crate) struct ServerHandshake {
    state: ServerLogin<Suite>,
}

impl ServerHandshake {
    /// Login, step 4: verifies `KE3` and returns the session key.
    pub(crate) fn finish(
        &self,
        ke3: &[u8; KE3],
        cid: &[u8],
        context: &[u8],
    ) -> Result<Zeroizing<[u8; 64]>, OpaqueRefused> {
        let ke3 = CredentialFinalization::deserialize(ke3).map_err(|_| OpaqueRefused)?;
        let parameters =
            ServerLoginParameters { context: Some(context), identifiers: identifiers(cid) };
        let state = self.state.clone();
        let finished = state.finish(ke3, parameters).map_err(|_| OpaqueRefused)?;
        Ok(Zeroizing::new(finished.session_key.into()))
    }
}

/// The client between KE1 and KE2.
pub(crate) struct ClientHandshake {
    state: ClientLogin<Suite>,
}

/// The client's results after KE2.
pub(crate) struct ClientFinish {
    pub(crate) ke3: [u8; KE3],
    pub(crate) session_key: Zeroizing<[u8; 64]>,
    pub(crate) server_key: ServerKey,
}

impl ClientHandshake {
    /// Login, step 1: `KE1`. Draws 64, 32, 32 bytes.
    pub(crate) fn start(
        password: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; KE1]), OpaqueRefused> {
        let started =
            ClientLogin::start(&mut RngAdapter(entropy), password).map_err(|_| OpaqueRefused)?;
        let ke1 = started.message.serialize().as_slice().try_into().map_err(|_| OpaqueRefused)?;
        Ok((Self { state: started.state }, ke1))
    }

    /// Login, step 3: verifies `KE2` and returns `KE3`. Takes about 1 s with
    /// [`Stretching::Password`].
    pub(crate) fn finish(
        self,
        password: &[u8],
        ke2: &[u8; KE2],
        cid: &[u8],
        context: &[u8],
        stretching: Stretching,
        entropy: &mut dyn Entropy,
    ) -> Result<ClientFinish, OpaqueRefused> {
        let ke2 = CredentialResponse::deserialize(ke2).map_err(|_| OpaqueRefused)?;
        let parameters =
            ClientLoginFinishParameters::new(Some(context), identifiers(cid), Some(&stretching));
        let finished = self
            .state
            .finish(&mut RngAdapter(entropy), password, ke2, parameters)
            .map_err(|_| OpaqueRefused)?;
        Ok(ClientFinish {
            ke3: finished.message.serialize().into(),
            session_key: Zeroizing::new(finished.session_key.into()),
            server_key: ServerKey(finished.server_s_pk.serialize().into()),
        })
    }
}

/// The client between request and response of a registration.
pub(crate) struct ClientEnrolment {
    state: ClientRegistration<Suite>,
}

/// The record to upload, and the server key that the response contains.
pub(crate) struct EnrolmentFinish {
    pub(crate) record: [u8; RECORD],
    pub(crate) server_key: ServerKey,
    #[cfg(test)]
    pub(crate) export_key: Vec<u8>,
}

impl ClientEnrolment {
    /// Registration, step 1: the request. Draws 64 bytes.
    pub(crate) fn start(
        password: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; REQUEST]), OpaqueRefused> {
        let started = ClientRegistration::start(&mut RngAdapter(entropy), password)
            .map_err(|_| OpaqueRefused)?;
        let request = started.message.serialize().into();
        Ok((Self { state: started.state }, request))
    }

    /// Registration, step 3: the record. Draws 32 bytes.
    pub(crate) fn finish(
        self,
        password: &[u8],
        response: &[u8; RESPONSE],
        cid: &[u8],
        stretching: Stretching,
        entropy: &mut dyn Entropy,
    ) -> Result<EnrolmentFinish, OpaqueRefused> {
        let response = RegistrationResponse::deserialize(response).map_err(|_| OpaqueRefused)?;
        let parameters =
            ClientRegistrationFinishParameters::new(identifiers(cid), Some(&stretching));
        let finished = self
            .state
            .finish(&mut RngAdapter(entropy), password, response, parameters)
            .map_err(|_| OpaqueRefused)?;
        Ok(EnrolmentFinish {
            record: finished
                .message
                .serialize()
                .as_slice()
                .try_into()
                .map_err(|_| OpaqueRefused)?,
            server_key: ServerKey(finished.server_s_pk.serialize().into()),
            #[cfg(test)]
            export_key: finished.export_key.to_vec(),
        })
    }
}

#[cfg(test)]
pub(crate) mod rfc9807;
