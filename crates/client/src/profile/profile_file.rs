//! The TOML format of a profile file.
//!
//! Errors here combine the parser's message and the line number. The parser's full report would
//! quote the line, which may contain the secret.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twinlock_core::id::{DeviceId, Name, ServerKey, TlsPin};
use twinlock_core::invite::{Address, DEFAULT_PATH};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::session::BindingPolicy;
use zeroize::Zeroizing;

use super::model::{MAX_LABEL, MAX_PINS, NewProfile, ProfileError, TlsTrust};

/// Maximum length of a DNS name in bytes (RFC 1035).
const MAX_HOST: usize = 253;

/// Seconds of `rekey-after`: from the protocol's minimum interval between rekeys to its default
/// (section 6).
const REKEY_AFTER: RangeInclusive<i64> = 15..=600;

const HEAD: &str = "\
# A Twinlock profile. It holds this device's secret: whoever reads it can be this device.\n\
# server_key is who the server is. Do not change it: a server with another key is another server.\n\n";

/// The content of the file, key by key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileFile {
    pub(super) host: String,
    pub(super) port: u16,
    /// Only if it is not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    #[serde(with = "text")]
    pub(super) server_key: ServerKey,
    #[serde(with = "text")]
    pub(super) user: Name,
    #[serde(with = "text")]
    pub(super) binding: BindingPolicy,
    pub(super) min_version: u8,
    pub(super) created_ms: u64,
    #[serde(default, rename = "rekey-after", skip_serializing_if = "Option::is_none")]
    pub(super) rekey_after: Option<i64>,
    pub(super) device: Device,
    tls: Tls,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    #[serde(with = "text")]
    pub(super) id: DeviceId,
    pub(super) label: String,
    #[serde(with = "secret")]
    pub(super) secret: DeviceSecret,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    trust: Trust,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pins: Vec<Pin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Trust {
    Pin,
    Ca,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Pin(#[serde(with = "text")] TlsPin);

impl ProfileFile {
    pub(super) fn new(new: NewProfile) -> Result<Self, ProfileError> {
        let mut form = Self {
            host: new.host,
            port: new.port,
            path: Some(new.path).filter(|path| path != DEFAULT_PATH),
            server_key: new.server_key,
            user: new.user,
            binding: new.binding,
            min_version: new.min_version,
            created_ms: new.created_ms,
            rekey_after: None,
            device: Device { id: new.device, label: new.label, secret: new.secret },
            tls: Tls { trust: Trust::Ca, pins: Vec::new(), ca_file: None },
        };
        form.set_trust(new.tls);
        form.check()?;
        Ok(form)
    }

    pub(super) fn trust(&self) -> TlsTrust {
        match self.tls.trust {
            Trust::Pin => TlsTrust::Pins(self.tls.pins.iter().map(|pin| pin.0).collect()),
            Trust::Ca => TlsTrust::Ca { file: self.tls.ca_file.clone() },
        }
    }

    pub(super) fn set_trust(&mut self, tls: TlsTrust) {
        self.tls = match tls {
            TlsTrust::Pins(pins) => {
                let pins = pins.into_iter().map(Pin).collect();
                Tls { trust: Trust::Pin, pins, ca_file: None }
            }
            TlsTrust::Ca { file } => Tls { trust: Trust::Ca, pins: Vec::new(), ca_file: file },
        };
    }

    pub(super) fn rekey_after(&self) -> Option<Duration> {
        self.rekey_after.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs)
    }

    /// Checks the constraints that the types do not express.
    pub(super) fn check(&self) -> Result<(), ProfileError> {
        self.unfit().map_or(Ok(()), |(_, problem)| Err(ProfileError::Unfit(problem)))
    }

    /// The first key with an invalid value, and the reason.
    fn unfit(&self) -> Option<(&'static str, &'static str)> {
        // No character that has a meaning in a URL or a log line.
        let in_host = |b: u8| b.is_ascii_alphanumeric() || b"-._:%".contains(&b);
        let host = self.host.as_bytes();
        let pins = self.tls.pins.len();
        let ca_file = self.tls.ca_file.as_ref();
        let faults = [
            (
                host.is_empty() || host.len() > MAX_HOST || !host.iter().all(|b| in_host(*b)),
                "host",
                "host is a DNS name or an IP address without brackets",
            ),
            (self.port == 0, "port", "port is 1 to 65535"),
            (
                self.path.as_ref().is_some_and(|path| {
                    Address::new("localhost", 1).and_then(|at| at.with_path(path)).is_err()
                }),
                "path",
                "path is that of a WebSocket, such as /twinlock",
            ),
            (self.min_version == 0, "min_version", "min_version is at least 1"),
            (i64::try_from(self.created_ms).is_err(), "created_ms", "created_ms is too large"),
            (
                self.rekey_after.is_some_and(|seconds| !REKEY_AFTER.contains(&seconds)),
                "rekey-after",
                "rekey-after is 15 to 600 seconds; without it the client rekeys after 600",
            ),
            (
                self.device.label.len() > MAX_LABEL
                    || self.device.label.chars().any(char::is_control),
                "label",
                "label is at most 64 bytes without control characters",
            ),
            (
                matches!(self.tls.trust, Trust::Pin) && !(1..=MAX_PINS).contains(&pins),
                "trust",
                "trust = \"pin\" wants 1 to 8 pins",
            ),
            (
                matches!(self.tls.trust, Trust::Pin) && ca_file.is_some(),
                "ca_file",
                "ca_file goes with trust = \"ca\"",
            ),
            (
                matches!(self.tls.trust, Trust::Ca) && pins > 0,
                "pins",
                "pins go with trust = \"pin\"",
            ),
            (
                ca_file.is_some_and(|file| !file.is_absolute()),
                "ca_file",
                "ca_file is an absolute path",
            ),
        ];
        faults.into_iter().find(|fault| fault.0).map(|(_, key, problem)| (key, problem))
    }
}

pub(super) fn parse(text: &str, path: &Path) -> Result<ProfileFile, ProfileError> {
    let malformed =
        |line, problem| ProfileError::Malformed { path: path.to_path_buf(), line, problem };
    let form: ProfileFile = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(start).filter(|b| *b == b'\n').count();
        malformed(line, error.message().replace(char::is_control, " "))
    })?;
    match form.unfit() {
        None => Ok(form),
        Some((key, problem)) => {
            // The text has parsed and key names are unique, so the first line that begins with the
            // key is the right one.
            let is_it = |line: &str| {
                line.trim_start()
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.trim_start().starts_with('='))
            };
            let line = text.lines().position(is_it).map_or(1, |at| at + 1);
            Err(malformed(line, problem.to_owned()))
        }
    }
}

