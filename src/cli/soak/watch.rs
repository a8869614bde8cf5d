//! Watches whether the partitions make progress.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::worker::Said;

/// A partition that has executed something so lately makes progress; the load has
/// some twenty tasks a second for each.
const LATELY_US: u64 = 2_000_000;

/// What the workers have told, in sums.
#[derive(Debug)]
pub(super) struct Watch(Mutex<State>);

#[derive(Debug)]
struct State {
    partitions: Vec<Partition>,
    /// Gaps count from then on.
    since_us: u64,
    counts: Counts,
    ends: Vec<Said>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Partition {
    last_us: u64,
    longest_us: u64,
}

/// Executions that were started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Counts {
    pub(super) executions: u64,
    /// Of these, tasks that somebody else had held already.
    pub(super) redelivered: u64,
    /// Of these, tasks that had been executed already.
    pub(super) repeats: u64,
}

impl Counts {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            executions: self.executions - before.executions,
            redelivered: self.redelivered - before.redelivered,
            repeats: self.repeats - before.repeats,
        }
    }
}

/// How long partitions stood still, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Pauses {
    pub(super) median: u64,
    pub(super) max: u64,
}

impl Watch {
    pub(super) fn new(partitions: u32) -> Self {
        let partitions = vec![Partition::default(); partitions as usize];
        let (counts, ends) = (Counts::default(), Vec::new());
        Self(Mutex::new(State { partitions, since_us: 0, counts, ends }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has told something.
    pub(super) fn note(&self, said: Said) {
        let mut state = self.state();
        let since_us = state.since_us;
        match said {
            Said::Start { at_us, partition, redelivered, repeat } => {
                state.counts.executions += 1;
                state.counts.redelivered += u64::from(redelivered);
                state.counts.repeats += u64::from(repeat);
                if let Some(partition) = state.partitions.get_mut(partition as usize) {
                    partition.note(at_us, since_us);
                }
            }
            Said::End { .. } => state.ends.push(said),
        }
    }

    /// From now on gaps are measured anew.
    pub(super) fn begin(&self, now_us: u64) {
        let mut state = self.state();
        state.since_us = now_us;
        state.partitions.iter_mut().for_each(|partition| partition.longest_us = 0);
    }

    /// The longest gaps since [`Watch::begin`], those that still last included.
    pub(super) fn pauses(&self, now_us: u64) -> Pauses {
        let state = self.state();
        let longest = |mut partition: Partition| {
            partition.gap(now_us, state.since_us);
            partition.longest_us / 1_000
        };
        let mut pauses: Vec<u64> = state.partitions.iter().copied().map(longest).collect();
        pauses.sort_unstable();
        let at = |index: usize| pauses.get(index).copied().unwrap_or_default();
        Pauses { median: at(pauses.len() / 2), max: at(pauses.len().saturating_sub(1)) }
    }

    /// Whether all partitions have executed something lately.
    pub(super) fn progresses(&self, now_us: u64) -> bool {
        self.stuck(now_us).is_empty()
    }

    /// The numbers of the partitions that have not.
    pub(super) fn stuck(&self, now_us: u64) -> BTreeSet<u32> {
        let is_stuck = |p: &Partition| now_us.saturating_sub(p.last_us) >= LATELY_US;
        let state = self.state();
        let numbered = (0..).zip(&state.partitions);
        numbered.filter(|(_, p)| is_stuck(p)).map(|(number, _)| number).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// What the workers said when they ended.
    pub(super) fn ends(&self) -> Vec<Said> {
        self.state().ends.clone()
    }
}

impl Partition {
    fn gap(&mut self, at_us: u64, since_us: u64) {
        let gap = at_us.saturating_sub(self.last_us.max(since_us));
        self.longest_us = self.longest_us.max(gap);
    }

    fn note(&mut self, at_us: u64, since_us: u64) {
        self.gap(at_us, since_us);
        self.last_us = self.last_us.max(at_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(partition: u32, at_us: u64) -> Said {
        Said::Start { at_us, partition, redelivered: false, repeat: false }
    }

    #[test]
    fn the_longest_gap_counts_from_the_fault_on() {
        let watch = Watch::new(3);
        for partition in 0..3 {
            watch.note(start(partition, 1_000_000));
        }
        watch.begin(5_000_000);
        watch.note(start(0, 5_100_000));
        watch.note(start(0, 5_400_000));
        watch.note(start(1, 7_000_000));
        let pauses = watch.pauses(8_000_000);
        assert_eq!(pauses, Pauses { median: 2_600, max: 3_000 });
        assert_eq!(watch.stuck(8_000_000), [0, 2].into());
        (0..3).for_each(|partition| watch.note(start(partition, 8_000_000)));
        assert!(watch.progresses(8_000_000));
        assert_eq!(watch.counts().executions, 9);
    }
}
