//! The pre-conditions of the protocol, checked over a recorded history.
//!
//! | transition | holds when | else |
//! |---|---|---|
//! | `StartProcessing(p, t)` | no other execution on the resource of `t` is running | [`Violation::Overlap`] |
//! | | `p` is idle | [`Violation::ProcessBusy`] |
//! | | `t` is not executed, or was redelivered or replayed | [`Violation::AlreadyExecuted`] |
//! | | no later task of its producer on the resource came first | [`Violation::OutOfOrder`] |
//! | `EndProcessing(p, t)` | `p` executes `t` | [`Violation::EndWithoutStart`] |
//! | end of the history | no execution is running | [`Violation::Unfinished`] |
//! | | every published task is executed or dead-lettered | [`Violation::Missing`], [`Violation::MissingCount`] |
//!
//! One fault yields one violation as far as that can be told: an unfinished
//! task is not missing as well, and order is judged anew from a task that came
//! late. A task that is not settled holds its place, so one that is retried
//! after a later task started is out of order, not just one that starts late. A
//! dead-lettered task is not executed, so it may start again, in any order.
//!
//! Memory: 20 to 40 bytes per task (a 128-bit fingerprint and its state), one
//! [`Execution`] per producer and resource, one per running execution, and the
//! ids of the workers. Two tasks of 10⁹ share a fingerprint with a probability
//! of about 10⁻²¹.

mod event;
mod report;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

pub(super) use self::event::TimeOfDay;
pub use self::event::{Ending, Event, Execution, Outcome, Process};
pub use self::report::{Report, Violation};
use super::ownership::WorkerId;
use super::task::{Resource, TaskId};

/// The tasks that must have been executed or dead-lettered by the end.
#[derive(Debug, Clone, Copy)]
pub enum Published<'a> {
    /// So many distinct tasks.
    Count(u64),
    /// These tasks, each named once.
    Tasks(&'a [TaskId]),
}

/// What is remembered of a task that started or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Started,
    Executed,
    DeadLettered,
}

/// Stands for a task id. Bytes rather than an integer: alignment would cost 15
/// bytes per task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Fingerprint([u8; 16]);

impl Fingerprint {
    fn of(task: &TaskId) -> Self {
        Self(xxh3_128(task.as_str().as_bytes()).to_ne_bytes())
    }
}

/// What is remembered of a resource.
#[derive(Debug, Clone, Default)]
struct Lane {
    /// At most one, unless they overlap; in order of their starts.
    running: Vec<Arc<Execution>>,
    /// Of each producer, the numbered task that started last and was not settled.
    latest: HashMap<Option<String>, Arc<Execution>>,
}

impl Lane {
    /// Takes note of a start. Returns what should have come after it.
    fn advance(&mut self, started: &Arc<Execution>) -> Option<Arc<Execution>> {
        let sequence = started.sequence?;
        let before = self.latest.insert(started.producer.clone(), Arc::clone(started))?;
        let rises = before.task == started.task || before.sequence < Some(sequence);
        (!rises).then_some(before)
    }
}

/// Reads a history event by event, in the order of time, and collects what
/// violates the pre-conditions. Total: it takes any sequence of events.
#[derive(Debug, Clone, Default)]
pub struct Checker {
    lanes: HashMap<Resource, Lane>,
    busy: HashMap<Process, Arc<Execution>>,
    tasks: HashMap<Fingerprint, Seen>,
    workers: HashSet<WorkerId>,
    report: Report,
}

impl Checker {
    /// Takes the next event. Events of different workers must be merged in the
    /// order of time beforehand; where one execution ends at the microsecond at
    /// which another starts, the end comes first.
    pub fn observe(&mut self, event: &Event) {
        match event {
            Event::Started(execution) => self.start(Arc::new(execution.clone())),
            Event::Ended(ending) => self.end(ending),
            Event::WorkerLost { worker, .. } => self.lose(worker),
        }
    }

