//! Text from an untrusted source, and the only way to display it.
//!
//! [`Untrusted`] has no `Display`, so the caller must choose the kind of output. The output cannot
//! move a cursor, colour a screen, reverse the reading direction or hide characters, nor start a
//! new line where lines have a meaning.

use std::borrow::Cow;
use std::fmt;

use icu_properties::props::{
    BidiControl, CanonicalCombiningClass, DefaultIgnorableCodePoint, Emoji, EmojiModifier,
    ExtendedPictographic, GeneralCategory, Ideographic, JoiningType, NoncharacterCodePoint, Script,
};
use icu_properties::{
    CodePointMapData, CodePointMapDataBorrowed, CodePointSetData, CodePointSetDataBorrowed,
};

/// Text as a peer sent it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Untrusted(String);

impl Untrusted {
    /// Wraps text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Wraps bytes; invalid UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Text for a terminal.
    ///
    /// Drops ESC, control characters other than newline and tab, bidi controls and invisible
    /// characters, except those that the surrounding script or emoji needs.
    #[must_use]
    pub fn render(&self) -> String {
        classify(&self.0)
            .filter_map(|(c, harmful)| match c {
                '\n' | '\t' => Some(c),
                '\u{2028}' | '\u{2029}' => Some('\n'),
                c => (!harmful).then_some(c),
            })
            .collect()
    }

    /// Text for one line of a terminal: newlines and tabs become blanks.
    #[must_use]
    pub fn render_line(&self) -> String {
        self.render().replace(['\n', '\t'], " ")
    }

    /// Text for a log: one line, with all but printable characters escaped as in Rust source.
    ///
    /// The original can be recovered from it, and no log line can be forged.
    #[must_use]
    pub fn escape(&self) -> String {
        escape(&self.0)
    }

