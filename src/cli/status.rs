//! `keylane status`

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::Broker;
use super::progress::grouped;
use crate::{PartitionId, ResourceShare};

/// Show partitions, owners, backlog and workers
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Show idle partitions too
    #[arg(long, short)]
    all: bool,
}

impl Status {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let status = crate::status(&connect).await?;
        if self.json {
            out!("{}", serde_json::to_string(&status)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut stands_still = waiting(&status);
        if !stands_still.is_empty() {
            tokio::time::sleep(SECOND_LOOK).await;
            let again = waiting(&crate::status(&connect).await?);
            stands_still.retain(|partition| again.contains(partition));
        }
        print(&status, &stands_still, self.all);
        Ok(ExitCode::SUCCESS)
    }
}

/// A hand-over takes less.
const SECOND_LOOK: Duration = Duration::from_secs(1);

fn waiting(status: &crate::Status) -> Vec<PartitionId> {
    let waiting = status.partitions.iter().filter(|p| p.waits() && !status.workers.is_empty());
    waiting.map(|p| p.partition).collect()
}

fn print(status: &crate::Status, stands_still: &[PartitionId], all: bool) {
    out!("namespace {:?}: {}", status.namespace, status.topology);
    let ready: u64 = status.partitions.iter().map(|p| u64::from(p.ready)).sum();
    let unsettled: u64 = status.partitions.iter().map(|p| u64::from(p.unsettled)).sum();
    let running: u64 = status.partitions.iter().map(|p| u64::from(p.running)).sum();
    out!(
        "tasks: {} ready, {} unsettled, {} of them running; inbox {}{}; dead letters {}",
        grouped(ready),
        grouped(unsettled),
        grouped(running),
        grouped(u64::from(status.inbox)),
        if status.inbox > 0 && !status.routed { " (no router: keylane route)" } else { "" },
        grouped(u64::from(status.dead)),
    );
    if status.workers.is_empty() && status.partitions.iter().any(|p| p.consumed) {
        out!("somebody consumes, but no worker answers: is it stopped, or cut off?");
    }
    let unowned = status.partitions.iter().filter(|p| !p.consumed).count();
    if unowned > 0 {
        out!("partitions that nobody consumes: {unowned} (start workers: keylane work)");
    }
    if !stands_still.is_empty() {
        let numbers: Vec<_> = stands_still.iter().map(ToString::to_string).collect();
        out!(
            "partitions that stand still, with tasks that no worker is handed: {} (does a stranger \
             consume them? or was a worker killed during a hand-over: see ARCHITECTURE.md, \
             \"A partition that stands still\")",
            numbers.join(", ")
        );
    }
    if !status.workers.is_empty() {
        let mut workers =
            table(["worker", "weight", "slots", "owns", "running", "executed", "failed"]);
        for worker in &status.workers {
            let owns =
                status.partitions.iter().filter(|p| p.owner.as_ref() == Some(&worker.worker));
            workers.add_row([
                worker.worker.to_string(),
                worker.weight.to_string(),
                worker.slots.to_string(),
                owns.count().to_string(),
                worker.partitions.iter().map(|p| p.running).sum::<u32>().to_string(),
                grouped(worker.executed),
                grouped(worker.failed),
            ]);
        }
        align_numbers(&mut workers, 1);
        out!("\n{workers}");
    }
    print_hot(status);
    let shown = |p: &&crate::PartitionStatus| all || p.ready + p.unsettled > 0;
    let shown: Vec<_> = status.partitions.iter().filter(shown).collect();
    if !shown.is_empty() {
        let mut partitions = table(["partition", "owner", "ready", "unsettled", "running"]);
        for p in &shown {
            partitions.add_row([
                p.partition.to_string(),
                p.owner.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                grouped(u64::from(p.ready)),
                p.unsettled.to_string(),
                p.running.to_string(),
            ]);
        }
        align_numbers(&mut partitions, 2);
        out!("\n{partitions}");
    }
    let idle = status.partitions.len() - shown.len();
    if idle > 0 {
        out!("\n{idle} partitions are idle (--all shows them)");
    }
}

/// Resources that stand out: whatever has less is a share of a crowd.
const HOT: f64 = 0.05;

fn print_hot(status: &crate::Status) {
    let stands_out = |share: &&ResourceShare| share.attempts.max(share.handler_time) >= HOT;
    let mut hot = table(["hot resource", "partition", "worker", "tasks", "time", "busy"]);
    for share in status.hot.iter().filter(stands_out) {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        hot.add_row([
            shown(share.resource.as_str()),
            share.partition.to_string(),
            share.worker.to_string(),
            percent(share.attempts),
            percent(share.handler_time),
            percent(share.busy),
        ]);
    }
    if !hot.is_empty() {
        align_numbers(&mut hot, 3);
        out!("\n{hot}");
    }
}

/// A resource, in one line that is no wider than a table can bear.
fn shown(resource: &str) -> String {
    const WIDTH: usize = 40;
    let mut shown: String = resource.escape_debug().take(WIDTH).collect();
    if resource.escape_debug().nth(WIDTH).is_some() {
        shown.push('…');
    }
    shown
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    // A pipe has no width to arrange things for.
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

fn align_numbers(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
