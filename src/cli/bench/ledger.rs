//! The ground truth of a benchmark: what was executed, and whether it may have
//! been.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Size of every payload: what it says, and filling.
pub(super) const PAYLOAD_BYTES: usize = 200;

/// What a payload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// Which resource.
    pub(super) resource: u32,
    /// The how-manieth task of that resource, from 1.
    pub(super) sequence: u32,
    /// When it was published, after the ledger's beginning.
    pub(super) published: Duration,
}

impl Note {
    pub(super) fn to_payload(self) -> Vec<u8> {
        let mut payload = vec![b'.'; PAYLOAD_BYTES];
        payload[..4].copy_from_slice(&self.resource.to_le_bytes());
        payload[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        let nanos = u64::try_from(self.published.as_nanos()).unwrap_or(u64::MAX);
        payload[8..16].copy_from_slice(&nanos.to_le_bytes());
        payload
    }

    pub(super) fn from_payload(payload: &[u8]) -> Option<Self> {
        let word = |at: usize| payload.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let nanos = payload.get(8..16)?.try_into().ok().map(u64::from_le_bytes)?;
        Some(Self {
            resource: word(0)?,
            sequence: word(4)?,
            published: Duration::from_nanos(nanos),
        })
    }
}

/// Checks every execution against the ones before it.
#[derive(Debug)]
pub(super) struct Ledger {
    began: Instant,
    resources: Vec<Resource>,
    expected: u64,
    executed: AtomicU64,
    violations: AtomicU64,
    complete: Notify,
    /// From the publish call to here, if it is wanted.
    latencies: Option<Mutex<Vec<Duration>>>,
}

#[derive(Debug, Default)]
struct Resource {
    busy: AtomicBool,
    last: AtomicU32,
}

impl Ledger {
    pub(super) fn new(resources: u32, expected: u64, latencies: bool) -> Self {
        Self {
            began: Instant::now(),
            resources: (0..resources).map(|_| Resource::default()).collect(),
            expected,
            executed: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            complete: Notify::new(),
            latencies: latencies.then(|| Mutex::new(Vec::with_capacity(expected as usize))),
        }
    }

    /// What the next task of the ledger's run says.
    pub(super) fn note(&self, index: u64) -> Note {
        let resources = self.resources.len() as u64;
        Note {
            resource: (index % resources) as u32,
            sequence: (index / resources) as u32 + 1,
            published: self.began.elapsed(),
        }
    }

    /// A task is executed, in no time.
    pub(super) fn execute(&self, payload: &[u8]) {
        let Some((note, resource)) = Note::from_payload(payload)
            .and_then(|note| Some((note, self.resources.get(note.resource as usize)?)))
        else {
            self.violations.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if resource.busy.swap(true, Ordering::AcqRel) {
            self.violations.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(latencies) = &self.latencies {
            let latency = self.began.elapsed().saturating_sub(note.published);
            latencies.lock().unwrap_or_else(PoisonError::into_inner).push(latency);
        }
        if resource.last.swap(note.sequence, Ordering::AcqRel) + 1 != note.sequence {
            self.violations.fetch_add(1, Ordering::Relaxed);
        }
        resource.busy.store(false, Ordering::Release);
        if self.executed.fetch_add(1, Ordering::AcqRel) + 1 == self.expected {
            self.complete.notify_one();
        }
    }

    /// Waits until everything is executed.
    pub(super) async fn complete(&self) {
        self.complete.notified().await;
    }

    pub(super) fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// All latencies, from the shortest.
    pub(super) fn latencies(&self) -> Vec<Duration> {
        let Some(latencies) = &self.latencies else { return Vec::new() };
        let mut sorted = latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sorted.sort_unstable();
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_what_was_noted() {
        let note = Note { resource: 7, sequence: 9, published: Duration::from_nanos(11) };
        let payload = note.to_payload();
        assert_eq!((payload.len(), Note::from_payload(&payload)), (200, Some(note)));
        assert_eq!(Note::from_payload(b"short"), None);
    }

    #[test]
    fn a_lost_doubled_or_overtaken_task_is_a_violation() {
        for (sequences, violations) in [([1, 2, 3], 0), ([1, 3, 2], 2), ([1, 1, 2], 1)] {
            let ledger = Ledger::new(1, 3, false);
            for sequence in sequences {
                let note = Note { resource: 0, sequence, published: Duration::ZERO };
                ledger.execute(&note.to_payload());
            }
            assert_eq!(ledger.violations(), violations, "{sequences:?}");
        }
    }
}
