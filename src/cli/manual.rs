//! `keylane completions` and `keylane man`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Args;

/// Print a script that completes commands and options in a shell
///
/// For bash: `keylane completions bash >~/.local/share/bash-completion/completions/keylane`
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Args::command(), "keylane", &mut script);
        write(&script)
    }
}

/// Print the manual page, or write one for each command into a folder
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// Write `keylane.1`, `keylane-work.1` and so on into this folder
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        if let Some(folder) = &self.out {
            std::fs::create_dir_all(folder)
                .and_then(|()| clap_mangen::generate_to(Args::command(), folder))
                .with_context(|| format!("cannot write to {}", folder.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(Args::command()).render(&mut page)?;
        write(&page)
    }
}

/// To standard output, whose reader may leave early.
fn write(text: &[u8]) -> anyhow::Result<ExitCode> {
    match std::io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
