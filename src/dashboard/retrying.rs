//! Which resources have a task that failed and is to be tried again.

use std::collections::HashMap;

use super::snapshot::Retrying;
use crate::protocol::history::Outcome;
use crate::protocol::journal::{Entry, Record};
use crate::protocol::task::Resource;

/// So many resources are remembered. Beyond that, those that have not been tried
/// for the longest time are forgotten: a namespace in which everything fails.
const KEPT: usize = 1_000;

/// So many are shown.
const SHOWN: usize = 20;

/// By resource: a lane tries one task at a time.
#[derive(Default)]
pub(super) struct Retries(HashMap<Resource, Retrying>);

impl Retries {
    /// An attempt has ended. They come in the order of the lane.
    pub(super) fn note(&mut self, Entry { worker, record }: &Entry) {
        let Record { resource, task, partition, attempt, outcome, .. } = record;
        match outcome {
            Outcome::Executed | Outcome::DeadLettered => {
                self.0.remove(resource);
            }
            Outcome::Superseded => {}
            Outcome::Failed | Outcome::Aborted | Outcome::Lost => {
                let before = self.0.get(resource).filter(|before| before.task == *task);
                let since_us = before.map_or(record.end_us(), |before| before.since_us);
                let failed = Retrying {
                    resource: resource.clone(),
                    task: task.clone(),
                    partition: *partition,
                    worker: worker.clone(),
                    attempt: *attempt,
                    since_us,
                    failed_us: record.end_us(),
                    reason: record.reason.clone(),
                };
                self.0.insert(resource.clone(), failed);
                if self.0.len() > 2 * KEPT {
                    let mut all: Vec<_> = self.0.drain().collect();
                    all.select_nth_unstable_by(KEPT, |(_, a), (_, b)| {
                        b.failed_us.cmp(&a.failed_us)
                    });
                    all.truncate(KEPT);
                    self.0.extend(all);
                }
            }
        }
    }

    /// The ones that failed last, and how many there are in all.
    pub(super) fn newest(&self) -> (Vec<Retrying>, usize) {
        let mut newest: Vec<_> = self.0.values().collect();
        newest.sort_unstable_by(|a, b| {
            b.failed_us.cmp(&a.failed_us).then_with(|| a.resource.cmp(&b.resource))
        });
        (newest.into_iter().take(SHOWN).cloned().collect(), self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkerId;

    fn ended(resource: &str, at_us: u64, attempt: u32, outcome: &str) -> Entry {
        let record = serde_json::json!({
            "task": "t", "resource": resource, "partition": 3, "attempt": attempt,
            "at_us": at_us, "took_us": 0, "outcome": outcome, "reason": "no",
        });
        let record = serde_json::from_value(record).expect("a record");
        Entry { worker: WorkerId::new("a").expect("a name"), record }
    }

    #[test]
    fn a_resource_retries_from_its_first_failure_to_its_end() {
        let mut retries = Retries::default();
        retries.note(&ended("r", 10, 1, "failed"));
        retries.note(&ended("r", 20, 2, "failed"));
        retries.note(&ended("s", 30, 1, "failed"));
        let (newest, total) = retries.newest();
        assert_eq!((newest[1].since_us, newest[1].attempt, total), (10, 2, 2));
        retries.note(&ended("r", 40, 3, "executed"));
        retries.note(&ended("s", 40, 1, "dead_lettered"));
        assert_eq!(retries.newest(), (Vec::new(), 0));
    }

    #[test]
    fn memory_has_a_bound() {
        let mut retries = Retries::default();
        for n in 0..10_000 {
            retries.note(&ended(&format!("r{n}"), n, 1, "failed"));
        }
        let (newest, total) = retries.newest();
        assert!(total <= 2 * KEPT && newest[0].resource.as_str() == "r9999");
    }
}
