//! `keylane drain`

use std::process::ExitCode;
use std::time::Duration;

use super::Broker;
use super::operator::Operator;
use super::work::parse_duration;
use crate::{Drained, WorkerId, drain_worker};

/// Have a worker finish what runs and end, from afar
///
/// As if it were sent SIGTERM: what it has not started goes to the others, in order.
/// Waits until it has ended. Exit code 1 if it did not in time, or if no worker of this
/// name answers.
#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// The worker's name, as `status` shows it
    worker: WorkerId,
    /// How long to wait for its end. It goes on leaving after that
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    timeout: Duration,
    #[command(flatten)]
    operator: Operator,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Drain {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let (connect, by) = (broker.connect()?, self.operator.name());
        let drained = drain_worker(&connect, &self.worker, self.timeout, &by).await?;
        let left = matches!(drained, Drained::Left { .. });
        if self.json {
            out!("{}", serde_json::to_string(&drained)?);
        } else if left {
            out!("{}: {drained}", self.worker);
        } else {
            let hint = match drained {
                Drained::Unknown => " (keylane status names those that do)",
                _ => "",
            };
            eprintln!("keylane: {}: {drained}{hint}", self.worker);
        }
        Ok(if left { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
