//! All that the page and `keylane top` show, at one moment: one value, made by
//! the view of it, and the only thing that either is fed with.

use serde::Serialize;

use crate::protocol::history::Outcome;
use crate::protocol::ownership::{Weight, WorkerId};
use crate::protocol::partition::{PartitionId, Topology};
use crate::protocol::steering::Scope;
use crate::protocol::task::{Resource, TaskId};

/// How a namespace is and what went on in it lately. Times ending in `_us` are
/// microseconds since 1970.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// When it was taken, by the clock of whoever looks.
    pub at_us: u64,
    /// The namespace.
    pub namespace: String,
    /// Its layout.
    pub topology: Topology,
    /// Whether the broker answers.
    pub broker: BrokerState,
    /// All of it in one line.
    pub verdict: Verdict,
    /// Sums.
    pub totals: Totals,
    /// The fleet, by name.
    pub workers: Vec<WorkerRow>,
    /// All partitions.
    pub partitions: Partitions,
    /// Partitions with tasks that nobody gets on with.
    pub stuck: Vec<Stuck>,
    /// Tasks that have run for more than half of the time that they have, the longest first.
    pub late: Vec<Late>,
    /// How many there are of these, as far as it is known.
    pub late_total: usize,
    /// The last changes of owner, newest first.
    pub handovers: Vec<HandOver>,
    /// The last minutes.
    pub history: History,
    /// The resources that kept workers busiest lately, busiest first.
    pub hot: Vec<HotResource>,
    /// Resources whose task failed and is to be tried again, newest first.
    pub retrying: Vec<Retrying>,
    /// How many there are of these.
    pub retrying_total: usize,
    /// What operators have paused: everything, partitions, resources.
    pub paused: Vec<Paused>,
    /// The last attempts, newest first.
    pub recent: Vec<Execution>,
}

/// Whether the broker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BrokerState {
    /// Whether it does.
    pub connected: bool,
    /// Since when.
    pub since_us: u64,
    /// Why not.
    pub error: Option<String>,
}

/// All of it in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In one word.
    pub state: Flow,
    /// In some words.
    pub text: String,
}

/// How work goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Flow {
    /// Tasks are executed.
    Flowing,
    /// Tasks run or wait for another attempt, and none has ended lately.
    Waiting,
    /// There is nothing to do.
    Idle,
    /// Tasks wait that nobody gets on with.
    Stuck,
    /// The broker does not answer: everything else is as it was last seen.
    Lost,
}

/// Sums over the namespace.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Totals {
    /// Tasks that wait on the broker.
    pub ready: u64,
    /// Deliveries at workers that are not settled.
    pub unsettled: u64,
    /// Tasks that run.
    pub running: u64,
    /// Tasks that run at once, at the most.
    pub slots: u64,
    /// Tasks that wait for a router.
    pub inbox: u32,
    /// Whether a router takes them.
    pub routed: bool,
    /// Dead letters.
    pub dead: u32,
    /// Whether the journal has been read, so that the next two are known.
    pub rates_known: bool,
    /// Tasks executed a second, over the last ten.
    pub executed_per_s: f64,
    /// Attempts that failed a second, over the last ten.
    pub failed_per_s: f64,
    /// Changes of owner since this was started.
    pub handovers: u64,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerRow {
    /// Its name.
    pub worker: WorkerId,
    /// Its share of the partitions, relative to the others.
    pub weight: Weight,
    /// Tasks that it runs at once, at the most.
    pub slots: u32,
    /// Tasks that it runs now.
    pub running: u32,
    /// Deliveries that it has not settled.
    pub unsettled: u32,
    /// Partitions that are its own.
    pub owned: u32,
    /// Partitions that it is planned to own.
    pub planned: u32,
    /// Tasks executed since it started.
    pub executed: u64,
    /// Attempts that failed since it started.
    pub failed: u64,
    /// Tasks dead-lettered since it started.
    pub dead_lettered: u64,
    /// Tasks executed a second, lately.
    pub executed_per_s: f64,
    /// How long it has been running, in milliseconds.
    pub uptime_ms: u64,
    /// When it was heard of last.
    pub seen_us: u64,
    /// Whether it has left several questions unanswered.
    pub silent: bool,
}

