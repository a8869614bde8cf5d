//! Reads what the fleet has recorded of its executions.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::protocol::journal::{Audit, AuditReport, Batch, Entry, Finding, Outcome, Written};
use crate::protocol::task::TaskId;
use crate::rabbit::connection::{Connect, Connection, close_connection};
use crate::rabbit::control::{Control, Said};
use crate::rabbit::error::Error;
use crate::rabbit::journal::{JournalReader as Reader, Start};
use crate::rabbit::running::{Found, RunningTasks};

/// Reads the journal batch by batch: to its present end, or on and on.
///
/// A batch may come twice, if the connection to the broker was lost while it was
/// written. [`Audit`] and [`Written`] tell.
pub struct JournalReader {
    connection: Connection,
    reader: Reader,
}

impl JournalReader {
    /// Connects, and begins with the oldest record, or with those of `since` and a
    /// few before (by the broker's clock).
    ///
    /// # Errors
    /// [`Error::JournalMissing`] and the errors of connecting.
    pub async fn open(connect: &Connect, since: Option<SystemTime>) -> Result<Self, Error> {
        let connection = connect.open("journal").await?;
        let start = since.map_or(Start::First, Start::Since);
        let reader = Reader::open(&connection, connect.namespace(), start, true).await?;
        Ok(Self { connection, reader })
    }

    /// The next batch of those that were there when the reader was opened; `None`
    /// at their end. Reading can go on after that with [`JournalReader::next`].
    ///
    /// # Errors
    /// When the connection is lost.
    ///
    /// # Cancel safety
    /// No batch is lost.
    pub async fn next_before_end(&mut self) -> Result<Option<Batch>, Error> {
        self.reader.next_before_end().await
    }

    /// The next batch; waits until there is one.
    ///
    /// # Errors
    /// When the connection is lost.
    ///
    /// # Cancel safety
    /// No batch is lost.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        self.reader.next().await
    }

    /// How far it has read, and how far that is in all: numbers of batches, not
    /// from 0.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        self.reader.progress()
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.reader.close().await;
        close_connection(self.connection).await;
    }
}

impl fmt::Debug for JournalReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalReader").field("progress", &self.progress()).finish()
    }
}

/// Checks what was recorded until now, from `since` on or all of it, against the
/// pre-conditions of the protocol: see [`Audit`]. Gives the sums, and the first
/// [`KEPT_FINDINGS`] of what is wrong. Clocks of different machines may differ by
/// `tolerance`.
///
/// # Errors
/// [`Error::JournalMissing`] and the errors of connecting.
///
/// # Cancel safety
/// It changes nothing.
pub async fn verify(
    connect: &Connect,
    since: Option<SystemTime>,
    tolerance: Duration,
) -> Result<(AuditReport, Vec<Finding>), Error> {
    let mut journal = JournalReader::open(connect, since).await?;
    let (mut audit, mut findings) = (Audit::new(tolerance), Vec::new());
    while let Some(batch) = journal.next_before_end().await? {
        findings.extend(audit.note(batch));
        findings.truncate(KEPT_FINDINGS);
    }
    journal.close().await;
    Ok((audit.report(), findings))
}

/// Enough to see a pattern; a journal in which everything is wrong must not fill
/// the memory with its own proof.
pub const KEPT_FINDINGS: usize = 1_000;

/// What is known of a task.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TaskTrace {
    /// The task.
    pub id: TaskId,
    /// How far it is.
    pub state: TaskState,
    /// Who executes it now. More than one only for different tasks of one id.
    pub executing: Vec<Found>,
    /// All attempts that the journal has, oldest first.
    pub attempts: Vec<Entry>,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// No attempt has executed it yet, and none runs now. With no attempts at all
    /// it waits for its turn, was never published, or is older than the journal.
    NotExecuted,
    /// A worker executes it now.
    Executing,
    /// It is done.
    Executed,
    /// It was given up.
    DeadLettered,
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotExecuted => "NotExecuted",
            Self::Executing => "Executing",
            Self::Executed => "Executed",
            Self::DeadLettered => "dead-lettered",
        })
    }
}

/// Looks for a task: asks the workers who executes it, and reads the journal, from
/// `since` on or all of it.
///
/// # Errors
/// [`Error::JournalMissing`] and the errors of connecting.
///
/// # Cancel safety
/// It changes nothing.
pub async fn find_task(
    connect: &Connect,
    id: &TaskId,
    since: Option<SystemTime>,
) -> Result<TaskTrace, Error> {
    // The workers first: what ends meanwhile is in the journal then.
    let executing = ask(connect, id).await?;
    let mut journal = JournalReader::open(connect, since).await?;
    let (mut written, mut attempts) = (Written::default(), Vec::new());
    while let Some(batch) = journal.next_before_end().await? {
        if written.is_new(&batch) {
            let wanted = batch.into_entries().filter(|entry| entry.record.task == *id);
            attempts.extend(wanted);
        }
    }
    journal.close().await;
    let last = |outcome| attempts.iter().rposition(|entry| entry.record.outcome == outcome);
    let ended = |found: &Found| {
        let is_it = |entry: &Entry| {
            entry.worker == found.worker && entry.record.at_us == found.running.since_us
        };
        attempts.iter().any(is_it)
    };
    let executing: Vec<_> = executing.into_iter().filter(|found| !ended(found)).collect();
    let state = if !executing.is_empty() {
        TaskState::Executing
    } else if last(Outcome::Executed).is_some() {
        TaskState::Executed
    } else if last(Outcome::DeadLettered).is_some() {
        TaskState::DeadLettered
    } else {
        TaskState::NotExecuted
    };
    Ok(TaskTrace { id: id.clone(), state, executing, attempts })
}

/// Whoever executes it answers within milliseconds, unless it is stopped or cut
/// off; then the partition will move, and the task with it.
const PATIENCE: Duration = Duration::from_millis(500);

async fn ask(connect: &Connect, id: &TaskId) -> Result<Vec<Found>, Error> {
    let connection = connect.open("who executes").await?;
    let mut control = Control::open(&connection, connect.namespace(), false).await?;
    control.say(&Said::Find { task: id.clone() }).await?;
    let found = control.answers(PATIENCE, Duration::from_millis(50)).await?;
    close_connection(connection).await;
    Ok(found)
}

/// Lists what all workers execute now, those tasks first that have run for the longest, and how
/// many more there are: a worker tells of its thousand oldest. One that is stopped or cut off
/// does not answer.
///
/// # Errors
/// The errors of connecting, and [`Error::NotPermitted`].
///
/// # Cancel safety
/// It changes nothing.
pub async fn running(connect: &Connect) -> Result<(Vec<Found>, u64), Error> {
    let connection = connect.open("what runs").await?;
    let mut control = Control::open(&connection, connect.namespace(), false).await?;
    control.say(&Said::Running).await?;
    let told: Vec<RunningTasks> = control.answers(ALL_PATIENCE, Duration::from_millis(300)).await?;
    close_connection(connection).await;
    let more = told.iter().map(|tasks| u64::from(tasks.more)).sum();
    let of_one = |RunningTasks { worker, running, .. }: RunningTasks| {
        running.into_iter().map(move |running| Found::new(worker.clone(), running))
    };
    let mut found: Vec<_> = told.into_iter().flat_map(of_one).collect();
    found.sort_by_key(|found| std::cmp::Reverse(found.running.age_us));
    Ok((found, more))
}

/// A busy worker answers within a second.
const ALL_PATIENCE: Duration = Duration::from_secs(2);
