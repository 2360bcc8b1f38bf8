//! The handshake of section 4, with the limits of section 9 between its steps.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use twinlock_core::frame::ErrorCode;
use twinlock_core::handshake::{AwaitProof, Established, HelloFault};
use twinlock_core::id::{CredentialId, DeviceId, Name};
use twinlock_core::opaque::RECORD;
use twinlock_store::{LoginMethod, LookedUp, StoreError, StoredCredential};
use twinlock_transport::OsEntropy;
use twinlock_transport::login::{Acceptor, LoginError, parse_hello};

use super::Admission;
use super::transport::SessionIo;
use crate::limits::SourcePrefix;
use crate::limits::connection_limiter::{LimitName, Permit, Rank};
use crate::limits::guess::{CountedLogin, Guess, Wait};
use crate::limits::throttle::log_fault;
use crate::record::Record;

/// Seconds after which a client retries when no handshake permit is free.
const BUSY_SECONDS: u16 = 2;
/// How long a login waits for a permit before it is refused.
const QUEUE: Duration = Duration::from_secs(2);

/// A successful login, with the credential that it was checked against.
pub(crate) struct CheckedLogin {
    pub(crate) established: Established,
    pub(crate) credential: StoredCredential,
}

/// Why a login was refused.
pub(crate) enum LoginRefusal {
    Answer(ErrorCode),
    /// The same, because of a limit.
    Limit(LimitName, ErrorCode),
    Drop(LoginError),
}

impl From<LoginError> for LoginRefusal {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Hello(HelloFault::Answer(code)) => Self::Answer(code),
            error => Self::Drop(error),
        }
    }
}

impl LoginRefusal {
    fn wait(limit: LimitName, Wait(seconds): Wait) -> Self {
        Self::Limit(limit, ErrorCode::Busy(seconds))
    }
}

/// The record cannot be read; the answer is the same for every credential.
impl From<StoreError> for LoginRefusal {
    fn from(error: StoreError) -> Self {
        log_fault("credentials cannot be read", error);
        Self::Answer(ErrorCode::Busy(BUSY_SECONDS))
    }
}

/// The handshake of section 4, with the limits of section 9 between its steps. Each step is the
/// same whether the credential exists or not.
pub(crate) async fn log_in(
    admission: &Admission,
    record: &Record,
    acceptor: &mut Acceptor<SessionIo>,
    source: Option<SourcePrefix>,
    permit: &Permit,
) -> Result<CheckedLogin, LoginRefusal> {
    let payload = acceptor.read_hello().await?;
    permit.rise(Rank::Login);
    let AnsweredHello { state, challenge, looked_up, taken, device } =
        answer_with_challenge(admission, record, &payload, source).await?;
    if device.is_some() {
        permit.rise(Rank::Device);
    }
    let proof = acceptor.exchange(&challenge).await?;
    let refused = LoginRefusal::Answer(ErrorCode::Refused);
    let Ok(established) = state.handle_proof(&proof) else { return Err(refused) };
    // No proof succeeds against the fake record.
    let Some(credential) = looked_up.into_credential() else { return Err(refused) };
    admission.give_back(taken, device.as_ref());
    Ok(CheckedLogin { established, credential })
}

/// A HELLO that the server answers with a CHALLENGE.
pub(crate) struct AnsweredHello {
    pub(crate) state: AwaitProof,
    pub(crate) challenge: Vec<u8>,
    looked_up: LookedUp,
    pub(crate) taken: CountedLogin,
    /// The login counts for this existing device and not for its address.
    pub(crate) device: Option<DeviceId>,
}

/// Does the work from HELLO to CHALLENGE.
pub(crate) async fn answer_with_challenge(
    admission: &Admission,
    record: &Record,
    payload: &[u8],
    source: Option<SourcePrefix>,
) -> Result<AnsweredHello, LoginRefusal> {
    let permit = timeout(QUEUE, admission.handshakes.acquire()).await;
    let Ok(Ok(_permit)) = permit else {
        return Err(LoginRefusal::wait("handshakes", Wait(BUSY_SECONDS)));
    };
    let hello = parse_hello(payload)?;
    let id = hello.credential().clone();
    let now = Instant::now();
    let now_ms = admission.env.now_ms();
    let (looked_up, taken, device) = match &id {
        // Looked up first: the login of an existing device does not count for its address.
        CredentialId::Device(device) => {
            let looked_up = record.look_up(&id, now_ms).await?;
            let exists = looked_up.record::<RECORD>().is_some();
            let free = admission.devices.take(device, exists, now);
            let taken = admission.guesses.take(None, source.filter(|_| !free), now);
            let taken = taken.map_err(|wait| LoginRefusal::wait("logins-per-minute", wait))?;
            (looked_up, taken, free.then_some(*device))
        }
        CredentialId::User(user) => {
            let known = is_known(admission, record, user, source).await?;
            let guess = Guess { user, source, known };
            let taken = admission.guesses.take(Some(guess), source, now);
            let taken = taken.map_err(|wait| LoginRefusal::wait("guesses", wait))?;
            (record.look_up(&id, now_ms).await?, taken, None)
        }
        CredentialId::Invite(_) => {
            let taken = admission.guesses.take(None, source, now);
            let taken = taken.map_err(|wait| LoginRefusal::wait("logins-per-minute", wait))?;
            (record.look_up(&id, now_ms).await?, taken, None)
        }
    };
    let opaque_record = looked_up.record::<RECORD>();
    let challenge = hello.challenge(&admission.setup, opaque_record.as_ref(), &mut OsEntropy);
    let (state, challenge) = challenge.map_err(LoginError::Hello)?;
    Ok(AnsweredHello { state, challenge, looked_up, taken, device })
}

/// Whether the user has logged in from this address recently. A shared address is never known,
/// because attackers may share it too.
///
/// The cost is the same for every name. Reads on the main runtime, like [`Record::look_up`].
async fn is_known(
    admission: &Admission,
    record: &Record,
    user: &Name,
    source: Option<SourcePrefix>,
) -> Result<bool, StoreError> {
    let Some(source) = source else { return Ok(false) };
    let known = record.is_known_source(user, source.bytes(), admission.env.now_ms()).await?;
    Ok(!hides_many(admission, source) & known)
}

/// Whether many users share this address. With PROXY headers configured, addresses are the clients'
/// own.
fn hides_many(admission: &Admission, source: SourcePrefix) -> bool {
    !admission.env.config.knows_clients() && admission.guesses.crowd.hides_many(source)
}

/// Records the source of a successful login.
pub(crate) async fn note_source(
    admission: &Admission,
    record: &Record,
    user: &Name,
    source: Option<SourcePrefix>,
    method: LoginMethod,
) {
    let Some(source) = source else { return };
    admission.guesses.crowd.note(source, user);
    if hides_many(admission, source) || record.may_write().is_err() {
        return;
    }
    let noted =
        record.store.note_source(user, &source.bytes(), method, admission.env.now_ms()).await;
    if let Err(error) = noted {
        log_fault("the source of a login was not noted", error);
    }
}

impl Admission {
    /// Undoes the counts of a login that succeeded.
    pub(crate) fn give_back(&self, taken: CountedLogin, device: Option<&DeviceId>) {
        self.guesses.give_back(taken);
        if let Some(device) = device {
            self.devices.give_back(device);
        }
    }
}
