//! Ctrl-C and SIGTERM: the first asks for a clean end, the second does not.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of what was interrupted, as shells have it for SIGINT.
pub(super) const INTERRUPTED: u8 = 130;

/// Nobody asks twice in this time.
const SAME_CTRL_C: Duration = Duration::from_millis(200);

/// Runs `work` with a token that the first signal cancels; a second one drops it,
/// and with it everything it holds.
pub(super) async fn until_signalled<F>(
    clean_end: &'static str,
    work: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let shutdown = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let signals = async {
        first(&mut interrupt, &mut terminate).await;
        shutdown.cancel();
        eprintln!("keylane: {clean_end}; Ctrl-C again to leave at once");
        // Some launchers pass one Ctrl-C on twice.
        tokio::time::sleep(SAME_CTRL_C).await;
        for (before, kind) in
            [(&mut interrupt, SignalKind::interrupt()), (&mut terminate, SignalKind::terminate())]
        {
            // What came meanwhile is forgotten with the old one.
            if let Ok(anew) = signal(kind) {
                *before = anew;
            }
        }
        first(&mut interrupt, &mut terminate).await;
    };
    tokio::select! {
        result = work(shutdown.clone()) => result,
        () = signals => Ok(ExitCode::from(INTERRUPTED)),
    }
}

async fn first(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
