//! What a worker, a router or a producer counts of itself.
//!
//! Counting is always on: an atomic addition here and there. [`Metrics`] is how somebody
//! outside reads it; with the feature `metrics`, as Prometheus has it.

#[cfg(feature = "metrics")]
mod collect;
mod health;
mod histogram;
mod hot;
mod publish;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

#[cfg(feature = "metrics")]
pub use self::collect::MetricsError;
pub(crate) use self::health::Health;
pub use self::health::NotReady;
use self::histogram::Histogram;
use self::hot::HotResources;
pub(crate) use self::hot::Load;
pub(crate) use self::publish::{PublishFigures, Unanswered};
use crate::protocol::names::Namespace;
use crate::protocol::ownership::WorkerId;
use crate::rabbit::journal::JournalFigures;

/// The figures of one worker, router or producer, or of a worker and the producers
/// beside it.
///
/// Cloning shares them. Hand one to
/// [`WorkerOptions::metrics`](crate::WorkerOptions::metrics),
/// [`RouterOptions::metrics`](crate::RouterOptions::metrics) or
/// [`ProducerOptions::metrics`](crate::ProducerOptions::metrics), and with the feature
/// `metrics` register it with your own `prometheus::Registry`, or have it
/// [rendered](Metrics::render):
///
/// ```
/// # #[cfg(feature = "metrics")] {
/// use keylane::{Metrics, WorkerOptions};
/// let metrics = Metrics::new();
/// let options = WorkerOptions { metrics: Some(metrics.clone()), ..WorkerOptions::default() };
/// let registry = prometheus::Registry::new();
/// registry.register(Box::new(metrics)).unwrap();
/// # drop(options); }
/// ```
///
/// Two workers that share one add up, in their summaries and reports, too: give each its
/// own, and a `prometheus::Registry` with a label of its own.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) figures: Arc<Figures>,
    hot_resources: usize,
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows the load of so many of the hottest resources by name, at the most. Default
    /// 0: names may be private, and every name that was ever hot is a series for whoever
    /// stores them.
    #[must_use]
    pub fn with_hot_resources(mut self, count: usize) -> Self {
        self.hot_resources = count;
        self
    }
}

impl Figures {
    /// Where a producer or a router counts.
    pub(crate) fn publish(&self, namespace: &Namespace) -> Arc<PublishFigures> {
        self.namespace.get_or_init(|| namespace.to_string());
        Arc::clone(self.publish.get_or_init(Arc::default))
    }
}

/// All that is counted.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// The first one that somebody worked on with these.
    pub(crate) namespace: OnceLock<String>,
    pub(crate) worker: WorkerFigures,
    /// Of the worker's journal, if it writes one.
    pub(crate) journal: OnceLock<Arc<JournalFigures>>,
    /// Of the producers, if there are any.
    pub(crate) publish: OnceLock<Arc<PublishFigures>>,
}

/// What a worker or a router counts.
#[derive(Debug)]
pub(crate) struct WorkerFigures {
    /// Its name and its namespace, once it works.
    pub(crate) info: OnceLock<[String; 2]>,
    pub(crate) health: Health,
    pub(crate) slots: AtomicU32,
    /// When the attempt began that has been running for longest, in microseconds since 1970, and
    /// when it is given up, in milliseconds from then; 0 if there is none.
    pub(crate) oldest_since_us: AtomicU64,
    pub(crate) oldest_timeout_ms: AtomicU64,
    pub(crate) executed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) dead_lettered: AtomicU64,
    pub(crate) redelivered: AtomicU64,
    pub(crate) suppressed: AtomicU64,
    pub(crate) superseded: AtomicU64,
    pub(crate) aborted: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Bytes of payloads that wait on disk.
    pub(crate) spilled: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) partitions_gained: AtomicU64,
    pub(crate) partitions_given_up: AtomicU64,
    pub(crate) partitions_lost: AtomicU64,
    pub(crate) epochs: AtomicU64,
    pub(crate) latency: Histogram,
    pub(crate) handling: Histogram,
    /// In the order of their numbers; the inbox of a router is its only one.
    pub(crate) partitions: OnceLock<Vec<PartitionFigures>>,
}

