//! `keylane init`

use std::num::NonZeroU16;
use std::process::ExitCode;

use super::Broker;
use crate::{PartitionCount, Topology};

/// Declare a namespace's topology on the broker; safe to repeat
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// Number of partitions: at least a few times the number of workers. Cannot
    /// be changed later
    #[arg(long, short, default_value_t = PartitionCount::DEFAULT)]
    partitions: PartitionCount,
    /// Deliveries of one partition that its owner holds, at the most: a slow
    /// resource holds up others of its partition when so many of its tasks wait.
    /// The same for all workers, and cannot be changed later
    #[arg(long, value_name = "N", default_value_t = Topology::DEFAULT_PREFETCH)]
    prefetch: NonZeroU16,
    /// Print the topology as one JSON object
    #[arg(long)]
    json: bool,
}

impl Init {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let wanted = Topology::first(self.partitions).with_prefetch(self.prefetch);
        let topology = crate::init(&broker.connect()?, wanted).await?;
        if self.json {
            out!("{}", serde_json::to_string(&topology)?);
        } else {
            out!("namespace {:?}: {topology}", broker.namespace.as_str());
        }
        Ok(ExitCode::SUCCESS)
    }
}
