//! `keylane bench`

mod failover;
mod fleet;
mod latency;
mod ledger;
mod memory;
mod throughput;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::ValueEnum;

use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) use self::worker::BenchWorker;
use super::Broker;
use super::progress::{bar, grouped};
use super::signals::until_signalled;
use crate::rabbit::purge::purge;
use crate::{
    Connect, Error, Handler, Namespace, PartitionCount, Resource, WorkerOptions, WorkerSummary,
    work,
};

/// Measure keylane beside raw loops over the same queues
///
/// Throughput and latency alternate with the raw loops in one run, so that the
/// ratios hold on a noisy machine too. Every part has a namespace of its own, of
/// 64 partitions, and leaves nothing of it. Use a release build.
#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Rounds of throughput and latency; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Tasks of one round of throughput
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    tasks: u64,
    /// Tasks of the memory measurement
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    memory_tasks: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Tasks per second, from publish to ack
    Throughput,
    /// From the publish call to the start of the handler, at 200 tasks/s
    Latency,
    /// Until every partition moves on when a worker is killed, stopped, joins
    Failover,
    /// Peak memory of a publisher and a worker over a million tasks
    Memory,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    throughput: Option<throughput::Throughput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<latency::Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failover_ms: Option<failover::Failover>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<memory::Memory>,
    violations: u64,
}

impl Bench {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        if cfg!(debug_assertions) {
            eprintln!(
                "keylane: this is a debug build, its figures mean little: cargo run --release"
            );
        }
        let (connect, _running) = broker.ensure("bench").await?;
        until_signalled("cleaning up", |shutdown| async move {
            let space = Space { connect: &connect, shutdown };
            self.measure(&space).await
        })
        .await
    }

    async fn measure(&self, space: &Space<'_>) -> anyhow::Result<ExitCode> {
        let progress = bar(None, "{spinner:.cyan} {msg} {elapsed}");
        let wanted = |part| self.parts.is_empty() || self.parts.contains(&part);
        let mut report = Report::default();
        if wanted(Part::Throughput) {
            let (throughput, violations) =
                space.with(async |connect| throughput::run(self, connect, &progress).await).await?;
            report.throughput = Some(throughput);
            report.violations += violations;
        }
        if wanted(Part::Latency) {
            let (latency, violations) =
                space.with(async |connect| latency::run(self, connect, &progress).await).await?;
            report.latency_ms = Some(latency);
            report.violations += violations;
        }
        if wanted(Part::Failover) {
            let (failover, violations) =
                space.with(async |connect| failover::run(connect, &progress).await).await?;
            report.failover_ms = Some(failover);
            report.violations += violations;
        }
        if wanted(Part::Memory) {
            let tasks = self.memory_tasks;
            let (memory, violations) =
                space.with(async |connect| memory::run(tasks, connect, &progress).await).await?;
            report.memory_mb = Some(memory);
            report.violations += violations;
        }
        progress.finish_and_clear();
        if self.json {
            out!("{}", serde_json::to_string(&report)?);
        } else {
            print(&report);
        }
        Ok(if report.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Where the parts are measured.
struct Space<'a> {
    connect: &'a Connect,
    shutdown: CancellationToken,
}

impl Space<'_> {
    /// Measures in a fresh namespace, and removes it whatever happens.
    async fn with<T>(
        &self,
        measure: impl AsyncFnOnce(&Connect) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let namespace = Namespace::new(format!("{}-{random}", self.connect.namespace()))?;
        let connect = self.connect.clone().with_namespace(namespace);
        let topology = crate::init(&connect, PartitionCount::DEFAULT).await?;
        let measured = async {
            let measured = measure(&connect).await?;
            let dead = crate::status(&connect).await?.dead;
            ensure!(dead == 0, "{dead} tasks ended in the dead letters");
            Ok(measured)
        };
        let result = tokio::select! {
            result = measured => result,
            () = self.shutdown.cancelled() => Err(anyhow!("interrupted")),
        };
        purge(&connect, &topology).await?;
        result
    }
}

