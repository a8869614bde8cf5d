//! How a namespace is: counts from the broker, the rest from the workers.

use std::time::Duration;

use serde::Serialize;

use super::collector::{Collector, Counts};
use super::connection::Connect;
use super::control::{Control, Said, WorkerReport};
use super::error::Error;
use super::steering::OrderLog;
use crate::protocol::names::Namespace;
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::{PartitionId, Topology};
use crate::protocol::plan::Role;
use crate::protocol::stall::{Cause, Holder, Lack, Look, Stray};
use crate::protocol::steering::Steering;
use crate::protocol::task::Resource;

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
    /// The resources with the largest shares in the load of the last one to two minutes,
    /// the largest first; ten at the most.
    pub hot: Vec<ResourceShare>,
    /// What is paused and cancelled.
    pub steering: Steering,
    /// Whether the broker takes no messages, for it runs low on memory or disk. Then no worker can
    /// be asked.
    pub blocked: bool,
}

/// The share of a resource in the load of all workers of late, at the least.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ResourceShare {
    /// Which resource.
    pub resource: Resource,
    /// Its partition.
    pub partition: PartitionId,
    /// Who executes it, or did.
    pub worker: WorkerId,
    /// Of all attempts, from 0 to 1.
    pub attempts: f64,
    /// Of the time of all handlers, from 0 to 1.
    pub handler_time: f64,
    /// Of the time that has passed: how long a handler worked on it. At 1 it cannot take
    /// more tasks than it does, whatever workers are added.
    pub busy: f64,
}

/// How a partition is.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PartitionStatus {
    /// Its number.
    pub partition: PartitionId,
    /// The worker that was handed its deliveries; if nobody was, the one that stands first in
    /// line. `None` if no worker answers that stands there.
    pub owner: Option<WorkerId>,
    /// The worker that should own it, by the plan. Another one may for a moment, or while that
    /// one does not come.
    pub planned: Option<WorkerId>,
    /// The workers that stand in its line, by their own account: the first one owns it, and the
    /// next one takes over when that is lost.
    pub line: Vec<WorkerId>,
    /// Whether its queue has answered the broker. Otherwise `ready` is 0 and `consumed` is false,
    /// and neither is known.
    pub counted: bool,
    /// Tasks that wait on the broker.
    pub ready: u32,
    /// Deliveries at workers that are not settled.
    pub unsettled: u32,
    /// Tasks that run now.
    pub running: u32,
    /// Whether anybody consumes it. The broker does not tell how many stand by.
    pub consumed: bool,
    /// Whether it is paused as a whole.
    pub paused: bool,
    /// What is delivered to a consumer that belongs to no worker that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stray: Option<Stray>,
    /// Why nothing of it runs, if there are tasks. Usual for a moment; if it lasts, the
    /// partition stands still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
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
    let mut observer = Observer::open(connect, "status").await?;
    let status = observer.look().await?;
    observer.close().await;
    Ok(status)
}

/// Looks at a namespace again and again, over one connection.
pub(crate) struct Observer {
    collector: Collector,
    control: Option<Control>,
    /// `None` in a namespace that nobody can steer, or where it cannot be read.
    orders: Option<OrderLog>,
}

impl Observer {
    /// Connects; errors as those of [`status`].
    pub(crate) async fn open(connect: &Connect, role: &str) -> Result<Self, Error> {
        let collector = Collector::open(connect, role).await?;
        let orders = collector.orders().await?;
        Ok(Self { collector, control: None, orders })
    }

