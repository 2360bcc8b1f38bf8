//! Untrusted text, and the ways to display it.

use twinlock_core::text::{Untrusted, harmless_json};

/// Characters that act on a terminal or are invisible in any context: C0 and C1, bidi controls,
/// most zero-width characters. Joiners, selectors and tags may be part of a word or of an emoji.
pub(crate) fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{61c}' | '\u{ad}' | '\u{e0000}'..='\u{e002f}')
}

/// For any text: displayed output cannot act on a terminal, rendering is idempotent, an escaped
/// text identifies the original, and JSON keeps its meaning.
pub(crate) fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let untrusted = Untrusted::from_bytes(data);
    assert_eq!(untrusted.expose_raw(), text);

    let rendered = untrusted.render();
    assert!(!rendered.chars().any(|c| acts(c) && c != '\n' && c != '\t'), "{rendered:?}");
    assert!(rendered.len() <= text.len());
    assert_eq!(Untrusted::new(rendered.as_str()).render(), rendered);
    // Harmless characters are kept.
    if !text.chars().any(acts) {
        assert!(text.chars().filter(|c| !rendered.contains(*c)).all(is_rare));
    }

    let line = untrusted.render_line();
    assert!(!line.chars().any(acts), "{line:?}");
    assert_eq!(Untrusted::new(line.as_str()).render_line(), line);

    let escaped = untrusted.escape();
    assert!(!escaped.chars().any(acts), "{escaped:?}");
    assert!(escaped.len() <= 10 * text.len().max(1));
    assert_eq!(unescape(&escaped).as_deref(), Some(&*text), "{escaped:?}");
    assert_eq!(format!("{untrusted:?}"), format!("\"{escaped}\""));

    let json = serde_json::to_string(&text).unwrap();
    let harmless = harmless_json(&json);
    assert!(!harmless.chars().any(acts), "{harmless:?}");
    assert_eq!(serde_json::from_str::<String>(&harmless).unwrap(), text);
}

/// Fillers, noncharacters and similar characters, of which the renderer knows more than [`acts`].
fn is_rare(c: char) -> bool {
    c > '\u{300}'
}

/// Undoes an escape in the style of Rust source.
fn unescape(escaped: &str) -> Option<String> {
    let mut text = String::new();
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let hex = chars.as_str().strip_prefix('{')?.split_once('}')?.0;
                    let _hex_and_braces = chars.nth(hex.len() + 1)?;
                    char::from_u32(u32::from_str_radix(hex, 16).ok()?)?
                }
                c @ ('\\' | '"' | '\'') => c,
                _ => return None,
            },
            '"' => return None,
            c => c,
        });
    }
    Some(text)
}
