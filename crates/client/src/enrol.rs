//! Enrolment: by an invite, or by the password on a new device.
//!
//! A new profile is written to disk before the server creates the credential. So no interruption
//! leaves a device whose secret is lost.

use std::path::PathBuf;

use bytes::Bytes;
use twinlock_core::credential::{Credential, Password};
use twinlock_core::frame::CloseCode;
use twinlock_core::id::{DeviceId, Name, TlsPin};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::keys::{DeviceSecret, InviteSecret};
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_core::session::{Binding, BindingPolicy};
use twinlock_transport::tls::ServerTrust;

use crate::clock::now_ms;
use crate::connector::{Connector, ReadySession, trust_of_link};
use crate::directory::DeviceInfo;
use crate::error::ClientError;
use crate::home::Home;
use crate::model::PATIENCE;
use crate::profile::{NewProfile, Profile, ProfileError, TlsTrust};
use crate::ready::{client_info, pins_of};
use crate::register::{self, Ask as _};
use crate::registration_client::{RegistrationClient, invite_used};
use crate::route::Route;

/// The terms of an invite, as the server reports them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The only user name that it allows; `None`: any.
    pub user: Option<Name>,
    /// The role that it grants.
    pub role: proto::Role,
    /// Time of expiry, in ms since 1970 UTC.
    pub expires_ms: u64,
    /// The result of the channel binding.
    pub binding: Binding,
    /// Who issued the TLS certificate, as it says.
    pub issuer: Option<String>,
}

/// A user who joins.
#[derive(Debug)]
pub struct NewUser {
    /// The requested user name.
    pub user: Name,
    /// The label of this device.
    pub label: String,
    /// With a password the user can lose all devices; without one, not the last.
    pub password: Option<Password>,
    /// Stop before registration if TLS does not reach the server; the profile then requires the
    /// same.
    pub require_binding: bool,
    /// How the connection reaches the server.
    pub route: Route,
}

/// A user who logs in with the password.
#[derive(Debug)]
pub struct Returning {
    /// The server's address.
    pub address: Address,
    /// The user.
    pub user: Name,
    /// The password.
    pub password: Password,
    /// The label of this device.
    pub label: String,
    /// PEM file of a CA to trust; without one the TLS key is learned inside the session.
    pub ca_file: Option<PathBuf>,
    /// A proxy terminates TLS before the server, intentionally.
    pub behind_proxy: bool,
    /// Stop before registration if TLS does not reach the server; the profile then requires the
    /// same.
    pub require_binding: bool,
    /// How the connection reaches the server.
    pub route: Route,
}

/// Asks the server for the terms of an invite, which stays unused. With `require_binding` it sends
/// nothing if TLS does not reach the server.
///
/// # Errors
/// [`ClientError`]; [`ClientError::LoginRefused`] for an invite that is used, expired or unknown.
pub async fn look(
    link: &InviteLink,
    require_binding: bool,
    route: &Route,
) -> Result<Terms, ClientError> {
    let opened = open_invite(link, policy(require_binding), route).await?;
    let invite = opened.info.invite.unwrap_or_default();
    opened.connection.close(CloseCode::Bye).await;
    let user = match invite.user.as_str() {
        "" => None,
        user => Some(Name::new(user).map_err(|_| ClientError::Protocol("the invite's name"))?),
    };
    let (binding, issuer) = (opened.binding, opened.tls.issuer);
    Ok(Terms { user, role: invite.role(), expires_ms: invite.expires_ms, binding, issuer })
}

