//! What the writer of a journal counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct JournalFigures {
    pub(crate) batches: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) given_up: AtomicU64,
    /// Acks may be sent before their records at the moment.
    pub(crate) stalled: AtomicBool,
    /// Records whose acks may have been sent before them.
    pub(crate) late: AtomicU64,
    /// When the oldest record came that is not confirmed.
    waiting_since: Mutex<Option<Instant>>,
}

impl JournalFigures {
    /// A record waits; unless one does already, it is the oldest.
    pub(crate) fn waits(&self) {
        self.lock().get_or_insert_with(Instant::now);
    }

    /// What was taken at this time is confirmed; `more` says whether other records
    /// have come since.
    pub(crate) fn confirmed(&self, records: u64, taken_at: Instant, more: bool) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records, Ordering::Relaxed);
        *self.lock() = more.then_some(taken_at);
    }

    /// For how long the oldest record has waited for its confirm; zero if none does.
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nobody reads it"))]
    pub(crate) fn lag(&self) -> Duration {
        self.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