pub(super) fn print(form: &ProfileFile) -> Result<Zeroizing<String>, ProfileError> {
    let body = toml::to_string(form).map(Zeroizing::new);
    // The only value left that TOML cannot hold.
    let body = body.map_err(|_| ProfileError::Unfit("ca_file is not UTF-8"))?;
    let mut text = Zeroizing::new(String::with_capacity(HEAD.len() + body.len()));
    text.push_str(HEAD);
    text.push_str(&body);
    Ok(text)
}

/// A value with its own text format, stored as a TOML string.
trait Text: Sized {
    const EXPECTED: &'static str;
    fn read(text: &str) -> Option<Self>;
    fn write(&self) -> String;
}

macro_rules! hex_text {
    ($name:ident, $expected:literal) => {
        impl Text for $name {
            const EXPECTED: &'static str = $expected;
            fn read(text: &str) -> Option<Self> {
                Self::from_hex(text)
            }
            fn write(&self) -> String {
                self.to_string()
            }
        }
    };
}
hex_text!(ServerKey, "64 hex digits");
hex_text!(TlsPin, "64 hex digits");
hex_text!(DeviceId, "32 hex digits");

impl Text for Name {
    const EXPECTED: &'static str = "a user name";
    fn read(text: &str) -> Option<Self> {
        Self::new(text).ok()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Text for BindingPolicy {
    const EXPECTED: &'static str = "\"require\", \"warn\" or \"off\"";
    fn read(text: &str) -> Option<Self> {
        match text {
            "require" => Some(Self::Require),
            "warn" => Some(Self::Warn),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
    fn write(&self) -> String {
        match self {
            Self::Require => "require",
            Self::Warn => "warn",
            Self::Off => "off",
        }
        .to_owned()
    }
}

mod text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(value: &impl Text, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&value.write())
    }

    pub(super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        T::read(&text).ok_or_else(|| D::Error::custom(format_args!("expected {}", T::EXPECTED)))
    }
}

mod secret {
    use super::*;

    pub(super) fn serialize<S: Serializer>(value: &DeviceSecret, to: S) -> Result<S::Ok, S::Error> {
        let hex = Zeroizing::new(HEXLOWER.encode(value.expose_secret()));
        to.serialize_str(&hex)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<DeviceSecret, D::Error> {
        from.deserialize_str(Digits)
    }

    /// Decodes in place, so that no string and no error holds a copy of the digits.
    struct Digits;

    impl Visitor<'_> for Digits {
        type Value = DeviceSecret;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("64 hex digits in a string")
        }

        fn visit_str<E: serde::de::Error>(self, digits: &str) -> Result<DeviceSecret, E> {
            let bad = || E::custom("expected 64 hex digits");
            let mut bytes = Zeroizing::new([0; 32]);
            if digits.len() != 2 * bytes.len() {
                return Err(bad());
            }
            HEXLOWER_PERMISSIVE.decode_mut(digits.as_bytes(), bytes.as_mut()).map_err(|_| bad())?;
            Ok(DeviceSecret::new(&bytes))
        }
    }
}
