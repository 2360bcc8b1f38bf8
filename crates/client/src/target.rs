//! Targets: the conversations that people and programs name.

use twinlock_core::id::{BadName, Name};

/// A room's name, or `@` and a user's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A room.
    Room(Name),
    /// The direct conversation with this user.
    User(Name),
}

impl Target {
    /// The room, for requests that need one.
    #[must_use]
    pub fn room(&self) -> Option<&Name> {
        match self {
            Self::Room(name) => Some(name),
            Self::User(_) => None,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Room(name) => write!(f, "{name}"),
            Self::User(name) => write!(f, "@{name}"),
        }
    }
}

/// Accepts `#` before a room's name, and upper case, because people capitalize names.
impl std::str::FromStr for Target {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        match text.strip_prefix('@') {
            Some(user) => lowercase_name(user).map(Self::User),
            None => lowercase_name(text.strip_prefix('#').unwrap_or(text)).map(Self::Room),
        }
    }
}

/// A name in lower case, because people capitalize names.
///
/// # Errors
/// [`BadName`].
pub fn lowercase_name(text: &str) -> Result<Name, BadName> {
    Name::new(&text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target__accepts_room_and_user_spellings() {
        let parse = |text: &str| text.parse::<Target>().map(|t| t.to_string());
        assert_eq!(parse("ops").as_deref(), Ok("ops"));
        assert_eq!(parse("#Ops").as_deref(), Ok("ops"));
        assert_eq!(parse("@Ada").as_deref(), Ok("@ada"));
        for bad in ["", "@", "#", "a b", "@@a", "ä"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
