//! One picture for a pipe.

use super::super::progress::grouped;
use super::panes::span;
use super::screen::{executed_rate, rate};
use crate::dashboard::snapshot::Snapshot;
use crate::protocol::text::OneLine;

/// Rows of a list, at the most.
const MOST: usize = 10;

pub(super) fn print(snapshot: &Snapshot) {
    let Snapshot { totals, .. } = snapshot;
    out!("namespace {:?}: {}", snapshot.namespace, snapshot.verdict.text);
    out!(
        "executed {}/s, running {} of {} slots, ready {}, unsettled {}, retrying {}, dead letters {}",
        executed_rate(totals),
        grouped(totals.running),
        grouped(totals.slots),
        grouped(totals.ready),
        grouped(totals.unsettled),
        snapshot.retrying_total,
        grouped(u64::from(totals.dead)),
    );
    for worker in &snapshot.workers {
        let silent = if worker.silent { ", silent" } else { "" };
        out!(
            "worker {}: running {}/{}, owns {}, executed {} ({}/s){silent}",
            worker.worker,
            worker.running,
            worker.slots,
            worker.owned,
            grouped(worker.executed),
            rate(worker.executed_per_s),
        );
    }
    for stuck in &snapshot.stuck {
        let since = span(snapshot.at_us.saturating_sub(stuck.since_us));
        out!("stuck: partition {}, {} ready, for {since}", stuck.partition, stuck.ready);
    }
    for hot in snapshot.hot.iter().take(MOST) {
        let name = OneLine(hot.resource.as_str()).to_string();
        let (busy, each) = (hot.busy * 100.0, span(hot.mean_us));
        out!("resource {name}: busy {busy:.0} %, {} tasks/s, each {each}", rate(hot.per_s));
    }
    for retrying in snapshot.retrying.iter().take(MOST) {
        let name = OneLine(retrying.resource.as_str()).to_string();
        let reason = OneLine(retrying.reason.as_deref().unwrap_or_default()).to_string();
        out!("retrying: {name}, attempt {} failed: {reason}", retrying.attempt);
    }
}
