//! Texts of others: handlers, publishers.

use std::fmt::{self, Write};

/// Longest reason that is kept, in bytes. It travels in a header, which has to fit into a frame
/// with everything else.
pub const MAX_REASON_BYTES: usize = 4096;

/// Cuts a reason that is too long, and marks the cut.
pub fn cut_reason(reason: &mut String) {
    cut(reason, MAX_REASON_BYTES);
}

/// Cuts a text to at most `most` bytes and a mark.
pub(crate) fn cut(text: &mut String, most: usize) {
    let bytes = text.len();
    if bytes <= most {
        return;
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text.push_str(&format!("… (cut, it had {bytes} bytes)"));
}

/// A text in one line, as it may be printed and logged: line ends and what would steer a terminal
/// are escaped, as they are in JSON.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<'a>(pub &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, |_| false)
    }
}

/// A text as it may be printed, in several lines if it has them.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, |c| matches!(c, '\n' | '\t'))
    }
}

fn escape(f: &mut fmt::Formatter<'_>, text: &str, keeps: impl Fn(char) -> bool) -> fmt::Result {
    for c in text.chars() {
        match c {
            c if keeps(c) => f.write_char(c)?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c.is_control() || is_hidden(c) => write!(f, "\\u{:04x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    Ok(())
}

/// Ends of lines of Unicode, and marks that have text shown in another order than it is written.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters_and_marked() {
        let mut short = "x".repeat(MAX_REASON_BYTES);
        cut_reason(&mut short);
        assert_eq!(short.len(), MAX_REASON_BYTES);
        let mut long = format!("x{}", "ä".repeat(100_000));
        cut_reason(&mut long);
        assert!(long.starts_with("xä") && long.len() < MAX_REASON_BYTES + 64, "{}", long.len());
        assert!(long.ends_with("ä… (cut, it had 200001 bytes)"), "{long}");
    }

    #[test]
    fn no_text_steers_a_terminal_or_forges_a_line() {
        let text = "a\tb\nkönto \u{1b}[2J\r\u{9b}1m\u{202e}x";
        let printable = Printable(text).to_string();
        assert_eq!(printable, "a\tb\nkönto \\u001b[2J\\r\\u009b1m\\u202ex");
        let line = OneLine(text).to_string();
        assert_eq!(line, "a\\tb\\nkönto \\u001b[2J\\r\\u009b1m\\u202ex");
    }
}
