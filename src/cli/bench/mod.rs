//! `keylane bench`

mod balance;
mod failover;
mod fleet;
mod latency;
mod ledger;
mod memory;
mod print;
mod scale;
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
use super::progress::bar;
use super::signals::until_signalled;
use crate::provision::RunningBroker;
use crate::rabbit::purge::purge;
use crate::{
    Connect, Error, Handler, Namespace, PartitionCount, Resource, WorkerOptions, WorkerSummary,
    work,
};

/// Measure keylane beside raw loops over the same queues
///
/// Throughput and latency alternate with the raw loops in one run, so that the
/// ratios hold on a noisy machine too. Every part has a namespace of its own, of
/// 64 partitions (but for scale), and leaves nothing of it. Use a release build.
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
    /// Workers of the scale measurement
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(2..))]
    workers: u16,
    /// Partitions of the scale measurement
    #[arg(long, default_value = "1024")]
    partitions: PartitionCount,
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
    /// Partitions of each worker, and their busy time under an uneven load of two minutes
    Balance,
    /// Many workers on many partitions: until all are owned, and what the broker has then
    Scale,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<balance::Balance>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<scale::Scale>,
    violations: u64,
}

impl Bench {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        if cfg!(debug_assertions) {
            eprintln!(
                "keylane: this is a debug build, its figures mean little: cargo run --release"
            );
        }
        let (connect, running) = broker.ensure("bench").await?;
        let container = running.as_ref().and_then(RunningBroker::container);
        until_signalled("cleaning up", |shutdown| async move {
            let space = Space { connect: &connect, container, shutdown };
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
        if wanted(Part::Balance) {
            let (balance, violations) =
                space.with(async |connect| balance::run(connect, &progress).await).await?;
            report.balance = Some(balance);
            report.violations += violations;
        }
        if wanted(Part::Scale) {
            let measure = async |connect: &Connect| {
                scale::run(self.workers.into(), connect, space.container, &progress).await
            };
            let (scale, violations) = space.with_partitions(self.partitions, measure).await?;
            report.scale = Some(scale);
            report.violations += violations;
        }
        progress.finish_and_clear();
        if self.json {
            out!("{}", serde_json::to_string(&report)?);
        } else {
            print::print(&report);
        }
        Ok(if report.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Where the parts are measured.
struct Space<'a> {
    connect: &'a Connect,
    /// That of the broker, if it is ours.
    container: Option<&'a str>,
    shutdown: CancellationToken,
}

impl Space<'_> {
    /// Measures in a fresh namespace, and removes it whatever happens.
    async fn with<T>(
        &self,
        measure: impl AsyncFnOnce(&Connect) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.with_partitions(PartitionCount::DEFAULT, measure).await
    }

    async fn with_partitions<T>(
        &self,
        partitions: PartitionCount,
        measure: impl AsyncFnOnce(&Connect) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let namespace = Namespace::new(format!("{}-{random}", self.connect.namespace()))?;
        let connect = self.connect.clone().with_namespace(namespace);
        let topology = crate::init(&connect, partitions).await?;
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
