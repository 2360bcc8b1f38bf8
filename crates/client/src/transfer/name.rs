//! Makes a file name from another user harmless for this machine's disk.

use twinlock_core::text::Untrusted;

/// Maximum length of a name in bytes, which nearly every file system allows.
const MAX: usize = 255;
/// Maximum length in bytes, with its dot, of an extension that is kept when a name is truncated.
const MAX_ENDING: usize = 16;
/// Maximum number of directories above a file.
pub const DEEPEST: usize = 32;
/// The name if nothing of the original is left.
const NAMELESS: &str = "file";
/// Names that are devices on Windows, with any extension.
const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];

/// The last component of `name` as a harmless name of 1 to 255 bytes, in any script.
///
/// Removes what controls a terminal, hides a file, looks like an option, or is a device on some
/// system.
#[must_use]
pub fn harmless(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default();
    // Removes control and invisible characters; line ends and tabs become spaces.
    let shown = Untrusted::new(last).render_line();
    let ended = shown.trim_end_matches(is_dropped);
    let body = ended.trim_start_matches(|c: char| c == '-' || is_dropped(c));
    let hides = body.len() < ended.len();
    // Truncates before the check: the rest may be the name of a device. Renders again: a joiner
    // stays only with both of its sides.
    let mut safe = Untrusted::new(cut(body, if hides { MAX - 1 } else { MAX })).render_line();
    if hides || is_device(&safe) {
        safe = format!("_{}", cut(&safe, MAX - 1));
    }
    match safe.as_str() {
        "" | "_" => NAMELESS.to_owned(),
        _ => safe,
    }
}

/// The directories in `path`, each made [harmless]. None is empty or leads upwards, and there are
/// at most [`DEEPEST`].
#[must_use]
pub fn below(path: &str) -> Vec<String> {
    let parts = path.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | ".."));
    parts.take(DEEPEST).map(harmless).collect()
}

/// Whether some file systems drop this character at the end of a name.
fn is_dropped(c: char) -> bool {
    c == '.' || c.is_whitespace()
}

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let port = stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT"));
    let is_port = |n: &str| matches!(n.chars().next(), Some('0'..='9' | '¹' | '²' | '³'));
    DEVICES.contains(&stem.as_str()) || port.is_some_and(|n| n.chars().count() == 1 && is_port(n))
}

/// Truncates to at most `most` bytes and keeps the extension.
fn cut(name: &str, most: usize) -> String {
    if name.len() <= most {
        return name.to_owned();
    }
    let ending = name.rfind('.').and_then(|at| name.get(at..)).unwrap_or_default();
    let ending = if ending.len() <= MAX_ENDING { ending } else { "" };
    let end = name.floor_char_boundary(most - ending.len());
    let stem = name.get(..end).unwrap_or_default().trim_end_matches(is_dropped);
    format!("{stem}{ending}")
}

