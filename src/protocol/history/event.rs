//! What a worker records of the tasks it executes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::task::{Resource, TaskId};

/// What executes one task at a time: a slot of a worker. Workers of one name
/// are one worker here, so no two of them may run at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    /// The worker.
    pub worker: WorkerId,
    /// The slot, from 0. Without it the process is the worker as a whole, which
    /// is never busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
}

/// The start of one attempt at a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// The task.
    pub task: TaskId,
    /// What it touches.
    pub resource: Resource,
    /// Who executes it.
    #[serde(flatten)]
    pub process: Process,
    /// Where the resource belongs to.
    pub partition: PartitionId,
    /// Which try of the handler this is, from 1.
    pub attempt: u32,
    /// When it started, microseconds since 1970.
    pub at_us: u64,
    /// Who published the task; tasks without a producer count as one producer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// Position of the task among those of its producer on its resource, rising.
    /// Order is not checked without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Whether it may have been executed before: the broker flagged the delivery
    /// as redelivered, or the task was replayed.
    #[serde(default)]
    pub redelivered: bool,
}

/// The end of one attempt at a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The task.
    pub task: TaskId,
    /// What it touches.
    pub resource: Resource,
    /// Who executed it: the same as at its start.
    #[serde(flatten)]
    pub process: Process,
    /// When it ended, microseconds since 1970.
    pub at_us: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The task is done.
    Executed,
    /// The handler failed; the task is to be tried again.
    Failed,
    /// The worker stopped the handler; the task is to be tried again.
    Aborted,
    /// The task is put aside for good, with its reason.
    DeadLettered,
    /// Nobody knows how it ended, only that it no longer runs.
    Lost,
    /// It was not executed, since another copy of the task had been.
    Superseded,
}

/// What a worker records, or whoever watches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A process begins to execute a task.
    Started(Execution),
    /// A process stops executing a task.
    Ended(Ending),
    /// A worker is gone, and with it whatever it executed. A worker that is
    /// merely out of sight is not lost: what it still ends was never started.
    WorkerLost {
        /// The worker.
        worker: WorkerId,
        /// When it was gone, microseconds since 1970.
        at_us: u64,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Executed => "executed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::DeadLettered => "dead-lettered",
            Self::Lost => "lost",
            Self::Superseded => "superseded",
        })
    }
}

impl Outcome {
    /// Whether a handler was at it. Else it is the end of a task, or of a copy of one.
    #[must_use]
    pub const fn is_attempt(self) -> bool {
        match self {
            Self::Executed | Self::Failed | Self::Aborted | Self::Lost => true,
            Self::DeadLettered | Self::Superseded => false,
        }
    }
}

impl Event {
    /// When it happened, microseconds since 1970.
    #[must_use]
    pub const fn at_us(&self) -> u64 {
        match self {
            Self::Started(execution) => execution.at_us,
            Self::Ended(ending) => ending.at_us,
            Self::WorkerLost { at_us, .. } => *at_us,
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            Some(slot) => write!(f, "{}/{slot}", self.worker),
            None => self.worker.fmt(f),
        }
    }
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, process, attempt, .. } = self;
        write!(f, "task {task} on {process} from {}", TimeOfDay(self.at_us))?;
        match self.sequence {
            Some(sequence) => write!(f, " (attempt {attempt}, sequence {sequence})"),
            None => write!(f, " (attempt {attempt})"),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, resource, process, .. } = self;
        write!(f, "task {task} of resource {resource} on {process} at {}", TimeOfDay(self.at_us))
    }
}

/// Microseconds since 1970 as `12:00:01.000250Z`. The date is left out: both
/// sides of a violation are close in time, and JSON has it in full.
pub(in crate::protocol) struct TimeOfDay(pub(in crate::protocol) u64);

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        write!(f, "{hours:02}:{minutes:02}:{:02}.{micros:06}Z", seconds % 60)
    }
}
