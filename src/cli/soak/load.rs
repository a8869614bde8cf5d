//! Producers at a steady pace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_lite::{StreamExt, stream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::payload::Payload;
use crate::{Connect, Producer, ProducerOptions, Resource, Task, Topology};

/// Tasks on their way, at the most: those of a minute without a broker, so that
/// one partition that takes none does not hold up the others.
const IN_FLIGHT: usize = 20_000;

/// Between two bursts: short beside everything that is watched.
const TICK: Duration = Duration::from_millis(20);

/// What publishes until it is stopped.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) connect: Connect,
    pub(super) resources: Vec<Resource>,
    /// Tasks a second.
    pub(super) rate: f64,
    pub(super) stop: CancellationToken,
    /// Confirmed tasks of all producers together.
    pub(super) confirmed: Arc<AtomicU64>,
}

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

    pub(super) fn refuse(&mut self, what: String) {
        // Enough to see why.
        if self.refused.len() < 100 {
            self.refused.push(what);
        }
    }
}

/// So many resources, as many of each partition as of any other, or one more.
pub(super) fn resources(topology: &Topology, count: usize) -> anyhow::Result<Vec<Resource>> {
    let partitions = topology.partitions().len();
    let mut lanes = vec![0; partitions];
    let mut found = Vec::new();
    for number in 0.. {
        if found.len() == count {
            break;
        }
        let resource = Resource::new(format!("resource-{number}"))?;
        let lanes = &mut lanes[topology.partition_of(&resource).number() as usize];
        // All have the lesser number before any has the greater one.
        if *lanes < count / partitions || found.len() >= count / partitions * partitions {
            *lanes += 1;
            found.push(resource);
        }
    }
    Ok(found)
}

/// Publishes tasks of all these resources in turn, straight to their partitions, until
/// it is stopped; waits for the answers to all of them.
pub(super) async fn publish(load: Load) -> anyhow::Result<Published> {
    let Load { connect, resources, rate, stop, confirmed } = load;
    let options = ProducerOptions { max_in_flight: IN_FLIGHT, ..ProducerOptions::default() };
    let producer = Producer::open(&connect, options).await?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let bursts =
        stream::unfold((tick, stop, 0.0, 0_u64), |(mut tick, stop, due, sent)| async move {
            tokio::select! {
                _ = tick.tick() => {
                    let due = due + rate * TICK.as_secs_f64();
                    Some((sent..due as u64, (tick, stop, due, due as u64)))
                }
                () = stop.cancelled() => None,
            }
        });
    let resources = &resources;
    let tasks = bursts.flat_map(|numbers| {
        stream::iter(numbers.map(|number| {
            let resource = &resources[number as usize % resources.len()];
            let sequence = number / resources.len() as u64;
            Task::on(resource.clone(), Payload::Number { sequence, inbox: false }.text())
        }))
    });
    let mut published = Published::default();
    {
        let mut outcomes = Box::pin(producer.publish_all(tasks));
        while let Some(done) = outcomes.next().await {
            published.republished += u64::from(done.sent > 1);
            let resource = done.task.resource;
            match done.outcome {
                Ok(_) => {
                    confirmed.fetch_add(1, Ordering::Relaxed);
                    *published.confirmed.entry(resource).or_default() += 1;
                }
                Err(error) => published.refuse(format!("{resource}: {error}")),
            }
        }
    }
    producer.close().await;
    Ok(published)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PartitionCount;

    #[test]
    fn the_resources_are_spread_evenly() {
        let topology = Topology::first(PartitionCount::new(8).expect("a number"));
        let of = resources(&topology, 30).expect("resources");
        let mut lanes = [0; 8];
        for resource in &of {
            lanes[topology.partition_of(resource).number() as usize] += 1;
        }
        assert!(of.len() == 30 && lanes.iter().all(|lanes| *lanes >= 3), "{lanes:?}");
    }
}
