//! `keylane init`

use std::num::NonZeroU16;
use std::process::ExitCode;
use std::time::Duration;

use super::Broker;
use super::management::ManagementOptions;
use super::work::parse_duration;
use crate::{PartitionCount, Retention, Topology};

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
    /// Size of the journal, per node that has a copy: `500MB`, `2GiB`; older
    /// records are removed [default: 2GiB, or what is in force]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    journal_size: Option<u64>,
    /// Age up to which records are kept [default: 7days, or what is in force]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    journal_age: Option<Duration>,
    /// Print the topology as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    management: ManagementOptions,
}

impl Init {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let wanted = Topology::first(self.partitions).with_prefetch(self.prefetch);
        let default = Retention::default();
        let retention = (self.journal_size.is_some() || self.journal_age.is_some()).then(|| {
            let bytes = self.journal_size.unwrap_or(default.bytes);
            Retention { bytes, age: self.journal_age.unwrap_or(default.age) }
        });
        let topology = crate::init_with(&broker.connect()?, wanted, retention).await?;
        if self.json {
            out!("{}", serde_json::to_string(&topology)?);
        } else {
            out!("namespace {:?}: {topology}", broker.namespace.as_str());
        }
        if let Some(management) = self.management.open(broker)? {
            for policy in management.policies(&broker.namespace).await? {
                eprintln!("keylane: {policy}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Sizes as people write them: `500MB`, `2GiB`, or a bare number of bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "kib" => 1 << 10,
        "mb" => 1_000_000,
        "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => return Err("a size is a number and B, KB, MB, GB, KiB, MiB or GiB".to_owned()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(|| format!("{text} is no size"))
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let bytes = Some(parse_size(text)?);
    bytes.filter(|bytes| *bytes >= MIN_JOURNAL_BYTES).ok_or_else(|| {
        format!("{text} is no size of a journal: it has {MIN_JOURNAL_BYTES} bytes at least")
    })
}

/// The broker removes whole segments, which have a megabyte at the least.
const MIN_JOURNAL_BYTES: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("500 MB"), Ok(500_000_000));
        for wrong in ["", "GB", "2TB", "-1", "9MB", "99999999999999999999", "20000000000GB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
