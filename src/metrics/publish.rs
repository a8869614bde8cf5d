//! What a producer or a router counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::histogram::Histogram;
use crate::rabbit::publisher::PublishError;

/// What a producer or a router counts.
#[derive(Debug)]
pub(crate) struct PublishFigures {
    pub(crate) confirmed: AtomicU64,
    pub(crate) invalid: AtomicU64,
    pub(crate) too_large: AtomicU64,
    pub(crate) unroutable: AtomicU64,
    pub(crate) nacked: AtomicU64,
    pub(crate) indeterminate: AtomicU64,
    pub(crate) not_sent: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) latency: Histogram,
}

impl Default for PublishFigures {
    fn default() -> Self {
        let latency = Histogram::new(
            "keylane_publish_confirm_seconds",
            "Time from the sending of a task to the broker's confirm, as its sender saw it.",
        );
        Self {
            confirmed: AtomicU64::default(),
            invalid: AtomicU64::default(),
            too_large: AtomicU64::default(),
            unroutable: AtomicU64::default(),
            nacked: AtomicU64::default(),
            indeterminate: AtomicU64::default(),
            not_sent: AtomicU64::default(),
            in_flight: AtomicU64::default(),
            latency,
        }
    }
}

/// A task that was sent and not answered.
#[derive(Debug)]
pub(crate) struct Unanswered {
    figures: Arc<PublishFigures>,
    began: Instant,
}

impl Unanswered {
    /// It is sent now.
    pub(crate) fn begin(figures: &Arc<PublishFigures>) -> Self {
        figures.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { figures: Arc::clone(figures), began: Instant::now() }
    }

    /// This is what became of it.
    pub(crate) fn ended(self, outcome: Result<(), &PublishError>) {
        let figures = &self.figures;
        let counter = match outcome {
            Ok(()) => {
                figures.latency.observe(self.began.elapsed());
                &figures.confirmed
            }
            Err(PublishError::Invalid { .. }) => &figures.invalid,
            Err(PublishError::TooLarge { .. } | PublishError::HeadersTooLarge { .. }) => {
                &figures.too_large
            }
            Err(PublishError::Unroutable { .. }) => &figures.unroutable,
            Err(PublishError::Nacked { .. }) => &figures.nacked,
            Err(PublishError::Indeterminate { .. }) => &figures.indeterminate,
            Err(PublishError::NotSent(_)) => &figures.not_sent,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.figures.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