fn print(report: &Report) {
    if let Some(t) = &report.throughput {
        out!("throughput, {} rounds of {} tasks, medians", t.rounds, grouped(t.tasks));
        out!("  keylane                {:>9.0} tasks/s", t.keylane);
        out!(
            "  without its journal    {:>9.0} tasks/s   with it is {:.2} of it",
            t.no_journal,
            t.ratio_journal
        );
        out!(
            "  with metrics read      {:>9.0} tasks/s   it is {:.2} of keylane",
            t.metrics,
            t.ratio_metrics
        );
        out!(
            "  raw, an ack each       {:>9.0} tasks/s   keylane is {:.2} of it",
            t.raw_single,
            t.ratio_single
        );
        out!(
            "  raw, coalesced acks    {:>9.0} tasks/s   keylane is {:.2} of it",
            t.raw_coalesced,
            t.ratio_coalesced
        );
    }
    if let Some(l) = &report.latency_ms {
        out!("latency at 200 tasks/s, publish call to handler start");
        out!(
            "  keylane                p50 {:>6.2} ms   p99 {:>6.2} ms",
            l.keylane.p50,
            l.keylane.p99
        );
        out!("  raw                    p50 {:>6.2} ms   p99 {:>6.2} ms", l.raw.p50, l.raw.p99);
    }
    if let Some(f) = &report.failover_ms {
        let line = |who: &str, ms: f64, load: &str| out!("  {who:<22} {ms:>6.0} ms   ({load})");
        out!(
            "failover of one of three workers, tasks of {} ms, until its last partition executes \
             elsewhere",
            f.task_ms
        );
        line("killed", f.kill, "steady load");
        line("killed", f.kill_prefetched, "all windows full");
        line("stopped", f.stop, "steady load, the window of one of its partitions full");
        line("stopped", f.stop_prefetched, "all windows full");
        line("joined", f.join, "all windows full");
    }
    if let Some(m) = &report.memory_mb {
        out!("memory over {} tasks, peak (growth after the first tenth)", grouped(m.tasks));
        out!(
            "  publisher              {:>6.1} MB   ({:+.1} MB)",
            m.publisher_peak,
            m.publisher_growth
        );
        out!("  worker                 {:>6.1} MB   ({:+.1} MB)", m.worker_peak, m.worker_growth);
    }
    out!("violations               {:>6}", report.violations);
}

/// Starts a worker in this process and waits until it consumes everything.
async fn started_worker(
    connect: &Connect,
    options: WorkerOptions,
    handler: impl Handler,
    shutdown: CancellationToken,
) -> anyhow::Result<JoinHandle<Result<WorkerSummary, Error>>> {
    let partitions = crate::topology(connect).await?.partitions().len();
    let consumed = async || -> anyhow::Result<usize> {
        let status = crate::status(connect).await?;
        Ok(status.partitions.iter().filter(|p| p.consumed).count())
    };
    let worker_connect = connect.clone();
    let worker =
        tokio::spawn(async move { work(&worker_connect, options, handler, shutdown).await });
    while consumed().await? < partitions {
        if worker.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(worker)
}

/// Waits until no task is left. One look is not enough: what is on its way to a
/// worker is neither ready nor unsettled.
async fn drained(connect: &Connect) -> anyhow::Result<()> {
    let mut quiet = 0;
    while quiet < 3 {
        let status = crate::status(connect).await?;
        let left: u32 = status.partitions.iter().map(|p| p.ready + p.unsettled).sum();
        quiet = if left == 0 && !status.workers.is_empty() { quiet + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn resource_name(number: u32) -> Resource {
    // A short decimal number is within every limit of a resource.
    Resource::new(format!("resource-{number}")).unwrap_or_else(|error| unreachable!("{error}"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Starts this very program.
fn this_program() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_exe().context("cannot find the running program")
}
