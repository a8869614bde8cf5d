//! What a worker counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A number that many slots raise.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Raises it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a worker counts while it works.
#[derive(Debug, Default)]
pub struct Counters {
    /// Tasks executed.
    pub executed: Count,
    /// Round trips that serve coordination: lock, unlock, renewal, claim, change of
    /// ownership, and tries of these.
    pub operations: Count,
    /// Messages to other workers.
    pub messages: Count,
    /// Tries to get a lock that found it taken; part of the operations.
    pub tries: Count,
    /// Microseconds in which a slot had a task and waited to be allowed to execute it.
    pub waited_us: Count,
    /// Executions whose result was thrown away.
    pub wasted: Count,
    /// Lock requests that a deadlock ended, or a time limit that stands for one.
    pub deadlocks: Count,
    /// Executions that found another one of the same resource running.
    pub overlaps: Count,
    /// Writes that the store refused as stale; part of the wasted ones.
    pub fenced_off: Count,
}

impl Counters {
    /// Counts the time since `since` as waiting.
    pub fn waited(&self, since: Instant) {
        self.waited_us.add(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
    }

    /// What has been counted by now.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            executed: self.executed.get(),
            operations: self.operations.get(),
            messages: self.messages.get(),
            tries: self.tries.get(),
            waited_us: self.waited_us.get(),
            wasted: self.wasted.get(),
            deadlocks: self.deadlocks.get(),
            overlaps: self.overlaps.get(),
            fenced_off: self.fenced_off.get(),
        }
    }
}

/// What was counted; see [`Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "they are the counters of the same names")]
pub struct Tally {
    pub executed: u64,
    pub operations: u64,
    pub messages: u64,
    pub tries: u64,
    pub waited_us: u64,
    pub wasted: u64,
    pub deadlocks: u64,
    pub overlaps: u64,
    pub fenced_off: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            executed: self.executed + other.executed,
            operations: self.operations + other.operations,
            messages: self.messages + other.messages,
            tries: self.tries + other.tries,
            waited_us: self.waited_us + other.waited_us,
            wasted: self.wasted + other.wasted,
            deadlocks: self.deadlocks + other.deadlocks,
            overlaps: self.overlaps + other.overlaps,
            fenced_off: self.fenced_off + other.fenced_off,
        }
    }
}
