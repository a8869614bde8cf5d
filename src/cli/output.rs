//! Standard output, whose reader may leave early (`keylane status | head`).

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that was to be printed was not.
static INCOMPLETE: AtomicBool = AtomicBool::new(false);

/// Prints a line; that nobody reads any more is no error.
macro_rules! out {
    () => { out!("") };
    ($($words:tt)+) => { $crate::cli::output::line(format_args!($($words)+)) };
}

pub(super) fn line(words: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout().lock(), "{words}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        // Once is enough.
        if !INCOMPLETE.swap(true, Ordering::Relaxed) {
            eprintln!("keylane: cannot write to standard output: {error}");
        }
    }
}

/// A text of somebody else's as it may be printed: what would steer a terminal is escaped.
pub(super) fn printable(text: &str) -> String {
    escaped(text, &['\n', '\t'])
}

/// The same, in one line.
pub(super) fn in_line(text: &str) -> String {
    escaped(text, &[])
}

fn escaped(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() && !kept.contains(&c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// How a command ends that ended so, apart from what it could not print.
pub(super) fn ended(code: ExitCode) -> ExitCode {
    let success = code == ExitCode::SUCCESS;
    if success && INCOMPLETE.load(Ordering::Relaxed) { ExitCode::FAILURE } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_steers_a_terminal() {
        assert_eq!(
            printable("a\tb\nkönto \u{1b}[2J\r\u{9b}1m"),
            "a\tb\nkönto \\u{1b}[2J\\r\\u{9b}1m"
        );
        assert_eq!(in_line("l'été\n\t\u{1b}"), "l'été\\n\\t\\u{1b}");
    }
}
