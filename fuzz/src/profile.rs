//! Profiles: files that users edit.

use std::fs;

use tempfile::TempDir;
use twinlock_client::home::Home;
use twinlock_client::profile::{MAX_LABEL, MAX_PINS, Profile, TlsTrust};
use twinlock_core::id::Name;
use twinlock_core::session::BindingPolicy;

use crate::text::acts;

thread_local! {
    static DIR: TempDir = tempfile::tempdir().unwrap();
}

/// An accepted file means the same after the program has written it. An error cannot act on a
/// terminal and does not show the secret.
pub(crate) fn profile(data: &[u8]) {
    DIR.with(|dir| {
        let home = Home::at(dir.path());
        let name = Name::new("fuzz").unwrap();
        let path = home.make_profiles().unwrap().join("fuzz.toml");
        fs::write(&path, data).unwrap();
        let text = String::from_utf8_lossy(data);
        match Profile::load(&home, &name) {
            Ok(profile) => reads_back(&home, profile),
            Err(error) => {
                let shown = error.to_string();
                assert!(!shown.chars().any(|c| acts(c) && c != '\n'), "{shown:?}");
                if let Some(secret) = secret(&text) {
                    assert!(!shown.contains(secret), "an error shows the secret");
                    assert!(!format!("{error:?}").contains(secret), "an error shows the secret");
                }
            }
        }
    });
}

fn reads_back(home: &Home, mut profile: Profile) {
    assert!(!profile.host().is_empty() && profile.port() != 0 && profile.min_version() > 0);
    assert!(profile.label().len() <= MAX_LABEL && !profile.label().contains(char::is_control));
    match profile.tls() {
        TlsTrust::Pins(pins) => assert!((1..=MAX_PINS).contains(&pins.len())),
        TlsTrust::Ca { file } => assert!(file.is_none_or(|file| file.is_absolute())),
    }
    let facts = |profile: &Profile| {
        (
            (profile.host().to_owned(), profile.port(), *profile.server_key(), profile.tls()),
            (profile.user().clone(), *profile.device(), *profile.secret().expose_secret()),
            (profile.label().to_owned(), profile.min_version(), profile.created_ms()),
        )
    };
    let before = facts(&profile);
    let other = match profile.binding() {
        BindingPolicy::Off => BindingPolicy::Require,
        BindingPolicy::Require => BindingPolicy::Warn,
        BindingPolicy::Warn => BindingPolicy::Off,
    };
    profile.set_binding(home, other).unwrap();
    let again = Profile::load(home, profile.name()).unwrap();
    assert!(facts(&again) == before && facts(&profile) == before);
    assert_eq!(again.binding(), other);
    let hex: String = before.1.2.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!format!("{again:?}").contains(&hex));
}

/// The value at the secret's place, if it is long enough for a secret and occurs nowhere else.
fn secret(text: &str) -> Option<&str> {
    let value = text.split_once("secret = \"")?.1.split('"').next()?;
    (value.len() >= 16 && text.matches(value).count() == 1).then_some(value)
}
