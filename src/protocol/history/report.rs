//! What the checker found.

use std::fmt;

use serde::Serialize;

use super::event::{Ending, Execution};
use crate::protocol::task::TaskId;

/// A pre-condition that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "violation", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Violation {
    /// Two executions on one resource at once.
    #[error("overlap on resource {}: {running}\n  was still running at the start of {started}", started.resource)]
    Overlap {
        /// The one that started first.
        running: Box<Execution>,
        /// The one that should have waited.
        started: Box<Execution>,
    },
    /// A process began a task before the end of another.
    #[error("process {} was busy: {running}\n  was still running at the start of {started}", started.process)]
    ProcessBusy {
        /// The one that started first.
        running: Box<Execution>,
        /// The one that should have waited.
        started: Box<Execution>,
    },
    /// An executed task was executed again, and was not redelivered.
    #[error("executed already, and not redelivered: {started} on resource {}", started.resource)]
    AlreadyExecuted {
        /// The needless execution.
        started: Box<Execution>,
    },
    /// A task started after a later one of the same producer and resource.
    #[error("order broken on resource {}: {overtaken}\n  started after {earlier}", overtaken.resource)]
    OutOfOrder {
        /// The one that started too early.
        earlier: Box<Execution>,
        /// The one that should have come before it.
        overtaken: Box<Execution>,
    },
    /// A process ended what it did not execute.
    #[error("end without a start: {0}")]
    EndWithoutStart(Ending),
    /// A started execution neither ended nor was lost.
    #[error("unfinished at the end of the history: {started} on resource {}", started.resource)]
    Unfinished {
        /// The execution.
        started: Box<Execution>,
    },
    /// A published task was neither executed nor dead-lettered.
    #[error("task {task} was published, but neither executed nor dead-lettered")]
    Missing {
        /// The task.
        task: TaskId,
    },
    /// Fewer tasks were executed or dead-lettered than published.
    #[error("of {published} published tasks {missing} were neither executed nor dead-lettered")]
    MissingCount {
        /// How many were published.
        published: u64,
        /// How many of them are missing.
        missing: u64,
    },
}

/// What a history amounts to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Attempts that started.
    pub executions: u64,
    /// Executions of tasks that were executed already, each permitted because
    /// the task was redelivered or replayed.
    pub repeated: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts that were aborted.
    pub aborted: u64,
    /// Attempts that were lost, with their worker or without.
    pub lost: u64,
    /// Tasks that were executed.
    pub executed: u64,
    /// Tasks that were dead-lettered and never executed.
    pub dead_lettered: u64,
    /// Resources that tasks started on.
    pub resources: u64,
    /// Workers that started tasks.
    pub workers: u64,
    /// How many violations there are.
    pub violation_count: u64,
    /// The first [`Report::KEPT_VIOLATIONS`] of them.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Enough to see a pattern; a history in which everything is wrong must not
    /// fill the memory with its own proof.
    pub const KEPT_VIOLATIONS: usize = 100;

    /// Whether every pre-condition held.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.violation_count == 0
    }

    pub(super) fn add(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < Self::KEPT_VIOLATIONS {
            self.violations.push(violation);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { executed, dead_lettered, resources, workers, .. } = self;
        let Self { executions, repeated, failed, aborted, lost, .. } = self;
        writeln!(f, "{executed} tasks executed, {dead_lettered} dead-lettered")?;
        writeln!(f, "{executions} executions on {resources} resources by {workers} workers:")?;
        writeln!(f, "{repeated} repeated, {failed} failed, {aborted} aborted, {lost} lost")?;
        write!(f, "{} violations", self.violation_count)?;
        for violation in &self.violations {
            write!(f, "\n- {violation}")?;
        }
        match self.violation_count - self.violations.len() as u64 {
            0 => Ok(()),
            more => write!(f, "\n- and {more} more"),
        }
    }
}
