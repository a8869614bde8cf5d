//! Payloads that wait on disk; see [`spill`](crate::spill).

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::sleep;

use super::Tenure;
use crate::handler::{Attempt, Lacking};
use crate::protocol::lanes::Outcome;
use crate::protocol::result::TaskResult;
use crate::protocol::settlement::DeliveryTag;
use crate::rabbit::consumer::Delivery;
use crate::spill::{Kept, Spilled};
use crate::worker::Execute;
use crate::worker::attempt::{DEAD_LETTER_RETRY, Ended};

impl<E: Execute> Tenure<'_, E> {
    /// Forgets the payload of a delivery that has just come, if it is on disk.
    pub(super) fn make_room(&mut self, tag: DeliveryTag) {
        let Some(held) = self.deliveries.get_mut(&tag).filter(|held| held.spilled().is_some())
        else {
            return;
        };
        // Nobody else has it yet.
        if let Some(delivery) = Arc::get_mut(&mut held.delivery) {
            delivery.payload = Bytes::new();
        }
        if let Some((_, task)) = &mut held.task {
            task.payload = Bytes::new();
        }
    }
}

/// The attempt and its delivery with their payload.
pub(super) async fn fetched(
    mut attempt: Attempt,
    delivery: Arc<Delivery>,
    spilled: Option<Arc<Spilled>>,
) -> Result<(Attempt, Arc<Delivery>), Ended> {
    let Some(spilled) = spilled else { return Ok((attempt, delivery)) };
    match spilled.read().await {
        Ok(payload) => {
            attempt.task.payload = payload.clone();
            Ok((attempt, Arc::new(Delivery { payload, ..Delivery::clone(&delivery) })))
        }
        Err(error) => {
            let reason = format!("cannot read a payload from disk: {error}");
            let (outcome, lacking) = (Outcome::Refused { reason }, Some(Lacking::Handler));
            Err(Ended { outcome, result: TaskResult::NONE, lacking, failed_before: 0 })
        }
    }
}

/// The payload of a delivery, however long that takes: it is not to be lost.
pub(super) async fn whole(delivery: &Delivery) -> Bytes {
    let spilled = delivery.kept.as_ref().and_then(Kept::spilled);
    let Some(spilled) = spilled else { return delivery.payload.clone() };
    loop {
        match spilled.read().await {
            Ok(payload) => return payload,
            Err(error) => {
                tracing::error!(%error, "a payload cannot be read from disk, trying again");
                sleep(DEAD_LETTER_RETRY).await;
            }
        }
    }
}
