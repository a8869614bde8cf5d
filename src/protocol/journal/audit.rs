//! The pre-conditions of the protocol, checked over a journal.
//!
//! | what must hold | else |
//! |---|---|
//! | no two executions on a resource at once | [`Finding::Overlap`] |
//! | a slot executes one task at a time | [`Finding::ProcessBusy`] |
//! | a task is executed once, unless it was redelivered, published again or replayed | [`Finding::AlreadyExecuted`] |
//! | tasks of a producer on a resource start in the order of their publishing | [`Finding::OutOfOrder`] |
//! | nobody starts a task after a later owner of the partition has | [`Finding::EpochWentBack`] |
//! | an ownership period has one owner | [`Finding::EpochShared`] |
//! | no batch of records is missing between others | [`Finding::RecordsMissing`] |
//!
//! It reads what [`Checker`](crate::protocol::history::Checker) checks event by
//! event from records that hold start and end, in the order of the journal and in
//! one pass. Clocks of two workers differ; the order of their records does not.
//! So times of different workers are compared with a tolerance, and an execution
//! that a stale owner recorded late is told by its epoch.
//!
//! Memory: of each resource its last record and the latest of each of its last
//! [`Audit::PRODUCERS`] producers; of each worker's slots and each partition one
//! record; some 40 bytes for each of the last [`Audit::TASKS`] tasks; tasks that are
//! being retried. What falls out of these bounds can no longer be found wrong.

mod report;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub use self::report::AuditReport;
use super::{Batch, Novelty, Outcome, Record, Written};
use crate::protocol::history::{Process, TimeOfDay};
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::task::Resource;
use crate::protocol::text::OneLine;

/// A record, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The worker.
    pub worker: WorkerId,
    /// What it did.
    #[serde(flatten)]
    pub record: Record,
}

impl Entry {
    /// How long two executions ran at once, in microseconds.
    fn overlap_us(&self, other: &Self) -> u64 {
        let end = self.record.end_us().min(other.record.end_us());
        end.saturating_sub(self.record.at_us.max(other.record.at_us))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { task, at_us, attempt, epoch, slot, sequence, .. } = &self.record;
        let process = Process { worker: self.worker.clone(), slot: *slot };
        let (from, to) = (TimeOfDay(*at_us), TimeOfDay(self.record.end_us()));
        let task = OneLine(task.as_str());
        write!(f, "task {task} on {process} from {from} to {to} (attempt {attempt}")?;
        if let Some(epoch) = epoch {
            write!(f, ", epoch {epoch}")?;
        }
        if let Some(sequence) = sequence {
            write!(f, ", sequence {sequence}")?;
        }
        f.write_str(")")
    }
}

/// Something that the protocol excludes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// Two executions on one resource at once.
    #[error("overlap of {overlap_us} µs on resource {}:\n  {first}\n  {second}", OneLine(first.record.resource.as_str()))]
    Overlap {
        /// For how long.
        overlap_us: u64,
        /// The one that was recorded first.
        first: Box<Entry>,
        /// The other.
        second: Box<Entry>,
    },
    /// A slot executed two tasks at once.
    #[error("one slot, two tasks at once:\n  {first}\n  {second}")]
    ProcessBusy {
        /// The one that was recorded first.
        first: Box<Entry>,
        /// The other.
        second: Box<Entry>,
    },
    /// An executed task was executed again, and nothing explains it.
    #[error(
        "executed twice, and neither redelivered nor published again, on resource {}:\n  first from {} on {first_worker}\n  {again}",
        OneLine(again.record.resource.as_str()), TimeOfDay(*first_at_us)
    )]
    AlreadyExecuted {
        /// Who executed it first.
        first_worker: WorkerId,
        /// When that began, microseconds since 1970.
        first_at_us: u64,
        /// The needless execution.
        again: Box<Entry>,
    },
    /// A task started after a later one of the same producer and resource.
    #[error("order broken on resource {}:\n  {overtaken}\n  started after {earlier}", OneLine(overtaken.record.resource.as_str()))]
    OutOfOrder {
        /// The one that started too early.
        earlier: Box<Entry>,
        /// The one that should have come before it.
        overtaken: Box<Entry>,
    },
    /// A stale owner started a task after a later owner had.
    #[error("an epoch went back on partition {}:\n  {stale}\n  started after {newer}", stale.record.partition)]
    EpochWentBack {
        /// The first execution of the later ownership period.
        newer: Box<Entry>,
        /// The one of the earlier period.
        stale: Box<Entry>,
    },
    /// Two processes executed in one ownership period.
    #[error("one epoch, two owners of partition {}:\n  {first}\n  {second}", first.record.partition)]
    EpochShared {
        /// The first execution of the period.
        first: Box<Entry>,
        /// One of somebody else.
        second: Box<Entry>,
    },
    /// Batches of a worker are not in the journal though later ones are.
    #[error(
        "{batches} batches of records of worker {worker} are missing before its batch {before}"
    )]
    RecordsMissing {
        /// Whose.
        worker: WorkerId,
        /// How many.
        batches: u64,
        /// Number of the batch that follows.
        before: u64,
    },
}

