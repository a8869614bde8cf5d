//! The command line of the comparison.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    comparison::cli::run().await
}
