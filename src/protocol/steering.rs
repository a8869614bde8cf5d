//! What operators have ordered: which resources and partitions are paused, and
//! which tasks are cancelled.
//!
//! Orders stand in a log, one after another. Each [`Order`] carries the state
//! that its writer knew ([`Order::before`], after the order at [`Order::base`])
//! and what it changes. So the last order of the log is enough to begin with:
//! whatever came between its base and itself was written at the same time, is
//! read as well, and is not lost. [`Ledger`] does that, for whoever reads.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::lanes::Paused;
use super::ownership::WorkerId;
use super::partition::{PartitionId, Topology};
use super::task::{Resource, TaskId};

/// What is paused, or resumed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All partitions.
    All,
    /// One partition.
    Partition(PartitionId),
    /// One resource.
    Resource(Resource),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Partition(partition) => write!(f, "partition {partition}"),
            Self::Resource(resource) => write!(f, "resource {resource}"),
        }
    }
}

/// Who ordered something, and when.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Signature {
    /// Who: any text, by convention `user@host`.
    pub by: String,
    /// When, milliseconds since 1970, by their clock.
    pub at_ms: u64,
}

/// A task is never to be started any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cancellation {
    /// Whose order it is.
    #[serde(flatten)]
    pub ordered: Signature,
    /// When it is forgotten, milliseconds since 1970.
    pub until_ms: u64,
    /// Whether its handler is aborted if it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abort: bool,
}

impl Cancellation {
    /// Why the task goes to the dead letters.
    #[must_use]
    pub fn reason(&self) -> String {
        format!("{CANCELLED_BY}{}", self.ordered.by)
    }
}

/// How the reason of a dead letter begins that was cancelled.
pub const CANCELLED_BY: &str = "cancelled by ";

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Steering {
    /// Everything is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<Signature>,
    /// The partitions that are paused, each by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partitions: BTreeMap<PartitionId, Signature>,
    /// The resources that are paused, each by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<Resource, Signature>,
    /// The tasks that are cancelled.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cancelled: BTreeMap<TaskId, Cancellation>,
}

/// What an order changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// Nothing: the first order of a log, so that there is one.
    Nothing,
    /// Start nothing of this.
    Pause(Scope),
    /// Start it again. `All` lifts every pause, of partitions and resources too.
    Resume(Scope),
    /// Never start these tasks.
    Cancel {
        /// Which.
        tasks: Vec<TaskId>,
        /// When that is forgotten, milliseconds since 1970.
        until_ms: u64,
        /// Whether the handler of one that runs is aborted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        abort: bool,
    },
    /// They may start after all.
    Reinstate {
        /// Which.
        tasks: Vec<TaskId>,
    },
    /// A worker is to leave. Changes nothing that is in force: who reads it later
    /// has nothing to do with it.
    Drain {
        /// Which.
        worker: WorkerId,
        /// The queue that is told of it.
        reply_to: String,
    },
}

/// An order that cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SteeringError {
    /// Too many resources are paused.
    #[error(
        "{most} resources are paused already, which is the most: resume some, or pause partitions",
        most = Steering::MAX_RESOURCES
    )]
    TooManyResources,
    /// Too many tasks are cancelled.
    #[error(
        "more than {most} tasks would be cancelled at once, which is the most: some are forgotten with time",
        most = Steering::MAX_CANCELLED
    )]
    TooManyCancelled,
}

impl Steering {
    /// The most resources that are paused by themselves. Every order repeats them.
    pub const MAX_RESOURCES: usize = 1_000;
    /// The most tasks that are cancelled and not forgotten. Every order repeats
    /// them.
    pub const MAX_CANCELLED: usize = 10_000;

    /// Whether nothing is paused and nothing cancelled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// Whether an order would change anything.
    ///
    /// # Errors
    /// When there would be too much to remember.
    pub fn would_change(
        &self,
        change: &Change,
        ordered: &Signature,
    ) -> Result<bool, SteeringError> {
        let mut after = self.clone();
        after.apply(change, ordered);
        if after.resources.len() > Self::MAX_RESOURCES {
            return Err(SteeringError::TooManyResources);
        }
        if after.cancelled.len() > Self::MAX_CANCELLED {
            return Err(SteeringError::TooManyCancelled);
        }
        // That time has passed is no change.
        let mut before = self.clone();
        before.forget(ordered.at_ms);
        Ok(after != before)
    }

