//! Signals that end a process: the first asks for a clean end, the second does not.

use std::future::poll_fn;
use std::process::ExitCode;
use std::task::Poll;
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
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let signals = async {
        signals.next().await;
        shutdown.cancel();
        eprintln!("keylane: {clean_end}; Ctrl-C again to leave at once");
        // Some launchers pass one Ctrl-C on twice.
        tokio::time::sleep(SAME_CTRL_C).await;
        // What came meanwhile is forgotten with the old ones.
        if let Ok(anew) = Signals::listen() {
            signals = anew;
        }
        signals.next().await;
    };
    tokio::select! {
        result = work(shutdown.clone()) => result,
        () = signals => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// The signals that end a process which does not listen for them, and that somebody may send.
pub(super) struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        // Whoever asks for a clean end means us, however we were started.
        let always = [SignalKind::interrupt(), SignalKind::terminate()];
        let others = [
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::alarm(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        // `nohup` has SIGHUP ignored.
        let others = others.into_iter().filter(|kind| !is_ignored(*kind));
        let kinds = always.into_iter().chain(others);
        kinds.map(|kind| Ok((kind, signal(kind)?))).collect::<std::io::Result<_>>().map(Self)
    }

    /// The next of them.
    ///
    /// # Cancel safety
    /// None is lost.
    pub(super) async fn next(&mut self) -> SignalKind {
        poll_fn(|context| {
            for (kind, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*kind);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether whoever started us wants this signal to be ignored. Only Linux tells.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
