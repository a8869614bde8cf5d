//! Steers the fleet: pauses and resumes, cancels tasks, asks workers to leave.
//!
//! An order is stored on the broker first, and holds from then on for everybody who
//! connects. Workers that run follow it within milliseconds; who answers says so.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::backoff::later;
use crate::journal::{TaskState, TaskTrace, find_task};
use crate::protocol::journal::Outcome;
use crate::protocol::ownership::WorkerId;
use crate::protocol::steering::{CANCELLED_BY, Change, Scope, Steering};
use crate::protocol::task::TaskId;
use crate::rabbit::connection::{Connect, Connection, close_connection};
use crate::rabbit::control::{Control, Said};
use crate::rabbit::error::Error;
use crate::rabbit::steering::{Heeded, LEASE, Leaving, Ordered, now_ms, order};
use crate::rabbit::topology;

/// What came of an order.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Steered {
    /// Whether it changed anything.
    pub changed: bool,
    /// What is in force now.
    pub steering: Steering,
    /// The workers that said that they follow it, by name. All others do
    /// 5 s after it was given, or when they next connect.
    pub workers: Vec<WorkerId>,
}

/// Lets nothing of a resource, of a partition, or nothing at all be started. What
/// runs goes on. It holds until [`resume`], over restarts of workers and broker.
///
/// The order of a paused resource is kept, and nobody else waits for it, as long as
/// the windows of the owners are not full of paused tasks. `by` says who wants it.
///
/// # Errors
/// [`Error::NoSuchPartition`], [`Error::Steering`] when too many are paused already,
/// [`Error::SteeringMissing`], and the errors of connecting.
///
/// # Cancel safety
/// It may be ordered or not. To order it again does no harm.
pub async fn pause(connect: &Connect, scope: Scope, by: &str) -> Result<Steered, Error> {
    steer(connect, Change::Pause(scope), by).await
}

/// Lifts a [`pause`] of the same scope; [`Scope::All`] lifts every one.
///
/// # Errors
/// As [`pause`].
///
/// # Cancel safety
/// It may be ordered or not. To order it again does no harm.
pub async fn resume(connect: &Connect, scope: Scope, by: &str) -> Result<Steered, Error> {
    steer(connect, Change::Resume(scope), by).await
}

/// Withdraws the cancellation of tasks that are still to come. One that lies in the
/// dead letters stays there until it is replayed.
///
/// # Errors
/// [`Error::SteeringMissing`] and the errors of connecting.
///
/// # Cancel safety
/// It may be ordered or not. To order it again does no harm.
pub async fn reinstate(connect: &Connect, tasks: Vec<TaskId>, by: &str) -> Result<Steered, Error> {
    steer(connect, Change::Reinstate { tasks }, by).await
}

async fn steer(connect: &Connect, change: Change, by: &str) -> Result<Steered, Error> {
    let connection = connect.open("steering").await?;
    if let Change::Pause(Scope::Partition(partition))
    | Change::Resume(Scope::Partition(partition)) = change
    {
        let topology = topology::read(&connection, connect.namespace()).await?;
        let last = topology.partitions.get() - 1;
        if partition.number() > last {
            return Err(Error::NoSuchPartition { partition, last });
        }
    }
    let (steered, control) = steer_on(&connection, connect, change, by).await?;
    control.close().await;
    close_connection(connection).await;
    Ok(steered)
}

/// A worker answers within milliseconds, or a second after it should have.
const FIRST_ANSWER: Duration = Duration::from_secs(2);
/// Then the others do.
const NEXT_ANSWER: Duration = Duration::from_millis(300);

async fn steer_on(
    connection: &Connection,
    connect: &Connect,
    change: Change,
    by: &str,
) -> Result<(Steered, Control), Error> {
    let mut control = Control::open(connection, connect.namespace(), false).await?;
    let Ordered { position, changed, steering } =
        order(connection, connect.namespace(), change, by).await?;
    let position = position.unwrap_or_default();
    control.say(&Said::Heed { position }).await?;
    let heeded: Vec<Heeded> = control.answers(FIRST_ANSWER, NEXT_ANSWER).await?;
    let heeded = heeded.into_iter().filter(|heeded| heeded.position >= position);
    let mut workers: Vec<_> = heeded.map(|heeded| heeded.worker).collect();
    workers.sort();
    workers.dedup();
    Ok((Steered { changed, steering, workers }, control))
}