    /// Follows an order. Total, and the same for whoever reads it: time passes by
    /// the clock of who ordered.
    pub fn apply(&mut self, change: &Change, ordered: &Signature) {
        self.forget(ordered.at_ms);
        let signed = || ordered.clone();
        match change {
            Change::Nothing | Change::Drain { .. } => {}
            Change::Pause(scope) => match scope {
                Scope::All => drop(self.all.get_or_insert_with(signed)),
                Scope::Partition(partition) => {
                    self.partitions.entry(*partition).or_insert_with(signed);
                }
                Scope::Resource(resource) => {
                    self.resources.entry(resource.clone()).or_insert_with(signed);
                }
            },
            Change::Resume(scope) => match scope {
                Scope::All => {
                    self.all = None;
                    self.partitions.clear();
                    self.resources.clear();
                }
                Scope::Partition(partition) => drop(self.partitions.remove(partition)),
                Scope::Resource(resource) => drop(self.resources.remove(resource)),
            },
            Change::Cancel { until_ms, .. } if *until_ms <= ordered.at_ms => {}
            Change::Cancel { tasks, until_ms, abort } => {
                for task in tasks {
                    let (until_ms, abort) = (*until_ms, *abort);
                    let cancel = || Cancellation { ordered: signed(), until_ms, abort };
                    let cancelled = self.cancelled.entry(task.clone()).or_insert_with(cancel);
                    cancelled.until_ms = cancelled.until_ms.max(until_ms);
                    cancelled.abort |= abort;
                }
            }
            Change::Reinstate { tasks } => {
                self.cancelled.retain(|task, _| !tasks.contains(task));
            }
        }
    }

    fn forget(&mut self, now_ms: u64) {
        self.cancelled.retain(|_, cancelled| cancelled.until_ms > now_ms);
    }

    /// Why a task must not be started; `None` if it may. `now_ms`: milliseconds
    /// since 1970.
    #[must_use]
    pub fn cancellation(&self, task: &TaskId, now_ms: u64) -> Option<&Cancellation> {
        self.cancelled.get(task).filter(|cancelled| cancelled.until_ms > now_ms)
    }

    /// Whether a partition as a whole starts nothing.
    #[must_use]
    pub fn pauses(&self, partition: PartitionId) -> bool {
        self.all.is_some() || self.partitions.contains_key(&partition)
    }

    /// What is not to be started in a partition.
    #[must_use]
    pub fn paused_in(&self, topology: &Topology, partition: PartitionId) -> Paused {
        let of_it = |resource: &&Resource| topology.partition_of(resource) == partition;
        Paused {
            everything: self.pauses(partition),
            resources: self.resources.keys().filter(of_it).cloned().collect(),
        }
    }
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Version of this format: 1.
    pub v: u32,
    /// Tells it from all others.
    pub id: String,
    /// Position of the last order that its writer had read; `None` if there was
    /// none.
    pub base: Option<u64>,
    /// What was in force there.
    pub before: Steering,
    /// What it changes.
    pub change: Change,
    /// Who ordered it, and when.
    #[serde(flatten)]
    pub ordered: Signature,
}

impl Order {
    /// The version that is written.
    pub const VERSION: u32 = 1;

    /// Reads an order.
    ///
    /// # Errors
    /// [`OrderError`] when it is none, or is of a newer format.
    pub fn read(bytes: &[u8]) -> Result<Self, OrderError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let Version { v } = serde_json::from_slice(bytes).map_err(OrderError::Malformed)?;
        if v != Self::VERSION {
            return Err(OrderError::Version { version: v });
        }
        serde_json::from_slice(bytes).map_err(OrderError::Malformed)
    }
}

/// Why a record of the log cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// It is no order.
    #[error("not an order: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A newer keylane wrote it.
    #[error("an order of version {version}, this keylane knows version {}", Order::VERSION)]
    Version {
        /// The version.
        version: u32,
    },
}

/// Reads the log, from any of its orders on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    steering: Steering,
    /// Of what was read last, or of what was in force before the first.
    position: Option<u64>,
    begun: bool,
}

/// What came of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is followed.
    Applied,
    /// It was read before.
    Known,
    /// Go on reading at this position: what stands there was not seen yet.
    ReadFrom(u64),
}

impl Ledger {
    /// What is in force, as far as the log was read.
    #[must_use]
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// The last position that was read; `None` before any.
    #[must_use]
    pub fn position(&self) -> Option<u64> {
        self.position
    }

    /// Takes the order at a position.
    pub fn take(&mut self, position: u64, order: &Order) -> Taken {
        if order.base.is_some_and(|base| base >= position) {
            // Nobody has read what was not written yet.
            self.skip(position);
            return Taken::Known;
        }
        if !self.begun {
            self.begun = true;
            self.steering = order.before.clone();
            self.position = order.base;
        }
        let next = self.next();
        if self.position.is_some_and(|last| position <= last) {
            return Taken::Known;
        }
        if position > next {
            return Taken::ReadFrom(next);
        }
        self.steering.apply(&order.change, &order.ordered);
        self.position = Some(position);
        Taken::Applied
    }

    /// Passes over something that is no order.
    pub fn skip(&mut self, position: u64) {
        if self.begun && position == self.next() {
            self.position = Some(position);
        }
    }

    fn next(&self) -> u64 {
        self.position.map_or(0, |last| last.saturating_add(1))
    }

    /// Takes an order though what came before it is gone from the log.
    pub fn take_anyway(&mut self, position: u64, order: &Order) {
        *self = Self::default();
        self.begun = true;
        self.steering = order.before.clone();
        self.steering.apply(&order.change, &order.ordered);
        self.position = Some(position);
    }

    /// The order that changes something from here on.
    #[must_use]
    pub fn order(&self, id: String, change: Change, ordered: Signature) -> Order {
        let (base, before) = (self.position, self.steering.clone());
        Order { v: Order::VERSION, id, base, before, change, ordered }
    }
}

#[cfg(test)]
mod tests;
