//! A namespace that never was, of any size: for tests of what is shown.

use super::snapshot::Snapshot;
use super::view::View;
use crate::protocol::history::Outcome;
use crate::protocol::journal::{Batch, Record};
use crate::protocol::names::Namespace;
use crate::protocol::ownership::{Weight, WorkerId};
use crate::protocol::partition::{PartitionCount, PartitionId, Topology};
use crate::protocol::plan::{Member, Plan, Role};
use crate::protocol::result::TaskResult;
use crate::protocol::task::{Resource, TaskId};
use crate::rabbit::collector::{Count, Counts};
use crate::rabbit::control::{HeldPartition, LinePlace, RecentLoad, WorkerReport};

/// When it was, in microseconds since 1970.
pub const NOW_US: u64 = 1_780_000_000_000_000;

const S: u64 = 1_000_000;

/// So many partitions and workers, at work: one partition in 16 has a backlog, one
/// stands still, one resource is being retried, seven letters are dead. The first
/// half of the workers is there before the other half.
///
/// # Panics
/// With no partition, or more than a topology has.
#[must_use]
pub fn snapshot(partitions: u32, workers: u32) -> Snapshot {
    let count = PartitionCount::new(partitions).unwrap_or_else(|error| panic!("{error}"));
    let topology = Topology::first(count);
    let fleet: Vec<WorkerId> = (0..workers).map(name).collect();
    let mut view = View::new(&Namespace::default(), topology, NOW_US - 211 * S);
    for (index, worker) in fleet.iter().enumerate() {
        view.note_batch(batch(&topology, index, worker), NOW_US);
    }
    for (at_us, present) in [(NOW_US - 4 * S, fleet.len().div_ceil(2)), (NOW_US, fleet.len())] {
        let fleet = &fleet[..present];
        view.note_counts(counts(partitions), Some(7));
        let plan = plan(fleet, partitions);
        for (index, worker) in fleet.iter().enumerate() {
            view.note_report(report(&topology, &plan, index, worker), at_us);
        }
        view.snapshot(at_us);
    }
    view.snapshot(NOW_US)
}

fn name(number: u32) -> WorkerId {
    let name = format!("node-{:02}.rack-{}-{}", number % 40, number / 40, 4_000 + number);
    WorkerId::new(name).unwrap_or_else(|error| panic!("{error}"))
}

/// The partition that stands still: the last one.
fn stands_still(topology: &Topology, partition: PartitionId) -> bool {
    partition.number() + 1 == topology.partitions.get()
}

fn counts(partitions: u32) -> Counts {
    let ready = |number: u32| match number {
        last if last + 1 == partitions => 12,
        some if some % 16 == 5 => 1 << (some % 11),
        _ => 0,
    };
    let count = |number| Count::known(ready(number), 1);
    let none = Count::known(0, 0);
    Counts { partitions: (0..partitions).map(count).collect(), inbox: none, dead: none }
}

fn plan(fleet: &[WorkerId], partitions: u32) -> Plan {
    let member = |worker: &WorkerId| Member { worker: worker.clone(), weight: Weight::ONE };
    let members: Vec<_> = fleet.iter().map(member).collect();
    Plan::next(None, &members, partitions as usize, &[])
}

fn report(topology: &Topology, plan: &Plan, index: usize, worker: &WorkerId) -> WorkerReport {
    let owns = |partition: &PartitionId| {
        plan.role(worker, *partition) == Role::Owner && !stands_still(topology, *partition)
    };
    let place = |partition| {
        let role = plan.role(worker, partition);
        let ahead = [Role::Owner, Role::Standby(1), Role::Standby(2)];
        let rank = ahead.iter().position(|ahead| *ahead == role)?;
        Some(LinePlace::from((partition, role, Some(60_000 - 1_000 * rank as u64))))
    };
    let works = |p: &PartitionId| p.number() % 3 != 1 || p.number() % 16 == 5;
    let held = topology.partitions().filter(owns).filter(works);
    let held = held.map(|partition| {
        let running = partition.number() % 4;
        HeldPartition::new(partition.number(), running * 3 + 1, running)
    });
    WorkerReport {
        worker: worker.clone(),
        weight: Weight::ONE,
        slots: 16,
        uptime_ms: 3_600_000 + 1_000 * index as u64,
        executed: 10_000 + 37 * index as u64,
        failed: index as u64 % 7,
        dead_lettered: 0,
        busy: 0,
        partitions: held.collect(),
        plan: Some(plan.number),
        unavailable: None,
        line: topology.partitions().filter_map(place).collect(),
        recent: RecentLoad::default(),
        hot: Vec::new(),
        longest: Vec::new(),
        crowded: Vec::new(),
    }
}

fn batch(topology: &Topology, index: usize, worker: &WorkerId) -> Batch {
    // More at some times than at others.
    let busy = index.is_multiple_of(25);
    let runs = |n: &usize| busy || (n * 7 + index * 13) % 10 < 5 + n / 24 % 6;
    let records = (0..240).filter(runs).map(|n| {
        let failed = n == 239 && index.is_multiple_of(50);
        let own = n % 3 == 0;
        let name = match (failed, own) {
            (true, _) => format!("failing-{index}"),
            (false, true) => format!("account-{index:05}"),
            (false, false) => format!("account-{:05}", 7_919 * (n + 1) % 20_000 + 200),
        };
        let resource = Resource::new(name).unwrap_or_else(|error| panic!("{error}"));
        let id = format!("task-{index}-{n}");
        let took_us = 2_000 + 20_000 * (1 + (n * 31 + index * 17) as u64 % 9);
        let took_us = if busy && own { 2_960_000 } else { took_us };
        Record {
            task: TaskId::new(id).unwrap_or_else(|error| panic!("{error}")),
            partition: topology.partition_of(&resource),
            resource,
            epoch: None,
            slot: Some(0),
            attempt: 1,
            at_us: NOW_US - 241 * S + n as u64 * S + index as u64 % 1_000 - took_us,
            took_us,
            outcome: if failed { Outcome::Failed } else { Outcome::Executed },
            reason: failed.then(|| "exit status 1: no such <b>account</b>".to_owned()),
            result: TaskResult::NONE,
            producer: None,
            sequence: None,
            republished: false,
            replayed: false,
            redelivered: false,
        }
    });
    Batch {
        v: Batch::VERSION,
        writer: worker.as_str().into(),
        number: 0,
        open_from: 0,
        late: 0,
        ended: false,
        worker: worker.clone(),
        records: records.collect(),
    }
}
