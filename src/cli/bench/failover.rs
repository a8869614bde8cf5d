//! How long partitions stand still when a worker is killed, stopped, or joins: a
//! kill under a load that the fleet keeps up with, and each of them under a backlog
//! of slow tasks that fills every prefetch window.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;
use futures_lite::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::fleet::{Process, Shape, Told};
use super::ledger::Note;
use super::worker::{Execution, now_us};
use super::{median, resource_name};
use crate::protocol::ownership::priority;
use crate::{Connect, PartitionId, Producer, ProducerOptions, Task, Topology, Weight, WorkerId};

const SHAPE: Shape = Shape { slots: 32, task_ms: 50, tell: true };
/// Every measurement is made so often.
const ROUNDS: u32 = 3;
/// Resources of each partition: more than slots that fall to it, so that none is ever idle.
const LANES: usize = 32;
/// Tasks of all resources that are published in a second, while there is no backlog:
/// two thirds of what the slots execute.
const STEADY: u64 = 1_280;
/// Tasks of each resource: enough that every prefetch window is full to the end,
/// of 96 slots that execute 1,920 tasks/s.
const BACKLOG: u32 = 80;
/// A partition that has not moved by then is not going to.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happened last is digested, and does not count for what comes next.
const CALM: Duration = Duration::from_secs(3);

/// In milliseconds, until the *last* of the worker's partitions executes
/// elsewhere; the median of three.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Failover {
    /// Under a steady load.
    pub(super) kill: f64,
    /// With every prefetch window full, as the others.
    pub(super) kill_prefetched: f64,
    pub(super) stop: f64,
    /// From the start of the process, until it executes tasks of every
    /// partition that it wins.
    pub(super) join: f64,
    /// How long each task takes.
    pub(super) task_ms: u64,
}

pub(super) async fn run(
    connect: &Connect,
    progress: &ProgressBar,
) -> anyhow::Result<(Failover, u64)> {
    let told = Told::default();
    let mut load = Load::open(connect).await?;
    let mut fleet = Vec::new();
    for number in 1..=3 {
        fleet.push(told.spawn(connect, &format!("bench-{number}"), SHAPE)?);
    }
    let (mut kill, mut kill_prefetched) = (Vec::new(), Vec::new());
    let (mut join, mut stopped) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        progress.set_message(format!("failover, round {} of {ROUNDS}", round + 1));
        let enough = CancellationToken::new();
        let measured = async {
            settle(connect, 3, false).await?;
            let millis = killed(connect, &told, &mut fleet).await?;
            fleet.push(told.spawn(connect, &format!("bench-steady-{round}"), SHAPE)?);
            anyhow::Ok(millis)
        };
        let measured = async {
            let measured = measured.await;
            enough.cancel();
            measured
        };
        let (millis, published) = tokio::join!(measured, load.steady(&enough));
        published?;
        kill.push(millis?);
    }
    progress.set_message("failover, publishing a backlog");
    load.fill().await?;
    for round in 0..ROUNDS {
        progress.set_message(format!("failover, round {} of {ROUNDS}, prefetched", round + 1));
        settle(connect, 3, true).await?;
        kill_prefetched.push(killed(connect, &told, &mut fleet).await?);

        let at = now_us();
        let name = format!("bench-{}", 4 + 2 * round);
        let newcomer = told.spawn(connect, &name, SHAPE)?;
        let ids: Vec<&WorkerId> = fleet.iter().map(|p| &p.id).chain([&newcomer.id]).collect();
        let won = won_by(connect, &newcomer.id, &ids).await?;
        join.push(moved(&told, &won, at, |who| *who == newcomer.id).await?);
        fleet.push(newcomer);

        settle(connect, 3, true).await?;
        let mut leaver = fleet.remove(0);
        let owned = owned_by(connect, &leaver.id).await?;
        let at = now_us();
        leaver.terminate()?;
        stopped.push(moved(&told, &owned, at, |who| *who != leaver.id).await?);
        leaver.child.wait().await?;
        fleet.push(told.spawn(connect, &format!("bench-{}", 5 + 2 * round), SHAPE)?);
    }
    load.close().await;
    fleet.iter().try_for_each(Process::terminate)?;
    for worker in &mut fleet {
        worker.child.wait().await?;
    }
    let failover = Failover {
        kill: median(kill),
        kill_prefetched: median(kill_prefetched),
        stop: median(stopped),
        join: median(join),
        task_ms: SHAPE.task_ms,
    };
    Ok((failover, told.violations()))
}

/// Kills the first worker of the fleet, and measures how long its partitions stand
/// still.
async fn killed(connect: &Connect, told: &Told, fleet: &mut Vec<Process>) -> anyhow::Result<f64> {
    let mut victim = fleet.remove(0);
    let owned = owned_by(connect, &victim.id).await?;
    let at = now_us();
    victim.kill()?;
    let millis = moved(told, &owned, at, |who| *who != victim.id).await?;
    victim.child.wait().await?;
    Ok(millis)
}

/// Publishes to all resources in turn.
struct Load {
    producer: Producer,
    resources: Vec<u32>,
    published: u64,
}

