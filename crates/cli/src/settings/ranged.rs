//! Numbers of the configuration file whose type carries their range.
//!
//! The check is part of deserialization, so that the error names the file and the line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// An integer in `LEAST..=MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ranged<const LEAST: u64, const MOST: u64>(u64);

impl<const LEAST: u64, const MOST: u64> Ranged<LEAST, MOST> {
    pub(super) fn get(self) -> u64 {
        self.0
    }
}

struct Range<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> Visitor<'_> for Range<LEAST, MOST> {
    type Value = Ranged<LEAST, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {LEAST} to {MOST}")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        let out = || E::custom(format!("{number} is out of range: {LEAST} to {MOST} are possible"));
        u64::try_from(number)
            .ok()
            .filter(|number| (LEAST..=MOST).contains(number))
            .map(Ranged)
            .ok_or_else(out)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }
}

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Ranged<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_i64(Range)
    }
}

/// A path or a name that is not empty.
pub(super) fn not_empty<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: From<String>,
{
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Err(D::Error::custom("this is empty: set a value, or remove the line"));
    }
    Ok(Some(text.into()))
}

/// A port; 0 selects any free one.
pub(super) fn port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    let port = Ranged::<0, { u16::MAX as u64 }>::deserialize(from)?;
    Ok(u16::try_from(port.get()).ok())
}