/// A task was not cancelled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// It runs, or was executed, or is dead-lettered already. Nothing was changed.
    #[error("task {} is not cancelled: it is {}{}", .trace.id, .trace.state, way_out(.trace))]
    TooLate {
        /// What is known of it.
        trace: Box<TaskTrace>,
    },
    /// Its handler was aborted, and has not ended: it blocks. When it ends without having
    /// executed the task, that goes to the dead letters.
    #[error("task {} is told to end, and still runs on {}", .trace.id, runs_on(.trace))]
    StillRuns {
        /// What is known of it.
        trace: Box<TaskTrace>,
    },
    /// It could not be ordered.
    #[error(transparent)]
    Order(#[from] Error),
}

fn way_out(trace: &TaskTrace) -> &'static str {
    match trace.state {
        TaskState::Executing => " (`keylane abort` ends it)",
        TaskState::NotExecuted | TaskState::Executed | TaskState::DeadLettered => "",
    }
}

fn runs_on(trace: &TaskTrace) -> String {
    let names: Vec<_> = trace.executing.iter().map(|found| found.worker.to_string()).collect();
    names.join(", ")
}

/// How long a cancellation is remembered by default: seven days, as long as the
/// journal.
pub const CANCELLATION_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Has a task never be started, or never again. When its turn comes it goes to the dead letters
/// with the reason `cancelled by …`, and those behind it go on; one that waits for its next
/// attempt goes at once. Comes back when that is certain, after 5 s: by then every worker follows
/// the order, or has lost the broker.
///
/// An id that nobody has published is remembered for `kept`
/// ([`CANCELLATION_KEPT`] by default); a task that comes later than that runs. The
/// journal is read from `since` on, or from the time in an id of UUID version 7, or
/// all of it. `by` says who wants it.
///
/// # Errors
/// [`CancelError::TooLate`] when the task runs, was executed, or was dead-lettered; the errors
/// of [`pause`]; [`Error::JournalMissing`].
///
/// # Cancel safety
/// It may be ordered or not. To order it again does no harm.
pub async fn cancel(
    connect: &Connect,
    task: &TaskId,
    kept: Option<Duration>,
    since: Option<SystemTime>,
    by: &str,
) -> Result<Steered, CancelError> {
    stop(connect, task, (kept, false), since, by).await
}

/// As [`cancel`], and ends the task's handler if it runs, as its time limit does: the future is
/// dropped, a process is killed. What it has done by then stays done.
///
/// # Errors
/// [`CancelError::TooLate`] when the task was executed or dead-lettered,
/// [`CancelError::StillRuns`] when its handler blocks; those of [`cancel`].
///
/// # Cancel safety
/// It may be ordered or not. To order it again does no harm.
pub async fn abort(
    connect: &Connect,
    task: &TaskId,
    since: Option<SystemTime>,
    by: &str,
) -> Result<Steered, CancelError> {
    stop(connect, task, (None, true), since, by).await
}

async fn stop(
    connect: &Connect,
    task: &TaskId,
    (kept, abort): (Option<Duration>, bool),
    since: Option<SystemTime>,
    by: &str,
) -> Result<Steered, CancelError> {
    let since = since.or_else(|| created(task));
    refuse_if_ended(find_task(connect, task, since).await?, abort)?;
    let kept_ms = u64::try_from(kept.unwrap_or(CANCELLATION_KEPT).as_millis());
    let until_ms = now_ms().saturating_add(kept_ms.unwrap_or(u64::MAX));
    let connection = connect.open("steering").await?;
    let change = Change::Cancel { tasks: vec![task.clone()], until_ms, abort };
    let (steered, control) = steer_on(&connection, connect, change, by).await?;
    let ordered_at = Instant::now();
    control.close().await;
    // Who did not answer starts nothing later than this without having read it.
    sleep_until(ordered_at + LEASE).await;
    // What had ended before it was looked for already.
    let lately = SystemTime::now().checked_sub(LATELY).max(since);
    let trace = find_task(connect, task, lately).await?;
    let still_runs = abort && !trace.executing.is_empty();
    let result = match refuse_if_ended(trace.clone(), abort) {
        Ok(()) if still_runs => Err(CancelError::StillRuns { trace: Box::new(trace) }),
        Ok(()) => Ok(steered),
        Err(too_late) => {
            let withdrawn = Change::Reinstate { tasks: vec![task.clone()] };
            order(&connection, connect.namespace(), withdrawn, by).await?;
            Err(too_late)
        }
    };
    close_connection(connection).await;
    result
}

