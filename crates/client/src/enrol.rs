//! Becoming somebody on a server: by an invite, or by the password on a new device.
//!
//! The profile is on disk before the server is asked to make the credential in it: whatever is cut
//! in between, no device exists whose secret nobody has.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message as _;
use tokio::time::timeout;
use twinlock_core::credential::{Credential, Password};
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{DeviceId, Name, TlsPin};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::keys::{DeviceSecret, InviteSecret};
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::proto::{self, Why, answer::Result as Answered, item::What, request::Op};
use twinlock_core::session::{Binding, BindingPolicy, Event};
use twinlock_link::line::Line;
use twinlock_link::tls::Trust;

use crate::dial::{Dial, Opened, PATIENCE, Stream};
use crate::error::{ClientError, closed};
use crate::home::Home;
use crate::profile::{NewProfile, Profile, ProfileError, TlsTrust};
use crate::register::{self, Ask};

/// How long the server may take for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// What an invite allows, as the server tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The only name it is for; `None`: choose one.
    pub user: Option<Name>,
    /// What whoever uses it may do.
    pub role: proto::Role,
    /// When it ends, ms since 1970 UTC.
    pub expires_ms: u64,
    /// What is known about TLS, whose end nobody may have to tell yet.
    pub binding: Binding,
}

/// Who wants to join.
#[derive(Debug)]
pub struct NewUser {
    /// The name wanted.
    pub user: Name,
    /// What this device is called.
    pub label: String,
    /// With one, all devices may be lost; without one, the last device must not be.
    pub password: Option<Password>,
    /// Stop before anything is registered if TLS does not reach the server, and have the profile
    /// require it from then on.
    pub require_binding: bool,
}

/// A user who logs in with the password.
#[derive(Debug)]
pub struct Returning {
    /// Where the server is.
    pub address: Address,
    /// Who.
    pub user: Name,
    /// The password.
    pub password: Password,
    /// What this device is called.
    pub label: String,
    /// PEM file of an authority to trust; without one the TLS key is learned over lock 2.
    pub ca_file: Option<PathBuf>,
    /// A proxy ends TLS before the server, and that is intended.
    pub behind_proxy: bool,
    /// Stop before anything is registered if TLS does not reach the server, and have the profile
    /// require it from then on.
    pub require_binding: bool,
}

/// Asks what an invite allows. It stays unused.
///
/// # Errors
/// [`ClientError`]; [`ClientError::LoginRefused`] for an invite that is used, expired or unknown.
pub async fn look(link: &InviteLink) -> Result<Terms, ClientError> {
    let opened = open_invite(link, binding_of(link)).await?;
    let invite = opened.info.invite.unwrap_or_default();
    opened.line.close(CloseCode::Bye).await;
    let user = match invite.user.as_str() {
        "" => None,
        user => Some(Name::new(user).map_err(|_| ClientError::Protocol("the invite's name"))?),
    };
    Ok(Terms { user, role: invite.role(), expires_ms: invite.expires_ms, binding: opened.binding })
}

/// Uses an invite: registers the user with this device, and makes the profile.
///
/// # Errors
/// [`ClientError`]. After [`ClientError::Lost`] the profile may exist: if the server made the user
/// before the line was lost, it works.
pub async fn join(
    home: &Home,
    profile: &Name,
    link: &InviteLink,
    new: NewUser,
) -> Result<Profile, ClientError> {
    refuse_existing(home, profile)?;
    let NewUser { user, label, password, require_binding } = new;
    let binding = if require_binding { BindingPolicy::Require } else { binding_of(link) };
    let Opened { line, info, .. } = open_invite(link, binding).await?;
    let mut desk = Desk { by_invite: true, ..Desk::new(line) };
    let begin = proto::RegisterBegin {
        user: user.to_string(),
        password: password.is_some(),
        device: true,
        device_label: label.clone(),
    };
    let (device, secret) = register::begin(&mut desk, begin, &link.server_key).await?;
    let device = device.ok_or(ClientError::Protocol("no device id"))?;
    let password = password.map(|password| Credential::User(user.clone(), password));
    let copy = DeviceSecret::new(secret.expose_secret());
    let records =
        register::evaluate(&mut desk, password, Some((device, copy)), &link.server_key).await?;
    let tls = match link.tls_pin {
        Some(pin) => pins(&info, pin),
        None => TlsTrust::Ca { file: None },
    };
    let new = NewProfile {
        host: link.address.bare_host().to_owned(),
        port: link.address.port(),
        server_key: link.server_key,
        tls,
        binding,
        user,
        device,
        secret,
        label,
        min_version: VERSION,
        created_ms: now_ms(),
    };
    let made = Profile::create(home, profile, new)?;
    finish(home, desk, records, made).await
}

