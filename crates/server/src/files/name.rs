//! File names that the record accepts.

/// Maximum length of a name, bytes.
const MAX_NAME_BYTES: usize = 255;

/// Whether this can be a file name: one path component of printable UTF-8.
///
/// Other dangers (leading dots, reserved names, direction marks) depend on where a file is saved,
/// so the receiver handles them.
pub(crate) fn is_possible(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name__one_component_of_printable_text() {
        for good in ["a", "Grüße aus 北京.txt", ".profile", "-rf *", "...", "a b", &"x".repeat(255)]
        {
            assert!(is_possible(good), "{good:?}");
        }
        let long = "x".repeat(256);
        let bad =
            ["", ".", "..", "/", "a/b", "../x", "a\0", "a\n", "\u{1b}[2J", "\u{85}", "\u{7f}"];
        for bad in bad.into_iter().chain([long.as_str()]) {
            assert!(!is_possible(bad), "{bad:?}");
        }
    }
}
