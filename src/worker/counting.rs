//! What one tenure adds to the worker's figures.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use super::held::HeldDelivery;
use crate::metrics::{Figures, PartitionFigures, WorkerFigures};

/// See the [module](self).
pub(super) struct Counting {
    figures: Arc<Figures>,
    /// Which of the worker's partitions it is.
    index: usize,
}

impl Counting {
    pub(super) fn new(figures: Arc<Figures>, index: usize) -> Self {
        Self { figures, index }
    }

    fn worker(&self) -> &WorkerFigures {
        &self.figures.worker
    }

    fn partition(&self) -> Option<&PartitionFigures> {
        self.worker().partition(self.index)
    }

    /// A delivery came. The first one of a tenure makes the worker the owner.
    pub(super) fn delivered(&self, redelivered: bool) {
        self.worker().redelivered.fetch_add(redelivered.into(), Relaxed);
        if self.partition().is_some_and(|partition| !partition.owned.swap(true, Relaxed)) {
            self.worker().partitions_gained.fetch_add(1, Relaxed);
        }
    }

    /// A task was settled by an owner that was lost.
    pub(super) fn suppressed(&self) {
        self.worker().suppressed.fetch_add(1, Relaxed);
    }

    /// Another copy of a task was executed.
    pub(super) fn superseded(&self) {
        self.worker().superseded.fetch_add(1, Relaxed);
    }

    /// An attempt begins, as this one of its task's.
    pub(super) fn started(&self, number: u32) {
        self.worker().retries.fetch_add((number > 1).into(), Relaxed);
    }

    /// An attempt at this delivery ended.
    pub(super) fn ended(&self, held: &HeldDelivery, executed: bool) {
        let worker = self.worker();
        let counter = if executed { &worker.executed } else { &worker.failed };
        counter.fetch_add(1, Relaxed);
        let Some((_, task)) = &held.task else { return };
        let Some((_, at_us, took_us)) = held.stint.times() else { return };
        worker.handling.observe(Duration::from_micros(took_us));
        let ended_us = at_us.saturating_add(took_us);
        if let Some(partition) = self.partition() {
            partition.executed.fetch_add(executed.into(), Relaxed);
            partition.hot.add(&task.resource, took_us, ended_us);
        }
        if let Some(published_at) = task.published_at.filter(|_| executed) {
            let ended_at = SystemTime::UNIX_EPOCH + Duration::from_micros(ended_us);
            // A publisher whose clock is ahead took no time.
            worker.latency.observe(ended_at.duration_since(published_at).unwrap_or_default());
        }
    }

    /// An attempt was never begun, since what executes it was out of reach.
    pub(super) fn refused(&self) {
        self.worker().refused.fetch_add(1, Relaxed);
    }

    /// These ran to the last, and were stopped.
    pub(super) fn aborted(&self, attempts: usize) {
        self.worker().aborted.fetch_add(attempts as u64, Relaxed);
    }

    pub(super) fn dead_lettered(&self) {
        self.worker().dead_lettered.fetch_add(1, Relaxed);
    }

    pub(super) fn minted(&self) {
        self.worker().epochs.fetch_add(1, Relaxed);
    }

    /// What is held now.
    pub(super) fn note(&self, unsettled: usize, running: usize, lanes: usize) {
        if let Some(partition) = self.partition() {
            partition.note(unsettled, running, lanes);
        }
    }

    /// So many bytes wait on disk.
    pub(super) fn note_spilled(&self, bytes: u64) {
        self.worker().spilled.store(bytes, Relaxed);
    }

    /// The tenure is over.
    pub(super) fn over(&self, lost: bool) {
        self.note(0, 0, 0);
        if self.partition().is_some_and(|partition| partition.owned.swap(false, Relaxed)) {
            let worker = self.worker();
            let counter = if lost { &worker.partitions_lost } else { &worker.partitions_given_up };
            counter.fetch_add(1, Relaxed);
        }
    }
}
