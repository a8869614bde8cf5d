//! The journal: a record of every attempt at a task, written by whoever made it.
//!
//! Records travel in batches. A worker numbers its batches and writes them one
//! after another, each again until it is confirmed, so a batch may be there twice,
//! and one that is missing shows. A delivery is acked when the record of its
//! execution is confirmed; therefore
//!
//! - every Executed task has a record, and
//! - records of a resource stand in the order of their attempts, those of
//!   different workers too: the next owner starts after the last one's acks.

mod attempts;
pub mod audit;
mod coverage;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

pub use self::attempts::Attempts;
pub use self::audit::{Audit, AuditReport, Entry, Finding};
pub use self::coverage::Coverage;
pub use super::history::Outcome;
use super::ownership::WorkerId;
use super::partition::PartitionId;
use super::result::TaskResult;
use super::task::{Origin, Resource, Task, TaskId};

/// One attempt at a task, or the end of one that is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The task.
    pub task: TaskId,
    /// What it touches.
    pub resource: Resource,
    /// Where the resource belongs to.
    pub partition: PartitionId,
    /// The ownership period, if it was minted (see ARCHITECTURE.md): rises with
    /// every change of the partition's owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The slot of the worker that executed it, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Which try, from 1; those of earlier owners count where they are known.
    pub attempt: u32,
    /// When it started, microseconds since 1970, by the worker's clock.
    pub at_us: u64,
    /// How long it ran, in microseconds. 0 for what is no attempt.
    pub took_us: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it was Executed; its first [`Record::MAX_REASON_CHARS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the handler said of it.
    #[serde(default, skip_serializing_if = "TaskResult::is_none")]
    pub result: TaskResult,
    /// Who published it; with the sequence or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<Arc<str>>,
    /// Position among its producer's tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// It was published or forwarded more than once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub republished: bool,
    /// It had been a dead letter, and was put back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// An earlier delivery of it was lost or handed over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redelivered: bool,
}

impl Record {
    /// What is kept of a reason, in characters. All of it is in the worker's log.
    pub const MAX_REASON_CHARS: usize = 500;

    /// When it ended, microseconds since 1970.
    #[must_use]
    pub fn end_us(&self) -> u64 {
        self.at_us.saturating_add(self.took_us)
    }

    /// Takes over where the task comes from, and whether it has been here before.
    pub fn set_origin(&mut self, task: &Task) {
        let origin = task.origin.as_ref();
        self.producer = origin.map(|origin| Arc::clone(&origin.producer));
        self.sequence = origin.map(|origin| origin.sequence);
        self.republished = origin.is_some_and(|origin| origin.republished);
        self.replayed = task.replayed;
    }
}

/// Records that were written as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Version of this format: 1.
    pub v: u32,
    /// Names one run of a worker process.
    pub writer: Arc<str>,
    /// Which of its batches, from 1, without gaps.
    pub number: u64,
    /// The first of its batches with a record whose ack was not sent when this one was
    /// written, if only the batch itself. 0 if that is not known.
    #[serde(default)]
    pub open_from: u64,
    /// So many records before this batch came late: the broker took none, and their acks may
    /// have been sent before them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: u64,
    /// It is the last one: everything that was done is recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Who executed the tasks.
    pub worker: WorkerId,
    /// What it did, in the order of the ends.
    pub records: Vec<Record>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Batch {
    /// The version that is written.
    pub const VERSION: u32 = 1;

    /// Its records, each with its worker.
    pub fn into_entries(self) -> impl Iterator<Item = Entry> {
        let Self { worker, records, .. } = self;
        records.into_iter().map(move |record| Entry { worker: worker.clone(), record })
    }

    /// Reads a batch.
    ///
    /// # Errors
    /// [`BatchError`] when it is none, or is of a newer format.
    pub fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        let batch: Self = serde_json::from_slice(bytes).map_err(BatchError::Malformed)?;
        match batch.v {
            Self::VERSION => Ok(batch),
            version => Err(BatchError::Version { version }),
        }
    }
}

/// Why a message of the journal cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// It is no batch of records.
    #[error("not a batch of records: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A newer keylane wrote it.
    #[error("a batch of version {version}, this keylane reads version {}", Batch::VERSION)]
    Version {
        /// The version.
        version: u32,
    },
}

/// Tells batches that were written twice.
#[derive(Debug, Clone, Default)]
pub struct Written(HashMap<Arc<str>, u64>);

/// Whether a batch is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// It is the next of its writer, or the first one seen.
    New,
    /// It was read before.
    Again,
    /// So many batches before it are not in the journal.
    After {
        /// How many.
        missing: u64,
    },
}

impl Written {
    /// Whether a batch was not read before. Takes note of it.
    pub fn is_new(&mut self, batch: &Batch) -> bool {
        self.note(batch) != Novelty::Again
    }

    /// Takes note of a batch.
    pub fn note(&mut self, batch: &Batch) -> Novelty {
        let Some(last) = self.0.get_mut(&batch.writer) else {
            self.0.insert(Arc::clone(&batch.writer), batch.number);
            return Novelty::New;
        };
        if batch.number <= *last {
            return Novelty::Again;
        }
        let missing = batch.number - *last - 1;
        *last = batch.number;
        if missing == 0 { Novelty::New } else { Novelty::After { missing } }
    }
}

/// Stands for one task of one producer: the same for all its copies. A task that does not say
/// where it comes from has none, for nobody guarantees that its id is no other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Of the task of this id, on this resource, that came from there.
    #[must_use]
    pub fn new(id: &TaskId, resource: &Resource, origin: &Origin) -> Self {
        Self::of(id, resource, &origin.producer, origin.sequence)
    }

    /// Of a task that its publisher has named and numbered.
    #[must_use]
    pub fn of_task(task: &Task) -> Option<Self> {
        Some(Self::new(task.id.as_ref()?, &task.resource, task.origin.as_ref()?))
    }

    /// Of the task of a record.
    #[must_use]
    pub fn of_record(record: &Record) -> Option<Self> {
        let (producer, sequence) = record.producer.as_deref().zip(record.sequence)?;
        Some(Self::of(&record.task, &record.resource, producer, sequence))
    }

    fn of(id: &TaskId, resource: &Resource, producer: &str, sequence: u64) -> Self {
        let mut hash = Xxh3::new();
        for text in [id.as_str(), resource.as_str(), producer] {
            hash.update(&text.len().to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&sequence.to_le_bytes());
        Self(hash.digest128().to_le_bytes())
    }
}

#[cfg(test)]
mod tests;
