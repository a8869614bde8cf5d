//! What [`Audit`] finds: nothing in random journals of a correct fleet, and in one
//! with a single fault just that fault. Journals are random by a seed, which every
//! failure prints.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::*;

const WORKERS: usize = 3;
const PARTITIONS: u32 = 4;
const RESOURCES: u32 = 12;
const SLOTS: usize = 4;

/// Numbers that look random (Steele, Lea & Flood, 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)) % bound as u64) as usize
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

fn worker(number: usize) -> WorkerId {
    WorkerId::new(format!("w{number}")).expect("a name")
}

fn record(task: &str, resource: u32, at_us: u64) -> Record {
    Record {
        task: TaskId::new(task).expect("an id"),
        resource: Resource::new(format!("r{resource}")).expect("a key"),
        partition: PartitionId::new(resource % PARTITIONS),
        epoch: None,
        slot: None,
        attempt: 1,
        at_us,
        took_us: 1,
        outcome: Outcome::Executed,
        reason: None,
        result: TaskResult::NONE,
        producer: None,
        sequence: None,
        republished: false,
        replayed: false,
        redelivered: false,
    }
}

/// A fleet that does everything right: retries, crashes, dead letters, replays.
struct Fleet {
    dice: Dice,
    /// Records with their writers, in the order of the ends.
    records: Vec<(usize, Record)>,
    slots_free: [[u64; SLOTS]; WORKERS],
    resource_free: [u64; RESOURCES as usize],
    owners: Vec<(usize, u64)>,
    opened: Vec<u64>,
    /// Executed by the present owner of a partition.
    last: BTreeMap<u32, Record>,
    sequence: u64,
}

impl Fleet {
    fn run(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let owners = (0..PARTITIONS).map(|_| (dice.below(WORKERS), 1)).collect();
        let mut fleet = Self {
            dice,
            records: Vec::new(),
            slots_free: [[1_000; SLOTS]; WORKERS],
            resource_free: [1_000; RESOURCES as usize],
            owners,
            opened: vec![1_000; PARTITIONS as usize],
            last: BTreeMap::new(),
            sequence: 0,
        };
        for step in 0..200 {
            if fleet.dice.one_in(20) {
                fleet.hand_over();
            }
            fleet.task(step);
        }
        fleet.records.sort_by_key(|(_, record)| record.end_us());
        fleet
    }

    fn attempt(&mut self, mut record: Record, resource: u32) -> Record {
        let partition = (resource % PARTITIONS) as usize;
        let (worker, epoch) = self.owners[partition];
        let slot = self.dice.below(SLOTS);
        let free = self.slots_free[worker][slot].max(self.resource_free[resource as usize]);
        record.at_us = free.max(self.opened[partition]) + self.dice.below(100) as u64;
        record.took_us = self.dice.below(500) as u64;
        record.slot = Some(slot as u32);
        // A handler that never asks has no token.
        record.epoch = (!self.dice.one_in(4)).then_some(epoch);
        self.slots_free[worker][slot] = record.end_us();
        self.resource_free[resource as usize] = record.end_us();
        self.records.push((worker, record.clone()));
        record
    }

    fn task(&mut self, step: usize) {
        let resource = self.dice.below(RESOURCES as usize) as u32;
        let mut record = record(&format!("t{step}"), resource, 0);
        if !self.dice.one_in(5) {
            record.producer = Some(format!("p{}", self.dice.below(2)).into());
            record.sequence = Some(self.sequence);
            self.sequence += 1;
        }
        while self.dice.one_in(6) {
            let outcome = if self.dice.one_in(2) { Outcome::Failed } else { Outcome::Aborted };
            self.attempt(Record { outcome, ..record.clone() }, resource);
            record.attempt += 1;
        }
        if self.dice.one_in(10) {
            let failed = Record { outcome: Outcome::Failed, ..record.clone() };
            let failed = self.attempt(failed, resource);
            let (worker, _) = self.owners[(resource % PARTITIONS) as usize];
            let dead = Outcome::DeadLettered;
            let dead = Record { outcome: dead, at_us: failed.end_us(), took_us: 0, ..failed };
            self.records.push((worker, dead));
            if self.dice.one_in(2) {
                return;
            }
            // Replayed, after others of its resource.
            self.attempt(super::tests::record(&format!("u{step}"), resource, 0), resource);
        }
        let executed = self.attempt(record, resource);
        if self.dice.one_in(15) {
            let again = Record { republished: true, ..executed.clone() };
            self.attempt(again, resource);
        }
        self.last.insert(resource, executed);
    }

