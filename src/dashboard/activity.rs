//! What the journal says of the last minutes, in rings: however much is executed,
//! it takes the same memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::snapshot::{Execution, History};
use crate::protocol::history::Outcome;
use crate::protocol::journal::{Batch, Entry};

/// So far back go the charts.
const SECONDS: usize = 300;

/// So many seconds share a distribution of times: in one second alone there may be
/// too few executions for a percentile.
const SLICE_S: usize = 5;

/// The rate is that of so many seconds: steady, and quick enough to follow.
const RATE_S: usize = 10;

/// So many attempts are listed.
const RECENT: usize = 50;

/// Writers whose last batch is known. A fleet of thousands that is replaced every
/// day fills it in days; then a batch that was written twice may count twice.
const WRITERS: usize = 4_096;

/// What went on lately.
pub(super) struct Activity {
    /// The second that the last place of the rings is of.
    now_s: u64,
    seconds: VecDeque<Second>,
    slices: VecDeque<Times>,
    recent: VecDeque<Execution>,
    /// The last batch of each writer.
    written: HashMap<Arc<str>, u64>,
}

/// What ended in a second.
#[derive(Clone, Copy, Default)]
struct Second {
    executed: u32,
    failed: u32,
    dead_lettered: u32,
}

impl Activity {
    pub(super) fn new(now_us: u64) -> Self {
        Self {
            now_s: now_us / 1_000_000,
            seconds: VecDeque::from(vec![Second::default(); SECONDS]),
            slices: VecDeque::from(vec![Times::default(); SECONDS / SLICE_S]),
            recent: VecDeque::with_capacity(RECENT),
            written: HashMap::new(),
        }
    }

    /// Whether a batch was not read before.
    pub(super) fn is_new(&mut self, batch: &Batch) -> bool {
        if self.written.len() >= WRITERS && !self.written.contains_key(&batch.writer) {
            self.written.clear();
        }
        let last = self.written.insert(Arc::clone(&batch.writer), batch.number);
        last.is_none_or(|last| batch.number > last)
    }

    /// An attempt has ended.
    pub(super) fn note(&mut self, entry: &Entry, now_us: u64) {
        self.advance(now_us);
        let Entry { worker, record } = entry;
        // A worker's clock may be ahead of ours.
        let ago_s = self.now_s.saturating_sub(record.end_us() / 1_000_000) as usize;
        if let Some(second) = place(&mut self.seconds, ago_s) {
            match record.outcome {
                Outcome::Executed => second.executed += 1,
                Outcome::DeadLettered => second.dead_lettered += 1,
                Outcome::Failed | Outcome::Aborted | Outcome::Lost => second.failed += 1,
                Outcome::Superseded => {}
            }
        }
        if record.outcome == Outcome::Executed {
            let slice = self.slice_of(ago_s);
            if let Some(times) = place(&mut self.slices, slice) {
                times.note(record.took_us);
            }
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Execution {
            task: record.task.clone(),
            resource: record.resource.clone(),
            partition: record.partition,
            worker: worker.clone(),
            attempt: record.attempt,
            at_us: record.at_us,
            took_us: record.took_us,
            outcome: record.outcome,
            reason: record.reason.clone(),
        });
    }

    /// Moves on to this time.
    pub(super) fn advance(&mut self, now_us: u64) {
        let now_s = now_us / 1_000_000;
        if now_s.saturating_sub(self.now_s) > SECONDS as u64 {
            self.seconds.iter_mut().for_each(|second| *second = Second::default());
            self.slices.iter_mut().for_each(|times| *times = Times::default());
            self.now_s = now_s;
        }
        while self.now_s < now_s {
            self.now_s += 1;
            self.seconds.rotate_left(1);
            if let Some(last) = self.seconds.back_mut() {
                *last = Second::default();
            }
            if self.now_s.is_multiple_of(SLICE_S as u64) {
                self.slices.rotate_left(1);
                if let Some(last) = self.slices.back_mut() {
                    *last = Times::default();
                }
            }
        }
    }

    /// Slices begin at multiples of their length.
    fn slice_of(&self, ago_s: usize) -> usize {
        let into = (self.now_s % SLICE_S as u64) as usize;
        (ago_s + SLICE_S - 1 - into) / SLICE_S
    }

    /// Executed and failed in a second, over the last whole ones.
    pub(super) fn rates(&self) -> (f64, f64) {
        let (mut executed, mut failed) = (0, 0);
        // The present second is not over.
        for second in self.seconds.iter().rev().skip(1).take(RATE_S) {
            executed += second.executed;
            failed += second.failed;
        }
        (f64::from(executed) / RATE_S as f64, f64::from(failed) / RATE_S as f64)
    }

    pub(super) fn history(&self) -> History {
        let column = |of: fn(&Second) -> u32| self.seconds.iter().map(of).collect();
        let times = |share| self.slices.iter().map(|times| times.quantile(share)).collect();
        History {
            from_s: (self.now_s + 1).saturating_sub(SECONDS as u64),
            executed: column(|second| second.executed),
            failed: column(|second| second.failed),
            dead_lettered: column(|second| second.dead_lettered),
            slice_s: SLICE_S as u64,
            p50_us: times(0.5),
            p95_us: times(0.95),
        }
    }

    /// The last attempts, newest first.
    pub(super) fn recent(&self) -> Vec<Execution> {
        self.recent.iter().rev().cloned().collect()
    }
}