/// Inserts `mark` before the extension: `report.pdf` and `12` give `report-12.pdf`.
#[must_use]
pub fn marked(name: &str, mark: &str) -> String {
    let at = name.rfind('.').filter(|at| *at > 0).unwrap_or(name.len());
    let (stem, ending) = name.split_at(at);
    let ending = if ending.len() <= MAX_ENDING { ending } else { "" };
    let room = MAX.saturating_sub(ending.len() + mark.len() + 1);
    let stem = stem.get(..stem.floor_char_boundary(room)).unwrap_or_default();
    Untrusted::new(format!("{stem}-{mark}{ending}")).render_line()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name__is_reduced_to_harmless_last_component() {
        for (evil, safe) in [
            ("../../x", "x"),
            ("/etc/passwd", "passwd"),
            ("..\\..\\boot.ini", "boot.ini"),
            ("dir/", "dir"),
            (".ssh", "_ssh"),
            ("...", "file"),
            ("..", "file"),
            ("", "file"),
            ("/", "file"),
            ("-rf", "_rf"),
            (" .x", "_x"),
            ("CON", "_CON"),
            ("nul.txt", "_nul.txt"),
            ("com1", "_com1"),
            ("LPT\u{b9}.log", "_LPT\u{b9}.log"),
            ("Com10", "Com10"),
            ("console", "console"),
            ("a.txt. . ", "a.txt"),
            ("a\u{1b}[2Jb\nc\0d\u{7f}", "a[2Jb cd"),
            ("gpj.\u{202e}exe", "gpj.exe"),
            ("\u{200b}\u{feff}", "file"),
        ] {
            assert_eq!(harmless(evil), safe, "{evil:?}");
        }
    }

    #[test]
    fn file_name__path_becomes_harmless_relative_directories() {
        let below = |path: &str| below(path).join("/");
        assert_eq!(below("logs/2026-11"), "logs/2026-11");
        assert_eq!(below("../../etc/./cron.d//x"), "etc/cron.d/x");
        assert_eq!(below("/.ssh/-rf/con"), "_ssh/_rf/_con");
        assert_eq!(below("..\\up\u{1b}[2J"), "up[2J");
        assert_eq!(below(""), "");
        assert_eq!(below(&"a/".repeat(100)).split('/').count(), DEEPEST);
    }

    #[test]
    fn file_name__ordinary_names_of_any_script_are_unchanged() {
        for name in
            ["a", "report (1).pdf", "Übung.tar.gz", "レポート.txt", "דוח.pdf", "👍🏽.png", "a:b?"]
        {
            assert_eq!(harmless(name), name);
        }
        // Joiners that the script or the emoji needs.
        for name in ["\u{645}\u{6cc}\u{200c}\u{62e}.txt", "\u{1f468}\u{200d}\u{1f469}.png"] {
            assert_eq!(harmless(name), name);
        }
        // And no joiner that lost one of its sides when the name was truncated or marked.
        let long = format!("{}\u{645}\u{6cc}\u{200c}\u{62e}", "x".repeat(248));
        assert_eq!(harmless(&long), format!("{}\u{645}\u{6cc}", "x".repeat(248)));
        assert_eq!(marked("\u{6cc}\u{200c}", "2"), "\u{6cc}-2");
    }

    #[test]
    fn file_name__truncated_between_characters_keeping_extension() {
        for name in ["é".repeat(200) + ".tar.gz", "x".repeat(300), "語".repeat(85) + ".txt"] {
            let safe = harmless(&name);
            assert!(safe.len() <= MAX, "{}", safe.len());
            assert!(safe.len() > MAX - 4, "{}", safe.len());
            assert_eq!(
                name.rfind('.').map(|at| &name[at..]),
                safe.rfind('.').map(|at| &safe[at..])
            );
        }
        assert_eq!(harmless(&"y".repeat(255)), "y".repeat(255));
    }

    #[test]
    fn file_name__checks_apply_after_truncation() {
        let blanks = |blank: &str| format!("CON{}x", blank.repeat(300));
        assert_eq!(harmless(&blanks(" ")), "_CON");
        assert_eq!(harmless(&blanks("\u{a0}")), "_CON");
        let device = format!("nul.{}", "x".repeat(251));
        assert_eq!(harmless(&device), format!("_{}", &device[..254]));
        assert_eq!(harmless(&format!("{}\u{3000}x", "x".repeat(252))), "x".repeat(252));
        assert_eq!(harmless(&format!("-{}", "x".repeat(255))), format!("_{}", "x".repeat(254)));
    }

    #[test]
    fn file_name__mark_is_inserted_before_extension_and_fits() {
        assert_eq!(marked("report.pdf", "12"), "report-12.pdf");
        assert_eq!(marked("README", "12"), "README-12");
        let long = "é".repeat(126) + ".md";
        assert!(marked(&long, "lobby-12").len() <= MAX);
        assert!(marked(&long, "lobby-12").ends_with("-lobby-12.md"));
    }
}