    /// A partition changes its owner, which may lose the acks of what was executed.
    fn hand_over(&mut self) {
        let partition = self.dice.below(PARTITIONS as usize);
        let (_, epoch) = self.owners[partition];
        self.owners[partition] = (self.dice.below(WORKERS), epoch + 1);
        let of_it = |resource: &u32| (*resource % PARTITIONS) as usize == partition;
        let resources: Vec<_> = (0..RESOURCES).filter(of_it).collect();
        let ends = resources.iter().map(|resource| self.resource_free[*resource as usize]);
        self.opened[partition] = ends.max().unwrap_or_default() + 1_000;
        for resource in resources {
            if let Some(executed) = self.last.remove(&resource)
                && self.dice.one_in(3)
            {
                self.attempt(Record { redelivered: true, ..executed }, resource);
            }
        }
    }

    /// After everything, on the partition that a resource belongs to: who owns it
    /// last, in which epoch, and a time.
    fn end(&self, resource: u32) -> (usize, u64, u64) {
        let (worker, epoch) = self.owners[(resource % PARTITIONS) as usize];
        let end = self.records.iter().map(|(_, record)| record.end_us()).max();
        (worker, epoch, end.unwrap_or_default() + 10_000)
    }

    fn batches(&self) -> Vec<Batch> {
        let mut numbers = [0; WORKERS];
        let mut dice = Dice(self.records.len() as u64);
        let mut batches: Vec<Batch> = Vec::new();
        for (writer, record) in &self.records {
            let name: Arc<str> = format!("writer-{writer}").into();
            match batches.last_mut() {
                Some(last) if last.writer == name && !dice.one_in(4) => {
                    last.records.push(record.clone());
                }
                _ => {
                    let records = vec![record.clone()];
                    let number = numbers[*writer];
                    numbers[*writer] += 1;
                    let worker = worker(*writer);
                    batches.push(Batch {
                        v: 1,
                        writer: name,
                        number,
                        open_from: 0,
                        late: 0,
                        ended: false,
                        worker,
                        records,
                    });
                }
            }
        }
        batches
    }
}

fn audit(batches: Vec<Batch>) -> (AuditReport, Vec<Finding>) {
    let mut audit = Audit::new(Duration::ZERO);
    let findings = batches.into_iter().flat_map(|batch| audit.note(batch)).collect();
    (audit.report(), findings)
}

/// Many fleets, each with a fault that `seed_fault` finds a place for, or does not.
fn with_fault(
    is_expected: fn(&Finding) -> bool,
    mut seed_fault: impl FnMut(&mut Dice, &mut Fleet) -> Option<()>,
) {
    let mut seeded = 0;
    for seed in 0..200 {
        let mut fleet = Fleet::run(seed);
        if seed_fault(&mut Dice(!seed), &mut fleet).is_none() {
            continue;
        }
        seeded += 1;
        let (report, findings) = audit(fleet.batches());
        assert!(
            findings.len() == 1 && is_expected(&findings[0]),
            "seed {seed}: {}",
            findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        );
        assert_eq!(report.findings, 1);
        assert!(findings[0].to_string().len() > 30);
    }
    assert!(seeded >= 100, "the fault fitted into {seeded} of 200 fleets only");
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let (mut repeated, mut replayed) = (0, 0);
    for seed in 0..500 {
        let fleet = Fleet::run(seed);
        let (report, findings) = audit(fleet.batches());
        assert_eq!(findings, [], "seed {seed}");
        let executed = |(_, r): &&(usize, Record)| r.outcome == Outcome::Executed;
        let tasks: HashSet<_> =
            fleet.records.iter().filter(executed).map(|(_, r)| &r.task).collect();
        assert_eq!(report.executed, tasks.len() as u64, "seed {seed}");
        repeated += report.repeated_redelivered.min(report.repeated_republished);
        replayed += report.replayed;
    }
    assert!(repeated > 100 && replayed > 100, "{repeated} repeated, {replayed} replayed");
}

#[test]
fn what_was_written_twice_counts_once() {
    for seed in 0..50 {
        let batches = Fleet::run(seed).batches();
        let mut dice = Dice(seed);
        let twice = batches.iter().flat_map(|batch| {
            let times = if dice.one_in(3) { 2 } else { 1 };
            std::iter::repeat_n(batch.clone(), times)
        });
        assert_eq!(audit(twice.collect()), audit(batches.clone()));
    }
}

