//! Watches whether the partitions, and the inbox, make progress.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::worker::Said;

/// What the workers have told, in sums.
#[derive(Debug)]
pub(super) struct Watch {
    /// What has executed something so lately makes progress.
    lately: Duration,
    state: Mutex<State>,
}

/// What makes progress by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Partition(u32),
    /// Tasks that came through the inbox.
    Inbox,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(number) => write!(f, "p{number}"),
            Self::Inbox => f.write_str("inbox"),
        }
    }
}

#[derive(Debug)]
struct State {
    partitions: Vec<Progress>,
    /// `None` if nothing is published there.
    inbox: Option<Progress>,
    /// Gaps count from then on.
    since_us: u64,
    counts: Counts,
    ends: Vec<Said>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
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
    /// `inbox` says whether tasks come through the inbox.
    pub(super) fn new(partitions: u32, inbox: bool, lately: Duration) -> Self {
        let partitions = vec![Progress::default(); partitions as usize];
        let inbox = inbox.then(Progress::default);
        let (counts, ends) = (Counts::default(), Vec::new());
        let state = Mutex::new(State { partitions, inbox, since_us: 0, counts, ends });
        Self { lately, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has told something.
    pub(super) fn note(&self, said: Said) {
        let mut state = self.state();
        let since_us = state.since_us;
        match said {
            Said::Start { at_us, partition, inbox, redelivered, repeat } => {
                state.counts.executions += 1;
                state.counts.redelivered += u64::from(redelivered);
                state.counts.repeats += u64::from(repeat);
                if let Some(partition) = state.partitions.get_mut(partition as usize) {
                    partition.note(at_us, since_us);
                }
                if let Some(progress) = state.inbox.as_mut().filter(|_| inbox) {
                    progress.note(at_us, since_us);
                }
            }
            Said::End { .. } => state.ends.push(said),
        }
    }

    /// From now on gaps are measured anew.
    pub(super) fn begin(&self, now_us: u64) {
        let mut state = self.state();
        state.since_us = now_us;
        let State { partitions, inbox, .. } = &mut *state;
        partitions.iter_mut().chain(inbox).for_each(|progress| progress.longest_us = 0);
    }

    /// The longest gaps since [`Watch::begin`], those that still last included.
    pub(super) fn pauses(&self, now_us: u64) -> Pauses {
        let state = self.state();
        let longest = |mut progress: Progress| {
            progress.gap(now_us, state.since_us);
            progress.longest_us / 1_000
        };
        let all = state.partitions.iter().chain(&state.inbox);
        let mut pauses: Vec<u64> = all.copied().map(longest).collect();
        pauses.sort_unstable();
        let at = |index: usize| pauses.get(index).copied().unwrap_or_default();
        Pauses { median: at(pauses.len() / 2), max: at(pauses.len().saturating_sub(1)) }
    }

    /// Whether everything has executed something lately.
    pub(super) fn progresses(&self, now_us: u64) -> bool {
        self.stuck(now_us).is_empty()
    }

    /// What has not.
    pub(super) fn stuck(&self, now_us: u64) -> BTreeSet<Stream> {
        let lately_us = self.lately.as_micros() as u64;
        let is_stuck = |p: &Progress| now_us.saturating_sub(p.last_us) >= lately_us;
        let state = self.state();
        let partitions = (0..).map(Stream::Partition).zip(&state.partitions);
        let all = partitions.chain(state.inbox.iter().map(|progress| (Stream::Inbox, progress)));
        all.filter(|(_, progress)| is_stuck(progress)).map(|(stream, _)| stream).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// What the workers said when they ended.
    pub(super) fn ends(&self) -> Vec<Said> {
        self.state().ends.clone()
    }
}

impl Progress {
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

    fn start(partition: u32, at_us: u64, inbox: bool) -> Said {
        Said::Start { at_us, partition, inbox, redelivered: false, repeat: false }
    }

    #[test]
    fn the_longest_gap_counts_from_the_fault_on() {
        let watch = Watch::new(3, false, Duration::from_secs(2));
        for partition in 0..3 {
            watch.note(start(partition, 1_000_000, false));
        }
        watch.begin(5_000_000);
        watch.note(start(0, 5_100_000, true));
        watch.note(start(0, 5_400_000, false));
        watch.note(start(1, 7_000_000, false));
        let pauses = watch.pauses(8_000_000);
        assert_eq!(pauses, Pauses { median: 2_600, max: 3_000 });
        assert_eq!(watch.stuck(8_000_000), [0, 2].map(Stream::Partition).into());
        (0..3).for_each(|partition| watch.note(start(partition, 8_000_000, false)));
        assert!(watch.progresses(8_000_000));
        assert_eq!(watch.counts().executions, 9);
    }

    #[test]
    fn the_inbox_is_watched_beside_the_partitions() {
        let watch = Watch::new(1, true, Duration::from_secs(2));
        watch.note(start(0, 1_000_000, true));
        watch.note(start(0, 4_000_000, false));
        assert_eq!(watch.stuck(4_000_000), [Stream::Inbox].into());
        watch.note(start(0, 4_100_000, true));
        assert!(watch.progresses(4_200_000));
    }
}
