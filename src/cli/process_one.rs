//! The first process of a container, which has to reap whatever its handlers leave behind.
//!
//! It runs the command as its only child, hands signals on to it, and ends as it does. The command
//! itself then is a process like any other, and waits for nobody's children but its own.

use std::io;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::signals::Signals;

/// Whether this process is that one.
pub(super) fn is_it() -> bool {
    std::process::id() == 1
}

/// Runs the command line in a child, until that has ended.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise())
}

async fn supervise() -> anyhow::Result<ExitCode> {
    // Before there is anybody who could end unnoticed.
    let mut ended = signal(SignalKind::child())?;
    let mut signals = Signals::listen()?;
    let child = Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).spawn()?;
    let child = Pid::from_raw(child.id().cast_signed());
    let child = child.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    loop {
        tokio::select! {
            kind = signals.next() => {
                // One that has just ended needs none.
                if let Some(signal) = Signal::from_named_raw(kind.as_raw_value()) {
                    kill_process(child, signal).ok();
                }
            }
            _ = ended.recv() => {
                if let Some(status) = reap(child)? {
                    return Ok(ExitCode::from(code(status)));
                }
            }
        }
    }
}

/// Reaps all that have ended; tells how the child has, if it is among them.
fn reap(child: Pid) -> io::Result<Option<WaitStatus>> {
    while let Some((pid, status)) = wait(WaitOptions::NOHANG)? {
        if pid == child {
            return Ok(Some(status));
        }
    }
    Ok(None)
}

/// The exit code that a shell would have for it.
fn code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
