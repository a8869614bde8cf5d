//! How evenly a fleet shares its partitions: by their number, and by the time that handlers
//! are busy under a steady load of which few resources have much.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_lite::StreamExt;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::fleet::{Process, Shape, Told, as_planned};
use super::ledger::Note;
use super::resource_name;
use super::worker::{Execution, now_us};
use crate::{Connect, Producer, ProducerOptions, Task, Topology, WorkerId};

/// Fleets whose partitions are counted, the smaller first: each grows to the next.
const FLEETS: [usize; 4] = [3, 5, 8, 16];
/// Workers that share the uneven load.
const WORKERS: usize = 8;
const SHAPE: Shape = Shape { slots: 16, task_ms: 10, tell: true };
/// Resource number n has 1/n of the tasks of the first one.
const RESOURCES: u32 = 1_000;
/// Tasks a second. One handler at a time is all that the busiest resource may have, and it has
/// 13 % of the tasks: with 10 ms each, and what a timer takes, it is busy for 0.6 of the time.
const RATE: u64 = 400;
/// How long the uneven load lasts, and which part at its end is measured.
const LASTS: Duration = Duration::from_secs(120);
const MEASURED: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(25);

#[derive(Debug, Clone, Serialize)]
pub(super) struct Balance {
    pub(super) counts: Vec<Count>,
    pub(super) busy: Busy,
}

/// Partitions of each worker of a fleet that has nothing to do.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Count {
    pub(super) workers: usize,
    pub(super) partitions: usize,
    pub(super) fewest: usize,
    pub(super) most: usize,
    /// The number of partitions by that of workers, rounded up.
    pub(super) limit: usize,
}

/// How busy the workers were in the last 30 s of two minutes of the uneven load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Busy {
    pub(super) workers: usize,
    /// Handlers that ran at once in the whole fleet, in the mean.
    pub(super) handlers: f64,
    /// Of the mean of all workers.
    pub(super) busiest: f64,
    pub(super) least: f64,
    /// What the busiest one would be in the best of cases: the hottest partition alone.
    pub(super) bound: f64,
    /// The same, with the partitions shared as before there was any load.
    pub(super) unlevelled: f64,
    /// Partitions whose tasks another worker executed than before, in each half minute.
    pub(super) moved: Vec<usize>,
}

pub(super) async fn run(
    connect: &Connect,
    progress: &ProgressBar,
) -> anyhow::Result<(Balance, u64)> {
    let told = Told::default();
    let mut fleet = Vec::new();
    let mut counts = Vec::new();
    for workers in FLEETS {
        progress.set_message(format!("balance, {workers} workers"));
        while fleet.len() < workers {
            fleet.push(told.spawn(connect, &format!("bench-{}", fleet.len() + 1), SHAPE)?);
        }
        as_planned(connect, workers).await?;
        let owned = owned(connect).await?;
        let partitions = owned.values().map(Vec::len).sum();
        counts.push(Count {
            workers,
            partitions,
            fewest: fleet.iter().map(|w| owned.get(&w.id).map_or(0, Vec::len)).min().unwrap_or(0),
            most: owned.values().map(Vec::len).max().unwrap_or(0),
            limit: partitions.div_ceil(workers),
        });
    }
    progress.set_message("balance, workers leave");
    for mut leaver in fleet.split_off(WORKERS) {
        leaver.terminate()?;
        leaver.child.wait().await?;
    }
    as_planned(connect, WORKERS).await?;
    let before = owned(connect).await?;
    let began = now_us();
    let published = publish(connect, progress).await?;
    let ended = now_us();
    let topology = crate::topology(connect).await?;
    let busy = {
        let told = told.all();
        let recent = told.iter().filter(|(_, e)| e.start_us >= began && e.start_us < ended);
        busy(&recent.collect::<Vec<_>>(), ended, &before, &topology)
    };
    super::drained(connect).await?;
    fleet.iter().try_for_each(Process::terminate)?;
    for worker in &mut fleet {
        worker.child.wait().await?;
    }
    let missing = published.abs_diff(told.all().len() as u64);
    Ok((Balance { counts, busy }, told.violations() + missing))
}

async fn owned(connect: &Connect) -> anyhow::Result<BTreeMap<WorkerId, Vec<u32>>> {
    let mut owned: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for partition in crate::status(connect).await?.partitions {
        if let Some(owner) = partition.owner {
            owned.entry(owner).or_default().push(partition.partition.number());
        }
    }
    Ok(owned)
}

