//! Registration (section 8), one object for each session. The registration is fixed when it
//! begins and not read from the client again.
//!
//! Evaluating a request for an id is one guess at that id's password for any holder of a CHALLENGE
//! of it. An id is therefore evaluated only for a session that may register it at this moment. Each
//! evaluation of a name by an invite counts as a guess at that name, and the commit checks
//! everything again. After a proof of the password there is nothing to guess: such a session has a
//! few registrations, and outsiders cannot slow them down.

use std::time::Instant;

use bytes::Bytes;
use twinlock_core::Entropy as _;
use twinlock_core::id::{CredentialId, DeviceId, InviteId, Name};
use twinlock_core::opaque::{RECORD, REQUEST, ServerSetup};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_store::{
    Holder, InviteTerms, NewDevice, Registered, Registration, StoredCredential, StoredPerson,
    UserRole,
};
use twinlock_transport::OsEntropy;

use crate::bus::SessionHandle;
use crate::convert::copy;
use crate::env::Env;
use crate::invites::owner;
use crate::limits::SourcePrefix;
use crate::limits::guess::{CountedLogin, Guess, Wait};
use crate::refusal::{RequestRefusal, bad_name, refuse, storage};
use crate::services::Services;

/// Registrations that may be begun in one session.
const MAX_REGISTRATIONS: u32 = 8;
/// Maximum length of a device's label, bytes; longer labels are cut.
const LABEL: usize = 64;

/// For whom this session may register.
pub(crate) enum Registrar {
    /// A new user, by this invite.
    Invite(InviteId, InviteTerms),
    /// A user whose password was just proven. Password sessions enrol devices and replace the
    /// password; step-ups only replace it.
    User(Name),
}

/// The registrations of a session: one open, a few in all.
pub(crate) struct Registrations {
    registrar: Registrar,
    /// The source from which the invite is used.
    source: Option<SourcePrefix>,
    begun: u32,
    open: Option<OpenRegistration>,
}

struct OpenRegistration {
    user: Name,
    password: bool,
    device: Option<(DeviceId, String)>,
    evaluated: bool,
    /// The evaluation as a guess, given back once the user exists.
    taken: Option<CountedLogin>,
}

impl Registrations {
    pub(crate) fn new(registrar: Registrar, source: Option<SourcePrefix>) -> Self {
        Self { registrar, source, begun: 0, open: None }
    }

    /// Handles one of the three requests of a registration.
    pub(crate) async fn request(
        &mut self,
        services: &Services,
        this: &SessionHandle,
        op: Op,
    ) -> Result<Answered, RequestRefusal> {
        match op {
            Op::RegisterBegin(want) => self.begin(services, want).await,
            Op::RegisterEvaluate(want) => self.evaluate(services, want).await,
            Op::RegisterFinish(want) => self.finish(services, this, want).await,
            _ => refuse(RefusalReason::NotAllowed),
        }
    }

    /// Fixes the registration, and draws the device's id.
    async fn begin(
        &mut self,
        services: &Services,
        wanted: proto::RegisterBegin,
    ) -> Result<Answered, RequestRefusal> {
        self.open = None;
        if self.begun >= MAX_REGISTRATIONS {
            return Err(RequestRefusal::from(RefusalReason::NotAllowed)
                .at(proto::Limit::Registrations, MAX_REGISTRATIONS));
        }
        self.begun += 1;
        if !wanted.password && !wanted.device {
            return refuse(RefusalReason::Malformed);
        }
        let user = match &self.registrar {
            Registrar::User(user) => {
                // Only one of the two, because they are committed separately.
                if wanted.password && wanted.device {
                    return refuse(RefusalReason::Malformed);
                }
                user.clone()
            }
            Registrar::Invite(_, terms) => {
                if !wanted.device {
                    return refuse(RefusalReason::Malformed);
                }
                let user = Name::new(&wanted.user).map_err(bad_name)?;
                if terms.user.as_ref().is_some_and(|only| *only != user) {
                    return refuse(RefusalReason::NotAllowed);
                }
                user
            }
        };
        self.check_may_register(services, &user).await?;
        let device = wanted.device.then(|| {
            let mut id = [0; 16];
            OsEntropy.fill(&mut id);
            (DeviceId(id), label(&wanted.device_label))
        });
        let ids = proto::RegisterIds {
            device: device.as_ref().map(|(id, _)| copy(&id.0)).unwrap_or_default(),
            server_key: copy(&services.admission.setup.server_key().0),
        };
        self.open = Some(OpenRegistration {
            user,
            password: wanted.password,
            device,
            evaluated: false,
            taken: None,
        });
        Ok(Answered::RegisterIds(ids))
    }

