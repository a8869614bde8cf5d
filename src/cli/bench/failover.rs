//! How long partitions stand still when a worker is killed, stopped, or joins: the first
//! two under a load that the fleet keeps up with, and each of them under a backlog of slow
//! tasks that fills every prefetch window.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;
use futures_lite::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::fleet::{Process, Shape, Told, as_planned};
use super::ledger::Note;
use super::worker::{Execution, now_us};
use super::{median, resource_name};
use crate::{Connect, PartitionId, Producer, ProducerOptions, Task, Topology, WorkerId};

const SHAPE: Shape = Shape { slots: 32, task_ms: 50, tell: true };
/// Every measurement is made so often.
const ROUNDS: u32 = 3;
/// Resources of each partition: more than slots that fall to it, so that none is ever idle.
const LANES: usize = 32;
/// Tasks of all resources that are published in a second, while there is no backlog:
/// half of what the slots execute, so that two workers of three keep up with it.
const STEADY: u64 = 960;
/// Tasks of each resource: enough that every prefetch window is full to the end,
/// of 96 slots that execute 1,920 tasks/s.
const BACKLOG: u32 = 80;
/// Resources and their tasks that fill the window of one partition of a worker that is stopped:
/// few, so that the others find slots, and more than it takes.
const WINDOW_LANES: usize = 4;
const WINDOW_TASKS: u32 = 80;
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
    /// With every prefetch window full.
    pub(super) kill_prefetched: f64,
    /// Under a steady load, while the window of one of its partitions is full.
    pub(super) stop: f64,
    /// With every prefetch window full.
    pub(super) stop_prefetched: f64,
    /// From the start of the process, until it executes tasks of every
    /// partition that it is planned to own; with every prefetch window full.
    pub(super) join: f64,
    /// How long each task takes.
    pub(super) task_ms: u64,
}

pub(super) async fn run(
    connect: &Connect,
    progress: &ProgressBar,
) -> anyhow::Result<(Failover, u64)> {
    let told = Told::default();
    let topology = crate::topology(connect).await?;
    let partitions: Vec<PartitionId> = topology.partitions().collect();
    let mut load = Load::open(connect, spread(&topology, &partitions, LANES, 0)).await?;
    let mut fleet = Vec::new();
    for number in 1..=3 {
        fleet.push(told.spawn(connect, &format!("bench-{number}"), SHAPE)?);
    }
    let (mut kill, mut kill_prefetched) = (Vec::new(), Vec::new());
    let (mut stop, mut stop_prefetched) = (Vec::new(), Vec::new());
    let mut join = Vec::new();
    for round in 0..ROUNDS {
        progress.set_message(format!("failover, round {} of {ROUNDS}", round + 1));
        let enough = CancellationToken::new();
        let measured = async {
            settle(connect, 3, false).await?;
            let stopped = stopped(connect, &told, &mut fleet, Held::OneWindow).await?;
            fleet.push(told.spawn(connect, &format!("bench-stopped-{round}"), SHAPE)?);
            settle(connect, 3, false).await?;
            let killed = killed(connect, &told, &mut fleet).await?;
            fleet.push(told.spawn(connect, &format!("bench-steady-{round}"), SHAPE)?);
            anyhow::Ok((stopped, killed))
        };
        let measured = async {
            let measured = measured.await;
            enough.cancel();
            measured
        };
        let (measured, published) = tokio::join!(measured, load.steady(&enough));
        published?;
        let (stopped, killed) = measured?;
        stop.push(stopped);
        kill.push(killed);
    }
    progress.set_message("failover, publishing a backlog");
    load.fill().await?;
    // What a killed worker held is marked for good, and looked up at every later change of
    // owner. So the kills come last.
    for round in 0..ROUNDS {
        progress.set_message(format!("failover, round {} of {ROUNDS}, prefetched", round + 1));
        settle(connect, 3, true).await?;
        stop_prefetched.push(stopped(connect, &told, &mut fleet, Held::AllWindows).await?);

        settle(connect, 2, true).await?;
        let at = now_us();
        let newcomer = told.spawn(connect, &format!("bench-joined-{round}"), SHAPE)?;
        let won = planned_for(connect, &newcomer.id).await?;
        join.push(moved(&told, &won, at, |who| *who == newcomer.id).await?);
        fleet.push(newcomer);
    }
    for round in 0..ROUNDS {
        progress.set_message(format!("failover, round {} of {ROUNDS}, killed", round + 1));
        settle(connect, 3, true).await?;
        kill_prefetched.push(killed(connect, &told, &mut fleet).await?);
        fleet.push(told.spawn(connect, &format!("bench-killed-{round}"), SHAPE)?);
    }
    load.close().await;
    fleet.iter().try_for_each(Process::terminate)?;
    for worker in &mut fleet {
        worker.child.wait().await?;
    }
    let failover = Failover {
        kill: median(kill),
        kill_prefetched: median(kill_prefetched),
        stop: median(stop),
        stop_prefetched: median(stop_prefetched),
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

/// What a worker that is stopped holds beside what comes steadily.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// All that one of its partitions gives at once; this fills that window.
    OneWindow,
    /// The windows of all partitions are full already.
    AllWindows,
}

/// Stops the first worker of the fleet, and measures how long its partitions stand still.
async fn stopped(
    connect: &Connect,
    told: &Told,
    fleet: &mut Vec<Process>,
    held: Held,
) -> anyhow::Result<f64> {
    let mut leaver = fleet.remove(0);
    let owned = owned_by(connect, &leaver.id).await?;
    if held == Held::OneWindow {
        fill_window(connect, &owned, told).await?;
    }
    let at = now_us();
    leaver.terminate()?;
    let millis = moved(told, &owned, at, |who| *who != leaver.id).await?;
    leaver.child.wait().await?;
    Ok(millis)
}

/// Publishes tasks of few resources of one of these partitions, until its window is full.
async fn fill_window(connect: &Connect, owned: &BTreeSet<u32>, told: &Told) -> anyhow::Result<()> {
    let topology = crate::topology(connect).await?;
    let Some(partition) = topology.partitions().find(|p| owned.contains(&p.number())) else {
        bail!("the worker owned no partition");
    };
    // The numbers of these resources begin anew, so nobody may have used them.
    let used = told.all().iter().map(|(_, execution)| execution.resource).max().unwrap_or(0);
    let unused = spread(&topology, &[partition], WINDOW_LANES, used + 1);
    let mut load = Load::open(connect, unused).await?;
    load.publish(u64::from(WINDOW_TASKS) * WINDOW_LANES as u64).await?;
    load.close().await;
    // What is executed and not acked yet takes up the window, too, and is not counted.
    let full = u32::from(topology.prefetch.get()) * 9 / 10;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = crate::status(connect).await?;
        let seen = status.partitions.iter().find(|p| p.partition == partition);
        if seen.is_some_and(|p| p.unsettled >= full) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the window of partition {partition} was not filled");
        }
    }
}

