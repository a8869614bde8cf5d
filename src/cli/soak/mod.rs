//! `keylane soak`

mod fleet;
mod load;
mod report;
mod run;
mod schedule;
mod truth;
mod watch;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

pub(super) use self::worker::SoakWorker;

use self::run::Run;
use self::schedule::Fault;
use super::progress::bar;
use super::scratch::Scratch;
use super::signals::{INTERRUPTED, until_signalled};
use super::work::parse_duration;
use crate::provision::cluster::{Cluster, Waits};

/// Put a cluster of three brokers through faults under load, and check the result
///
/// Starts three RabbitMQ nodes in Docker, producers and workers, and lets faults
/// befall the nodes that lead partitions: stopped, killed, frozen, cut off, and in
/// the end all restarted. What was executed is told by locks of the operating
/// system, not by keylane; `verify` has the last word. Exits with 1 if anything
/// overlapped, came out of order or was lost. A partition that the broker hands to
/// nobody is given back by a restart of its queue's server, which is counted.
#[derive(Debug, clap::Args)]
pub(super) struct Soak {
    /// How long random faults befall the cluster
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Repeats the faults of another run, as far as chance goes [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// These faults, in this order, instead of random ones
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "FAULTS",
        conflicts_with = "minutes"
    )]
    faults: Vec<Fault>,
    /// After how much silence the nodes take one of them for lost: RabbitMQ's
    /// `net_ticktime`, whose default this is
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    net_ticktime: Duration,
    /// How long a queue waits for a consumer whose node is lost: RabbitMQ's
    /// `consumer_disconnected_timeout`, whose default this is
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

impl Soak {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let seed = self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 32);
        eprintln!("keylane: the seed is {seed}");
        until_signalled("removing the cluster", async |shutdown| {
            let progress = bar(None, "{spinner:.cyan} {msg} {elapsed}");
            let scratch = Scratch::new("soak").context("cannot make a directory")?;
            let waits = Waits {
                net_ticktime: self.net_ticktime,
                consumer_disconnected: self.consumer_disconnected,
            };
            let say = |line: &str| match progress.is_hidden() {
                true => eprintln!("keylane: {line}"),
                false => progress.set_message(line.to_owned()),
            };
            let cluster = tokio::select! {
                cluster = Box::pin(Cluster::start(waits, say)) => cluster?,
                () = shutdown.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
            };
            let run =
                Run { soak: &self, seed, cluster: &cluster, directory: scratch.path(), say: &say };
            let outcome = tokio::select! {
                outcome = Box::pin(run.run(waits)) => Some(outcome),
                () = shutdown.cancelled() => None,
            };
            say("removing the cluster");
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
