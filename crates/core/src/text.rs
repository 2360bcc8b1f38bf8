//! Text that came from somebody else, and the one way to show it.
//!
//! [`Untrusted`] has no `Display`: whoever shows it has to say where, and what comes out can
//! neither move a cursor, colour a screen, turn the reading direction, hide characters, nor begin
//! a line of its own where lines have a meaning.

use std::borrow::Cow;
use std::fmt;

/// Text as somebody sent it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Untrusted(String);

impl Untrusted {
    /// Takes text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Takes bytes; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Text for a terminal: without control characters other than newline and tab, without ESC,
    /// bidi controls and zero-width characters.
    #[must_use]
    pub fn render(&self) -> String {
        self.0
            .chars()
            .filter_map(|c| match c {
                '\n' | '\t' => Some(c),
                '\u{2028}' | '\u{2029}' => Some('\n'),
                c if is_harmful(c) => None,
                c => Some(c),
            })
            .collect()
    }

    /// The same on one line: newlines and tabs become a blank.
    #[must_use]
    pub fn render_line(&self) -> String {
        self.render().replace(['\n', '\t'], " ")
    }

    /// Text for a log: one line, everything but printable characters escaped as in Rust source,
    /// so that the original can be told from it and no line can be forged.
    #[must_use]
    pub fn escape(&self) -> String {
        escape(&self.0)
    }

    /// The text as it is, for formats that escape by themselves (JSON) and for comparing.
    #[must_use]
    pub fn expose_raw(&self) -> &str {
        &self.0
    }
}

/// Escaped, so that `{:?}` in a log is harmless too.
impl fmt::Debug for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape())
    }
}

/// See [`Untrusted::escape`].
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\u{2028}' | '\u{2029}' => out.extend(c.escape_unicode()),
            c if is_harmful(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Makes a JSON document of one line harmless to a terminal that shows it: a JSON writer escapes
/// U+0000..U+001F only. The document's meaning stays the same.
#[must_use]
pub fn harmless_json(json: &str) -> Cow<'_, str> {
    let escaped = |c: char| c > '\u{7e}' && (is_harmful(c) || matches!(c, '\u{2028}' | '\u{2029}'));
    if !json.contains(escaped) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if escaped(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Characters that act on a terminal or deceive the reader: C0, DEL, C1, bidi controls,
/// zero-width and invisible format characters, tags, blank fillers, noncharacters. Newline and tab
/// are among them; callers that allow those say so before they ask.
fn is_harmful(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}'
        | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
        || u32::from(c) & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_passes() {
        let evil = "a\u{1b}[2Jb\u{9b}31mc\rd\u{8}e\u{202e}f\u{2066}g\u{200b}h\u{feff}i\u{7f}j\0k";
        assert_eq!(Untrusted::new(evil).render(), "a[2Jb31mcdefghijk");
        assert_eq!(Untrusted::new("a\nb\tc").render(), "a\nb\tc");
        assert_eq!(Untrusted::new("a\u{2028}b\nc").render_line(), "a b c");
    }

    #[test]
    fn ordinary_text_of_any_script_passes_unchanged() {
        for text in ["Zoë", "שלום", "مرحبا", "你好", "👍🏽", "e\u{301}", "\u{2764}\u{fe0f}"]
        {
            assert_eq!(Untrusted::new(text).render(), text);
            assert_eq!(Untrusted::new(text).escape(), text);
        }
    }

    #[test]
    fn a_log_line_cannot_be_forged() {
        let evil = Untrusted::new("x\n2026-01-01 INFO root logged in\u{1b}[1A\u{85}\"\\");
        assert_eq!(evil.escape(), "x\\n2026-01-01 INFO root logged in\\u{1b}[1A\\u{85}\\\"\\\\");
        assert_eq!(format!("{evil:?}"), format!("\"{}\"", evil.escape()));
    }

    #[test]
    fn harmless_json_means_the_same() {
        let text = "a\u{9b}b\u{202e}c\u{e0041}d\u{7f}e\n👍";
        let json = serde_json::to_string(text).unwrap();
        let harmless = harmless_json(&json);
        assert!(!harmless.contains(is_harmful), "{harmless}");
        assert_eq!(serde_json::from_str::<String>(&harmless).unwrap(), text);
        assert!(matches!(harmless_json("\"plain\""), Cow::Borrowed(_)));
    }
}
