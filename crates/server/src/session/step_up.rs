//! Step-up of a device session (section 8): a proof of the password inside the session, which may
//! then change the password and revoke other devices for a few minutes.
//!
//! A second login would be subject to the limits by name and address, which outsiders can exhaust.
//! Here guesses count by device, and only a holder of its secret can make them.

use tokio::time::Instant;
use twinlock_core::frame::{KE1, KE3};
use twinlock_core::id::{CredentialId, DeviceId, Name, SessionId};
use twinlock_core::opaque::RECORD;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_core::step_up::AwaitStepUp;
use twinlock_transport::OsEntropy;
use twinlock_transport::login::PROOF_DEADLINE;

use super::register::{Registrar, Registrations};
use super::requests::people;
use super::requests::{RequestResult, done};
use crate::admission::Admission;
use crate::bus::SessionHandle;
use crate::convert::copy;
use crate::limits::guess::CountedStepUp;
use crate::refusal::{RequestRefusal, refuse, storage};
use crate::services::Services;

/// Step-ups per session. They take no login permit, since outsiders can exhaust those.
const MAX_STEP_UPS: u32 = 8;

/// The step-up state of one device session.
pub(crate) struct SessionStepUp {
    user: Name,
    device: DeviceId,
    /// Number of step-ups begun.
    count: u32,
    begun: Option<BegunStepUp>,
    proven: Option<ProvenPassword>,
}

/// State between KE2 and KE3.
struct BegunStepUp {
    state: AwaitStepUp,
    /// The OPAQUE record that the proof is checked against.
    record: Option<[u8; RECORD]>,
    taken: CountedStepUp,
    at: Instant,
}

struct ProvenPassword {
    /// The OPAQUE record that was proven. A change of the password ends step-ups of the old one.
    record: [u8; RECORD],
    at: Instant,
    registrations: Registrations,
}

impl SessionStepUp {
    pub(crate) fn new(user: Name, device: DeviceId) -> Self {
        Self { user, device, count: 0, begun: None, proven: None }
    }

    /// Handles KE1 and answers KE2. The client learns from KE2 whether its guess was right, so the
    /// guess is counted now.
    pub(crate) async fn begin(
        &mut self,
        services: &Services,
        sid: SessionId,
        want: proto::StepUpBegin,
    ) -> RequestResult {
        self.begun = None;
        if self.count >= MAX_STEP_UPS {
            return refuse(RefusalReason::NotAllowed);
        }
        self.count += 1;
        let malformed = RequestRefusal::from(RefusalReason::Malformed);
        let ke1: &[u8; KE1] = want.ke1.as_ref().try_into().map_err(|_| malformed)?;
        let taken =
            services.admission.guesses.take_by_device(&self.device, std::time::Instant::now());
        let taken = taken.map_err(|wait| {
            tracing::info!(user = %self.user, device = %self.device, "too many wrong passwords");
            RequestRefusal::for_now(RefusalReason::Busy, u32::from(wait.0))
        })?;
        let id = CredentialId::User(self.user.clone());
        let looked_up = services.record.store.look_up(&id, services.env.now_ms()).await;
        let record = looked_up.map_err(|e| storage(&e))?.record::<RECORD>();
        let started = AwaitStepUp::start(
            &services.admission.setup,
            record.as_ref(),
            ke1,
            &id,
            &sid,
            &mut OsEntropy,
        );
        let (state, ke2) = started.map_err(|_| malformed)?;
        self.begun = Some(BegunStepUp { state, record, taken, at: Instant::now() });
        Ok(Answered::StepUpChallenge(proto::StepUpChallenge { ke2: copy(&ke2) }))
    }

    /// Handles KE3.
    pub(crate) fn finish(
        &mut self,
        admission: &Admission,
        want: &proto::StepUpFinish,
    ) -> RequestResult {
        let Some(BegunStepUp { state, record, taken, at }) = self.begun.take() else {
            return refuse(RefusalReason::NotAllowed);
        };
        if at.elapsed() > PROOF_DEADLINE {
            return refuse(RefusalReason::LogInAgain);
        }
        let malformed = RequestRefusal::from(RefusalReason::Malformed);
        let ke3: &[u8; KE3] = want.ke3.as_ref().try_into().map_err(|_| malformed)?;
        let (Ok(()), Some(record)) = (state.finish(ke3), record) else {
            tracing::info!(user = %self.user, device = %self.device, "wrong password");
            return refuse(RefusalReason::WrongPassword);
        };
        admission.guesses.give_back_to_device(taken);
        tracing::info!(user = %self.user, device = %self.device, "password proven");
        let registrations = Registrations::new(Registrar::User(self.user.clone()), None);
        self.proven = Some(ProvenPassword { record, at: Instant::now(), registrations });
        done()
    }

    /// Whether the password was proven, and the proof holds.
    pub(crate) async fn is_proven(&mut self, services: &Services) -> bool {
        self.fresh_proof(services).await.is_ok()
    }

    /// The proof, unless it has expired or the password has changed.
    async fn fresh_proof(
        &mut self,
        services: &Services,
    ) -> Result<&mut ProvenPassword, RequestRefusal> {
        let Some(proven) = &mut self.proven else { return refuse(RefusalReason::NotAllowed) };
        if proven.at.elapsed() > services.env.config.limits.fresh_password {
            return refuse(RefusalReason::LogInAgain);
        }
        let id = CredentialId::User(self.user.clone());
        let now = services
            .record
            .store
            .credential(&id, services.env.now_ms())
            .await
            .map_err(|e| storage(&e))?;
        if now.is_none_or(|now| now.record != proven.record) {
            return refuse(RefusalReason::LogInAgain);
        }
        Ok(proven)
    }

    /// Revokes any device of the user.
    pub(crate) async fn revoke_device(
        &mut self,
        services: &Services,
        want: &proto::RevokeDevice,
    ) -> RequestResult {
        self.fresh_proof(services).await?;
        match DeviceId::from_slice(&want.device) {
            Some(id) => people::revoke_device(services, &self.user, &id).await,
            None => refuse(RefusalReason::Malformed),
        }
    }

    /// Replaces the password. Only password sessions enrol devices.
    pub(crate) async fn register(
        &mut self,
        services: &Services,
        this: &SessionHandle,
        op: Op,
    ) -> RequestResult {
        let proven = self.fresh_proof(services).await?;
        match op {
            Op::RegisterBegin(want) if want.device => refuse(RefusalReason::NotAllowed),
            op => proven.registrations.request(services, this, op).await,
        }
    }
}
