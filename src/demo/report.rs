//! What the event logs of a run say about it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use super::edit::CommitIndex;
use super::events::{self, EventKind, Outcome};
use super::store::Store;
use crate::protocol::task::Resource;

/// The run as its processes recorded it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Processes that executed something.
    pub processes: usize,
    /// Resources that were worked on.
    pub resources: usize,
    /// Executions that began.
    pub executions: u64,
    /// Executions of a task that had been executed before, in whole or part.
    pub repeated: u64,
    /// Executions in another process than the one before on their resource.
    pub hand_overs: u64,
    /// Executions of a task that the broker had delivered before.
    pub redelivered: u64,
    /// Executions without an end: their process was killed.
    pub interrupted: u64,
    /// Executions that were dropped half-way or could not read or write.
    pub aborted: u64,
    /// Executions that did not find the parent's version.
    pub mismatches: u64,
    /// Executions that began before another one of their resource had ended,
    /// or were refused for that.
    pub overlaps: u64,
    /// First executions that came after one of a later commit.
    pub order_violations: u64,
}

/// One execution, from its start and end.
struct Execution {
    start_ns: u64,
    /// When it ended; its start if it was interrupted, since nobody knows.
    end_ns: u64,
    index: CommitIndex,
    pid: u32,
}

impl Report {
    /// Reads what all processes recorded in `store`.
    ///
    /// # Errors
    /// [`io::Error`] when a log cannot be read.
    pub fn read(store: &Store) -> io::Result<Self> {
        let mut report = Self::default();
        let mut resources: HashMap<Resource, Vec<Execution>> = HashMap::new();
        let mut pids = BTreeSet::new();
        for log in std::fs::read_dir(store.events_dir())? {
            let log = log?.path();
            report.add(events::read(&log)?, &mut resources, &mut pids);
        }
        report.processes = pids.len();
        report.resources = resources.len();
        for executions in resources.values_mut() {
            executions.sort_by_key(|e| (e.start_ns, e.index));
            report.judge(executions);
        }
        Ok(report)
    }

    /// Nothing that keylane promises was broken. (A repeated execution is
    /// allowed after a crash.)
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.overlaps == 0 && self.order_violations == 0 && self.mismatches == 0
    }

    /// Tasks that were executed, however often.
    #[must_use]
    pub fn tasks(&self) -> u64 {
        self.executions - self.repeated
    }

    fn add(
        &mut self,
        log: Vec<events::Event>,
        resources: &mut HashMap<Resource, Vec<Execution>>,
        pids: &mut BTreeSet<u32>,
    ) {
        let mut running = BTreeMap::new();
        for event in log {
            pids.insert(event.pid);
            match event.kind {
                EventKind::Refused => self.overlaps += 1,
                EventKind::Start { redelivered } => {
                    self.executions += 1;
                    self.redelivered += u64::from(redelivered);
                    running.insert(event.execution, event);
                }
                EventKind::End { outcome } => {
                    match outcome {
                        Outcome::Written | Outcome::Already => {}
                        Outcome::Mismatch => self.mismatches += 1,
                        Outcome::Aborted => self.aborted += 1,
                    }
                    if let Some(start) = running.remove(&event.execution) {
                        push(resources, start, event.at_ns);
                    }
                }
            }
        }
        self.interrupted += running.len() as u64;
        for start in running.into_values() {
            let at_ns = start.at_ns;
            push(resources, start, at_ns);
        }
    }

    /// Counts what one resource saw, its executions in the order they began.
    fn judge(&mut self, executions: &[Execution]) {
        let (mut seen, mut busy_until_ns, mut newest) = (HashSet::new(), 0, None);
        let pairs = executions.iter().zip(executions.iter().skip(1));
        self.hand_overs += pairs.filter(|(before, after)| before.pid != after.pid).count() as u64;
        for execution in executions {
            self.overlaps += u64::from(execution.start_ns < busy_until_ns);
            busy_until_ns = busy_until_ns.max(execution.end_ns);
            if !seen.insert(execution.index) {
                self.repeated += 1;
                continue;
            }
            self.order_violations += u64::from(newest > Some(execution.index));
            newest = newest.max(Some(execution.index));
        }
    }
}

fn push(resources: &mut HashMap<Resource, Vec<Execution>>, start: events::Event, end_ns: u64) {
    let execution = Execution { start_ns: start.at_ns, end_ns, index: start.index, pid: start.pid };
    resources.entry(start.resource).or_default().push(execution);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(executions: &[(u64, u64, u64)]) -> Report {
        let execution = |&(start_ns, end_ns, index): &(u64, u64, u64)| Execution {
            start_ns,
            end_ns,
            index: CommitIndex::new(index),
            // One process until 10 ns, then another one.
            pid: u32::from(start_ns >= 10),
        };
        let mut report = Report::default();
        report.judge(&executions.iter().map(execution).collect::<Vec<_>>());
        report
    }

    #[test]
    fn a_resource_in_order_is_clean() {
        assert!(judged(&[(1, 2, 0), (2, 3, 4), (5, 6, 9)]).is_clean());
    }

    #[test]
    fn a_change_of_process_is_a_hand_over() {
        let report = judged(&[(1, 2, 0), (3, 4, 1), (11, 12, 2), (13, 14, 3)]);
        assert_eq!((report.hand_overs, report.is_clean()), (1, true));
    }

    #[test]
    fn a_start_before_another_end_is_an_overlap() {
        let report = judged(&[(1, 9, 0), (2, 3, 1), (4, 5, 2), (10, 11, 3)]);
        assert_eq!(report.overlaps, 2, "a short one does not hide the long one");
    }

    #[test]
    fn a_repeated_execution_is_no_order_violation() {
        let report = judged(&[(1, 2, 5), (3, 4, 6), (5, 6, 5), (7, 8, 2), (9, 10, 7)]);
        assert_eq!((report.repeated, report.order_violations), (1, 1));
    }
}