#[test]
fn an_overlap_is_found() {
    with_fault(
        |finding| matches!(finding, Finding::Overlap { .. }),
        |dice, fleet| {
            let at = dice.below(fleet.records.len());
            let (writer, running) = fleet.records[at].clone();
            let ran = matches!(running.outcome, Outcome::Executed | Outcome::Failed);
            (running.took_us > 2 && ran).then_some(())?;
            let intruder = Record {
                task: TaskId::new("intruder").expect("an id"),
                at_us: running.at_us + 1,
                took_us: 1,
                slot: None,
                epoch: None,
                outcome: Outcome::Executed,
                producer: None,
                sequence: None,
                redelivered: true,
                ..running
            };
            let writer = (writer + dice.below(WORKERS)) % WORKERS;
            fleet.records.insert(at + 1, (writer, intruder));
            Some(())
        },
    );
}

#[test]
fn a_slot_with_two_tasks_is_found() {
    with_fault(
        |finding| matches!(finding, Finding::ProcessBusy { .. }),
        |dice, fleet| {
            let at = dice.below(fleet.records.len());
            let (writer, running) = fleet.records[at].clone();
            (running.took_us > 2 && running.slot.is_some()).then_some(())?;
            (running.outcome != Outcome::DeadLettered).then_some(())?;
            let mut intruder = record("intruder", RESOURCES, running.at_us + 1);
            intruder.slot = running.slot;
            fleet.records.insert(at + 1, (writer, intruder));
            Some(())
        },
    );
}

#[test]
fn a_second_execution_is_found() {
    with_fault(
        |finding| matches!(finding, Finding::AlreadyExecuted { .. }),
        |dice, fleet| {
            let at = dice.below(fleet.records.len());
            let (_, executed) = fleet.records[at].clone();
            (executed.outcome == Outcome::Executed).then_some(())?;
            let resource = executed.resource.as_str()[1..].parse().expect("a number");
            let (writer, epoch, at_us) = fleet.end(resource);
            let again = Record {
                at_us,
                epoch: Some(epoch),
                slot: None,
                redelivered: false,
                republished: false,
                ..executed
            };
            fleet.records.push((writer, again));
            Some(())
        },
    );
}

#[test]
fn a_broken_order_is_found() {
    with_fault(
        |finding| matches!(finding, Finding::OutOfOrder { .. }),
        |dice, fleet| {
            let resource = dice.below(RESOURCES as usize) as u32;
            let (writer, epoch, at_us) = fleet.end(resource);
            let late = |(_, r): &&(usize, Record)| {
                r.resource.as_str() == format!("r{resource}") && r.sequence > Some(0)
            };
            let (_, last) = fleet.records.iter().rfind(late)?;
            let overtaken = Record {
                task: TaskId::new("overtaken").expect("an id"),
                sequence: last.sequence.map(|_| 0),
                epoch: Some(epoch),
                slot: None,
                at_us,
                outcome: Outcome::Executed,
                // No excuse: it was never executed.
                redelivered: dice.one_in(2),
                ..last.clone()
            };
            fleet.records.push((writer, overtaken));
            Some(())
        },
    );
}

#[test]
fn an_epoch_that_goes_back_is_found() {
    with_fault(
        |finding| matches!(finding, Finding::EpochWentBack { .. }),
        |dice, fleet| {
            let resource = dice.below(RESOURCES as usize) as u32;
            let (writer, epoch, at_us) = fleet.end(resource);
            let of_it = |(_, r): &(usize, Record)| {
                r.partition.number() == resource % PARTITIONS && r.epoch == Some(epoch)
            };
            (epoch > 1 && fleet.records.iter().any(of_it)).then_some(())?;
            let mut stale = record("stale", resource, at_us);
            stale.epoch = Some(epoch - 1);
            fleet.records.push((writer, stale));
            Some(())
        },
    );
}

#[test]
fn an_epoch_of_two_owners_is_found() {
    with_fault(
        |finding| matches!(finding, Finding::EpochShared { .. }),
        |dice, fleet| {
            let resource = dice.below(RESOURCES as usize) as u32;
            let (writer, epoch, at_us) = fleet.end(resource);
            let of_it = |(_, r): &(usize, Record)| {
                r.partition.number() == resource % PARTITIONS && r.epoch == Some(epoch)
            };
            fleet.records.iter().any(of_it).then_some(())?;
            let mut second = record("second", resource, at_us);
            second.epoch = Some(epoch);
            fleet.records.push(((writer + 1) % WORKERS, second));
            Some(())
        },
    );
}