    /// Steps 1 and 2 of OPAQUE registration, once for each registration begun.
    async fn evaluate(
        &mut self,
        services: &Services,
        requests: proto::RegisterEvaluate,
    ) -> Result<Answered, RequestRefusal> {
        let Some(mut open) = self.open.take().filter(|open| !open.evaluated) else {
            return refuse(RefusalReason::NotAllowed);
        };
        if requests.password_request.is_empty() == open.password
            || requests.device_request.is_empty() == open.device.is_some()
        {
            return refuse(RefusalReason::Malformed);
        }
        self.check_may_register(services, &open.user).await?;
        let mut response = proto::RegisterResponse::default();
        if open.password {
            if let Registrar::Invite(..) = self.registrar {
                let guess = Guess { user: &open.user, source: self.source, known: false };
                let taken = services.admission.guesses.take(Some(guess), None, Instant::now());
                let busy =
                    |wait: Wait| RequestRefusal::for_now(RefusalReason::Busy, u32::from(wait.0));
                open.taken = Some(taken.map_err(busy)?);
            }
            let id = CredentialId::User(open.user.clone());
            response.password_response =
                evaluate(&services.admission.setup, &id, &requests.password_request)?;
        }
        if let Some((device, _)) = &open.device {
            let id = CredentialId::Device(*device);
            response.device_response =
                evaluate(&services.admission.setup, &id, &requests.device_request)?;
        }
        open.evaluated = true;
        self.open = Some(open);
        Ok(Answered::RegisterResponse(response))
    }

    /// Step 3: checks everything again and commits it in one transaction.
    ///
    /// After a change of the password, `this` session continues; the user's other password sessions
    /// are closed.
    async fn finish(
        &mut self,
        services: &Services,
        this: &SessionHandle,
        records: proto::RegisterFinish,
    ) -> Result<Answered, RequestRefusal> {
        let Some(open) = self.open.take().filter(|open| open.evaluated) else {
            return refuse(RefusalReason::NotAllowed);
        };
        let password = record(&records.password_record, open.password)?;
        let device_record = record(&records.device_record, open.device.is_some())?;
        let device = open.device.zip(device_record).map(|((id, label), record)| NewDevice {
            id,
            label,
            record,
        });
        let now_ms = services.env.now_ms();
        match &self.registrar {
            Registrar::Invite(invite, _) => {
                let registration =
                    Registration { invite: *invite, user: open.user, password, device };
                let done = services.record.store.register(registration, now_ms).await;
                match done.map_err(|e| storage(&e))? {
                    Registered::Done(person) => {
                        registered(&services.env, &person);
                        if let Some(taken) = open.taken {
                            services.admission.guesses.give_back(taken);
                        }
                    }
                    Registered::InviteGone => return refuse(RefusalReason::AlreadyUsed),
                    Registered::NotThisName => return refuse(RefusalReason::NotAllowed),
                    Registered::NameTaken => return refuse(RefusalReason::NameTaken),
                }
            }
            Registrar::User(user) => {
                let done = match (&password, device) {
                    (Some(record), _) => {
                        services.record.store.set_password(user, record, now_ms).await
                    }
                    (None, Some(device)) => {
                        services.record.store.add_device(user, device, now_ms).await
                    }
                    (None, None) => return refuse(RefusalReason::Malformed),
                };
                if !done.map_err(|e| storage(&e))? {
                    return refuse(RefusalReason::NotFound);
                }
                if password.is_some() {
                    tracing::info!(%user, "password changed");
                    services.bus.password_changed(user, this);
                } else {
                    tracing::info!(%user, "device enrolled");
                }
            }
        }
        Ok(Answered::Done(proto::Done {}))
    }

    /// Checks what may have changed since the session began.
    async fn check_may_register(
        &self,
        services: &Services,
        user: &Name,
    ) -> Result<(), RequestRefusal> {
        let Registrar::Invite(id, _) = &self.registrar else { return Ok(()) };
        let id = CredentialId::Invite(*id);
        let invite = services.record.store.credential(&id, services.env.now_ms()).await;
        let invite = invite.map_err(|e| storage(&e))?;
        if !matches!(invite, Some(StoredCredential { holder: Holder::Invite(_), .. })) {
            return refuse(RefusalReason::AlreadyUsed);
        }
        let taken = services.record.store.person(user).await.map_err(|e| storage(&e))?;
        if taken.is_some() { refuse(RefusalReason::NameTaken) } else { Ok(()) }
    }
}

/// Logs a registration, and removes the owner invite once the owner has registered.
fn registered(env: &Env, person: &StoredPerson) {
    tracing::info!(user = %person.user, "registered");
    if person.role == UserRole::Owner {
        owner::forget(&env.config.data);
    }
}

fn evaluate(
    setup: &ServerSetup,
    id: &CredentialId,
    request: &Bytes,
) -> Result<Bytes, RequestRefusal> {
    let malformed = RequestRefusal::from(RefusalReason::Malformed);
    let request: &[u8; REQUEST] = request.as_ref().try_into().map_err(|_| malformed)?;
    let response = setup.evaluate(&id.cid(), request).map_err(|_| malformed)?;
    Ok(copy(&response))
}

/// The OPAQUE record, which must be present if it is wanted, and only then.
fn record(bytes: &Bytes, wanted: bool) -> Result<Option<Vec<u8>>, RequestRefusal> {
    let malformed = RequestRefusal::from(RefusalReason::Malformed);
    if !wanted {
        return if bytes.is_empty() { Ok(None) } else { Err(malformed) };
    }
    let record: &[u8; RECORD] = bytes.as_ref().try_into().map_err(|_| malformed)?;
    ServerSetup::check_record(record).map_err(|_| malformed)?;
    Ok(Some(record.to_vec()))
}

fn label(wanted: &str) -> String {
    let mut label = wanted.trim();
    while label.len() > LABEL {
        let mut chars = label.chars();
        chars.next_back();
        label = chars.as_str();
    }
    label.to_owned()
}
