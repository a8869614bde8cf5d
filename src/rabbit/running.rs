//! What workers tell of the tasks that they execute now.

use serde::{Deserialize, Serialize};

use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::task::{Resource, TaskId};

/// Somebody executes a task now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Found {
    /// Who.
    pub worker: WorkerId,
    /// What.
    #[serde(flatten)]
    pub running: RunningTask,
}

impl Found {
    /// This worker executes it.
    pub(crate) fn new(worker: WorkerId, running: RunningTask) -> Self {
        Self { worker, running }
    }
}

/// What a worker executes now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningTasks {
    /// Which.
    pub(crate) worker: WorkerId,
    /// Its tasks, those that have run for the longest first; [`RunningTasks::MOST`] of them.
    pub(crate) running: Vec<RunningTask>,
    /// How many more there are.
    pub(crate) more: u32,
}

impl RunningTasks {
    /// Some hundred kilobytes: who hangs is among the oldest.
    pub(crate) const MOST: usize = 1_000;
}

/// A task that is being executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// The task.
    pub task: TaskId,
    /// What it touches.
    pub resource: Resource,
    /// Where the resource belongs to.
    pub partition: PartitionId,
    /// Which try of this owner, from 1.
    pub attempt: u32,
    /// Since when, microseconds since 1970 by the worker's clock.
    pub since_us: u64,
    /// For how long, in microseconds: clocks of two machines are not compared.
    #[serde(default)]
    pub age_us: u64,
    /// Number of the worker's slot, from 0.
    #[serde(default)]
    pub slot: u32,
}

/// A task that has been running for longer than the others of its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LongRunning {
    /// Which.
    #[serde(flatten)]
    pub running: RunningTask,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// When it is given up, in milliseconds from its start; `None` for never.
    pub timeout_ms: Option<u64>,
}

impl LongRunning {
    /// An attempt that goes on.
    pub(crate) fn new(running: RunningTask, for_ms: u64, timeout_ms: Option<u64>) -> Self {
        Self { running, for_ms, timeout_ms }
    }

    /// Whether more than half of its time is over.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.timeout_ms.is_some_and(|timeout_ms| self.for_ms > timeout_ms / 2)
    }
}
