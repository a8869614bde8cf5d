//! How often a task has failed with earlier owners, as far as a part of the journal says.

use std::collections::HashMap;

use xxhash_rust::xxh3::Xxh3;

use super::{Batch, Outcome};
use crate::protocol::task::{Resource, TaskId};

/// The tasks that have failed and were not settled since. Ids need not be unique here: of two
/// tasks of a resource, the second one begins when the first is settled.
#[derive(Debug, Clone, Default)]
pub struct Attempts(HashMap<u128, u32>);

impl Attempts {
    /// Takes note of what a batch says. Of batches that were written twice too.
    pub fn note(&mut self, batch: &Batch) {
        for record in &batch.records {
            let key = key(&record.task, &record.resource);
            match record.outcome {
                Outcome::Failed => {
                    self.0.insert(key, record.attempt);
                }
                Outcome::Executed | Outcome::DeadLettered => {
                    self.0.remove(&key);
                }
                Outcome::Aborted | Outcome::Lost | Outcome::Superseded => {}
            }
        }
    }

    /// The number of the last attempt that failed; 0 if there is none.
    #[must_use]
    pub fn of(&self, task: &TaskId, resource: &Resource) -> u32 {
        self.0.get(&key(task, resource)).copied().unwrap_or(0)
    }
}

fn key(task: &TaskId, resource: &Resource) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&task.as_str().len().to_le_bytes());
    hash.update(task.as_str().as_bytes());
    hash.update(resource.as_str().as_bytes());
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_until_the_task_is_settled() {
        let batch = |outcomes: &[(u32, &str)]| {
            let record = |(attempt, outcome): &(u32, &str)| {
                format!(
                    r#"{{"task":"t","resource":"r","partition":0,"attempt":{attempt},"at_us":1,"took_us":1,"outcome":"{outcome}"}}"#
                )
            };
            let records: Vec<_> = outcomes.iter().map(record).collect();
            let json = format!(
                r#"{{"v":1,"writer":"x","number":1,"worker":"w","records":[{}]}}"#,
                records.join(",")
            );
            Batch::read(json.as_bytes()).expect("a batch")
        };
        let (task, other) = (TaskId::new("t").expect("id"), TaskId::new("u").expect("id"));
        let resource = Resource::new("r").expect("a key");
        let mut attempts = Attempts::default();
        attempts.note(&batch(&[(1, "failed"), (2, "aborted"), (2, "failed"), (3, "aborted")]));
        assert_eq!((attempts.of(&task, &resource), attempts.of(&other, &resource)), (2, 0));
        attempts.note(&batch(&[(3, "failed"), (3, "dead_lettered")]));
        assert_eq!(attempts.of(&task, &resource), 0, "a replay begins anew");
    }
}