/// Uses an invite: registers the user with this device, and creates the profile.
///
/// # Errors
/// [`ClientError`]. After [`ClientError::Lost`] the profile may exist. It works if the server
/// created the user before the connection was lost.
pub async fn join(
    home: &Home,
    profile: &Name,
    link: &InviteLink,
    new: NewUser,
) -> Result<LoggedIn, ClientError> {
    refuse_existing(home, profile)?;
    let NewUser { user, label, password, require_binding, route } = new;
    let binding = policy(require_binding);
    let ReadySession { connection, info, binding: seen, tls: facts, .. } =
        open_invite(link, binding, &route).await?;
    let mut session = RegistrationClient::by_invite(connection);
    let begin = proto::RegisterBegin {
        user: user.to_string(),
        password: password.is_some(),
        device: true,
        device_label: label.clone(),
    };
    let (device, secret) = register::begin(&mut session, begin, &link.server_key).await?;
    let device = device.ok_or(ClientError::Protocol("no device id"))?;
    let password = password.map(|password| Credential::User(user.clone(), password));
    let copy = DeviceSecret::new(secret.expose_secret());
    let records =
        register::evaluate(&mut session, password, Some((device, copy)), &link.server_key).await?;
    let tls = match link.tls_pin {
        Some(pin) => pins(&info, pin),
        None => TlsTrust::Ca { file: None },
    };
    let new = NewProfile {
        host: link.address.bare_host().to_owned(),
        port: link.address.port(),
        path: link.address.path().to_owned(),
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
    let profile = finish(home, session, records, made).await?;
    Ok(LoggedIn { profile, binding: seen, issuer: facts.issuer })
}

/// The result of [`join`] and [`log_in`].
#[derive(Debug)]
pub struct LoggedIn {
    /// The profile.
    pub profile: Profile,
    /// The result of the channel binding.
    pub binding: Binding,
    /// Who issued the TLS certificate, as it says.
    pub issuer: Option<String>,
}

/// Enrols this device with the user's password, and creates the profile.
///
/// Replaces an existing profile of the same server and user; its server key stays pinned.
///
/// # Errors
/// [`ClientError`], [`ProfileError::Exists`] if the profile is of another server or user.
pub async fn log_in(
    home: &Home,
    profile: &Name,
    returning: Returning,
) -> Result<LoggedIn, ClientError> {
    let Returning { address, user, password, label, ca_file, behind_proxy, require_binding, route } =
        returning;
    let known = match Profile::load(home, profile) {
        Ok(known) if *known.user() == user && known.host() == address.bare_host() => Some(known),
        Ok(_) => return Err(ProfileError::Exists { name: profile.clone() }.into()),
        Err(ProfileError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let pin = known.as_ref().map(|known| *known.server_key());
    // The user's setting in an existing profile stays, unless an option overrides it.
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
    let connector = match (&known, &ca_file) {
        (Some(known), None) => {
            Connector::of(known, Some(address.clone()), Timing::default())?.requiring(binding)
        }
        (_, None) => {
            Connector::new(address.clone(), ServerTrust::Learn, pin, binding, Timing::default())?
        }
        (_, Some(file)) => {
            let roots = crate::connector::roots(Some(file))?;
            let trust = ServerTrust::Ca { extra_roots: roots };
            Connector::new(address.clone(), trust, pin, binding, Timing::default())?
        }
    };
    let connector = connector.over(route.clone());
    let credential = Credential::User(user.clone(), password);
    let opened = connector.open_when_free(credential, &client_info(&label), PATIENCE).await;
    let ReadySession { connection, info, binding: seen, tls: facts, .. } =
        opened.map_err(by_password)?;
    let issuer = facts.issuer;
    let server_key = connection.session().server_key();
    let mut session = RegistrationClient::new(connection);
    let begin = proto::RegisterBegin {
        device: true,
        device_label: label.clone(),
        ..proto::RegisterBegin::default()
    };
    let (device, secret) = register::begin(&mut session, begin, &server_key).await?;
    let device = device.ok_or(ClientError::Protocol("no device id"))?;
    let copy = DeviceSecret::new(secret.expose_secret());
    let records = register::evaluate(&mut session, None, Some((device, copy)), &server_key).await?;
    // The shown TLS key counts only if TLS reaches the server; otherwise only the server's pins do.
    let tls = match (&known, ca_file, facts.peer_pin) {
        (Some(_), None, _) | (_, Some(_), _) => trust,
        (None, None, shown) => {
            let shown = shown.filter(|_| seen == Binding::Bound);
            learned(&address, &info, shown, route).await
        }
    };
    let new = NewProfile {
        host: address.bare_host().to_owned(),
        port: address.port(),
        path: address.path().to_owned(),
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
        // The old secret may still work, so it is replaced only when the new one works.
        Some(_) => {
            register::finish(&mut session, records).await?;
            let profile = Profile::replace(home, profile, new)?;
            Ok(LoggedIn { profile, binding: seen, issuer })
        }
        None => {
            let made = Profile::create(home, profile, new)?;
            let profile = finish(home, session, records, made).await?;
            Ok(LoggedIn { profile, binding: seen, issuer })
        }
    }
}

/// A session by the password of a profile's user, if the device cannot log in. If it can, use
/// [`crate::Client::prove_password`].
pub struct ByPassword {
    session: RegistrationClient,
    binding: Binding,
    issuer: Option<String>,
}

impl ByPassword {
    /// Logs in.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn open(
        profile: &Profile,
        address: Option<Address>,
        route: &Route,
        password: Password,
    ) -> Result<Self, ClientError> {
        let connector = Connector::of(profile, address, Timing::default())?.over(route.clone());
        let credential = Credential::User(profile.user().clone(), password);
        let info = client_info(profile.label());
        let opened = connector.open_when_free(credential, &info, PATIENCE).await;
        let ReadySession { connection, binding, tls, .. } = opened.map_err(by_password)?;
        let session = RegistrationClient::new(connection);
        Ok(Self { session, binding, issuer: tls.issuer })
    }

    /// The result of the channel binding, and who issued the TLS certificate, as it says.
    #[must_use]
    pub fn tls(&self) -> (Binding, Option<&str>) {
        (self.binding, self.issuer.as_deref())
    }

    /// The user's devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn devices(&mut self) -> Result<Vec<DeviceInfo>, ClientError> {
        match self.session.ask(Op::ListDevices(proto::ListDevices {})).await? {
            Answered::Devices(devices) => {
                Ok(devices.devices.into_iter().filter_map(DeviceInfo::of).collect())
            }
            _ => Err(ClientError::Protocol("another answer than devices")),
        }
    }

    /// Revokes a device of the user, and ends the session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_device(mut self, device: &DeviceId) -> Result<(), ClientError> {
        let revoke = proto::RevokeDevice { device: Bytes::copy_from_slice(&device.0) };
        self.session.ask(Op::RevokeDevice(revoke)).await?;
        self.session.close().await;
        Ok(())
    }

    /// Replaces the password, and ends the session.
    ///
    /// # Errors
    /// [`ClientError`]; the old password stays valid then.
    pub async fn set_password(
        mut self,
        profile: &Profile,
        new: Password,
    ) -> Result<(), ClientError> {
        let begin = proto::RegisterBegin { password: true, ..proto::RegisterBegin::default() };
        register::begin(&mut self.session, begin, profile.server_key()).await?;
        let new = Some(Credential::User(profile.user().clone(), new));
        let records =
            register::evaluate(&mut self.session, new, None, profile.server_key()).await?;
        register::finish(&mut self.session, records).await?;
        self.session.close().await;
        Ok(())
    }
}