    /// How it is now; errors as those of [`status`]. After one, it is of no use.
    pub(crate) async fn look(&mut self) -> Result<Status, Error> {
        let Self { collector, control, orders } = self;
        let mut steering = Steering::default();
        if let Some(orders) = orders {
            orders.catch_up(collector.connection()).await?;
            steering = orders.ledger().steering().clone();
        }
        let counts = collector.counts().await?;
        let mut workers: Vec<WorkerReport> = Vec::new();
        if counts.partitions.iter().any(|count| count.consumers > 0) {
            let control = match control {
                Some(control) => control,
                None => control.insert(collector.control().await?),
            };
            control.say(&Said::Report).await?;
            workers = control.answers(PATIENCE, QUIET).await?;
            // One that was late for an earlier look answers twice; the last one counts.
            workers.reverse();
            workers.sort_by(|a, b| a.worker.cmp(&b.worker));
            workers.dedup_by(|a, b| a.worker == b.worker);
        }
        let (namespace, topology) = (collector.namespace(), *collector.topology());
        let mut status = Status::new(namespace, topology, &counts, workers, steering);
        // The broker says so once something was published.
        status.blocked = collector.connection().status().blocked();
        Ok(status)
    }

    pub(crate) async fn close(self) {
        self.collector.close().await;
    }
}

impl Status {
    /// What the broker counts, what the workers say of themselves, and what operators have
    /// ordered.
    pub(crate) fn new(
        namespace: &Namespace,
        topology: Topology,
        counts: &Counts,
        workers: Vec<WorkerReport>,
        steering: Steering,
    ) -> Self {
        let counted = topology.partitions().zip(&counts.partitions);
        let mut partitions: Vec<_> = counted
            .map(|(partition, count)| PartitionStatus {
                partition,
                owner: None,
                planned: None,
                line: Vec::new(),
                counted: count.known,
                ready: count.ready,
                unsettled: 0,
                running: 0,
                consumed: count.consumers > 0,
                paused: steering.pauses(partition),
                // Of a single active consumer one is counted, however long its line is.
                stray: Stray::seen(count.consumers.saturating_sub(1), None),
                cause: None,
            })
            .collect();
        assign(&mut partitions, &workers);
        let hot = shares(&workers);
        let mut status = Self {
            namespace: namespace.to_string(),
            topology,
            partitions,
            workers,
            inbox: counts.inbox.ready,
            routed: counts.inbox.consumers > 0,
            dead: counts.dead.ready,
            hot,
            steering,
            blocked: false,
        };
        let causes: Vec<_> = status.looks().map(|look| look.cause(None)).collect();
        for (partition, cause) in status.partitions.iter_mut().zip(causes) {
            partition.cause = cause;
        }
        status
    }

    /// Adds how many deliveries of each partition, in order, belong to no worker.
    #[cfg(feature = "cli")]
    pub(crate) fn note_strays(&mut self, tasks: &[u32]) {
        for (partition, tasks) in self.partitions.iter_mut().zip(tasks) {
            let consumers = partition.stray.map_or(0, |stray| stray.consumers);
            partition.stray = Stray::seen(consumers, Some(*tasks));
        }
        let causes: Vec<_> = self.looks().map(|look| look.cause(None)).collect();
        for (partition, cause) in self.partitions.iter_mut().zip(causes) {
            partition.cause = cause;
        }
    }

    /// What is seen of every partition, in order: for a
    /// [`Watch`](crate::protocol::stall::Watch).
    pub fn looks(&self) -> impl Iterator<Item = Look> {
        let answering: Vec<_> = self.workers.iter().map(|worker| worker.worker.clone()).collect();
        self.partitions.iter().map(move |partition| Look {
            partition: partition.partition,
            counted: partition.counted,
            ready: partition.ready,
            consumed: partition.consumed,
            paused: partition.paused,
            holder: self.holder(partition.partition),
            answering: answering.clone(),
            stray: partition.stray,
        })
    }

    fn holder(&self, partition: PartitionId) -> Option<Holder> {
        self.workers.iter().find_map(|worker| {
            let held = worker.partitions.iter().find(|h| h.partition == partition.number())?;
            Some(Holder {
                worker: worker.worker.clone(),
                unsettled: held.unsettled,
                running: held.running,
                paused: held.paused,
                retrying: held.retrying,
                retry_in_ms: held.retry_in_ms,
                startable: held.startable,
                settled: held.settled,
                busy: worker.busy >= worker.slots,
                crowd: worker
                    .crowded
                    .iter()
                    .find(|crowded| crowded.partition == partition)
                    .map(|crowded| crowded.by.clone()),
                refused: match &worker.unavailable {
                    Some(_) => Some(Lack::Handler),
                    None => held.lacks_token.then_some(Lack::FencingToken),
                },
            })
        })
    }
}

