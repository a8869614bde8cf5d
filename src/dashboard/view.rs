//! What is known of a namespace: takes in what the broker counts, what workers say
//! and what the journal holds, and gives a [`Snapshot`]. No clock, no connection:
//! whoever feeds it says when it is.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::activity::Activity;
use super::hot::Hot;
use super::retrying::Retries;
use super::snapshot::{
    BrokerState, HandOver, Late, Partitions, Paused, Snapshot, Stuck, StuckBecause, Totals,
    WorkerRow,
};
use super::verdict::Evidence;
use crate::protocol::journal::Batch;
use crate::protocol::names::Namespace;
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::Topology;
use crate::protocol::stall::{Cause, Watch};
use crate::protocol::steering::{Scope, Signature, Steering};
use crate::rabbit::collector::{Count, Counts};
use crate::rabbit::control::WorkerReport;
use crate::rabbit::status::Status;

/// A worker that has left so many questions unanswered is silent: it has stopped,
/// is stopped, or is cut off.
const SILENT_AFTER: u32 = 3;

/// One that has left so many unanswered is not shown any more.
const FORGOTTEN_AFTER: u32 = 30;

/// A hand-over takes less; tasks that nobody is handed for longer are stuck.
const STUCK_AFTER: Duration = Duration::from_secs(3);

/// So many of a line are shown: owner and standbys.
const LINE: usize = 3;

/// So many changes of owner are remembered.
const HANDOVERS: usize = 100;

/// Pauses that are shown.
const PAUSED: usize = 100;

/// Workers that are remembered: more than a broker takes connections of.
const WORKERS: usize = 10_000;

/// What is known of a namespace.
pub(crate) struct View {
    namespace: Namespace,
    topology: Topology,
    broker: BrokerState,
    counts: Counts,
    workers: BTreeMap<WorkerId, Seen>,
    partitions: Vec<Standing>,
    /// What stands still.
    stalls: Watch,
    handovers: VecDeque<HandOver>,
    handovers_total: u64,
    activity: Activity,
    hot: Hot,
    retries: Retries,
    steering: Steering,
    caught_up: bool,
}

/// A worker, as it was heard of last.
struct Seen {
    report: WorkerReport,
    seen_us: u64,
    /// Questions since then.
    unanswered: u32,
    per_s: f64,
}

/// What is remembered of a partition.
#[derive(Clone, Default)]
struct Standing {
    /// `None` before it was looked at for the first time.
    owner: Option<Option<WorkerId>>,
}

impl View {
    pub(crate) fn new(namespace: &Namespace, topology: Topology, now_us: u64) -> Self {
        let count = topology.partitions().len();
        Self {
            namespace: namespace.clone(),
            topology,
            broker: BrokerState { connected: true, since_us: now_us, error: None },
            counts: Counts {
                partitions: vec![Count::default(); count],
                inbox: Count::default(),
                dead: Count::default(),
            },
            workers: BTreeMap::new(),
            partitions: vec![Standing::default(); count],
            stalls: Watch::new(STUCK_AFTER),
            handovers: VecDeque::new(),
            handovers_total: 0,
            activity: Activity::new(now_us),
            // What is read of the time before counts.
            hot: Hot::new(now_us.saturating_sub(30_000_000)),
            retries: Retries::default(),
            steering: Steering::default(),
            caught_up: false,
        }
    }

    /// The broker answers again, with this layout.
    pub(crate) fn found(&mut self, topology: Topology, now_us: u64) {
        if topology == self.topology {
            self.broker = BrokerState { connected: true, since_us: now_us, error: None };
        } else {
            *self = Self::new(&self.namespace, topology, now_us);
        }
    }

    /// The broker does not answer any more.
    pub(crate) fn lost(&mut self, error: String, now_us: u64) {
        if self.broker.connected {
            self.broker.since_us = now_us;
        }
        self.broker.connected = false;
        self.broker.error = Some(error);
    }

    /// The broker has counted. `None` for the dead letters: nobody can tell, for
    /// somebody is looking at them.
    pub(crate) fn note_counts(&mut self, counts: Counts, dead: Option<u32>) {
        let before = self.counts.dead;
        self.counts = counts;
        self.counts.dead = dead.map_or(before, |ready| Count::known(ready, 0));
    }

    /// What operators have ordered.
    pub(crate) fn note_steering(&mut self, steering: Steering) {
        self.steering = steering;
    }

    /// All workers are asked now.
    pub(crate) fn note_question(&mut self) {
        for seen in self.workers.values_mut() {
            seen.unanswered = seen.unanswered.saturating_add(1);
        }
        self.workers.retain(|_, seen| seen.unanswered < FORGOTTEN_AFTER);
    }