/// Longer than an order takes, and than clocks differ by.
const LATELY: Duration = Duration::from_secs(120);

/// What failed may be tried again, and what is dead-lettered because it is cancelled is no news.
fn refuse_if_ended(trace: TaskTrace, may_run: bool) -> Result<(), CancelError> {
    let given_up = trace.attempts.last().is_some_and(|entry| {
        let reason = entry.record.reason.as_deref().unwrap_or_default();
        entry.record.outcome == Outcome::DeadLettered && !reason.starts_with(CANCELLED_BY)
    });
    let executed = trace.attempts.iter().any(|entry| entry.record.outcome == Outcome::Executed);
    if given_up || executed || !may_run && !trace.executing.is_empty() {
        return Err(CancelError::TooLate { trace: Box::new(trace) });
    }
    Ok(())
}

/// When an id was made that says so, less what clocks differ by.
fn created(task: &TaskId) -> Option<SystemTime> {
    let (seconds, nanos) = uuid::Uuid::parse_str(task.as_str()).ok()?.get_timestamp()?.to_unix();
    let created = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))?;
    created.checked_sub(Duration::from_secs(60))
}

/// What was seen of a worker that was asked to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "drained")]
#[non_exhaustive]
pub enum Drained {
    /// It has given all its partitions up, and ended.
    Left {
        /// Tasks that it aborted since they took longer than its drain timeout.
        aborted: u64,
    },
    /// It said that it leaves, and has neither ended in time nor says why.
    Leaving {
        /// Tasks that ran when it began to leave.
        running: u32,
    },
    /// It said that it leaves, and then answered nobody any more: it was killed, or
    /// cut off.
    Vanished,
    /// No worker of this name answered.
    Unknown,
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left { aborted: 0 } => f.write_str("it has left"),
            Self::Left { aborted } => write!(f, "it has left; {aborted} tasks were aborted"),
            Self::Leaving { running } => {
                write!(f, "it is leaving; {running} tasks ran when it began to")
            }
            Self::Vanished => f.write_str("it began to leave, and answers no more"),
            Self::Unknown => f.write_str("no worker of this name answers"),
        }
    }
}

/// Has a worker finish what runs, give its partitions up and end, as a shutdown
/// does, and waits for that, for at most `patience`. `by` says who wants it.
///
/// Two workers of one name both leave; the first that has ended ends the wait.
///
/// # Errors
/// [`Error::SteeringMissing`] and the errors of connecting.
///
/// # Cancel safety
/// The worker may leave or not.
pub async fn drain_worker(
    connect: &Connect,
    worker: &WorkerId,
    patience: Duration,
    by: &str,
) -> Result<Drained, Error> {
    let connection = connect.open("steering").await?;
    let mut control = Control::open(&connection, connect.namespace(), false).await?;
    let reply_to = control.own_queue().to_owned();
    let change = Change::Drain { worker: worker.clone(), reply_to };
    order(&connection, connect.namespace(), change, by).await?;
    let deadline = later(patience);
    let mut drained = Drained::Unknown;
    loop {
        let limit = match drained {
            Drained::Unknown => FIRST_ANSWER.min(patience),
            _ => deadline.saturating_duration_since(Instant::now()),
        };
        match control.answer_within(limit).await? {
            Some(Leaving::Leaves { running, .. }) => drained = Drained::Leaving { running },
            Some(Leaving::Left { aborted, .. }) => {
                drained = Drained::Left { aborted };
                break;
            }
            None => break,
        }
    }
    control.close().await;
    if matches!(drained, Drained::Leaving { .. }) && !answers(&connection, connect, worker).await? {
        drained = Drained::Vanished;
    }
    close_connection(connection).await;
    Ok(drained)
}

/// Whether a worker says how it is.
async fn answers(
    connection: &Connection,
    connect: &Connect,
    worker: &WorkerId,
) -> Result<bool, Error> {
    let mut control = Control::open(connection, connect.namespace(), false).await?;
    control.say(&Said::Report).await?;
    let reports = control.answers(FIRST_ANSWER, NEXT_ANSWER).await?;
    control.close().await;
    Ok(reports.iter().any(|report: &crate::WorkerReport| report.worker == *worker))
}
