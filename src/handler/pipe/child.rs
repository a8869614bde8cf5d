//! One long-lived process.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::protocol::{Breach, MAX_ANSWER_BYTES, shown};
use crate::handler::exec::group::Group;

/// A process that closes its stdout is about to exit, and one that exited left
/// all it wrote in the pipe: the other event is due at once.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// A process and its two pipes. Dropped, it is killed with its group.
#[derive(Debug)]
pub(super) struct Child {
    group: Group,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Child {
    /// Starts the command, whose stdin and stdout are to be piped.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut group = Group::spawn(command)?;
        match (group.child().stdin.take(), group.child().stdout.take()) {
            (Some(stdin), Some(stdout)) => {
                Ok(Self { group, stdin, stdout: BufReader::new(stdout) })
            }
            _ => Err(io::Error::other("stdin and stdout are not both piped")),
        }
    }

    /// It waits for its next task: it is alive, as far as its stdout tells, and
    /// has written nothing that could pass for the next answer.
    pub(super) fn is_quiet(&self) -> bool {
        // The runtime may not have heard of it yet, so the pipe itself is asked.
        let mut pipe = [PollFd::new(self.stdout.get_ref(), PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.stdout.buffer().is_empty() && matches!(poll(&mut pipe, Some(&at_once)), Ok(0))
    }

    /// Hands over a task and returns the line of the answer.
    ///
    /// # Cancel safety
    /// None: drop the child along with the future.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, Breach> {
        let Self { group, stdin, stdout } = self;
        let talk = async {
            // At once: a process may fill its pipe before it empties ours. Why
            // there is no answer says more than why it could not be asked.
            let ask = async { Ok(stdin.write_all(request).await) };
            let (asked, line) = tokio::try_join!(ask, answer(stdout))?;
            asked.map(|()| line).map_err(Breach::Unread)
        };
        tokio::pin!(talk);
        let (line, status) = tokio::select! {
            biased;
            line = &mut talk => (line, None),
            status = group.child().wait() => {
                let status = status.map_err(Breach::Io)?;
                // It may have answered just before; what it left in the
                // background may hold its stdout open.
                let line = timeout(EXIT_GRACE, talk).await.unwrap_or(Err(Breach::Closed));
                (line, Some(status))
            }
        };
        match (line, status) {
            (Err(Breach::Closed), Some(status)) => Err(Breach::Ended(status)),
            (Err(Breach::Closed), None) => Err(closed(group).await),
            (line, _) => line,
        }
    }
}

/// What it means that stdout is closed: that the process ends, most likely.
async fn closed(group: &mut Group) -> Breach {
    match timeout(EXIT_GRACE, group.child().wait()).await {
        Ok(Ok(status)) => Breach::Ended(status),
        Ok(Err(error)) => Breach::Io(error),
        Err(_) => Breach::Closed,
    }
}

/// The next line of at most [`MAX_ANSWER_BYTES`].
async fn answer(stdout: &mut BufReader<ChildStdout>) -> Result<Vec<u8>, Breach> {
    let mut line = Vec::new();
    let mut bounded = stdout.take(MAX_ANSWER_BYTES as u64);
    bounded.read_until(b'\n', &mut line).await.map_err(Breach::Io)?;
    match line.last() {
        Some(b'\n') => Ok(line),
        _ if line.len() >= MAX_ANSWER_BYTES => Err(Breach::TooLong { start: shown(&line) }),
        _ => Err(Breach::Closed),
    }
}