/// Enrols this device with the user's password, and makes the profile; an existing profile of the
/// same server and user is replaced, and its server key stays pinned. Also says what is known about
/// TLS.
///
/// # Errors
/// [`ClientError`], [`ProfileError::Exists`] if the profile is another's.
pub async fn log_in(
    home: &Home,
    profile: &Name,
    returning: Returning,
) -> Result<(Profile, Binding), ClientError> {
    let Returning { address, user, password, label, ca_file, behind_proxy, require_binding } =
        returning;
    let known = match Profile::load(home, profile) {
        Ok(known) if *known.user() == user && known.host() == address.bare_host() => Some(known),
        Ok(_) => return Err(ProfileError::Exists { name: profile.clone() }.into()),
        Err(ProfileError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let pin = known.as_ref().map(|known| *known.server_key());
    // What the person has set stays, whatever else is told anew.
    let binding = match &known {
        _ if behind_proxy => BindingPolicy::Off,
        _ if require_binding => BindingPolicy::Require,
        Some(known) => known.binding(),
        None => BindingPolicy::Warn,
    };
    let trust = match (&known, &ca_file) {
        (Some(known), None) => known.tls(),
        (_, file) => TlsTrust::Ca { file: file.clone() },
    };
    let dial = match (&known, &ca_file) {
        (Some(known), None) => Dial::of(known, Some(address.clone()), Timing::default())?,
        (_, None) => Dial::new(address.clone(), Trust::Learn, pin, binding, Timing::default())?,
        (_, Some(file)) => {
            let roots = crate::dial::roots(Some(file))?;
            let trust = Trust::Ca { extra_roots: roots };
            Dial::new(address.clone(), trust, pin, binding, Timing::default())?
        }
    };
    let credential = Credential::User(user.clone(), password);
    let opened = dial.open_when_free(credential, &client_info(&label), PATIENCE).await;
    let Opened { line, info, binding: seen, tls: facts } = opened.map_err(by_password)?;
    let server_key = line.session().server_key();
    let mut desk = Desk::new(line);
    let begin = proto::RegisterBegin {
        device: true,
        device_label: label.clone(),
        ..proto::RegisterBegin::default()
    };
    let (device, secret) = register::begin(&mut desk, begin, &server_key).await?;
    let device = device.ok_or(ClientError::Protocol("no device id"))?;
    let copy = DeviceSecret::new(secret.expose_secret());
    let records = register::evaluate(&mut desk, None, Some((device, copy)), &server_key).await?;
    // Whom TLS shows counts only if TLS reaches the server; else only what the server says.
    let tls = match (&known, ca_file, facts.peer_pin) {
        (Some(_), None, _) | (_, Some(_), _) => trust,
        (None, None, shown) => {
            let shown = shown.filter(|_| seen == Binding::Bound);
            learned(&address, &info, shown).await
        }
    };
    let new = NewProfile {
        host: address.bare_host().to_owned(),
        port: address.port(),
        server_key,
        tls,
        binding,
        user,
        device,
        secret,
        label,
        min_version: VERSION,
        created_ms: now_ms(),
    };
    match known {
        // The old secret may still work: it goes only once the new one does.
        Some(_) => {
            register::finish(&mut desk, records).await?;
            Ok((Profile::replace(home, profile, new)?, seen))
        }
        None => {
            let made = Profile::create(home, profile, new)?;
            Ok((finish(home, desk, records, made).await?, seen))
        }
    }
}

/// A session by the password of a profile's user, for when its device cannot log in: see
/// [`crate::Client::prove_password`] for when it can.
pub struct ByPassword(Desk);

impl ByPassword {
    /// Logs in.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn open(
        profile: &Profile,
        address: Option<Address>,
        password: Password,
    ) -> Result<Self, ClientError> {
        let dial = Dial::of(profile, address, Timing::default())?;
        let credential = Credential::User(profile.user().clone(), password);
        let info = client_info(profile.label());
        let opened = dial.open_when_free(credential, &info, PATIENCE).await;
        Ok(Self(Desk::new(opened.map_err(by_password)?.line)))
    }

    /// The user's devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn devices(&mut self) -> Result<Vec<proto::Device>, ClientError> {
        match self.0.ask(Op::ListDevices(proto::ListDevices {})).await? {
            Answered::Devices(devices) => Ok(devices.devices),
            _ => Err(ClientError::Protocol("another answer than devices")),
        }
    }

    /// Revokes a device of the user, and ends the session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_device(mut self, device: &DeviceId) -> Result<(), ClientError> {
        let revoke = proto::RevokeDevice { device: Bytes::copy_from_slice(&device.0) };
        self.0.ask(Op::RevokeDevice(revoke)).await?;
        self.0.line.close(CloseCode::Bye).await;
        Ok(())
    }

    /// Replaces the password, and ends the session.
    ///
    /// # Errors
    /// [`ClientError`]; the old one stays then.
    pub async fn set_password(
        mut self,
        profile: &Profile,
        new: Password,
    ) -> Result<(), ClientError> {
        let begin = proto::RegisterBegin { password: true, ..proto::RegisterBegin::default() };
        register::begin(&mut self.0, begin, profile.server_key()).await?;
        let new = Some(Credential::User(profile.user().clone(), new));
        let records = register::evaluate(&mut self.0, new, None, profile.server_key()).await?;
        register::finish(&mut self.0, records).await?;
        self.0.line.close(CloseCode::Bye).await;
        Ok(())
    }
}