/// Checks a journal, batch by batch, in one pass.
#[derive(Debug, Default)]
pub struct Audit {
    tolerance_us: u64,
    written: Written,
    /// Who has recorded something, and whether that was all.
    writers: HashMap<Arc<str>, bool>,
    lanes: HashMap<Resource, Lane>,
    slots: HashMap<Process, Arc<Entry>>,
    periods: HashMap<PartitionId, Period>,
    tasks: Tasks,
    /// Tried, not settled.
    open: HashSet<[u8; 16]>,
    report: AuditReport,
}

/// What is remembered of a resource.
#[derive(Debug, Default)]
struct Lane {
    /// The execution that ended last.
    last: Option<Arc<Entry>>,
    /// Of the last producers, the numbered task that started last.
    latest: VecDeque<Arc<Entry>>,
}

/// The latest ownership period of a partition.
#[derive(Debug)]
struct Period {
    epoch: u64,
    writer: Arc<str>,
    first: Arc<Entry>,
}

impl Audit {
    /// Producers of a resource whose order is checked at once.
    pub const PRODUCERS: usize = 16;
    /// Tasks that are remembered, at least.
    pub const TASKS: usize = Tasks::GENERATION;

    /// Starts with an empty journal. Executions of different workers overlap if
    /// they do so for longer than `tolerance`: by so much their clocks may differ.
    #[must_use]
    pub fn new(tolerance: Duration) -> Self {
        let tolerance_us = u64::try_from(tolerance.as_micros()).unwrap_or(u64::MAX);
        Self { tolerance_us, ..Self::default() }
    }

    /// Takes the next batch, and says what is wrong with it. Batches that were
    /// written twice count once. Total: it takes any sequence of batches.
    pub fn note(&mut self, batch: Batch) -> Vec<Finding> {
        let mut findings = Vec::new();
        match self.written.note(&batch) {
            Novelty::New => {}
            Novelty::Again => return findings,
            Novelty::After { missing } => findings.push(Finding::RecordsMissing {
                worker: batch.worker.clone(),
                batches: missing,
                before: batch.number,
            }),
        }
        let Batch { writer, worker, records, late, ended, .. } = batch;
        self.report.late += late;
        match self.writers.get_mut(&writer) {
            Some(all) => *all = ended,
            None if records.is_empty() => {}
            None => {
                self.writers.insert(Arc::clone(&writer), ended);
            }
        }
        for record in records {
            let entry = Arc::new(Entry { worker: worker.clone(), record });
            self.record(&writer, &entry, &mut findings);
        }
        self.report.findings += findings.len() as u64;
        findings
    }

    /// The sums so far.
    #[must_use]
    pub fn report(&self) -> AuditReport {
        AuditReport {
            resources: self.lanes.len() as u64,
            workers: self.writers.len() as u64,
            unended: self.writers.values().filter(|ended| !**ended).count() as u64,
            open: self.open.len() as u64,
            ..self.report.clone()
        }
    }

