//! What a worker has on its channel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use keylane::protocol::lanes::Lanes;
use keylane::protocol::retry::RetryPolicy;
use keylane::protocol::settlement::DeliveryTag;
use keylane::protocol::task::Resource;

use super::scene::TaskNo;
use super::store::Epoch;

/// What the worker does with its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Working,
    /// It starts nothing any more.
    Draining,
    /// Nothing runs; what is unsettled goes to a deputy.
    HandingBack,
    /// The owner's channel is closed, the deputy's is not.
    Parting,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Attempt {
    None,
    Running,
    /// It runs, and has written.
    Wrote,
    /// It runs, and the store has refused it.
    Refused,
    /// It is on its way to the dead letters.
    Burying,
}

/// A delivery that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) task: TaskNo,
    pub(crate) attempt: Attempt,
}

impl Held {
    pub(crate) fn runs(&self) -> bool {
        matches!(self.attempt, Attempt::Running | Attempt::Wrote | Attempt::Refused)
    }
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Tenure {
    pub(crate) stage: Stage,
    pub(crate) lanes: Lanes,
    pub(crate) held: BTreeMap<DeliveryTag, Held>,
    /// Deliveries that the broker has sent and the worker has not seen.
    pub(crate) wire: VecDeque<(DeliveryTag, TaskNo)>,
    /// Minted anew when a delivery arrives while nothing else is held.
    pub(crate) token: Option<Epoch>,
    /// A worker of a higher priority has greeted the fleet.
    pub(crate) outbid: bool,
    /// Resources that a successor has written to since the broker lost us.
    pub(crate) overtaken: BTreeSet<Resource>,
}

impl Tenure {
    pub(crate) fn new() -> Self {
        // Time stands still: a retry is due at once, whenever that is.
        let (first_delay, max_delay) = (Duration::ZERO, Duration::ZERO);
        Self {
            stage: Stage::Working,
            lanes: Lanes::new(RetryPolicy { attempts: 2, first_delay, max_delay }, 0),
            held: BTreeMap::new(),
            wire: VecDeque::new(),
            token: None,
            outbid: false,
            overtaken: BTreeSet::new(),
        }
    }

    /// The tasks that run here.
    pub(crate) fn running(&self) -> impl Iterator<Item = TaskNo> {
        self.held.values().filter(|held| held.runs()).map(|held| held.task)
    }

    /// Whether a task was delivered here and is not done.
    pub(crate) fn holds(&self, task: TaskNo) -> bool {
        let held = self.held.values().map(|held| held.task);
        held.chain(self.wire.iter().map(|(_, task)| *task)).any(|there| there == task)
    }
}
