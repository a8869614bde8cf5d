//! `keylane init`

use std::process::ExitCode;

use super::Broker;
use crate::PartitionCount;

/// Declare a namespace's topology on the broker; safe to repeat
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// Number of partitions: at least a few times the number of workers. Cannot
    /// be changed later
    #[arg(long, short, default_value_t = PartitionCount::DEFAULT)]
    partitions: PartitionCount,
    /// Print the topology as one JSON object
    #[arg(long)]
    json: bool,
}

impl Init {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let topology = crate::init(&broker.connect()?, self.partitions).await?;
        if self.json {
            out!("{}", serde_json::to_string(&topology)?);
        } else {
            out!("namespace {:?}: {topology}", broker.namespace.as_str());
        }
        Ok(ExitCode::SUCCESS)
    }
}