/// Publishes to all resources in turn.
pub(super) struct Load {
    producer: Producer,
    resources: Vec<u32>,
    published: u64,
}

impl Load {
    pub(super) async fn open(connect: &Connect, resources: Vec<u32>) -> anyhow::Result<Self> {
        let producer = Producer::open(connect, ProducerOptions::default()).await?;
        Ok(Self { producer, resources, published: 0 })
    }

    pub(super) async fn publish(&mut self, count: u64) -> anyhow::Result<()> {
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

    pub(super) async fn close(self) {
        self.producer.close().await;
    }
}

/// Of the steady load.
const PACE: Duration = Duration::from_millis(25);

/// So many resources of each of these partitions, one of each in turn: none waits for tasks
/// longer than another. Their numbers are at least `first`.
pub(super) fn spread(
    topology: &Topology,
    partitions: &[PartitionId],
    lanes: usize,
    first: u32,
) -> Vec<u32> {
    let mut found: BTreeMap<PartitionId, Vec<u32>> =
        partitions.iter().map(|partition| (*partition, Vec::new())).collect();
    let mut missing = lanes * found.len();
    for resource in first.. {
        if missing == 0 {
            break;
        }
        let partition = topology.partition_of(&resource_name(resource));
        if let Some(found) = found.get_mut(&partition)
            && found.len() < lanes
        {
            found.push(resource);
            missing -= 1;
        }
    }
    (0..lanes).flat_map(|lane| found.values().map(move |found| found[lane])).collect()
}

/// Waits until so many workers answer, and every partition is owned as planned; with `busy`,
/// until somebody holds tasks of every one.
async fn settle(connect: &Connect, workers: usize, busy: bool) -> anyhow::Result<()> {
    as_planned(connect, workers).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let partitions = crate::status(connect).await?.partitions;
        let idle = partitions.iter().filter(|p| p.unsettled == 0).count();
        if !busy || idle == 0 {
            sleep(CALM).await;
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the fleet did not settle: {idle} idle partitions");
        }
        sleep(Duration::from_millis(500)).await;
    }
}

pub(super) async fn owned_by(
    connect: &Connect,
    worker: &WorkerId,
) -> anyhow::Result<BTreeSet<u32>> {
    let status = crate::status(connect).await?;
    let owned = status.partitions.iter().filter(|p| p.owner.as_ref() == Some(worker));
    Ok(owned.map(|p| p.partition.number()).collect())
}

/// The partitions that a newcomer is planned to own, once it follows a plan.
async fn planned_for(connect: &Connect, worker: &WorkerId) -> anyhow::Result<BTreeSet<u32>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = crate::status(connect).await?;
        let planned = status.partitions.iter().filter(|p| p.planned.as_ref() == Some(worker));
        let planned: BTreeSet<_> = planned.map(|p| p.partition.number()).collect();
        if !planned.is_empty() {
            return Ok(planned);
        }
        if Instant::now() > deadline {
            bail!("{worker} is planned nothing");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Milliseconds from `at_us` until somebody of whom `who` holds has started a
/// task of each of these partitions.
pub(super) async fn moved(
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