/// The error of a refused login by password.
fn by_password(error: ClientError) -> ClientError {
    match error {
        ClientError::LoginRefused => ClientError::PasswordRefused,
        error => error,
    }
}

/// How to verify the server's TLS after a login that accepted any certificate.
///
/// By the pins that the server names; if none, by the system's CAs if they accept the server; else
/// by the key that it showed.
async fn learned(
    address: &Address,
    info: &proto::ServerInfo,
    shown: Option<TlsPin>,
    route: Route,
) -> TlsTrust {
    if let Some(pins) = pins_of(info) {
        return TlsTrust::Pins(pins);
    }
    let by_authority = TlsTrust::Ca { file: None };
    let Some(shown) = shown else { return by_authority };
    let roots = ServerTrust::Ca { extra_roots: Vec::new() };
    let connector =
        Connector::new(address.clone(), roots, None, BindingPolicy::Warn, Timing::default());
    let vouched = match connector {
        Ok(connector) => connector.over(route).is_trusted().await,
        Err(_) => false,
    };
    if vouched { by_authority } else { TlsTrust::Pins(vec![shown]) }
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

fn policy(require_binding: bool) -> BindingPolicy {
    if require_binding { BindingPolicy::Require } else { BindingPolicy::Warn }
}

async fn open_invite(
    link: &InviteLink,
    binding: BindingPolicy,
    route: &Route,
) -> Result<ReadySession, ClientError> {
    let trust = trust_of_link(link);
    let pin = Some(link.server_key);
    let connector = Connector::new(link.address.clone(), trust, pin, binding, Timing::default())?
        .over(route.clone());
    let secret = InviteSecret::new(link.secret.expose_secret());
    let credential = Credential::Invite(link.id, secret);
    let opened = connector.open_when_free(credential, &client_info(""), PATIENCE).await;
    opened.map_err(invite_used)
}

/// The pins that the server names, or the one that accepted this connection.
fn pins(info: &proto::ServerInfo, used: TlsPin) -> TlsTrust {
    TlsTrust::Pins(pins_of(info).unwrap_or_else(|| vec![used]))
}

/// The last step: the server creates the credentials of a profile that is already on disk.
async fn finish(
    home: &Home,
    mut session: RegistrationClient,
    records: proto::RegisterFinish,
    made: Profile,
) -> Result<Profile, ClientError> {
    match register::finish(&mut session, records).await {
        Ok(()) => {
            session.close().await;
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