#[test]
fn a_gap_is_found() {
    let mut seeded = 0;
    for seed in 0..100 {
        let mut batches = Fleet::run(seed).batches();
        let mut dice = Dice(seed);
        let gone = dice.below(batches.len());
        let gone = batches.remove(gone);
        let of_it = |batch: &&Batch| batch.writer == gone.writer;
        let before = batches.iter().filter(of_it).any(|batch| batch.number < gone.number);
        let after = batches.iter().filter(of_it).any(|batch| batch.number > gone.number);
        if !before || !after {
            continue;
        }
        seeded += 1;
        let (_, findings) = audit(batches);
        let missing =
            Finding::RecordsMissing { worker: gone.worker, batches: 1, before: gone.number + 1 };
        assert_eq!(findings, [missing], "seed {seed}");
    }
    assert!(seeded > 50, "{seeded}");
}

#[test]
fn clocks_may_differ_by_the_tolerance() {
    let at = |writer: usize, task: &str, at_us, took_us| {
        let records = vec![Record { took_us, ..record(task, 1, at_us) }];
        let name = format!("writer-{writer}").into();
        Batch {
            v: 1,
            writer: name,
            number: 0,
            open_from: 0,
            late: 0,
            ended: false,
            worker: worker(writer),
            records,
        }
    };
    let findings = |tolerance, batches: [Batch; 2]| {
        let mut audit = Audit::new(Duration::from_micros(tolerance));
        batches.into_iter().flat_map(|batch| audit.note(batch)).count()
    };
    let two = || [at(0, "a", 1_000, 100), at(1, "b", 1_060, 100)];
    assert_eq!([findings(39, two()), findings(40, two())], [1, 0]);
}

/// A worker goes on without the journal when it takes no records, and writes them
/// after those of the next owner.
#[test]
fn what_is_recorded_late_is_in_order() {
    let batch = |writer: usize, number, sequence, at_us| {
        let record = Record {
            took_us: 10,
            producer: Some("p".into()),
            sequence: Some(sequence),
            ..record(&format!("t{sequence}"), 1, at_us)
        };
        let name = format!("writer-{writer}").into();
        Batch {
            v: 1,
            writer: name,
            number,
            open_from: 0,
            late: 0,
            ended: false,
            worker: worker(writer),
            records: vec![record],
        }
    };
    let disorders = |tolerance, late: Batch| {
        let mut audit = Audit::new(Duration::from_micros(tolerance));
        assert!(audit.note(batch(1, 0, 2, 200)).is_empty());
        let findings = audit.note(late);
        let all = findings.iter().all(|finding| matches!(finding, Finding::OutOfOrder { .. }));
        assert!(all, "{findings:?}");
        findings.len()
    };
    assert_eq!(disorders(0, batch(0, 0, 1, 100)), 0, "it had ended before the other began");
    assert_eq!(disorders(0, batch(0, 0, 1, 300)), 1, "it began after the other");
    assert_eq!(disorders(0, batch(1, 1, 1, 100)), 1, "a worker's own records are in order");
    let by_tolerance = [90, 91].map(|tolerance| disorders(tolerance, batch(0, 0, 1, 100)));
    assert_eq!(by_tolerance, [0, 1], "the clocks may hide that it began after the other");
}

#[test]
fn a_task_is_told_from_another_of_the_same_id() {
    let mut task = Task::on(Resource::new("r").expect("a key"), "");
    assert_eq!(Fingerprint::of_task(&task), None, "it may be one of many");
    task.id = Some(TaskId::new("t").expect("an id"));
    assert_eq!(Fingerprint::of_task(&task), None, "nobody guarantees its id");
    let mut prints = Vec::new();
    for (producer, sequence) in [("p", 1), ("p", 2), ("q", 1)] {
        let origin = Origin { producer: producer.into(), sequence, republished: false };
        task.origin = Some(origin.clone());
        prints.push(Fingerprint::of_task(&task));
        let other = Task { resource: Resource::new("s").expect("a key"), ..task.clone() };
        prints.push(Fingerprint::of_task(&other));
        task.origin = Some(Origin { republished: true, ..origin });
        assert_eq!(Fingerprint::of_task(&task), prints[prints.len() - 2], "a copy");
    }
    let distinct: HashSet<_> = prints.iter().collect();
    assert_eq!(distinct.len(), 6);
}