/// A login by password that was refused, in its own words.
fn by_password(error: ClientError) -> ClientError {
    match error {
        ClientError::LoginRefused => ClientError::PasswordRefused,
        error => error,
    }
}

/// How to know the server's TLS again after a login that took any: by the pins it names; where it
/// names none, by the authorities of this system, if they vouch for it; else by the key it showed.
async fn learned(address: &Address, info: &proto::ServerInfo, shown: Option<TlsPin>) -> TlsTrust {
    if let Some(pins) = pins_of(info) {
        return TlsTrust::Pins(pins);
    }
    let by_authority = TlsTrust::Ca { file: None };
    let Some(shown) = shown else { return by_authority };
    let roots = Trust::Ca { extra_roots: Vec::new() };
    let dial = Dial::new(address.clone(), roots, None, BindingPolicy::Warn, Timing::default());
    let vouched = match dial {
        Ok(dial) => dial.connect().await.is_ok(),
        Err(_) => false,
    };
    if vouched { by_authority } else { TlsTrust::Pins(vec![shown]) }
}

/// This program, as the operator sees it.
pub(crate) fn client_info(label: &str) -> proto::ClientInfo {
    proto::ClientInfo {
        software: concat!("twinlock ", env!("CARGO_PKG_VERSION")).to_owned(),
        device_label: label.to_owned(),
        instance: Bytes::new(),
    }
}

