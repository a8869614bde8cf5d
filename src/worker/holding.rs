//! What one owner holds of its partition; written by it only, read by who reports.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::protocol::lanes::{Crowd, Lanes};
use crate::protocol::partition::PartitionId;
use crate::rabbit::control::HeldPartition;

/// See the [module](self).
pub(super) struct Held {
    served: AtomicBool,
    unsettled: AtomicU32,
    running: AtomicU32,
    paused: AtomicU32,
    retrying: AtomicU32,
    startable: AtomicU32,
    lacks_token: AtomicBool,
    /// Milliseconds since the worker started.
    retry_at_ms: AtomicU64,
    settled: AtomicU64,
    /// Time that handlers ran, added up, and until when; microseconds since the worker started.
    busy_us: AtomicU64,
    noted_us: AtomicU64,
    /// The resource that fills the window, when it was last looked for; microseconds since the
    /// worker started.
    crowd: Mutex<Option<(u64, Option<Crowd>)>>,
    full: AtomicBool,
}

/// Time between two looks for the resource that fills a window, in microseconds.
const CROWD_LOOK_US: u64 = 1_000_000;

/// No retry is due.
const NEVER: u64 = u64::MAX;

impl Default for Held {
    fn default() -> Self {
        Self {
            served: AtomicBool::new(false),
            unsettled: AtomicU32::new(0),
            running: AtomicU32::new(0),
            paused: AtomicU32::new(0),
            retrying: AtomicU32::new(0),
            startable: AtomicU32::new(0),
            lacks_token: AtomicBool::new(false),
            retry_at_ms: AtomicU64::new(NEVER),
            settled: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            noted_us: AtomicU64::new(0),
            crowd: Mutex::new(None),
            full: AtomicBool::new(false),
        }
    }
}

impl Held {
    /// What the lanes hold. `now`, `retry_at`: since the worker started. `window`: how many
    /// deliveries they hold at the most.
    pub(super) fn note(
        &self,
        now: Duration,
        lanes: &Lanes,
        retry_at: Option<Duration>,
        window: usize,
    ) {
        self.add_busy(now);
        self.note_crowd(micros(now), lanes, window);
        // A window holds no more than a prefetch, which has 16 bits.
        self.unsettled.store(lanes.unsettled() as u32, Ordering::Relaxed);
        self.running.store(lanes.running() as u32, Ordering::Relaxed);
        self.paused.store(lanes.paused() as u32, Ordering::Relaxed);
        self.retrying.store(lanes.retrying() as u32, Ordering::Relaxed);
        self.startable.store(lanes.startable() as u32, Ordering::Relaxed);
        let retry_at = retry_at.and_then(|at| u64::try_from(at.as_millis()).ok());
        self.retry_at_ms.store(retry_at.unwrap_or(NEVER), Ordering::Relaxed);
    }

    fn note_crowd(&self, now_us: u64, lanes: &Lanes, window: usize) {
        let full = lanes.unsettled() >= window;
        let was_full = self.full.swap(full, Ordering::Relaxed);
        if !full && !was_full {
            return;
        }
        let mut crowd = self.crowd();
        // A window that is refilled at once stays full.
        let looked = crowd.as_ref().map(|(at_us, _)| *at_us);
        if looked.is_none_or(|at_us| now_us.saturating_sub(at_us) >= CROWD_LOOK_US) {
            *crowd = full.then(|| (now_us, lanes.crowd(window)));
        }
    }

    /// The resource that fills the window, if one does.
    pub(super) fn crowded_by(&self) -> Option<Crowd> {
        self.crowd().as_ref()?.1.clone()
    }

    fn crowd(&self) -> MutexGuard<'_, Option<(u64, Option<Crowd>)>> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker handed out something: so this is, or was, the owner.
    pub(super) fn note_served(&self) {
        self.served.store(true, Ordering::Relaxed);
    }

    /// Whether it did so since the partition was last given up, or lost.
    pub(super) fn served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Whether there is a fencing token for it, as far as is known.
    pub(super) fn note_token(&self, lacks_token: bool) {
        self.lacks_token.store(lacks_token, Ordering::Relaxed);
    }

    /// The partition was given up, or lost.
    pub(super) fn note_nothing(&self, now: Duration) {
        self.add_busy(now);
        self.served.store(false, Ordering::Relaxed);
        self.note_token(false);
        for count in [&self.unsettled, &self.running, &self.paused, &self.retrying, &self.startable]
        {
            count.store(0, Ordering::Relaxed);
        }
        self.retry_at_ms.store(NEVER, Ordering::Relaxed);
        *self.crowd() = None;
    }

    /// A delivery is done.
    pub(super) fn note_settled(&self) {
        self.settled.fetch_add(1, Ordering::Relaxed);
    }

    /// The time that its handlers have run, added up, in microseconds.
    pub(super) fn busy_us(&self, now: Duration) -> u64 {
        let running_us = micros(now).saturating_sub(self.noted_us.load(Ordering::Relaxed));
        let running = u64::from(self.running()).saturating_mul(running_us);
        self.busy_us.load(Ordering::Relaxed).saturating_add(running)
    }

    /// What ran since the last time counts as busy; called before that changes.
    fn add_busy(&self, now: Duration) {
        self.busy_us.store(self.busy_us(now), Ordering::Relaxed);
        self.noted_us.store(micros(now), Ordering::Relaxed);
    }

    pub(super) fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    /// `None` if this is not the owner. `now`: since the worker started.
    pub(super) fn report(&self, partition: PartitionId, now: Duration) -> Option<HeldPartition> {
        if !self.served() {
            return None;
        }
        let read = |count: &AtomicU32| count.load(Ordering::Relaxed);
        let mut held =
            HeldPartition::new(partition.number(), read(&self.unsettled), self.running());
        held.paused = read(&self.paused);
        held.retrying = read(&self.retrying);
        held.startable = read(&self.startable);
        held.lacks_token = self.lacks_token.load(Ordering::Relaxed);
        held.settled = self.settled.load(Ordering::Relaxed);
        let retry_at = self.retry_at_ms.load(Ordering::Relaxed);
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        held.retry_in_ms = (retry_at != NEVER).then(|| retry_at.saturating_sub(now_ms));
        Some(held)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
