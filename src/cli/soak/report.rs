//! What a soak has shown.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::finale::Finale;
use super::schedule::Fault;
use super::watch::{Counts, Pauses};
use super::worker::Said;
use crate::cli::progress::{counted, grouped};
use crate::protocol::journal::{AuditReport, Finding};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) nodes: u8,
    /// Of RabbitMQ.
    pub(super) version: String,
    pub(super) net_ticktime_s: u64,
    pub(super) consumer_disconnected_s: u64,
    pub(super) heartbeat_s: u64,
    pub(super) partitions: u32,
    pub(super) faults: Vec<FaultReport>,
    /// Confirmed tasks.
    pub(super) tasks: u64,
    /// Tasks that were sent again over another connection.
    pub(super) republished: u64,
    /// What the broker refused.
    pub(super) refused: Vec<String>,
    #[serde(flatten)]
    pub(super) counts: Counts,
    /// Processes that were started.
    pub(super) starts: usize,
    /// What the workers said at their end.
    pub(super) workers: Vec<Said>,
    /// Workers that ended by themselves, or did not end when they were told to.
    pub(super) failures: Vec<String>,
    /// Overlaps, and executions out of order.
    pub(super) violations: Vec<String>,
    /// Locks that were taken over from frozen workers, which is no violation.
    pub(super) taken_over: usize,
    /// Locks that were waited for while the broker closed connections, which is none either.
    pub(super) waited: usize,
    pub(super) finale: Finale,
    /// Confirmed and not executed, by resource.
    pub(super) lost: Vec<String>,
    pub(super) poison: Poison,
    /// Dead letters that are no poison.
    pub(super) dead: Vec<String>,
    /// What `verify` says of the journal.
    pub(super) journal: AuditReport,
    pub(super) findings: Vec<Finding>,
    /// Of what it says, overlaps of these two kinds.
    pub(super) excused: usize,
}

/// Tasks that kill their workers.
#[derive(Debug, Default, Serialize)]
pub(super) struct Poison {
    pub(super) published: u64,
    /// Of these, different ones in the dead letters.
    pub(super) dead: u64,
    /// How often it killed a worker.
    pub(super) crashes: u64,
}

/// One fault, and what was felt of it.
#[derive(Debug, Serialize)]
pub(super) struct FaultReport {
    pub(super) fault: Fault,
    /// Whom it befell.
    pub(super) on: String,
    /// Partitions that the node led.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) led: Option<usize>,
    /// Whether it led the journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) led_journal: Option<bool>,
    /// How long the fault lasted, in milliseconds.
    pub(super) held_ms: u64,
    /// Whether all partitions made progress while it lasted, if it was kept up for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) survived: Option<bool>,
    /// How long partitions made no progress, from the fault until all of them did again.
    pub(super) pause_ms: Pauses,
    /// Partitions, and the inbox, that did not make progress again.
    pub(super) stuck: Vec<String>,
    #[serde(flatten)]
    pub(super) counts: Counts,
    pub(super) violations: usize,
}

impl Report {
    pub(super) fn is_ok(&self) -> bool {
        self.violations.is_empty()
            && self.failures.is_empty()
            && self.faults.iter().all(|fault| fault.stuck.is_empty())
            && self.finale.is_ok()
            && self.lost.is_empty()
            && self.refused.is_empty()
            && self.findings.is_empty()
            && self.dead.is_empty()
            && self.poison.dead == self.poison.published
    }

    pub(super) fn print(&self) {
        out!("{}", self.table());
        out!(
            "{} tasks confirmed, {} of them sent again; {} executions, {} redelivered, {} repeated",
            grouped(self.tasks),
            grouped(self.republished),
            grouped(self.counts.executions),
            grouped(self.counts.redelivered),
            grouped(self.counts.repeats)
        );
        self.print_finale();
        let Poison { published, dead, crashes } = self.poison;
        if published > 0 {
            out!(
                "poison: {}, {dead} in the dead letters after {}",
                counted(published, "task"),
                counted(crashes, "crash")
            );
        }
        for (what, lines) in [
            ("violation", &self.violations),
            ("failure", &self.failures),
            ("lost", &self.lost),
            ("refused", &self.refused),
            ("dead letter", &self.dead),
        ] {
            lines.iter().for_each(|line| out!("{what}: {line}"));
        }
        self.findings.iter().for_each(|finding| out!("verify: {finding}"));
        out!("{}", self.journal);
        out!(
            "violations {}, failures {}, lost {}, refused {}, dead letters {}; seed {}",
            self.violations.len(),
            self.failures.len(),
            self.lost.len(),
            self.refused.len(),
            self.dead.len(),
            self.seed
        );
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "fault",
            "on",
            "led",
            "lasted",
            "pause, median",
            "max",
            "stuck",
            "redelivered",
            "repeated",
            "violations",
        ]);
        for fault in &self.faults {
            let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1e3);
            let journal = if fault.led_journal == Some(true) { " + journal" } else { "" };
            table.add_row([
                fault.fault.name(),
                fault.on.clone(),
                fault.led.map_or_else(String::new, |led| format!("{led}{journal}")),
                seconds(fault.held_ms),
                seconds(fault.pause_ms.median),
                seconds(fault.pause_ms.max),
                fault.stuck.len().to_string(),
                grouped(fault.counts.redelivered),
                grouped(fault.counts.repeats),
                fault.violations.to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn print_finale(&self) {
        let Finale { with_consumers, with_unacked, unacked, .. } = self.finale;
        out!(
            "all workers ended, and after {:.0} s: consumers on {}, {} delivered and not settled on {}",
            self.finale.settled_s,
            counted(with_consumers as u64, "queue"),
            counted(unacked, "message"),
            counted(with_unacked as u64, "queue")
        );
        let (before, after) = (grouped(self.finale.left_before), grouped(self.finale.left_after));
        match self.finale.fresh_s {
            Some(s) => {
                out!("one fresh worker executed the {before} tasks that were left in {s:.1} s")
            }
            None => out!("of {before} tasks that were left, one fresh worker left {after}"),
        }
        for (queue, remains) in &self.finale.remains {
            let super::brokers::Queue { ready, unacked, consumers } = remains;
            out!("left on {queue}: {ready} ready, {unacked} delivered, {consumers} consumers");
        }
    }
}