    /// The violations so far, at most [`Report::KEPT_VIOLATIONS`].
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.report.violations
    }

    /// Ends the history. Without `published`, a task that never started is not
    /// missed.
    #[must_use]
    pub fn finish(mut self, published: Option<Published<'_>>) -> Report {
        let running = self.lanes.values_mut().flat_map(|lane| lane.running.drain(..));
        let mut running: Vec<_> = running.collect();
        running.sort_by(|a, b| (a.at_us, &a.task).cmp(&(b.at_us, &b.task)));
        self.report.resources = self.lanes.len() as u64;
        self.report.workers = self.workers.len() as u64;
        self.report.executed = self.count(Seen::Executed);
        self.report.dead_lettered = self.count(Seen::DeadLettered);
        let mut unsettled: HashSet<_> = running.iter().map(|e| Fingerprint::of(&e.task)).collect();
        unsettled.retain(|task| self.tasks.get(task) == Some(&Seen::Started));
        for execution in running {
            self.report.add(Violation::Unfinished { started: copy(&execution) });
        }
        match published {
            None => {}
            Some(Published::Count(published)) => {
                let settled = self.report.executed + self.report.dead_lettered;
                let missing = published.saturating_sub(settled + unsettled.len() as u64);
                if missing > 0 {
                    self.report.add(Violation::MissingCount { published, missing });
                }
            }
            Some(Published::Tasks(tasks)) => {
                for task in tasks {
                    let print = Fingerprint::of(task);
                    let state = self.tasks.get(&print);
                    let settled = matches!(state, Some(Seen::Executed | Seen::DeadLettered));
                    if !settled && !unsettled.contains(&print) {
                        self.report.add(Violation::Missing { task: task.clone() });
                    }
                }
            }
        }
        self.report
    }

    fn start(&mut self, started: Arc<Execution>) {
        self.report.executions += 1;
        self.workers.insert(started.process.worker.clone());
        if started.process.slot.is_some()
            && let Some(running) = self.busy.insert(started.process.clone(), Arc::clone(&started))
        {
            let (running, started) = (copy(&running), copy(&started));
            self.report.add(Violation::ProcessBusy { running, started });
        }
        let lane = self.lanes.entry(started.resource.clone()).or_default();
        if let Some(running) = lane.running.first() {
            let (running, started) = (copy(running), copy(&started));
            self.report.add(Violation::Overlap { running, started });
        }
        match *self.tasks.entry(Fingerprint::of(&started.task)).or_insert(Seen::Started) {
            Seen::Executed if started.redelivered => self.report.repeated += 1,
            Seen::Executed => {
                self.report.add(Violation::AlreadyExecuted { started: copy(&started) });
            }
            Seen::DeadLettered => {}
            Seen::Started => {
                if let Some(earlier) = lane.advance(&started) {
                    let (earlier, overtaken) = (copy(&earlier), copy(&started));
                    self.report.add(Violation::OutOfOrder { earlier, overtaken });
                }
            }
        }
        lane.running.push(started);
    }

    fn end(&mut self, ending: &Ending) {
        let task = Fingerprint::of(&ending.task);
        match ending.outcome {
            Outcome::Executed => {
                self.tasks.insert(task, Seen::Executed);
            }
            Outcome::DeadLettered => {
                let state = self.tasks.entry(task).or_insert(Seen::DeadLettered);
                if *state == Seen::Started {
                    *state = Seen::DeadLettered;
                }
            }
            Outcome::Failed => self.report.failed += 1,
            Outcome::Aborted => self.report.aborted += 1,
            Outcome::Lost => self.report.lost += 1,
            Outcome::Superseded => {}
        }
        let ended = self.lanes.get_mut(&ending.resource).and_then(|lane| {
            let is_it = |e: &Arc<Execution>| e.task == ending.task && e.process == ending.process;
            lane.running.iter().position(is_it).map(|index| lane.running.remove(index))
        });
        let Some(ended) = ended else {
            return self.report.add(Violation::EndWithoutStart(ending.clone()));
        };
        if self.busy.get(&ended.process).is_some_and(|busy| Arc::ptr_eq(busy, &ended)) {
            self.busy.remove(&ended.process);
        }
    }

    fn lose(&mut self, worker: &WorkerId) {
        for lane in self.lanes.values_mut() {
            let before = lane.running.len();
            lane.running.retain(|execution| execution.process.worker != *worker);
            self.report.lost += (before - lane.running.len()) as u64;
        }
        self.busy.retain(|process, _| process.worker != *worker);
    }

    fn count(&self, state: Seen) -> u64 {
        self.tasks.values().filter(|&&seen| seen == state).count() as u64
    }
}

fn copy(execution: &Arc<Execution>) -> Box<Execution> {
    Box::new(Execution::clone(execution))
}

#[cfg(test)]
mod tests;
