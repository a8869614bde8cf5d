//! The sums of a journal.

use std::fmt;

use serde::Serialize;

/// What a journal amounts to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditReport {
    /// Attempts.
    pub executions: u64,
    /// Tasks that were executed.
    pub executed: u64,
    /// Tasks that were dead-lettered.
    pub dead_lettered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts that were aborted.
    pub aborted: u64,
    /// Executions of executed tasks, since the ack was lost with its worker.
    pub repeated_redelivered: u64,
    /// Executions of executed tasks, since they were published more than once.
    pub repeated_republished: u64,
    /// Executions of tasks that had been dead-lettered.
    pub replayed: u64,
    /// Copies of executed tasks that were acked instead of executed.
    pub superseded: u64,
    /// Of the aborted attempts, those that seem to have gone on after another worker had begun:
    /// their worker was frozen or cut off, and they "ended" when it noticed.
    pub cut_off: u64,
    /// Records that came later than their acks may have been sent, since the broker took none.
    pub late: u64,
    /// Tasks that were tried and neither executed nor dead-lettered by the end.
    pub open: u64,
    /// Resources that were touched.
    pub resources: u64,
    /// Worker processes that have recorded something.
    pub workers: u64,
    /// Of these, processes that have not said that this was all: they still run, or were lost.
    /// What such a one acked while the broker took no records is missing.
    pub unended: u64,
    /// When the first execution started, microseconds since 1970.
    pub from_us: u64,
    /// When the last one ended, microseconds since 1970.
    pub to_us: u64,
    /// Things that the protocol excludes.
    pub findings: u64,
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { executed, dead_lettered, open, executions, resources, workers, .. } = *self;
        let executed = counted(executed, "task");
        writeln!(f, "{executed} executed, {dead_lettered} dead-lettered, {open} still open")?;
        let (executions, resources) =
            (counted(executions, "execution"), counted(resources, "resource"));
        let processes = if workers == 1 { "process" } else { "processes" };
        writeln!(f, "{executions} on {resources} by {workers} worker {processes}")?;
        let Self { failed, aborted, replayed, cut_off, superseded, late, unended, .. } = *self;
        write!(f, "{failed} failed, {aborted} aborted")?;
        if cut_off > 0 {
            write!(f, " ({cut_off} by workers that were frozen or cut off)")?;
        }
        writeln!(f, ", {}", counted(replayed, "replayed dead letter"))?;
        writeln!(
            f,
            "{} executed again: {} redelivered, {} published again",
            self.repeated_redelivered + self.repeated_republished,
            self.repeated_redelivered,
            self.repeated_republished
        )?;
        if superseded > 0 {
            let copies = if superseded == 1 { "copy" } else { "copies" };
            writeln!(f, "{superseded} late {copies} of executed tasks, not executed")?;
        }
        if late > 0 {
            let records = counted(late, "record");
            writeln!(f, "{records} came late: the broker took none, and acks did not wait")?;
        }
        if unended > 0 {
            let have = if unended == 1 { "has" } else { "have" };
            writeln!(
                f,
                "{unended} of the worker processes {have} not ended, or {} lost: what was acked there \
                 while the broker took no records is missing here",
                if unended == 1 { "was" } else { "were" }
            )?;
        }
        write!(f, "{}", counted(self.findings, "violation"))
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
