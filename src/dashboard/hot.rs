//! Which resources keep workers busiest, in bounded memory.
//!
//! Two windows of a minute, one full and one filling, each of which forgets the
//! least busy half when it has become too long. Whatever is busy all the time is
//! at the front again at once; an account of what is not may be too low.

use std::collections::HashMap;

use super::snapshot::HotResource;
use crate::protocol::journal::{Entry, Record};
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::task::Resource;

const WINDOW_US: u64 = 60_000_000;

/// Resources that are kept when a window has become too long, of twice as many.
const KEPT: usize = 1_000;

/// So many are shown.
const SHOWN: usize = 20;

/// The accounts of two windows.
pub(super) struct Hot {
    since_us: u64,
    filling: HashMap<Resource, Account>,
    full: HashMap<Resource, Account>,
    /// How long the full window was.
    full_us: u64,
}

#[derive(Clone)]
struct Account {
    attempts: u64,
    busy_us: u64,
    partition: PartitionId,
    worker: WorkerId,
}

impl Hot {
    /// Records from `since_us` on count.
    pub(super) fn new(since_us: u64) -> Self {
        Self { since_us, filling: HashMap::new(), full: HashMap::new(), full_us: 0 }
    }

    /// An attempt has ended.
    pub(super) fn note(&mut self, Entry { worker, record }: &Entry) {
        let Record { resource, partition, took_us, outcome, .. } = record;
        if !outcome.is_attempt() || record.end_us() < self.since_us {
            return;
        }
        let account = self.filling.entry(resource.clone()).or_insert_with(|| Account {
            attempts: 0,
            busy_us: 0,
            partition: *partition,
            worker: worker.clone(),
        });
        account.attempts += 1;
        account.busy_us = account.busy_us.saturating_add(*took_us);
        if account.worker != *worker {
            account.worker = worker.clone();
        }
        if self.filling.len() >= 2 * KEPT {
            let mut accounts: Vec<_> = self.filling.drain().collect();
            accounts.select_nth_unstable_by(KEPT, |(_, a), (_, b)| b.busy_us.cmp(&a.busy_us));
            accounts.truncate(KEPT);
            self.filling.extend(accounts);
        }
    }

    /// Moves on to this time.
    pub(super) fn advance(&mut self, now_us: u64) {
        let passed = now_us.saturating_sub(self.since_us);
        if passed >= WINDOW_US {
            self.full = std::mem::take(&mut self.filling);
            (self.since_us, self.full_us) = (now_us, passed);
        }
    }

    /// The busiest, busiest first.
    pub(super) fn busiest(&self, now_us: u64) -> Vec<HotResource> {
        let mut sums = self.filling.clone();
        for (resource, account) in &self.full {
            let sum = sums.entry(resource.clone()).or_insert_with(|| Account {
                attempts: 0,
                busy_us: 0,
                ..account.clone()
            });
            sum.attempts += account.attempts;
            sum.busy_us = sum.busy_us.saturating_add(account.busy_us);
        }
        let window_us = self.full_us + now_us.saturating_sub(self.since_us);
        let window_us = window_us.max(1_000_000) as f64;
        let mut sums: Vec<_> = sums.into_iter().collect();
        // By name, too: those that are alike stay where they are.
        sums.sort_unstable_by(|(a, x), (b, y)| y.busy_us.cmp(&x.busy_us).then_with(|| a.cmp(b)));
        sums.truncate(SHOWN);
        let row = |(resource, account): (Resource, Account)| HotResource {
            resource,
            partition: account.partition,
            worker: account.worker,
            per_s: account.attempts as f64 / (window_us / 1e6),
            busy: (account.busy_us as f64 / window_us).min(1.0),
            mean_us: account.busy_us / account.attempts.max(1),
        };
        sums.into_iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(resource: &str, at_us: u64, took_us: u64) -> Entry {
        let record = serde_json::json!({
            "task": "t", "resource": resource, "partition": 3, "attempt": 1,
            "at_us": at_us, "took_us": took_us, "outcome": "executed",
        });
        let record = serde_json::from_value(record).expect("a record");
        Entry { worker: WorkerId::new("a").expect("a name"), record }
    }

    #[test]
    fn the_busiest_are_found_among_very_many() {
        let mut hot = Hot::new(0);
        for n in 0..50_000u64 {
            hot.note(&ended(&format!("cold-{n}"), n * 1_000, 10));
            if n.is_multiple_of(100) {
                hot.note(&ended("busy", n * 1_000, 50_000));
            }
            if n.is_multiple_of(1_000) {
                hot.note(&ended("warm", n * 1_000, 5_000));
            }
        }
        assert!(hot.filling.len() <= 2 * KEPT, "{}", hot.filling.len());
        let busiest = hot.busiest(50_000_000);
        let names: Vec<_> = busiest.iter().take(2).map(|hot| hot.resource.as_str()).collect();
        assert_eq!(names, ["busy", "warm"]);
        assert!((0.45..=0.55).contains(&busiest[0].busy), "{:?}", busiest[0]);
        assert_eq!(busiest[0].mean_us, 50_000);
    }

    #[test]
    fn what_has_cooled_down_is_forgotten() {
        let mut hot = Hot::new(0);
        hot.note(&ended("a", 0, 1_000));
        hot.advance(WINDOW_US);
        assert_eq!(hot.busiest(WINDOW_US).len(), 1);
        hot.advance(2 * WINDOW_US);
        assert_eq!(hot.busiest(2 * WINDOW_US), []);
    }
}
