//! What each slot of a worker executes, and from when to when.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::handler::Attempt;
use crate::metrics::Figures;
use crate::protocol::ownership::WorkerId;
use crate::protocol::task::TaskId;
use crate::rabbit::running::{LongRunning, RunningTask, RunningTasks};

/// All slots of a worker.
pub(super) struct Stints {
    /// By the number of the slot. As long as the most that ever ran at once.
    slots: Mutex<Vec<Option<Slot>>>,
    began: Instant,
    /// What the machine's clock is ahead of ours, in microseconds.
    ahead_us: AtomicU64,
    figures: Arc<Figures>,
}

/// What runs in a slot, and when it is given up, in milliseconds from its start.
struct Slot {
    running: RunningTask,
    timeout_ms: Option<u64>,
}

/// The time by the clock of the machine, in milliseconds since 1970.
pub(super) fn wall_ms() -> u64 {
    micros(wall()) / 1_000
}

fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The time that one attempt has, or had, in one slot.
#[derive(Default)]
pub(super) struct Stint {
    slot: AtomicU32,
    /// Microseconds since 1970; 0 before it has.
    started_us: AtomicU64,
    ended_us: AtomicU64,
    aborted: CancellationToken,
}

/// A stint that goes on; it ends when this is dropped.
pub(super) struct Running<'a> {
    stints: &'a Stints,
    stint: Arc<Stint>,
}

impl Stints {
    pub(super) fn new(figures: Arc<Figures>) -> Self {
        let (slots, ahead_us) = (Mutex::default(), AtomicU64::default());
        Self { slots, began: Instant::now(), ahead_us, figures }
    }

    /// The time, in microseconds since 1970. Never goes back and never stands still, whatever the
    /// clock of the machine does.
    pub(super) fn now_us(&self) -> u64 {
        self.at(self.began.elapsed(), wall())
    }

    fn at(&self, ours: Duration, wall: Duration) -> u64 {
        let ours = micros(ours);
        let ahead = micros(wall).saturating_sub(ours);
        ours.saturating_add(self.ahead_us.fetch_max(ahead, Ordering::Relaxed).max(ahead))
    }

    /// An attempt begins, in the first slot that is free.
    pub(super) fn begin(&self, attempt: &Attempt, stint: Arc<Stint>) -> Running<'_> {
        let mut slots = self.slots();
        let free = slots.iter().position(Option::is_none).unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        let since_us = self.now_us();
        let running = RunningTask {
            task: attempt.id.clone(),
            resource: attempt.task.resource.clone(),
            partition: attempt.partition,
            attempt: attempt.number,
            since_us,
            age_us: 0,
            // Fewer than there are permits, which has 32 bits.
            slot: free as u32,
        };
        slots[free] = Some(Slot { running, timeout_ms: attempt.timeout.map(millis) });
        if slots.iter().flatten().nth(1).is_none() {
            self.note_oldest(&slots);
        }
        stint.slot.store(free as u32, Ordering::Relaxed);
        stint.started_us.store(since_us, Ordering::Relaxed);
        Running { stints: self, stint }
    }

    /// The attempt at a task that runs now.
    pub(super) fn find(&self, task: &TaskId) -> Option<RunningTask> {
        let now_us = self.now_us();
        let slots = self.slots();
        let found = slots.iter().flatten().find(|slot| slot.running.task == *task);
        found.map(|slot| aged(slot.running.clone(), now_us))
    }

    /// All attempts that run now, the oldest first.
    pub(super) fn running(&self, worker: WorkerId) -> RunningTasks {
        let now_us = self.now_us();
        let slots: Vec<_> =
            self.slots().iter().flatten().map(|slot| slot.running.clone()).collect();
        let mut running: Vec<_> = slots.into_iter().map(|slot| aged(slot, now_us)).collect();
        running.sort_by_key(|running| running.since_us);
        let more = running.len().saturating_sub(RunningTasks::MOST) as u32;
        running.truncate(RunningTasks::MOST);
        RunningTasks { worker, running, more }
    }

    /// The attempts that have been running for longest, the longest first.
    pub(super) fn longest(&self, most: usize) -> Vec<LongRunning> {
        let now_us = self.now_us();
        let slots = self.slots();
        let mut running: Vec<&Slot> = slots.iter().flatten().collect();
        running.sort_by_key(|slot| slot.running.since_us);
        let longest = running.into_iter().take(most).map(|Slot { running, timeout_ms }| {
            let for_ms = now_us.saturating_sub(running.since_us) / 1_000;
            LongRunning::new(running.clone(), for_ms, *timeout_ms)
        });
        longest.collect()
    }

    /// Counts the oldest attempt anew.
    fn note_oldest(&self, slots: &[Option<Slot>]) {
        let oldest = slots.iter().flatten().min_by_key(|slot| slot.running.since_us);
        let (since_us, timeout_ms) =
            oldest.map_or((0, 0), |slot| (slot.running.since_us, slot.timeout_ms.unwrap_or(0)));
        self.figures.worker.oldest_since_us.store(since_us, Ordering::Relaxed);
        self.figures.worker.oldest_timeout_ms.store(timeout_ms, Ordering::Relaxed);
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Option<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn aged(running: RunningTask, now_us: u64) -> RunningTask {
    RunningTask { age_us: now_us.saturating_sub(running.since_us), ..running }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut slots = self.stints.slots();
        self.stint.ended_us.store(self.stints.now_us(), Ordering::Relaxed);
        let slot = slots.get_mut(self.stint.slot.load(Ordering::Relaxed) as usize);
        let ended = slot.and_then(Option::take);
        let oldest_us = self.stints.figures.worker.oldest_since_us.load(Ordering::Relaxed);
        if ended.is_some_and(|ended| ended.running.since_us <= oldest_us) {
            self.stints.note_oldest(&slots);
        }
    }
}