    fn record(&mut self, writer: &Arc<str>, entry: &Arc<Entry>, findings: &mut Vec<Finding>) {
        let record = &entry.record;
        let key = xxh3_128(record.task.as_str().as_bytes()).to_le_bytes();
        let report = &mut self.report;
        if report.from_us == 0 || record.at_us < report.from_us {
            report.from_us = record.at_us;
        }
        report.to_us = report.to_us.max(record.end_us());
        if record.outcome == Outcome::DeadLettered {
            report.dead_lettered += 1;
            self.open.remove(&key);
            self.tasks.settle(key, entry);
            return;
        }
        if record.outcome == Outcome::Superseded {
            report.superseded += 1;
            return;
        }
        report.executions += 1;
        let before = findings.len();
        self.overlap(entry, findings);
        if findings.len() == before {
            self.slot(entry, findings);
            self.period(writer, entry, findings);
        }
        self.sequence(key, entry, findings);
        match record.outcome {
            Outcome::Executed => {
                self.report.executed += u64::from(!self.tasks.is_executed(&key));
                self.open.remove(&key);
                self.tasks.settle(key, entry);
                return;
            }
            Outcome::Failed => self.report.failed += 1,
            Outcome::Aborted | Outcome::Lost => self.report.aborted += 1,
            Outcome::DeadLettered | Outcome::Superseded => {}
        }
        if !self.tasks.is_executed(&key) {
            self.open.insert(key);
        }
    }

    fn overlap(&mut self, entry: &Arc<Entry>, findings: &mut Vec<Finding>) {
        let lane = self.lanes.entry(entry.record.resource.clone()).or_default();
        let Some(last) = &lane.last else {
            lane.last = Some(Arc::clone(entry));
            return;
        };
        let overlap_us = last.overlap_us(entry);
        let tolerated = if last.worker == entry.worker { 0 } else { self.tolerance_us };
        if overlap_us > tolerated && (cut_off(last, entry) || cut_off(entry, last)) {
            self.report.cut_off += 1;
        } else if overlap_us > tolerated {
            let (first, second) = (copy(last), copy(entry));
            findings.push(Finding::Overlap { overlap_us, first, second });
        }
        if entry.record.end_us() >= last.record.end_us() {
            lane.last = Some(Arc::clone(entry));
        }
    }

    fn slot(&mut self, entry: &Arc<Entry>, findings: &mut Vec<Finding>) {
        if entry.record.slot.is_none() {
            return;
        }
        let slot = Process { worker: entry.worker.clone(), slot: entry.record.slot };
        let Some(last) = self.slots.insert(slot, Arc::clone(entry)) else { return };
        if last.overlap_us(entry) > 0 {
            findings.push(Finding::ProcessBusy { first: copy(&last), second: copy(entry) });
        }
    }

    fn period(&mut self, writer: &Arc<str>, entry: &Arc<Entry>, findings: &mut Vec<Finding>) {
        let Some(epoch) = entry.record.epoch else { return };
        let latest = self.periods.get(&entry.record.partition);
        if let Some(period) = latest.filter(|period| period.epoch >= epoch) {
            let first = copy(&period.first);
            if period.epoch == epoch {
                if period.writer != *writer {
                    findings.push(Finding::EpochShared { first, second: copy(entry) });
                }
            } else if entry.record.at_us > first.record.at_us.saturating_add(self.tolerance_us) {
                findings.push(Finding::EpochWentBack { newer: first, stale: copy(entry) });
            }
            return;
        }
        let period = Period { epoch, writer: Arc::clone(writer), first: Arc::clone(entry) };
        self.periods.insert(entry.record.partition, period);
    }

    fn sequence(&mut self, key: [u8; 16], entry: &Arc<Entry>, findings: &mut Vec<Finding>) {
        let record = &entry.record;
        match self.tasks.get(&key) {
            // Its dead letter may be older than the journal.
            None if record.replayed => self.report.replayed += 1,
            None => {
                let lane = self.lanes.entry(record.resource.clone()).or_default();
                if let Some(earlier) = lane.advance(entry)
                    && !recorded_late(entry, &earlier, self.tolerance_us)
                {
                    let (earlier, overtaken) = (copy(&earlier), copy(entry));
                    findings.push(Finding::OutOfOrder { earlier, overtaken });
                }
            }
            Some(settled) if !settled.executed || record.replayed => self.report.replayed += 1,
            Some(settled) if record.redelivered || settled.redelivered => {
                self.report.repeated_redelivered += 1;
            }
            Some(settled)
                if record.republished
                    || settled.republished
                    || settled.publish != publish(record) =>
            {
                self.report.repeated_republished += 1;
            }
            Some(settled) => {
                let worker = self.tasks.workers.get(settled.worker as usize);
                findings.push(Finding::AlreadyExecuted {
                    first_worker: worker.unwrap_or(&entry.worker).clone(),
                    first_at_us: settled.at_us,
                    again: copy(entry),
                });
            }
        }
    }
}

