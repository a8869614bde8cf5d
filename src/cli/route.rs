//! `keylane route`

use std::process::ExitCode;
use std::time::Duration;

use super::Broker;
use super::metrics::MetricsArgs;
use super::progress::counted;
use super::signals::until_signalled;
use super::work::{default_worker_id, parse_duration};
use crate::{RouterOptions, WorkerId};

/// Forward tasks from the inbox to their partitions, for publishers that cannot
/// hash; further routers stand by
#[derive(Debug, clap::Args)]
pub(super) struct Route {
    /// Name of this router [default: host and process number]
    #[arg(long)]
    id: Option<WorkerId>,
    /// Tasks that are being forwarded at once, at the most
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_in_flight: u16,
    /// When stopped: time for the broker to confirm what is being forwarded
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    drain_timeout: Duration,
    /// At the start: how long to wait for a broker that is out of reach [default: without end]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    wait_for_broker: Option<Duration>,
    #[command(flatten)]
    metrics: MetricsArgs,
}

impl Route {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let options = RouterOptions {
            id: self.id.unwrap_or_else(default_worker_id),
            max_in_flight: self.max_in_flight,
            drain_timeout: self.drain_timeout,
            wait_for_broker: self.wait_for_broker,
            metrics: self.metrics.serve().await?,
        };
        until_signalled("finishing what is being forwarded", async |shutdown| {
            let summary = crate::route(&connect, options, shutdown).await?;
            eprintln!(
                "keylane: forwarded {}, {} to the dead letters",
                counted(summary.executed, "task"),
                summary.dead_lettered
            );
            Ok(ExitCode::SUCCESS)
        })
        .await
    }
}