/// Milliseconds since 1970 UTC.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn refuse_existing(home: &Home, name: &Name) -> Result<(), ClientError> {
    match Profile::load(home, name) {
        Err(ProfileError::Missing { .. }) => Ok(()),
        Ok(_) | Err(ProfileError::Malformed { .. }) => {
            Err(ProfileError::Exists { name: name.clone() }.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn binding_of(link: &InviteLink) -> BindingPolicy {
    if link.proxy { BindingPolicy::Off } else { BindingPolicy::Warn }
}

fn invite_used() -> ClientError {
    ClientError::Refused(Why::AlreadyUsed.into())
}

async fn open_invite(link: &InviteLink, binding: BindingPolicy) -> Result<Opened, ClientError> {
    let trust = match link.tls_pin {
        Some(pin) => Trust::Pins(vec![pin]),
        None => Trust::Ca { extra_roots: Vec::new() },
    };
    let pin = Some(link.server_key);
    let dial = Dial::new(link.address.clone(), trust, pin, binding, Timing::default())?;
    let secret = InviteSecret::new(link.secret.expose_secret());
    let credential = Credential::Invite(link.id, secret);
    let opened = dial.open_when_free(credential, &client_info(""), PATIENCE).await;
    opened.map_err(|error| if error == closed(CloseCode::Revoked) { invite_used() } else { error })
}

/// The pins that the server names, or the one that let us in.
fn pins(info: &proto::ServerInfo, used: TlsPin) -> TlsTrust {
    TlsTrust::Pins(pins_of(info).unwrap_or_else(|| vec![used]))
}

/// The pins that the server names, if it names any.
pub(crate) fn pins_of(info: &proto::ServerInfo) -> Option<Vec<TlsPin>> {
    let pins: Vec<_> = info
        .tls_pins
        .iter()
        .filter_map(|pin| TlsPin::from_slice(pin))
        .take(crate::profile::MAX_PINS)
        .collect();
    (!pins.is_empty()).then_some(pins)
}

/// What keeps what READY says about the next connection, to be done where it may block. Not if
/// another program has put another server or user into the profile meanwhile.
pub(crate) fn learning(
    home: &Home,
    profile: &Profile,
    info: &proto::ServerInfo,
) -> impl FnOnce() -> Result<Profile, ClientError> + Send + use<> {
    let (home, name, pins) = (home.clone(), profile.name().clone(), pins_of(info));
    let (key, user) = (*profile.server_key(), profile.user().clone());
    move || {
        let mut profile = Profile::load(&home, &name)?;
        if *profile.server_key() != key || *profile.user() != user {
            return Err(ProfileError::Replaced { name }.into());
        }
        if let Some(pins) = pins {
            profile.learn_pins(&home, &pins)?;
        }
        profile.raise_min_version(&home, VERSION)?;
        Ok(profile)
    }
}

/// The last step: the server makes the credentials of a profile that is on disk already.
async fn finish(
    home: &Home,
    mut desk: Desk,
    records: proto::RegisterFinish,
    made: Profile,
) -> Result<Profile, ClientError> {
    match register::finish(&mut desk, records).await {
        Ok(()) => {
            desk.line.close(CloseCode::Bye).await;
            Ok(made)
        }
        Err(error @ ClientError::Refused(_)) => {
            made.remove(home)?;
            Err(error)
        }
        Err(error) => Err(ClientError::Lost(format!(
            "the server did not confirm the registration ({error}). It may have been made: \
             `twinlock status` tells. If that says \"login refused\", remove the profile and use \
             the invite or the password again"
        ))),
    }
}

/// One question after the other over a line that does nothing else.
struct Desk {
    line: Line<Stream>,
    asked: u64,
    /// Whoever was let in by an invite is shown out when somebody else has used it.
    by_invite: bool,
}

impl Desk {
    fn new(line: Line<Stream>) -> Self {
        Self { line, asked: 0, by_invite: false }
    }

    async fn answer(&mut self) -> Result<Answered, ClientError> {
        loop {
            self.line.wait(None).await?;
            let items = match self.line.open_frame()? {
                Event::App(body) => {
                    proto::ToClient::decode(body)
                        .map_err(|_| ClientError::Protocol("a frame that cannot be read"))?
                        .items
                }
                Event::Closed(CloseCode::Revoked) if self.by_invite => return Err(invite_used()),
                Event::Closed(code) => return Err(closed(code)),
                _ => continue,
            };
            for item in items {
                if let Some(What::Answer(proto::Answer { id, result })) = item.what
                    && id == self.asked
                {
                    return match result {
                        Some(Answered::Refusal(no)) => Err(ClientError::Refused(no.into())),
                        Some(answered) => Ok(answered),
                        None => Err(ClientError::Protocol("an empty answer")),
                    };
                }
            }
        }
    }
}

impl Ask for Desk {
    async fn ask(&mut self, op: Op) -> Result<Answered, ClientError> {
        self.asked += 1;
        let request = proto::Request { id: self.asked, op: Some(op) };
        let body =
            proto::ToServer { requests: vec![request], ..Default::default() }.encode_to_vec();
        self.line.send_app(&body).map_err(|e| ClientError::Lost(e.to_string()))?;
        let late = || ClientError::Lost("the server did not answer in time".to_owned());
        timeout(ANSWER, self.answer()).await.unwrap_or_else(|_| Err(late()))
    }
}
