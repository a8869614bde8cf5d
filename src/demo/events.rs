//! The ground truth of a run: who executed what, from when to when.
//!
//! Every process appends to a file of its own, one JSON line per event, so the
//! record of a killed process is complete up to its death.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::edit::CommitIndex;
use crate::protocol::task::Resource;

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When: nanoseconds since 1970. All processes of a demo share one clock.
    pub at_ns: u64,
    /// Which process.
    pub pid: u32,
    /// Which execution of that process; pairs a start with its end.
    pub execution: u64,
    /// On which resource.
    pub resource: Resource,
    /// For which commit.
    pub index: CommitIndex,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened in an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// It began.
    Start {
        /// The broker had delivered the task before.
        redelivered: bool,
    },
    /// It ended. A killed process writes none.
    End {
        /// How.
        outcome: Outcome,
    },
    /// It did not begin, since the resource was being worked on.
    Refused,
}

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The next version was written.
    Written,
    /// A redelivered task had been executed before.
    Already,
    /// The parent's version was not there.
    Mismatch,
    /// It was dropped half-way, or could not read or write.
    Aborted,
}

/// The log of this process. The file appears with the first event.
#[derive(Debug)]
pub(super) struct EventLog {
    path: PathBuf,
    file: Mutex<Option<File>>,
    next_execution: AtomicU64,
}

impl EventLog {
    pub(super) fn new(directory: &Path) -> Self {
        // A process id alone may come back, and is the same in two containers.
        let name = format!("{}-{}.ndjson", std::process::id(), uuid::Uuid::now_v7());
        Self {
            path: directory.join(name),
            file: Mutex::default(),
            next_execution: AtomicU64::new(0),
        }
    }

    pub(super) fn next_execution(&self) -> u64 {
        self.next_execution.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn record(
        &self,
        execution: u64,
        resource: &Resource,
        index: CommitIndex,
        kind: EventKind,
    ) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = match &mut *file {
            Some(file) => file,
            none => none.insert(append(&self.path)?),
        };
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = Event {
            at_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
            pid: std::process::id(),
            execution,
            resource: resource.clone(),
            index,
            kind,
        };
        write_line(&mut file, &event)
    }
}

/// Opens a log that several processes may append to.
pub(super) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// One line in one write, so that lines of several processes do not mix.
pub(super) fn write_line(file: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// Reads a log; the line that a killed process left unfinished is skipped.
pub(super) fn read(path: &Path) -> io::Result<Vec<Event>> {
    let text = std::fs::read_to_string(path)?;
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).map_err(io::Error::from))
        .collect()
}
