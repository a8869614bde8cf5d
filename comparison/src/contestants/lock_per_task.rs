//! One lock per task: take the lock of its resource, execute it, release the lock. What every
//! contestant of this pattern does, whatever its lock is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::competing::Deliveries;
use crate::work::{Guard, Job};
use crate::worker::{Executed, Worker, started};

/// A lock that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) resource: u32,
    /// Grows with every holder of this lock, where the lock service has such a number.
    pub(super) fence: Option<u64>,
    /// What proves to the lock service that it is ours.
    pub(super) proof: String,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Acquired {
    Held(Held),
    /// A deadlock was found, and this request is its victim.
    Deadlock,
}

/// A lock service, as a slot of a worker sees it.
#[async_trait]
pub(super) trait Lock: Send + Sync + 'static {
    /// Waits for the lock of a resource.
    async fn acquire(&self, worker: &Worker, resource: u32) -> anyhow::Result<Acquired>;

    /// Gives it back. One that was lost in the meantime is not an error.
    async fn release(&self, worker: &Worker, held: Held) -> anyhow::Result<()>;
}

/// In which order the two locks of a transfer are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As the task names them: two transfers in opposite directions wait for each other.
    Arrival,
    /// The lower resource first, for everybody: no cycle can arise (Havender, "Avoiding
    /// Deadlock in Multitasking Systems", 1968).
    Global,
}

impl Order {
    fn of(self, job: &Job) -> Vec<u32> {
        let mut touches = job.touches();
        if self == Self::Global {
            touches.sort_unstable();
        }
        touches
    }
}

/// Runs the slots of a worker, each with its own `lock`, until the worker stops.
pub(super) async fn run(
    worker: Arc<Worker>,
    locks: Vec<Box<dyn Lock>>,
    order: Order,
) -> anyhow::Result<()> {
    let deliveries = Arc::new(Deliveries::consume(&worker, worker.plan.slots).await?);
    started()?;
    let mut slots = JoinSet::new();
    for lock in locks {
        let (worker, deliveries) = (Arc::clone(&worker), Arc::clone(&deliveries));
        slots.spawn(async move {
            while let Some(taken) = deliveries.next().await? {
                locked(&worker, lock.as_ref(), order, &taken.job).await?;
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

/// Executes a task under the locks of all that it touches; again, if a deadlock or the store
/// was in the way.
async fn locked(worker: &Worker, lock: &dyn Lock, order: Order, job: &Job) -> anyhow::Result<()> {
    loop {
        let mut held = Vec::new();
        let mut deadlock = false;
        let waiting = Instant::now();
        for resource in order.of(job) {
            match lock.acquire(worker, resource).await? {
                Acquired::Held(lock) => {
                    held.push(lock);
                    if order == Order::Arrival && held.len() == 1 {
                        worker.meet(job).await?;
                    }
                }
                Acquired::Deadlock => {
                    worker.counters.deadlocks.add(1);
                    deadlock = true;
                    break;
                }
            }
        }
        worker.counters.waited(waiting);
        let mut executed = None;
        if !deadlock {
            let guard = |held: &Held| held.fence.map_or(Guard::Nothing, Guard::Token);
            let touched: Vec<_> = held.iter().map(|held| (held.resource, guard(held))).collect();
            executed = Some(worker.execute(job, &touched, true).await?);
        }
        for held in held.into_iter().rev() {
            lock.release(worker, held).await?;
        }
        if executed == Some(Executed::Done) {
            return Ok(());
        }
        if deadlock {
            // Random, or the same ones would meet in the same way again.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..50))).await;
        }
    }
}
