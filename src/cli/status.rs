//! `keylane status`

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::Broker;
use super::management::ManagementOptions;
use super::pause::paused;
use super::progress::grouped;
use crate::protocol::stall::{Cause, Watch};
use crate::rabbit::status::Observer;
use crate::{LongRunning, PartitionStatus, ResourceShare, WorkerId};

/// Show partitions, owners, backlog, workers, and what stands still
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Show idle partitions too
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    management: ManagementOptions,
}

impl Status {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let mut management = self.management.open(broker)?;
        let mut observer = Observer::open(&connect, "status").await?;
        let mut watch = Watch::new(Duration::from_millis(1));
        let mut looks = 0;
        // What lasts until the last look is told; what runs is between two tasks at times.
        let mut status = loop {
            let mut status = observer.look().await?;
            let known = match &mut management {
                Some(management) => management.add_strays(connect.namespace(), &mut status).await?,
                None => true,
            };
            looks += 1;
            watch.note(looks, status.looks());
            let suspicious = status.partitions.iter().any(|partition| partition.cause.is_some());
            if known && (looks > 1 || !suspicious) {
                break status;
            }
            tokio::time::sleep(NEXT_LOOK).await;
        };
        observer.close().await;
        let policies = match &management {
            Some(management) => Some(management.policies(connect.namespace()).await?),
            None => None,
        };
        let stalled: BTreeMap<_, _> = watch.stalled().map(|(p, cause, _)| (p, cause)).collect();
        for partition in &mut status.partitions {
            partition.cause = stalled.get(&partition.partition).copied().cloned();
        }
        if self.json {
            let mut status = serde_json::to_value(&status)?;
            if let Some(policies) = policies {
                status["policies"] = serde_json::to_value(policies)?;
            }
            out!("{status}");
        } else {
            print(&status, self.all);
            for policy in policies.into_iter().flatten() {
                out!("\nin the way: {policy}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A hand-over takes less.
const NEXT_LOOK: Duration = Duration::from_secs(1);

fn print(status: &crate::Status, all: bool) {
    out!("namespace {:?}: {}", status.namespace, status.topology);
    if status.blocked {
        out!(
            "the broker takes no messages, for it runs low on memory or disk \
             (rabbitmq-diagnostics alarms): no worker can be asked, and none is shown"
        );
    }
    let silent = status.partitions.iter().filter(|p| !p.counted).count();
    let ready: u64 = status.partitions.iter().map(|p| u64::from(p.ready)).sum();
    let unsettled: u64 = status.partitions.iter().map(|p| u64::from(p.unsettled)).sum();
    let running: u64 = status.partitions.iter().map(|p| u64::from(p.running)).sum();
    out!(
        "tasks: {}{} ready, {} unsettled, {} of them running; inbox {}{}; dead letters {}",
        if silent > 0 { "at least " } else { "" },
        grouped(ready),
        grouped(unsettled),
        grouped(running),
        grouped(u64::from(status.inbox)),
        if status.inbox > 0 && !status.routed { " (no router: keylane route)" } else { "" },
        grouped(u64::from(status.dead)),
    );
    if let Some(paused) = paused(&status.steering) {
        out!("paused: {paused}");
    }
    let cancelled = status.steering.cancelled.len() as u64;
    if cancelled > 0 {
        out!("cancelled tasks: {}", grouped(cancelled));
    }
    let unowned = status.partitions.iter().filter(|p| p.counted && !p.consumed).count();
    if unowned > 0 {
        out!("partitions that nobody consumes: {unowned} (start workers: keylane work)");
    }
    let stray = |p: &&PartitionStatus| matches!(p.cause, Some(Cause::Stray(_)));
    let strays: Vec<_> = status.partitions.iter().filter(stray).cloned().collect();
    for (partitions, cause) in by_cause(&strays) {
        out!("partitions with tasks that belong to nobody: {partitions} ({cause})");
    }
    let crowded = |p: &&PartitionStatus| matches!(p.cause, Some(Cause::Crowded { .. }));
    let others = status.partitions.iter().filter(|p| !stray(p) && !crowded(p));
    let others: Vec<_> = others.cloned().collect();
    for (partitions, cause) in by_cause(&others) {
        out!("partitions that stand still: {partitions} ({cause})");
    }
    let crowded: Vec<_> = status.partitions.iter().filter(crowded).cloned().collect();
    for (partitions, cause) in by_cause(&crowded) {
        out!("partitions that are held up: {partitions} ({cause})");
    }
    if !status.workers.is_empty() {
        let mut workers =
            table(["worker", "weight", "slots", "owns", "plan", "running", "executed", "failed"]);
        for worker in &status.workers {
            let count = |of: fn(&PartitionStatus) -> &Option<WorkerId>| {
                status.partitions.iter().filter(|p| of(p).as_ref() == Some(&worker.worker)).count()
            };
            workers.add_row([
                worker.worker.to_string(),
                worker.weight.to_string(),
                worker.slots.to_string(),
                count(|partition| &partition.owner).to_string(),
                count(|partition| &partition.planned).to_string(),
                worker.partitions.iter().map(|p| p.running).sum::<u32>().to_string(),
                grouped(worker.executed),
                grouped(worker.failed),
            ]);
        }
        align_numbers(&mut workers, 1);
        out!("\n{workers}");
    }
    for worker in &status.workers {
        if let Some(outage) = &worker.unavailable {
            let since = Duration::from_secs(outage.for_ms / 1_000);
            let (worker, reason) = (&worker.worker, outage.reason.escape_debug());
            out!("{worker} reaches no handler for {since:?}, and starts nothing: {reason}");
        }
    }
    print_hot(status);
    print_longest(status);
    let shown =
        |p: &&PartitionStatus| all || !p.counted || p.ready + p.unsettled > 0 || p.stray.is_some();
    let shown: Vec<_> = status.partitions.iter().filter(shown).collect();
    if !shown.is_empty() {
        let mut partitions = table([
            "partition",
            "owner",
            "planned",
            "next in line",
            "ready",
            "unsettled",
            "running",
        ]);
        for p in &shown {
            let name =
                |worker: Option<&WorkerId>| worker.map_or("-".to_owned(), ToString::to_string);
            let next = p.line.iter().find(|worker| Some(*worker) != p.owner.as_ref());
            partitions.add_row([
                p.partition.to_string(),
                name(p.owner.as_ref()),
                name(p.planned.as_ref()),
                name(next),
                if p.counted { grouped(u64::from(p.ready)) } else { "?".to_owned() },
                p.unsettled.to_string(),
                p.running.to_string(),
            ]);
        }
        align_numbers(&mut partitions, 4);
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

/// Tasks that have been running for so long stand out.
const LONG: Duration = Duration::from_secs(10);

fn print_longest(status: &crate::Status) {
    let long = |task: &&LongRunning| u128::from(task.for_ms) >= LONG.as_millis();
    let workers = status.workers.iter();
    let all = workers.flat_map(|worker| worker.longest.iter().map(|task| (&worker.worker, task)));
    let mut all: Vec<_> = all.filter(|(_, task)| long(task)).collect();
    all.sort_by_key(|(_, task)| std::cmp::Reverse(task.for_ms));
    let header =
        ["running longest", "resource", "partition", "worker", "attempt", "for", "at most"];
    let mut longest = table(header);
    for (worker, LongRunning { running, for_ms, timeout_ms, .. }) in all.iter().take(LONGEST) {
        let seconds = |ms: u64| humantime::format_duration(Duration::from_secs(ms / 1_000));
        longest.add_row([
            shown(running.task.as_str()),
            shown(running.resource.as_str()),
            running.partition.to_string(),
            worker.to_string(),
            running.attempt.to_string(),
            seconds(*for_ms).to_string(),
            timeout_ms.map_or("-".to_owned(), |ms| seconds(ms).to_string()),
        ]);
    }
    if !longest.is_empty() {
        align_numbers(&mut longest, 4);
        out!("\n{longest}");
    }
    if all.len() > LONGEST {
        out!("and {} more", all.len() - LONGEST);
    }
}

/// So many are shown.
const LONGEST: usize = 10;

/// A resource, in one line that is no wider than a table can bear.
fn shown(resource: &str) -> String {
    const WIDTH: usize = 40;
    let mut shown: String = resource.escape_debug().take(WIDTH).collect();
    if resource.escape_debug().nth(WIDTH).is_some() {
        shown.push('…');
    }
    shown
}

/// The partitions of each cause. What somebody has paused as a whole, and what nobody
/// consumes, is said already.
fn by_cause(partitions: &[PartitionStatus]) -> BTreeMap<String, String> {
    let mut causes = BTreeMap::<String, String>::new();
    for PartitionStatus { partition, cause, .. } in partitions {
        let Some(cause) = cause else { continue };
        if matches!(cause, Cause::Paused | Cause::NotConsumed) {
            continue;
        }
        let partitions = causes.entry(cause.to_string()).or_default();
        let comma = if partitions.is_empty() { "" } else { ", " };
        *partitions += &format!("{comma}{partition}");
    }
    causes.into_iter().map(|(cause, partitions)| (partitions, cause)).collect()
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