/// The place of so long ago, if it is kept.
fn place<T>(ring: &mut VecDeque<T>, ago: usize) -> Option<&mut T> {
    let index = ring.len().checked_sub(ago + 1)?;
    ring.get_mut(index)
}

/// How many executions took how long: eight steps to each doubling, so a quantile
/// is true to within nine in a hundred; up to 2³² µs, over an hour.
#[derive(Clone)]
struct Times([u32; 32 * STEPS]);

const STEPS: usize = 8;

impl Default for Times {
    fn default() -> Self {
        Self([0; 32 * STEPS])
    }
}

impl Times {
    fn note(&mut self, us: u64) {
        let step = ((us.max(1) as f64).log2() * STEPS as f64) as usize;
        if let Some(count) = self.0.get_mut(step.min(32 * STEPS - 1)) {
            *count = count.saturating_add(1);
        }
    }

    fn quantile(&self, share: f64) -> Option<u64> {
        let total: u64 = self.0.iter().copied().map(u64::from).sum();
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        self.0.iter().enumerate().find_map(|(step, count)| {
            seen += u64::from(*count);
            let upper = || ((step + 1) as f64 / STEPS as f64).exp2() as u64;
            (total > 0 && seen >= wanted).then(upper)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn ended(at_s: u64, took_us: u64, outcome: &str) -> Entry {
        let batch = serde_json::json!({
            "v": 1, "writer": "w", "number": 0, "worker": "a",
            "records": [{
                "task": "t", "resource": "r", "partition": 0, "attempt": 1,
                "at_us": at_s * S - took_us, "took_us": took_us, "outcome": outcome,
            }],
        });
        let batch = Batch::read(batch.to_string().as_bytes()).expect("a batch");
        batch.into_entries().next().expect("an entry")
    }

    #[test]
    fn what_ended_is_counted_in_its_second_until_it_is_forgotten() {
        let mut activity = Activity::new(1_000 * S);
        activity.note(&ended(1_000, 10, "executed"), 1_000 * S);
        activity.note(&ended(997, 10, "failed"), 1_000 * S);
        activity.note(&ended(100, 10, "executed"), 1_000 * S);
        activity.note(&ended(2_000, 10, "executed"), 1_000 * S);
        let history = activity.history();
        assert_eq!(history.from_s, 701);
        assert_eq!((history.executed[299], history.executed[..299].iter().sum()), (2, 0));
        assert_eq!((history.failed[296], history.failed.iter().sum()), (1, 1));
        activity.advance(1_299 * S);
        assert_eq!(activity.history().executed[0], 2);
        activity.advance(1_300 * S);
        assert_eq!(activity.history().executed, vec![0; 300]);
        activity.note(&ended(1_300, 10, "executed"), 1_300 * S);
        activity.advance(9_000 * S);
        assert_eq!(activity.history().executed, vec![0; 300], "after a long pause");
    }

    #[test]
    fn a_rate_is_that_of_whole_seconds() {
        let mut activity = Activity::new(1_000 * S);
        for second in 990..=1_000 {
            for _ in 0..3 {
                activity.note(&ended(second, 10, "executed"), 1_000 * S);
            }
        }
        assert_eq!(activity.rates(), (3.0, 0.0));
    }

    #[test]
    fn times_fall_into_their_slices() {
        // 1,003 is in the slice from 1,000 to 1,004.
        let mut activity = Activity::new(1_003 * S);
        activity.note(&ended(1_000, 1_000, "executed"), 1_003 * S);
        activity.note(&ended(999, 4_000, "executed"), 1_003 * S);
        let p50 = activity.history().p50_us;
        let near = |seen: Option<u64>, us: u64| {
            seen.is_some_and(|seen| seen >= us && seen <= us + us / 10)
        };
        assert!(near(p50[59], 1_000) && near(p50[58], 4_000), "{p50:?}");
        activity.advance(1_005 * S);
        let p50 = activity.history().p50_us;
        assert!(p50[59].is_none() && near(p50[58], 1_000), "{p50:?}");
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut times = Times::default();
        assert_eq!(times.quantile(0.5), None);
        (1..=100).for_each(|n| times.note(n * 1_000));
        let (p50, p95) = (times.quantile(0.5), times.quantile(0.95));
        assert!(p50.is_some_and(|us| (50_000..=54_600).contains(&us)), "{p50:?}");
        assert!(p95.is_some_and(|us| (95_000..=103_600).contains(&us)), "{p95:?}");
        times.note(u64::MAX);
        assert!(times.quantile(1.0) > Some(1 << 31));
    }

    #[test]
    fn memory_has_a_bound() {
        let mut activity = Activity::new(0);
        for n in 0..3 * WRITERS as u64 {
            let batch = Batch {
                v: 1,
                writer: format!("w{n}").into(),
                number: 1,
                open_from: 1,
                late: 0,
                ended: false,
                worker: crate::WorkerId::random(),
                records: Vec::new(),
            };
            assert!(activity.is_new(&batch) && !activity.is_new(&batch));
            activity.note(&ended(n / 100 + 1, 10, "executed"), n * 10_000 + S);
        }
        assert!(activity.written.len() <= WRITERS && activity.recent.len() <= RECENT);
        assert_eq!((activity.seconds.len(), activity.slices.len()), (SECONDS, SECONDS / SLICE_S));
    }
}