    /// A worker has answered.
    pub(crate) fn note_report(&mut self, report: WorkerReport, now_us: u64) {
        let before = self.workers.get(&report.worker);
        if before.is_none() && self.workers.len() >= WORKERS {
            return;
        }
        let per_s = before.map_or(0.0, |before| {
            let passed_s = now_us.saturating_sub(before.seen_us) as f64 / 1e6;
            let done = report.executed.saturating_sub(before.report.executed) as f64;
            // Two answers to one question are no rate. Half of the news, half of
            // what was: steady to look at.
            if passed_s < 0.1 { before.per_s } else { (before.per_s + done / passed_s) / 2.0 }
        });
        let worker = report.worker.clone();
        self.workers.insert(worker, Seen { report, seen_us: now_us, unanswered: 0, per_s });
    }

    /// The journal has more.
    pub(crate) fn note_batch(&mut self, batch: Batch, now_us: u64) {
        if !self.activity.is_new(&batch) {
            return;
        }
        for entry in batch.into_entries() {
            self.activity.note(&entry, now_us);
            self.hot.note(&entry);
            self.retries.note(&entry);
        }
    }

    /// What the journal had when it was opened has been read.
    pub(crate) fn note_caught_up(&mut self) {
        self.caught_up = true;
    }

    /// How it is now. What has changed since the last time is noted.
    pub(crate) fn snapshot(&mut self, now_us: u64) -> Snapshot {
        self.activity.advance(now_us);
        self.hot.advance(now_us);
        let live = self.workers.values().filter(|seen| seen.unanswered < SILENT_AFTER);
        let live: Vec<_> = live.map(|seen| seen.report.clone()).collect();
        let answering = live.len();
        let status =
            Status::new(&self.namespace, self.topology, &self.counts, live, self.steering.clone());
        if self.broker.connected {
            self.note_owners(&status, now_us);
            self.stalls.note(now_us / 1_000, status.looks());
        }
        let stuck = self.stuck();
        let (retrying, retrying_total) = self.retries.newest();
        let totals = self.totals(&status);
        let mut late = late(&status);
        let late_total = late.len();
        late.truncate(LATE);
        let unavailable = status.workers.iter().filter_map(|worker| worker.unavailable.as_ref());
        let unavailable: Vec<_> = unavailable.map(|outage| outage.reason.as_str()).collect();
        let evidence = Evidence {
            broker: &self.broker,
            totals: &totals,
            stuck: &stuck,
            workers: answering,
            retrying: retrying_total,
            late: late_total,
            unavailable: &unavailable,
            paused: self.steering.all.as_ref().map(|ordered| ordered.by.as_str()),
        };
        Snapshot {
            at_us: now_us,
            namespace: self.namespace.to_string(),
            topology: self.topology,
            broker: self.broker.clone(),
            verdict: evidence.verdict(),
            workers: self.fleet(&status),
            partitions: self.columns(&status),
            stuck,
            late,
            late_total,
            handovers: self.handovers.iter().rev().cloned().collect(),
            history: self.activity.history(),
            hot: self.hot.busiest(now_us),
            retrying,
            retrying_total,
            paused: paused(&self.steering),
            recent: self.activity.recent(),
            totals,
        }
    }

    fn note_owners(&mut self, status: &Status, now_us: u64) {
        for (standing, partition) in self.partitions.iter_mut().zip(&status.partitions) {
            let before = standing.owner.replace(partition.owner.clone());
            let Some(from) = before.filter(|from| *from != partition.owner) else { continue };
            self.handovers_total += 1;
            if self.handovers.len() == HANDOVERS {
                self.handovers.pop_front();
            }
            let (partition, to) = (partition.partition, partition.owner.clone());
            self.handovers.push_back(HandOver { at_us: now_us, partition, from, to });
        }
    }

    fn stuck(&self) -> Vec<Stuck> {
        let stuck = self.stalls.stalled().filter_map(|(partition, cause, since_ms)| {
            let why = match cause {
                Cause::NotConsumed => StuckBecause::Unowned,
                Cause::NotHandedOut
                | Cause::OwnerSilent { .. }
                | Cause::Stray(_)
                | Cause::QueueSilent => StuckBecause::StandsStill,
                Cause::Crowded { .. } => StuckBecause::HeldUp,
                // A worker has it, or somebody wants it so.
                Cause::Paused
                | Cause::ResourcesPaused { .. }
                | Cause::Retrying { .. }
                | Cause::NoSlot { .. }
                | Cause::HandlerUnavailable { .. }
                | Cause::NoFencingToken { .. }
                | Cause::Settling { .. } => return None,
            };
            let count = self.counts.partitions.get(partition.number() as usize)?;
            let (ready, since_us) = (count.ready, since_ms * 1_000);
            Some(Stuck { partition, ready, since_us, why, reason: cause.to_string() })
        });
        stuck.collect()
    }

