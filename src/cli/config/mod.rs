//! Settings in one place: options, environment and a file, in this order; and `keylane
//! config`, which shows what is in force.

mod file;
mod resolve;
mod show;

use std::process::exit;

use clap::{CommandFactory, FromArgMatches};

pub(super) use self::show::Config;

use super::Args;

/// What the command line says, with what the environment and the file add. Ends the
/// process when that is wrong, or asks for help.
pub(super) fn parse() -> Args {
    let mut root = Args::command();
    root.build();
    let given: Vec<_> = std::env::args_os().collect();
    let matches = match resolve::resolve(&root, &given) {
        Ok(Ok(matches)) => matches,
        Ok(Err(error)) => error.exit(),
        Err(error) => {
            eprintln!("keylane: {error:#}");
            exit(WRONG_USAGE);
        }
    };
    Args::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut root).exit())
}

/// As the parser's own errors do.
const WRONG_USAGE: i32 = 2;
