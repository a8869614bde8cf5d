//! What the lanes ask for: an attempt, a dead letter.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Tenure;
use super::spilling::{fetched, whole};
use crate::handler::{Attempt, Lacking};
use crate::protocol::crashes::Suspicion;
use crate::protocol::journal;
use crate::protocol::lanes::Outcome;
use crate::protocol::settlement::DeliveryTag;
use crate::protocol::text::cut_reason;
use crate::rabbit::obituary::{Obituary, bury};
use crate::spans::AttemptSpans;
use crate::worker::attempt::{self, Caution, DEAD_LETTER_RETRY};
use crate::worker::held::HeldDelivery;
use crate::worker::session::Session;
use crate::worker::stints::Stint;
use crate::worker::{Execute, Shared};

/// A handler that is aborted ends at its next `await`: in microseconds, unless it blocks.
const YIELDING: Duration = Duration::from_secs(1);

impl<E: Execute> Tenure<'_, E> {
    /// Whether another copy of a task was executed here, now that its turn has come: then it
    /// is recorded as what it is, and not executed.
    pub(super) fn supersede(&mut self, tag: DeliveryTag) -> bool {
        let Some(held) = self.deliveries.get(&tag) else { return false };
        let Some((id, task)) = &held.task else { return false };
        let shared = &self.session.shared;
        if held.attempt > 0 || !shared.copies().supersede(task, held.delivery.times_held) {
            return false;
        }
        let (resource, worker) = (&task.resource, &shared.options.id);
        tracing::info!(task = %id, %resource, %worker, "another copy of it was executed");
        self.counting.superseded();
        self.record(tag, journal::Outcome::Superseded, None);
        self.deliveries.remove(&tag);
        true
    }

    /// Has an attempt run, in the slot that is free.
    pub(super) fn start(&mut self, tag: DeliveryTag, number: u32) {
        let held = self.deliveries.get_mut(&tag);
        let Some((held, (slot, passes))) = held.zip(self.slot.take()) else { return };
        let spilled = held.spilled();
        let HeldDelivery { delivery, task: Some((id, task)), suspicion, .. } = held else { return };
        let shared = Arc::clone(&self.session.shared);
        let mut attempt = Attempt::new(id.clone(), task.clone());
        attempt.number = number;
        attempt.redelivered = delivery.redelivered;
        attempt.partition = self.session.topology.partition_of(&task.resource);
        attempt.timeout = shared.options.task_timeout;
        if shared.options.fencing {
            attempt.fencing = self.mint.source(tag);
        }
        self.counting.started(number);
        let stint = Arc::<Stint>::default();
        (held.attempt, held.stint) = (number, Arc::clone(&stint));
        held.passes = Some(passes);
        let caution = self.claims.clone().and_then(|register| {
            let all = (Arc::clone(&shared.slots), shared.options.slots.max(1));
            match suspicion {
                Suspicion::Claim => Some(Caution { register, alone: None }),
                Suspicion::Alone => Some(Caution { register, alone: Some(all) }),
                Suspicion::None | Suspicion::Guilty => None,
            }
        });
        // The first one that fails here may be a later one of all.
        let returned = delivery.redelivered && number == 1;
        let earlier = returned.then_some(self.owned_since).flatten();
        let (id, resource) = (id.clone(), task.resource.clone());
        let session = Arc::clone(&self.session);
        let delivery = Arc::clone(delivery);
        let spans =
            AttemptSpans::begin(&shared.tracer, &mut attempt, self.queue, &shared.options.id);
        let handle = self.running.spawn(async move {
            let stint = (&shared.stints, stint);
            let (attempt, delivery) = match fetched(attempt, delivery, spilled).await {
                Ok(fetched) => fetched,
                Err(ended) => return ended,
            };
            let running = pin!(async {
                match caution {
                    Some(caution) => {
                        // Rare, and large: it does not have to fit in here.
                        let run = caution.run(&shared.executor, attempt, delivery, stint, slot);
                        Box::pin(run).await
                    }
                    None => {
                        let ended = attempt::run(&shared.executor, attempt, delivery, stint).await;
                        drop(slot);
                        ended
                    }
                }
            });
            let mut ended = spans.around(running).await;
            spans.end(&ended.outcome);
            if let Some(since) = earlier.filter(|_| ended.outcome != Outcome::Executed) {
                let before = Box::pin(session.failed_before(since, &id, &resource));
                ended.failed_before = before.await;
            }
            ended
        });
        self.running_tags.insert(handle.id(), tag);
    }

    /// Tells the gates how an attempt ended. One that was refused again and again, while others
    /// were not, has failed.
    pub(super) fn pass_judged(
        &mut self,
        tag: DeliveryTag,
        outcome: Outcome,
        lacking: Option<Lacking>,
    ) -> Outcome {
        let held = self.deliveries.get_mut(&tag);
        let Some((held, [handler, token])) = held.and_then(|h| h.passes.take().map(|p| (h, p)))
        else {
            return outcome;
        };
        let shared = &self.session.shared;
        let outcome = match (outcome, lacking) {
            (Outcome::Refused { reason }, Some(Lacking::FencingToken)) => {
                // It did not come as far as the handler.
                drop(handler);
                token.refused(&reason);
                Outcome::Refused { reason }
            }
            (Outcome::Refused { reason }, _) => {
                let outage = handler.refused(&reason);
                token.reached();
                match held.refusals.note(outage) {
                    true => Outcome::Failed { not_before: None, reason },
                    false => Outcome::Refused { reason },
                }
            }
            (outcome, _) => {
                handler.reached();
                token.reached();
                outcome
            }
        };
        let health = &shared.figures.worker.health;
        health.set_unavailable(shared.handler.closed().map(|(reason, _)| reason));
        self.session.held[self.index].note_token(self.tokens.closed().is_some());
        outcome
    }

    /// Ends what runs, and waits until it has ended. If the partition is lost, others may start
    /// anyway: then one that does not yield is left behind, and the partition left out here until
    /// it has ended.
    pub(super) async fn end_running(&mut self, lost: bool) {
        let ended = timeout(YIELDING, self.running.shutdown()).await.is_ok();
        if ended {
            return;
        }
        tracing::warn!(queue = self.queue, "a handler blocks its thread and cannot be aborted");
        if lost {
            let running = std::mem::take(&mut self.running);
            Shared::leave_behind(&self.session.shared, self.index, running);
        } else {
            self.running.shutdown().await;
        }
    }

    /// Publishes a dead letter, however long that takes: the delivery stays
    /// unsettled until it is confirmed.
    pub(super) fn dead_letter(&mut self, tag: DeliveryTag, attempts: u32, mut reason: String) {
        let Some(held) = self.deliveries.get_mut(&tag) else { return };
        cut_reason(&mut reason);
        held.obituary = Some(reason.clone());
        let delivery = Arc::clone(&held.delivery);
        let session = Arc::clone(&self.session);
        let obituary = Obituary {
            reason,
            attempts,
            by: session.shared.options.id.to_string(),
            from: self.queue.to_owned(),
        };
        let resource = held.task.as_ref().map(|(_, task)| &task.resource);
        tracing::error!(
            task = held.task.as_ref().map(|(id, _)| tracing::field::display(id)),
            resource = resource.map(tracing::field::display),
            partition = resource.map(|r| self.session.topology.partition_of(r).number()),
            epoch = self.mint.token().map(|token| token.epoch().get()),
            worker = obituary.by,
            queue = self.queue,
            reason = obituary.reason,
            "to the dead letters"
        );
        self.dead_letters.spawn(async move {
            let Session { publisher, dead, .. } = session.as_ref();
            let payload = whole(&delivery).await;
            let properties = &delivery.properties;
            while let Err(error) = bury(publisher, dead, properties, &payload, &obituary).await {
                tracing::error!(%error, "a dead letter could not be published, trying again");
                tokio::time::sleep(DEAD_LETTER_RETRY).await;
            }
            tag
        });
    }
}