/// All partitions: a column each, so that a thousand of them stay small.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Partitions {
    /// The owner's place among the workers; -1 if there is none.
    pub owner: Vec<i32>,
    /// The place of the worker that should own it, by the plan; -1 if there is none.
    pub planned: Vec<i32>,
    /// The places of those that stand in its line, the first three: owner and standbys.
    pub line: Vec<Vec<i32>>,
    /// Tasks that wait on the broker.
    pub ready: Vec<u32>,
    /// Deliveries that are not settled.
    pub unsettled: Vec<u32>,
    /// Tasks that run.
    pub running: Vec<u32>,
    /// Whether anybody consumes it.
    pub consumed: Vec<bool>,
}

/// A partition with tasks that nobody gets on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stuck {
    /// Which.
    pub partition: PartitionId,
    /// Tasks that wait there.
    pub ready: u32,
    /// Since when.
    pub since_us: u64,
    /// Why, in one word.
    pub why: StuckBecause,
    /// Why, and what to do about it.
    pub reason: String,
}

/// A task that has run for more than half of the time that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Late {
    /// Which.
    pub task: TaskId,
    /// What it touches.
    pub resource: Resource,
    /// Where that belongs to.
    pub partition: PartitionId,
    /// Who runs it.
    pub worker: WorkerId,
    /// Which try, from 1.
    pub attempt: u32,
    /// For how long it has run, in milliseconds.
    pub for_ms: u64,
    /// When it is given up, in milliseconds from its start.
    pub timeout_ms: u64,
}

/// Why nobody gets on with a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StuckBecause {
    /// Nobody consumes it.
    Unowned,
    /// The broker hands its tasks to no worker that answers.
    StandsStill,
    /// Its window is full of one resource.
    HeldUp,
}

/// A partition got another owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HandOver {
    /// When that was seen.
    pub at_us: u64,
    /// Which.
    pub partition: PartitionId,
    /// The owner before; `None` if there was none.
    pub from: Option<WorkerId>,
    /// The owner now; `None` if there is none.
    pub to: Option<WorkerId>,
}

/// The last minutes, oldest first, from the journal.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct History {
    /// The second, since 1970, that the first place is of.
    pub from_s: u64,
    /// Tasks executed in each second.
    pub executed: Vec<u32>,
    /// Attempts that failed.
    pub failed: Vec<u32>,
    /// Tasks dead-lettered.
    pub dead_lettered: Vec<u32>,
    /// So many seconds are one place of the columns below.
    pub slice_s: u64,
    /// What half of the executions took at the most, in microseconds.
    pub p50_us: Vec<Option<u64>>,
    /// What 19 of 20 took at the most.
    pub p95_us: Vec<Option<u64>>,
}

/// A resource that keeps workers busy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HotResource {
    /// Which.
    pub resource: Resource,
    /// Its partition.
    pub partition: PartitionId,
    /// Who executed its last task.
    pub worker: WorkerId,
    /// Attempts at its tasks, a second.
    pub per_s: f64,
    /// The part of the time in which one of its tasks ran: at 1 it cannot go any
    /// faster, since they run one after another.
    pub busy: f64,
    /// What an attempt took on average, in microseconds.
    pub mean_us: u64,
}

/// A resource whose task failed and is to be tried again. It holds up nothing
/// else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retrying {
    /// Which.
    pub resource: Resource,
    /// The task.
    pub task: TaskId,
    /// The partition.
    pub partition: PartitionId,
    /// Who tried last.
    pub worker: WorkerId,
    /// Which try of this owner failed, from 1.
    pub attempt: u32,
    /// When the first of those that were seen failed.
    pub since_us: u64,
    /// When the last one failed.
    pub failed_us: u64,
    /// Why.
    pub reason: Option<String>,
}

/// Nothing of it is started for the time being.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// What.
    pub scope: Scope,
    /// Who has paused it.
    pub by: String,
    /// Since when, by their clock.
    pub since_us: u64,
}

/// An attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Execution {
    /// The task.
    pub task: TaskId,
    /// What it touches.
    pub resource: Resource,
    /// Where that belongs to.
    pub partition: PartitionId,
    /// Who made it.
    pub worker: WorkerId,
    /// Which try, from 1.
    pub attempt: u32,
    /// When it began, by the worker's clock.
    pub at_us: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it was Executed.
    pub reason: Option<String>,
}