fn assign(partitions: &mut [PartitionStatus], workers: &[WorkerReport]) {
    let mut lines: Vec<Vec<(u64, &WorkerId)>> = vec![Vec::new(); partitions.len()];
    // The newest plan counts.
    let mut by_plan: Vec<_> = workers.iter().collect();
    by_plan.sort_by_key(|worker| worker.plan);
    for worker in by_plan {
        for place in &worker.line {
            let number = place.partition.number() as usize;
            let Some(partition) = partitions.get_mut(number) else { continue };
            if place.role == Role::Owner {
                partition.planned = Some(worker.worker.clone());
            }
            if let Some(attached_ms) = place.attached_ms {
                lines[number].push((attached_ms, &worker.worker));
            }
        }
    }
    for (partition, mut line) in partitions.iter_mut().zip(lines) {
        line.sort_by(|a, b| b.cmp(a));
        partition.line = line.into_iter().map(|(_, worker)| worker.clone()).collect();
        // The broker never replaces an active consumer: whoever came first is the owner.
        partition.owner = partition.line.first().cloned();
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

/// How many hot resources are shown.
const HOT_RESOURCES: usize = 10;

fn shares(workers: &[WorkerReport]) -> Vec<ResourceShare> {
    // At least 1, so that no load is no share.
    let sum =
        |of: fn(&WorkerReport) -> u64| workers.iter().map(of).map(as_f64).sum::<f64>().max(1.0);
    let attempts = sum(|worker| worker.recent.attempts);
    let handler_ms = sum(|worker| worker.recent.handler_ms);
    let mut shares: Vec<_> = workers
        .iter()
        .flat_map(|worker| worker.hot.iter().map(move |hot| (worker, hot)))
        .map(|(worker, hot)| ResourceShare {
            resource: hot.resource.clone(),
            partition: hot.partition,
            worker: worker.worker.clone(),
            attempts: (as_f64(hot.attempts) / attempts).min(1.0),
            handler_time: (as_f64(hot.handler_ms) / handler_ms).min(1.0),
            busy: (as_f64(hot.handler_ms) / as_f64(worker.recent.window_ms).max(1.0)).min(1.0),
        })
        .filter(|share| share.attempts > 0.0 || share.handler_time > 0.0)
        .collect();
    let largest = |share: &ResourceShare| share.attempts.max(share.handler_time);
    shares.sort_by(|a, b| largest(b).total_cmp(&largest(a)));
    shares.truncate(HOT_RESOURCES);
    shares
}

fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{PartitionStatus, WorkerReport, assign, shares};
    use crate::protocol::partition::PartitionId;

    /// What workers say of themselves.
    pub(crate) fn reports(reports: &[WorkerReport]) {
        let nobody = |number| PartitionStatus {
            partition: PartitionId::new(number),
            owner: None,
            planned: None,
            line: Vec::new(),
            counted: true,
            ready: 0,
            unsettled: 0,
            running: 0,
            consumed: true,
            paused: false,
            stray: None,
            cause: None,
        };
        let mut partitions: Vec<_> = (0..4).map(nobody).collect();
        assign(&mut partitions, reports);
        let known = |name: &Option<_>| name.iter().all(|n| reports.iter().any(|r| r.worker == *n));
        assert!(partitions.iter().all(|p| known(&p.owner) && known(&p.planned)));
        let sane = |share: f64| (0.0..=1.0).contains(&share);
        let shares = shares(reports);
        assert!(shares.iter().all(|s| sane(s.attempts) && sane(s.handler_time) && sane(s.busy)));
    }
}
