//! Wraps text to the width of a terminal.
//!
//! A terminal breaks a long line at its right edge and continues in the first column. Padded text
//! could then imitate another user's line. Wrapped lines fit the terminal, and all but the first are
//! indented, so that the terminal breaks none of them.

use unicode_width::UnicodeWidthChar as _;

/// The maximum width of a tab, in columns.
const TAB: usize = 8;
/// Narrower terminals are treated as this wide, because indentation does not fit into them.
const NARROWEST: usize = 20;

/// Wraps `text`, which begins after `used` columns, to `width` columns. Each line but the first is
/// indented by `indent` blanks, also after the newlines of the text. Words are not broken if they
/// fit.
pub(crate) fn wrap(text: &str, used: usize, indent: usize, width: usize) -> String {
    let width = width.max(NARROWEST);
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut column = used;
    let set_in = |out: &mut String| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent));
        indent
    };
    for (nth, line) in text.split('\n').enumerate() {
        if nth > 0 {
            column = set_in(&mut out);
        }
        for word in line.split_inclusive(' ') {
            let wide = columns(word.trim_end_matches(' '));
            // A word that is longer than a line is broken at the right edge.
            if column + wide > width && column > indent && indent + wide <= width {
                column = set_in(&mut out);
            }
            for c in word.chars() {
                let wide = columns_of(c);
                if column + wide > width {
                    column = set_in(&mut out);
                    if c == ' ' {
                        continue;
                    }
                }
                out.push(c);
                column += wide;
            }
        }
    }
    out
}

/// The width of text in columns, rounded up where terminals differ (joined emoji).
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

fn columns_of(c: char) -> usize {
    match c {
        '\t' => TAB,
        // It can make the preceding character two columns wide.
        '\u{fe0f}' => 1,
        c => c.width().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrap__lines_fit_terminal_and_are_indented() {
        let long = "x".repeat(61);
        let wide = "\u{4f60}\u{597d}".repeat(40);
        let spaces = format!("a{}12:00 bob: yes", " ".repeat(200));
        let emoji = "\u{2764}\u{fe0f}\u{1f44d}\u{1f3fd} ".repeat(30);
        let tabs = "\tx".repeat(30);
        for text in [&long, &wide, &spaces, &emoji, &tabs, "a\n\nb\n", "some words and more words"]
        {
            for width in [20, 21, 40, 80] {
                let wrapped = wrap(text, 11, 6, width);
                for (nth, line) in wrapped.split('\n').enumerate() {
                    let used = if nth == 0 { 11 } else { 0 };
                    assert!(used + columns(line) <= width, "{width}: {line:?}");
                    assert!(nth == 0 || line.starts_with("      "), "{width}: {line:?}");
                }
            }
        }
    }

    #[test]
    fn wrap__breaks_between_words_and_keeps_all_text() {
        assert_eq!(wrap("one two three", 10, 2, 20), "one two \n  three");
        assert_eq!(wrap("one", 10, 2, 20), "one");
        let long = "y".repeat(50);
        assert_eq!(wrap(&long, 0, 4, 20).replace(['\n', ' '], ""), long);
        assert_eq!(wrap("e\u{301}\u{5e9}\u{5dc}", 0, 0, 20), "e\u{301}\u{5e9}\u{5dc}");
    }
}
