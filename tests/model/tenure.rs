//! A worker with its channel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use keylane::protocol::lanes::Lanes;
use keylane::protocol::retry::RetryPolicy;
use keylane::protocol::settlement::DeliveryTag;
use keylane::protocol::task::Resource;

use super::consumer::ConsumerKey;
use super::scene::TaskNo;
use super::store::Epoch;

/// The state of the worker's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Link {
    Open(ConsumerKey),
    /// The worker closed it while tasks ran. Only if a rule is broken.
    Closed,
    /// The broker has closed it; the worker does not know.
    Cut,
}

/// The progress of an attempt.
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
    pub(crate) link: Link,
    /// It starts nothing any more, and closes its channel when nothing runs.
    pub(crate) draining: bool,
    pub(crate) lanes: Lanes,
    pub(crate) held: BTreeMap<DeliveryTag, Held>,
    /// Deliveries that the broker has sent and the worker has not seen.
    pub(crate) wire: VecDeque<(DeliveryTag, TaskNo)>,
    /// Minted anew when a delivery arrives while nothing else is held.
    pub(crate) token: Option<Epoch>,
    /// Resources that a successor has written to since the broker lost us.
    pub(crate) overtaken: BTreeSet<Resource>,
}

impl Tenure {
    pub(crate) fn new(key: ConsumerKey) -> Self {
        // Time stands still: a retry is due at once, whenever that is.
        let (first_delay, max_delay) = (Duration::ZERO, Duration::ZERO);
        Self {
            link: Link::Open(key),
            draining: false,
            lanes: Lanes::new(RetryPolicy { attempts: 2, first_delay, max_delay }, 0),
            held: BTreeMap::new(),
            wire: VecDeque::new(),
            token: None,
            overtaken: BTreeSet::new(),
        }
    }

    /// The consumer, while the broker still has it.
    pub(crate) fn consumer(&self) -> Option<ConsumerKey> {
        match self.link {
            Link::Open(key) => Some(key),
            Link::Closed | Link::Cut => None,
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.consumer().is_some()
    }

    /// The tasks that run here.
    pub(crate) fn running(&self) -> impl Iterator<Item = TaskNo> {
        self.held.values().filter(|held| held.runs()).map(|held| held.task)
    }

    /// True of a task that was delivered here and is not done.
    pub(crate) fn holds(&self, task: TaskNo) -> bool {
        let held = self.held.values().map(|held| held.task);
        held.chain(self.wire.iter().map(|(_, task)| *task)).any(|there| there == task)
    }

    /// True when the worker would say that it holds nothing. It cannot know what is
    /// on the wire.
    pub(crate) fn believes_empty(&self) -> bool {
        self.held.is_empty() && self.lanes.pending_acks() == 0
    }
}
