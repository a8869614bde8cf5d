//! How a namespace is: counts from the broker, the rest from the workers.

use std::time::Duration;

use serde::Serialize;

use super::collector::{Collector, Counts};
use super::connection::Connect;
use super::control::{Said, WorkerReport};
use super::error::Error;
use crate::protocol::names::Namespace;
use crate::protocol::ownership::{WorkerId, priority};
use crate::protocol::partition::{PartitionId, Topology};

/// A worker that has not answered by then is shown as silent. Workers answer
/// within milliseconds unless they are stopped or cut off.
const PATIENCE: Duration = Duration::from_secs(2);

/// After the first answer, the others come within milliseconds too; this is a
/// fleet that is very busy.
const QUIET: Duration = Duration::from_millis(300);

/// How a namespace is at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The namespace.
    pub namespace: String,
    /// Its layout.
    pub topology: Topology,
    /// Every partition, in order.
    pub partitions: Vec<PartitionStatus>,
    /// The workers that answered, by name.
    pub workers: Vec<WorkerReport>,
    /// Tasks that wait for a router.
    pub inbox: u32,
    /// Whether a router takes them.
    pub routed: bool,
    /// Dead letters.
    pub dead: u32,
}

/// How a partition is.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PartitionStatus {
    /// Its number.
    pub partition: PartitionId,
    /// The worker that holds its deliveries; if nobody holds any, the one that
    /// would get the next. `None` if nobody consumes it.
    pub owner: Option<WorkerId>,
    /// Tasks that wait on the broker.
    pub ready: u32,
    /// Deliveries at workers that are not settled.
    pub unsettled: u32,
    /// Tasks that run now.
    pub running: u32,
    /// Whether anybody consumes it. The broker does not tell how many stand by.
    pub consumed: bool,
}

impl PartitionStatus {
    /// Whether tasks wait, and the broker has handed none to any worker that
    /// answers. Usual for the moment in which they arrive or change hands; if it
    /// lasts, the partition stands still.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.consumed && self.ready > 0 && self.unsettled == 0
    }
}

/// Looks at a namespace.
///
/// # Errors
/// [`Error::TopologyMissing`], [`Error::QueueMissing`] and the errors of
/// connecting.
pub async fn status(connect: &Connect) -> Result<Status, Error> {
    let collector = Collector::open(connect, "status").await?;
    let counts = collector.counts().await?;
    let mut workers: Vec<WorkerReport> = Vec::new();
    if counts.partitions.iter().any(|count| count.consumers > 0) {
        let mut control = collector.control().await?;
        control.say(&Said::Report).await?;
        workers = control.answers(PATIENCE, QUIET).await?;
        workers.sort_by(|a, b| a.worker.cmp(&b.worker));
    }
    let status = Status::new(connect.namespace(), *collector.topology(), &counts, workers);
    collector.close().await;
    Ok(status)
}

impl Status {
    /// What the broker counts, and what the workers say of themselves.
    pub(crate) fn new(
        namespace: &Namespace,
        topology: Topology,
        counts: &Counts,
        workers: Vec<WorkerReport>,
    ) -> Self {
        let counted = topology.partitions().zip(&counts.partitions);
        let mut partitions: Vec<_> = counted
            .map(|(partition, count)| PartitionStatus {
                partition,
                owner: None,
                ready: count.ready,
                unsettled: 0,
                running: 0,
                consumed: count.consumers > 0,
            })
            .collect();
        assign(&mut partitions, &workers);
        Self {
            namespace: namespace.to_string(),
            topology,
            partitions,
            workers,
            inbox: counts.inbox.ready,
            routed: counts.inbox.consumers > 0,
            dead: counts.dead.ready,
        }
    }
}

fn assign(partitions: &mut [PartitionStatus], workers: &[WorkerReport]) {
    for partition in partitions.iter_mut() {
        let rank = |w: &&WorkerReport| priority(&w.worker, w.weight, partition.partition);
        partition.owner = workers.iter().max_by_key(rank).map(|w| w.worker.clone());
    }
    for worker in workers {
        for held in &worker.partitions {
            if let Some(partition) = partitions.get_mut(held.partition as usize) {
                partition.owner = Some(worker.worker.clone());
                partition.unsettled = partition.unsettled.saturating_add(held.unsettled);
                partition.running = partition.running.saturating_add(held.running);
            }
        }
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{PartitionStatus, WorkerReport, assign};
    use crate::protocol::partition::PartitionId;

    /// What workers say of themselves.
    pub(crate) fn reports(reports: &[WorkerReport]) {
        let nobody = |number| PartitionStatus {
            partition: PartitionId::new(number),
            owner: None,
            ready: 0,
            unsettled: 0,
            running: 0,
            consumed: true,
        };
        let mut partitions: Vec<_> = (0..4).map(nobody).collect();
        assign(&mut partitions, reports);
        assert!(reports.is_empty() || partitions.iter().all(|p| p.owner.is_some()));
    }
}
