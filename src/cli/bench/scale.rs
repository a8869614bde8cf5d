//! Many workers on many partitions: until everything is owned, what it costs the broker, and
//! until everything is owned again when one is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde::Serialize;

use super::failover::{Load, moved, owned_by, spread};
use super::fleet::{Process, Shape, Told, as_planned};
use super::worker::now_us;
use crate::protocol::plan::{Member, Plan};
use crate::provision::docker::docker;
use crate::{Connect, Weight, WorkerId};

const SHAPE: Shape = Shape { slots: 4, task_ms: 1, tell: true };
/// Standbys that have not come by then are not going to.
const PATIENCE: Duration = Duration::from_secs(120);
/// The largest fleet that plans are made for.
const MEMBERS: usize = 1_000;
const PLANNED: usize = 16_384;

#[derive(Debug, Clone, Serialize)]
pub(super) struct Scale {
    pub(super) workers: usize,
    pub(super) partitions: usize,
    /// From the start of the first process.
    pub(super) owned_s: f64,
    /// … until the standbys stand in every line, too.
    pub(super) stood_by_s: f64,
    /// Of partitions, on the broker; unknown for one that is not our own.
    pub(super) consumers: Option<u64>,
    /// Of the broker, with the queues and without workers.
    pub(super) broker_mb: Option<f64>,
    pub(super) broker_owned_mb: Option<f64>,
    /// Partitions of the worker that is killed.
    pub(super) lost: usize,
    /// From the kill, until others execute a task of each of its partitions.
    pub(super) executed_again_s: f64,
    /// … and until all partitions are owned as a plan without it says.
    pub(super) planned_again_s: f64,
    pub(super) plan_ms: PlanTimes,
}

/// Of one computation, for 1,000 members and 16,384 partitions.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PlanTimes {
    pub(super) first: f64,
    pub(super) unchanged: f64,
    pub(super) one_leaves: f64,
    pub(super) levelled: f64,
}

/// `container`: the broker's, if it is ours.
pub(super) async fn run(
    workers: usize,
    connect: &Connect,
    container: Option<&str>,
    progress: &ProgressBar,
) -> anyhow::Result<(Scale, u64)> {
    let plan_ms = time_plans()?;
    let topology = crate::topology(connect).await?;
    let partitions: Vec<_> = topology.partitions().collect();
    let mut load = Load::open(connect, spread(&topology, &partitions, 1, 0)).await?;
    let broker_mb = memory_mb(container).await?;
    let told = Told::default();
    progress.set_message(format!("scale, {workers} workers"));
    let began = Instant::now();
    let mut fleet = Vec::new();
    for number in 1..=workers {
        fleet.push(told.spawn(connect, &format!("bench-{number}"), SHAPE)?);
    }
    as_planned(connect, workers).await?;
    let owned_s = began.elapsed().as_secs_f64();
    progress.set_message("scale, all is owned");
    stood_by(connect, workers).await?;
    let stood_by_s = began.elapsed().as_secs_f64();
    let broker_owned_mb = memory_mb(container).await?;
    let consumers = consumers(connect, container).await?;

    progress.set_message("scale, one is killed");
    let Some(mut victim) = fleet.pop() else { bail!("a fleet has workers") };
    let owned: BTreeSet<u32> = owned_by(connect, &victim.id).await?;
    let (killed, at) = (Instant::now(), now_us());
    victim.kill()?;
    let again = moved(&told, &owned, at, |who| *who != victim.id);
    let (published, again) = tokio::join!(load.publish(u64::try_from(partitions.len())?), again);
    published?;
    let executed_again_s = again? / 1e3;
    as_planned(connect, workers - 1).await?;
    let planned_again_s = killed.elapsed().as_secs_f64();
    load.close().await;
    fleet.iter().try_for_each(Process::terminate)?;
    for worker in fleet.iter_mut().chain([&mut victim]) {
        worker.child.wait().await?;
    }
    let scale = Scale {
        workers,
        partitions: partitions.len(),
        owned_s,
        stood_by_s,
        consumers,
        broker_mb,
        broker_owned_mb,
        lost: owned.len(),
        executed_again_s,
        planned_again_s,
        plan_ms,
    };
    Ok((scale, told.violations()))
}

/// Waits until an owner and all its standbys stand in every line.
async fn stood_by(connect: &Connect, workers: usize) -> anyhow::Result<()> {
    let wanted = workers.min(1 + Plan::STANDBYS);
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let status = crate::status(connect).await?;
        if status.partitions.iter().all(|p| p.line.len() >= wanted) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("not every line has its standbys")
}

/// What the broker's Erlang has allocated.
async fn memory_mb(container: Option<&str>) -> anyhow::Result<Option<f64>> {
    let Some(container) = container else { return Ok(None) };
    let asked = ["exec", container, "rabbitmqctl", "-q", "eval", "erlang:memory(total)."];
    let bytes: f64 = docker(&asked).await?.trim().parse().context("the broker's memory")?;
    Ok(Some(bytes / 1e6))
}

async fn consumers(connect: &Connect, container: Option<&str>) -> anyhow::Result<Option<u64>> {
    let Some(container) = container else { return Ok(None) };
    let asked = ["exec", container, "rabbitmqctl", "-q", "list_queues", "name", "consumers"];
    let told = docker(&asked).await?;
    let partitions = format!("{}.g1.p", connect.namespace());
    let of_partitions = told.lines().filter_map(|line| {
        let (name, consumers) = line.split_once('\t')?;
        name.starts_with(&partitions).then(|| consumers.trim().parse::<u64>().ok())?
    });
    Ok(Some(of_partitions.sum()))
}

fn time_plans() -> anyhow::Result<PlanTimes> {
    let mut members = Vec::new();
    for number in 0..MEMBERS {
        let worker = WorkerId::new(format!("worker-{number}"))?;
        members.push(Member { worker, weight: Weight::ONE });
    }
    let timed = |previous: Option<&Plan>, members: &[Member], loads: &[f64]| {
        let began = Instant::now();
        let plan = Plan::next(previous, members, PLANNED, loads);
        (plan, began.elapsed().as_secs_f64() * 1e3)
    };
    let (plan, first) = timed(None, &members, &[]);
    let (_, unchanged) = timed(Some(&plan), &members, &[]);
    let (_, one_leaves) = timed(Some(&plan), &members[1..], &[]);
    let loads: Vec<f64> = (0..PLANNED).map(|p| 1.0 / (1 + p * 7_919 % PLANNED) as f64).collect();
    let (_, levelled) = timed(Some(&plan), &members, &loads);
    Ok(PlanTimes { first, unchanged, one_leaves, levelled })
}
