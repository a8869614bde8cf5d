//! What is taken back of the claims on suspects: only what dies with its worker stays.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Tenure;
use crate::protocol::settlement::DeliveryTag;
use crate::worker::Execute;

/// A register that cannot be reached is not waited for: as a rule the broker is lost.
const TAKING_BACK: Duration = Duration::from_secs(1);

impl<E: Execute> Tenure<'_, E> {
    /// This worker lives. What it stopped, because a channel or a counter was lost or the drain
    /// took too long, has killed nobody, and may not have begun.
    pub(super) async fn take_claims_back(&self) {
        let Some(register) = &self.claims else { return };
        let held = self.running_tags.values().filter_map(|tag| self.deliveries.get(tag));
        let stopped = held.filter_map(|held| held.task.as_ref()).map(|(id, _)| id);
        let mut any = false;
        for id in stopped {
            any |= register.clear(id);
        }
        if any && !matches!(timeout(TAKING_BACK, register.flush()).await, Ok(Ok(()))) {
            tracing::debug!(queue = self.queue, "the claims on what was stopped stay");
        }
    }

    /// It is in the dead letters: if it is replayed it is judged anew.
    pub(super) fn forget_evidence(&self, tag: DeliveryTag) {
        let held = self.deliveries.get(&tag).and_then(|held| held.task.as_ref());
        let Some(((id, _), register)) = held.zip(self.claims.as_ref()) else { return };
        if register.clear(id) {
            let (register, task) = (Arc::clone(register), id.clone());
            tokio::spawn(async move {
                if let Err(error) = register.flush().await {
                    tracing::warn!(%task, %error, "what was known of a dead letter stays");
                }
            });
        }
    }
}