    /// The unmodified text, for formats that have their own escaping (JSON) and for comparison.
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
    for (c, harmful) in classify(text) {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\u{2028}' | '\u{2029}' => out.extend(c.escape_unicode()),
            c if harmful => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Makes a one-line JSON document harmless to a terminal that shows it.
///
/// A JSON writer escapes only U+0000..U+001F. The document's meaning does not change.
#[must_use]
pub fn harmless_json(json: &str) -> Cow<'_, str> {
    let escaped = |(c, harmful): (char, bool)| {
        c > '\u{7e}' && (harmful || matches!(c, '\u{2028}' | '\u{2029}'))
    };
    if !classify(json).any(escaped) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for (c, harmful) in classify(json) {
        if escaped((c, harmful)) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Yields each character, and whether it is harmful in its context.
///
/// Newline and tab count as harmful; callers that allow them check the character first. Dropped
/// characters are not context for later ones, so that the result is idempotent.
fn classify(text: &str) -> impl Iterator<Item = (char, bool)> {
    let mut before = Preceding::default();
    text.char_indices().map(move |(at, c)| {
        let harmful = is_special(c) && !belongs(text, at, &before, c);
        match c {
            '\n' | '\t' | '\u{2028}' | '\u{2029}' => before.push('\n'),
            c if !harmful => before.push(c),
            _ => {}
        }
        (c, harmful)
    })
}

/// The context that the rules need of the kept characters. Bounded, for linear run time.
#[derive(Default)]
struct Preceding {
    /// The newest characters, newest first.
    last: [Option<char>; 3],
    /// The newest character that is not transparent to joining.
    opaque: Option<char>,
}

impl Preceding {
    fn push(&mut self, c: char) {
        let [newest, older, _] = self.last;
        self.last = [Some(c), newest, older];
        if is_opaque(&c) {
            self.opaque = Some(c);
        }
    }

    fn newest(&self) -> Option<char> {
        let [newest, ..] = self.last;
        newest
    }
}

fn is_opaque(c: &char) -> bool {
    JOINING.get(*c) != JoiningType::Transparent
}

const IGNORABLE: CodePointSetDataBorrowed<'static> =
    CodePointSetData::new::<DefaultIgnorableCodePoint>();
const BIDI: CodePointSetDataBorrowed<'static> = CodePointSetData::new::<BidiControl>();
const NO_CHARACTER: CodePointSetDataBorrowed<'static> =
    CodePointSetData::new::<NoncharacterCodePoint>();
const PICTOGRAPH: CodePointSetDataBorrowed<'static> =
    CodePointSetData::new::<ExtendedPictographic>();
const MODIFIER: CodePointSetDataBorrowed<'static> = CodePointSetData::new::<EmojiModifier>();
const IDEOGRAPH: CodePointSetDataBorrowed<'static> = CodePointSetData::new::<Ideographic>();
const JOINING: CodePointMapDataBorrowed<'static, JoiningType> = CodePointMapData::new();
const COMBINING: CodePointMapDataBorrowed<'static, CanonicalCombiningClass> =
    CodePointMapData::new();
const EMOJI: CodePointSetDataBorrowed<'static> = CodePointSetData::new::<Emoji>();
const CATEGORY: CodePointMapDataBorrowed<'static, GeneralCategory> = CodePointMapData::new();
const SCRIPT: CodePointMapDataBorrowed<'static, Script> = CodePointMapData::new();

const ZWNJ: char = '\u{200c}';
const ZWJ: char = '\u{200d}';
const KEYCAP: char = '\u{20e3}';
/// Starts the flag of a country's subdivision.
const BLACK_FLAG: char = '\u{1f3f4}';
/// Ends a tag sequence.
const CANCEL_TAG: char = '\u{e007f}';
/// Tags in the flag of a subdivision: two letters, then one to four letters or digits.
const FLAG_TAGS: std::ops::RangeInclusive<usize> = 3..=6;

/// Whether `c` acts on a terminal, or is invisible and could deceive the reader.
///
/// This includes controls, bidi controls, default ignorable characters, annotations and
/// noncharacters, and also newline and tab; callers that allow those two check first.
fn is_special(c: char) -> bool {
    // Most text ends here: printable ASCII.
    if matches!(c, '\u{20}'..='\u{7e}') {
        return false;
    }
    c.is_control()
        || matches!(c, '\u{fff9}'..='\u{fffb}')
        || IGNORABLE.contains(c)
        || BIDI.contains(c)
        || NO_CHARACTER.contains(c)
}

/// Whether the special character `c` at byte `at` of `text` belongs to its script or to an emoji.
///
/// Accepts joiners as in RFC 5892, appendix A (CONTEXTJ), UAX #31 and UTS #51, variation selectors
/// after a character with variants, and the tags of a flag. `before` describes the kept characters.
fn belongs(text: &str, at: usize, before: &Preceding, c: char) -> bool {
    let after = text.get(at + c.len_utf8()..).unwrap_or_default();
    let base = before.newest();
    match c {
        ZWNJ => in_conjunct(before, after) || breaks_a_join(before, after),
        ZWJ => {
            in_conjunct(before, after)
                || shapes_a_letter(before, after)
                || joins_pictographs(before, after)
        }
        // Text or emoji style.
        '\u{fe0e}' | '\u{fe0f}' => base.is_some_and(|base| has_styles(base, after)),
        '\u{fe00}'..='\u{fe0d}' => base.is_some_and(has_variants),
        '\u{e0100}'..='\u{e01ef}' => base.is_some_and(|c| IDEOGRAPH.contains(c)),
        '\u{180b}'..='\u{180f}' => {
            base.is_some_and(|c| !is_special(c) && SCRIPT.get(c) == Script::Mongolian)
        }
        '\u{e0020}'..=CANCEL_TAG => in_flag(text.get(..at).unwrap_or_default(), c, after),
        _ => false,
    }
}

/// Whether `base` is an emoji, or a keycap's digit. After any other character, a selector is
/// invisible.
fn has_styles(base: char, after: &str) -> bool {
    EMOJI.contains(base) && (!base.is_ascii() || after.starts_with(KEYCAP))
}

/// Whether `base` is a symbol, an ideograph, or of a script with standardized variants.
fn has_variants(base: char) -> bool {
    let symbol = matches!(
        CATEGORY.get(base),
        GeneralCategory::MathSymbol
            | GeneralCategory::OtherSymbol
            | GeneralCategory::OtherPunctuation
    );
    symbol && !base.is_ascii()
        || IDEOGRAPH.contains(base)
        || matches!(SCRIPT.get(base), Script::Myanmar | Script::PhagsPa | Script::Manichaean)
}

fn is_virama(c: char) -> bool {
    COMBINING.get(c) == CanonicalCombiningClass::Virama
}

/// Whether the position follows a virama, or is between a letter and its virama (Bengali and
/// Kannada RA).
fn in_conjunct(before: &Preceding, after: &str) -> bool {
    let Some(last) = before.newest() else { return false };
    let has_virama =
        |next: char| is_virama(next) && SCRIPT.get(next) == SCRIPT.get(last) && !is_special(last);
    is_virama(last) || last.is_alphabetic() && after.chars().next().is_some_and(has_virama)
}

/// The joining types of the surrounding letters, ignoring transparent marks. `None` if another
/// invisible character follows, which may be kept or dropped.
fn joining(before: &Preceding, after: &str) -> Option<(JoiningType, JoiningType)> {
    let left = before.opaque;
    // Stops at the next joiner at the latest, so no mark is examined twice.
    let right = after.chars().find(is_opaque);
    if right.is_some_and(|c| is_special(c) && !matches!(c, '\n' | '\t')) {
        return None;
    }
    let kind = |c: Option<char>| c.map_or(JoiningType::NonJoining, |c| JOINING.get(c));
    Some((kind(left), kind(right)))
}

fn joins_next(kind: JoiningType) -> bool {
    matches!(kind, JoiningType::LeftJoining | JoiningType::DualJoining)
}

fn joins_previous(kind: JoiningType) -> bool {
    matches!(kind, JoiningType::RightJoining | JoiningType::DualJoining)
}

/// Whether the surrounding letters would join.
fn breaks_a_join(before: &Preceding, after: &str) -> bool {
    joining(before, after).is_some_and(|(left, right)| joins_next(left) && joins_previous(right))
}

/// Whether exactly one side has a letter that takes its joined shape.
fn shapes_a_letter(before: &Preceding, after: &str) -> bool {
    joining(before, after).is_some_and(|(left, right)| joins_next(left) != joins_previous(right))
}

/// Whether there is an emoji on both sides.
fn joins_pictographs(before: &Preceding, after: &str) -> bool {
    let is_base = |c: &char| *c != '\u{fe0f}' && !MODIFIER.contains(*c);
    // A pictograph has at most one modifier and one selector.
    let base = before.last.iter().flatten().copied().find(is_base);
    let next = after.chars().next();
    base.is_some_and(|c| PICTOGRAPH.contains(c)) && next.is_some_and(|c| PICTOGRAPH.contains(c))
}

/// Whether `c` is a tag in a subdivision's flag: black flag, tags of small letters and digits,
/// cancel tag. Other tags spell invisible text.
fn in_flag(before: &str, c: char, after: &str) -> bool {
    let is_tag = |c: &char| matches!(c, '\u{e0030}'..='\u{e0039}' | '\u{e0061}'..='\u{e007a}');
    let max = *FLAG_TAGS.end() + 1;
    let tags_before = before.chars().rev().take(max).take_while(is_tag).count();
    let base = before.chars().rev().nth(tags_before);
    let tags = if c == CANCEL_TAG {
        tags_before
    } else {
        let tags_after = after.chars().take(max).take_while(is_tag).count();
        if !is_tag(&c) || after.chars().nth(tags_after) != Some(CANCEL_TAG) {
            return false;
        }
        tags_before + 1 + tags_after
    };
    base == Some(BLACK_FLAG) && FLAG_TAGS.contains(&tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text__terminal_controls_are_removed() {
        let evil = "a\u{1b}[2Jb\u{9b}31mc\rd\u{8}e\u{202e}f\u{2066}g\u{200b}h\u{feff}i\u{7f}j\0k";
        assert_eq!(Untrusted::new(evil).render(), "a[2Jb31mcdefghijk");
        assert_eq!(Untrusted::new("a\nb\tc").render(), "a\nb\tc");
        assert_eq!(Untrusted::new("a\u{2028}b\nc").render_line(), "a b c");
    }

    /// Words that need their invisible characters, and words of other scripts.
    const SCRIPTS: [&str; 36] = [
        "Zo\u{eb}",
        "e\u{301}",
        "\u{3b5}\u{3bb}\u{3bb}\u{3b7}\u{3bd}\u{3b9}\u{3ba}\u{3ac}",
        "\u{440}\u{443}\u{441}\u{441}\u{43a}\u{438}\u{439}",
        "\u{5e9}\u{5c1}\u{5b8}\u{5dc}\u{5d5}\u{5b9}\u{5dd}",
        "\u{645}\u{631}\u{62d}\u{628}\u{627}",
        // Persian: may-khaham, with marks, and the joined heh of an abbreviation.
        "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
        "\u{645}\u{6cc}\u{64e}\u{200c}\u{62e}\u{64e}",
        "\u{6f1}\u{6f4}\u{6f0}\u{6f5}\u{647}\u{200d}",
        // Syriac.
        "\u{712}\u{200c}\u{712}",
        // N'Ko, Devanagari (half form, explicit virama), Bengali (ya-phalaa, khanda ta), Gurmukhi.
        "\u{7d2}\u{7de}\u{7cf}",
        "\u{915}\u{94d}\u{200d}\u{937}",
        "\u{915}\u{94d}\u{200c}\u{937}",
        "\u{9b0}\u{200d}\u{9cd}\u{9af}\u{9be}\u{9ae}",
        "\u{9a4}\u{9cd}\u{200d}",
        "\u{a2a}\u{a70}\u{a1c}\u{a3e}\u{a2c}\u{a40}",
        // Gujarati, Oriya, Tamil, Telugu, Kannada (RA without reph), Malayalam (chillu), Sinhala.
        "\u{a95}\u{acd}\u{200d}\u{ab7}",
        "\u{b15}\u{b4d}\u{200c}\u{b37}",
        "\u{b95}\u{bcd}\u{200c}\u{bb7}",
        "\u{c15}\u{c4d}\u{200c}\u{c37}",
        "\u{cb0}\u{200d}\u{ccd}\u{c95}",
        "\u{d28}\u{d4d}\u{200d}",
        "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
        // Thai, Tibetan, Myanmar, Khmer.
        "\u{e44}\u{e17}\u{e22}",
        "\u{f56}\u{f7c}\u{f51}",
        "\u{1019}\u{103c}\u{1014}\u{103a}\u{1019}\u{102c}",
        "\u{1781}\u{17d2}\u{1798}\u{17c2}\u{179a}",
        // Mongolian, with a variant and a separated vowel.
        "\u{182e}\u{1822}\u{180b}\u{1828}\u{180e}\u{1820}",
        // Han, with the variant of a name; Hangul; Ethiopic; Georgian; Armenian.
        "\u{845b}\u{e0100}\u{57ce}",
        "\u{d55c}\u{ad6d}\u{c5b4}",
        "\u{12a0}\u{121b}\u{122d}\u{129b}",
        // Emoji: a family, a heart on fire, a firefighter with a skin tone, a subdivision's flag, a
        // keycap.
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{200d}\u{1f466}",
        "\u{2764}\u{fe0f}\u{200d}\u{1f525}",
        "\u{1f469}\u{1f3fd}\u{200d}\u{1f692}",
        "\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
        "1\u{fe0f}\u{20e3}",
    ];

    #[test]
    fn text__unneeded_variation_selectors_are_removed() {
        for (text, shown) in [
            ("pay\u{fe0f}pal", "paypal"),
            ("report\u{fe0f}.pdf", "report.pdf"),
            ("1\u{fe0f}2", "12"),
            ("a\u{fe00}b\u{fe01}c", "abc"),
            ("\u{2764}\u{fe0f}\u{fe0f}", "\u{2764}\u{fe0f}"),
            ("\u{2229}\u{fe00}", "\u{2229}\u{fe00}"),
        ] {
            assert_eq!(Untrusted::new(text).render(), shown, "{}", text.escape_unicode());
        }
    }

    #[test]
    fn text__many_joiners_render_in_linear_time() {
        // Searching back over the marks at each joiner would take hours.
        let text = format!("x{}", "\u{301}\u{200c}".repeat(1 << 20));
        assert_eq!(Untrusted::new(text).render().chars().count(), 1 + (1 << 20));
    }

    #[test]
    fn text__any_script_is_unchanged() {
        for text in SCRIPTS {
            assert_eq!(Untrusted::new(text).render(), text, "{}", text.escape_unicode());
            assert_eq!(Untrusted::new(text).escape(), text, "{}", text.escape_unicode());
        }
    }

    #[test]
    fn text__unneeded_invisible_characters_are_removed() {
        for (evil, shown) in [
            // Joiners in Latin, at an end, two in a row, between letters that join anyway.
            ("pay\u{200d}pal", "paypal"),
            ("pay\u{200c}pal", "paypal"),
            ("\u{200d}\u{1f468}\u{200d}", "\u{1f468}"),
            ("\u{1f468}\u{200d}\u{200d}\u{1f469}", "\u{1f468}\u{200d}\u{1f469}"),
            ("\u{1f468}\u{200d}a", "\u{1f468}a"),
            ("\u{628}\u{200d}\u{628}", "\u{628}\u{628}"),
            ("\u{200c}\u{645}\u{6cc}\u{200c}", "\u{645}\u{6cc}"),
            ("\u{915}\u{94d}\u{200d}\u{200d}\u{937}", "\u{915}\u{94d}\u{200d}\u{937}"),
            // A control between two joiners is dropped and is not context.
            ("\u{1820}\u{200d}\u{94d}\u{1}\u{200c}", "\u{1820}\u{94d}\u{200c}"),
            // Selectors that select nothing, or that encode bytes.
            ("\u{fe0f}a", "a"),
            ("a \u{fe0f}b", "a b"),
            ("\u{1f600}\u{fe01}\u{fe02}\u{fe03}", "\u{1f600}\u{fe01}"),
            ("a\u{e0100}b", "ab"),
            ("\u{845b}\u{e0100}\u{e0101}", "\u{845b}\u{e0100}"),
            ("a\u{180b}", "a"),
            // Tags outside a flag, without an end, of another kind, too many.
            ("hi\u{e0068}\u{e0069}\u{e007f}", "hi"),
            ("\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}", "\u{1f3f4}"),
            ("\u{1f3f4}\u{e0067}\u{e0020}\u{e0065}\u{e007f}", "\u{1f3f4}"),
            (
                "\u{1f3f4}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e007f}",
                "\u{1f3f4}",
            ),
            ("\u{1f600}\u{e0067}\u{e0062}\u{e0065}\u{e007f}", "\u{1f600}"),
            // Fillers, zero-width blanks, annotations, bidi, noncharacters.
            ("a\u{3164}\u{115f}\u{ffa0}\u{2060}\u{fff9}\u{061c}\u{fdd0}\u{1ffff}b", "ab"),
            ("a\u{ad}\u{34f}\u{17b4}\u{1d173}\u{e0001}\u{fff0}b", "ab"),
        ] {
            let text = Untrusted::new(evil);
            assert_eq!(text.render(), shown, "{}", evil.escape_unicode());
            assert!(text.escape().len() > shown.len(), "{}", text.escape());
        }
    }

    #[test]
    fn text__escape_prevents_log_injection() {
        let evil = Untrusted::new("x\n2026-01-01 INFO root logged in\u{1b}[1A\u{85}\"\\");
        assert_eq!(evil.escape(), "x\\n2026-01-01 INFO root logged in\\u{1b}[1A\\u{85}\\\"\\\\");
        assert_eq!(format!("{evil:?}"), format!("\"{}\"", evil.escape()));
    }

    #[test]
    fn text__harmless_json_decodes_to_same_text() {
        let text = "a\u{9b}b\u{202e}c\u{e0041}d\u{7f}e\n👍";
        let json = serde_json::to_string(text).unwrap();
        let harmless = harmless_json(&json);
        assert!(!harmless.contains(is_special), "{harmless}");
        assert_eq!(serde_json::from_str::<String>(&harmless).unwrap(), text);
        assert!(matches!(harmless_json("\"plain\""), Cow::Borrowed(_)));
    }
}