/// The part of each resource in the load, all together 1.
fn shares() -> Vec<f64> {
    let sum: f64 = (1..=RESOURCES).map(|n| 1.0 / f64::from(n)).sum();
    (1..=RESOURCES).map(|n| 1.0 / f64::from(n) / sum).collect()
}

/// Publishes steadily, and returns how much. The resources come in an order that spreads each of
/// them evenly.
async fn publish(connect: &Connect, progress: &ProgressBar) -> anyhow::Result<u64> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let mut upto: Vec<f64> = shares();
    for at in 1..upto.len() {
        upto[at] += upto[at - 1];
    }
    let producer = Producer::open(connect, ProducerOptions::default()).await?;
    let mut sequences = vec![0; upto.len()];
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = Instant::now();
    let mut number = 0_u64;
    while began.elapsed() < LASTS {
        pace.tick().await;
        let due = (began.elapsed().as_secs_f64() * RATE as f64) as u64;
        let tasks: Vec<_> = (number..due)
            .map(|number| {
                let at = (number as f64 * GOLDEN).fract();
                let index = upto.partition_point(|upto| *upto < at).min(upto.len() - 1);
                sequences[index] += 1;
                let (resource, sequence) = (index as u32, sequences[index]);
                let note = Note { resource, sequence, published: Duration::ZERO };
                Task::on(resource_name(resource), note.to_payload())
            })
            .collect();
        number = number.max(due);
        let mut published = Box::pin(producer.publish_all(futures_lite::stream::iter(tasks)));
        while let Some(done) = published.next().await {
            done.outcome?;
        }
        progress.set_message(format!("balance, uneven load, {number} tasks"));
    }
    producer.close().await;
    // What was published last is executed by then.
    sleep(Duration::from_millis(500)).await;
    Ok(number)
}

fn busy(
    told: &[&(WorkerId, Execution)],
    ended: u64,
    before: &BTreeMap<WorkerId, Vec<u32>>,
    topology: &Topology,
) -> Busy {
    let from = ended.saturating_sub(MEASURED.as_micros() as u64);
    let mut times: BTreeMap<&WorkerId, f64> = before.keys().map(|worker| (worker, 0.0)).collect();
    for (worker, execution) in told.iter().filter(|(_, e)| e.end_us > from) {
        let time = execution.end_us.min(ended) - execution.start_us.max(from);
        *times.entry(worker).or_default() += time as f64 / MEASURED.as_micros() as f64;
    }
    let handlers: f64 = times.values().sum();
    let mean = handlers / times.len().max(1) as f64;
    let greatest = |times: &mut dyn Iterator<Item = f64>| times.fold(0.0, f64::max);
    let mut hot: BTreeMap<u32, f64> = BTreeMap::new();
    for (number, share) in (0..).zip(shares()) {
        let partition = topology.partition_of(&resource_name(number));
        *hot.entry(partition.number()).or_default() += share;
    }
    let at_first = |owned: &Vec<u32>| owned.iter().filter_map(|p| hot.get(p)).sum::<f64>();
    let workers = times.len() as f64;
    Busy {
        workers: times.len(),
        handlers,
        busiest: greatest(&mut times.values().copied()) / mean,
        least: times.values().copied().fold(f64::INFINITY, f64::min) / mean,
        bound: greatest(&mut hot.values().map(|share| share * workers)).max(1.0),
        unlevelled: greatest(&mut before.values().map(|owned| at_first(owned) * workers)),
        moved: moved(told, ended),
    }
}

/// Partitions that changed hands in each half minute before this time, the last one last.
fn moved(told: &[&(WorkerId, Execution)], ended: u64) -> Vec<usize> {
    let halves = (LASTS.as_micros() / MEASURED.as_micros()) as usize;
    let mut moved = vec![0; halves];
    let mut by_start: Vec<_> = told.to_vec();
    by_start.sort_unstable_by_key(|(_, execution)| execution.start_us);
    let mut owners: BTreeMap<u32, &WorkerId> = BTreeMap::new();
    for (worker, execution) in by_start {
        let before = owners.insert(execution.partition, worker);
        let ago = ended.saturating_sub(execution.start_us) / MEASURED.as_micros() as u64;
        let half = (halves - 1).saturating_sub(ago as usize);
        moved[half] += usize::from(before.is_some_and(|before| before != worker));
    }
    moved
}