impl Stint {
    /// Ends it, if it goes on.
    pub(super) fn abort(&self) {
        self.aborted.cancel();
    }

    /// Comes back when somebody wants it to end.
    pub(super) async fn aborted(&self) {
        self.aborted.cancelled().await;
    }

    /// Slot, start and duration in microseconds; `None` if the handler never
    /// began. Of one that has ended.
    pub(super) fn times(&self) -> Option<(u32, u64, u64)> {
        let started = self.started_us.load(Ordering::Relaxed);
        let took = self.ended_us.load(Ordering::Relaxed).saturating_sub(started);
        (started > 0).then(|| (self.slot.load(Ordering::Relaxed), started, took))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::task::{Resource, Task};

    fn attempt(id: &str) -> Attempt {
        let resource = Resource::new(id).expect("a resource");
        let mut attempt = Attempt::new(TaskId::new(id).expect("an id"), Task::on(resource, "x"));
        attempt.timeout = Some(Duration::from_secs(9));
        attempt
    }

    #[test]
    fn the_oldest_attempt_is_known_until_it_ends() {
        let figures = Arc::<Figures>::default();
        let stints = Stints::new(Arc::clone(&figures));
        let since = || figures.worker.oldest_since_us.load(Ordering::Relaxed);
        let began = |id| {
            std::thread::sleep(Duration::from_millis(2));
            stints.begin(&attempt(id), Arc::default())
        };
        assert_eq!(since(), 0);
        let (first, second, third) = (began("first"), began("second"), began("third"));
        let longest = stints.longest(2);
        let names: Vec<_> = longest.iter().map(|one| one.running.task.as_str()).collect();
        assert_eq!(names, ["first", "second"]);
        assert!(longest[0].for_ms >= 4 && longest[0].timeout_ms == Some(9_000), "{longest:?}");
        let oldest = since();
        drop(second);
        assert_eq!(since(), oldest, "the first goes on");
        drop(first);
        assert_eq!(since(), stints.longest(1)[0].running.since_us, "it is the third's now");
        assert_eq!(figures.worker.oldest_timeout_ms.load(Ordering::Relaxed), 9_000);
        drop(third);
        assert_eq!(since(), 0);
    }

    #[test]
    fn a_clock_that_steps_neither_freezes_nor_turns_the_time_back() {
        let stints = Stints::new(Arc::default());
        let at = |ours, wall| stints.at(Duration::from_secs(ours), Duration::from_secs(wall));
        let times = [at(0, 1_000), at(1, 1_001), at(2, 5_000), at(3, 1_003), at(4, 1_004)];
        assert_eq!(times.map(|us| us / 1_000_000), [1_000, 1_001, 5_000, 5_001, 5_002]);
    }
}
