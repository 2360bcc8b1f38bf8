//! What the two ends say of themselves in READY, and what a profile stores of it.

use bytes::Bytes;
use twinlock_core::id::TlsPin;
use twinlock_core::limits::VERSION;
use twinlock_core::proto;

use crate::error::ClientError;
use crate::home::Home;
use crate::profile::{Profile, ProfileError};

/// This program's description for the operator.
pub fn client_info(label: &str) -> proto::ClientInfo {
    proto::ClientInfo {
        software: concat!("twinlock ", env!("CARGO_PKG_VERSION")).to_owned(),
        device_label: label.to_owned(),
        instance: Bytes::new(),
    }
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

/// The blocking work that stores what READY says for the next connection. It fails if another
/// program has put another server or user into the profile.
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
