//! What a soak has shown.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::schedule::Fault;
use super::watch::{Counts, Pauses};
use super::worker::Said;
use crate::cli::progress::{counted, grouped};
use crate::protocol::journal::{AuditReport, Finding};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) net_ticktime_s: u64,
    pub(super) consumer_disconnected_s: u64,
    pub(super) heartbeat_s: u64,
    pub(super) faults: Vec<FaultReport>,
    /// Confirmed tasks.
    pub(super) tasks: u64,
    /// Tasks that were sent again over another connection.
    pub(super) republished: u64,
    /// What the broker refused.
    pub(super) refused: Vec<String>,
    #[serde(flatten)]
    pub(super) counts: Counts,
    /// What the workers said at their end.
    pub(super) workers: Vec<Said>,
    /// Overlaps, and executions out of order.
    pub(super) violations: Vec<String>,
    /// Confirmed and not executed, by resource.
    pub(super) lost: Vec<String>,
    /// How often a queue's server was restarted, since the broker handed the partition
    /// to nobody.
    pub(super) cured: usize,
    pub(super) dead: u32,
    /// What `verify` says of the journal.
    pub(super) journal: AuditReport,
    pub(super) findings: Vec<Finding>,
}

/// One fault, and what was felt of it.
#[derive(Debug, Serialize)]
pub(super) struct FaultReport {
    pub(super) fault: Fault,
    /// Which node; none if it was all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// Partitions that the node led.
    pub(super) led: usize,
    /// Whether it led the journal.
    pub(super) led_journal: bool,
    /// How long the fault lasted, in milliseconds.
    pub(super) held_ms: u64,
    /// Whether all partitions made progress while it lasted.
    pub(super) survived: bool,
    /// How long partitions made no progress, from the fault until the cluster was
    /// whole again.
    pub(super) pause_ms: Pauses,
    /// Of these, how often a queue's server was restarted to end one.
    pub(super) cured: usize,
    #[serde(flatten)]
    pub(super) counts: Counts,
    pub(super) violations: usize,
}

impl Report {
    pub(super) fn is_ok(&self) -> bool {
        self.violations.is_empty()
            && self.lost.is_empty()
            && self.refused.is_empty()
            && self.findings.is_empty()
            && self.dead == 0
    }

    pub(super) fn print(&self) {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "fault",
            "on",
            "led",
            "lasted",
            "pause, median",
            "max",
            "redelivered",
            "repeated",
            "cured",
            "violations",
        ]);
        for fault in &self.faults {
            let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1e3);
            let journal = if fault.led_journal { " + journal" } else { "" };
            table.add_row([
                fault.fault.name().to_owned(),
                fault.node.clone().unwrap_or_else(|| "all".to_owned()),
                format!("{}{journal}", fault.led),
                seconds(fault.held_ms),
                seconds(fault.pause_ms.median),
                seconds(fault.pause_ms.max),
                grouped(fault.counts.redelivered),
                grouped(fault.counts.repeats),
                fault.cured.to_string(),
                fault.violations.to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        out!("{table}");
        out!(
            "{} tasks confirmed, {} of them sent again; {} executions, {} redelivered, {} repeated",
            grouped(self.tasks),
            grouped(self.republished),
            grouped(self.counts.executions),
            grouped(self.counts.redelivered),
            grouped(self.counts.repeats)
        );
        if self.cured > 0 {
            out!(
                "{} of a queue's server: the broker handed its partition to nobody",
                counted(self.cured as u64, "restart")
            );
        }
        for (what, lines) in
            [("violation", &self.violations), ("lost", &self.lost), ("refused", &self.refused)]
        {
            lines.iter().for_each(|line| out!("{what}: {line}"));
        }
        self.findings.iter().for_each(|finding| out!("verify: {finding}"));
        out!("{}", self.journal);
        out!(
            "violations {}, lost {}, refused {}, dead letters {}; seed {}",
            self.violations.len(),
            self.lost.len(),
            self.refused.len(),
            self.dead,
            self.seed
        );
    }
}