impl Lane {
    /// Takes note of a start. Returns what should have come after it.
    fn advance(&mut self, started: &Arc<Entry>) -> Option<Arc<Entry>> {
        let sequence = started.record.sequence?;
        let place = self.latest.iter().position(|e| e.record.producer == started.record.producer);
        let before = place.and_then(|place| self.latest.remove(place));
        if self.latest.len() == Audit::PRODUCERS {
            self.latest.pop_front();
        }
        self.latest.push_back(Arc::clone(started));
        // Order is judged anew from a task that came late.
        before.filter(|before| {
            before.record.task != started.record.task && before.record.sequence > Some(sequence)
        })
    }
}

/// One publish of a task, told from another.
fn publish(record: &Record) -> u32 {
    let hash = record.producer.as_ref().map_or(0, |producer| xxh3_64(producer.as_bytes()));
    // Only its lower half: of a task that was published twice, one pair in 4·10⁹
    // looks the same.
    (hash ^ record.sequence.unwrap_or_default()) as u32
}

/// What is remembered of a task that is settled.
#[derive(Debug, Clone, Copy)]
struct Settled {
    /// Else it was dead-lettered.
    executed: bool,
    /// It was published again or redelivered. The first copy may come later: a node
    /// that was frozen or cut off sends on what it had taken, and a worker without a
    /// journal writes its records when there is one again.
    republished: bool,
    redelivered: bool,
    publish: u32,
    worker: u32,
    at_us: u64,
}

/// The tasks that were settled last: two generations, of which the older one is
/// forgotten when the younger one is full.
#[derive(Debug, Default)]
struct Tasks {
    young: HashMap<[u8; 16], Settled>,
    old: HashMap<[u8; 16], Settled>,
    workers: Vec<WorkerId>,
    numbers: HashMap<WorkerId, u32>,
}

impl Tasks {
    const GENERATION: usize = 1 << 21;

    fn get(&self, key: &[u8; 16]) -> Option<Settled> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    fn is_executed(&self, key: &[u8; 16]) -> bool {
        self.get(key).is_some_and(|settled| settled.executed)
    }

    /// The first execution is what is remembered.
    fn settle(&mut self, key: [u8; 16], entry: &Entry) {
        if self.is_executed(&key) {
            return;
        }
        let worker = match self.numbers.get(&entry.worker) {
            Some(number) => *number,
            None => {
                let number = self.workers.len() as u32;
                self.workers.push(entry.worker.clone());
                self.numbers.insert(entry.worker.clone(), number);
                number
            }
        };
        if self.young.len() == Self::GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let Entry { record, .. } = entry;
        let executed = record.outcome == Outcome::Executed;
        let Record { republished, redelivered, at_us, .. } = *record;
        let publish = publish(record);
        let settled = Settled { executed, republished, redelivered, publish, worker, at_us };
        self.young.insert(key, settled);
    }
}

/// Another worker ended this one before the other started. Workers go on without the
/// journal when it takes no records, and write them later.
fn recorded_late(entry: &Entry, other: &Entry, tolerance_us: u64) -> bool {
    entry.worker != other.worker
        && entry.record.end_us().saturating_add(tolerance_us) <= other.record.at_us
}

/// Whether an attempt was aborted that had begun before another worker's. When a frozen worker
/// stopped executing it nobody knows; that it says so after it woke is no overlap.
fn cut_off(aborted: &Entry, other: &Entry) -> bool {
    aborted.record.outcome == Outcome::Aborted
        && aborted.worker != other.worker
        && aborted.record.at_us < other.record.at_us
}

fn copy(entry: &Arc<Entry>) -> Box<Entry> {
    Box::new(Entry::clone(entry))
}
