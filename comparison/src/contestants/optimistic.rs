//! Optimistic: read, work, and write only if nobody has written meanwhile; else again
//! (Kung & Robinson, "On Optimistic Methods for Concurrency Control", 1981). What the
//! contestants of this pattern share.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::competing::Deliveries;
use crate::clock::now_us;
use crate::work::{Job, State};
use crate::worker::{Worker, started};

/// A store with conditional writes, as a slot of a worker sees it.
#[async_trait]
pub(super) trait Store: Send + Sync + 'static {
    /// What was read, with what the store compares.
    type Read: Send + Sync;

    /// The states of these resources. Any worker would have to read them, so this is no
    /// coordination.
    async fn read(&mut self, resources: &[u32]) -> anyhow::Result<Self::Read>;

    /// The states after a task.
    fn next(read: &Self::Read, number: u32) -> Vec<State>;

    /// Writes all of them, if none has changed since.
    async fn swap(
        &mut self,
        worker: &Worker,
        resources: &[u32],
        read: &Self::Read,
        next: &[State],
    ) -> anyhow::Result<bool>;
}

/// Runs the slots of a worker until the worker stops.
pub(super) async fn run<S: Store>(worker: Arc<Worker>, stores: Vec<S>) -> anyhow::Result<()> {
    let deliveries = Arc::new(Deliveries::consume(&worker, worker.plan.slots).await?);
    started()?;
    let mut slots = JoinSet::new();
    for mut store in stores {
        let (worker, deliveries) = (Arc::clone(&worker), Arc::clone(&deliveries));
        slots.spawn(async move {
            while let Some(taken) = deliveries.next().await? {
                attempt(&worker, &mut store, &taken.job).await?;
                deliveries.ack(taken).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = slots.join_next().await {
        ended??;
    }
    if let Some(deliveries) = Arc::into_inner(deliveries) {
        deliveries.close().await?;
    }
    Ok(())
}

async fn attempt<S: Store>(worker: &Worker, store: &mut S, job: &Job) -> anyhow::Result<()> {
    // In one order for all: a store that locks rows while it writes must not deadlock.
    let mut resources = job.touches();
    resources.sort_unstable();
    loop {
        let (start_us, began) = (now_us(), Instant::now());
        let read = store.read(&resources).await?;
        worker.dwell(job).await?;
        let next = S::next(&read, job.number);
        if store.swap(worker, &resources, &read, &next).await? {
            return worker.tell_executed(job, start_us);
        }
        worker.counters.wasted.add(1);
        worker.counters.waited(began);
    }
}
