//! Producers at a steady pace.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_lite::{StreamExt, stream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{Connect, Producer, ProducerOptions, Resource, Task, Topology};

/// Resources of each partition.
const PER_PARTITION: usize = 6;

/// Between two tasks of a resource: 24 tasks a second for each partition, which
/// leaves the processors of a small machine to three brokers.
const BEAT: Duration = Duration::from_millis(250);

/// Tasks on their way, at the most: those of a minute without a broker, so that
/// one partition that takes none does not hold up the others.
const IN_FLIGHT: usize = 20_000;

/// What a producer has published.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// Confirmed tasks of each resource: those from 0 up to this one, exclusive.
    pub(super) confirmed: BTreeMap<Resource, u64>,
    /// What was refused; after that the numbers of its resource have a gap.
    pub(super) refused: Vec<String>,
    /// Sent more than once, over another connection.
    pub(super) republished: u64,
}

impl Published {
    pub(super) fn add(&mut self, other: Self) {
        self.confirmed.extend(other.confirmed);
        self.refused.extend(other.refused);
        self.republished += other.republished;
    }

    pub(super) fn total(&self) -> u64 {
        self.confirmed.values().sum()
    }
}

/// As many resources of each partition.
pub(super) fn resources(topology: &Topology) -> anyhow::Result<Vec<Resource>> {
    let mut lanes = vec![0; topology.partitions().len()];
    let mut found = Vec::new();
    for number in 0.. {
        if found.len() == PER_PARTITION * lanes.len() {
            break;
        }
        let resource = Resource::new(format!("resource-{number}"))?;
        let lanes = &mut lanes[topology.partition_of(&resource).number() as usize];
        if *lanes < PER_PARTITION {
            *lanes += 1;
            found.push(resource);
        }
    }
    Ok(found)
}

/// Publishes tasks of all these resources until `stop`, and waits for the answers
/// to all of them.
pub(super) async fn publish(
    connect: Connect,
    resources: Vec<Resource>,
    stop: CancellationToken,
) -> anyhow::Result<Published> {
    let options = ProducerOptions { max_in_flight: IN_FLIGHT, ..ProducerOptions::default() };
    let producer = Producer::open(&connect, options).await?;
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let rounds = stream::unfold((beat, stop, 0_u64), |(mut beat, stop, sequence)| async move {
        tokio::select! {
            _ = beat.tick() => Some((sequence, (beat, stop, sequence + 1))),
            () = stop.cancelled() => None,
        }
    });
    let resources = &resources;
    let tasks = rounds.flat_map(|sequence| {
        let of = move |resource: &Resource| Task::on(resource.clone(), sequence.to_string());
        stream::iter(resources.iter().map(of))
    });
    let mut published = Published::default();
    {
        let mut outcomes = Box::pin(producer.publish_all(tasks));
        while let Some(done) = outcomes.next().await {
            published.republished += u64::from(done.sent > 1);
            let resource = done.task.resource;
            match done.outcome {
                Ok(_) => *published.confirmed.entry(resource).or_default() += 1,
                // Enough to see why.
                Err(error) if published.refused.len() < 100 => {
                    published.refused.push(format!("{resource}: {error}"));
                }
                Err(_) => {}
            }
        }
    }
    producer.close().await;
    Ok(published)
}