/// Batches of one record each, by the number of their writer, in their order.
fn audited(records: impl IntoIterator<Item = (usize, Record)>) -> (AuditReport, Vec<Finding>) {
    let mut audit = Audit::new(Duration::ZERO);
    let mut findings = Vec::new();
    for (number, (writer, record)) in records.into_iter().enumerate() {
        findings.extend(audit.note(Batch {
            v: 1,
            writer: format!("writer-{writer}").into(),
            number: number as u64,
            open_from: 0,
            late: 0,
            ended: false,
            worker: worker(writer),
            records: vec![record],
        }));
    }
    findings.retain(|finding| !matches!(finding, Finding::RecordsMissing { .. }));
    (audit.report(), findings)
}

#[test]
fn an_attempt_of_a_frozen_worker_overlaps_nothing() {
    let aborted =
        |at_us| Record { outcome: Outcome::Aborted, took_us: 1_000, ..record("t0", 1, at_us) };
    let other = Record { took_us: 10, ..record("t1", 1, 500) };
    for records in
        [[(0, aborted(100)), (1, other.clone())], [(1, other.clone()), (0, aborted(100))]]
    {
        let (report, findings) = audited(records);
        assert_eq!((report.aborted, report.cut_off, findings), (1, 1, vec![]));
    }
    let overlaps = |records| {
        let (report, findings) = audited(records);
        matches!(findings[..], [Finding::Overlap { .. }]) && report.cut_off == 0
    };
    assert!(overlaps([(1, other.clone()), (0, aborted(505))]), "it began while the other ran");
    assert!(overlaps([(0, aborted(100)), (0, other)]), "a worker knows what it runs itself");
}

#[test]
fn sums_are_of_what_was_recorded_and_read_well() {
    let mut audit = Audit::new(Duration::ZERO);
    let batch = |writer: usize, number, records: &[Record], ended| Batch {
        v: 1,
        writer: format!("writer-{writer}").into(),
        number,
        open_from: 0,
        late: 0,
        ended,
        worker: worker(writer),
        records: records.to_vec(),
    };
    // Who only looks something up writes batches without records.
    let one = [record("t0", 1, 1)];
    let batches = [batch(0, 1, &one, false), batch(1, 1, &[], false), batch(1, 2, &[], true)];
    batches.into_iter().for_each(|batch| assert!(audit.note(batch).is_empty()));
    assert_eq!(audit.report().unended, 1);
    assert!(audit.note(batch(0, 2, &[], true)).is_empty());
    assert_eq!(
        audit.report().to_string(),
        "1 task executed, 0 dead-lettered, 0 still open\n\
         1 execution on 1 resource by 1 worker process\n\
         0 failed, 0 aborted, 0 replayed dead letters\n\
         0 executed again: 0 redelivered, 0 published again\n\
         0 violations"
    );
}

#[test]
fn batches_are_as_published() {
    let mut full = record("t-1", 3, 1_700_000_000_000_000);
    let origin = Origin { producer: "p".into(), sequence: 7, republished: false };
    let resource = full.resource.clone();
    full.set_origin(&Task { origin: Some(origin), ..Task::on(resource, "") });
    full.result = "ok".into();
    let worker = WorkerId::new("w").expect("a name");
    let batch = Batch {
        v: 1,
        writer: "x".into(),
        number: 2,
        open_from: 1,
        late: 0,
        ended: false,
        worker,
        records: vec![full],
    };
    let text = serde_json::to_string(&batch).expect("JSON");
    assert_eq!(
        text,
        r#"{"v":1,"writer":"x","number":2,"open_from":1,"worker":"w","records":[{"task":"t-1","resource":"r3","partition":3,"attempt":1,"at_us":1700000000000000,"took_us":1,"outcome":"executed","result":"ok","producer":"p","sequence":7}]}"#
    );
    assert_eq!(Batch::read(text.as_bytes()).expect("a batch"), batch);
    let newer = text.replace(r#""v":1"#, r#""v":2"#);
    let error = Batch::read(newer.as_bytes()).expect_err("a newer format");
    assert_eq!(error.to_string(), "a batch of version 2, this keylane reads version 1");
}
