//! A delivery that is not settled, and what is recorded of it.

use std::sync::Arc;

use super::gate::Pass;
use super::stints::Stint;
use crate::protocol::crashes::Suspicion;
use crate::protocol::fence::Epoch;
use crate::protocol::journal::{Outcome, Record};
use crate::protocol::outage::Refusals;
use crate::protocol::partition::PartitionId;
use crate::protocol::result::TaskResult;
use crate::protocol::task::{Task, TaskId};
use crate::rabbit::consumer::Delivery;
use crate::spill::Spilled;

/// See the [module](self).
pub(super) struct HeldDelivery {
    pub(super) delivery: Arc<Delivery>,
    /// `None` if it is no task.
    pub(super) task: Option<(TaskId, Task)>,
    pub(super) suspicion: Suspicion,
    /// The number of its last attempt here, and the time it had.
    pub(super) attempt: u32,
    pub(super) stint: Arc<Stint>,
    /// The permissions to start, of the handler and of the partition's tokens.
    pub(super) passes: Option<[Pass; 2]>,
    pub(super) refusals: Refusals,
    /// Why it goes to the dead letters.
    pub(super) obituary: Option<String>,
}

impl HeldDelivery {
    pub(super) fn new(
        delivery: Delivery,
        task: Option<(TaskId, Task)>,
        suspicion: Suspicion,
    ) -> Self {
        let delivery = Arc::new(delivery);
        Self {
            delivery,
            task,
            suspicion,
            attempt: 0,
            stint: Arc::default(),
            passes: None,
            refusals: Refusals::default(),
            obituary: None,
        }
    }

    /// Its payload, if that waits on disk.
    pub(super) fn spilled(&self) -> Option<Arc<Spilled>> {
        self.delivery.kept.as_ref()?.spilled().cloned()
    }

    /// What its last attempt came to. `None` if it is no task, or if its handler never
    /// began. `now_us`: in microseconds since 1970.
    pub(super) fn record(
        &self,
        outcome: Outcome,
        partition: PartitionId,
        epoch: Option<Epoch>,
        now_us: u64,
    ) -> Option<Record> {
        let (id, task) = self.task.as_ref()?;
        let (slot, at_us, took_us) = match outcome {
            Outcome::DeadLettered | Outcome::Superseded => (None, now_us, 0),
            Outcome::Executed | Outcome::Failed | Outcome::Aborted | Outcome::Lost => {
                let (slot, at_us, took_us) = self.stint.times()?;
                (Some(slot), at_us, took_us)
            }
        };
        let mut record = Record {
            task: id.clone(),
            resource: task.resource.clone(),
            partition,
            epoch: epoch.map(Epoch::get),
            slot,
            attempt: self.attempt,
            at_us,
            took_us,
            outcome,
            reason: None,
            result: TaskResult::NONE,
            producer: None,
            sequence: None,
            republished: false,
            replayed: false,
            redelivered: self.delivery.redelivered,
        };
        record.set_origin(task);
        Some(record)
    }

    /// A result of it, if it may be kept.
    pub(super) fn kept(&self, result: TaskResult) -> TaskResult {
        result.kept().unwrap_or_else(|bytes| {
            let task = self.task.as_ref().map(|(id, _)| id.as_str());
            let most = TaskResult::MAX_BYTES;
            tracing::warn!(task, bytes, most, "its result is too long and was left out");
            TaskResult::NONE
        })
    }
}
