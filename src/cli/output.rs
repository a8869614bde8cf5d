//! Standard output, whose reader may leave early (`keylane status | head`).

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::protocol::text::Printable;

/// Something that was to be printed was not.
static INCOMPLETE: AtomicBool = AtomicBool::new(false);

/// Prints a line; that nobody reads any more is no error.
macro_rules! out {
    () => { out!("") };
    ($($words:tt)+) => { $crate::cli::output::line(format_args!($($words)+)) };
}

pub(super) fn line(words: Arguments<'_>) {
    // Whatever a part of it comes from.
    let words = words.to_string();
    let words = Printable(&words);
    if let Err(error) = writeln!(std::io::stdout().lock(), "{words}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        // Once is enough.
        if !INCOMPLETE.swap(true, Ordering::Relaxed) {
            eprintln!("keylane: cannot write to standard output: {error}");
        }
    }
}

/// How a command ends that ended so, apart from what it could not print.
pub(super) fn ended(code: ExitCode) -> ExitCode {
    let success = code == ExitCode::SUCCESS;
    if success && INCOMPLETE.load(Ordering::Relaxed) { ExitCode::FAILURE } else { code }
}