    fn totals(&self, status: &Status) -> Totals {
        let sum = |of: fn(&crate::PartitionStatus) -> u32| {
            status.partitions.iter().map(|partition| u64::from(of(partition))).sum()
        };
        let (executed_per_s, failed_per_s) = self.activity.rates();
        Totals {
            ready: sum(|partition| partition.ready),
            unsettled: sum(|partition| partition.unsettled),
            running: sum(|partition| partition.running),
            slots: status.workers.iter().map(|worker| u64::from(worker.slots)).sum(),
            inbox: status.inbox,
            routed: status.routed,
            dead: status.dead,
            rates_known: self.caught_up,
            executed_per_s,
            failed_per_s,
            handovers: self.handovers_total,
        }
    }

    fn fleet(&self, status: &Status) -> Vec<WorkerRow> {
        let mut owned: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        for owner in status.partitions.iter().filter_map(|partition| partition.owner.as_ref()) {
            *owned.entry(owner).or_default() += 1;
        }
        let mut planned: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        for worker in status.partitions.iter().filter_map(|partition| partition.planned.as_ref()) {
            *planned.entry(worker).or_default() += 1;
        }
        let row = |Seen { report, seen_us, unanswered, per_s }: &Seen| WorkerRow {
            worker: report.worker.clone(),
            weight: report.weight,
            slots: report.slots,
            running: report.partitions.iter().map(|held| held.running).fold(0, u32::saturating_add),
            unsettled: report
                .partitions
                .iter()
                .map(|held| held.unsettled)
                .fold(0, u32::saturating_add),
            owned: owned.get(&report.worker).copied().unwrap_or(0),
            planned: planned.get(&report.worker).copied().unwrap_or(0),
            executed: report.executed,
            failed: report.failed,
            dead_lettered: report.dead_lettered,
            executed_per_s: *per_s,
            uptime_ms: report.uptime_ms,
            seen_us: *seen_us,
            silent: *unanswered >= SILENT_AFTER,
        };
        self.workers.values().map(row).collect()
    }

    fn columns(&self, status: &Status) -> Partitions {
        let places: BTreeMap<&WorkerId, i32> = self.workers.keys().zip(0..).collect();
        let mut columns = Partitions::default();
        let place = |worker: &WorkerId| places.get(worker).copied().unwrap_or(-1);
        for partition in &status.partitions {
            columns.owner.push(partition.owner.as_ref().map_or(-1, place));
            columns.planned.push(partition.planned.as_ref().map_or(-1, place));
            columns.line.push(partition.line.iter().take(LINE).map(place).collect());
            columns.ready.push(partition.ready);
            columns.unsettled.push(partition.unsettled);
            columns.running.push(partition.running);
            columns.consumed.push(partition.consumed);
        }
        columns
    }
}

/// So many late tasks are named.
const LATE: usize = 20;

fn late(status: &Status) -> Vec<Late> {
    let workers = status.workers.iter();
    let longest = workers.flat_map(|worker| worker.longest.iter().map(move |one| (worker, one)));
    let mut late: Vec<_> = longest
        .filter(|(_, one)| one.is_late())
        .map(|(worker, one)| Late {
            task: one.running.task.clone(),
            resource: one.running.resource.clone(),
            partition: one.running.partition,
            worker: worker.worker.clone(),
            attempt: one.running.attempt,
            for_ms: one.for_ms,
            timeout_ms: one.timeout_ms.unwrap_or(u64::MAX),
        })
        .collect();
    late.sort_by_key(|late| std::cmp::Reverse(late.for_ms));
    late
}

/// What is paused, the largest first.
fn paused(steering: &Steering) -> Vec<Paused> {
    let paused = |scope, ordered: &Signature| Paused {
        scope,
        by: ordered.by.clone(),
        since_us: ordered.at_ms.saturating_mul(1_000),
    };
    let all = steering.all.iter().map(|ordered| paused(Scope::All, ordered));
    let partitions = steering.partitions.iter().map(|(p, o)| paused(Scope::Partition(*p), o));
    let resources = steering.resources.iter().map(|(r, o)| paused(Scope::Resource(r.clone()), o));
    all.chain(partitions).chain(resources).take(PAUSED).collect()
}

#[cfg(test)]
mod tests;
