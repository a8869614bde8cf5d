//! Cleaning up, whatever happens to this process.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a clean-up may hold up its owner: Docker takes a second to remove a
/// container, ten and more when its disk is busy, and a cluster has three. The
/// clean-up itself is not cut short.
const REAP_TIMEOUT: Duration = Duration::from_secs(180);

/// Pause between two looks whether the clean-up is done; it takes 300 ms or more.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A `sh` that runs a clean-up script once this value is dropped or this process
/// is gone: SIGKILL, `process::exit` and statics, which are never dropped,
/// included.
///
/// It waits for the end of its standard input. Only this process holds the
/// other end (it is close-on-exec), so the kernel closes it with the process. It
/// is in a process group of its own, out of reach of Ctrl-C, and ignores the
/// signals that end a session.
#[derive(Debug)]
pub(crate) struct Reaper {
    shell: Child,
    /// `None` once the clean-up was asked for.
    lifeline: Option<ChildStdin>,
}

impl Reaper {
    /// Runs `script` at the end, with `arguments` as `$1` and so on, and in
    /// `$told` the first line that [`Reaper::tell`] handed over (or nothing).
    pub(crate) fn new(script: &str, arguments: &[&str]) -> io::Result<Self> {
        let script = format!("trap '' HUP INT TERM\nread -r told\ncat >/dev/null\n{script}");
        let mut shell = Command::new("sh")
            .args(["-c", &script, "keylane-reaper"])
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::piped())
            // Not ours: whoever reads our output would wait for the reaper too.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let lifeline = shell.stdin.take();
        Ok(Self { shell, lifeline })
    }

    /// Hands over a line that was not known at the start.
    pub(crate) fn tell(&mut self, line: &str) -> io::Result<()> {
        match &mut self.lifeline {
            Some(lifeline) => writeln!(lifeline, "{line}"),
            None => Ok(()),
        }
    }

    /// Runs the clean-up now, and waits for it. Nothing happens the second time.
    pub(crate) fn reap(&mut self) -> io::Result<()> {
        if self.lifeline.take().is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + REAP_TIMEOUT;
        loop {
            match self.shell.try_wait()? {
                Some(status) => return success(status),
                None if Instant::now() >= deadline => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut));
                }
                None => thread::sleep(POLL_INTERVAL),
            }
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Err(error) = self.reap() {
            tracing::warn!(%error, "cleaning up failed");
        }
    }
}

fn success(status: ExitStatus) -> io::Result<()> {
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("clean-up: {status}"))) }
}
