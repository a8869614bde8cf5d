//! Standard output, whose reader may leave early (`keylane status | head`).

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Prints a line; that nobody reads any more is no error.
macro_rules! out {
    () => { out!("") };
    ($($words:tt)+) => { $crate::cli::output::line(format_args!($($words)+)) };
}

pub(super) fn line(words: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout().lock(), "{words}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("keylane: cannot write to standard output: {error}");
    }
}
