//! One long-lived process.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::protocol::{Breach, MAX_ANSWER_BYTES, shown};
use crate::handler::exec::STDERR_GRACE;
use crate::handler::exec::group::Group;
use crate::handler::exec::tail::Tail;

/// A process that closes its stdout is about to exit, and one that exited left
/// all it wrote in the pipe: the other event is due at once.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// One read of stderr.
const CHUNK_BYTES: usize = 4096;

/// A process and its two pipes. Dropped, it is killed with its group.
#[derive(Debug)]
pub(super) struct Child {
    group: Group,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Arc<Mutex<Tail>>,
    /// Reads that, until it ends.
    copying: JoinHandle<()>,
}

impl Child {
    /// Starts the command, whose stdin and stdout are to be piped.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut group = Group::spawn(command)?;
        let child = group.child();
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(stdin), Some(stdout), Some(errors)) => {
                let stderr = Arc::default();
                let copying = tokio::spawn(copy(errors, Arc::clone(&stderr)));
                Ok(Self { group, stdin, stdout: BufReader::new(stdout), stderr, copying })
            }
            _ => Err(io::Error::other("stdin, stdout and stderr are not all piped")),
        }
    }

    /// The end of what it wrote to stderr since it was given its task.
    pub(super) fn stderr(&self) -> Option<String> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).lines()
    }

    /// Waits a little until all that it wrote to stderr is read, since it has ended.
    pub(super) async fn until_stderr_is_read(&mut self) {
        // What it left in the background may hold it open.
        timeout(STDERR_GRACE, &mut self.copying).await.ok();
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
        let Self { group, stdin, stdout, stderr, .. } = self;
        *stderr.lock().unwrap_or_else(PoisonError::into_inner) = Tail::default();
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

/// Hands on what a process writes to stderr to our own, and keeps the end of it.
async fn copy(mut errors: ChildStderr, tail: Arc<Mutex<Tail>>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(read @ 1..) = errors.read(&mut chunk).await {
        tail.lock().unwrap_or_else(PoisonError::into_inner).push(&chunk[..read]);
        // Ours may be closed.
        tokio::io::stderr().write_all(&chunk[..read]).await.ok();
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
