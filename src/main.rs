//! The `keylane` command: parse, wire, run.

use std::process::ExitCode;

fn main() -> ExitCode {
    keylane::cli::main()
}
