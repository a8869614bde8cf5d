//! Worker processes, and what they say they executed.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::this_program;
use super::worker::Execution;
use crate::cli::hand_over;
use crate::{Connect, WorkerId};

/// A fleet that has not settled by then is not going to.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until so many workers answer, each is planned something, and every partition is owned
/// as planned.
pub(super) async fn as_planned(connect: &Connect, workers: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = crate::status(connect).await?;
        let answering: BTreeSet<_> = status.workers.iter().map(|report| &report.worker).collect();
        let planned: BTreeSet<_> =
            status.partitions.iter().filter_map(|p| p.planned.as_ref()).collect();
        let unlike = status.partitions.iter().filter(|p| p.owner != p.planned || !p.consumed);
        let unlike = unlike.count();
        if answering.len() == workers && planned == answering && unlike == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "the fleet did not settle: {} workers, {} in the plan, {unlike} partitions that \
                 are not owned as planned",
                answering.len(),
                planned.len()
            );
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// How the workers of a measurement work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) slots: u32,
    pub(super) task_ms: u64,
    /// Whether they tell what they execute.
    pub(super) tell: bool,
}

/// One worker process; killed when it is dropped.
pub(super) struct Process {
    pub(super) id: WorkerId,
    pub(super) child: Child,
}

impl Process {
    /// Its number on this machine.
    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the worker has ended")
    }

    /// As `kill -9`.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.start_kill().context("cannot kill a worker")
    }

    /// As `kill`: it drains.
    pub(super) fn terminate(&self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()?).context("a process number")?;
        let pid = rustix::process::Pid::from_raw(pid).context("a process number")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .context("cannot stop a worker")
    }
}

/// All executions so far, with who told of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(Arc<Mutex<Vec<(WorkerId, Execution)>>>);

impl Told {
    pub(super) fn all(&self) -> MutexGuard<'_, Vec<(WorkerId, Execution)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a worker process.
    pub(super) fn spawn(
        &self,
        connect: &Connect,
        id: &str,
        shape: Shape,
    ) -> anyhow::Result<Process> {
        let id = WorkerId::new(id)?;
        let mut command = Command::new(this_program()?);
        command
            .args(["bench-worker", "--id", id.as_str()])
            .args(["--slots", &shape.slots.to_string()])
            .args(["--task-ms", &shape.task_ms.to_string()])
            .args(["--log", "error,lapin=off", "--namespace", connect.namespace().as_str()])
            .stdin(Stdio::null())
            .stdout(if shape.tell { Stdio::piped() } else { Stdio::null() })
            .kill_on_drop(true);
        hand_over(connect, &mut command);
        if shape.tell {
            command.arg("--tell");
        }
        let mut child = command.spawn().context("cannot start a worker process")?;
        if let Some(stdout) = child.stdout.take() {
            let (told, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Some(execution) = Execution::from_line(&line) {
                        told.all().push((id.clone(), execution));
                    }
                }
            });
        }
        Ok(Process { id, child })
    }

    /// Overlaps between executions of a resource, and executions out of order
    /// that no redelivery explains.
    pub(super) fn violations(&self) -> u64 {
        let mut executions: Vec<Execution> = self.all().iter().map(|(_, e)| *e).collect();
        executions.sort_unstable_by_key(|e| (e.resource, e.start_us));
        let wrong = |pair: &&[Execution]| {
            let [before, after] = pair else { return false };
            before.resource == after.resource
                && (after.start_us < before.end_us
                    || (!after.redelivered && after.sequence != before.sequence + 1))
        };
        executions.windows(2).filter(wrong).count() as u64
    }
}
