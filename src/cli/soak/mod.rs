//! `keylane soak`

mod brokers;
mod excuses;
mod faults;
mod finale;
mod fleet;
mod inbox;
mod judge;
mod load;
mod payload;
mod report;
mod run;
mod scene;
mod schedule;
mod supervisor;
mod truth;
mod watch;
mod wire;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};

pub(super) use self::worker::SoakWorker;

use self::run::Run;
use self::schedule::{Planned, PlannedParser};
use super::progress::bar;
use super::scratch::Scratch;
use super::signals::{INTERRUPTED, until_signalled};
use super::work::parse_duration;
use crate::provision::Version;
use crate::provision::cluster::{Cluster, Setup, Waits};

/// Put brokers and workers through faults under load, and check the result
///
/// Starts three RabbitMQ nodes in Docker (or one), producers, workers and routers as
/// processes, and lets faults befall brokers and processes. What was executed is told by
/// locks of the operating system, not by keylane; `verify` has the last word. In the end
/// all workers end, the broker itself is asked whether anything is left of them, and one
/// fresh worker has to execute everything that is left. Nothing is repaired on the way.
/// Exits with 1 if anything overlapped, came out of order, was lost or stood still.
#[derive(Debug, clap::Args)]
pub(super) struct Soak {
    /// Nodes of the broker: 1, or 3 that form a cluster
    #[arg(long, default_value = "3", value_parser = PossibleValuesParser::new(["1", "3"]).map(|n| if n == "1" { 1_u8 } else { 3 }))]
    nodes: u8,
    /// Version of RabbitMQ
    #[arg(long, default_value = "4.3", value_parser = PossibleValuesParser::new(["4.3", "4.0"]))]
    broker_version: String,
    /// Partitions [default: 64 with one node, 12 with three]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    partitions: Option<u32>,
    /// Resources, as many of each partition [default: 300 with one node, 72 with three]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    resources: Option<u32>,
    /// Tasks a second, all producers together [default: 250 with one node, 288 with three]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Goes on publishing until there are so many tasks, when all faults are over
    #[arg(long, value_name = "N", default_value_t = 0)]
    tasks: u64,
    /// Workers [default: 4 with one node, 3 with three]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// Routers; with any, a quarter of the resources get their tasks through the inbox
    #[arg(long, value_name = "N", default_value_t = 0)]
    routers: u32,
    /// How long random faults befall them
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Repeats the faults of another run, as far as chance goes [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// These faults, in this order, instead of random ones; with `=TIME`, for so long
    #[arg(
        long,
        value_parser = PlannedParser,
        value_delimiter = ',',
        value_name = "FAULT[=TIME]",
        conflicts_with = "minutes"
    )]
    faults: Vec<Planned>,
    /// How the workers end when all faults are over
    #[arg(long, value_enum, default_value_t = End::Both)]
    end: End,
    /// How long the fresh worker may take for what is left
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    finish_within: Duration,
    /// After how much silence the nodes take one of them for lost: RabbitMQ's
    /// `net_ticktime`, whose default this is
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    net_ticktime: Duration,
    /// How long a queue waits for a consumer whose node is lost, by a policy
    /// `consumer-disconnected-timeout`; partitions wait for 12s at the most
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    consumer_disconnected: Duration,
    /// After how much silence a worker stops what it runs, in whole seconds: less than
    /// `--consumer-disconnected`, or two may execute a task when a node is cut off
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    heartbeat: Duration,
    /// How long each task takes [default: up to 6ms]; with more than 150ms there is a
    /// backlog
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    task_time: Option<Duration>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How workers end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum End {
    /// All drain
    Drain,
    /// All are killed
    Kill,
    /// Some drain, the others are killed
    Both,
}

/// How much of everything there is.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    partitions: u32,
    resources: usize,
    rate: f64,
    tasks: u64,
    workers: usize,
    routers: usize,
}

impl Soak {
    fn sizes(&self) -> Sizes {
        // Three brokers leave less of a small machine.
        let (partitions, resources, rate, workers) =
            if self.nodes == 1 { (64, 300, 250, 4) } else { (12, 72, 288, 3) };
        let partitions = self.partitions.unwrap_or(partitions);
        Sizes {
            partitions,
            // Otherwise a partition without any would count as one that stands still.
            resources: self.resources.unwrap_or(resources).max(partitions) as usize,
            rate: f64::from(self.rate.unwrap_or(rate)),
            tasks: self.tasks,
            workers: self.workers.unwrap_or(workers) as usize,
            routers: self.routers as usize,
        }
    }

    fn setup(&self) -> Setup {
        let version = if self.broker_version == "4.0" { Version::V4_0 } else { Version::V4_3 };
        let waits = Waits {
            net_ticktime: self.net_ticktime,
            consumer_disconnected: self.consumer_disconnected,
        };
        Setup { nodes: self.nodes, version, waits }
    }

    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let seed = self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 32);
        eprintln!("keylane: the seed is {seed}");
        until_signalled("removing the broker", async |shutdown| {
            let progress = bar(None, "{spinner:.cyan} {msg} {elapsed}");
            let scratch = Scratch::new("soak").context("cannot make a directory")?;
            let setup = self.setup();
            let show = |line: &str| progress.set_message(line.to_owned());
            let say = |line: &str| match progress.is_hidden() {
                true => eprintln!("keylane: {line}"),
                false => progress.set_message(line.to_owned()),
            };
            let cluster = tokio::select! {
                cluster = Box::pin(Cluster::start_with(setup, say)) => cluster?,
                () = shutdown.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
            };
            let (soak, directory) = (&self, scratch.path());
            let cluster_ref = &cluster;
            let run =
                Run { soak, seed, setup, cluster: cluster_ref, directory, say: &say, show: &show };
            let outcome = tokio::select! {
                outcome = Box::pin(run.run()) => Some(outcome),
                () = shutdown.cancelled() => None,
            };
            say("removing the broker");
            let removed = cluster.stop().await;
            progress.finish_and_clear();
            let Some(report) = outcome else {
                removed?;
                return Ok(ExitCode::from(INTERRUPTED));
            };
            let report = match report {
                Ok(report) if report.is_ok() => report,
                failed => {
                    let kept = scratch.keep();
                    eprintln!(
                        "keylane: the ground truth and the workers' logs are in {}",
                        kept.display()
                    );
                    failed?
                }
            };
            if self.json {
                out!("{}", serde_json::to_string(&report)?);
            } else {
                report.print();
            }
            removed?;
            Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
        .await
    }
}