impl Load {
    async fn open(connect: &Connect) -> anyhow::Result<Self> {
        let producer = Producer::open(connect, ProducerOptions::default()).await?;
        let resources = evenly_spread(producer.topology());
        Ok(Self { producer, resources, published: 0 })
    }

    async fn publish(&mut self, count: u64) -> anyhow::Result<()> {
        let all = self.resources.len() as u64;
        let resources = &self.resources;
        let tasks = (self.published..self.published + count).map(|number| {
            let resource = resources[(number % all) as usize];
            let sequence = (number / all + 1) as u32;
            let note = Note { resource, sequence, published: Duration::ZERO };
            Task::on(resource_name(resource), note.to_payload())
        });
        let mut published = Box::pin(self.producer.publish_all(stream::iter(tasks)));
        while let Some(done) = published.next().await {
            done.outcome?;
        }
        drop(published);
        self.published += count;
        Ok(())
    }

    /// Publishes what the fleet keeps up with, until it is enough.
    async fn steady(&mut self, enough: &CancellationToken) -> anyhow::Result<()> {
        let mut pace = interval(PACE);
        while !enough.is_cancelled() {
            pace.tick().await;
            self.publish(STEADY * PACE.as_millis() as u64 / 1_000).await?;
        }
        Ok(())
    }

    /// Publishes so many tasks of each resource that none runs out.
    async fn fill(&mut self) -> anyhow::Result<()> {
        self.publish(u64::from(BACKLOG) * self.resources.len() as u64).await
    }

    async fn close(self) {
        self.producer.close().await;
    }
}

/// Of the steady load.
const PACE: Duration = Duration::from_millis(25);

/// So many resources of each partition.
fn evenly_spread(topology: &Topology) -> Vec<u32> {
    let mut lanes = vec![0; topology.partitions().len()];
    let mut missing = LANES * lanes.len();
    let mut spread = Vec::with_capacity(missing);
    for resource in 0.. {
        if missing == 0 {
            break;
        }
        let partition = topology.partition_of(&resource_name(resource)).number();
        let lanes = &mut lanes[partition as usize];
        if *lanes < LANES {
            (*lanes, missing) = (*lanes + 1, missing - 1);
            spread.push(resource);
        }
    }
    spread
}

/// Waits until so many workers answer, and every partition is consumed; with `busy`,
/// until every one executes tasks.
async fn settle(connect: &Connect, workers: u32, busy: bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = crate::status(connect).await?;
        let settled = status.workers.len() as u32 == workers
            && status.partitions.iter().all(|p| p.consumed)
            && (!busy || status.partitions.iter().all(|p| p.owner.is_some() && p.running > 0));
        if settled {
            sleep(CALM).await;
            return Ok(());
        }
        if Instant::now() > deadline {
            let idle = status.partitions.iter().filter(|p| p.running == 0).count();
            bail!(
                "the fleet did not settle: {} workers, {idle} idle partitions",
                status.workers.len()
            );
        }
        sleep(Duration::from_millis(500)).await;
    }
}

async fn owned_by(connect: &Connect, worker: &WorkerId) -> anyhow::Result<BTreeSet<u32>> {
    let status = crate::status(connect).await?;
    let owned = status.partitions.iter().filter(|p| p.owner.as_ref() == Some(worker));
    Ok(owned.map(|p| p.partition.number()).collect())
}

/// The partitions in which `worker` has the highest priority of the fleet.
async fn won_by(
    connect: &Connect,
    worker: &WorkerId,
    fleet: &[&WorkerId],
) -> anyhow::Result<BTreeSet<u32>> {
    let topology = crate::topology(connect).await?;
    let wins = |p: &PartitionId| {
        fleet.iter().max_by_key(|id| priority(id, Weight::ONE, *p)).is_some_and(|id| *id == worker)
    };
    Ok(topology.partitions().filter(wins).map(PartitionId::number).collect())
}

/// Milliseconds from `at_us` until somebody of whom `who` holds has started a
/// task of each of these partitions.
async fn moved(
    told: &Told,
    partitions: &BTreeSet<u32>,
    at_us: u64,
    who: impl Fn(&WorkerId) -> bool,
) -> anyhow::Result<f64> {
    if partitions.is_empty() {
        bail!("the worker owned no partition");
    }
    let deadline = Instant::now() + PATIENCE;
    let mut firsts = BTreeMap::new();
    // What is told is told late, but not by a second.
    let earlier = |(_, execution): &(WorkerId, Execution)| execution.end_us + 1_000_000 < at_us;
    let mut seen = told.all().iter().rposition(earlier).map_or(0, |index| index + 1);
    while firsts.len() < partitions.len() {
        if Instant::now() > deadline {
            let stuck = partitions.len() - firsts.len();
            bail!("{stuck} of {} partitions did not move in {PATIENCE:?}", partitions.len());
        }
        sleep(Duration::from_millis(50)).await;
        for (worker, execution) in &told.all()[seen..] {
            seen += 1;
            let moved = execution.start_us >= at_us && who(worker);
            if moved && partitions.contains(&execution.partition) {
                let first = firsts.entry(execution.partition).or_insert(u64::MAX);
                *first = execution.start_us.min(*first);
            }
        }
    }
    let last = firsts.into_values().max().unwrap_or(at_us);
    Ok((last - at_us) as f64 / 1e3)
}
