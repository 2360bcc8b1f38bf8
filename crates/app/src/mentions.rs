//! Detects that a text mentions a user.

use twinlock_core::id::Name;

/// Whether `text` has `@` and the user's name, in any case and as a whole word.
#[must_use]
pub fn mentions(text: &str, user: &Name) -> bool {
    let user = user.as_str();
    text.match_indices('@').any(|(at, _)| {
        let is_start = !text.get(..at).and_then(|t| t.chars().next_back()).is_some_and(is_part);
        let name = text.get(at + 1..at + 1 + user.len());
        let rest = text.get(at + 1 + user.len()..).unwrap_or_default();
        is_start && name.is_some_and(|name| name.eq_ignore_ascii_case(user)) && ends_name(rest)
    })
}

/// Whether a name ends before `rest`. A period, a hyphen or an underscore is a part of the name only
/// if more of it follows: `@bob.` at the end of a sentence mentions bob.
fn ends_name(rest: &str) -> bool {
    let rest = rest.trim_start_matches(['.', '-', '_']);
    !rest.chars().next().is_some_and(is_part)
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions__whole_name_in_any_case() {
        let bob = Name::new("bob").unwrap();
        for text in
            ["@bob", "hi @Bob, there", "(@bob)", "thanks @bob.", "\u{e4} @BOB\nx", "a@b @bob"]
        {
            assert!(mentions(text, &bob), "{text}");
        }
        for text in ["bob", "@bobby", "@bob.smith", "x@bob", "@", "@bo", "@bob\u{e4}", "@@bob", ""]
        {
            assert!(!mentions(text, &bob), "{text}");
        }
    }
}
