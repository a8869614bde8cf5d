//! What each slot of a worker executes, and from when to when.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::handler::Attempt;
use crate::protocol::task::TaskId;
use crate::rabbit::control::RunningTask;

/// All slots of a worker.
#[derive(Default)]
pub(super) struct Stints {
    /// By the number of the slot. As long as the most that ever ran at once.
    slots: Mutex<Vec<Option<RunningTask>>>,
    began: Began,
    /// What the machine's clock is ahead of ours, in microseconds.
    ahead_us: AtomicU64,
}

struct Began(Instant);

impl Default for Began {
    fn default() -> Self {
        Self(Instant::now())
    }
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
}

/// A stint that goes on; it ends when this is dropped.
pub(super) struct Running<'a> {
    stints: &'a Stints,
    stint: Arc<Stint>,
}

impl Stints {
    /// The time, in microseconds since 1970. Never goes back and never stands still, whatever the
    /// clock of the machine does.
    pub(super) fn now_us(&self) -> u64 {
        self.at(self.began.0.elapsed(), wall())
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
        slots[free] = Some(RunningTask {
            task: attempt.id.clone(),
            resource: attempt.task.resource.clone(),
            partition: attempt.partition,
            attempt: attempt.number,
            since_us,
        });
        // Fewer than there are permits, which has 32 bits.
        stint.slot.store(free as u32, Ordering::Relaxed);
        stint.started_us.store(since_us, Ordering::Relaxed);
        Running { stints: self, stint }
    }

    /// The attempts at a task that run now.
    pub(super) fn find(&self, task: &TaskId) -> Option<RunningTask> {
        self.slots().iter().flatten().find(|running| running.task == *task).cloned()
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Option<RunningTask>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut slots = self.stints.slots();
        self.stint.ended_us.store(self.stints.now_us(), Ordering::Relaxed);
        if let Some(slot) = slots.get_mut(self.stint.slot.load(Ordering::Relaxed) as usize) {
            *slot = None;
        }
    }
}

impl Stint {
    /// Slot, start and duration in microseconds; `None` if the handler never
    /// began. Of one that has ended.
    pub(super) fn times(&self) -> Option<(u32, u64, u64)> {
        let started = self.started_us.load(Ordering::Relaxed);
        let took = self.ended_us.load(Ordering::Relaxed).saturating_sub(started);
        (started > 0).then(|| (self.slot.load(Ordering::Relaxed), started, took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_steps_neither_freezes_nor_turns_the_time_back() {
        let stints = Stints::default();
        let at = |ours, wall| stints.at(Duration::from_secs(ours), Duration::from_secs(wall));
        let times = [at(0, 1_000), at(1, 1_001), at(2, 5_000), at(3, 1_003), at(4, 1_004)];
        assert_eq!(times.map(|us| us / 1_000_000), [1_000, 1_001, 5_000, 5_001, 5_002]);
    }
}
