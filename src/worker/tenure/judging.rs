//! What becomes of a delivery before it may run: is it a task, was it settled by an
//! earlier owner, is it cancelled, did it kill its workers?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Tenure;
use crate::protocol::crashes::{Suspicion, judge};
use crate::protocol::lanes::{Input, Outcome};
use crate::protocol::names::Namespace;
use crate::protocol::partition::PartitionId;
use crate::protocol::settlement::DeliveryTag;
use crate::protocol::steering::Cancellation;
use crate::protocol::task::{Task, TaskId};
use crate::rabbit::claims::ClaimRegister;
use crate::rabbit::consumer::Delivery;
use crate::rabbit::error::Error;
use crate::worker::held::HeldDelivery;
use crate::worker::steered::View;
use crate::worker::stints;
use crate::worker::{Execute, Source};

/// A register of claims that cannot be read is left alone for so long: each look may take 10 s,
/// in which the partition stands still, and a window may be full of suspects.
const CLAIMS_PAUSE: Duration = Duration::from_secs(60);

impl<E: Execute> Tenure<'_, E> {
    /// Takes a delivery in, and tells the lanes what it is.
    pub(super) async fn delivered(&mut self, delivery: Delivery) -> Result<(), Error> {
        let tag = delivery.tag;
        self.owned_since.get_or_insert_with(Instant::now);
        self.counting.delivered(delivery.redelivered);
        self.session.held[self.index].note_served();
        let task = match self.admitted(&delivery) {
            Ok(task) => task,
            Err(reason) => {
                let held = HeldDelivery::new(delivery, None, Suspicion::None);
                self.deliveries.insert(tag, held);
                return self.apply(Input::Unusable { tag, resource: None, reason });
            }
        };
        if self.was_settled(&task, delivery.times_held).await {
            self.counting.suppressed();
            self.recording.foreign();
            let (id, resource) = (task.id.as_ref().map(TaskId::as_str), &task.resource);
            let partition = self.session.topology.partition_of(resource).number();
            let worker = &self.session.shared.options.id;
            tracing::info!(task = id, %resource, partition, %worker, "was settled already");
            return self.apply(Input::Executed { tag });
        }
        let id = task.id.clone().unwrap_or_else(|| TaskId::of_content(&task));
        if let Some(reason) = self.cancelled(&id) {
            let resource = Some(task.resource.clone());
            let held = HeldDelivery::new(delivery, Some((id, task)), Suspicion::None);
            self.deliveries.insert(tag, held);
            return self.apply(Input::Unusable { tag, resource, reason });
        }
        let suspicion = match self.returned.may_have_run(&task.resource, delivery.losses) {
            true => self.suspicion(&id, delivery.losses).await,
            false => Suspicion::None,
        };
        let resource = task.resource.clone();
        let losses = delivery.losses;
        let task = Some((id, task));
        self.deliveries.insert(tag, HeldDelivery::new(delivery, task, suspicion));
        self.apply(match suspicion {
            Suspicion::None | Suspicion::Claim | Suspicion::Alone => {
                Input::Delivered { tag, resource }
            }
            Suspicion::Guilty => Input::Unusable {
                tag,
                resource: Some(resource),
                reason: format!(
                    "its worker was lost while executing it, the last time with nothing else \
                     running ({losses} deliveries lost)"
                ),
            },
        })
    }

    /// A task that was cancelled while it ran is not tried again.
    pub(super) fn unless_cancelled(&self, tag: DeliveryTag, outcome: Outcome) -> Outcome {
        let Outcome::Failed { reason, .. } = &outcome else { return outcome };
        let task = self.deliveries.get(&tag).and_then(|held| held.task.as_ref());
        match task.and_then(|(id, _)| self.cancelled(id)) {
            Some(cancelled) => {
                Outcome::Dead { reason: format!("{cancelled}, while it ran: {reason}") }
            }
            None => outcome,
        }
    }

    /// The task in a delivery, or the reason why it must not run here.
    fn admitted(&self, delivery: &Delivery) -> Result<Task, String> {
        let task = delivery.task().map_err(|error| error.to_string())?;
        // A router mends both: it forwards a task without, and to its own partition.
        if self.session.shared.source == Source::Partitions {
            if let Some(forbidden) = delivery.forbidden() {
                return Err(forbidden.to_string());
            }
            let from = PartitionId::new(self.index as u32);
            let placed = self.session.topology.check_place(&task.resource, from);
            placed.map_err(|misplaced| misplaced.to_string())?;
        }
        Ok(task)
    }

    /// By whose order this task is not to be started.
    fn cancelled(&self, id: &TaskId) -> Option<String> {
        let View { steering, .. } = &*self.view.borrow();
        let cancelled = !steering.cancelled.is_empty();
        cancelled
            .then(|| steering.cancellation(id, stints::wall_ms()).map(Cancellation::reason))
            .flatten()
    }

    /// Whether the owner before settled this task and was lost before its ack. That was before
    /// the partition was ours, so it is looked up once.
    async fn was_settled(&mut self, task: &Task, times_held: u32) -> bool {
        if self.settled.is_none() && self.suppression.asks(task, times_held) {
            let owned_since = self.owned_since.unwrap_or_else(Instant::now);
            let partition = self.session.topology.partition_of(&task.resource);
            let found = self.session.settled_before(owned_since, partition).await;
            self.settled = Some(found.unwrap_or_default());
        }
        let settled =
            |task: &Task| self.settled.as_ref().is_some_and(|lately| lately.contains(task));
        self.suppression.suppresses(task, times_held, settled)
    }

    /// Looks at the evidence, if the delivery was lost often enough to matter.
    async fn suspicion(&mut self, id: &TaskId, losses: u32) -> Suspicion {
        let max = self.session.shared.options.max_crashes;
        if judge(max, losses, None) == Suspicion::None {
            return Suspicion::None;
        }
        let Some(claims) = self.claims().await else { return Suspicion::None };
        let evidence = claims.evidence(id);
        judge(max, losses, evidence)
    }

    async fn claims(&mut self) -> Option<Arc<ClaimRegister>> {
        let is_due = self.claims_due.is_none_or(|due| due <= Instant::now());
        if self.claims.is_none() && is_due {
            let queue = Namespace::claims(self.queue);
            match ClaimRegister::open(&self.session.side, queue).await {
                Ok(register) => self.claims = Some(Arc::new(register)),
                Err(error) => {
                    tracing::warn!(queue = self.queue, %error, "cannot tell who kills workers");
                    self.claims_due = Some(Instant::now() + CLAIMS_PAUSE);
                }
            }
        }
        self.claims.clone()
    }
}
