//! The demo's workers: processes of this very binary.

use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use crate::Connect;
use crate::cli::hand_over;

/// A drain takes as long as the running tasks: milliseconds. A worker that needs
/// longer than this hangs.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// All workers, those that have ended too. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Fleet {
    command: FleetCommand,
    members: Vec<Member>,
    executed: Arc<AtomicU64>,
    said: mpsc::UnboundedSender<String>,
}

/// How a worker is started.
#[derive(Debug)]
pub(super) struct FleetCommand {
    /// Arguments of the binary, without the name of the worker.
    pub(super) arguments: Vec<OsString>,
    /// The broker.
    pub(super) connect: Connect,
}

/// Number of a worker, from 1.
pub(super) type Number = usize;

#[derive(Debug)]
struct Member {
    child: Child,
    state: State,
    /// Held open: its end tells the worker that the coordinator is gone.
    _stdin: Option<ChildStdin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Working,
    Draining,
    Ended,
}

impl Fleet {
    /// No workers yet. Their words go to `said`, a line each.
    pub(super) fn new(command: FleetCommand, said: mpsc::UnboundedSender<String>) -> Self {
        Self { command, members: Vec::new(), executed: Arc::default(), said }
    }

    /// Tasks that all of them executed.
    pub(super) fn executed(&self) -> u64 {
        self.executed.load(Ordering::Relaxed)
    }

    /// Workers that take tasks.
    pub(super) fn working(&self) -> usize {
        self.members.iter().filter(|member| member.state == State::Working).count()
    }

    /// Starts one more worker.
    pub(super) fn join(&mut self) -> anyhow::Result<Number> {
        let number = self.members.len() + 1;
        let binary = std::env::current_exe().context("cannot find keylane's own binary")?;
        let mut command = Command::new(binary);
        command.args(&self.command.arguments).arg("--id").arg(format!("worker-{number}"));
        hand_over(&self.command.connect, &mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for the coordinator, which ends its workers itself.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a worker")?;
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(count(stdout, Arc::clone(&self.executed)));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(pass_on(stderr, number, self.said.clone()));
        }
        let stdin = child.stdin.take();
        self.members.push(Member { child, state: State::Working, _stdin: stdin });
        Ok(number)
    }

    /// Kills the newest worker with SIGKILL.
    pub(super) async fn kill(&mut self) -> anyhow::Result<Number> {
        let mut working = self.members.iter_mut().enumerate().rev();
        let found = working.find(|(_, member)| member.state == State::Working);
        let (index, member) = found.ok_or_else(|| anyhow!("no worker is left to be killed"))?;
        member.child.kill().await.context("cannot kill a worker")?;
        member.state = State::Ended;
        Ok(index + 1)
    }

    /// Tells the oldest worker to finish what it runs, and to leave.
    pub(super) fn drain(&mut self) -> anyhow::Result<Number> {
        let mut working = self.members.iter_mut().enumerate();
        let found = working.find(|(_, member)| member.state == State::Working);
        let (index, member) = found.ok_or_else(|| anyhow!("no worker is left to be drained"))?;
        member.terminate()?;
        Ok(index + 1)
    }

    /// Workers that have drained since the last call.
    ///
    /// # Errors
    /// When a worker ended by itself, or badly.
    pub(super) fn drained(&mut self) -> anyhow::Result<Vec<Number>> {
        let mut drained = Vec::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            if member.state == State::Ended {
                continue;
            }
            let Some(status) = member.child.try_wait().context("cannot watch a worker")? else {
                continue;
            };
            member.ended(index + 1, status)?;
            drained.push(index + 1);
        }
        Ok(drained)
    }

    /// Drains all workers and waits for their end.
    ///
    /// # Errors
    /// When one hangs or ends badly.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for member in self.members.iter_mut().filter(|member| member.state == State::Working) {
            member.terminate()?;
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            if member.state == State::Draining {
                let ended = tokio::time::timeout(DRAIN_TIMEOUT, member.child.wait()).await;
                let status = ended.with_context(|| format!("worker {} hangs", index + 1))?;
                member.ended(index + 1, status.context("cannot wait for a worker")?)?;
            }
        }
        Ok(())
    }
}

impl Member {
    fn terminate(&mut self) -> anyhow::Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            kill_process(id, Signal::TERM).context("cannot stop a worker")?;
        }
        self.state = State::Draining;
        Ok(())
    }

    fn ended(&mut self, number: Number, status: ExitStatus) -> anyhow::Result<()> {
        let before = std::mem::replace(&mut self.state, State::Ended);
        if before == State::Draining && status.success() {
            return Ok(());
        }
        Err(anyhow!("worker {number} ended by itself, with {status}"))
    }
}

/// Counts the bytes that a worker writes, one per task.
async fn count(mut stdout: ChildStdout, executed: Arc<AtomicU64>) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = stdout.read(&mut bytes).await {
        executed.fetch_add(read as u64, Ordering::Relaxed);
    }
}

async fn pass_on(stderr: ChildStderr, number: Number, said: mpsc::UnboundedSender<String>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // Nobody listens any more when the demo ends.
        said.send(format!("worker {number}: {line}")).ok();
    }
}