impl Default for WorkerFigures {
    fn default() -> Self {
        let latency = Histogram::new(
            "keylane_task_latency_seconds",
            "Time from the publish of a task to the end of its execution, by the clocks of both \
             machines; only of tasks that say when they were published.",
        );
        let handling = Histogram::new(
            "keylane_handler_duration_seconds",
            "Time that the handler took for an attempt, however it ended.",
        );
        Self {
            info: OnceLock::new(),
            health: Health::default(),
            slots: AtomicU32::default(),
            oldest_since_us: AtomicU64::default(),
            oldest_timeout_ms: AtomicU64::default(),
            executed: AtomicU64::default(),
            failed: AtomicU64::default(),
            dead_lettered: AtomicU64::default(),
            redelivered: AtomicU64::default(),
            suppressed: AtomicU64::default(),
            superseded: AtomicU64::default(),
            aborted: AtomicU64::default(),
            refused: AtomicU64::default(),
            spilled: AtomicU64::default(),
            reconnects: AtomicU64::default(),
            retries: AtomicU64::default(),
            partitions_gained: AtomicU64::default(),
            partitions_given_up: AtomicU64::default(),
            partitions_lost: AtomicU64::default(),
            epochs: AtomicU64::default(),
            latency,
            handling,
            partitions: OnceLock::new(),
        }
    }
}

impl WorkerFigures {
    /// A worker of this name works on this namespace.
    pub(crate) fn works(&self, worker: &WorkerId, namespace: &Namespace, slots: u32) {
        self.slots.fetch_add(slots, Ordering::Relaxed);
        self.info.get_or_init(|| [worker.to_string(), namespace.to_string()]);
    }

    /// The figures of the partitions, which are watched from now on.
    pub(crate) fn partitions(&self, names: impl IntoIterator<Item = String>, now_us: u64) {
        self.partitions
            .get_or_init(|| names.into_iter().map(|n| PartitionFigures::new(n, now_us)).collect());
    }

    pub(crate) fn partition(&self, index: usize) -> Option<&PartitionFigures> {
        self.partitions.get()?.get(index)
    }

    /// The load of all partitions of late, with so many of the resources that have the
    /// largest share of it, the largest first.
    pub(crate) fn load(&self, most: usize) -> Load {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let mut all = Load::default();
        for (index, partition) in self.partitions.get().into_iter().flatten().enumerate() {
            all.add(index, partition.hot.load(now_us));
        }
        all.keep(most);
        all
    }
}

/// What the owner of a partition counts, or who stands by.
#[derive(Debug)]
pub(crate) struct PartitionFigures {
    /// Its number, or `inbox`.
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nobody reads it"))]
    pub(crate) name: String,
    /// Whether a delivery has come since its channel was opened.
    pub(crate) owned: AtomicBool,
    pub(crate) executed: AtomicU64,
    pub(crate) unsettled: AtomicU32,
    pub(crate) running: AtomicU32,
    pub(crate) lanes: AtomicU32,
    /// Tasks that wait on the broker, and whether anybody has looked.
    pub(crate) ready: AtomicU32,
    pub(crate) ready_is_known: AtomicBool,
    pub(crate) hot: HotResources,
}

impl PartitionFigures {
    fn new(name: String, now_us: u64) -> Self {
        Self {
            name,
            owned: AtomicBool::default(),
            executed: AtomicU64::default(),
            unsettled: AtomicU32::default(),
            running: AtomicU32::default(),
            lanes: AtomicU32::default(),
            ready: AtomicU32::default(),
            ready_is_known: AtomicBool::default(),
            hot: HotResources::new(now_us),
        }
    }

    /// What is held now. A window holds no more than a prefetch, which has 16 bits.
    pub(crate) fn note(&self, unsettled: usize, running: usize, lanes: usize) {
        self.unsettled.store(unsettled as u32, Ordering::Relaxed);
        self.running.store(running as u32, Ordering::Relaxed);
        self.lanes.store(lanes as u32, Ordering::Relaxed);
    }

    /// So many tasks wait on the broker, if it can tell.
    pub(crate) fn note_ready(&self, ready: Option<u32>) {
        self.ready.store(ready.unwrap_or(0), Ordering::Relaxed);
        self.ready_is_known.store(ready.is_some(), Ordering::Relaxed);
    }
}
